"""LeCun et al. 1998, section VI.C: penalties of segments and their gradients on a CPU, compiled by Numba.

They are those of `recursions.py`, which on small lattices spends most of its time between its operations.
Here a sample is one pass over its penalties, in native code. Only the exponentials over classes are torch's,
which takes many at a time. Second derivatives are left to `recursions.py`.

``potential[j, m]`` is the score of all paths to cut j that have spelled m labels, or of the best one. Without
labels, m is 0. A segment adds ``step`` labels, 1 or 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeAlias

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pl_losses.core.autograd import Context
from pl_losses.core.kernels import over_samples
from pl_losses.papers.gtn.lattices.recursions import CERTAIN, IMPOSSIBLE

Floats: TypeAlias = NDArray[np.float64]  # or of np.float32
Integers: TypeAlias = NDArray[np.int64]
ByTensors = Callable[[Tensor, bool], Tensor]
compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@numba.njit(cache=True, error_model="numpy")
def clamp(penalty: float, low: float, high: float) -> float:
    """Make a penalty finite; NaN stays."""
    return high if penalty > high else low if penalty < low else penalty


@numba.njit(cache=True, error_model="numpy", fastmath={"nnan", "nsz"})
def least(row: Floats, start: float) -> float:
    """Return the smallest number of a row without NaN, or ``start``."""
    for c in range(len(row)):
        start = min(start, row[c])
    return start


@numba.njit(cache=True, error_model="numpy", fastmath={"reassoc"})
def total(row: Floats) -> float:
    """Add up a row in any order."""
    added = row[0]
    for c in range(1, len(row)):
        added += row[c]
    return added  # type: ignore[no-any-return]


@numba.njit(cache=True, error_model="numpy")
def has_nan(row: Floats) -> bool:
    """Look at all numbers without a branch, so that they are read many at a time."""
    found = False
    for c in range(len(row)):
        found |= row[c] != row[c]
    return found


@compiled
def least_of_classes(
    penalties: Floats,
    lengths: Integers,
    reduced: Floats,
    relative: Floats,
    tropical: bool,
    start: int,
    stop: int,
) -> None:
    """Take the least penalty of each segment, [B, N, K, 1], and what the others are above it, negated."""
    number = penalties.dtype.type
    low, high, nan = number(-CERTAIN), number(-IMPOSSIBLE), number(math.nan)
    for b in range(start, stop):
        for j in range(lengths[b]):
            for k in range(min(penalties.shape[2], j + 1)):
                row = penalties[b, j, k]
                smallest = nan if has_nan(row) else clamp(least(row, number(math.inf)), low, high)
                reduced[b, j, k, 0] = smallest
                if not tropical:
                    for c in range(len(row)):
                        relative[b, j, k, c] = smallest - clamp(row[c], low, high)


@compiled
def join_classes(
    relative: Floats, lengths: Integers, reduced: Floats, totals: Floats, start: int, stop: int
) -> None:
    """Make the least penalty that of all classes; ``relative`` are exponentials now."""
    for b in range(start, stop):
        for j in range(lengths[b]):
            for k in range(min(relative.shape[2], j + 1)):
                totals[b, j, k, 0] = total(relative[b, j, k])
                reduced[b, j, k, 0] -= math.log(totals[b, j, k, 0])


@compiled
def share_among_classes(
    penalties: Floats,
    relative: Floats,
    totals: Floats,
    shares: Floats,
    worth: Floats,
    grad: Floats,
    tropical: bool,
    start: int,
    stop: int,
) -> None:
    """Give what each segment has of the paths, times their worth, to all classes or the first best."""
    number = penalties.dtype.type
    low, high = number(-CERTAIN), number(-IMPOSSIBLE)
    for b in range(start, stop):
        for j in range(penalties.shape[1]):
            for k in range(penalties.shape[2]):
                share, row, shared = shares[b, j, k, 0], penalties[b, j, k], grad[b, j, k]
                if share == 0:
                    shared[:] = 0
                elif tropical:
                    shared[:] = 0
                    found, smallest = 0, clamp(row[0], low, high)
                    for c in range(1, len(row)):
                        if clamp(row[c], low, high) < smallest:
                            found, smallest = c, clamp(row[c], low, high)
                    shared[found] = share * worth[b]
                else:
                    share *= worth[b] / totals[b, j, k, 0]
                    for c in range(len(row)):
                        shared[c] = relative[b, j, k, c] * share


@compiled
def give_to_labels(
    shares: Floats, labels: Integers, worth: Floats, grad: Floats, start: int, stop: int
) -> None:
    """Add what each segment has of the paths, times their worth, to the labels that it spells."""
    _, pieces, longest, width = shares.shape
    for b in range(start, stop):
        found, rows = grad[b], shares[b]
        for j in range(pieces):
            for k in range(longest):
                for m in range(width):
                    if rows[j, k, m] != 0:
                        found[j, k, labels[b, m]] += rows[j, k, m] * worth[b]


@numba.njit(cache=True, error_model="numpy")
def sources(j: int, m: int, longest: int, pieces: int, labels: int, step: int) -> tuple[int, int]:
    """Return the range of k whose segments, from (j - k, m) to (j + 1, m + step), can be on a path."""
    if step == 0:
        return 0, min(longest, j + 1)
    missing, left = labels - m - 1, pieces - j - 1
    if missing < 0 or left < missing or left > missing * longest:
        return 0, 0
    return max(0, j - m * longest), min(longest, j - m + 1)


@compiled
def path_penalties(
    penalties: Floats,
    labels: Integers,
    lengths: Integers,
    label_lengths: Integers,
    step: int,
    tropical: bool,
    differentiate: bool,
    shares: Floats,
    result: Floats,
    start: int,
    stop: int,
) -> None:
    """Compute the penalty of all paths, or of the best one, [B], and what each segment has of the paths."""
    number = penalties.dtype.type
    impossible, zero, one = number(IMPOSSIBLE), number(0), number(1)
    low, high = number(-CERTAIN), number(-IMPOSSIBLE)
    _, pieces, longest, _ = penalties.shape
    width = labels.shape[1]
    potential = np.empty((pieces + 1, width + 1), penalties.dtype)
    worth = np.empty((pieces + 1, width + 1), penalties.dtype)
    # Of a segment in its node: the part of the paths into the node that come by this segment.
    weights = np.empty((pieces, width, longest), penalties.dtype)
    for b in range(start, stop):
        rows = penalties[b]
        potential[:] = impossible
        potential[0, 0] = zero
        for j in range(lengths[b]):
            for m in range(width):
                first, end = sources(j, m, longest, lengths[b], label_lengths[b], step)
                if first >= end:
                    continue
                c, sums = labels[b, m], weights[j, m]
                best = first
                for k in range(first, end):
                    sums[k] = potential[j - k, m] - clamp(rows[j, k, c], low, high)
                    # NaN comes first, so that it stays.
                    if sums[k] > sums[best] or sums[k] != sums[k]:
                        best = k
                most, added = sums[best], zero
                if tropical:
                    potential[j + 1, m + step] = most
                    for k in range(first, end):
                        sums[k] = one if k == best else zero
                    continue
                for k in range(first, end):
                    sums[k] = math.exp(sums[k] - most)
                    added += sums[k]
                potential[j + 1, m + step] = most + math.log(added)
                for k in range(first, end):
                    sums[k] /= added
        found = potential[lengths[b], label_lengths[b] * step]
        if found <= impossible / 2:
            result[b] = math.inf
        elif found >= -low / 2:
            result[b] = -math.inf
        else:
            result[b] = -found
        if not differentiate or math.isinf(result[b]):
            continue
        # From the end back to the start: how much the result grows with each potential.
        worth[:] = zero
        worth[lengths[b], label_lengths[b] * step] = one
        for j in range(lengths[b] - 1, -1, -1):
            for m in range(width):
                first, end = sources(j, m, longest, lengths[b], label_lengths[b], step)
                for k in range(first, end):
                    share = weights[j, m, k] * worth[j + 1, m + step]
                    worth[j - k, m] += share
                    shares[b, j, k, m] = share


class _PenaltyContext(Context, Protocol):
    by_tensors: ByTensors
    tropical: bool
    labels: Integers | None


class CompiledPenalty(torch.autograd.Function):
    """The penalty of all paths of a lattice, or of the best one, as a function of penalties [B, N, K, C]."""

    @staticmethod
    def forward(
        ctx: _PenaltyContext,
        penalties: Tensor,
        lengths: Tensor | None,
        targets: Tensor | None,
        target_lengths: Tensor | None,
        tropical: bool,
        by_tensors: ByTensors,
    ) -> Tensor:
        """Return it, [B], of the paths that spell ``targets`` [B, L], or of all; so does ``by_tensors``.

        What each segment has of the paths is computed at once, while the sample's potentials are at hand.
        """
        samples, pieces, longest, _ = penalties.shape
        dense = reduced = penalties.detach().contiguous()
        relative = totals = dense.new_empty(0, 0, 0, 0)
        long = _numbers(lengths, samples, pieces)
        if targets is not None:
            labels, spelled = targets.numpy(), _numbers(target_lengths, samples, targets.shape[1])
        else:
            spelled = np.zeros(samples, np.int64)
            labels = spelled[:, None]
            reduced = dense.new_empty(samples, pieces, longest, 1)
            totals = torch.empty_like(reduced)
            if not tropical:
                relative = torch.zeros_like(dense)
            over_samples(least_of_classes, dense, long, reduced, relative, tropical)
            if not tropical:
                relative.exp_()
                over_samples(join_classes, relative, long, reduced, totals)
        result = dense.new_empty(samples)
        shares = dense.new_zeros(samples, pieces, longest, labels.shape[1])
        paths = (labels, long, spelled, int(targets is not None), tropical, ctx.needs_input_grad[0])
        over_samples(path_penalties, reduced, *paths, shares, result)
        ctx.by_tensors, ctx.tropical, ctx.labels = by_tensors, tropical, None if targets is None else labels
        ctx.save_for_backward(penalties, relative, totals, shares)
        return result

    @staticmethod
    def backward(ctx: _PenaltyContext, worth: Tensor) -> tuple[Tensor | None, ...]:
        """Give each segment the part of the paths that take it; none where the penalty is infinite."""
        penalties, relative, totals, shares = ctx.saved_tensors
        if torch.is_grad_enabled():
            again = ctx.by_tensors(penalties, ctx.tropical)
            return torch.autograd.grad(again, penalties, worth, create_graph=True)[0], *(5 * [None])
        grad = torch.zeros_like(penalties, memory_format=torch.contiguous_format)
        if ctx.labels is None:
            reduced = (penalties.detach().contiguous(), relative, totals)
            over_samples(share_among_classes, *reduced, shares, worth.contiguous(), grad, ctx.tropical)
        else:
            over_samples(give_to_labels, shares, ctx.labels, worth.contiguous(), grad)
        return grad, *(5 * [None])


def _numbers(counts: Tensor | None, samples: int, default: int) -> Integers:
    return np.full(samples, default) if counts is None else counts.numpy()
