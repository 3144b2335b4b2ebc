"""Fits that are interrupted anywhere and go on end as if they had not been, bit for bit."""

import os
import random
import re
import resource
import signal
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from processes import Fork, on_ranks
from resumed import (
    OPTIONS,
    WINGS,
    command,
    interrupted_and_resumed,
    losses,
    newest,
    outcome,
    plant,
    run,
    same,
)
from shooter import Shooter
from torch import nn

cli_modules = pytest.importorskip("cli_modules")

from pl_losses.cli.checkpoints import WholeCheckpointIO  # noqa: E402
from pl_losses.cli.lightning_cli import status_of  # noqa: E402
from pl_losses.cli.main import main  # noqa: E402
from pl_losses.core.base import PaperModule  # noqa: E402
from pl_losses.data.loader import BatchLoader  # noqa: E402
from pl_losses.monitoring import interruption, record  # noqa: E402
from pl_losses.papers.adam import TemporalAveraging  # noqa: E402

pytestmark = pytest.mark.usefixtures("folder")
UNVALIDATED = ("dropout/co2", "gan/digits", "style/demo")  # They have no data for it.

PLACES = [
    ("step", 1),
    ("forward", 3),
    ("end", 2),
    ("validation", 2),
    ("backward", 4),
    ("epoch", 2),
    ("step", 5),
]
TRIALS = [
    pytest.param(
        name, *place, marks=[] if name == "gan/digits" and place[0] == "forward" else pytest.mark.slow
    )
    for name in WINGS
    for place in PLACES
    if place[0] != "validation" or name not in UNVALIDATED
]


@pytest.mark.parametrize(("name", "place", "step"), TRIALS)
def test_a_recipe_goes_on_bit_for_bit(folder, name, place, step):
    plant(folder)
    args = ["fit", "--config", name, *OPTIONS, *WINGS[name]]
    output, _ = run([*args, "--trainer.logger.save_dir=whole"])
    found, logged = interrupted_and_resumed(args, place, step)
    for one, other in zip(found, outcome("whole", output), strict=True):
        assert same(one, other)
    assert logged == losses("whole")


class Noisy(PaperModule):
    """Draws from all streams: PyTorch's, NumPy's and Python's."""

    def __init__(self, optimizer=torch.optim.Adam, lr_scheduler=None):
        super().__init__(optimizer, lr_scheduler)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def training_step(self, batch, index):
        noise = torch.randn_like(batch[0]) + np.random.rand() + random.random()
        loss = self.network(batch[0] + noise).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val/loss", self.network(batch[0]).square().mean() + torch.rand(()))

    def test_step(self, batch, index):
        self.log("test/loss", self.network(batch[0]).square().mean() + torch.rand(()))


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, max_iter=3, line_search_fn="strong_wolfe")


def one_cycle(optimizer, **options):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, **options)


class Points(LightningDataModule):
    def train_dataloader(self):
        points = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        return BatchLoader((points,), 8, shuffle=True, rank=self.rank, world_size=self.trainer.world_size)

    @property
    def rank(self):
        return self.trainer.global_rank

    val_dataloader = test_dataloader = train_dataloader


def fit(folder, *shot, model=None, resume=None, every=1e9, messages=print, test=True, **options):
    """A whole fit of 3 epochs of 5 batches, in this process: its record, losses and test result."""
    seed_everything(0)
    model = model() if model else Noisy()
    known = record.RunRecord({}, [])
    callbacks = [known, interruption.InterruptionCheckpoint(known, messages, every)]
    callbacks += [Shooter(*shot)] if shot else []
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=1,
        callbacks=[*callbacks, *(one() for one in options.pop("callbacks", []))],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 3, **options},
    )
    data = Points()
    trainer.fit(model, data, ckpt_path=resume)
    tested = trainer.test(model, data, verbose=False) if test else None
    trainer.save_checkpoint(Path(folder, "final.ckpt"))
    return tested, torch.load(Path(folder, "final.ckpt"), weights_only=True)


def interrupt(folder, *shot, status=130, **options):
    """The checkpoint that an interrupted fit leaves, and what was told."""
    messages = []
    with pytest.raises(SystemExit) as leaving:
        fit(folder, *shot, messages=messages.append, **options)
    assert status_of(leaving.value) == status
    return list(Path(folder).rglob("interrupted-*.ckpt")), messages


def alike(one, other):
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "random_states", "global_step")
    (tested, state), (other_tested, other_state) = one, other
    return tested == other_tested and all(same(state[key], other_state[key]) for key in kept)


VARIANTS = {
    "adam": {},
    "one_cycle": {"model": partial(Noisy, lr_scheduler=one_cycle)},
    "lbfgs": {"model": partial(Noisy, lbfgs)},
    "accumulated": {"accumulate_grad_batches": 2},
    "validation": {"val_check_interval": 2},
    "averaged": {"callbacks": [partial(TemporalAveraging, 0.9)]},
}
SHOTS = [*(("step", step) for step in (0, 3, 4, 9, 14)), ("start", 5), ("forward", 2), ("backward", 7)]
SHOTS += [("end", 1), ("end", 4), ("validation", 4), ("epoch", 4)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_goes_on_bit_for_bit(variant):
    shots = SHOTS[list(VARIANTS).index(variant) % 3 :: 3]
    whole = fit("whole", **VARIANTS[variant])
    for place, step in shots:
        folder = f"{place}-{step}"
        number = signal.SIGTERM if step in (3, 14) else signal.SIGINT
        found, messages = interrupt(folder, place, step, [number], status=128 + number, **VARIANTS[variant])
        assert len(found) == 1, (folder, messages)
        assert alike(fit("again", resume=found[0], **VARIANTS[variant]), whole), folder
        logged = losses(folder) | losses("again")
        assert logged == losses("whole"), folder


def test_a_second_signal_ends_at_once():
    for numbers in ([signal.SIGINT] * 2, [signal.SIGINT, signal.SIGTERM]):  # The last comes first.
        found, messages = interrupt("twice", "step", 7, numbers)
        assert not found
        assert "nothing was saved. The newest checkpoint is whole; resume with:" in messages[-1]
        assert "epoch=0-step=5" in messages[-1]
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_after_training_there_is_nothing_to_save():
    for place, words in (("after", "Interrupted, with nothing new to save."), ("test", None)):
        found, messages = interrupt(place, place, 14, [signal.SIGINT])
        assert not found
        assert words is None or words in messages[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_batch_ends_by_its_status(number):
    before = signal.getsignal(signal.SIGINT)
    try:
        found, _ = interrupt("last", "epoch", 14, [number], status=128 + number)
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on.
    assert not found


def test_before_training_there_is_nothing_to_save():
    class Early(Callback):
        def on_sanity_check_end(self, *_):
            os.kill(os.getpid(), signal.SIGINT)

    found, messages = interrupt("early", callbacks=[Early])
    assert not found
    assert "Interrupted before the first step" in messages[-1]


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fit("x")
    interrupt("y", "step", 3, [signal.SIGTERM], status=143)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def on_two_ranks(shots, folder, status, lags=False):
    """One of the ranks gets the signal."""
    interruption.lags = lambda trainer: lags
    rank = int(os.environ["RANK"])
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=30))
    options = {"strategy": strategy, "devices": 2, "test": False}
    try:
        if status is None:
            resume = next(Path(folder).rglob("interrupted-*.ckpt"), None)
            fit("again" if resume else folder, resume=resume, **options)
        else:
            fit(folder, *shots[rank], **options)
    except SystemExit as leaving:
        return 0 if status_of(leaving) == status else 1
    return status is not None


@pytest.mark.parametrize("rank", [0, 1])
def test_two_ranks_end_at_one_step(rank):
    shots = [("step", 3, [signal.SIGINT] if rank == own else []) for own in range(2)]
    on_ranks(2, on_two_ranks, shots, "whole", None)
    on_ranks(2, on_two_ranks, shots, "halved", 130)
    on_ranks(2, on_two_ranks, shots, "halved", None)
    whole, again = (torch.load(f"{name}/final.ckpt", weights_only=True) for name in ("whole", "again"))
    assert alike((None, whole), (None, again))
    assert len(whole["random_states"]) == 2
    assert {path.stem for path in Path().rglob("interrupted-*.ckpt")} == {"interrupted-step=4"}
    with pytest.warns(UserWarning, match="random numbers of 2 ranks and there are 1"):
        fit("one", resume="again/final.ckpt", test=False)


@pytest.mark.parametrize(("place", "step", "end"), [("step", 3, 5), ("end", 8, 9)])
def test_two_ranks_end_a_batch_later_where_accelerators_are_not_waited_for(place, step, end):
    shots = [(place, step, [signal.SIGINT] if own else []) for own in range(2)]
    on_ranks(2, on_two_ranks, shots, "whole", None, True)
    on_ranks(2, on_two_ranks, shots, "halved", 130, True)
    assert [path.stem for path in Path().rglob("interrupted-*.ckpt")] == [f"interrupted-step={end}"]
    on_ranks(2, on_two_ranks, shots, "halved", None, True)
    whole, again = (torch.load(f"{name}/final.ckpt", weights_only=True) for name in ("whole", "again"))
    assert alike((None, whole), (None, again))


def test_checkpoints_in_the_course_of_training(monkeypatch, caplog):
    """A fit that is killed anywhere goes on from the newest; two are kept."""
    monkeypatch.setattr(interruption, "SHARE", 0)
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append(sorted(path.name for path in Path("often").rglob("recent-*.ckpt")))
            for path in Path("often").rglob("recent-*.ckpt"):
                (Path("kept") / path.name).write_bytes(path.read_bytes())

    Path("kept").mkdir()
    caplog.set_level("INFO")
    whole = fit("whole")
    assert alike(fit("often", every=0.0, callbacks=[Watch]), whole)
    assert max(map(len, seen)) == 2
    assert caplog.text.count("`weights_only` was not set") == 2  # For the two files that `fit` here saves.
    assert not list(Path("often").rglob("recent-*.ckpt"))  # The last epoch's replaces them.
    kept = sorted(Path("kept").iterdir())
    assert len(kept) > 5
    for path in kept[::3]:
        assert alike(fit("again", resume=path), whole), path


@pytest.mark.parametrize("late", [False, True])
def test_the_first_checkpoint_waits_for_a_hundred_times_its_bytes(monkeypatch, late):
    """Adam keeps two numbers for each of the weights, and a count for each tensor."""
    weights = list(Noisy().parameters())
    size = sum(3 * one.nbytes + 4 for one in weights) + sum(one.nbytes for one in Noisy().buffers())
    seconds = 1000 if late else 1e-9
    monkeypatch.setattr(interruption, "SPEED", interruption.SHARE * size / seconds)
    costs, seen = [], set()

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *_):
            callback = next(
                c for c in trainer.callbacks if isinstance(c, interruption.InterruptionCheckpoint)
            )
            costs.append(callback._cost)
            seen.update(Path().rglob("recent-*.ckpt"))

    fit("x", every=0.0, test=False, callbacks=[Watch])
    assert bool(seen) != late
    assert not late or costs == [pytest.approx(seconds / interruption.SHARE)] * 15


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_takes_many_trainings_ends_with_the_status_of_a_signal(monkeypatch, capsys, number):
    """The Trainer within makes an exit of it, after SIGTERM one with status 0."""
    shot = partial(Trainer, callbacks=[Shooter("start", 1, [number])])
    monkeypatch.setattr("lightning.pytorch.Trainer", shot)
    args = "--source=digits --variations=rot-gen --seeds=1 --train_size=512 --val_size=9 --test_size=9"
    args += " --hidden_size=4 --folder=out"
    assert main(["reproduce", "sdae/variations", *args.split()]) == 128 + number
    assert "Interrupted: the same command with --folder out resumes" in capsys.readouterr().err


def test_a_full_disk_leaves_the_checkpoint_of_before():
    io = WholeCheckpointIO()
    path = Path("kept") / "x.ckpt"
    io.save_checkpoint({"a": torch.ones(3)}, path)

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        io.save_checkpoint({"a": torch.ones(100_000)}, path)

    process = Fork(full)
    assert process.wait() == 1
    assert "`kept/x.ckpt` cannot be written (File too large); an older file" in process.printed[1]
    assert [one.name for one in path.parent.iterdir()] == ["x.ckpt"]
    assert torch.load(path)["a"].tolist() == [1, 1, 1]


def killed(args, step=5):
    interruption.SHARE = 0
    interruption.InterruptionCheckpoint.__init__.__defaults__ = (print, 0.0)
    return command(args, Shooter("start", step, [signal.SIGKILL]))


def test_a_killed_fit_of_one_epoch_goes_on(folder, capsys):
    args = ["fit", "--model=cli_modules.Line", "--data=cli_modules.LocalPoints", *OPTIONS[:5]]
    args += ["--data.count=40", "--trainer.max_epochs=1"]
    process = Fork(killed, args)
    assert process.wait() == -signal.SIGKILL
    assert sorted(path.name for path in folder.rglob("*.ckpt")) == [
        "recent-step=4.ckpt",
        "recent-step=5.ckpt",
    ]
    messages = re.search(r"If it is interrupted, resume with:\n  pl-losses (fit .*)", process.printed[1])[1]
    assert main(messages.split()) == 0
    assert "recent-step=5.ckpt" in capsys.readouterr().err
    assert torch.load(newest(folder), weights_only=True)["global_step"] == 10


def test_a_fit_that_is_killed_before_its_first_checkpoint_goes_on(folder, capsys):
    """By the command of the start: anew, or from where the killed fit itself went on."""
    args = ["fit", "--model=cli_modules.Line", "--data=cli_modules.LocalPoints", *OPTIONS[:5]]

    def again(args):
        process = Fork(killed, args, 0)
        assert process.wait() == -signal.SIGKILL
        return re.search(r"resume with:\n  pl-losses (fit .*)", process.printed[1])[1].split()

    messages = again([*args, "--trainer.max_epochs=1"])
    assert not list(folder.rglob("*.ckpt"))
    assert main(messages) == 0
    assert "No checkpoint yet in runs/pl_losses/version_0: the fit starts anew" in capsys.readouterr().err
    (first,) = folder.rglob("*.ckpt")
    messages = again([*args, "--ckpt_path", str(first), "--trainer.max_epochs=2"])
    assert main(messages) == 0
    assert f"Checkpoint: {first} (`runs/pl_losses/version_2` went on from it" in capsys.readouterr().err
    assert torch.load(newest(folder), weights_only=True)["global_step"] == 4
