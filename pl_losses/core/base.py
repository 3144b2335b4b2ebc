"""What the LightningModules of all papers share: optimizers from callables, sharding, clear refusals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import inf
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric

from pl_losses.core import expected
from pl_losses.core.compat import of_lightning
from pl_losses.core.declared import Keys, Part, Recipe, declared_keys
from pl_losses.core.loaders import (
    SeenSamples,
    evaluation_loaders,
    places_of,
    refuse_hidden,
    training_loader,
    unrepeated,
)
from pl_losses.core.metrics import define_metrics, in_words, states_of, take_out_repeated
from pl_losses.core.panels import Sections
from pl_losses.core.random_state import RandomState
from pl_losses.core.schedule_length import ScheduleLength
from pl_losses.core.sharding import units

COUNTED = "training_metrics"  # Of a checkpoint.


class RestoreModes(Callback):
    """Has a module of the suite in the mode of before as soon as an evaluation fails, or is interrupted."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore them; Lightning does so only where an evaluation ends."""
        if isinstance(pl_module, PaperModule):
            pl_module.restore_modes()


class PaperModule(LightningModule):
    """Base of the papers' modules: pass it an optimizer's callable, override what the paper adds.

    The module's metrics (torchmetrics) are empty when a validation, test or prediction starts; those whose
    names start with "train" are empty when a fit does, and checkpoints keep them. A step is to count the
    first :meth:`own_rows` samples of its batch, and to multiply its loss by :meth:`rank_weight`; what is
    logged when a validation or test ends is :meth:`evaluation_results`; a subclass that overrides a hook
    (:meth:`on_validation_epoch_end`, which logs it) is to call ``super()`` in it.

    Attributes:
        KEYS: What the class logs beside its bases: key to what it tells, with its unit. A key may stand for
            several, as in "<stage>/loss" (train, val, test, predict), "train/<a|b>", "slope/<layer>"; what
            is told starts with "picture:", "table:" or "histogram:" where it is no number.
        panels: How dashboards show it.
        headline: Name of the metric that a validation or test is summed up in, without its stage.
        best: Logged key to whether its smallest or largest value is the best; loggers that can, show it.

    Args:
        optimizer: Parameters to optimizer.
        lr_scheduler: Optimizer to scheduler. One that takes ``total_steps`` (OneCycleLR) is given the
            number of optimizer steps of the run and moves every step; any other moves once an epoch,
            or as its attribute ``interval`` says ("step" or "epoch").

    Raises:
        TypeError: If ``optimizer`` cannot be called, or is an optimizer already.
    """

    KEYS: ClassVar[Keys] = {}
    panels: ClassVar[Sections] = ()
    headline: ClassVar[str] = "loss"
    best: ClassVar[dict[str, Literal["min", "max"]]] = {}

    def __init__(self, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None = None) -> None:
        super().__init__()
        if isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer):
            raise TypeError(
                "Expected `optimizer` to be a function of the parameters, such as"
                f" `lambda parameters: torch.optim.Adam(parameters)`, but got {optimizer!r:.80}"
            )
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._sharded = False
        self._seen, self._dataloader = SeenSamples(), 0
        # Of several dataloaders on several ranks: which ones began, and the metrics' states then.
        self._begun: list[tuple[int, dict[str, dict[str, Any]]]] = []
        self._counted: dict[str, Any] = {}  # By a checkpoint that a fit goes on from.
        # Of the modules before the evaluation that is under way.
        self._modes: list[tuple[nn.Module, bool]] = []
        # How often metrics were updated when an evaluation of this fit ended, and those updated in between.
        self._update_counts: dict[str, int] = {}
        self._counting: set[str] = set()

    def configure_callbacks(self) -> Sequence[Callback]:
        """Let a fit go on as it was, and restore modes if a run fails; an override adds its own to these."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        kinds = (RandomState, ScheduleLength, RestoreModes)
        return [kind() for kind in kinds if not any(isinstance(one, kind) for one in callbacks)]

    def configure_model(self) -> None:
        """Shard the parameters when the strategy has a device mesh (FSDP2), else leave them as they are.

        In the steps and in ``forward`` they are whole, whatever is called there; see :meth:`whole` for hooks.
        Under manual optimization every child is sharded by itself, and whole in its own ``forward`` only.

        Raises:
            ValueError: If a parameter is a scalar, or under manual optimization in no child.
        """
        if self.device_mesh is None or self._sharded:
            return
        from torch.distributed.fsdp import fully_shard

        from pl_losses.core.sharding import Shards

        self._refuse_to_shard()
        self._sharded, mesh = True, self.device_mesh["data_parallel"]
        for parameter in self.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP2 wants it so; channels_last is not.
        if not self.automatic_optimization:
            for _, child in units(self):
                if any(True for _ in child.parameters()):
                    fully_shard(child, mesh=mesh, reshard_after_forward=True)
            return
        shards = Shards(self, mesh)
        self.whole = shards.whole  # type: ignore[method-assign]
        for name in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
            setattr(self, name, shards.through(getattr(self, name)))

    def _refuse_to_shard(self) -> None:
        if scalars := [name for name, parameter in self.named_parameters() if not parameter.ndim]:
            raise ValueError(
                f"Expected no scalar parameters under FSDP2 but got {scalars}: give them the shape [1], or"
                ' use `strategy="ddp"`'
            )
        own = [name for name, _ in self.named_parameters(recurse=False)]
        if own and not self.automatic_optimization:
            raise ValueError(
                f"Expected parameters in children only under FSDP2 and manual optimization but got {own} in"
                f' {type(self).__name__} itself: move them, or use `strategy="ddp_per_module"`'
            )

    @property
    def trainer_or_none(self) -> Trainer | None:
        """The Trainer, if there is one; ``trainer`` raises where there is none."""
        return of_lightning.trainer_of(self)

    def whole(self) -> AbstractContextManager[None]:
        """Within it this rank has all parameters whole, to look at: what changes them is lost under FSDP2.

        For hooks that use parameters otherwise than by calling a layer. All ranks are to enter it together.
        """
        return nullcontext()

    @classmethod
    def logged_keys(cls, part: Part, recipe: Recipe) -> Keys:
        """Return the keys that it logs in a recipe: all :attr:`KEYS`, its own and its bases'."""
        return declared_keys(cls)

    def summary(self, results: Mapping[str, float]) -> str:
        """Say in words what a validation or test found, from its metrics by their names without the stage.

        An empty text if there is nothing to say.
        """
        return in_words(results, [self.headline, "loss"])

    def parameter_groups(self) -> Iterable[Any]:
        """What the optimizer is given: all parameters; override it to treat some of them differently."""
        return self.parameters()

    def schedule_steps(self) -> int:
        """How many optimizer steps a schedule is for: those of the run.

        Raises:
            ValueError: If the run has no end.
        """
        steps = self.trainer.estimated_stepping_batches
        if steps == inf:
            raise ValueError(
                "Expected a Trainer with `max_epochs` or `max_steps`, of which a schedule is made"
            )
        return int(steps)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer, and the scheduler if there is one, from the constructor's callables."""
        return self.with_scheduler(self._optimizer(self.parameter_groups()), self._lr_scheduler)

    def with_scheduler(
        self, optimizer: torch.optim.Optimizer, lr_scheduler: LRSchedulerCallable | None
    ) -> OptimizerLRScheduler:
        """An optimizer with the scheduler that is made for it, which is told :meth:`schedule_steps`."""
        expected.optimizer(optimizer)
        if lr_scheduler is None:
            return optimizer
        try:
            scheduler = lr_scheduler(optimizer)
            interval = getattr(scheduler, "interval", "epoch")
        except ValueError as error:
            if "total_steps" not in str(error):
                raise
            scheduler = lr_scheduler(optimizer, total_steps=self.schedule_steps())  # type: ignore[call-arg]
            interval = "step"
        configured = {"scheduler": scheduler, "interval": interval}
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            configured["monitor"] = expected.monitor(scheduler)
        return {"optimizer": optimizer, "lr_scheduler": configured}  # type: ignore[return-value]

    def on_fit_start(self) -> None:
        """Tell the logger which value of each metric is the best."""
        define_metrics(self.trainer, self.best)

    def on_train_start(self) -> None:
        """Go on within the epoch that a checkpoint was saved in; else begin with empty metrics."""
        of_lightning.restore_loaders(self.trainer)
        ended = self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        for name, metric in self._metrics(training=True):
            metric.reset()
            # All ranks' counts are in the checkpoint, and are summed again.
            if self.global_rank == 0 and not ended:
                for key, state in self._counted.get(name, {}).items():
                    setattr(metric, key, state.to(self.device))
        self._counted, self._counting = {}, set()
        self._note_updates()

    def on_before_backward(self, loss: Tensor) -> None:
        """Refuse a loss of another shape, or without a gradient.

        Raises:
            ValueError: If it is such a one.
        """
        expected.backward(self, loss)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what was counted in this epoch so far, on all ranks together.

        It is left out where several ranks were interrupted, each at another place.
        """
        trainer = self.trainer_or_none
        if trainer is None or (trainer.world_size > 1 and trainer.interrupted):
            return
        checkpoint[COUNTED] = {}
        for name, metric in self._metrics(training=True):
            if any(isinstance(state, list) for state in metric.metric_state.values()):
                continue  # Rows of a metric of the user's: as many as samples.
            with metric.sync_context():
                states: dict[str, Any] = metric.metric_state
                checkpoint[COUNTED][name] = {key: state.clone() for key, state in states.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember what was counted in the epoch that the checkpoint was saved in."""
        self._counted = checkpoint.get(COUNTED, {})

    def on_validation_model_eval(self) -> None:
        """Begin a validation with empty metrics."""
        self._begin_evaluation()
        super().on_validation_model_eval()

    def on_test_model_eval(self) -> None:
        """Begin a test with empty metrics."""
        self._begin_evaluation()
        super().on_test_model_eval()

    def on_predict_model_eval(self) -> None:
        """Begin a prediction with empty metrics."""
        self._begin_evaluation()
        super().on_predict_model_eval()

    def _begin_evaluation(self) -> None:
        # Before any other hook, and whatever ended the evaluation before.
        self._seen, self._dataloader, self._begun = SeenSamples(), 0, []
        trainer = self.trainer_or_none
        fitting = (
            trainer is not None and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        )
        for name, metric in self._metrics(training=False):
            # What a subclass counts in training goes on behind the validation, whatever its name.
            if fitting and metric.update_count not in (0, self._update_counts.get(name, 0)):
                self._counting.add(name)
            if not fitting or name not in self._counting:
                metric.reset()
        self._modes = [(part, part.training) for part in self.modules()]

    def on_validation_end(self) -> None:
        """Leave it to Lightning to go on in the mode of before."""
        self._end_evaluation()

    def on_test_end(self) -> None:
        """Leave it to Lightning to go on in the mode of before."""
        self._end_evaluation()

    def on_predict_end(self) -> None:
        """Leave it to Lightning to go on in the mode of before."""
        self._end_evaluation()

    def _end_evaluation(self) -> None:
        self._note_updates()
        self._modes = []

    def restore_modes(self) -> None:
        """Go back to the modes of before the evaluation that is under way, if there is one."""
        for part, training in self._modes:
            part.training = training
        self._modes = []

    def _note_updates(self) -> None:
        self._update_counts = {name: metric.update_count for name, metric in self._metrics(training=False)}

    def _metrics(self, training: bool) -> Iterator[tuple[str, Metric]]:
        for name, module in self.named_modules():
            if isinstance(module, Metric) and name.startswith("train") == training:
                yield name, module

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Note which samples this rank sees."""
        self._note(batch, dataloader_idx)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Note which samples this rank sees."""
        self._note(batch, dataloader_idx)

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Note which dataloader this is."""
        self._dataloader = dataloader_idx

    def _note(self, batch: Any, dataloader_idx: int) -> None:
        self._dataloader = dataloader_idx
        self._seen.add(self._loader(), batch, dataloader_idx)
        if self.trainer.world_size > 1 and dataloader_idx not in dict(self._begun):
            self._begun.append((dataloader_idx, self._states()))

    def _states(self) -> dict[str, dict[str, Any]]:
        return {name: states_of(metric) for name, metric in self._evaluated_metrics()}

    def _evaluated_metrics(self) -> Iterator[tuple[str, Metric]]:
        return ((name, one) for name, one in self._metrics(training=False) if name not in self._counting)

    def _loader(self) -> Any:
        """The dataloader of the batch that is under way; ``None`` if nothing is known of it."""
        trainer = self.trainer_or_none
        if trainer is None or trainer.state.stage is None:
            return None
        if trainer.training:
            return training_loader(trainer)
        stage: Any = trainer.state.stage.dataloader_prefix
        return evaluation_loaders(trainer, stage)[self._dataloader]

    def own_rows(self, batch_idx: int, size: int) -> int:
        """How many samples of a batch to count, the first ones, of ``size``.

        The others are repetitions by which ranks are given equally many. There may be none to count.
        """
        loader, trainer = self._loader(), self.trainer_or_none
        if training := trainer is not None and trainer.training:
            refuse_hidden(self.trainer, loader, training=True)
        return unrepeated(loader, batch_idx, size, training)

    def places(self, batch_idx: int, size: int) -> range:
        """The places in the data set of the samples of a batch of ``size``, on any number of ranks."""
        return places_of(self._loader(), batch_idx, size)

    def counts(self, dataloader_idx: int | None = None) -> bool:
        """Whether what this rank saw in a validation or test counts: no rank before it saw the same samples.

        For hooks at the end of an evaluation, on all ranks: the first time it is a collective.

        Args:
            dataloader_idx: Of which dataloader. Default: of any of them.
        """
        return self._seen.counts(dataloader_idx)

    def rank_weight(self, count: int | Tensor) -> float | Tensor:
        """What to multiply this rank's loss by, a mean over ``count`` samples (strings, ...) of its batch.

        Strategies average the gradients of the ranks. So weighted they are those of the mean over the samples
        of all ranks' batches. A collective, if there are several ranks: all are to come here, once a loss.
        """
        if self.trainer_or_none is None or self.trainer_or_none.world_size == 1:
            return 1.0
        return count / self.mean_count(count)

    def mean_count(self, count: int | Tensor) -> int | Tensor:
        """The mean of the ranks' counts, or 1 if all are 0: a collective, if there are several ranks."""
        if self.trainer_or_none is None or self.trainer_or_none.world_size == 1:
            return count
        total = torch.as_tensor(count, dtype=torch.float32, device=self.device).clone()
        torch.distributed.all_reduce(total)
        return torch.where(total > 0, total / self.trainer_or_none.world_size, 1.0)

    def joined(self, rows: Tensor) -> Tensor:
        """The rows of all ranks' batches, [B, ...] of each rank -> [sum of B, ...], with their gradients.

        In the order in which one process would have them. For losses over pairs of samples: made of joined
        rows, a loss is the same on every rank and needs no :meth:`rank_weight`. A collective, if there are
        several ranks; they may have unequally many rows, or none.
        """
        if self.trainer_or_none is None or self.trainer_or_none.world_size == 1:
            return rows
        counts: Any = self.all_gather(torch.tensor(len(rows), device=rows.device))
        padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])
        padded[: len(rows)] = rows
        found: Any = self.all_gather(padded.detach())
        if padded.requires_grad:
            # Strategies average the gradients of the ranks, but each rank has those of its own rows alone.
            padded.register_hook(lambda gradient: gradient * len(counts))  # type: ignore[no-untyped-call]
        found[self.global_rank] = padded
        # Ranks take the samples of a batch in turn.
        there = torch.arange(len(padded), device=rows.device)[:, None] < counts
        joined: Tensor = found.transpose(0, 1)[there]
        return joined

    def evaluation_results(self, stage: str) -> dict[str, Any]:
        """What the metrics of "val" or "test" give, to be logged as ``<stage>/<name>``: runs on all ranks."""
        return {}

    def on_validation_epoch_end(self) -> None:
        """Log what the metrics give; without this, in an override, nothing of it is logged."""
        self._log_results("val")

    def on_test_epoch_end(self) -> None:
        """Log what the metrics give; without this, in an override, nothing of it is logged."""
        self._log_results("test")

    def _log_results(self, stage: str) -> None:
        if not self.counts():
            for _, metric in self._evaluated_metrics():
                metric.reset()
        elif len(self._begun) > 1:
            take_out_repeated(dict(self._evaluated_metrics()), self._begun, self.counts)
        values = {f"{stage}/{name}": value for name, value in self.evaluation_results(stage).items()}
        # Equal on all ranks already; without sync_dist Lightning warns that they might not be.
        self.log_dict(values, prog_bar=stage == "val", sync_dist=True)

    def refuse_non_finite(self, loss: Tensor) -> None:
        """Stop at a loss that is not finite: at once on the CPU, at the next logged step on an accelerator.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        # Asking an accelerator for the value waits for it; at a logged step the logger does so anyway.
        every = getattr(self.trainer_or_none, "log_every_n_steps", 1)
        logged = (self.global_step + 1) % every == 0 if every else False
        if (loss.device.type == "cpu" or logged) and not torch.isfinite(loss):
            raise FloatingPointError(
                f"Expected a finite loss but got {loss.item()} at step {self.global_step}: look at the "
                "inputs, or lower the learning rate"
            )
