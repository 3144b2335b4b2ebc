"""Private names of other packages: only in core/compat, and there in the versions that are installed."""

import ast
import importlib
import inspect
import pkgutil
import re
import signal
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import SupportsIndex

import lightning.pytorch as pl
import pytest
import torch
import wandb
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.compile import from_compiled
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp._common_utils import FSDP_WRAPPED_MODULE
from torch.nn.utils import prune
from torchmetrics import SumMetric
from torchmetrics.utilities import dim_zero_sum

import pl_losses
from pl_losses.cli.lightning_cli import prepare_imports
from pl_losses.core.compat import names, of_lightning, of_python, of_torch, of_wandb
from pl_losses.core.metrics import ErrorRate

ROOT = Path(pl_losses.__file__).parent
# Python's own that are documented.
PYTHONS = {"_asdict", "_fields", "_getframe", "_replace"}
# Text that looks like a private name: ends of the suite's keys and of others' documented ones, folders.
ENDINGS = {
    *("_recipes", "_pl_losses", "_values", "_FN", "_size", "_conv", "_1", "_low", "_high"),
    *("_frechet_distance", "_precision", "_recall", "_output_", "_outputs", "_classes_covered"),
    *("_smallest_class", "_largest_class", "_real_classes_covered", "_real_smallest_class"),
    *("_real_largest_class", "_matrix"),
}
# What every class of its kind has: Python writes them, and torch.autograd.Function.
MADE = {"_abc_impl", "_backward_cls", "_is_protocol", "_is_runtime_protocol"}


def sources():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}


def own_names(tree):
    """What a module itself defines: functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") else ""


def private(name):
    return re.fullmatch("_[a-zA-Z0-9][a-zA-Z0-9_]*", name) and name not in PYTHONS


def start_of(node):
    """What text that is put together begins with."""
    if isinstance(node, ast.JoinedStr):
        return start_of(node.values[0]) if node.values else ""
    if isinstance(node, ast.BinOp):
        return start_of(node.left)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def is_own(node):
    """Whether it is ``self``, ``cls`` or ``super()``."""
    return ast.unparse(node) in ("self", "cls", "super()")


def foreign_names(tree, everywhere=frozenset()):
    """Private names of others that a module uses, as attributes, imports, keywords or text.

    ``everywhere`` are those that the suite defines: what a class reads of itself may be its base's.
    """
    own = set(own_names(tree))
    # Neither docstrings nor other parts of f-strings, which make the suite's own names.
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    prose |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found = {node.attr} - (everywhere if is_own(node.value) else own)
        elif isinstance(node, ast.Import):
            found = {part for one in node.names for part in one.name.split(".")}
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("pl_losses"):
            found = {*str(node.module).split("."), *(one.name for one in node.names)}
        elif isinstance(node, ast.keyword):
            found = {str(node.arg)}
        elif isinstance(node, ast.MatchClass):
            found = {*node.kwd_attrs}
        elif isinstance(node, (ast.JoinedStr, ast.BinOp)) and re.match("_(?!_)", start_of(node)):
            yield start_of(node)
            continue
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found = {*re.split(r"\W+", node.value)} - {*ENDINGS} - everywhere
        else:
            continue
        yield from filter(private, found)


@cache
def names_of(kind):
    """Private names that a class defines, or reads or writes of itself."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # Of C, or made as a program runs.
        source = ""
    return {*re.findall(r"\bself\.(_\w+)", source), *vars(kind)} - MADE


def own_classes():
    """All classes of the suite."""
    for info in pkgutil.walk_packages(pl_losses.__path__, "pl_losses."):
        if not re.search("_recipes|__main__", info.name):
            importlib.import_module(info.name)
    for name in [name for name in sys.modules if name.startswith("pl_losses.")]:
        for kind in vars(sys.modules[name]).values():
            if isinstance(kind, type) and kind.__module__ == name:
                yield kind


def shared_with_bases(kind):
    """Private names that a class shares with its bases from elsewhere: hooks it overrides and state."""
    others = (base for base in kind.__mro__[:-1] if not base.__module__.startswith("pl_losses"))
    return {name for base in others for name in names_of(kind) & names_of(base) if private(name)}


def test_no_other_module_has_foreign_private_names():
    trees = sources()
    everywhere = {name for tree in trees.values() for name in own_names(tree)}
    foreign = {
        str(path.relative_to(ROOT)): found
        for path, tree in trees.items()
        if "compat" not in path.parts and (found := set(foreign_names(tree, everywhere)))
    }
    assert not foreign


def test_no_class_overrides_a_private_hook_of_another_package():
    shared = {kind: shared_with_bases(kind) for kind in own_classes() if ".compat" not in kind.__module__}
    assert {kind: names for kind, names in shared.items() if names} == {}


def test_each_way_to_a_private_name_is_seen():
    code = """
import a._module
from b import _function, _same
x._attribute
x._same
x.call(_keyword=1)
getattr(x, "_read")
getattr(x, f"_begins_{y}")
getattr(x, "_" + y)
vars(x)["_entry"]
TABLE = {"_orig"}, r"_one\\.|_other\\."
f"{x}_end"
self._same
match x:
    case Kind(_field=1):
        pass
"""
    assert set(foreign_names(ast.parse(code), {"_same"})) == {
        *("_module", "_function", "_same", "_attribute", "_keyword", "_read", "_begins_", "_", "_entry"),
        *("_orig", "_one", "_other", "_field"),
    }
    assert "_same" not in foreign_names(ast.parse("def _same(): ...\nself._same\nx._same"), {"_same"})
    assert shared_with_bases(of_lightning.MovedMetric) == {"_apply"}
    assert shared_with_bases(of_lightning.CLIWithoutCheckpoint) == {"_parse_ckpt_path"}


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


class AsGiven(of_lightning.OfLightning, Model):
    """What pytorch_lightning's Trainer would take for a stranger."""


def test_each_says_what_happens_without_its_names():
    for module in (of_lightning, of_python, of_torch, of_wandb):
        for name, one in vars(module).items():
            if getattr(one, "__module__", "") == module.__name__:
                assert "Without" in one.__doc__, name


def test_what_is_left_without_a_name(monkeypatch):
    gone, code = SimpleNamespace(), test_wandb.__code__
    assert of_lightning.saved_step(gone, never=-7) == -7
    assert of_lightning.own_batch_sampler(gone) is gone
    assert not of_lightning.restores(SimpleNamespace(tb_frame=SimpleNamespace(f_code=code, f_globals={})))
    assert not of_torch.counts_steps(gone)
    assert not of_python.is_protocol(gone)
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    assert not of_torch.may_be_compiled()
    monkeypatch.setitem(sys.modules, "torch._dynamo", gone)
    assert of_torch.may_be_compiled()


def test_the_other_trainer_is_told_whose_module_it_is(monkeypatch):
    theirs = pytest.importorskip("pytorch_lightning")
    trainer = theirs.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(TypeError, match="is a LightningModule of `lightning`, not of `pytorch_lightning`"):
        trainer.fit(AsGiven())
    monkeypatch.setattr(of_lightning, "ASKING", {"gone"})
    with pytest.raises(TypeError, match="must be a `LightningModule`"):
        trainer.fit(AsGiven())


def test_what_lightning_keeps_of_loaders(monkeypatch):
    batches = _IndexBatchSamplerWrapper(torch.utils.data.BatchSampler(range(4), 2, False))
    assert of_lightning.own_batch_sampler(batches) is batches._batch_sampler
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, fast_dev_run=True)
    trainer.fit(model := Model())
    (loader,) = of_lightning.given_loaders(trainer, "train")
    assert (type(loader), len(loader)) == (torch.utils.data.DataLoader, len(model.train_dataloader()))
    assert of_lightning.requeue_signal(trainer) == 0
    slurm = SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR2)
    monkeypatch.setattr(trainer._accelerator_connector, "cluster_environment", slurm)
    assert of_lightning.requeue_signal(trainer) == signal.SIGUSR2
    before = signal.getsignal(signal.SIGTERM)
    of_lightning.leave_signals(trainer)
    trainer._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_while_lightning_restores_is_told_from_others(tmp_path):
    def passed(error):
        at = error.__traceback__
        while at is not None:
            yield of_lightning.restores(at)
            at = at.tb_next

    torch.save({}, path := tmp_path / "empty.ckpt")
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        trainer.fit(Model(), ckpt_path=path)
    assert any(passed(caught.value))
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018
    assert not any(passed(caught.value))


def test_compiled_methods_are_those_asked_for():
    model = from_compiled(torch.compile(Model(), backend="eager"))
    assert model.training_step is not model._compiler_ctx["original_training_step"]
    of_lightning.compile_only(model, ["layer"])
    assert model.training_step is model._compiler_ctx["original_training_step"]
    assert model.layer._compiled_call_impl is not None


def test_average(tmp_path):
    average, model = WeightAveraging(avg_fn=lambda old, new, n: old), Model()
    average.setup(pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), model, "fit")
    first = model.layer.weight.detach().clone()
    with torch.no_grad():
        model.layer.weight += 1
    of_lightning.swap_average(average, model)
    torch.testing.assert_close(model.layer.weight.detach(), first)
    of_lightning.note_averaged(average, 7, epoch=3)
    assert average.state_dict() == {"latest_update_step": 7}


class Sized(Model):
    def __init__(self, size: int = 1):
        super().__init__()
        self.save_hyperparameters()
        self.built = of_lightning.parses_arguments()


class Reading(of_lightning.CLIWithoutCheckpoint):
    def before_fit(self):
        self.written = of_lightning.written_config(self)


def test_command_line_without_the_checkpoints_arguments(tmp_path):
    torch.save({"hyper_parameters": {"size": 5}}, path := tmp_path / "other.ckpt")
    trainer = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    command = ["fit", f"--ckpt_path={path}", "--model=Sized", "--model.size=2"]

    class Trainer(pl.Trainer):
        def fit(self, model, ckpt_path=None, weights_only=None):
            """Not what is tested."""

    prepare_imports(own=[__name__])  # An earlier test may have denied it.
    cli = Reading(
        Sized,
        trainer_class=Trainer,
        trainer_defaults=trainer,
        subclass_mode_model=True,
        save_config_callback=None,
        args=command,
    )
    assert cli.model.built
    assert cli.model.hparams["size"] == 2
    assert {names.CLASS_PATH, names.INSTANTIATOR} <= cli.model.hparams.keys()
    assert cli.written["model"]["init_args"] == {"size": 2}
    assert "ckpt_path" not in cli.written


def test_ddp_as_its_options_say(tmp_path):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        strategy = DDPStrategy(
            parallel_devices=[torch.device("cpu")],
            cluster_environment=LightningEnvironment(),
            ddp_comm_hook=default_hooks.allreduce_hook,
            find_unused_parameters=True,
        )
        wrapped = of_lightning.in_ddp(strategy, torch.nn.Linear(1, 1))
        assert wrapped.find_unused_parameters
        assert len(wrapped._comm_hooks) == 1
    finally:
        torch.distributed.destroy_process_group()


def test_states_move_as_the_metric_says():
    class Counted(of_lightning.MovedMetric, SumMetric):
        def moved(self, state, fn):
            return state + 1

    counted = Counted()
    assert counted.to("cpu").sum_value == 1
    assert counted.half().sum_value == 1  # Only the type: torchmetrics leaves the states alone.


def test_names_in_files_and_annotations():
    scheduler = torch.optim.lr_scheduler.OneCycleLR(torch.optim.SGD([torch.ones(1)]), 0.1, total_steps=4)
    assert {*names.CYCLE} <= scheduler.state_dict().keys()
    assert names.STEPPED in pl.Trainer(accelerator="cpu").fit_loop.epoch_loop.on_save_checkpoint()
    layer = torch.compile(torch.nn.Linear(1, 1), backend="eager")
    paths = [path for path, _ in torch.nn.Sequential(checkpoint_wrapper(layer)).named_modules()]
    assert paths[-1] == "0._checkpoint_wrapped_module._orig_mod"
    assert names.without_wrappers(paths[-1]) == "0"
    assert FSDP_WRAPPED_MODULE in names.WRAPPERS
    annotations = inspect.getsource(pl.Trainer.__init__)
    assert all(one in annotations for one in names.ANNOTATIONS)
    assert of_python.is_protocol(SupportsIndex)
    assert not of_python.is_protocol(int)


def test_a_run_hands_over_as_if_offline():
    seen = []

    class Run:
        disabled, _settings = False, wandb.Settings(mode="online")

        def _log_artifact(self, artifact):
            seen.append(self._settings.mode)

    run = Run()
    with of_wandb.handed_over(run):
        run._log_artifact("table")
    run._log_artifact("table")
    assert seen == ["offline", "online"]
    given = inspect.signature(wandb.Run._log_artifact)
    ended = []
    unserved = SimpleNamespace(
        settings=SimpleNamespace(finish_timeout=1), finish=lambda exit_code: ended.append(exit_code)
    )
    assert of_wandb.finish(unserved, 3)
    assert ended == [3]
    of_wandb.use_artifact(SimpleNamespace(_log_artifact=partial(given.bind, None)), "artifact")
    assert "self._settings." in inspect.getsource(wandb.Run)


def test_wandb():
    ws = pytest.importorskip("wandb_workspaces.workspaces")
    workspace = ws.Workspace(entity="entity", project="project", name="name")
    of_wandb.name_view(workspace, "nw-name-v")
    assert of_wandb.as_view(workspace).name == "nw-name-v"
