"""Sums over a data set, to which float32 alone would stop adding small values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pl_losses.core.compat import of_lightning
from pl_losses.core.validation import typed


class Sums(of_lightning.MovedMetric):
    """Base of metrics whose states are sums: float64 where the device has it, compensated everywhere.

    A float32 sum of a million numbers near 1 stops growing by the smaller ones. Each sum has what its
    rounding has lost beside it (Knuth's two-sum), so that it is exact on a device without float64, too.
    """

    full_state_update = False

    def add_sum(self, name: str, *shape: int) -> None:
        """Register a sum of this shape, by default a scalar."""
        zeros = torch.zeros(2, *shape, dtype=torch.float64)  # the sum, and what it has lost
        self.add_state(name, zeros, dist_reduce_fx="sum")

    def increase(self, name: str, values: Tensor | float) -> None:
        """Add values of the sum's shape."""
        state = getattr(self, name)
        before = state[0].clone()
        added = values.to(before) if isinstance(values, Tensor) else torch.full_like(before, values)
        after = before + added
        grown = after - before
        state[1] += (before - (after - grown)) + (added - grown)
        state[0] = after

    def total_of(self, name: str) -> Tensor:
        """Return the sum so far; it is not finite if a value was not."""
        total, lost = getattr(self, name)
        return total + lost.nan_to_num(posinf=0.0, neginf=0.0)  # type: ignore[no-any-return]

    def exact(self, values: Tensor) -> Tensor:
        """Convert values to the type of the sums, to add them up within a batch."""
        return values.to(self._sum_dtype)

    @property
    def _sum_dtype(self) -> torch.dtype:
        states = (state for state in self.metric_state.values() if isinstance(state, Tensor))
        return next(state.dtype for state in states if state.is_floating_point())

    def moved(self, state: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Move a sum to another device; it keeps its type if the model becomes bfloat16."""
        device = fn(torch.zeros((), dtype=torch.long, device=state.device)).device
        try:
            return state.to(device)
        except TypeError:  # which is what MPS has for float64
            return state.float().to(device)


class Sum(Sums):
    """A sum that, unlike ``torchmetrics.SumMetric``, does not look for NaN, which waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("total")

    @typed
    def update(self, value: Tensor | float) -> None:
        """Add a scalar."""
        self.increase("total", value)

    def compute(self) -> Tensor:
        """Return the sum."""
        return self.total_of("total")


class Mean(Sums):
    """Mean over a data set, whatever the precision of training; values that are not finite count, too.

    Example:
        >>> mean = Mean()
        >>> mean.update(torch.tensor(1.0), 3)
        >>> mean.update(torch.tensor([4.0, 8.0]))
        >>> mean.compute()
        tensor(3., dtype=torch.float64)
    """

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("total")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @typed
    def update(self, values: Tensor, count: int | Tensor = 1) -> None:
        """Add values of any shape, each the mean of ``count`` samples."""
        self.increase("total", (self.exact(values.detach()) * count).sum())
        self.count += values.numel() * count

    def compute(self) -> Tensor:
        """Return the mean, a scalar; NaN before any sample."""
        return self.total_of("total") / self.count
