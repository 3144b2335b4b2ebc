"""Private names of other packages: only in core/compat, and there in the versions that are installed."""

import ast
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.nn.utils import prune
from torchmetrics.utilities import dim_zero_sum

import pl_losses
from pl_losses.core.compat import of_lightning, of_torch, of_wandb
from pl_losses.core.metrics import ErrorRate

ROOT = Path(pl_losses.__file__).parent
# Python's own, which are documented or part of what a named tuple offers.
PYTHONS = {"_asdict", "_fields", "_getframe", "_is_protocol", "_replace"}


def sources():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}


def own_names(trees):
    """What the suite itself defines: functions, classes, variables and attributes."""
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") else ""


def private(name):
    return name.startswith("_") and not name.startswith("__") and name not in PYTHONS


def names_in(tree):
    """Private names that a module reads of others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("pl_losses"):
            yield from (part for part in str(node.module).split(".") if private(part))
            yield from (one.name for one in node.names if private(one.name))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            yield from (
                one.value for one in node.args[1:2] if isinstance(one, ast.Constant) and private(one.value)
            )


def test_no_other_module_has_foreign_private_names():
    trees = sources()
    own = set(own_names(trees.values()))
    foreign = {
        str(path.relative_to(ROOT)): found
        for path, tree in trees.items()
        if "compat" not in path.parts and (found := set(names_in(tree)) - own)
    }
    assert not foreign
    assert set(names_in(trees[ROOT / "core/compat/of_torch.py"])) - own  # They are seen where they are.


def test_torch():
    x, y = (torch.ones(2, 3, requires_grad=True) for _ in range(2))
    assert of_torch.Saved((x * y).grad_fn).other is y
    assert [list(shape) for shape in of_torch.input_shapes((x * 2).grad_fn)] == [[2, 3]]
    assert of_torch.version(x) == 0
    with torch.no_grad():
        assert of_torch.version(x.add_(1)) == 1
    layer = torch.nn.BatchNorm1d(3)
    assert isinstance(layer, of_torch.BatchNorm)
    assert [*of_torch.own_parameters(layer), *of_torch.own_buffers(layer)] == [
        *("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]
    assert [*of_torch.own_children(torch.nn.Sequential(layer))] == ["0"]
    prune.identity(layer, "weight")
    assert [of_torch.pruned_name(hook) for hook in of_torch.forward_pre_hooks(layer).values()] == ["weight"]
    adam = torch.optim.Adam([x])
    assert of_torch.counts_steps(adam)
    x.grad = torch.ones_like(x)
    lists = [[] for _ in range(6)]
    assert of_torch.init_group(adam, adam.param_groups[0], *lists) is False
    assert [len(one) for one in lists] == [1, 1, 1, 1, 0, 1]
    lbfgs = torch.optim.LBFGS([x])
    lbfgs._numel_cache = 1
    of_torch.forget_size(lbfgs)
    assert lbfgs._numel() == 6


def test_functorch():
    seen = []

    def look(row):
        seen.append((of_torch.vmap_randomness(), of_torch.is_transformed(), of_torch.is_batched(row)))
        return row

    torch.func.vmap(look, randomness="same")(torch.ones(2, 3))
    assert seen == [(["same"], True, True)]
    assert not of_torch.is_transformed()
    level = of_torch.enter_vmap(2, "error")
    try:
        assert of_torch.current_level() == of_torch.maybe_current_level() == level
        added = of_torch.add_batch_dim(torch.ones(3, 2), 1, level)
        assert (added.shape, of_torch.batch_dim(added), of_torch.unwrapped(added).shape) == ((3,), 1, (3, 2))
        assert of_torch.remove_batch_dim(added, level, 2, 0).shape == (2, 3)
    finally:
        of_torch.leave_vmap()


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(3, 1))

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        states = (of_lightning.accumulates, of_lightning.has_trained, of_lightning.validates_now)
        self.seen.append([of_lightning.logged_step(self.trainer), *(one(self.trainer) for one in states)])


def test_lightning_in_a_fit(tmp_path):
    model = Model()
    assert of_lightning.trainer_of(model) is None
    saved = ModelCheckpoint(tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[saved],
        accumulate_grad_batches=2,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    assert of_lightning.saved_step(saved, never=-1) in (0, -1)
    trainer.fit(model)
    assert of_lightning.trainer_of(model) is trainer
    steps, *states = zip(*model.seen, strict=True)
    # One step for two batches, one for the last.
    assert states == [(True, False, False), (False, False, True), (False, False, False)]
    assert steps[0] < steps[2]
    assert of_lightning.saved_step(saved, never=-1) == 2
    ended = of_lightning.logged_step(trainer)
    of_lightning.count_step_again(trainer)
    assert of_lightning.logged_step(trainer) == ended - 1
    of_lightning.restore_loaders(trainer)
    of_lightning.end_soon(trainer, True)
    assert trainer.received_sigterm
    assert not of_lightning.shares_samples(trainer)


def test_lightning_without_a_fit(tmp_path):
    assert not of_lightning.parses_arguments()
    assert of_lightning.average_of(WeightAveraging()) is None
    assert of_lightning.finds_unused(DDPStrategy(find_unused_parameters=True))
    assert not of_lightning.syncs_batch_norm(DDPStrategy())
    assert not of_lightning.saves_shards(ModelParallelStrategy(save_distributed_checkpoint=False))
    logger = WandbLogger(project="mine", save_dir=tmp_path, offline=True)
    assert of_lightning.wandb_arguments(logger)["project"] == "mine"
    assert of_lightning.is_offline(logger)
    assert of_lightning.reduction_of(ErrorRate(), "wrong") is dim_zero_sum
    assert of_lightning.own_batch_sampler(batches := object()) is batches


def test_wandb():
    ws = pytest.importorskip("wandb_workspaces.workspaces")
    workspace = ws.Workspace(entity="entity", project="project", name="name")
    of_wandb.name_view(workspace, "nw-name-v")
    assert of_wandb.as_view(workspace).name == "nw-name-v"
