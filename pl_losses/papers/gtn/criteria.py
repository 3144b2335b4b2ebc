"""LeCun et al. 1998, section VI: Viterbi and forward training, each plain and discriminative.

C_cvit and C_cforw are the Viterbi and the forward penalty of the paths that spell the target, C_vit and
C_forw those of all paths. Every criterion takes a lattice of B samples and one label string each.

Samples without a path that spells their target have the penalty ``inf``, which ``reduction="none"`` returns,
and no gradient. ``"mean"`` and ``"sum"`` leave them out, and are 0 if none remains, so that a segmentation
without a needed cut does not spoil its batch. ``lattice.constrain(targets, target_lengths).feasible`` says
which they are.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pl_losses.core.autograd import Context
from pl_losses.core.validation import typed
from pl_losses.papers.gtn.lattices.protocol import ConstrainableLattice

Reduction = Literal["mean", "sum", "none"]


@typed
def viterbi_loss(
    lattice: ConstrainableLattice,
    targets: Tensor,
    target_lengths: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Compute the loss of Viterbi training, section VI.A, Fig. 19, eq. 11.

    .. math:: E_\text{vit} = C_\text{cvit}

    Its gradient is 1 for the segments of the best path that spells the target, and 0 for others. Nothing
    raises the penalties of wrong answers. So the loss collapses if the recogniser can make all penalties low,
    for example with adaptable centres.

    Args:
        lattice: Lattice of B samples.
        targets: Label strings, integers, shape [B, L].
        target_lengths: Their lengths, shape [B]; ``None`` for L.
        reduction: ``"mean"`` or ``"sum"`` over the samples that have a path, or ``"none"``.

    Returns:
        Scalar, or [B] without reduction.

    Raises:
        TypeError, ValueError: If targets, lengths or reduction do not fit.

    Example:
        >>> from pl_losses.papers.gtn import SegmentLattice
        >>> lattice = SegmentLattice(torch.tensor([[[[0.1, 0.9]], [[0.5, 0.2]]]]))
        >>> viterbi_loss(lattice, torch.tensor([[0, 0]]))
        tensor(0.6000)
    """
    return _reduce(lattice.constrain(targets, target_lengths).viterbi_penalty(), reduction)


@typed
def discriminative_viterbi_loss(
    lattice: ConstrainableLattice,
    targets: Tensor,
    target_lengths: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Compute the loss of discriminative Viterbi training, section VI.B, Fig. 20, eq. 12.

    .. math:: E_\text{dvit} = C_\text{cvit} - C_\text{vit} \ge 0

    Two paths matter: the best one that spells the target, and the best one of all. The gradient is +1 for
    segments of the first path only, -1 for segments of the second path only, and 0 for segments of both. The
    loss is 0 if the answer is right: there is no margin.

    Arguments, result and errors are those of :func:`viterbi_loss`.

    Example:
        >>> from pl_losses.papers.gtn import SegmentLattice
        >>> lattice = SegmentLattice(torch.tensor([[[[0.1, 0.9]], [[0.5, 0.2]]]]))
        >>> discriminative_viterbi_loss(lattice, torch.tensor([[0, 0]]))
        tensor(0.3000)
    """
    constrained = lattice.constrain(targets, target_lengths).viterbi_penalty()
    return _reduce(_Excess.apply(constrained, lattice.viterbi_penalty()), reduction)


@typed
def forward_loss(
    lattice: ConstrainableLattice,
    targets: Tensor,
    target_lengths: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Compute the loss of forward training (section VI.C): :math:`E_\text{forw} = C_\text{cforw}`.

    Its gradient for a segment is the posterior of the segment, given the target. It can collapse, as
    :func:`viterbi_loss` can.

    Arguments, result and errors are those of :func:`viterbi_loss`.

    Example:
        >>> from pl_losses.papers.gtn import SegmentLattice
        >>> lattice = SegmentLattice(torch.tensor([[[[0.1, 0.9]], [[0.5, 0.2]]]]))
        >>> forward_loss(lattice, torch.tensor([[0, 0]]))
        tensor(0.6000)
    """
    return _reduce(lattice.constrain(targets, target_lengths).forward_penalty(), reduction)


@typed
def discriminative_forward_loss(
    lattice: ConstrainableLattice,
    targets: Tensor,
    target_lengths: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Compute the loss of discriminative forward training, section VI.D, Fig. 21, eq. 17.

    .. math:: E_\text{dforw} = C_\text{cforw} - C_\text{forw}

    It is -log P(target) >= 0, where P is over all label strings. Prefer this criterion. Its gradient for a
    segment is a difference: the posterior of the segment given the target, minus the posterior without the
    target.

    Arguments, result and errors are those of :func:`viterbi_loss`.

    Example:
        >>> from pl_losses.papers.gtn import SegmentLattice
        >>> lattice = SegmentLattice(torch.tensor([[[[0.1, 0.9]], [[0.5, 0.2]]]]))
        >>> discriminative_forward_loss(lattice, torch.tensor([[0, 1]]))
        tensor(0.9255)
    """
    constrained = lattice.constrain(targets, target_lengths).forward_penalty()
    return _reduce(_Excess.apply(constrained, lattice.forward_penalty()), reduction)


class _Excess(torch.autograd.Function):
    """The difference, at least 0 in spite of rounding.

    It is 0 if both penalties are -inf. If only the second is, or the first is inf, it is inf, without a
    gradient.
    """

    @staticmethod
    def forward(ctx: Context, constrained: Tensor, free: Tensor) -> Tensor:
        """Subtract, and note where there is no gradient."""
        difference = (constrained - free).clamp_(min=0.0)
        missed = (constrained == float("inf")) | (difference == float("inf"))
        ctx.save_for_backward(missed)
        return difference.masked_fill_(constrained == -float("inf"), 0.0).masked_fill_(missed, float("inf"))

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Pass the gradient on with either sign."""
        (missed,) = ctx.saved_tensors
        grad = grad.masked_fill(missed, 0.0)
        return grad, -grad


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    left_out = losses == float("inf")
    total = losses.masked_fill(left_out, 0.0).sum()
    return total if reduction == "sum" else total / (~left_out).sum().clamp_min(1)
