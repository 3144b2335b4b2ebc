"""Metrics with their axes, and what a classifier's test run is summed up in."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torchmetrics import Metric

X_AXIS = "trainer/global_step"


def define_metrics(trainer: Trainer, best: dict[str, Literal["min", "max"]]) -> None:
    """Define each key's x axis and best value where the logger can (W&B).

    Args:
        trainer: Its loggers are told, on rank zero.
        best: Logged key to "min" or "max".
    """
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            for key, summary in best.items():
                logger.experiment.define_metric(key, step_metric=X_AXIS, summary=f"{summary},last")


class ErrorRate(Metric):
    """Share of wrong predictions, exact over any number of ranks and uneven batches.

    Attributes:
        counted: After :meth:`compute`, the wrong and all predictions of all ranks.

    Example:
        >>> rate = ErrorRate()
        >>> rate.update(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 3, 0]))
        >>> rate.compute()
        tensor(0.2500)
    """

    full_state_update = False
    wrong: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.counted = (0, 0)
        self.add_state("wrong", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Count a batch: predicted and right classes, shape [B] each."""
        self.wrong += (predicted != target).sum()
        self.total += target.numel()

    def compute(self) -> Tensor:
        """Scalar in [0, 1]; NaN before any sample."""
        self.counted = (int(self.wrong), int(self.total))
        return self.wrong / self.total


def binomial_interval(wrong: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Exact (Clopper-Pearson) confidence interval of a rate.

    Args:
        wrong: How often it happened.
        total: Out of how many.
        level: Confidence level.

    Returns:
        Lower and upper end, in [0, 1].

    Example:
        >>> [round(100 * end, 2) for end in binomial_interval(95, 10_000)]
        [0.77, 1.16]
    """
    from scipy.stats import binomtest

    low, high = binomtest(wrong, total).proportion_ci(level, method="exact")
    return float(low), float(high)
