import copy
import pickle
import re
import signal
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parameter import UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from pl_losses.papers.prelu.drawing import draw_final_slopes
from pl_losses.papers.prelu.monitor import PReLUSlopeMonitor, describe, find_slopes, gather


class Recorder(Logger):
    """Keeps the rows that have keys of the monitor, and the steps of Lightning's own."""

    def __init__(self):
        super().__init__()
        self.rows = {}
        self.steps = []

    name = "recorder"
    version = "0"

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        if any(key.startswith("prelu/") for key in metrics):
            assert step not in self.rows
            self.rows[step] = {key: value for key, value in metrics.items() if key.startswith("prelu/")}
        if "train/loss" in metrics:
            self.steps.append(step)


def momentum_sgd(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


class Net(pl.LightningModule):
    """Two PReLUs, one of them with a slope per channel; remembers what they were after each batch."""

    def __init__(self, optimizer=momentum_sgd):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 2), nn.PReLU())
        self.optimizer = optimizer
        self.seen = []

    def training_step(self, batch, batch_idx):
        loss = (self.network(batch[0]) - batch[1]).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return self.optimizer(self.parameters())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        state = self.optimizers().optimizer.state
        after = {}
        for path, slopes in find_slopes(self).items():
            gradient = None if slopes.grad is None else slopes.grad.double().norm().item()
            buffers = [v for k, v in state.get(slopes, {}).items() if k in ("momentum_buffer", "exp_avg")]
            momentum = buffers[0].double().norm().item() if buffers else None
            after[path] = (slopes.detach().double().numpy().copy(), gradient, momentum)
        self.seen.append(after)


def loader(batches=6):
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(4 * batches, 4, generator=generator), torch.randn(4 * batches, 2, generator=generator)
    return DataLoader(TensorDataset(*data), batch_size=4)


def fit(folder, model, monitor, logger=None, batches=6, ckpt_path=None, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    once = {"max_epochs": 1, "log_every_n_steps": 1, "accelerator": "cpu"}
    callbacks = [*([] if monitor is None else [monitor]), *options.pop("callbacks", [])]
    logger = Recorder() if logger is None else logger
    options = quiet | once | options
    trainer = pl.Trainer(default_root_dir=folder, logger=logger, callbacks=callbacks, **options)
    trainer.fit(model, loader(batches), ckpt_path=ckpt_path)
    return logger


@pytest.mark.parametrize(
    "optimizer",
    [
        momentum_sgd,
        lambda p: torch.optim.Adam(p, 0.5),
        lambda p: torch.optim.SGD(p, 0.1),
    ],
    ids=["momentum", "adam", "plain"],
)
def test_values_are_those_that_numpy_finds(tmp_path, optimizer):
    model = Net(optimizer)
    logger = fit(tmp_path, model, PReLUSlopeMonitor())
    assert list(logger.rows) == logger.steps == list(range(6))
    for row, after in zip(logger.rows.values(), model.seen, strict=True):
        expected = {}
        for path, (slopes, gradient, momentum) in after.items():
            q05, median, q95 = np.quantile(slopes, [0.05, 0.5, 0.95])
            stats = {"mean": slopes.mean(), "min": min(slopes), "max": max(slopes), "q05": q05, "q95": q95}
            stats |= {"median": median, "below_0": np.mean(slopes < 0), "above_1": np.mean(slopes > 1)}
            stats |= {"grad_norm": gradient} | ({} if momentum is None else {"momentum_norm": momentum})
            expected |= {f"prelu/{path}/{key}": value for key, value in stats.items()}
        pooled = np.concatenate([slopes for slopes, _, _ in after.values()])
        expected |= {"prelu/mean": pooled.mean(), "prelu/min": min(pooled), "prelu/max": max(pooled)}
        expected |= {"prelu/below_0": np.mean(pooled < 0), "prelu/above_1": np.mean(pooled > 1)}
        assert row == pytest.approx(expected, rel=1e-5)
    assert after.keys() == {"network.1", "network.3"}


def test_shares_below_0_and_above_1(tmp_path):
    model = Net(lambda p: torch.optim.SGD(p, 0.0))
    model.network[1].weight.data = torch.tensor([-0.5, -0.1, 0.0, 1.0, 1.5, 0.2])
    row = fit(tmp_path, model, PReLUSlopeMonitor()).rows[0]
    assert row["prelu/network.1/below_0"] == pytest.approx(2 / 6)
    assert row["prelu/network.1/above_1"] == pytest.approx(1 / 6)
    assert row["prelu/below_0"] == pytest.approx(2 / 7)
    assert row["prelu/network.3/median"] == 0.25


class LazyPReLU(nn.modules.lazy.LazyModuleMixin, nn.PReLU):
    cls_to_become = nn.PReLU

    def __init__(self):
        super().__init__()
        self.weight = UninitializedParameter()

    def initialize_parameters(self, input):
        self.weight.materialize((input.shape[1],))
        nn.init.constant_(self.weight, 0.25)


class Special(nn.PReLU):
    """A subclass."""


class Changing(Net):
    """Shared layers and slopes, a frozen one, a lazy one used from batch 2 on, one added in epoch 1."""

    def __init__(self):
        super().__init__()
        self.again = self.network[1]
        self.same_slopes = nn.PReLU(6)
        self.same_slopes.weight = self.network[1].weight
        self.frozen = Special(3)
        self.frozen.requires_grad_(False)
        self.lazy = LazyPReLU()

    def training_step(self, batch, batch_idx):
        if batch_idx >= 2:
            self.lazy(batch[0])
        return super().training_step(batch, batch_idx)

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.added = nn.PReLU(2)


def layers_of(row):
    return {key.split("/")[1] for key in row if key.count("/") == 2}


def test_shared_frozen_lazy_and_added_layers(tmp_path):
    monitor = PReLUSlopeMonitor()
    rows = fit(tmp_path, Changing(), monitor, batches=3, max_epochs=2).rows
    always = {"network.1", "network.3", "frozen"}
    assert [layers_of(row) for row in rows.values()] == [
        *[always] * 2,
        always | {"lazy"},
        *[always | {"lazy", "added"}] * 3,
    ]
    assert rows[5]["prelu/frozen/mean"] == 0.25
    assert "prelu/frozen/grad_norm" not in rows[5]
    assert "prelu/added/momentum_norm" not in rows[5]
    assert monitor._history.means["added"][3:] == [0.25] * 3
    assert np.isnan(monitor._history.means["added"][:3]).all()


def test_wrapped_constrained_and_chosen_layers():
    module = nn.Sequential(nn.PReLU(2), nn.PReLU(3))
    both = nn.ModuleDict({"net": torch.compile(module, backend="eager"), "head": nn.PReLU()})
    assert list(find_slopes(both)) == ["net.0", "net.1", "head"]
    assert list(find_slopes(both, "net.*")) == ["net.0", "net.1"]
    nn.utils.parametrize.register_parametrization(module[0], "weight", nn.Hardtanh(0.0, 0.1))
    nn.utils.parametrize.register_parametrization(module[1], "weight", nn.Hardtanh(0.0, 0.2))
    means = {path: slopes.mean().item() for path, slopes in find_slopes(module).items()}
    assert means == pytest.approx({"0": 0.1, "1": 0.2})


def test_constrained_slopes_in_training(tmp_path):
    model = Net()
    nn.utils.parametrize.register_parametrization(model.network[1], "weight", nn.Hardtanh(0.0, 0.1))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*grad attribute of a Tensor that is not a leaf.*")
        model.on_train_batch_end = lambda *args: None
        row = fit(tmp_path, model, PReLUSlopeMonitor()).rows[0]
    assert row["prelu/network.1/max"] <= 0.1 + 1e-6


def test_only_the_chosen_modules_are_logged(tmp_path):
    rows = fit(tmp_path, Net(), PReLUSlopeMonitor(modules="*.3")).rows
    assert layers_of(rows[0]) == {"network.3"}


def test_accumulated_batches_make_one_row_with_lightnings_step(tmp_path):
    class Counted(PReLUSlopeMonitor):
        calls = 0

        def collect(self, *args):
            self.calls += 1
            return super().collect(*args)

    monitor = Counted(every_n_steps=2)
    logger = fit(tmp_path, Net(), monitor, batches=12, accumulate_grad_batches=3, log_every_n_steps=2)
    assert list(logger.rows) == sorted(set(logger.steps)) == [1, 3]
    assert monitor.calls == 2


@pytest.mark.parametrize("every", [None, 4])
def test_nothing_is_computed_on_other_steps(tmp_path, monkeypatch, every):
    calls = []
    find = lambda *args: calls.append(1) or find_slopes(*args)  # noqa: E731
    monkeypatch.setattr("pl_losses.papers.prelu.monitor.find_slopes", find)
    options = {"log_every_n_steps": 4} if every is None else {}
    logger = fit(tmp_path, Net(), PReLUSlopeMonitor(every), batches=10, **options)
    assert list(logger.rows) == [3, 7]
    assert len(calls) == 2 + 2  # And at the start and the end.


class TwoOptimizers(Net):
    """Network 1 steps in each batch, then network 3 in every other one; a layer that no one owns."""

    automatic_optimization = False

    def __init__(self, first_steps=True):
        super().__init__()
        self.frozen = nn.PReLU(2)
        self.first_steps = first_steps

    def configure_optimizers(self):
        halves = self.network[:2].parameters(), self.network[2:].parameters()
        return [torch.optim.SGD(half, 0.1, momentum=0.9) for half in halves]

    def training_step(self, batch, batch_idx):
        for index, optimizer in enumerate(self.optimizers()):
            if (index == 0 and not self.first_steps) or (index == 1 and batch_idx % 2):
                continue
            loss = (self.network(batch[0]) - batch[1]).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train/loss", loss)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen.append({path: slopes.mean().item() for path, slopes in find_slopes(self).items()})


@pytest.mark.parametrize("first_steps", [True, False])
def test_two_optimizers(tmp_path, first_steps):
    model, monitor = TwoOptimizers(first_steps), PReLUSlopeMonitor()
    if not first_steps:  # Then there is no step at all in odd batches.
        monitor.every_n_steps = 1
        model.log = lambda *args: None
        model.training_step = skip_odd(model.training_step)
    logger = fit(tmp_path, model, monitor, log_every_n_steps=1)
    assert list(logger.rows) == (list(range(6)) if first_steps else [0, 2, 4])
    for step, row in logger.rows.items():
        means = {path: row[f"prelu/{path}/mean"] for path in ("network.1", "network.3", "frozen")}
        assert means == pytest.approx(model.seen[step])
        assert ("prelu/network.1/grad_norm" in row) == first_steps
        assert (
            ("prelu/network.3/grad_norm" in row)
            == ("prelu/network.3/momentum_norm" in row)
            == (step % 2 == 0)
        )
        assert "prelu/frozen/grad_norm" not in row
    assert monitor._history.steps == list(logger.rows)
    assert monitor._history.means["network.1"] == [
        row["prelu/network.1/mean"] for row in logger.rows.values()
    ]


def skip_odd(training_step):
    return lambda batch, batch_idx: None if batch_idx % 2 else training_step(batch, batch_idx)


def test_a_resumed_training_goes_on_with_the_history(tmp_path):
    whole = PReLUSlopeMonitor()
    fit(tmp_path, Net(), whole, max_epochs=4)
    first, second = PReLUSlopeMonitor(), PReLUSlopeMonitor()
    save = ModelCheckpoint(tmp_path, "middle", every_n_train_steps=9, save_top_k=-1)
    options = {"callbacks": [save], "enable_checkpointing": True, "max_epochs": 2}
    fit(tmp_path, Net(), first, **options)
    torch.load(tmp_path / "middle.ckpt", weights_only=True)
    # The loader starts its epoch afresh, so only where the rows are can be compared.
    logger = fit(tmp_path, Net(), second, max_epochs=4, ckpt_path=tmp_path / "middle.ckpt")
    assert min(logger.rows) == 9
    assert second._history.steps == whole._history.steps == list(range(24))
    assert second._history.means["network.1"][:9] == whole._history.means["network.1"][:9]
    assert second._history.means["network.1"][9:] == [r["prelu/network.1/mean"] for r in logger.rows.values()]


def test_a_second_training_from_the_start_begins_a_new_history(tmp_path):
    monitor = PReLUSlopeMonitor()
    fit(tmp_path, Net(), monitor)
    fit(tmp_path, TwoOptimizers(), monitor, batches=2)
    assert monitor._history.steps == [0, 1]
    assert set(monitor._history.means) == {"network.1", "network.3", "frozen"}


class Copied(pl.Callback):
    """Copies the monitor in the middle of training."""

    def __init__(self, monitor):
        self.monitor = monitor
        self.copies = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 3:
            self.state = self.monitor.state_dict()
            self.copies = [pickle.loads(pickle.dumps(self.monitor)), copy.deepcopy(self.monitor)]


def test_copies_in_the_middle_of_training(tmp_path):
    monitor = PReLUSlopeMonitor()
    copied = Copied(monitor)
    fit(tmp_path, Net(), monitor, callbacks=[copied])
    assert copied.state["history"]["steps"] == [0, 1, 2, 3]
    assert len(copied.state["history"]["means"]["network.1"]) == 4
    for other in copied.copies:
        assert not other._handles
        assert other.state_dict()["history"]["steps"] == [0, 1, 2, 3]
        assert list(fit(tmp_path, Net(), other).rows) == list(range(6))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_is_bit_identical_with_and_without(tmp_path, optimizer):
    with_it, without = (Net(lambda p: optimizer(p, lr=0.1)) for _ in range(2))
    fit(tmp_path, with_it, PReLUSlopeMonitor())
    fit(tmp_path, without, None)
    for one, other in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)


class Fails(Net):
    """Raises in batch 3."""

    def __init__(self, exception):
        super().__init__()
        self.exception = exception

    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            raise self.exception
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("exception", [ValueError(), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
def test_exceptions_detach_and_interruptions_draw(tmp_path, exception):
    model, monitor = Fails(exception), PReLUSlopeMonitor()
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((ValueError, SystemExit)):
            fit(tmp_path, model, monitor)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it switched off.
    assert not monitor._handles
    hooks = model.trainer.optimizers[0]._optimizer_step_post_hooks
    assert not hooks
    drawn = {path.name for path in tmp_path.rglob("*.png")}
    interrupted = isinstance(exception, KeyboardInterrupt)
    assert drawn == ({"prelu-heat_map.png", "prelu-final_slopes.png"} if interrupted else set())


def test_hooks_are_gone_after_training(tmp_path):
    model = Net()
    fit(tmp_path, model, PReLUSlopeMonitor())
    assert not model.trainer.optimizers[0]._optimizer_step_post_hooks


def test_the_bars_show_the_slopes_of_the_last_step(tmp_path, monkeypatch):
    shown = []
    draw = "pl_losses.papers.prelu.monitor.draw_final_slopes"
    monkeypatch.setattr(draw, lambda slopes: shown.append(slopes) or draw_final_slopes(slopes))
    model, monitor = Net(), PReLUSlopeMonitor(every_n_steps=4)
    fit(tmp_path, model, monitor)
    (slopes,) = shown
    for path, last in find_slopes(model).items():
        values = last.detach().numpy()
        assert slopes[path] == pytest.approx((values.mean(), values.min(), values.max()))
    assert monitor._history.steps == [3]
    assert [path.name for path in tmp_path.rglob("*.png")] == ["prelu-final_slopes.png"]


def test_a_trial_run_leaves_nothing(tmp_path):
    fit(tmp_path, Net(), PReLUSlopeMonitor(), fast_dev_run=True)
    assert not list(tmp_path.rglob("*.png"))


def test_a_training_that_diverged_is_still_logged(tmp_path):
    model = Net(lambda p: torch.optim.SGD(p, float("nan")))
    logger = TensorBoardLogger(tmp_path)
    fit(tmp_path, model, PReLUSlopeMonitor(), logger)
    assert model.network[1].weight.isnan().all()
    assert len(list(tmp_path.rglob("events*"))) == 1


def test_shares_leave_out_what_is_no_number():
    slopes = np.array([np.nan, -1.0, 2.0, 0.5, 1.0, 0.0, np.inf, np.nan])
    described = describe(slopes)
    assert described["below_0"] == 1 / 8
    assert described["above_1"] == 2 / 8
    assert np.isnan(described["min"])
    assert np.isnan(described["max"])


def patterns_of(key):
    return [
        pattern
        for pattern in PReLUSlopeMonitor.KEYS
        if re.fullmatch(re.escape(pattern).replace("<layer>", "[^/]+"), key)
    ]


def test_tensorboard_gets_every_key_of_the_schema_and_no_other(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    fit(tmp_path, Net(), PReLUSlopeMonitor(), logger)
    events = EventAccumulator(logger.log_dir, {"scalars": 0, "histograms": 0, "images": 0}).Reload()
    tags = events.Tags()
    logged = {tag for kind in ("scalars", "histograms", "images") for tag in tags[kind]}
    matched = {tag: patterns_of(tag) for tag in logged if tag.startswith("prelu/")}
    assert all(len(patterns) == 1 for patterns in matched.values()), matched
    assert {pattern for (pattern,) in matched.values()} == set(PReLUSlopeMonitor.KEYS)
    assert set(tags["histograms"]) == {"prelu/network.1/slopes"}
    assert [event.step for event in events.Scalars("prelu/network.1/mean")] == list(range(6))
    assert sum(events.Histograms("prelu/network.1/slopes")[0].histogram_value.bucket) == 6


def test_wandb_offline_gets_histograms_and_pictures(folder):
    logger = WandbLogger(project="test", offline=True, save_dir=folder)
    fit(folder, Net(), PReLUSlopeMonitor(), logger)
    summary = dict(logger.experiment.summary)
    assert summary["prelu/network.1/slopes"]["_type"] == "histogram"
    assert sum(summary["prelu/network.1/slopes"]["values"]) == 6
    for key in ("prelu/heat_map", "prelu/final_slopes"):
        assert summary[key]["count"] == 1
    assert {key for key in summary if patterns_of(key)} == {k for k in summary if k.startswith("prelu/")}
    logger.experiment.finish()


def warned(folder, model, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(folder, model, PReLUSlopeMonitor(**options))
    return [str(w.message) for w in caught if "PReLU" in str(w.message)]


def two_groups(model):
    slopes = [layer.weight for layer in model.modules() if isinstance(layer, nn.PReLU)]
    others = [p for p in model.parameters() if all(p is not slope for slope in slopes)]
    return others, slopes


def test_weight_decay_that_reaches_slopes(tmp_path):
    (words,) = warned(tmp_path, Net(torch.optim.AdamW))
    assert "0, where they are ReLUs: in AdamW (network.1, network.3). Put the slopes into" in words
    assert "a parameter group with weight_decay=0" in words
    model = Net()
    others, slopes = two_groups(model)
    groups = [{"params": others}, {"params": slopes, "weight_decay": 1e-4, "name": "slopes"}]
    model.optimizer = lambda _: torch.optim.SGD(groups, 0.1)
    (words,) = warned(tmp_path, model)
    assert "in SGD/slopes (network.1, network.3)." in words
    deep = Net(torch.optim.AdamW)
    deep.more = nn.ModuleList(nn.PReLU() for _ in range(4))
    (words,) = warned(tmp_path, deep)
    assert "in AdamW (network.1, network.3, more.0 and 3 more)." in words


def test_weight_decay_that_reaches_no_slopes(tmp_path):
    model = Net()
    others, slopes = two_groups(model)
    groups = [{"params": others, "weight_decay": 0.1}, {"params": slopes, "weight_decay": 0.0}]
    model.optimizer = lambda _: torch.optim.SGD(groups, 0.1)
    assert not warned(tmp_path, model)
    frozen = Net(torch.optim.AdamW)
    for slope in two_groups(frozen)[1]:
        slope.requires_grad_(False)
    assert not warned(tmp_path, frozen)


def test_weight_decay_that_comes_later(tmp_path):
    class Unfrozen(Net):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 2:
                group = {"params": [self.late.weight], "weight_decay": 0.1}
                self.optimizers().optimizer.add_param_group(group)

    model = Unfrozen(lambda p: torch.optim.SGD([*p][:-1], 0.1))
    model.late = nn.PReLU()
    (words,) = warned(tmp_path, model)
    assert "in SGD/pg2 (late)." in words


def test_a_model_without_prelu(tmp_path):
    model = Net()
    model.network[1] = model.network[3] = nn.ReLU()
    logger = Recorder()
    with pytest.warns(UserWarning, match="found no nn.PReLU in Net, so it logs nothing") as caught:
        fit(tmp_path, model, PReLUSlopeMonitor(), logger)
    assert sum("PReLU" in str(warning.message) for warning in caught) == 1
    assert not logger.rows
    assert not list(tmp_path.rglob("*.png"))
    (words,) = warned(tmp_path, Net(), modules="backbone.*")
    assert "that fits `modules` = 'backbone.*'" in words


def test_refused_arguments():
    with pytest.raises(TypeError, match=r"`modules` to be a text but got \['a'\]"):
        PReLUSlopeMonitor(modules=["a"])
    with pytest.raises((TypeError, ValueError), match="`every_n_steps` to be at least 1 but got 0"):
        PReLUSlopeMonitor(every_n_steps=0)


class Synchronisations(TorchDispatchMode):
    """Counts what asks the device for a value."""

    def __init__(self):
        super().__init__()
        self.count = self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


def test_collecting_asks_for_no_value(tmp_path):
    mode = Synchronisations()

    class Watched(PReLUSlopeMonitor):
        def collect(self, *args):
            with mode:
                return super().collect(*args)

    fit(tmp_path, Net(lambda p: torch.optim.Adam(p, weight_decay=0.1)), Watched())
    assert mode.count == 0
    assert mode.calls > 0


def collected(device, **options):
    """What is collected after a step by hand, on a device that need not exist."""
    with torch.device(device):
        model = Net()
        model.optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, foreach=False, **options)
    monitor = PReLUSlopeMonitor()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.optimizers = [model.optimizer]
    parts = []
    model.optimizer.register_step_post_hook(lambda o, *_: parts.extend(monitor.collect(trainer, model, o)))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    model.optimizer.step()
    return parts


def test_collecting_waits_for_no_device():
    with FakeTensorMode(), torch.no_grad():
        (part,) = collected("cuda", weight_decay=0.1)
    assert part.sums.device.type == "cuda"
    assert part.sums.shape == (3 * 7 + 2 * 2,)
    (real,) = collected("cpu")
    assert len(real.sums) == len(part.sums)
    assert real.sums[7:14].tolist() == [2.0] * 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_collecting_synchronises_with_no_gpu():
    torch.cuda.set_sync_debug_mode("error")
    try:
        (part,) = collected("cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert part.sums[7:14].tolist() == [2.0] * 7


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_gradients_are_without_the_loss_scale(optimizer, overflow):
    slopes, other = nn.Parameter(torch.full((3,), 0.25)), nn.Parameter(torch.ones(2))
    fused = optimizer([slopes, other], lr=0.1, fused=True)
    seen = []
    fused.register_step_post_hook(
        lambda o, *_: seen.append(gather({"layer": slopes}, o, sharded=False, rank=0))
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    factor = float("inf") if overflow else 1.0
    scaler.scale(5 * slopes.sum() + factor * other.sum()).backward()
    scaler.step(fused)
    assert seen[0][3:6].tolist() == [5.0] * 3
    assert torch.equal(slopes.detach(), torch.full((3,), 0.25)) == overflow
