import copy
import math
import pickle
import re
import signal
import warnings
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from kept_rows import Rows
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim import SGD, Adam, Adamax, AdamW, NAdam, RAdam, SparseAdam

from pl_losses.papers.adam.monitor.monitor import AdamBiasCorrectionMonitor


class Net(pl.LightningModule):
    """A small network on random data, the same at the same batch, for any optimizers."""

    def __init__(self, make=Adam, infinite=()):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 1)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.make, self.infinite, self.dropout = make, infinite, nn.Identity()

    def training_step(self, batch, batch_idx):
        batch = torch.randn(4, 6, generator=torch.Generator().manual_seed(batch_idx))
        loss = self.second(self.dropout(self.first(batch).tanh())).square().mean()
        self.log("loss", loss)
        return loss * float("inf") if batch_idx in self.infinite else loss

    def configure_optimizers(self):
        return self.make(self.parameters())

    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(16))


def fit(model, *callbacks, max_steps=6, ckpt_path=None, **options):
    options = {"logger": Rows(), "log_every_n_steps": 1, "enable_checkpointing": False} | options
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ModelCheckpoint.*|.*lr_scheduler.step.*")
        trainer.fit(model, ckpt_path=ckpt_path)
    return trainer


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Several(Net):
    """Two optimizers with manual optimization; the second has two groups and steps three times a batch."""

    def __init__(self, *optimizers):
        super().__init__()
        self.automatic_optimization = False
        self.makes = optimizers or (
            lambda net: Adam(net.first.parameters(), lr=0.01),
            lambda net: AdamW([{"params": [net.second.weight]}, {"params": [net.second.bias], "lr": 0.5}]),
        )

    def configure_optimizers(self):
        return [make(self) for make in self.makes]

    def training_step(self, batch, batch_idx):
        for times, optimizer in zip((1, 3), self.optimizers(), strict=True):
            for _ in range(times):
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()


def test_every_key_matches_one_pattern_and_every_pattern_is_logged(folder):
    patterns = {key: re.compile(re.sub("<[^>]+>", ".+", key)) for key in AdamBiasCorrectionMonitor.KEYS}
    logged = set()
    for make in (Adam, Adamax, NAdam, RAdam):
        logger = Rows()
        monitor = AdamBiasCorrectionMonitor(tensors="first.*")
        trainer = fit(Net(make), monitor, max_steps=1, logger=[logger, CSVLogger(folder)])
        assert len(logger.of("adam")) == 1
        logged |= logger.of("adam")[0].keys()
    logger = fit(Several(), AdamBiasCorrectionMonitor(), max_steps=4).logger
    logged |= logger.of("adam")[0].keys()
    for key in logged:
        assert sum(bool(pattern.fullmatch(key)) for pattern in patterns.values()) == 1, key
    pictures = {"adam/bias_correction"}
    assert list(folder.rglob("pictures/adam-bias_correction.png"))
    for key, pattern in patterns.items():
        assert any(pattern.fullmatch(one) for one in logged | pictures), key
    assert trainer.global_step == 1


def test_effective_step_over_training():
    rows = fit(Net(partial(Adam, lr=0.02)), AdamBiasCorrectionMonitor(), max_steps=10).logger.of("adam")
    for step, row in rows.items():
        factor = math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        assert row["adam/Adam/effective_step"] == pytest.approx(factor)
        assert row["adam/Adam/effective_lr"] == pytest.approx(0.02 * factor)
        assert row["adam/Adam/measured_step"] == pytest.approx(factor, rel=1e-3)
        assert row["adam/Adam/step_max"] == row["adam/Adam/step_min"] == step + 1
        assert row["adam/Adam/coordinates"] == 33
        assert row["adam/Adam/skipped_steps"] == 0
    assert rows[0]["adam/Adam/max_update"] == pytest.approx(1, rel=1e-4)


def test_learning_rate_of_the_step_and_not_of_the_next():
    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = Adam(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    rows = fit(Scheduled(), AdamBiasCorrectionMonitor(), max_steps=4).logger.of("adam")
    assert [row["adam/Adam/lr"] for row in rows.values()] == [0.1, 0.05, 0.025, 0.0125]


@pytest.mark.parametrize("level", ["aggregate", "full"])
def test_training_is_bit_identical(level):
    ends = []
    for callbacks in ([], [AdamBiasCorrectionMonitor(level=level, tensors="*")]):
        torch.manual_seed(5)
        model = Net(partial(AdamW, amsgrad=True))
        model.dropout = nn.Dropout()
        trainer = fit(model, *callbacks, max_steps=12)
        states = [value for state in model.optimizers().state.values() for value in state.values()]
        ends.append(
            [*model.parameters(), *(p.grad for p in model.parameters()), *states, torch.get_rng_state()]
        )
        assert len(trainer.logger.of("adam")) == 12 * len(callbacks)
    assert len(ends[0]) == 8 + 16 + 1
    assert all(torch.equal(plain, watched) for plain, watched in zip(*ends, strict=True))


def test_accumulation_logs_with_the_steps_of_lightnings_rows():
    trainer = fit(Net(), AdamBiasCorrectionMonitor(), max_steps=4, accumulate_grad_batches=3)
    rows = trainer.logger.rows
    assert trainer.logger.of("adam").keys() == {step for step, row in rows.items() if "loss" in row}
    assert [row["adam/Adam/step_max"] for row in trainer.logger.of("adam").values()] == [1, 2, 3, 4]


def test_nothing_is_computed_on_steps_that_are_not_logged(monkeypatch):
    looked = []
    collect = AdamBiasCorrectionMonitor.collect

    def counted(monitor, *args):
        looked.append(args)
        return collect(monitor, *args)

    monkeypatch.setattr(AdamBiasCorrectionMonitor, "collect", counted)
    trainer = fit(Net(), AdamBiasCorrectionMonitor(), max_steps=10, log_every_n_steps=4)
    assert len(looked) == 2
    assert list(trainer.logger.of("adam")) == [3, 7]
    looked.clear()
    trainer = fit(Net(), AdamBiasCorrectionMonitor(every_n_steps=5), max_steps=10, log_every_n_steps=4)
    assert len(looked) == 2
    assert list(trainer.logger.of("adam")) == [4, 9]


def test_hooks_are_gone_after_training_and_after_an_exception():
    model = Net()
    fit(model, AdamBiasCorrectionMonitor())
    assert not model.optimizers().optimizer._optimizer_step_post_hooks

    class Broken(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                assert self.optimizers().optimizer._optimizer_step_post_hooks
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    model = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        fit(model, AdamBiasCorrectionMonitor())
    assert not model.optimizers().optimizer._optimizer_step_post_hooks


def test_several_optimizers_groups_and_steps_in_a_batch():
    # global_step counts the steps of all optimizers: four a batch.
    rows = fit(Several(), AdamBiasCorrectionMonitor(), max_steps=12).logger.of("adam")
    assert list(rows) == [0, 1, 2]
    last = rows[2]
    assert last["adam/Adam/step_max"] == 3
    assert last["adam/AdamW/pg1/step_max"] == last["adam/AdamW/pg2/step_max"] == 9
    assert (last["adam/AdamW/pg1/lr"], last["adam/AdamW/pg2/lr"]) == (1e-3, 0.5)
    assert (last["adam/AdamW/pg1/coordinates"], last["adam/AdamW/pg2/coordinates"]) == (4, 1)
    assert last["adam/Adam/skipped_steps"] == last["adam/AdamW/skipped_steps"] == 0
    assert not any(key.startswith("adam/AdamW/lr") for key in last)


def test_statistics_of_single_tensors():
    model = Net()
    row = fit(model, AdamBiasCorrectionMonitor(tensors="*weight"), max_steps=2).logger.of("adam")[1]
    optimizer = model.optimizers().optimizer
    for name in ("first.weight", "second.weight"):
        parameter = model.get_parameter(name)
        assert row[f"adam/Adam/{name}/coordinates"] == parameter.numel()
        m = optimizer.state[parameter]["exp_avg"].norm().item()
        assert row[f"adam/Adam/{name}/m_norm"] == pytest.approx(m)
    total = sum(row[f"adam/Adam/{name}/update_norm"] ** 2 for name in ("first.weight", "second.weight"))
    assert total < row["adam/Adam/update_norm"] ** 2
    assert "adam/Adam/first.bias/m_norm" not in row
    assert row.keys() >= {key.replace("first.weight/", "") for key in row if "first.weight" in key}


def test_a_tensor_without_gradient_falls_behind_and_is_left_out():
    class Partly(Net):
        def training_step(self, batch, batch_idx):
            self.first.requires_grad_(batch_idx < 2)
            return super().training_step(batch, batch_idx)

    row = fit(Partly(), AdamBiasCorrectionMonitor(tensors="first.bias"), max_steps=5).logger.of("adam")[4]
    assert (row["adam/Adam/step_min"], row["adam/Adam/step_max"]) == (2, 5)
    assert row["adam/Adam/coordinates"] == 5
    assert row["adam/Adam/first.bias/step_max"] == 2
    assert "adam/Adam/first.bias/update_norm" not in row


def test_a_group_added_while_training():
    class Unfreezing(Net):
        def configure_optimizers(self):
            return Adam(self.second.parameters())

        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 2:
                self.optimizers().optimizer.add_param_group({"params": list(self.first.parameters())})

    rows = fit(Unfreezing(), AdamBiasCorrectionMonitor(), max_steps=4).logger.of("adam")
    assert rows[1]["adam/Adam/step_max"] == 2
    assert (rows[3]["adam/Adam/pg1/step_max"], rows[3]["adam/Adam/pg2/step_max"]) == (4, 2)


def mixed_precision():
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=8.0))


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_mixed_precision_skips(fused):
    model = Net(partial(Adam, fused=fused), infinite=(0, 3, 4))
    rows = fit(model, AdamBiasCorrectionMonitor(), max_steps=8, plugins=mixed_precision()).logger.of("adam")
    skipped = {step: row["adam/Adam/skipped_steps"] for step, row in rows.items()}
    # Only a fused optimizer calls its hooks when it skips a step.
    everything = dict(enumerate([1, 1, 1, 2, 3, 3, 3, 3]))
    assert skipped == ({step: everything[step] for step in (range(8) if fused else (1, 2, 5, 6, 7))})
    assert rows[7]["adam/Adam/step_max"] == 5
    for step in {0, 3, 4} & rows.keys():  # A row of numbers would be that of the step before.
        assert rows[step].keys() == {"adam/Adam/skipped_steps"}
    assert all(math.isfinite(value) for row in rows.values() for value in row.values())


@pytest.mark.parametrize("make", [Adam, NAdam])
@pytest.mark.parametrize("empty", ["no loss", "frozen"])
def test_steps_without_a_gradient_repeat_no_row(make, empty):
    class Empty(Net):
        def training_step(self, batch, batch_idx):
            self.requires_grad_(empty != "frozen" or batch_idx not in (0, 3))
            loss = super().training_step(batch, batch_idx)
            if batch_idx in (0, 3):
                return None if empty == "no loss" else loss.detach().requires_grad_()
            return loss

    rows = fit(Empty(make), AdamBiasCorrectionMonitor(), max_steps=5).logger.of("adam")
    name = make.__name__
    assert {step: row.get(f"adam/{name}/step_max") for step, row in rows.items()} == {
        1: 1,
        2: 2,
        3: None,
        4: 3,
    }
    assert rows[3] == {f"adam/{name}/skipped_steps": 2}
    assert rows[4][f"adam/{name}/skipped_steps"] == 2


def test_resumed_training_goes_on(folder):
    straight, halves = AdamBiasCorrectionMonitor(), AdamBiasCorrectionMonitor()
    options = {"plugins": mixed_precision()}
    expected = fit(Net(infinite=(1, 7)), straight, max_steps=10, plugins=mixed_precision())
    trainer = fit(Net(infinite=(1, 7)), halves, max_steps=5, **options)
    trainer.save_checkpoint(folder / "half.ckpt")
    resumed, fresh = AdamBiasCorrectionMonitor(), AdamBiasCorrectionMonitor()
    options = {"max_steps": 10, "ckpt_path": folder / "half.ckpt"}
    trainer = fit(Net(infinite=(1, 7)), resumed, **options, plugins=mixed_precision())
    rows = trainer.logger.of("adam")
    assert list(rows) == [5, 6, 8, 9]
    for step, row in rows.items():
        assert row == pytest.approx(expected.logger.of("adam")[step])
    assert rows[9]["adam/Adam/skipped_steps"] == 2
    assert resumed.state_dict() == straight.state_dict()
    # A monitor that was not there before counts from its first look.
    checkpoint = torch.load(folder / "half.ckpt", weights_only=True)
    checkpoint["callbacks"] = {}
    torch.save(checkpoint, folder / "without.ckpt")
    options["ckpt_path"] = folder / "without.ckpt"
    rows = fit(Net(infinite=(1, 7)), fresh, **options, plugins=mixed_precision()).logger.of("adam")
    assert rows[9]["adam/Adam/skipped_steps"] == 1


def test_a_second_training_begins_anew():
    monitor = AdamBiasCorrectionMonitor()
    for _ in range(2):
        rows = fit(Net(), monitor, max_steps=3).logger.of("adam")
        assert rows[2]["adam/Adam/skipped_steps"] == 0
        assert [point[0] for point in monitor.state_dict()["history"]["Adam"]["points"]] == [1, 2, 3]


def test_state_is_plain_and_pickles():
    monitor = AdamBiasCorrectionMonitor(tensors="*", level="aggregate")
    fit(Net(), monitor)
    state = monitor.state_dict()
    assert state["attempts"] == {"Adam": 6}

    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(one) for key, one in value.items())
        return (
            all(map(plain, value))
            if isinstance(value, list)
            else type(value) in (str, int, float, type(None))
        )

    assert plain(state)
    for twin in (pickle.loads(pickle.dumps(monitor)), copy.deepcopy(monitor)):
        assert twin.state_dict()["history"] == state["history"]
        assert fit(Net(), twin, max_steps=2).logger.of("adam").keys() == {0, 1}


def test_other_optimizers(recwarn):
    sparse = Several(lambda net: Adam(net.first.parameters()), lambda net: SGD(net.second.parameters(), 0.1))
    rows = fit(sparse, AdamBiasCorrectionMonitor(), max_steps=4).logger.of("adam")
    assert all(key.startswith("adam/Adam/") for key in rows[0])
    assert not [one for one in recwarn if "Monitor" in str(one.message)]


def test_no_optimizer_of_the_family():
    with pytest.warns(UserWarning, match="logs nothing: it knows no optimizer like SGD"):
        trainer = fit(Net(partial(SGD, lr=0.1)), AdamBiasCorrectionMonitor())
    assert not trainer.logger.of("adam")


def test_optimizers_that_cannot_be_read(recwarn):
    both = Several(
        lambda net: Adam(net.first.parameters()),
        lambda net: type("Adam8bit", (SparseAdam,), {})([nn.Parameter(torch.ones(2))]),
    )
    trainer = fit(both, AdamBiasCorrectionMonitor(), max_steps=4)
    assert [str(one.message) for one in recwarn if "Monitor" in str(one.message)] == [
        "AdamBiasCorrectionMonitor leaves out what it cannot read: Adam8bit"
    ]
    assert trainer.logger.of("adam")


def test_refused():
    with pytest.raises(
        (TypeError, ValueError), match=r"Expected `level` to be .aggregate. or .full. but got 'all'"
    ):
        AdamBiasCorrectionMonitor(level="all")
    with pytest.raises(TypeError, match="Expected `tensors` to be a text or None but got"):
        AdamBiasCorrectionMonitor(tensors=["first"])
    with pytest.raises((TypeError, ValueError), match="Expected `every_n_steps`"):
        AdamBiasCorrectionMonitor(every_n_steps=0)
    with pytest.raises(
        (TypeError, ValueError), match="Expected `tensors` to match a parameter such as first"
    ):
        fit(Net(), AdamBiasCorrectionMonitor(tensors="third.*"))


def test_no_picture_without_points(folder):
    fit(Net(), AdamBiasCorrectionMonitor(every_n_steps=50), logger=CSVLogger(folder), max_steps=2)
    assert not list(folder.rglob("*.png"))


@pytest.mark.parametrize("exception", [ValueError(), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
def test_an_interruption_draws_the_picture(exception, folder):
    class Stopped(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise exception
            return super().training_step(batch, batch_idx)

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((ValueError, SystemExit)):
            fit(Stopped(Adam), AdamBiasCorrectionMonitor())
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it switched off.
    drawn = [path.name for path in folder.rglob("*.png")]
    assert drawn == ["adam-bias_correction.png"] * isinstance(exception, KeyboardInterrupt)
