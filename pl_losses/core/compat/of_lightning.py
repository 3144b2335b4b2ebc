"""What Lightning and torchmetrics keep to themselves. Tried with Lightning 2.6.1 to 2.6.6."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import wraps
from types import TracebackType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.overrides.distributed import _register_ddp_comm_hook
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

# Functions of a Trainer that look whether something is a LightningModule or LightningDataModule.
ASKING = {
    "_maybe_unwrap_optimized", "is_overridden", "_fit_impl", "_validate_impl", "_test_impl", "_predict_impl"
}  # fmt: skip


def compile_only(module: LightningModule, names: Iterable[str]) -> None:
    """Let ``torch.compile(module)`` compile these methods and children, and run steps as they are written.

    Lightning compiles whole steps. Most of a step is Python that breaks graphs: checks, random streams, logs.
    Without the names: an error when a compiled module is first trained; leave out ``torch.compile``.
    """
    if (compiled := module._compiler_ctx) is None:
        return
    for name in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
        setattr(module, name, compiled[f"original_{name}"])
    for name in names:
        part = getattr(module, name)
        if isinstance(part, nn.Module):
            for child in part if isinstance(part, nn.ModuleList) else [part]:
                child._compiled_call_impl = compiled["dynamo_ctx"](child._call_impl)
        else:
            setattr(module, name, compiled["dynamo_ctx"](getattr(type(module), name).__get__(module)))


def is_compiled(module: LightningModule) -> bool:
    """Return whether the trainer got ``torch.compile(module)``. Without the name: an error in a fit."""
    return module._compiler_ctx is not None


class OfLightning:
    """Base of what only the Trainer of `lightning` takes: that of `pytorch_lightning` says what to do.

    A Trainer asks nothing of a module or DataModule before it refuses it, except for ``isinstance``, which
    looks at ``__class__`` where the type does not fit. Without the names in ``ASKING``: the Trainer's own
    error, that a LightningModule is none.
    """

    @property
    def __class__(self) -> type:
        asked = sys._getframe(1)
        package = str(asked.f_globals.get("__name__")).partition(".")[0]
        if package == "pytorch_lightning" and asked.f_code.co_name in ASKING:
            kind = "LightningDataModule" if isinstance(self, LightningDataModule) else "LightningModule"
            raise TypeError(
                f"`{type(self).__name__}` is a {kind} of `lightning`, not of `pytorch_lightning`: use"
                " `lightning.pytorch.Trainer`"
            )
        return type(self)

    @__class__.setter
    def __class__(self, value: type) -> None:  # FSDP2 and parametrisations of torch set it.
        vars(object)["__class__"].__set__(self, value)


def trainer_of(module: LightningModule) -> Trainer | None:
    """Return a module's Trainer; its ``trainer`` raises where there is none.

    Without the name: an error in each step.
    """
    return module._trainer


def log_again(module: LightningModule, name: str, value: object) -> bool:
    """Give a new value to what the training step logged before with the same options; return whether it did.

    Each call of ``log`` checks all options, and copies what Lightning knows of the value: half a millisecond.
    It is needed at an epoch's first step, and for means over an epoch. Without the names: an error in each
    step; call ``log`` itself.
    """
    trainer, step = module._trainer, module._current_fx_name
    if trainer is None or step != "training_step" or not isinstance(value, Tensor) or value.numel() != 1:
        return False
    connector, results, key = trainer._logger_connector, trainer._results, f"{step}.{name}"
    logged = None if results is None else results.get(key)
    if results is None or logged is None or connector.should_reset_tensors(step):
        return False
    if logged.meta.on_epoch or logged.meta.enable_graph or logged.value.device != value.device:
        return False
    results.update_metrics(key, value.detach().squeeze(), 1)
    connector._current_fx = step
    return True


class CLIWithoutCheckpoint(LightningCLI):
    """LightningCLI whose ``ckpt_path`` changes no argument: the suite merges a checkpoint's below the user's.

    Without ``_parse_ckpt_path``: Lightning's own reading, above the user's.
    """

    def _parse_ckpt_path(self) -> None:
        pass


class MovedMetric(Metric):
    """Metric that moves its states itself. Without ``_apply``: they follow the device, and no type.

    torchmetrics looks at the function's name to leave alone what only changes the type, hence ``wraps``.
    """

    def moved(self, state: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Return a state on the device to which ``fn`` moves tensors."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        return super()._apply(wraps(fn)(lambda state: self.moved(state, fn)), *args, **kwargs)


def parses_arguments() -> bool:
    """Return whether the command line is building a module, and so keeps its arguments.

    Without it: an error at import.
    """
    return _given_hyperparameters.get() is not None


def restore_loaders(trainer: Trainer) -> None:
    """Have the training loaders go on where a checkpoint says.

    Lightning forgets it where a scheduler has asked for the number of steps. Without it: an error when a
    fit resumes with such a scheduler.
    """
    trainer.fit_loop._load_combined_loader_states()


def shares_samples(trainer: Trainer) -> bool:
    """Return whether Lightning gives loaders a DistributedSampler. Without it: an error with many ranks."""
    connector = trainer._accelerator_connector
    return bool(connector.use_distributed_sampler and connector.is_distributed)


def given_loaders(trainer: Trainer, stage: str) -> list[Any]:
    """Return the loaders of "train", "val" or "test" as the user gave them, without Lightning's samplers.

    Without it: an error where ranks count their samples.
    """
    fit: Any = trainer.fit_loop
    validation = fit.epoch_loop.val_loop if trainer.state.fn == TrainerFn.FITTING else trainer.validate_loop
    source = {"train": fit, "val": validation, "test": trainer.test_loop}[stage]._data_source
    return CombinedLoader(source.dataloader(), "sequential").flattened


def own_batch_sampler(batch_sampler: object) -> object:
    """Return the user's batch sampler within Lightning's, which notes the indices in predictions.

    Without the name: Lightning's, which gives the same batches.
    """
    return getattr(batch_sampler, "_batch_sampler", batch_sampler)


def logged_step(trainer: Trainer) -> int:
    """Return the step of the rows of ``self.log``: batches, not steps of each optimizer.

    Without it: an error in the monitors.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def count_step_again(trainer: Trainer) -> None:
    """Let the batch that was the last one be counted again when the fit goes on.

    Without it: an error where a fit was interrupted.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped -= 1


def accumulates(trainer: Trainer) -> bool:
    """Return whether the batch's gradients wait for those of the next one. Without it: an error in a fit."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def has_trained(trainer: Trainer) -> bool:
    """Return whether the epoch's last batch is done, or the fit's. Without it: an error in a fit."""
    return trainer.fit_loop.epoch_loop._is_training_done


def goes_on(trainer: Trainer) -> None:
    """Have a resumed fit be as any other from here on, also to schedules that watch a value.

    Without it: they miss the validation of the epoch that the fit resumes in.
    """
    trainer.fit_loop._restarting = False


def validates_now(trainer: Trainer) -> bool:
    """Return whether a validation follows the batch. Without it: an error in a fit."""
    fetcher: Any = trainer.fit_loop._data_fetcher
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def end_soon(trainer: Trainer, ending: bool) -> None:
    """Have Lightning end its loops where all of a step is done, as after a SIGTERM, or not.

    Without it: the signal is not heard; ``trainer.should_stop`` would run a last validation first.
    """
    trainer._signal_connector.received_sigterm = ending


def leave_signals(trainer: Trainer) -> None:
    """Have Lightning leave the signals alone.

    Its handlers communicate and save wherever a rank happens to be, and so wait for ranks that are
    elsewhere. Without it: ranks that hang after SIGTERM or SLURM's SIGUSR1.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def requeue_signal(trainer: Trainer) -> int:
    """Return the signal by which SLURM announces the end of a job that is to be queued again; 0 if none.

    Without it: an error at the start of a fit.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return int(environment.requeue_signal or 0)
    return 0


def restores(at: TracebackType) -> bool:
    """Return whether it is Lightning that goes back to a checkpoint there.

    Without the names: the error is told as any other, not as one of the checkpoint.
    """
    code, names = at.tb_frame.f_code, at.tb_frame.f_globals
    connector = names.get("__name__", "").endswith(".checkpoint_connector")
    return connector and code.co_name.lstrip("_").startswith(("restore", "resume"))


def saved_step(callback: Callback, never: int) -> int:
    """Return the step at which a checkpoint callback saved last. Without the name: ``never``."""
    return int(getattr(callback, "_last_global_step_saved", never))


def average_of(callback: WeightAveraging) -> Any:
    """Return torch's AveragedModel of a callback; None before the fit. Without it: an error at its start."""
    return callback._average_model


def swap_average(callback: WeightAveraging, module: LightningModule) -> None:
    """Exchange a module's weights for their average. Without it: an error at the first validation."""
    callback._swap_models(module)


def note_averaged(callback: WeightAveraging, step: int, epoch: int | None = None) -> None:
    """Note when the average was moved last. Without it: a second fit may leave out its first steps."""
    callback._latest_update_step = step
    if epoch is not None:
        callback._latest_update_epoch = epoch


def in_ddp(strategy: DDPStrategy, module: nn.Module) -> DistributedDataParallel:
    """Return DDP around a module, as the strategy's options have it.

    Without the names: an error with many ranks; ``strategy="ddp"`` does not need them.
    """
    wrapped: DistributedDataParallel = strategy._setup_model(module)
    if strategy._ddp_comm_hook is not None:
        state = strategy._ddp_comm_state
        _register_ddp_comm_hook(
            model=wrapped,
            ddp_comm_state=state() if callable(state) else state,
            ddp_comm_hook=strategy._ddp_comm_hook,
            ddp_comm_wrapper=strategy._ddp_comm_wrapper,
        )
    return wrapped


def finds_unused(strategy: DDPStrategy) -> bool:
    """Return whether DDP looks for parameters without a gradient. Without it: an error under DDP."""
    return bool(strategy._ddp_kwargs.get("find_unused_parameters"))


def syncs_batch_norm(strategy: ParallelStrategy) -> bool:
    """Return whether the Trainer was given ``sync_batchnorm``. Without it: an error under FSDP2 and DDP."""
    return strategy._layer_sync is not None


def shard_over(strategy: ModelParallelStrategy, ranks: int) -> None:
    """Set over how many ranks the weights are split. Without it: over the nodes, each with a whole copy."""
    strategy._data_parallel_size = ranks


def saves_shards(strategy: ModelParallelStrategy) -> bool:
    """Return whether each rank saves its own part of a checkpoint. Without it: an error under FSDP2."""
    return strategy._save_distributed_checkpoint


def is_offline(logger: WandbLogger) -> bool:
    """Return whether a run is kept on disk only. Without it: an error at a fit's end."""
    return bool(logger._offline) and logger._wandb_init.get("mode") not in ("online", "shared")


def wandb_arguments(logger: WandbLogger) -> dict[str, Any]:
    """Return what a logger is going to call ``wandb.init`` with, to be changed until it does.

    Without it: an error before the run begins.
    """
    return logger._wandb_init


def written_config(cli: LightningCLI) -> dict[str, Any]:
    """Return the config of a command as plain data, less what concerns this one call.

    Without the names: an error before the run begins.
    """
    cli._dump_config()
    passing = {"config", *cli._subcommand_method_arguments[str(cli.subcommand)]}
    return {key: value for key, value in cli.config_dump.items() if key not in passing}


def reduction_of(metric: Metric, state: str) -> object:
    """Return how a metric's state is brought together over ranks. Without it: an error in the first step."""
    return metric._reductions[state]
