"""LeCun et al. 1998, section VI.A: the path selector, which keeps the paths that spell a given string."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pl_losses.core.autograd import Context
from pl_losses.papers.gtn.lattices.arcs import ArcLattice
from pl_losses.papers.gtn.lattices.paths import SegmentPosteriors
from pl_losses.papers.gtn.lattices.recursions import CERTAIN, IMPOSSIBLE, SegmentRecursion
from pl_losses.papers.gtn.lattices.segmental import DenseLattice


class TargetLattice(DenseLattice):
    """The paths of a :class:`SegmentLattice` that spell one label string per sample.

    It is made by :meth:`SegmentLattice.constrain`, which checks the arguments. Its nodes are pairs of a cut
    and the number of labels spelled up to it.
    """

    def __init__(
        self,
        penalties: Tensor,
        lengths: Tensor | None,
        *,
        ignored: Tensor,
        targets: Tensor,
        target_lengths: Tensor | None,
    ) -> None:
        samples, pieces, longest, _ = penalties.shape
        self.penalties, self.lengths, self._ignored = penalties, lengths, ignored
        self.targets, self.target_lengths = targets, target_lengths
        recursion = SegmentRecursion(pieces, longest, samples, targets.shape[1])
        super().__init__(recursion, samples, penalties.device)

    @property
    def _whole(self) -> bool:
        return self.lengths is None and self.target_lengths is None

    @property
    def _counts(self) -> tuple[Tensor | None, Tensor, Tensor | None]:
        return self.lengths, self.targets, self.target_lengths

    def _index(self) -> Tensor:
        return self.targets[:, None, None].expand(-1, self.recursion.pieces, self.recursion.longest, -1)

    def _scores(self, tropical: bool) -> Tensor:
        scores: Tensor = _Scores.apply(self.penalties, self._index(), self._ignored)
        return scores

    def _ends(self) -> tuple[Tensor, Tensor]:
        columns = torch.arange(self.samples, device=self.device)
        spelled = self.targets.shape[1] if self.target_lengths is None else self.target_lengths
        return self._cuts_left(self.lengths), spelled * self.samples + columns

    def posteriors(self) -> SegmentPosteriors:
        """Return the probabilities of segments [B, N, K, C] and of cuts [B, N + 1], given the target.

        They are the derivatives of the forward penalty, and differentiable themselves.
        """
        flow = self._flow(tropical=False)
        segments = _spread(flow.arcs, self._index(), self.penalties.shape)
        return SegmentPosteriors(segments, self._cut_posteriors(flow.nodes))

    def entropy(self) -> Tensor:
        """Return the entropy of the segmentations given the target, in nats, shape [B]."""
        flow = self._flow(tropical=False)
        return -self._by_label(flow.arcs * flow.log_weights).sum((0, 1, 2))

    def _label(self, sample: Tensor, piece: Tensor, longer: Tensor, spelled: Tensor) -> Tensor:
        return self.targets[sample, spelled]

    def to_arcs(self) -> ArcLattice:
        """Return the same paths as a general graph: cut i with m labels spelled is node i (L + 1) + m."""
        samples, pieces, longest, _ = self.penalties.shape
        labels, width = self.targets.shape[1], self.targets.shape[1] + 1
        lengths = torch.full((samples,), pieces) if self.lengths is None else self.lengths
        spelled = torch.full((samples,), labels) if self.target_lengths is None else self.target_lengths
        needed = torch.arange(labels, device=self.device) < spelled.to(self.device)[:, None]
        used = ~self._ignored.permute(2, 0, 1)[..., None] & needed[:, None, None]
        sample, piece, longer, before = used.expand(samples, pieces, longest, labels).nonzero().unbind(1)
        label = self.targets[sample, before]
        return ArcLattice(
            (piece - longer) * width + before,
            (piece + 1) * width + before + 1,
            label,
            penalty=self.penalties[sample, piece, longer, label],
            sizes=torch.bincount(sample, minlength=samples),
            final=lengths * width + spelled,
            position=torch.arange((pieces + 1) * width).div(width, rounding_mode="floor"),
        )


def _spread(values: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
    """Add up values [N, K, L * B] per label ``index`` [B, N, K, L], to [B, N, K, C]."""
    samples, pieces, longest, labels = index.shape
    by_sample = values.reshape(pieces, longest, labels, samples).permute(3, 0, 1, 2)
    return values.new_zeros(shape).scatter_add(3, index, by_sample)


class _ScoresContext(Context, Protocol):
    shape: torch.Size


class _Scores(torch.autograd.Function):
    """Scores [N, K, L * B] of the segments with each label of the target, from penalties [B, N, K, C]."""

    @staticmethod
    def forward(ctx: _ScoresContext, penalties: Tensor, index: Tensor, ignored: Tensor) -> Tensor:
        """Negate the penalties. Nothing leaves the range of pieces."""
        ctx.save_for_backward(index)
        ctx.shape = penalties.shape
        scores = penalties.gather(3, index).permute(1, 2, 3, 0).contiguous().neg_()
        scores.masked_fill_(ignored[:, :, None], IMPOSSIBLE).clamp_(IMPOSSIBLE, CERTAIN)
        return scores.flatten(2)

    @staticmethod
    def backward(ctx: _ScoresContext, grad: Tensor) -> tuple[Tensor, None, None]:
        """Negate the gradient; impossible segments have no part in any path that counts."""
        (index,) = ctx.saved_tensors
        return _spread(-grad, index, ctx.shape), None, None
