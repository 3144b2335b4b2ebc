"""The progress bar of a run, drawn by the clock: drawing it can take longer than a small network's step."""

from __future__ import annotations

from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class TimedProgressBar(TQDMProgressBar):
    """Lightning's bar, drawn at most every ``seconds`` and after the last batch.

    W&B copies what is printed into the run, so that a bar drawn after each batch fills the run's file, too.

    Args:
        seconds: Least time between two drawings.
    """

    def __init__(self, seconds: float = 0.2) -> None:
        super().__init__()
        self.seconds = seconds
        self._drawn = float("-inf")

    def _due(self, batch_idx: int, total: float) -> bool:
        now = monotonic()
        if due := now - self._drawn >= self.seconds or batch_idx + 1 == total:
            self._drawn = now
        return due

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the bar if it is due."""
        if self._due(batch_idx, self.total_train_batches):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *loader: int,
    ) -> None:
        """Draw the bar if it is due."""
        if self._due(batch_idx, self.total_val_batches_current_dataloader):
            super().on_validation_batch_end(trainer, module, outputs, batch, batch_idx, *loader)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *loader: int,
    ) -> None:
        """Draw the bar if it is due."""
        if self._due(batch_idx, self.total_test_batches_current_dataloader):
            super().on_test_batch_end(trainer, module, outputs, batch, batch_idx, *loader)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *loader: int,
    ) -> None:
        """Draw the bar if it is due."""
        if self._due(batch_idx, self.total_predict_batches_current_dataloader):
            super().on_predict_batch_end(trainer, module, outputs, batch, batch_idx, *loader)
