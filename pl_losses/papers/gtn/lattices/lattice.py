"""LeCun et al. 1998, sections V and VI: the segmentation graph, its forward and its Viterbi penalty."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pl_losses.core.autograd import Context
from pl_losses.core.validation import typed
from pl_losses.papers.gtn.lattices.arcs import ArcLattice
from pl_losses.papers.gtn.lattices.constrained import TargetLattice
from pl_losses.papers.gtn.lattices.paths import SegmentPosteriors
from pl_losses.papers.gtn.lattices.protocol import Lattice
from pl_losses.papers.gtn.lattices.recursions import CERTAIN, IMPOSSIBLE, SegmentRecursion, first_equal
from pl_losses.papers.gtn.lattices.segmental import DenseLattice, outside
from pl_losses.papers.gtn.lattices.validation import check_lengths, check_targets, floating


class SegmentLattice(DenseLattice):
    r"""All ways to cut B rows of pieces into segments of at most K pieces and to give each segment a class.

    The interpretation graph of heuristic over-segmentation: cuts 0 to N are its nodes, and from cut i to cut
    j, with j - i at most K, there is one arc per class. A path's penalty is the sum of its arcs'. Everything
    is computed in float32 at least, also under autocast, and in memory linear in B N K C.

    Among paths of equal penalty, the best one is that with the shortest last segment, then with the shortest
    segment before the last, and so on; of equal classes the first.

    Args:
        penalties: ``penalties[b, j, k, c]`` is the penalty of class c for the segment of k + 1 pieces that
            ENDS with piece j, from cut j - k to cut j + 1; shape [B, N, K, C], floating point. Entries of
            segments that begin before the first piece (k > j) or end after the last one (j >= lengths[b])
            are ignored, whatever they hold. ``inf`` (and what comes near, 5e29 and more) forbids a segment;
            with ``-inf`` (-5e24 and less) every path through it has the penalty ``-inf``, without gradient.
        lengths: Number of pieces of each sample, integers in [0, N], shape [B]; ``None`` for N.

    Raises:
        TypeError: If ``penalties`` is not floating point or ``lengths`` not integer.
        ValueError: If a shape or a length does not fit.

    Example:
        Two pieces, each a digit by itself or both together one; classes 0 and 1.

        >>> penalties = torch.tensor([[[[1.0, 2.0], [9.0, 9.0]], [[3.0, 0.5], [1.0, 4.0]]]])
        >>> lattice = SegmentLattice(penalties)
        >>> lattice.best_path()
        [Path(penalty=1.0, labels=(0,), cuts=(0, 2))]
        >>> lattice.constrain(torch.tensor([[0, 1]])).viterbi_penalty()
        tensor([1.5000])
    """

    @typed
    def __init__(self, penalties: Tensor, lengths: Tensor | None = None) -> None:
        if penalties.ndim != 4 or 0 in penalties.shape[2:]:
            raise ValueError(
                "Expected `penalties` of shape [B, N, K, C] with K and C at least 1"
                f" but got {list(penalties.shape)}"
            )
        self.penalties = floating("penalties", penalties)
        samples, pieces, longest, self.num_classes = penalties.shape
        self.lengths = check_lengths(
            "lengths", lengths, samples=samples, longest=pieces, device=penalties.device
        )
        super().__init__(SegmentRecursion(pieces, longest, samples), samples, penalties.device)
        self._ignored = outside(pieces, longest, self.lengths, penalties.device)

    @property
    def _whole(self) -> bool:
        return self.lengths is None

    @property
    def _counts(self) -> tuple[Tensor | None, None, None]:
        return self.lengths, None, None

    def _scores(self, tropical: bool) -> Tensor:
        scores: Tensor = _ClassScores.apply(self.penalties, self._ignored, tropical)
        return scores

    def _ends(self) -> tuple[Tensor, Tensor]:
        rows = self._cuts_left(self.lengths)
        return rows, torch.arange(self.samples, device=rows.device)

    def posteriors(self) -> SegmentPosteriors:
        """Return the probabilities of segments [B, N, K, C] and of cuts [B, N + 1].

        They are the derivatives of the forward penalty, and differentiable themselves.
        """
        flow = self._flow(tropical=False)
        classes = _cleaned(self.penalties, self._ignored).neg().softmax(0)
        segments = (classes * flow.arcs).permute(3, 1, 2, 0)
        return SegmentPosteriors(segments, self._cut_posteriors(flow.nodes))

    def entropy(self) -> Tensor:
        """Return the entropy of the paths' distribution in nats, shape [B]; 0 where no path exists."""
        flow = self._flow(tropical=False)
        classes = _cleaned(self.penalties, self._ignored).neg().log_softmax(0)
        of_classes = -(classes.exp() * classes).sum(0)
        return (flow.arcs * (of_classes - flow.log_weights)).sum((0, 1))

    def _label(self, sample: Tensor, piece: Tensor, longer: Tensor, spelled: Tensor) -> Tensor:
        return self.penalties[sample, piece, longer].argmin(-1)

    @typed
    def constrain(self, targets: Tensor | ArcLattice, target_lengths: Tensor | None = None) -> Lattice:
        """Return the lattice of the paths that spell ``targets``, the path selector's G_c.

        Args:
            targets: One label string per sample, integers in [0, C), shape [B, L]; or a grammar, an
                :class:`ArcLattice` of one graph for all samples or of B graphs, such as
                ``lexicon([(3, 4), (3, 1, 4)])``.
            target_lengths: Length of each label string, integers in [0, L], shape [B]; ``None`` for L.
                Targets beyond it are ignored. Only with strings.

        Returns:
            A :class:`TargetLattice` for strings, an :class:`ArcLattice` for a grammar. It has the same
            methods, but a :class:`TargetLattice` no ``constrain``. Its ``feasible`` tells which samples have
            a path at all.

        Raises:
            TypeError: If ``targets`` is neither integer nor an :class:`ArcLattice`.
            ValueError: If a shape, a length or a label does not fit.
        """
        if isinstance(targets, ArcLattice):
            if target_lengths is not None:
                raise ValueError("Expected `target_lengths` only with a `targets` of label strings")
            return self.to_arcs().compose(targets)
        labels, counts = check_targets(
            targets,
            target_lengths,
            samples=self.samples,
            classes=self.num_classes,
            device=self.penalties.device,
        )
        return TargetLattice(
            self.penalties,
            self.lengths,
            ignored=self._ignored,
            targets=labels,
            target_lengths=counts,
        )

    def to_arcs(self) -> ArcLattice:
        """Return the same paths as a general graph: node i is cut i."""
        samples, pieces, longest, _ = self.penalties.shape
        used = ~self._ignored.permute(2, 0, 1).expand(samples, pieces, longest)
        sample, piece, longer, label = used[..., None].expand_as(self.penalties).nonzero().unbind(1)
        lengths = torch.full((samples,), pieces) if self.lengths is None else self.lengths
        return ArcLattice(
            piece - longer,
            piece + 1,
            label,
            penalty=self.penalties[sample, piece, longer, label],
            sizes=torch.bincount(sample, minlength=samples),
            final=lengths,
        )


def _cleaned(penalties: Tensor, ignored: Tensor) -> Tensor:
    """Put classes first, [C, N, K, B], and make penalties finite, large where they are ignored."""
    cleaned = penalties.permute(3, 1, 2, 0).masked_fill(ignored, -IMPOSSIBLE)
    return cleaned.clamp(-CERTAIN, -IMPOSSIBLE)


class _ScoresContext(Context, Protocol):
    tropical: bool


class _ClassScores(torch.autograd.Function):
    """Scores [N, K, B] of segments of any class: logsumexp, or maximum, of their classes' scores."""

    @staticmethod
    def forward(ctx: _ScoresContext, penalties: Tensor, ignored: Tensor, tropical: bool) -> Tensor:
        """Reduce over classes that have been moved to the front, where that is fast."""
        cleaned = penalties.permute(3, 1, 2, 0).clone(memory_format=torch.contiguous_format)
        cleaned.masked_fill_(ignored, -IMPOSSIBLE).clamp_(-CERTAIN, -IMPOSSIBLE)
        least = cleaned.amin(0)
        ctx.tropical = tropical
        if tropical:
            ctx.save_for_backward(penalties, ignored, cleaned, least)
            return -least
        relative = torch.sub(least, cleaned, out=cleaned).exp_()
        total = relative.sum(0)
        ctx.save_for_backward(penalties, ignored, relative, total)
        return total.log().sub_(least)

    @staticmethod
    def backward(ctx: _ScoresContext, grad: Tensor) -> tuple[Tensor, None, None]:
        """Share the gradient among the classes."""
        penalties, ignored, values, reduced = ctx.saved_tensors
        if ctx.tropical:
            shared = first_equal(values, reduced, 0) * -grad
        elif torch.is_grad_enabled():
            shared = _cleaned(penalties, ignored).neg().softmax(0) * -grad
        else:
            shared = values * (grad / reduced).neg_()
        return shared.permute(3, 1, 2, 0), None, None
