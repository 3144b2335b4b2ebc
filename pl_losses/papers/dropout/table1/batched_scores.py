"""Gal and Ghahramani 2016, section 5.2: mean and log-likelihood of stacked networks over T passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pl_losses.papers.dropout.table1.batched_mlp import _TEST_MASKS, BatchedMLP, SparseMaskSampler, Workspace

_ROWS = 256  # Rows of a step; another value, or another _HELD, would change the results of a seed.
_HELD = 256  # Passes that are held in memory at once.


class Scores(NamedTuple):
    """The results of T passes for each row, in the units of the given targets.

    Attributes:
        mean: Mean of the passes, float64 [M, n].
        log_likelihood: log 1/T sum_t N(y; y_t, 1/tau) for K precisions, float64 [K, M, n].
    """

    mean: Tensor
    log_likelihood: Tensor


def mc_scores(
    network: BatchedMLP,
    inputs: Tensor,
    targets: Tensor,
    *,
    precision: Tensor,
    samples: int,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Compute predictive mean and log-likelihood over T passes with dropout, one pass after another.

    The log-likelihood is a running log-sum-exp, so that a large precision does not make it -inf. At most 256
    x 256 outputs per member are held.

    Args:
        network: The members.
        inputs: [M, n, Q + 1] with ones in the last column, as ``Standardised.normalised`` gives them.
        targets: [M, n].
        precision: tau, [K, M], in the units of 1 / targets^2.
        samples: Number of passes T.
        progress: Called repeatedly with rows times passes times members.
    """
    members, rows = network.members, targets.shape[1]
    size = min(rows, _ROWS)
    at_once = max(1, _ROWS // size)  # Passes per step.
    passes, masks = (
        Workspace(network, size * at_once),
        iter(SparseMaskSampler(network, size * at_once, _TEST_MASKS)),
    )
    results = []
    for start in range(0, rows, size):
        # The last block starts earlier, so that all are equally large.
        begin = min(start, rows - size)
        x, y = inputs[:, None, begin : begin + size], targets[:, None, begin : begin + size]
        running = _Running(precision, members, size)
        left = samples
        while left:
            count = min(left, _HELD)
            outputs = []
            for _ in range(math.ceil(count / at_once)):
                passes.inputs.view(members, at_once, size, -1)[:] = x
                outputs.append(passes.forward(next(masks)).view(members, at_once, size))
            running.add(torch.cat(outputs, dim=1)[:, :count], y)
            left -= count
            if progress is not None:
                progress(members * size * count)
        results.append([part[..., start - begin :] for part in running.scores(samples)])
    mean, log_likelihood = (torch.cat(parts, dim=-1) for parts in zip(*results, strict=True))
    return Scores(mean, log_likelihood)


class _Running:
    """Sums over passes: of the outputs, and of exp(-tau / 2 (e^2 - smallest e^2 so far))."""

    def __init__(self, precision: Tensor, members: int, rows: int) -> None:
        self.precision = precision.double()[..., None]
        self.outputs = torch.zeros(members, rows, dtype=torch.float64)
        self.least = torch.full((members, rows), torch.inf, dtype=torch.float64)
        self.sums = torch.zeros(len(precision), members, rows, dtype=torch.float64)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add outputs [M, t, n] for targets [M, 1, n]."""
        self.outputs += outputs.sum(dim=1, dtype=torch.float64)
        squares = (outputs - targets).square_()
        least = torch.minimum(self.least, squares.amin(dim=1).double())
        # Before the first pass the sum is 0, the difference infinite.
        self.sums *= (-0.5 * self.precision * (self.least - least)).exp()
        self.least = least
        squares -= least[:, None].to(squares.dtype)
        for sums, half in zip(self.sums, (-0.5 * self.precision).to(squares.dtype), strict=True):
            sums += (squares * half[:, None]).exp_().sum(dim=1)

    def scores(self, samples: int) -> tuple[Tensor, Tensor]:
        constant = 0.5 * (self.precision / (2 * math.pi)).log() - math.log(samples)
        return self.outputs / samples, self.sums.log() - 0.5 * self.precision * self.least + constant
