"""Schedules in fits that resume from a checkpoint, also for longer."""

from __future__ import annotations

from math import inf
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from pl_losses.core.compat import of_lightning
from pl_losses.core.compat.names import CYCLE

KEY = "watched_values"  # Key in a checkpoint: what each ReduceLROnPlateau has yet to count, by its place.


class ScheduleLength(Callback):
    """Stretches a one-cycle schedule to the length of the fit that resumes from a checkpoint.

    The checkpoint has the schedule of the fit that saved it. Where this one is longer or shorter, the rate
    goes on at the same step of the schedule that this fit would have had from its beginning, also if its
    epochs have more or fewer steps, as on another number of ranks.

    It also has ReduceLROnPlateau count the validation of each epoch: Lightning leaves out that of the epoch
    that a fit resumes in, or after. Every module of the suite and every ``pl-losses fit`` has this callback.
    """

    def __init__(self) -> None:
        self._own: list[dict[str, Any]] = []
        self._watched: dict[int, float] = {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the values of an epoch that is over, but that Lightning counts after the checkpoint only."""
        loop, epoch = trainer.fit_loop, trainer.fit_loop.epoch_progress.current
        batches = loop.epoch_loop.batch_progress
        over = batches.is_last_batch and batches.current.completed == batches.current.ready
        if not over or loop.restarting or epoch.completed == epoch.ready:
            return
        # Under manual optimization Lightning moves no schedules.
        configs = trainer.lr_scheduler_configs if pl_module.automatic_optimization else []
        checkpoint[KEY] = {
            place: float(trainer.callback_metrics[config.monitor])
            for place, config in enumerate(configs)
            if config.reduce_on_plateau and config.interval == "epoch"
            if (trainer.current_epoch + 1) % config.frequency == 0
            if config.monitor in trainer.callback_metrics
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note what is to be counted."""
        self._watched = checkpoint.get(KEY, {})

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Have this epoch's validation counted."""
        of_lightning.goes_on(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the schedules of this fit, before a checkpoint replaces them."""
        schedulers = [vars(config.scheduler) for config in trainer.lr_scheduler_configs]
        self._own = [{name: state[name] for name in CYCLE if name in state} for state in schedulers]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with this fit's schedules, and count what was left.

        Raises:
            ValueError: If one ends before the fit does.
        """
        watched, self._watched = self._watched, {}
        for place, value in watched.items():
            pl_module.lr_scheduler_step(trainer.lr_scheduler_configs[place].scheduler, value)
        for config, own in zip(trainer.lr_scheduler_configs, self._own, strict=True):
            scheduler: Any = config.scheduler
            if len(own) < len(CYCLE):
                continue
            name, steps, before = type(scheduler).__name__, own["total_steps"], scheduler.total_steps
            run = trainer.estimated_stepping_batches
            length: Any = getattr(pl_module, "schedule_steps", None)
            needed, by_step = length() if length else run, config.interval == "step"
            # A schedule of a part of the fit, or a fit of a number of steps, goes by the steps alone.
            by_epochs = by_step and config.frequency == 1 and needed == run < inf and trainer.max_steps == -1
            moved = steps_done(trainer) - scheduler.last_epoch if by_epochs else 0
            if by_step and steps < needed:
                raise ValueError(
                    f"Expected {name} to be for all {needed} steps of the fit but got `total_steps` {steps}"
                )
            if steps != before or moved:
                vars(scheduler).update(own)
                scheduler.last_epoch += moved - 1
                scheduler.step()
                rank_zero_info(
                    f"{name}: the checkpoint's cycle over {before} steps is stretched to {steps}; at step"
                    f" {scheduler.last_epoch} the rate is {scheduler.get_last_lr()[0]:.3g}"
                )


def steps_done(trainer: Trainer) -> int:
    """Return how many steps this fit would have done by now, had it gone on from its beginning."""
    loop, accumulated = trainer.fit_loop, trainer.accumulate_grad_batches
    batches: Any = loop.epoch_loop.batch_progress
    epochs = loop.epoch_progress.current.ready
    each, over = -(-int(trainer.num_training_batches) // accumulated), batches.is_last_batch
    before = epochs if over else max(0, epochs - 1)
    return before * each + (0 if over else batches.current.processed // accumulated)
