"""LeCun et al. 1998, section VI.C: what all lattices can be asked."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pl_losses.papers.gtn.lattices.arcs import ArcLattice
from pl_losses.papers.gtn.lattices.paths import Path


class Lattice(Protocol):
    """What every lattice of B samples can be asked; see :class:`SegmentLattice` for the definitions."""

    @property
    def feasible(self) -> Tensor:
        """Whether a path exists, bool, shape [B]."""

    def forward_penalty(self) -> Tensor:
        """-log sum over all paths of exp(-penalty), shape [B]."""

    def viterbi_penalty(self) -> Tensor:
        """The smallest penalty of a path, shape [B]."""

    def best_path(self) -> list[Path]:
        """The path of smallest penalty, for each sample."""

    def n_best(self, n: int) -> list[list[Path]]:
        """The ``n`` paths of smallest penalty in ascending order, fewer where there are not so many."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[list[Path]]:
        """``n`` independent paths with P(path) proportional to exp(-penalty); none where no path exists."""

    def entropy(self) -> Tensor:
        """Entropy of the paths' distribution in nats, shape [B]; 0 where no path exists."""

    def to_arcs(self) -> ArcLattice:
        """The same paths as a general graph."""
