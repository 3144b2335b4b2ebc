"""Rows of numbers and histograms, for loggers of any package."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Trainer

from pl_losses.core.kinds import is_aim, is_tensorboard, is_wandb

Array = npt.NDArray[np.float64]


@dataclass
class Row:
    """What is logged of one step: scalars for every logger, histograms for loggers that can show them."""

    scalars: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Array] = field(default_factory=dict)


class JoinedRows:
    """A logger's ``log_metrics`` while monitors watch: it sends their row together with Lightning's.

    Lightning logs what a module logged right after the monitors did. Each row takes a call of the logger: a
    message to W&B's service, or a request to MLflow's server. So the monitors' row waits for the next row. A
    row of the same step joins it, and before a row of another step it is sent alone.

    Args:
        logger: Its ``log_metrics`` is replaced until :meth:`remove`.
    """

    def __init__(self, logger: Any) -> None:
        self.logger, self.own = logger, "log_metrics" in vars(logger)
        self.send_row = logger.log_metrics
        self.waiting: Mapping[str, Any] = {}
        self.step: int | None = None
        logger.log_metrics = self

    def __call__(self, metrics: Mapping[str, Any], step: int | None = None, **options: Any) -> None:
        """Send a row, and the one that waits."""
        if self.waiting and step == self.step:
            metrics, self.waiting = {**self.waiting, **metrics}, {}
        self.send()
        self.send_row(metrics, step, **options)

    def wait(self, metrics: Mapping[str, Any], step: int) -> None:
        """Let a row wait for the next one."""
        self.send()
        self.waiting, self.step = metrics, step

    def send(self) -> None:
        """Send the row that waits, if there is one."""
        metrics, self.waiting = self.waiting, {}
        if metrics:
            self.send_row(metrics, self.step)

    def remove(self) -> None:
        """Send the row that waits, and give the logger its method back."""
        self.send()
        if vars(self.logger).get("log_metrics") is self:
            if self.own:
                self.logger.log_metrics = self.send_row
            else:
                del self.logger.log_metrics


def join_rows(loggers: Iterable[Any]) -> list[JoinedRows]:
    """Join the rows of all loggers whose rows are not joined yet."""
    return [JoinedRows(logger) for logger in loggers if not isinstance(logger.log_metrics, JoinedRows)]


def log_row(trainer: Trainer, row: Row, step: int) -> None:
    """Log a row once per logger, together with Lightning's where rows are joined; for rank zero only."""
    for logger in trainer.loggers:
        metrics: dict[str, Any] = dict(row.scalars)
        if is_wandb(logger) and row.histograms:
            import wandb

            for key, values in row.histograms.items():
                metrics[key] = wandb.Histogram(np_histogram=histogram(values))
        method = logger.log_metrics
        (method.wait if isinstance(method, JoinedRows) else method)(metrics, step)
        for key, values in row.histograms.items():
            if is_tensorboard(logger):
                logger.experiment.add_histogram(key, values, step)
            elif is_aim(logger):
                import aim

                name, context = logger.parse_context(key)
                logger.experiment.track(aim.Distribution(values), name, step, context=context)


def histogram(values: Array) -> tuple[Array, Array]:
    """Compute ``np.histogram`` with :func:`bins_for` this number of values, in a fraction of its time.

    Args:
        values: Finite, shape [N].

    Returns:
        Counts [B] and edges [B + 1].

    Example:
        >>> histogram(np.array([0.0, 0.1, 0.5, 1.0]))
        (array([2, 0, 1, 1]), array([0.  , 0.25, 0.5 , 0.75, 1.  ]))
    """
    bins, ordered = bins_for(len(values)), np.sort(values)
    low, high = ordered[0], ordered[-1]
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.arange(bins + 1) * ((high - low) / bins) + low
    edges[-1] = high
    ends = ordered.searchsorted(edges)
    ends[-1] = len(ordered)
    return np.diff(ends), edges


def bins_for(count: int) -> int:
    """Choose the number of bins: twice the root of the count, as more would mostly be empty; at most 64.

    Example:
        >>> [bins_for(count) for count in (1, 16, 100, 5000)]
        [2, 8, 20, 64]
    """
    return min(64, max(1, 2 * math.isqrt(count)))
