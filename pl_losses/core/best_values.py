"""The best values of a fit's validations, beside the last ones, which run tables show."""

from __future__ import annotations

from math import inf, isfinite
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from pl_losses.core.kinds import is_wandb


class BestValues(Callback):
    """Keeps the best value of each metric that is validated, and shows it as ``<key>/best`` in W&B's summary.

    Checkpoints have the values, so that a fit that resumes knows them. Every module of the suite has this
    callback; :func:`~pl_losses.core.metrics.define_metrics` tells it the keys.

    Attributes:
        modes: Logged key to "min" or "max", whichever is the best.
        values: The best value of each key so far.
    """

    def __init__(self) -> None:
        self.modes: dict[str, Literal["min", "max"]] = {}
        self.values: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the values."""
        return dict(self.values)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the values."""
        self.values = {key: float(value) for key, value in state_dict.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the values of the fit that this one resumes: its record may be a new one."""
        self._show(trainer, self.values)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the values of a fit's validation with the best."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        better = {}
        for key, mode in self.modes.items():
            value = float(trainer.callback_metrics.get(key, inf)) if key.startswith("val/") else inf
            best = self.values.get(key)
            if isfinite(value) and (best is None or (value < best if mode == "min" else value > best)):
                better[key] = value
        self.values |= better
        self._show(trainer, better)

    def _show(self, trainer: Trainer, values: dict[str, float]) -> None:
        for logger in trainer.loggers:
            if values and trainer.is_global_zero and is_wandb(logger):
                logger.experiment.summary.update({f"{key}/best": value for key, value in values.items()})
