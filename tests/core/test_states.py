"""Metrics of no module know of an earlier fit, validation or test, however that ended."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from module_table import CASES, Data, loader, make
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from pl_losses import MLP, LogisticRegression
from pl_losses.callbacks import TemporalAveraging
from pl_losses.data import TensorDataModule

pytestmark = pytest.mark.filterwarnings("ignore")
QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")


def trainer(**options):
    return pl.Trainer(accelerator="cpu", num_sanity_val_steps=0, **dict.fromkeys(QUIET, False) | options)


class Stop(Exception):
    """Ends a run from outside."""


class Stopping(pl.Callback):
    """Raises after the first batch of a stage."""

    def __init__(self, stage):
        self.stage = stage

    def on_train_batch_end(self, *args):
        self.stop("train")

    def on_validation_batch_end(self, *args):
        self.stop("validation")

    def on_test_batch_end(self, *args):
        self.stop("test")

    def stop(self, stage):
        if stage == self.stage:
            raise Stop


def stopped(case, model, stage):
    run = trainer(max_epochs=case.epochs, callbacks=[Stopping(stage)])
    call = run.test if stage == "test" else run.fit
    data = [loader(case, 6, 2, train=True)] if stage != "test" else []
    with pytest.raises(Stop):
        call(model, *data, loader(case, 6, 2))


def results_of(case, model):
    """What validation and tests of two sets tell of a model, and a fit of its training."""
    run = trainer(max_epochs=case.epochs)
    one, other = loader(case, 6, 2), loader(case, 3, 2)
    found = [run.test(model, data, verbose=False)[0] for data in (one, other, one)]
    found += [run.validate(model, data, verbose=False)[0] for data in (one, other, one)]
    run.fit(model, loader(case, 6, 2, train=True), other)
    return [*found, {key: float(value) for key, value in run.callback_metrics.items()}]


@pytest.mark.parametrize("name", CASES)
def test_what_is_told_depends_on_weights_and_data_alone(name):
    case = CASES[name]
    model = make(case)
    trainer(max_epochs=case.epochs).fit(model, loader(case, 6, 2, train=True), loader(case, 6, 2))
    trainer().test(model, loader(case, 6, 2), verbose=False)
    for stage in ("test", "train", "validation"):
        stopped(case, model, stage)
    fresh = make(case)
    fresh.load_state_dict(model.state_dict())
    wanted = results_of(case, fresh)
    for one, other in zip(results_of(case, model), wanted, strict=True):
        assert one == pytest.approx(other)
    assert wanted[0] == pytest.approx(wanted[2])
    assert wanted[0] != pytest.approx(wanted[1])


class Errors(pl.Callback):
    """Writes down what was logged of each epoch's training."""

    def __init__(self):
        self.found = {}

    def on_train_epoch_end(self, trainer, module):
        self.epoch = trainer.current_epoch

    def on_train_end(self, trainer, module):
        self.keep(trainer)

    def on_train_epoch_start(self, trainer, module):
        self.keep(trainer)

    def keep(self, trainer):
        if hasattr(self, "epoch") and "train/error" in trainer.callback_metrics:
            self.found[self.epoch] = float(trainer.callback_metrics["train/error"])


@pytest.mark.parametrize("validates", [False, True])
def test_training_errors_of_a_resumed_epoch_are_those_of_one_fit(tmp_path, validates):
    """Saved after each of the 5 batches of an epoch."""

    def fit(ckpt_path=None):
        errors = Errors()
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        callbacks = [errors] if ckpt_path else [errors, keep]
        limit = {} if validates else {"limit_val_batches": 0}
        run = trainer(max_epochs=3, callbacks=callbacks, enable_checkpointing=not ckpt_path, **limit)
        run.fit(make(CASES["MLP"]), Data(CASES["MLP"], 3, train=13), ckpt_path=ckpt_path)
        return errors.found

    whole = fit()
    assert len(whole) == 3
    for step in range(1, 15):
        again = fit(tmp_path / f"step={step}.ckpt")
        # An epoch whose last batch is in the checkpoint is over.
        assert again == {epoch: whole[epoch] for epoch in range(step // 5, 3)}, step


def test_lbfgs_counts_a_batch_once():
    """However often it evaluates it."""

    class Labels(TensorDataModule):
        def load(self, stage):
            return {"train": (torch.eye(4)[:, :3], torch.tensor([0, 1, 2, 0]))}

    seen = []

    class Counted(LogisticRegression):
        def on_train_epoch_end(self):
            seen.append(int(self.train_error.total))
            super().on_train_epoch_end()

    model = Counted(3, 3, optimizer=lambda p: torch.optim.LBFGS(p, max_iter=5))
    trainer(max_epochs=2).fit(model, Labels(batch_size=2))
    assert seen == [4, 4]


@pytest.mark.parametrize("stage", ["test", "validation"])
@pytest.mark.parametrize("mode", [True, False])
def test_an_evaluation_that_fails_leaves_the_modes_of_before_and_later_ones_alone(stage, mode):
    case = CASES["MLP"]
    model = make(case).train()
    model.network[0].eval()
    before = [part.training for part in model.modules()]
    stopped(case, model, stage)
    assert [part.training for part in model.modules()] == before
    model.train(mode)
    trainer(max_epochs=1).fit(model, loader(case, 6, 2, train=True))
    assert all(part.training == mode for part in model.modules())


def test_a_fit_that_stops_within_a_validation_keeps_the_weights_and_not_their_average():
    case = CASES["MLP"]
    weights = []
    for callbacks in ([], [TemporalAveraging(0.9)]):
        model = make(case)
        run = trainer(max_epochs=1, callbacks=[*callbacks, Stopping("validation")])
        with pytest.raises(Stop), warnings.catch_warnings():
            run.fit(model, loader(case, 6, 2, train=True), loader(case, 6, 2))
        weights.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*weights)


class Watched(MLP):
    """A subclass with a metric of its own on the training batches, logged as Lightning's pages show it."""

    def __init__(self, name):
        super().__init__(4, [6], 3, p=0.0, optimizer=lambda p: torch.optim.SGD(p, 0.1))
        self.own = nn.ModuleDict({name: MulticlassAccuracy(3, average="micro")})
        self.by_hand = []

    def training_step(self, batch, batch_idx):
        (metric,) = self.own.values()
        predicted = self(batch[0]).argmax(1)
        self.by_hand += (predicted == batch[1]).tolist()
        metric(predicted, batch[1])
        self.log("train/own", metric, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def on_train_epoch_start(self):
        self.by_hand = []


@pytest.mark.parametrize("name", ["accuracy", "train_accuracy"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_validation_leaves_a_users_training_metric_alone(tmp_path, name, epochs):
    generator = torch.Generator().manual_seed(1)
    rows = TensorDataset(torch.randn(13, 4, generator=generator), torch.arange(13) % 3)
    run = trainer(max_epochs=epochs, val_check_interval=2, default_root_dir=tmp_path)
    model = Watched(name)
    run.fit(model, DataLoader(rows, 3), DataLoader(rows, 3))
    assert float(run.callback_metrics["train/own"]) == pytest.approx(sum(model.by_hand) / 13)


class Failing(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            raise Stop


@pytest.mark.parametrize("name", ["accuracy", "train_accuracy"])
@pytest.mark.parametrize("validates", [False, True])
def test_a_fit_begins_with_empty_training_metrics_after_one_that_failed(tmp_path, name, validates):
    generator = torch.Generator().manual_seed(1)
    rows = TensorDataset(torch.randn(13, 4, generator=generator), torch.arange(13) % 3)
    data = [DataLoader(rows, 3)] * (1 + validates)
    model = Watched(name)
    with pytest.raises(Stop):
        trainer(max_epochs=1, default_root_dir=tmp_path, callbacks=[Failing()]).fit(model, *data)
    run = trainer(max_epochs=1, default_root_dir=tmp_path)
    run.fit(model, *data)
    assert float(run.callback_metrics["train/own"]) == pytest.approx(sum(model.by_hand) / 13)


class Misnamed(MLP):
    """A validation metric whose name says that it is one of training."""

    def __init__(self):
        super().__init__(4, [6], 3, p=0.0, optimizer=lambda p: torch.optim.SGD(p, 0.1))
        self.train_domain = MulticlassAccuracy(3, average="micro")

    def validation_step(self, batch, batch_idx):
        self.train_domain.update(self(batch[0]), batch[1])
        super().validation_step(batch, batch_idx)

    def evaluation_results(self, stage):
        return super().evaluation_results(stage) | {"own": self.train_domain.compute()}


def test_a_validation_metric_that_is_named_after_training(tmp_path):
    generator = torch.Generator().manual_seed(1)
    rows = TensorDataset(torch.randn(13, 4, generator=generator), torch.arange(13) % 3)
    run, model = trainer(max_epochs=1, default_root_dir=tmp_path), Misnamed()
    run.validate(model, DataLoader(Subset(rows, range(3)), 3), verbose=False)
    (results_of,) = run.validate(model, DataLoader(rows, 3), verbose=False)
    assert results_of["val/own"] == pytest.approx(1 - results_of["val/error"])
    with pytest.raises(ValueError, match="Expected `train_domain` to count in training only"):
        run.fit(model, DataLoader(rows, 3), DataLoader(rows, 3))
