"""Two ranks know of the whole training set, choose the same tau and score as one process does."""

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pl_losses import DropoutClassifier, DropoutRegressor
from pl_losses.data import TensorDataModule
from pl_losses.papers.dropout import regression_report


def rows(task, train):
    generator = torch.Generator().manual_seed(0)
    x = 30 + 5 * torch.randn(train + 30, 4, generator=generator, dtype=torch.float64)
    if task == "classification":
        return x, torch.arange(train + 30) % 3
    return x, x[:, :1] + 300 + torch.randn(train + 30, 1, generator=generator, dtype=torch.float64)


class Data(TensorDataModule):
    def __init__(self, task, train, **options):
        super().__init__(**options)
        self.task, self.train = task, train

    def load(self, stage):
        x, y = rows(self.task, self.train)
        ends = {
            "train": (0, self.train),
            "val": (self.train, self.train + 13),
            "test": (self.train + 13, None),
        }
        return {split: (x[slice(*end)], y[slice(*end)]) for split, end in ends.items()}


def network(p, outputs):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(p), nn.Linear(8, outputs))


class Written:
    """Writes down what each rank has at the end."""

    def on_train_batch_end(self, *args):
        self.gradients = [p.grad.clone() for p in self.parameters()]

    def on_train_end(self):
        torch.save((self.state_dict(), self.gradients), f"{self.folder}/{self.global_rank}.pt")


class Regressor(Written, DropoutRegressor):
    pass


class Classifier(Written, DropoutClassifier):
    pass


def outcome(make_trainer, folder, ranks, task, train, p, lr, loader=False):
    folder = folder / f"{ranks}"
    folder.mkdir()
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr)  # noqa: E731
    # Shared masks are the same functions on all ranks.
    options = {"optimizer": optimizer, "samples": 6, "masks": "shared", "length_scale": 3.0}
    if task == "classification":
        model = Classifier(network=network(p, 3), **options)
    else:
        model = Regressor(network=network(p, 1), precision=None, **options)
    model.folder = folder
    trainer = make_trainer(ranks, max_epochs=2, precision="64-true")
    data = Data(task, train, batch_size=8 // ranks, eval_batch_size=6 // ranks)
    if loader:
        data.setup()
        # Lightning gives them a DistributedSampler, which repeats samples to even out.
        sizes = {"train": 8 // ranks, "val": 6 // ranks, "test": 6 // ranks}
        plain = {
            split: DataLoader(TensorDataset(*data.tensors[split]), size) for split, size in sizes.items()
        }
        trainer.fit(model, plain["train"], plain["val"])
    else:
        trainer.fit(model, data)
    states = [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]
    logged = {key: value.item() for key, value in trainer.callback_metrics.items() if key[:3] == "val"}
    found = trainer.test(model, plain["test"] if loader else data, verbose=False)
    return states, logged, found[0]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def check(one, two):
    for state, gradients in two[0]:
        torch.testing.assert_close(state, one[0][0][0], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(gradients, one[0][0][1], rtol=1e-6, atol=1e-9)
    assert two[1] == pytest.approx(one[1], rel=1e-6)
    assert two[2] == pytest.approx(one[2], rel=1e-6)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_training_is_that_of_one_process_on_the_joined_batch(make_trainer, tmp_path, task):
    # Masks of training differ between ranks, as they should: here there are none.
    one, two = (outcome(make_trainer, tmp_path, ranks, task, 32, 0.0, 0.05) for ranks in (1, 2))
    check(one, two)
    start = network(0.0, 1 if task == "regression" else 3)[0].weight
    assert (one[0][0][0]["network.0.weight"] - start).abs().max() > 1e-3


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_uneven_sets_are_read_chosen_by_and_scored_exactly(make_trainer, tmp_path, task):
    # Without learning, so that the samples that training repeats make no difference.
    one, two = (outcome(make_trainer, tmp_path, ranks, task, 37, 0.3, 0.0) for ranks in (1, 2))
    for found in (one, two):
        for entry in found[0]:
            entry[1].clear()
    check(one, two)
    state = one[0][0][0]
    assert state["size"] == 37
    if task == "regression":
        x, y = (part[:37] for part in rows(task, 37))
        torch.testing.assert_close(state["input_scale.mean"], x.mean(dim=0))
        torch.testing.assert_close(state["target_scale.std"], y.std(correction=0))
        assert state["tau"].isfinite()
        assert one[2]["test/rmse"] != one[2]["test/rmse_deterministic"]


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_what_a_distributed_sampler_repeats_is_not_counted(make_trainer, tmp_path, task):
    """37 rows to train on, 13 to validate (and choose tau by), 17 to test."""
    one, two = (outcome(make_trainer, tmp_path, ranks, task, 37, 0.3, 0.0, loader=True) for ranks in (1, 2))
    for found in (one, two):
        for entry in found[0]:
            entry[1].clear()
    check(one, two)
    x, y = (part[:37] for part in rows(task, 37))
    for state, _ in two[0]:
        assert state["size"] == 37
        if task == "classification":
            continue
        torch.testing.assert_close(state["input_scale.std"], x.std(dim=0, correction=0))
        torch.testing.assert_close(state["target_scale.mean"], y.mean(dim=0))


def test_the_report_draws_each_target_once(make_trainer, tmp_path, monkeypatch):
    """17 do not divide by two ranks: Lightning's sampler repeats one, which is left out again."""

    def keep(points, *_):
        torch.save(points, tmp_path / "drawn.pt")
        return Figure()

    monkeypatch.setattr(regression_report, "draw_error_by_deviation", keep)
    monkeypatch.setattr(regression_report, "log_figure", lambda *_: None)
    model = DropoutRegressor(network=network(0.2, 1), precision=1.0, samples=2).double()
    trainer = make_trainer(2, callbacks=[regression_report.RegressionReport()])
    inputs, targets = (part[53:] for part in rows("regression", 40))
    trainer.test(model, DataLoader(TensorDataset(inputs, targets), batch_size=4), verbose=False)
    drawn = torch.load(tmp_path / "drawn.pt")
    torch.testing.assert_close(drawn[:, 0].sort().values, targets[:, 0].float().sort().values)
