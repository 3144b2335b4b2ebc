"""Gal and Ghahramani 2016, section 5.3: the noise's precision tau, chosen by held-out log-likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pl_losses.core.sums import Sums
from pl_losses.core.validation import check_positive
from pl_losses.papers.dropout.uncertainty import fitting

# In units of 1/sigma_y^2: from noise ten times the targets' variance to a millionth of it, 20 a decade.
GRID = tuple(10 ** (exponent / 20) for exponent in range(-20, 121))


class PrecisionSearch(Sums):
    """Mean log-likelihood under each of several precisions tau, and the best of them.

    ``update`` takes samples [T, B] or [T, B, Q] and targets [B] or [B, Q]; ``compute`` returns a dict of
    scalars: ``precision``, the one of the highest ``log_likelihood`` (the first of equals), which is per
    input, jointly over its outputs. It keeps one sum per precision: exact over ranks and uneven batches.

    Args:
        precisions: Values to choose from, in the units of 1/y^2.

    Attributes:
        precisions: May be replaced after a reset, by equally many.

    Raises:
        ValueError: If one is not positive, or there is none.

    Example:
        >>> search = PrecisionSearch([0.5, 1.0, 2.0])
        >>> search.update(torch.zeros(3, 4), torch.tensor([1.0, -1.0, 1.0, -1.0]))
        >>> {name: round(value.item(), 3) for name, value in search.compute().items()}
        {'precision': 1.0, 'log_likelihood': -1.419}
    """

    total: Tensor

    def __init__(self, precisions: Sequence[float] = GRID) -> None:
        super().__init__()
        check_precisions(precisions)
        self.precisions = list(precisions)
        self.add_sum("sums", len(self.precisions))
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, samples: Tensor, target: Tensor) -> None:
        """Add a batch.

        Raises:
            ValueError: If the shapes do not fit.
        """
        samples, target = fitting(samples, target)
        passes, batch, outputs = samples.shape
        squares = (target - samples).square().sum(dim=-1)
        # One precision at a time, to need the memory of one.
        likelihoods = [
            self.exact(torch.logsumexp(-0.5 * tau * squares, dim=0)).sum() for tau in self.precisions
        ]
        constants = [
            batch * (0.5 * outputs * math.log(tau / (2 * math.pi)) - math.log(passes))
            for tau in self.precisions
        ]
        self.increase("sums", torch.stack(likelihoods) + torch.tensor(constants).to(likelihoods[0]))
        self.total += batch

    def compute(self) -> dict[str, Tensor]:
        """Return the best precision; its log-likelihood is NaN before any input."""
        means = self.total_of("sums") / self.total
        best = means.argmax()
        return {"precision": means.new_tensor(self.precisions)[best], "log_likelihood": means[best]}


def check_precisions(precisions: Sequence[float]) -> None:
    """Refuse anything but a choice of precisions.

    Raises:
        ValueError: If one is not positive and finite, or there is none.
    """
    if not precisions:
        raise ValueError("Expected `precision` to hold at least one value to choose from but got none")
    for precision in precisions:
        check_positive("precision", precision, none=True)
