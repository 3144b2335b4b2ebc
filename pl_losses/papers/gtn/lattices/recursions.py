"""LeCun et al. 1998, section VI.C: the recurrences of the forward and Viterbi penalty, and their gradients.

Everything is computed in scores, which are negative penalties. The potential of a node n is

    a_n = logsumexp over arcs i into n of (score_i + a_source(i)),   a_start = 0,

or the maximum instead of the logsumexp. Its derivative by score_i is a linear recurrence in the same graph,
with the weights w_i = exp(score_i + a_source(i) - a_destination(i)): the probability that a path into n comes
by arc i. :class:`LinearRecurrence` solves such a one, and its own derivative is one of its kind, too.
Derivatives of every order are therefore analytic, and none stores more than the potentials.

Large numbers stand for infinity: no sum or difference of them is NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from pl_losses.core.autograd import Context

IMPOSSIBLE = -1e30
CERTAIN = 1e25  # so far below that nothing certain makes up for something impossible


def penalties_of(potentials: Tensor) -> Tensor:
    """Negate potentials; infinite, without a gradient, if all paths are impossible or one is certain."""
    penalties: Tensor = _Penalties.apply(potentials)
    return penalties


class _Penalties(torch.autograd.Function):
    """One function instead of several operations, which would be small and many."""

    @staticmethod
    def forward(ctx: Context, potentials: Tensor) -> Tensor:
        """Negate the potentials."""
        impossible, certain = potentials <= IMPOSSIBLE / 2, potentials >= CERTAIN / 2
        ctx.save_for_backward(impossible | certain)
        return potentials.neg().masked_fill_(impossible, float("inf")).masked_fill_(certain, -float("inf"))

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:
        """Negate the gradient."""
        (infinite,) = ctx.saved_tensors
        return (-grad).masked_fill(infinite, 0.0)


def first_equal(values: Tensor, extreme: Tensor, dim: int) -> Tensor:
    """Mark the first entry along ``dim`` that equals ``extreme`` (much faster than argmax)."""
    shape = [-1 if axis == dim % values.ndim else 1 for axis in range(values.ndim)]
    count = values.shape[dim]
    order = torch.arange(count, dtype=torch.float32, device=values.device).view(shape)
    return order == order.where(values == extreme, count).amin(dim, keepdim=True)


class Recursion(ABC):
    """The recurrences in one kind of graph; the layout of potentials and scores depends on the kind."""

    @abstractmethod
    def potentials(self, scores: Tensor, tropical: bool) -> Tensor:
        """Compute the potentials of all nodes, without a gradient."""

    @abstractmethod
    def from_source(self, values: Tensor) -> Tensor:
        """Return for each arc the value of the node that it leaves, differentiable; a copy."""

    @abstractmethod
    def at_destination(self, values: Tensor) -> Tensor:
        """Return for each arc the value of the node that it enters, differentiable."""

    @abstractmethod
    def first_best(self, sums: Tensor) -> Tensor:
        """Return 1 for the arc with the largest of ``sums`` into each node, the first of equals, else 0."""

    @abstractmethod
    def solve(self, weights: Tensor, inputs: Tensor, backward: bool) -> Tensor:
        """Solve x_n = input_n + sum over arcs i into n of w_i x_source(i), without a gradient.

        With ``backward``, over the arcs out of n, and x_destination(i).
        """

    def log_weights(self, scores: Tensor, potentials: Tensor) -> Tensor:
        """Compute log w of each arc, at least ``IMPOSSIBLE`` in size if its node cannot be reached."""
        return self.from_source(potentials) + scores - self.at_destination(potentials)

    def weights(self, scores: Tensor, potentials: Tensor, tropical: bool) -> Tensor:
        """Compute the weight w of each arc; weights sum to 1 over the arcs into a node."""
        if tropical:
            return self.first_best((self.from_source(potentials) + scores).detach())
        if torch.is_grad_enabled():
            return self.log_weights(scores, potentials).exp()
        return self.from_source(potentials).add_(scores).sub_(self.at_destination(potentials)).exp_()


class _ScoresContext(Context, Protocol):
    recursion: Recursion
    tropical: bool


class ForwardScores(torch.autograd.Function):
    """Potentials of all nodes as a function of the arcs' scores."""

    @staticmethod
    def forward(ctx: _ScoresContext, recursion: Recursion, scores: Tensor, tropical: bool) -> Tensor:
        """Run the recurrence."""
        potentials = recursion.potentials(scores, tropical)
        ctx.recursion, ctx.tropical = recursion, tropical
        ctx.save_for_backward(scores, potentials)
        return potentials

    @staticmethod
    def backward(ctx: _ScoresContext, grad: Tensor) -> tuple[None, Tensor, None]:
        """Return the expected gradient: each arc's weight times the value of its destination."""
        scores, potentials = ctx.saved_tensors
        weights = ctx.recursion.weights(scores, potentials, ctx.tropical)
        # Skip the function's overhead if nothing is recorded.
        # From the ends back to the start: how much the result grows with each node's potential.
        solve = (
            partial(LinearRecurrence.apply, ctx.recursion) if torch.is_grad_enabled() else ctx.recursion.solve
        )
        worth = solve(weights, grad, True)
        return None, weights * ctx.recursion.at_destination(worth), None


class _RecurrenceContext(Context, Protocol):
    recursion: Recursion
    is_backward: bool


class LinearRecurrence(torch.autograd.Function):
    """The linear recurrence, see :meth:`Recursion.solve`."""

    @staticmethod
    def forward(
        ctx: _RecurrenceContext, recursion: Recursion, weights: Tensor, inputs: Tensor, backward: bool
    ) -> Tensor:
        """Run the recurrence."""
        solution = recursion.solve(weights, inputs, backward)
        ctx.recursion, ctx.is_backward = recursion, backward
        ctx.save_for_backward(weights, solution)
        return solution

    @staticmethod
    def backward(ctx: _RecurrenceContext, grad: Tensor) -> tuple[None, Tensor, Tensor, None]:
        """Solve the same recurrence in the other direction."""
        weights, solution = ctx.saved_tensors
        adjoint = LinearRecurrence.apply(ctx.recursion, weights, grad, not ctx.is_backward)
        before, after = (adjoint, solution) if ctx.is_backward else (solution, adjoint)
        return None, ctx.recursion.from_source(before) * ctx.recursion.at_destination(after), adjoint, None


class SegmentRecursion(Recursion):
    """B rows of N pieces, segments of at most K of them, and, if ``labels``, L labels to be spelled by each.

    Scores are [N, K, L * B]; the segment of k + 1 pieces that ends with piece j is at [j, k]. Without labels,
    L is 1. Potentials have N + K rows: row N - i is cut i, from right to left, so that the K sources of a
    segment that ends with piece j are the rows from N - j on; the rows below row N can never be reached.
    Their columns are those of the scores: m B + b is sample b with m labels spelled. With labels there are B
    columns more, for all L labels, and a segment leads B columns on.
    """

    def __init__(self, pieces: int, longest: int, samples: int, labels: int | None = None) -> None:
        self.pieces, self.longest, self.samples = pieces, longest, samples
        self.labels, self.shift = (1, 0) if labels is None else (labels, samples)

    def _windows(self, values: Tensor) -> Tensor:
        """View rows r to r + K - 1 for each r from 0 to N, without the last columns if there is a shift."""
        columns = values.shape[1]
        # Windows overlap on purpose: what one step writes into its row, later steps read in their windows.
        shape = (self.pieces + 1, self.longest, columns - self.shift)
        return values.as_strided(shape, (columns, columns, 1), values.storage_offset())

    def _columns(self, values: Tensor) -> Tensor:
        return values[:, self.shift :]

    def potentials(self, scores: Tensor, tropical: bool) -> Tensor:
        """Compute the potentials [N + K, L * B], or with B columns more."""
        columns = scores.shape[2] + self.shift
        values = scores.new_full((self.pieces + self.longest, columns), IMPOSSIBLE)
        values[self.pieces, : self.samples] = 0.0  # The start: cut 0, no label spelled.
        sources = self._windows(values).unbind()
        targets = self._columns(values).unbind()
        sums = scores.new_empty(scores.shape[1:])
        reduce = _maximum if tropical else _Logsumexp(sums)
        for j, score in enumerate(scores.unbind()):
            # The K sources of segments that end with piece j are one window; all samples go at once.
            row = self.pieces - j
            torch.add(sources[row], score, out=sums)
            reduce(sums, targets[row - 1])
        return values

    def from_source(self, values: Tensor) -> Tensor:
        """Return the values of the segments' sources, [N, K, L * B]."""
        if torch.is_grad_enabled() and values.requires_grad:
            columns = values.shape[1] - self.shift
            return values[:, :columns].unfold(0, self.longest, 1).transpose(1, 2)[1:].flip(0)
        return self._windows(values.contiguous())[1:].flip(0)

    def at_destination(self, values: Tensor) -> Tensor:
        """Return the values of the segments' destinations, [N, 1, L * B]."""
        return values[: self.pieces, self.shift :].flip(0).unsqueeze(1)

    def first_best(self, sums: Tensor) -> Tensor:
        """Mark the best segment, [N, K, L * B]; of equals the shortest."""
        hit = sums == sums.amax(1, keepdim=True)
        columns = hit.unbind(1)
        seen = columns[0].clone()
        for column in columns[1:]:
            column.logical_and_(~seen)
            seen.logical_or_(column)
        return hit.to(sums.dtype)

    def solve(self, weights: Tensor, inputs: Tensor, backward: bool) -> Tensor:
        """Solve the recurrence, [N + K, L * B], or with B columns more."""
        values = inputs.clone(memory_format=torch.contiguous_format)
        sources = self._windows(values).unbind()
        targets = self._columns(values).unbind()
        steps = list(enumerate(weights.unbind()))
        if backward:
            for j, weight in reversed(steps):
                row = self.pieces - j
                sources[row].addcmul_(weight, targets[row - 1])
            return values
        for j, weight in steps:
            row = self.pieces - j
            targets[row - 1].add_((weight * sources[row]).sum(0))
        return values


def _maximum(sums: Tensor, out: Tensor) -> None:
    torch.amax(sums, 0, out=out)


class _Logsumexp:
    """logsumexp over the rows of one buffer, in halves: few operations, each on many numbers."""

    def __init__(self, buffer: Tensor) -> None:
        # Each pair adds the later half of the rows that are left to the earlier half; the last one ends it.
        self.pairs = []
        rows = len(buffer)
        while rows > 1:
            half = rows // 2
            self.pairs.append((buffer[:half], buffer[rows - half : rows]))
            rows -= half
        self.last = (buffer[0], buffer[1]) if self.pairs else None

    def __call__(self, sums: Tensor, out: Tensor) -> None:
        if self.last is None:
            out.copy_(sums[0])
            return
        for first, second in self.pairs[:-1]:
            torch.logaddexp(first, second, out=first)
        torch.logaddexp(*self.last, out=out)
