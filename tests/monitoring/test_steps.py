"""Steps are seen where the optimizer makes them, whoever asks for them."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from kept_rows import Rows
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.optimizer import _global_optimizer_pre_hooks

from pl_losses.papers.adam import TemporalAveraging
from pl_losses.papers.adam.monitor.monitor import AdamBiasCorrectionMonitor
from pl_losses.papers.adam.optimizer import Adam as SwitchedAdam
from pl_losses.papers.prelu.monitor import PReLUSlopeMonitor

SKIPPED = "adam/Adam/skipped_steps"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Net(pl.LightningModule):
    """A layer with a PReLU whose loss is infinite in some batches."""

    def __init__(self, make=Adam, infinite=()):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 3), nn.PReLU(3), nn.Linear(3, 1))
        self.make, self.infinite = make, infinite

    def loss(self, batch_idx):
        data = torch.randn(4, 2, generator=torch.Generator().manual_seed(batch_idx))
        return self.net(data).square().mean() * (float("inf") if batch_idx in self.infinite else 1.0)

    def training_step(self, batch, batch_idx):
        return self.loss(batch_idx)

    def configure_optimizers(self):
        return self.make(self.parameters())

    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(6))


class Manual(Net):
    """Steps by itself, through Lightning's wrapper or not, with or without a closure."""

    def __init__(self, wrapped, closure=False, **options):
        super().__init__(**options)
        self.automatic_optimization = False
        self.wrapped, self.closure = wrapped, closure

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=self.wrapped)

        def closure():
            optimizer.zero_grad()
            loss = self.loss(batch_idx)
            self.manual_backward(loss)
            return loss

        if self.closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def fit(model, *callbacks, ckpt_path=None, **options):
    callbacks = callbacks or (AdamBiasCorrectionMonitor(), PReLUSlopeMonitor())
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = dict.fromkeys(quiet, False) | {"max_epochs": 1, "logger": Rows()} | options
    trainer = pl.Trainer(accelerator="cpu", log_every_n_steps=1, callbacks=list(callbacks), **options)
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer


def skipped(trainer, key=SKIPPED):
    return [row.get(key) for row in trainer.logger.of("adam", "prelu").values()]


def scaled():
    return {"plugins": MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=8.0))}


class Deeper(Adam):
    """A step that calls its parent's is one step, although torch's hooks are called by both."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize(
    ("make", "model"),
    [
        (Deeper, Net),
        (SwitchedAdam, Net),
        (Adam, lambda **o: Manual(True, **o)),
        (Adam, lambda **o: Manual(True, closure=True, **o)),
        (Deeper, lambda **o: Manual(False, **o)),
        (SwitchedAdam, lambda **o: Manual(False, closure=True, **o)),
    ],
    ids=["automatic", "automatic-own", "wrapped", "wrapped-closure", "raw", "raw-closure"],
)
def test_no_step_is_skipped(make, model):
    Adam([nn.Parameter(torch.zeros(1))])  # From here on the parent's step calls the hooks, too.
    trainer = fit(model(make=make))
    name = "Deeper" if make is Deeper else "Adam"
    assert skipped(trainer, f"adam/{name}/skipped_steps") == [0] * 6
    assert [row[f"adam/{name}/step_max"] for row in trainer.logger.of("adam", "prelu").values()] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert all("prelu/net.1/grad_norm" in row for row in trainer.logger.of("adam", "prelu").values())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("wrapped", [None, True])
def test_steps_that_the_scaler_of_lightning_skips(fused, wrapped):
    make = lambda p: Adam(p, fused=fused)  # noqa: E731
    model = Net(make, (0, 3)) if wrapped is None else Manual(wrapped, make=make, infinite=(0, 3))
    counted = skipped(fit(model, AdamBiasCorrectionMonitor(), **scaled()))
    assert counted == ([1, 1, 1, 2, 2, 2] if fused else [1, 1, 2, 2])


def test_steps_that_the_users_own_scaler_skips_in_a_fused_optimizer():
    class Scaled(Manual):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            self.scaler.scale(self.loss(batch_idx)).backward()
            self.scaler.step(optimizer)
            self.scaler.update()

    model = Scaled(False, make=lambda p: Adam(p, fused=True), infinite=(2,))
    model.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    assert skipped(fit(model)) == [0, 0, 1, 1, 1, 1]


def test_parameters_that_take_turns_skip_nothing():
    class Turns(Manual):
        def training_step(self, batch, batch_idx):
            self.net[batch_idx % 2 * 2].requires_grad_(True)
            self.net[2 - batch_idx % 2 * 2].requires_grad_(False)
            super().training_step(batch, batch_idx)

    model = Turns(False, make=lambda p: Adam([*model.net[0].parameters(), *model.net[2].parameters()]))
    trainer = fit(model)
    assert skipped(trainer) == [0] * 6
    assert trainer.logger.of("adam", "prelu")[5]["adam/Adam/step_max"] == 3


def test_accumulated_batches():
    assert skipped(fit(Net(), accumulate_grad_batches=2)) == [0] * 3
    assert skipped(fit(Net(infinite=(1,)), accumulate_grad_batches=3, **scaled())) == [1]


def test_two_optimizers_that_toggle():
    class Two(Manual):
        def configure_optimizers(self):
            return [Adam(self.net[:2].parameters()), Adam(self.net[2].parameters())]

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                with optimizer.toggle_model():
                    optimizer.zero_grad()
                    self.manual_backward(self.loss(batch_idx))
                    optimizer.step()

    rows = fit(Two(True)).logger.of("adam", "prelu")
    for row in rows.values():
        assert row[SKIPPED] == row["adam/Adam-1/skipped_steps"] == 0
        assert (row["adam/Adam/coordinates"], row["adam/Adam-1/coordinates"]) == (12, 4)
        assert "prelu/net.1/grad_norm" in row


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("where", ["on_train_batch_start", "training_step"])
def test_an_optimizer_that_replaces_another_one(wrapped, where):
    class Replaced(Manual):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 3 and where == "on_train_batch_start":
                self.replace()

        def training_step(self, batch, batch_idx):
            if batch_idx == 3 and where == "training_step":
                self.replace()
            super().training_step(batch, batch_idx)

        def replace(self):
            self.old = self.trainer.optimizers[0]
            self.trainer.strategy.optimizers = [Adam(self.net.parameters(), lr=0.5)]

    model = Replaced(wrapped)
    rows = fit(model).logger.of("adam", "prelu")
    assert [row["adam/Adam/step_max"] for row in rows.values()] == [1, 2, 3, 1, 2, 3]
    assert [row["adam/Adam/lr"] for row in rows.values()] == [0.001] * 3 + [0.5] * 3
    assert [row[SKIPPED] for row in rows.values()] == [0] * 6
    assert all("prelu/net.1/grad_norm" in row for row in rows.values())
    for optimizer in (model.old, model.trainer.optimizers[0]):
        assert not optimizer._optimizer_step_post_hooks
    assert not _global_optimizer_pre_hooks


def test_an_optimizer_of_another_kind_takes_over():
    class Replaced(Net):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 3:
                self.trainer.strategy.optimizers = [SGD(self.net.parameters(), 0.1)]

    rows = fit(Replaced()).logger.of("adam", "prelu")
    assert [SKIPPED in row for row in rows.values()] == [True] * 3 + [False] * 3
    assert all("prelu/net.1/grad_norm" in row for row in rows.values())


def test_a_step_that_failed_and_was_caught():
    class Caught(Manual):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers(use_pl_optimizer=False)
            if batch_idx == 1:
                with pytest.raises(RuntimeError):
                    optimizer.step(self.fail)
            super().training_step(batch, batch_idx)

        def fail(self):
            raise RuntimeError

    rows = fit(Caught(False)).logger.of("adam", "prelu")
    assert [row[SKIPPED] for row in rows.values()] == [0] + [1] * 5
    assert [row["adam/Adam/step_max"] for row in rows.values()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("wrapped", [None, True, False])
def test_a_second_training_and_a_resumed_one(folder, wrapped):
    def make():
        model = Net(infinite=(1,)) if wrapped is None else Manual(wrapped, infinite=(1,))
        if wrapped is False:  # Nothing skips a raw step.
            model.infinite = ()
        return model

    options = {} if wrapped is False else scaled()
    once = 0 if wrapped is False else 1
    callbacks = AdamBiasCorrectionMonitor(), PReLUSlopeMonitor()
    for _ in range(2):
        trainer = fit(make(), *callbacks, **options)
        assert skipped(trainer)[-1] == once
        assert len(callbacks[1].state_dict()["history"]["steps"]) == 6 - once
    trainer.save_checkpoint(folder / "one.ckpt")
    later = AdamBiasCorrectionMonitor(), PReLUSlopeMonitor()
    trainer = fit(make(), *later, max_epochs=2, ckpt_path=folder / "one.ckpt", **options)
    assert skipped(trainer)[-1] == 2 * once
    assert len(later[1].state_dict()["history"]["steps"]) == 2 * (6 - once)
    assert trainer.logger.of("adam", "prelu")[11]["adam/Adam/step_max"] == 2 * (6 - once)


class Silent:
    """A wrapper that is no optimizer of torch's and hides the one it has."""

    def __init__(self, inner):
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state
        self.defaults = inner.defaults

    def step(self, closure=None):
        return self.inner.step(closure)

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)


class Open(Silent):
    """One that shows it."""

    def __init__(self, inner):
        super().__init__(inner)
        self.optimizer = inner


def test_wrappers_of_optimizers():
    class Wrapped(Manual):
        def training_step(self, batch, batch_idx):
            optimizer = self.trainer.optimizers[0]
            optimizer.zero_grad()
            self.loss(batch_idx).backward()
            optimizer.step()

    trainer = fit(Wrapped(False, make=lambda p: Open(Open(Adam(p)))))
    assert skipped(trainer) == [0] * 6
    with pytest.warns(UserWarning, match="AdamBiasCorrectionMonitor leaves out Silent: it does not say when"):
        trainer = fit(Wrapped(False, make=lambda p: Silent(Adam(p))))
    assert not trainer.logger.of("adam", "prelu")


@pytest.mark.parametrize("make", [torch.optim.LBFGS, lambda p: torch.optim.LBFGS(p, max_iter=3)])
def test_closures_that_are_called_several_times(make):
    trainer = fit(Net(make), PReLUSlopeMonitor())
    assert list(trainer.logger.of("adam", "prelu")) == list(range(6))


@pytest.mark.parametrize("wrapped", [None, True, False])
def test_the_average_of_weights_moves_with_every_step(wrapped):
    class Seen(pl.Callback):
        def __init__(self):
            self.weights = []

        def on_train_batch_end(self, trainer, pl_module, *args):
            self.weights.append([p.detach().double().clone() for p in pl_module.parameters()])

    seen, beta2 = Seen(), 0.6
    model = Net() if wrapped is None else Manual(wrapped)
    start = copy.deepcopy([*model.parameters()])
    fit(model, seen, TemporalAveraging(beta2))
    shares = [(1 - beta2) * beta2 ** (6 - t) / (1 - beta2**6) for t in range(1, 7)]
    for index, (average, first) in enumerate(zip(model.parameters(), start, strict=True)):
        expected = sum(share * weights[index] for share, weights in zip(shares, seen.weights, strict=True))
        torch.testing.assert_close(average.detach().double(), expected, rtol=1e-6, atol=1e-7)
        assert not torch.equal(average, first)
