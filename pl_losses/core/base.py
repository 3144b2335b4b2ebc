"""Base of the LightningModules of all papers: optimizers from callables, sharding, checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import inf
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from torchmetrics import Metric

from pl_losses.core import expected
from pl_losses.core.best_values import BestValues
from pl_losses.core.compat import of_lightning
from pl_losses.core.declared import Keys, Part, Recipe, declared_keys
from pl_losses.core.loaders import (
    SeenSamples,
    evaluation_loaders,
    num_unpadded,
    places_of,
    refuse_hidden,
    training_loader,
)
from pl_losses.core.metrics import (
    States,
    define_metrics,
    headline_text,
    name_class,
    states_of,
    take_out_repeated,
)
from pl_losses.core.panels import Sections
from pl_losses.core.random_state import RandomState
from pl_losses.core.rng import fold_in
from pl_losses.core.schedule_length import ScheduleLength
from pl_losses.core.sharding import units

COUNTED = "training_metrics"  # Key in a checkpoint.


class RestoreModes(Callback):
    """Restores the modules' training modes as soon as an evaluation fails or is interrupted."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the modes; Lightning does so only if the evaluation comes to its end."""
        if isinstance(pl_module, PaperModule):
            pl_module.restore_modes()


class PaperModule(of_lightning.OfLightning, LightningModule):
    """Base class of the papers' modules; the optimizer is given as a callable.

    The module's metrics (torchmetrics) are reset when a validation, test or prediction starts. Those whose
    names start with "train" are reset when a fit starts instead, and checkpoints keep their states.

    A step counts the first :meth:`num_unpadded` samples of its batch only, and multiplies its loss by
    :meth:`rank_weight`. When a validation or test ends, :meth:`evaluation_results` is logged. A subclass that
    overrides a hook, such as :meth:`on_validation_epoch_end`, must call ``super()`` in it.

    Attributes:
        KEYS: What the class logs beside its bases: key to its meaning, with the unit. A key may stand for
            several, as in "<stage>/loss" (train, val, test, predict), "train/<a|b>", "slope/<layer>". The
            meaning starts with "picture:", "table:" or "histogram:" if it is not a number.
        panels: How dashboards show it.
        headline: Name of the metric that a validation or test is summed up in, without its stage.
        best: Logged key to "min" or "max", whichever is the best. That of a validation's key, such as
            "val/error", is "val/error/best" in W&B's summary.
        compiled: Names of the methods and children that ``torch.compile`` of the module compiles. Steps run
            as they are written.

    Args:
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer. One that takes
            ``total_steps``, such as OneCycleLR, gets the number of the run's steps, and moves at each step.
            Any other moves once an epoch. Its attribute ``interval`` can say "step" instead.

    Raises:
        TypeError: If ``optimizer`` cannot be called, or is an optimizer already.
    """

    KEYS: ClassVar[Keys] = {}
    panels: ClassVar[Sections] = ()
    headline: ClassVar[str] = "loss"
    best: ClassVar[dict[str, Literal["min", "max"]]] = {}
    compiled: ClassVar[tuple[str, ...]] = ("forward",)

    def __init__(self, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None = None) -> None:
        super().__init__()
        expected.builder("optimizer", optimizer)
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._sharded = False
        self._logged: dict[str, tuple[object, ...]] = {}  # Options that a name was last logged with.
        self._seen, self._dataloader = SeenSamples(), 0
        # With several dataloaders on several ranks: those that began, and the metrics' states at that time.
        self._begun: list[tuple[int, dict[str, States]]] = []
        self._counted: dict[str, States] = {}  # From the checkpoint that a fit resumes.
        # Each module's mode before the current evaluation.
        self._modes: list[tuple[nn.Module, bool]] = []
        # Updates of each metric when the fit's last evaluation ended, and the metrics updated after it.
        self._update_counts: dict[str, int] = {}
        self._counting: set[str] = set()

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return the callbacks that resume a fit exactly, restore modes, and know the best values.

        An override adds to them.
        """
        callbacks: list[object] = self.trainer.callbacks  # type: ignore[attr-defined]
        kinds = (RandomState, ScheduleLength, RestoreModes, BestValues)
        return [kind() for kind in kinds if not any(isinstance(one, kind) for one in callbacks)]

    def configure_model(self) -> None:
        """Shard the parameters when the strategy has a device mesh (FSDP2); compile what is to be compiled.

        Steps and ``forward`` see whole parameters, whatever they call; for hooks see :meth:`whole`. Under
        manual optimization every child is sharded by itself, and is whole in its own ``forward`` only.

        Raises:
            ValueError: If a parameter is a scalar, or under manual optimization in no child.
        """
        of_lightning.compile_only(self, self.compiled)
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

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """Log as Lightning does; what a training step logs in the same way again costs less."""
        if self._logged.get(name) != (args, options) or not of_lightning.log_again(self, name, value):
            super().log(name, value, *args, **options)
            self._logged[name] = (args, options)

    def whole(self) -> AbstractContextManager[None]:
        """Return a context in which parameters are whole, to be read: under FSDP2 changes are lost.

        For hooks that use parameters without calling a layer. All ranks must enter it together.
        """
        return nullcontext()

    @classmethod
    def logged_keys(cls, part: Part, recipe: Recipe) -> Keys:
        """Return the keys that the class logs in a recipe: :attr:`KEYS`, its own and its bases'."""
        return declared_keys(cls)

    def summary(self, results: Mapping[str, float]) -> str:
        """Describe the results of a validation or test in words, from metrics by name without the stage.

        The text is empty if there is nothing to say.
        """
        return headline_text(results, [self.headline, "loss"])

    def parameter_groups(self) -> ParamsT:
        """Return what the optimizer is given: all parameters. Override it to treat some differently."""
        return self.parameters()

    def schedule_steps(self) -> int:
        """Return the number of optimizer steps that a schedule is made for: those of the run.

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
        """Build an optimizer's scheduler, with :meth:`schedule_steps` if it needs them; return both."""
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
        """Tell the logger the class, the x axes, and which value of each metric is the best."""
        name_class(self.trainer, self)
        define_metrics(self.trainer, self.best)

    def on_train_start(self) -> None:
        """Resume within the epoch that a checkpoint was saved in; else start with empty metrics."""
        of_lightning.restore_loaders(self.trainer)
        ended = self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        for _, metric in self._metrics(training=False):
            metric.reset()  # A fit that failed may have left something.
        for name, metric in self._metrics(training=True):
            metric.reset()
            # The checkpoint has the sum over ranks; rank 0 alone takes it, as ranks are summed again.
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
        """Save what was counted in this epoch so far, summed over all ranks.

        Nothing is saved if several ranks were interrupted, each at another place.
        """
        trainer = self.trainer_or_none
        if trainer is None or (trainer.world_size > 1 and trainer.interrupted):
            return
        checkpoint[COUNTED] = {}
        for name, metric in self._metrics(training=True):
            if any(isinstance(state, list) for state in metric.metric_state.values()):
                continue  # A user's metric that keeps a row for each sample.
            with metric.sync_context():
                states: States = metric.metric_state
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
        # This comes before any other hook, and after an evaluation that failed, too.
        self._seen, self._dataloader, self._begun = SeenSamples(), 0, []
        trainer = self.trainer_or_none
        fitting = (
            trainer is not None and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        )
        for name, metric in self._metrics(training=False):
            # A metric that a subclass updates in training is not reset by a validation, whatever its name.
            if fitting and metric.update_count not in (0, self._update_counts.get(name, 0)):
                self._counting.add(name)
            if not fitting or name not in self._counting:
                metric.reset()
        for name, metric in self._metrics(training=True):
            if not fitting:
                metric.reset()
            self._update_counts[name] = metric.update_count
        self._modes = [(part, part.training) for part in self.modules()]

    def on_validation_end(self) -> None:
        """Note the metrics' updates, and forget the modes: Lightning restores them."""
        self._note_updates()
        self._modes = []

    on_test_end = on_predict_end = on_validation_end

    def restore_modes(self) -> None:
        """Restore the modes from before the current evaluation, if there is one."""
        for part, training in self._modes:
            part.training = training
        self._modes = []

    def _note_updates(self) -> None:
        self._update_counts = {name: metric.update_count for name, metric in self._metrics(training=False)}

    def _metrics(self, training: bool) -> Iterator[tuple[str, Metric]]:
        for name, module in self.named_modules():
            if isinstance(module, Metric) and name.startswith("train") == training:
                yield name, module

    def on_validation_batch_start(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Note which samples this rank sees."""
        self._note(batch, dataloader_idx)

    on_test_batch_start = on_validation_batch_start

    def on_predict_batch_start(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Note which dataloader this is."""
        self._dataloader = dataloader_idx

    def _note(self, batch: object, dataloader_idx: int) -> None:
        self._dataloader = dataloader_idx
        self._seen.add(self._loader(), batch, dataloader_idx)
        if self.trainer.world_size > 1 and dataloader_idx not in dict(self._begun):
            self._begun.append((dataloader_idx, self._states()))

    def _states(self) -> dict[str, States]:
        return {name: states_of(metric) for name, metric in self._evaluated_metrics()}

    def _evaluated_metrics(self) -> Iterator[tuple[str, Metric]]:
        return ((name, one) for name, one in self._metrics(training=False) if name not in self._counting)

    def _loader(self) -> object:
        """Return the dataloader of the current batch; ``None`` if it is unknown."""
        trainer = self.trainer_or_none
        if trainer is None or trainer.state.stage is None:
            return None
        if trainer.training:
            return training_loader(trainer)
        stage: Any = trainer.state.stage.dataloader_prefix
        return evaluation_loaders(trainer, stage)[self._dataloader]

    def num_unpadded(self, batch_idx: int, size: int) -> int:
        """Return how many samples of a batch of ``size`` count: the first ones.

        The others are repetitions, added to give all ranks equally many. The number may be 0.
        """
        loader, trainer = self._loader(), self.trainer_or_none
        if training := trainer is not None and trainer.training:
            refuse_hidden(self.trainer, loader, training=True)
        return num_unpadded(loader, batch_idx, size, training)

    def places(self, batch_idx: int, size: int) -> range:
        """Return the positions in the data set of a batch's ``size`` samples, on any number of ranks."""
        return places_of(self._loader(), batch_idx, size)

    def counts(self, dataloader_idx: int | None = None) -> bool:
        """Return whether this rank's samples of an evaluation count: no lower rank saw the same ones.

        For hooks at the end of a validation or test. All ranks must call it: the first call is a collective.

        Args:
            dataloader_idx: Which dataloader's samples. Default: whether those of any dataloader count.
        """
        return self._seen.counts(dataloader_idx)

    def rank_weight(self, count: int | Tensor) -> float | Tensor:
        """Return the factor for this rank's loss, a mean over ``count`` samples (strings, ...) of its batch.

        Strategies average gradients over ranks. With this factor the average is the gradient of the mean over
        the samples of all ranks' batches. With several ranks it is a collective: call it on all, once a loss.
        """
        if self.trainer_or_none is None or self.trainer_or_none.world_size == 1:
            return 1.0
        return count / self.mean_count(count)

    def mean_count(self, count: int | Tensor) -> int | Tensor:
        """Average a count over the ranks, or return 1 if all are 0. With several ranks, a collective."""
        if self.trainer_or_none is None or self.trainer_or_none.world_size == 1:
            return count
        total = torch.as_tensor(count, dtype=torch.float32, device=self.device).clone()
        torch.distributed.all_reduce(total)
        return torch.where(total > 0, total / self.trainer_or_none.world_size, 1.0)

    def joined(self, rows: Tensor) -> Tensor:
        """Gather the rows of all ranks' batches with gradients: [B, ...] on each rank -> [sum of B, ...].

        In the order in which one process would have them. For losses over pairs of samples: made of joined
        rows, a loss is the same on every rank and needs no :meth:`rank_weight`. A collective, if there are
        several ranks; they may have unequally many rows, or none.

        Raises:
            ValueError: If the rows of ranks are of different shapes or types.
        """
        if self.trainer_or_none is None or self.trainer_or_none.world_size == 1:
            return rows
        kind = fold_in(list(rows.shape[1:]), str(rows.dtype))
        gathered = self.all_gather(torch.tensor([len(rows), kind], device=rows.device))
        assert isinstance(gathered, Tensor)
        counts, kinds = gathered.T
        if (kinds != kind).any():
            raise ValueError(
                f"Expected `rows` [B, ...] of one shape and type (except for B) on all ranks but got"
                f" {list(rows.shape)} of {rows.dtype}, and others elsewhere"
            )
        padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])
        padded[: len(rows)] = rows
        found = self.all_gather(padded.detach())
        assert isinstance(found, Tensor)
        if padded.requires_grad:
            # Strategies average gradients over ranks, but each rank has those of its own rows only.
            padded.register_hook(lambda gradient: gradient * len(counts))  # type: ignore[no-untyped-call]
        found[self.global_rank] = padded
        # Ranks take the samples of a batch in turn.
        there = torch.arange(len(padded), device=rows.device)[:, None] < counts
        return found.transpose(0, 1)[there]

    def evaluation_results(self, stage: str) -> Mapping[str, Tensor | float]:
        """Return the results of "val" or "test", logged as ``<stage>/<name>``; called on all ranks."""
        return {}

    def on_validation_epoch_end(self) -> None:
        """Log :meth:`evaluation_results`; an override must call this, or nothing of it is logged."""
        self._log_results("val")

    def on_test_epoch_end(self) -> None:
        """Log :meth:`evaluation_results`; an override must call this, or nothing of it is logged."""
        self._log_results("test")

    def _log_results(self, stage: str) -> None:
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        for name, metric in self._metrics(training=True):
            if metric.update_count != self._update_counts.get(name, metric.update_count) and fitting:
                raise ValueError(
                    f"Expected `{name}` to count in training only, as its name says, but {stage} updated it:"
                    " give it another name, so that each validation starts with an empty one"
                )
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
