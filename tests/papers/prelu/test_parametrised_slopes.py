"""Slopes that are computed from other parameters: decay, gradients, momenta and the warning all the same."""

import lightning.pytorch as pl
import pytest
import torch
from kept_rows import Rows
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.data import DataLoader, TensorDataset

from pl_losses.papers.prelu import PReLU, param_groups
from pl_losses.papers.prelu.monitor import PReLUSlopeMonitor, find_slopes


class Scaled(nn.Module):
    """A parametrisation with a parameter, a buffer that moves and random numbers in training."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, slopes):
        if self.training:
            self.calls += 1
            slopes = slopes + 0.1 * torch.rand_like(slopes)
        return self.scale * slopes


def old_weight_norm(layer):
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(layer)


KINDS = {
    "plain": lambda layer: None,
    "clamped": lambda layer: parametrize.register_parametrization(layer, "weight", nn.Hardtanh(-1.0, 1.0)),
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "old_weight_norm": old_weight_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=1),
    "scaled": lambda layer: parametrize.register_parametrization(layer, "weight", Scaled()),
    "two": lambda layer: [
        parametrize.register_parametrization(layer, "weight", one) for one in (Scaled(), nn.Tanh())
    ],
}


class Net(pl.LightningModule):
    """One PReLU of a kind between two layers, used twice."""

    def __init__(self, kind, layer=nn.PReLU, decay=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), layer(4), nn.Linear(4, 4), nn.Linear(4, 1))
        self.net.insert(3, self.net[1])
        with torch.no_grad():
            self.net[1].weight.copy_(torch.tensor([0.1, 0.2, 0.3, -0.4]))
        KINDS[kind](self.net[1])
        self.decay, self.statistics = decay, []

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, weight_decay=self.decay)

    def on_train_batch_end(self, *args):
        own = [p for p in self.net[1].parameters() if p.grad is not None]
        state = self.optimizers().optimizer.state
        norms = [
            torch.cat([one.flatten() for one in some]).norm().item()
            for some in ([p.grad for p in own], [state[p]["momentum_buffer"] for p in own])
        ]
        slopes = -self.net[1].eval()(-torch.ones(1, 4))[0]  # Without the noise of training.
        self.net[1].train()
        self.statistics.append([slopes.detach(), *norms])


def train(model, *callbacks):
    logger = Rows()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, log_every_n_steps=1, callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    trainer.fit(model, DataLoader(TensorDataset(data), batch_size=4))
    return logger.rows


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [nn.PReLU, PReLU], ids=["torch", "suite"])
def test_slopes_gradients_and_momenta(kind, layer):
    model = Net(kind, layer)
    rows = train(model, PReLUSlopeMonitor())
    assert list(rows) == [0, 1, 2]
    for row, (slopes, gradient, momentum) in zip(rows.values(), model.statistics, strict=True):
        assert row["prelu/net.1/mean"] == row["prelu/mean"] == pytest.approx(slopes.mean().item(), abs=1e-6)
        assert row["prelu/net.1/max"] == pytest.approx(slopes.max().item(), abs=1e-6)
        assert row["prelu/net.1/grad_norm"] == pytest.approx(gradient, rel=1e-5)
        assert row["prelu/net.1/momentum_norm"] == pytest.approx(momentum, rel=1e-5)
        assert not any("net.3" in key for key in row)


@pytest.mark.parametrize("kind", KINDS)
def test_the_monitor_changes_nothing(kind):
    ends = []
    for callbacks in ([], [PReLUSlopeMonitor()]):
        model = Net(kind)
        model.on_train_batch_end = lambda *args: None
        torch.manual_seed(3)
        train(model, *callbacks)
        ends.append([*model.parameters(), *model.buffers(), torch.get_rng_state()])
        assert all(module.training for module in model.modules())
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_groups_do_not_decay_them_and_the_monitor_warns_of_those_that_do(kind, monkeypatch):
    model = Net(kind)
    groups = {group["name"]: group for group in param_groups(model, 0.1)}
    slopes = {id(p) for p in model.net[1].parameters()}
    assert {id(p) for p in groups["slopes"]["params"]} == slopes
    assert not slopes & {id(p) for p in groups["weights"]["params"]}
    assert sum(len(group["params"]) for group in groups.values()) == len([*model.parameters()])
    model.on_train_batch_end = lambda *args: None
    model.configure_optimizers = lambda: torch.optim.SGD(param_groups(model, 0.1), 0.1)
    statistics = []
    monkeypatch.setattr("pl_losses.papers.prelu.monitor.rank_zero_warn", statistics.append)
    train(model, PReLUSlopeMonitor())
    assert not statistics
    decayed = Net(kind, decay=0.1)
    decayed.on_train_batch_end = lambda *args: None
    train(decayed, PReLUSlopeMonitor())
    assert ["0, where they are ReLUs: in SGD (net.1)." in one for one in statistics] == [True]


def test_layers_whose_paths_are_equal_without_the_compilers_names():
    inner = nn.ModuleDict({"a": nn.PReLU()})
    inside = nn.ModuleDict({"c": nn.PReLU(4)})
    net = nn.ModuleDict({"_orig_mod": inner, "a": nn.PReLU(2), "b/c": nn.PReLU(3), "b": inside})
    sizes = {path: slopes.numel() for path, slopes in find_slopes(net).items()}
    assert sizes == {"a": 1, "a-1": 2, "b/c": 3, "b.c": 4}
