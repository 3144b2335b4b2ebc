"""Kingma and Ba 2015, section 7.2: evaluation and the final model with weights averaged over time."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from pl_losses.core.compat import of_lightning, of_torch
from pl_losses.core.precision import wide_type
from pl_losses.core.validation import check_share, typed
from pl_losses.monitoring.steps import OptimizerSteps, logged_step

ROUNDED = "averaging_rounded"  # Key in a checkpoint.


class TemporalAveraging(WeightAveraging):
    r"""Keeps an exponential average of the weights over the steps, with bias correction.

    .. math:: \bar\theta_t = \beta_2 \bar\theta_{t-1} + (1 - \beta_2) \theta_t, \qquad
        \hat\theta_t = \bar\theta_t / (1 - \beta_2^t)

    This is done after each batch t in which an optimizer took a step. Validation, the test after training and
    the ``state_dict`` of checkpoints have :math:`\hat\theta_t`. Training goes on with :math:`\theta_t`, also
    when it is resumed. A fit that is not resumed begins a new average. The code computes the same average in
    another form: :math:`\hat\theta_t = \hat\theta_{t-1} + w_t (\theta_t - \hat\theta_{t-1})` with :math:`w_t
    = (1 - \beta_2) / (1 - \beta_2^t)`. Buffers of floating point are averaged too. Other buffers are copied.

    Args:
        beta2: Decay rate of the average.

    Raises:
        ValueError: If ``beta2`` is outside of [0, 1), or, when training starts, if the strategy shards the
            weights or a ``ModelCheckpoint`` saves weights only, which are not averaged.

    Example:
        >>> TemporalAveraging(0.9).beta2
        0.9
    """

    @typed
    def __init__(self, beta2: float = 0.999) -> None:
        check_share("beta2", beta2)
        self.beta2 = beta2
        self._swapped = False  # Whether the model holds the average, and the average's copy the weights.
        self._stepped = False
        self._steps: list[OptimizerSteps] = []
        self._lost: dict[tuple[int, torch.Size], Tensor] = {}  # Rounding errors of an average so far.
        self._resumed: list[Tensor | None] = []  # The same, from a checkpoint.
        super().__init__(multi_avg_fn=self.move)

    def __getstate__(self) -> dict[str, object]:
        """Leave out what belongs to one process, and the logging that Lightning lends."""
        kept = {key: value for key, value in self.__dict__.items() if key not in ("log", "log_dict")}
        return kept | {"_steps": [], "_lost": {}, "_resumed": []}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the average's copy of the model when a fit begins."""
        if isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)):
            raise ValueError(
                "Expected a strategy that keeps the weights whole, such as `ddp`, for TemporalAveraging but"
                f" got {type(trainer.strategy).__name__}"
            )
        with warnings.catch_warnings():
            # Of models that would be sharded, which are refused above.
            warnings.filterwarnings("ignore", message=".*model that overrides the configure_model")
            super().setup(trainer, pl_module, stage)
        if stage == "fit":
            if any(
                getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks
            ):
                raise ValueError(
                    "Expected a ModelCheckpoint with `save_weights_only` false for TemporalAveraging but got"
                    " true: such a file has the weights of the last step, not their average"
                )
            # Those of an earlier fit are dropped; those of a checkpoint to resume are loaded later.
            of_lightning.note_averaged(self, trainer.global_step, epoch=-1)
            self._swapped, self._lost = False, {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register hooks on the optimizers: Lightning does not see all of their steps."""
        self._release()
        self._steps = [OptimizerSteps(trainer, after=self._note)]
        for key, rounded in zip(self._keys(), self._resumed, strict=False):
            if rounded is not None:
                self._lost[key] = rounded.to(pl_module.device)
        self._resumed = []

    def _keys(self) -> list[tuple[int, torch.Size]]:
        """Return the keys of the averages' rounding errors."""
        average = of_lightning.average_of(self)
        if average is None:
            return []
        tensors = (*average.parameters(), *average.buffers())
        return [(one.data_ptr(), one.shape) for one in tensors]

    def _note(self, optimizer: Optimizer) -> None:
        self._stepped = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Move the average."""
        stepped, self._stepped = self._stepped, False
        average = of_lightning.average_of(self)
        if stepped and average is not None and self.should_update(step_idx=logged_step(trainer)):
            average.update_parameters(pl_module)
            of_lightning.note_averaged(self, trainer.global_step)

    def _release(self) -> None:
        for steps in self._steps:
            steps.remove()
        self._steps, self._stepped = [], False

    def _swap(self, pl_module: LightningModule) -> None:
        of_lightning.swap_average(self, pl_module)
        self._swapped = not self._swapped

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the model to evaluate it; after the fit it is there already."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back into the model."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hooks; if a fit stops within a validation, put the weights back into the model."""
        self._release()
        if self._swapped and trainer.state.fn == TrainerFn.FITTING and trainer.evaluating:
            self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the model, and keep the weights for a checkpoint saved after the fit."""
        self._release()
        if not self._swapped:
            self._swap(pl_module)

    # A fit without any training left does not end its training.
    on_fit_end = on_train_end

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]
    ) -> None:
        """Save the average as the model, and the weights beside it, whichever of them the model holds."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint[ROUNDED] = [self._lost.get(key) for key in self._keys()]
        if self._swapped:
            average, weights = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, weights

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the average and its rounding errors."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._resumed = checkpoint.get(ROUNDED, [])

    @torch.no_grad()
    def move(self, averages: list[Tensor], current: list[Tensor], averaged: Tensor | int) -> None:
        """Move the averages of t - 1 steps, all of one type and in place, to those of t.

        Args:
            averages: The averages.
            current: The weights after step t.
            averaged: t - 1.
        """
        if not averages[0].is_floating_point():
            of_torch.foreach_copy_(averages, current)
            return
        weight = (1 - self.beta2) / (1 - self.beta2 ** (int(averaged) + 1))
        # A small share of the difference is mostly rounded off: added up over the steps, it is not lost.
        dtype = wide_type(averages[0].dtype)
        before = [average.to(dtype) for average in averages]
        lost = []
        for one in averages:
            key = one.data_ptr(), one.shape
            if key not in self._lost:
                self._lost[key] = torch.zeros_like(one, dtype=dtype)
            lost.append(self._lost[key])
        change = of_torch.foreach_sub([one.to(dtype) for one in current], before)
        of_torch.foreach_sub_(change, lost)
        of_torch.foreach_mul_(change, weight)
        of_torch.foreach_add_(change, lost)
        moved = [total.to(averages[0].dtype) for total in of_torch.foreach_add(before, change)]
        of_torch.foreach_copy_(lost, change)
        of_torch.foreach_sub_(lost, of_torch.foreach_sub([one.to(dtype) for one in moved], before))
        of_torch.foreach_copy_(averages, moved)
