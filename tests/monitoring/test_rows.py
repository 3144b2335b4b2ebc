"""Rows of the monitors: joined with Lightning's own, and their histograms."""

import copy
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader

from pl_losses.callbacks import AdamBiasCorrectionMonitor, PReLUSlopeMonitor
from pl_losses.monitoring.rows import JoinedRows, bins_for, histogram

DRAWS = {
    "normal": lambda generator, n: generator.normal(size=n),
    "ties on edges": lambda generator, n: np.round(generator.normal(size=n), 1),
    "few integers": lambda generator, n: generator.integers(0, 4, n).astype(float),
    "all equal": lambda generator, n: np.full(n, 0.25),
    "float32": lambda generator, n: generator.normal(size=n).astype(np.float32).astype(float) * 1e-6,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_it_is_numpys(draw):
    generator = np.random.default_rng(0)
    for n in [*range(1, 70), 500, 5000]:
        values = draw(generator, n)
        counts, edges = histogram(values)
        expected_counts, expected_edges = np.histogram(values, bins=bins_for(n))
        np.testing.assert_array_equal(counts, expected_counts)
        np.testing.assert_array_equal(edges, expected_edges)


def test_values_too_close_for_edges_between_them():
    values = np.array([0.25, np.nextafter(0.25, 1)] * 8)
    # Which NumPy's own refuses from 2.0 on.
    assert histogram(values)[0].sum() == 16


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Calls(Logger):
    name, version, save_dir = "calls", 0, "."

    def __init__(self):
        super().__init__()
        self.calls = []

    def log_metrics(self, metrics, step=None):
        kinds = {key.split("/")[0] for key in metrics} - {"epoch"}
        self.calls.append((step, "".join(sorted(kind[0] for kind in kinds))))

    def log_hyperparams(self, *args, **kwargs):
        pass


class Net(pl.LightningModule):
    def __init__(self, logs=True, fails_at=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.PReLU(3), nn.Linear(3, 1))
        self.logs, self.fails_at = logs, fails_at

    def training_step(self, batch, batch_idx):
        if batch_idx == self.fails_at:
            raise RuntimeError("on purpose")
        loss = self.net(torch.ones(4, 2)).square().mean()
        if self.logs:
            self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", 1.0)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def fit(net, every=1, log_every=1, logger=None, **options):
    logger = logger or Calls()
    monitors = [AdamBiasCorrectionMonitor(every), PReLUSlopeMonitor(every)]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_epochs": 1, "limit_val_batches": 0} | options | quiet
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=logger,
        callbacks=monitors,
        log_every_n_steps=log_every,
        **options,
    )
    try:
        trainer.fit(net, DataLoader(torch.zeros(6, 1)), DataLoader(torch.zeros(1, 1)))
    finally:
        assert "log_metrics" not in vars(logger)
    return logger.calls


def test_one_call_a_step_for_the_monitors_and_lightning():
    assert fit(Net()) == [(step, "apt") for step in range(6)]


@pytest.mark.parametrize(("every", "log_every"), [(1, 3), (2, 3), (3, 1)])
def test_rows_of_other_steps_stay_apart_and_in_order(every, log_every):
    expected = []
    for step in range(6):
        monitors, lightning = (step + 1) % every == 0, (step + 1) % log_every == 0
        if monitors or lightning:
            expected.append((step, "ap" * monitors + "t" * lightning))
    assert fit(Net(), every, log_every) == expected


def test_without_rows_of_lightning_each_step_is_sent_before_the_next_begins():
    logger, seen = Calls(), []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            seen.append(len(logger.calls))

    net = Net(logs=False)
    net.configure_callbacks = lambda: [Look()]
    fit(net, logger=logger)
    assert logger.calls == [(step, "ap") for step in range(6)]
    assert seen == list(range(6))


def test_a_row_that_waits_is_sent_when_training_fails():
    logger = Calls()
    net = Net(logs=False)
    net.on_train_batch_end = lambda *_: (_ for _ in ()).throw(RuntimeError("on purpose"))
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(net, logger=logger)
    assert logger.calls == [(0, "ap")]


def test_rows_of_a_validation_come_after_those_of_its_step():
    calls = fit(Net(logs=False), limit_val_batches=1, val_check_interval=3, num_sanity_val_steps=0)
    steps = [step for step, _ in calls]
    assert steps == sorted(steps)
    assert sum("v" in kinds for _, kinds in calls) == 2
    assert sum("ap" in kinds for _, kinds in calls) == 6


def test_a_logger_with_joined_rows_is_copied_and_pickled():
    logger = Calls()
    rows = JoinedRows(logger)
    for other in (copy.deepcopy(logger), pickle.loads(pickle.dumps(logger))):
        other.log_metrics({"a": 1}, 0)
        assert other.calls == [(0, "a")]
    assert logger.calls == []
    rows.remove()


def test_a_method_of_ones_own_on_the_logger_comes_back():
    logger, calls = Calls(), []

    def own(metrics, step=None):
        calls.append(step)

    logger.log_metrics = own
    rows = JoinedRows(logger)
    logger.log_metrics.wait({"a": 1}, 3)
    logger.log_metrics({"b": 1}, step=3)
    rows.remove()
    assert calls == [3]
    assert logger.log_metrics is own
