"""How fast a fit is."""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size

from pl_losses.core.declared import Keys
from pl_losses.core.loaders import rank_of
from pl_losses.core.panels import Sections
from pl_losses.core.validation import check_counts, typed
from pl_losses.monitoring import manifest


class SpeedMonitor(Callback):
    """Logs the samples per second of all ranks, and shows them in the progress bar.

    It is the mean over the last batches. It has the time that loading takes, but not that of validations.
    Logs ``train/samples_per_second``.

    Args:
        batches: How many batches.
    """

    KEYS: ClassVar[Keys] = {"train/samples_per_second": "samples of all ranks per second of training"}
    panels: ClassVar[Sections] = manifest.SPEED_MONITOR

    @typed
    def __init__(self, batches: int = 50) -> None:
        check_counts(batches=batches)
        # The time after each batch, and the samples up to it.
        self._marks: deque[tuple[float, int]] = deque(maxlen=batches + 1)

    def on_train_start(self, *_: Any) -> None:
        """Start the clock: a fit that goes on inside an epoch has no start of one."""
        self._marks.clear()
        self._marks.append((perf_counter(), 0))

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the clock again."""
        self.on_train_start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the speed."""
        seen = self._marks[-1][1] + extract_batch_size(batch) * rank_of(trainer)[1]
        self._marks.append((perf_counter(), seen))
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        pl_module.log("train/samples_per_second", (after - before) / (end - start), prog_bar=True)

    def on_validation_end(self, *_: Any) -> None:
        """Start the clock again."""
        self.on_train_start()
