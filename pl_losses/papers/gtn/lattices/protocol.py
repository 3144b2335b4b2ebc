"""LeCun et al. 1998, section VI.C: what losses and decoders ask of a lattice, whatever it is made of.

A loss needs the penalties of all paths and of those that spell the target: :class:`ConstrainableLattice`.
A reader also needs the best path, and the paths that a grammar allows: :class:`DecodableLattice`. Whoever
wants several paths, random ones or probabilities needs a whole :class:`Lattice`, such as segments or arcs.
"""

from __future__ import annotations

from typing import Protocol, overload, runtime_checkable

import torch
from torch import Tensor

from pl_losses.papers.gtn.lattices.arcs import ArcLattice
from pl_losses.papers.gtn.lattices.paths import Path


@runtime_checkable
class PathPenalties(Protocol):
    """The penalties of the paths of B samples; see :class:`SegmentLattice` for the definitions."""

    @property
    def feasible(self) -> Tensor:
        """Whether a path exists, bool, shape [B]."""

    def forward_penalty(self) -> Tensor:
        r"""Return :math:`-\log \sum_\text{paths} e^{-\text{penalty}}`, shape [B]."""

    def viterbi_penalty(self) -> Tensor:
        """Return the smallest penalty of a path, shape [B]."""


@runtime_checkable
class ConstrainableLattice(PathPenalties, Protocol):
    """What a loss needs: the penalties of all paths, and of those that spell a target."""

    def constrain(self, targets: Tensor, target_lengths: Tensor | None = None) -> PathPenalties:
        """Return the paths that spell the targets [B, L] of these lengths [B]."""


@runtime_checkable
class Lattice(PathPenalties, Protocol):
    """What decoding in full needs: the methods that lattices of segments and of arcs have."""

    def best_path(self) -> list[Path]:
        """Return the path of smallest penalty, for each sample."""

    def n_best(self, n: int) -> list[list[Path]]:
        """Return the ``n`` paths of smallest penalty in ascending order, or fewer if there are fewer."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[list[Path]]:
        """Draw ``n`` independent paths with P(path) proportional to exp(-penalty); none if no path exists."""

    def posteriors(self) -> tuple[Tensor, Tensor]:
        """Return the probabilities of the arcs (or segments) and of the nodes (or cuts)."""

    def entropy(self) -> Tensor:
        """Return the entropy of the paths' distribution in nats, shape [B]; 0 if no path exists."""

    def to_arcs(self) -> ArcLattice:
        """Return the same paths as a general graph."""


@runtime_checkable
class DecodableLattice(ConstrainableLattice, Protocol):
    """What a reader needs: also the best path, and the paths that a grammar allows."""

    def best_path(self) -> list[Path]:
        """Return the path of smallest penalty, for each sample."""

    @overload
    def constrain(self, targets: Tensor, target_lengths: Tensor | None = None) -> PathPenalties: ...
    @overload
    def constrain(self, targets: ArcLattice) -> Lattice: ...
