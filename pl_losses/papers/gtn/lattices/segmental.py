"""LeCun et al. 1998, section VI.C: the base of lattices of segments with and without a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pl_losses.core.kernels import is_plain, kernels
from pl_losses.core.validation import typed
from pl_losses.papers.gtn.lattices.arcs import ArcLattice
from pl_losses.papers.gtn.lattices.paths import NO_PATH, Path, SegmentPosteriors
from pl_losses.papers.gtn.lattices.recursions import (
    ForwardScores,
    LinearRecurrence,
    SegmentRecursion,
    penalties_of,
)
from pl_losses.papers.gtn.lattices.validation import numbers


class Posteriors(NamedTuple):
    """Probabilities that a path takes an arc [N, K, L * B] or visits a node, in a recursion's layout."""

    arcs: Tensor
    nodes: Tensor
    log_weights: Tensor


@lru_cache(maxsize=64)
def _before_start(pieces: int, longest: int, device: torch.device) -> Tensor:
    """Mark segments of k + 1 pieces that end with piece j and begin before the first, [N, K, 1]."""
    with torch.inference_mode(False):
        piece = torch.arange(pieces, device=device)
        return (torch.arange(longest, device=device) > piece[:, None])[:, :, None]


def outside(pieces: int, longest: int, lengths: Tensor | None, device: torch.device) -> Tensor:
    """Mark segments that leave the range of pieces: [N, K, 1], or [N, K, B] with lengths of each sample."""
    ignored = _before_start(pieces, longest, device)
    if lengths is None:
        return ignored
    return ignored | (torch.arange(pieces, device=device)[:, None, None] >= lengths)


class DenseLattice(ABC):
    """A lattice of segments of at most K pieces, all samples of the batch in one recurrence."""

    penalties: Tensor

    def __init__(self, recursion: SegmentRecursion, samples: int, device: torch.device) -> None:
        self.recursion, self.samples, self.device = recursion, samples, device

    @property
    @abstractmethod
    def _whole(self) -> bool:
        """Whether all samples have all N pieces, and all L labels."""

    @property
    @abstractmethod
    def _counts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the numbers of pieces, the targets if there are any, and their lengths."""

    @abstractmethod
    def _scores(self, tropical: bool) -> Tensor:
        """Compute the scores of the segments, [N, K, L * B]."""

    @abstractmethod
    def _ends(self) -> tuple[Tensor, Tensor]:
        """Return row and column of each sample's final node among the potentials, [B] each."""

    @abstractmethod
    def _label(self, sample: Tensor, piece: Tensor, longer: Tensor, spelled: Tensor) -> Tensor:
        """Return the best label of each of some segments."""

    @abstractmethod
    def to_arcs(self) -> ArcLattice:
        """Return the same paths as a general graph."""

    @abstractmethod
    def posteriors(self) -> SegmentPosteriors:
        """Return the probabilities of segments and cuts."""

    def _cuts_left(self, lengths: Tensor | None) -> Tensor:
        """Return the row of each sample's last cut among the potentials."""
        if lengths is None:
            return torch.zeros(self.samples, dtype=torch.long, device=self.device)
        return self.recursion.pieces - lengths

    @property
    def feasible(self) -> Tensor:
        """Whether a path exists, bool, shape [B]."""
        with torch.no_grad():
            return self.viterbi_penalty() < float("inf")

    def forward_penalty(self) -> Tensor:
        r"""Return :math:`-\log \sum_\text{paths} e^{-\text{penalty}}`, [B]; ``inf`` without gradient if none.

        Its gradient is the posterior of each segment.
        """
        return self._penalty(tropical=False)

    def viterbi_penalty(self) -> Tensor:
        """Return the smallest penalty of a path, shape [B]; ``inf`` without gradient if there is none.

        Its gradient is 1 for the segments of the best path, 0 for others.
        """
        return self._penalty(tropical=True)

    def _penalty(self, tropical: bool) -> Tensor:
        compiled = kernels("pl_losses.papers.gtn.lattices.compiled") if is_plain(self.penalties) else None
        if compiled is None:
            return self._penalty_by_tensors(tropical)
        penalty: Tensor = compiled.CompiledPenalty.apply(self.penalties, *self._counts, tropical, self._again)
        return penalty

    def _again(self, penalties: Tensor, tropical: bool) -> Tensor:
        """Compute the penalty of the same paths by operations that can be differentiated twice."""
        other = copy(self)
        other.penalties = penalties
        return other._penalty_by_tensors(tropical)

    def _penalty_by_tensors(self, tropical: bool) -> Tensor:
        potentials = ForwardScores.apply(self.recursion, self._scores(tropical), tropical)
        if self._whole:  # a slice is cheaper than indices
            return penalties_of(potentials[0, potentials.shape[1] - self.samples :])
        return penalties_of(potentials[self._ends()])

    def _flow(self, tropical: bool) -> Posteriors:
        """Compute the probabilities of arcs and nodes; of the best path alone if ``tropical``."""
        scores = self._scores(tropical)
        potentials = ForwardScores.apply(self.recursion, scores, tropical)
        weights = self.recursion.weights(scores, potentials, tropical)
        ends = self._ends()
        possible = penalties_of(potentials[ends].detach()) < float("inf")
        inputs = torch.zeros_like(potentials).index_put_(ends, possible.to(potentials.dtype))
        nodes = LinearRecurrence.apply(self.recursion, weights, inputs, True)
        log_weights = self.recursion.log_weights(scores, potentials)
        return Posteriors(weights * self.recursion.at_destination(nodes), nodes, log_weights)

    def _by_label(self, arcs: Tensor) -> Tensor:
        """Reshape from the layout of the scores to [N, K, L, B]."""
        return arcs.reshape(
            self.recursion.pieces, self.recursion.longest, self.recursion.labels, self.samples
        )

    def _cut_posteriors(self, nodes: Tensor) -> Tensor:
        """Add up from the layout of the potentials to [B, N + 1]."""
        spelled = self.recursion.labels + (self.recursion.shift > 0)
        cuts = nodes[: self.recursion.pieces + 1].flip(0)
        return cuts.reshape(len(cuts), spelled, self.samples).sum(1).T

    def best_path(self) -> list[Path]:
        """Return the path of smallest penalty for each sample; an empty one of penalty ``inf`` if none."""
        with torch.no_grad():
            penalties = numbers(self.viterbi_penalty()).tolist()
            taken = self._flow(tropical=True).arcs > 0.5
            sample, piece, longer, spelled = self._by_label(taken).permute(3, 0, 1, 2).nonzero().unbind(1)
            label = self._label(sample, piece, longer, spelled)
        labels: list[list[int]] = [[] for _ in penalties]
        cuts: list[list[int]] = [[0] for _ in penalties]
        for b, end, c in zip(sample.tolist(), (piece + 1).tolist(), label.tolist(), strict=True):
            labels[b].append(c)
            cuts[b].append(end)
        return [
            Path(penalty, tuple(labels[b]), tuple(cuts[b])) if penalty < float("inf") else NO_PATH
            for b, penalty in enumerate(penalties)
        ]

    @typed
    def n_best(self, n: int) -> list[list[Path]]:
        """Return the ``n`` paths of smallest penalty in ascending order, or fewer if there are fewer.

        Paths differ in a label or in a cut: two of them may spell the same string.
        """
        return self.to_arcs().n_best(n)

    @typed
    def sample(self, n: int, generator: torch.Generator | None = None) -> list[list[Path]]:
        """Draw ``n`` independent paths with P(path) proportional to exp(-penalty); none where none exists."""
        return self.to_arcs().sample(n, generator)
