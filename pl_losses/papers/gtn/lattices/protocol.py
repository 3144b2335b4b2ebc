"""LeCun et al. 1998, section VI.C: the methods of all lattices."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pl_losses.papers.gtn.lattices.arcs import ArcLattice
from pl_losses.papers.gtn.lattices.paths import Path


class Lattice(Protocol):
    """The methods of every lattice of B samples; see :class:`SegmentLattice` for the definitions."""

    @property
    def feasible(self) -> Tensor:
        """Whether a path exists, bool, shape [B]."""

    def forward_penalty(self) -> Tensor:
        """Return -log sum over all paths of exp(-penalty), shape [B]."""

    def viterbi_penalty(self) -> Tensor:
        """Return the smallest penalty of a path, shape [B]."""

    def best_path(self) -> list[Path]:
        """Return the path of smallest penalty, for each sample."""

    def n_best(self, n: int) -> list[list[Path]]:
        """Return the ``n`` paths of smallest penalty in ascending order, or fewer if there are fewer."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[list[Path]]:
        """Draw ``n`` independent paths with P(path) proportional to exp(-penalty); none if no path exists."""

    def entropy(self) -> Tensor:
        """Return the entropy of the paths' distribution in nats, shape [B]; 0 if no path exists."""

    def to_arcs(self) -> ArcLattice:
        """Return the same paths as a general graph."""
