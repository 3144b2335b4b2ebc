import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pl_losses.papers.dropout import budget as module_under_test
from pl_losses.papers.dropout.budget import Budget
from pl_losses.papers.dropout.monitor import DropoutUncertaintyMonitor

CPU = torch.device("cpu")


class Timed(pl.LightningModule):
    """Its passes take what a clock says: a second for a batch of 4."""

    def __init__(self, seconds=1.0):
        super().__init__()
        self.network = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))
        self.seconds, self.now = seconds, 0.0

    def forward(self, inputs):
        self.now += self.seconds
        return self.network(inputs)

    def training_step(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def data(batches):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4 * batches, 3, generator=generator)
    return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), 4)


class Inputs(pl.Callback):
    """Notes how many inputs there were in each validation, 0 if the monitor had none."""

    def __init__(self):
        self.found = []

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            logged = trainer._results.metrics(on_step=False)["log"]
            self.found.append(int(logged.get("val/dropout/inputs", 0)))


def fit(tmp_path, monkeypatch, module, epochs, batches=10, **options):
    monkeypatch.setattr(module_under_test, "perf_counter", lambda: module.now)
    seen, monitor = Inputs(), DropoutUncertaintyMonitor(samples=4, chunk=1, pictures=0, **options)
    pl.Trainer(
        accelerator="cpu", max_epochs=epochs, limit_train_batches=1, callbacks=[monitor, seen],
        logger=CSVLogger(tmp_path), enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, log_every_n_steps=1,
    ).fit(module, data(1), data(batches))  # fmt: skip
    return monitor, seen.found


def test_looks_take_their_share_of_the_validations(tmp_path, monkeypatch):
    """A look takes 2 passes without dropout and 4 with it, a validation 10: one look in three."""
    monitor, found = fit(tmp_path, monkeypatch, Timed(), 20)
    assert found[0] == 4
    assert sum(count > 0 for count in found) == 6
    assert set(found) == {0, 4}
    assert monitor._budget.others == 200
    assert monitor._budget.own == 36  # Of at most 40.


def test_a_fixed_number_asks_no_clock(tmp_path, monkeypatch, caplog):
    _, found = fit(tmp_path, monkeypatch, Timed(), 3, max_batches=2)
    assert found == [8] * 3
    assert "looks at" not in caplog.text


def test_cheap_looks_are_at_eight_batches(tmp_path, monkeypatch):
    module = Timed(0.0)
    step = module.validation_step
    module.validation_step = lambda batch: (setattr(module, "now", module.now + 1.0), step(batch))[1]
    _, found = fit(tmp_path, monkeypatch, module, 4)
    assert found == [4, 32, 32, 32]


def test_what_it_leaves_out_is_said_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("pl_losses.papers.dropout.monitor.rank_zero_info", said.append)
    fit(tmp_path, monkeypatch, Timed(), 8)
    (line,) = said
    assert "looks at one batch of each 3 validations or so, to take at most 20% of their time" in line
    assert "`max_batches=8`" in line


def test_validation_alone_has_no_budget(tmp_path, monkeypatch):
    module = Timed()
    monkeypatch.setattr(module_under_test, "perf_counter", lambda: module.now)
    run = pl.Trainer(
        accelerator="cpu", callbacks=[DropoutUncertaintyMonitor(samples=4, pictures=0)], logger=False,
        enable_progress_bar=False,
    )  # fmt: skip
    (found,) = run.validate(module, data(10), verbose=False)
    assert found["val/dropout/inputs"] == 32


@pytest.mark.parametrize(("further", "batches"), [(1.0, 3), (10.0, 1), (0.0, 8)])
def test_further_batches_cost_what_they_did(monkeypatch, further, batches):
    """After two validations of 40 s the third may have 24 s, less 8 s that the first looks took."""
    now = [0.0]
    monkeypatch.setattr(module_under_test, "perf_counter", lambda: now[0])
    budget = Budget()
    for look in (4.0, 4.0):
        budget.begin()
        now[0] += 40.0
        with budget.spending(CPU, 0):
            now[0] += look
        budget.end()
    budget.first, budget.further = 13.5, further
    assert budget.batches(8) == batches
    budget.first = 16.5
    assert budget.batches(8) == 0
