"""Schedules of a fixed number of steps, in fits that resume from a checkpoint for longer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from pl_losses.core.compat.names import CYCLE


class ScheduleLength(Callback):
    """Stretches a one-cycle schedule to the length of the fit that resumes from a checkpoint.

    The checkpoint has the schedule of the fit that saved it. Where this one is longer or shorter, the rate
    goes on at the same step of the schedule that this fit would have had from its beginning. Every module of
    the suite and every ``pl-losses fit`` has this callback.
    """

    def __init__(self) -> None:
        self._own: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the schedules of this fit, before a checkpoint replaces them."""
        schedulers = [vars(config.scheduler) for config in trainer.lr_scheduler_configs]
        self._own = [{name: state[name] for name in CYCLE if name in state} for state in schedulers]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with this fit's schedules.

        Raises:
            ValueError: If one ends before the fit does.
        """
        for config, own in zip(trainer.lr_scheduler_configs, self._own, strict=True):
            scheduler: Any = config.scheduler
            if len(own) < len(CYCLE):
                continue
            name, steps, before = type(scheduler).__name__, own["total_steps"], scheduler.total_steps
            needed = getattr(pl_module, "schedule_steps", lambda: trainer.estimated_stepping_batches)()
            if config.interval == "step" and steps < needed:
                raise ValueError(
                    f"Expected {name} to be for all {needed} steps of the fit but got `total_steps` {steps}"
                )
            if steps != before:
                vars(scheduler).update(own)
                scheduler.last_epoch -= 1
                scheduler.step()
                rank_zero_info(
                    f"{name}: the checkpoint's cycle over {before} steps is stretched to {steps}; at step"
                    f" {scheduler.last_epoch} the rate is {scheduler.get_last_lr()[0]:.3g}"
                )
