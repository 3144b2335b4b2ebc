"""Optimizers that look like Adam: what is logged of them is the step they made, or they are left out."""

import pytest
import torch
from kept_rows import Rows
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from pl_losses.papers.adam import Adam as Switched
from pl_losses.papers.adam.monitor.monitor import AdamBiasCorrectionMonitor
from pl_losses.papers.prelu import param_groups


class Same(AdamW):
    """A subclass that steps as its parent."""


class Trusting(Adam):
    """Scales each tensor's step by the norm of its weights, as LAMB does."""

    @torch.no_grad()
    def step(self, closure=None):
        before = [p.clone() for group in self.param_groups for p in group["params"]]
        loss = super().step(closure)
        for p, was in zip((p for group in self.param_groups for p in group["params"]), before, strict=True):
            p.copy_(was + (p - was) * was.norm() / (p - was).norm().clamp(min=1e-12))
        return loss


class Foreign(Optimizer):
    """Another library's, with the switch in its groups and its weight decay decoupled without a word."""

    def __init__(self, params):
        betas = {"betas": (0.8, 0.9), "eps": 1e-6}
        super().__init__(params, {"lr": 0.1, "weight_decay": 0.5, "bias_correction": True, **betas})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            (b1, b2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                state["step"] += 1
                state["exp_avg"].lerp_(p.grad, 1 - b1)
                state["exp_avg_sq"].lerp_(p.grad.square(), 1 - b2)
                m, v = (state[key] / (1 - b ** state["step"])
                        for key, b in (("exp_avg", b1), ("exp_avg_sq", b2)))  # fmt: skip
                p.sub_(lr * (m / (v.sqrt() + group["eps"]) + group["weight_decay"] * p))
        return loss


class Net(LightningModule):
    """Keeps the norm of each step."""

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 7), nn.PReLU(7), nn.Linear(7, 1))
        self.make, self.norms = make, []

    def training_step(self, batch, batch_idx):
        self.before = [p.detach().double().clone() for p in self.parameters()]
        return self.net(torch.randn(4, 5)).square().mean()

    def on_train_batch_end(self, *args):
        steps = [p.detach().double() - was for p, was in zip(self.parameters(), self.before, strict=True)]
        self.norms.append(torch.cat([step.flatten() for step in steps]).norm().item())

    def configure_optimizers(self):
        return self.make(self)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(4))


def rows_of(tmp_path, make, **options):
    model, quiet = Net(make), ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(
        accelerator="cpu", logger=Rows(), max_epochs=1, log_every_n_steps=1, default_root_dir=tmp_path,
        callbacks=[AdamBiasCorrectionMonitor(**options)], fast_dev_run=False, **dict.fromkeys(quiet, False),
    )  # fmt: skip
    trainer.fit(model)
    return model, trainer.logger.rows


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("make", [Same, Foreign, Adam])
def test_what_is_logged_is_the_step_that_was_made(tmp_path, make, recwarn):
    model, rows = rows_of(tmp_path, lambda net: make(net.parameters()))
    norms = [row[f"adam/{make.__name__}/update_norm"] for row in rows.values()]
    assert norms == pytest.approx(model.norms, rel=1e-3)
    assert [row[f"adam/{make.__name__}/skipped_steps"] for row in rows.values()] == [0] * 4
    assert not [one for one in recwarn if "Monitor" in str(one.message)]


@pytest.mark.parametrize("level", ["full", "aggregate"])
def test_an_optimizer_that_steps_otherwise_is_left_out(tmp_path, level):
    with pytest.warns(UserWarning, match="leaves out Trusting: it made a step of .* but its state gives"):
        _, rows = rows_of(tmp_path, lambda net: Trusting(net.parameters()), level=level)
    assert not rows


def test_groups_of_one_name_count_every_parameter_once(tmp_path):
    def make(net):
        return Switched(param_groups(net.net[:2]) + param_groups(net.net[2:]))

    model, rows = rows_of(tmp_path, make, tensors="*")
    sizes = {name: row for name, row in rows[3].items() if name.endswith("/coordinates")}
    groups = {f"adam/Adam/{name}/coordinates" for name in ("weights", "slopes", "weights-1")}
    total = sum(p.numel() for p in model.parameters())
    assert sum(sizes[name] for name in groups) == sum(sizes.values()) / 2 == total


def test_a_parameter_that_is_given_twice_counts_once(tmp_path):
    with pytest.warns(UserWarning, match="duplicate parameters"):
        model, rows = rows_of(tmp_path, lambda net: Adam([*net.parameters(), net.net[0].weight]))
    assert rows[3]["adam/Adam/coordinates"] == sum(p.numel() for p in model.parameters())
    assert rows[3]["adam/Adam/skipped_steps"] == 0
