"""Metrics with their axes, and the words that sum up a classifier's test."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isnan, nan
from typing import Any, Literal, Protocol, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_max, dim_zero_min, dim_zero_sum

from pl_losses.core.best_values import BestValues
from pl_losses.core.compat import of_lightning
from pl_losses.core.kinds import is_wandb
from pl_losses.core.validation import typed

R = TypeVar("R", covariant=True)

# A metric's states by name: tensors; of a list, the number of its rows.
States = dict[str, Any]

X_AXIS = "trainer/global_step"


def define_metrics(trainer: Trainer, best: dict[str, Literal["min", "max"]]) -> None:
    """Define each key's x axis where the logger can (W&B), and have the best value of a validation kept.

    W&B's summary has the last value of each key: an aggregate in ``define_metric`` would make it an object,
    which run tables and bars do not show.

    Args:
        trainer: Its loggers are told, on rank zero, and its :class:`BestValues`.
        best: Logged key to "min" or "max".
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, BestValues):
            callback.modes |= best
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if is_wandb(logger):
            for key in best:
                logger.experiment.define_metric(key, step_metric=X_AXIS)


def name_class(trainer: Trainer, module: LightningModule) -> None:
    """Tell W&B the class of a module, where the command line has not written the whole config.

    Pages of runs are titled by it, and show the panels of its paper. Monitors and reports do so at the end,
    for modules of any kind: a ``model`` that the user has put into W&B's config by then stays.
    """
    cls = type(module)
    for logger in trainer.loggers:
        if trainer.is_global_zero and is_wandb(logger):
            known = logger.experiment.config
            if "config" not in known and "model" not in known:
                known["model"] = {"class_path": f"{cls.__module__}.{cls.__qualname__}"}


class Computes(Protocol[R]):
    """A metric, as far as its result goes."""

    def compute(self) -> R:
        """Compute the metric."""


class ListMetric(Metric):
    """Base of metrics that keep rows in lists; a rank without rows takes part in the collective, too."""

    def add_rows(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        """Add a state, a list of tensors [B, *shape]."""
        self.add_state(name, [], dist_reduce_fx="cat")
        self._rows[name] = torch.zeros(0, *shape, dtype=dtype)

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, Tensor] = {}

    def keep(self, **rows: Tensor) -> None:
        """Keep rows [B, ...] by the names of their states, in these states' types."""
        for name, own in rows.items():
            getattr(self, name).append(own.to(self._rows[name].dtype))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all ranks."""
        for name, none in self._rows.items():
            if not getattr(self, name):
                setattr(self, name, [none.to(self.device)])
        super().sync(*args, **kwargs)

    def rows(self, name: str) -> Tensor:
        """Return all rows of a state."""
        found: list[Tensor] | Tensor = getattr(self, name)
        return found if isinstance(found, Tensor) else torch.cat([self._rows[name].to(self.device), *found])


def states_of(metric: Metric) -> States:
    """Copy a metric's current states for :func:`take_out`: tensors, or the number of rows of a list."""
    states: States = metric.metric_state
    return {key: len(one) if isinstance(one, list) else one.clone() for key, one in states.items()}


def take_out(metric: Metric, before: States, after: States) -> None:
    """Remove from a metric's sums and rows what was added between two of its :func:`states_of`.

    Raises:
        ValueError: If a state is of another kind.

    >>> rate = ErrorRate()
    >>> states = [states_of(rate)]
    >>> for predicted in (1, 2):
    ...     rate.update(torch.tensor([predicted]), torch.tensor([2]))
    ...     states.append(states_of(rate))
    >>> take_out(rate, states[0], states[1])
    >>> rate.wrong, rate.total
    (tensor(0), tensor(1))
    """
    states: States = metric.metric_state
    for key, state in states.items():
        if isinstance(state, list):
            setattr(metric, key, state[: before[key]] + state[after[key] :])
        elif (reduction := of_lightning.reduction_of(metric, key)) is dim_zero_sum:
            setattr(metric, key, state - (after[key] - before[key]))
        elif reduction not in (dim_zero_max, dim_zero_min) and not torch.equal(before[key], after[key]):
            # A largest value is the same on all ranks.
            raise ValueError(
                f"Expected states of {type(metric).__name__} that are sums or lists but got `{key}`, as some"
                " ranks were given the same samples of one of several dataloaders: share these samples out,"
                " or evaluate with one dataloader at a time"
            )


def take_out_repeated(
    metrics: dict[str, Metric], begun: Sequence[tuple[int, dict[str, States]]], counts: Callable[[int], bool]
) -> None:
    """Remove from metrics what dataloaders added whose samples do not count on this rank.

    Args:
        metrics: By name.
        begun: The dataloaders in their order, and the metrics' :func:`states_of` when each began, by name.
        counts: Whether what a dataloader gave counts on this rank.
    """
    end = {name: states_of(metric) for name, metric in metrics.items()}
    for dataloader_idx, start in reversed(begun):
        if not counts(dataloader_idx):
            for name, metric in metrics.items():
                take_out(metric, start[name], end[name])
        end = start


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

    @typed
    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Count a batch: predicted and right classes, shape [B] each.

        Raises:
            ValueError: If the shapes differ.
        """
        if predicted.shape != target.shape:
            raise ValueError(
                f"Expected `target` of the shape of `predicted`, {list(predicted.shape)}, but got"
                f" {list(target.shape)}"
            )
        self.wrong += (predicted != target).sum()
        self.total += target.numel()

    def compute(self) -> Tensor:
        """Return the share, a scalar in [0, 1]; NaN before any sample."""
        self.counted = (int(self.wrong), int(self.total))
        return self.wrong / self.total


def computed(metric: Computes[R]) -> R:
    """Compute a metric over all ranks, also if this rank has added nothing to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*was called before the ``update`` method", UserWarning)
        return metric.compute()


def headline_text(results: Mapping[str, float], names: Iterable[str]) -> str:
    """Describe the first of some metrics that exists: an error in percent, with its interval if there is one.

    Args:
        results: Metrics by their names, without the stage.
        names: Which of them to describe, the first one that exists.

    >>> found = {"error": 0.0095, "error_low": 0.0077, "error_high": 0.0116, "loss": 3.0}
    >>> headline_text(found, ["error", "loss"])
    'error: 0.95 % (95 % interval 0.77 to 1.16 %)'
    >>> headline_text({"loss": 101.34567}, ["error", "loss"])
    'loss: 101.3'
    """
    name = next((name for name in names if not isnan(results.get(name, nan))), "")
    if name != "error":
        return f"{name}: {results[name]:.4g}" if name else ""
    error, low, high = (100 * results.get(f"error{end}", nan) for end in ("", "_low", "_high"))
    interval = "" if isnan(low) else f" (95 % interval {low:.2f} to {high:.2f} %)"
    return f"error: {error:.2f} %{interval}"


def binomial_interval(wrong: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Compute the exact (Clopper-Pearson) confidence interval of a rate.

    Args:
        wrong: Number of errors.
        total: Number of trials.
        level: Confidence level.

    Returns:
        Lower and upper end, in [0, 1]; 0 and 1 if ``total`` is 0.

    Example:
        >>> [round(100 * end, 2) for end in binomial_interval(95, 10_000)]
        [0.77, 1.16]
    """
    from scipy.stats import binomtest

    if not total:
        return 0.0, 1.0
    low, high = binomtest(wrong, total).proportion_ci(level, method="exact")
    return float(low), float(high)
