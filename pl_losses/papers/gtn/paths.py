"""What lattices answer with: paths and posteriors; and what all lattices can be asked (section VI.C)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pl_losses.papers.gtn.arcs import ArcLattice


class Path(NamedTuple):
    """One path through a lattice.

    Attributes:
        penalty: Sum of its arcs' penalties; ``inf`` with no labels and no cuts where no path exists.
        labels: Labels of its L segments, from left to right. Epsilon labels are left out.
        cuts: The L + 1 cuts between which its segments lie: segment i reaches from ``cuts[i]`` to
            ``cuts[i + 1]``. In an :class:`ArcLattice` these are the positions of its nodes.
    """

    penalty: float
    labels: tuple[int, ...]
    cuts: tuple[int, ...]


NO_PATH = Path(float("inf"), (), ())


class SegmentPosteriors(NamedTuple):
    """Probabilities under P(path) proportional to exp(-penalty); 0 throughout where no path exists.

    Attributes:
        segments: That a path contains the segment with this class, shape [B, N, K, C], indexed as the
            penalties are.
        cuts: That a path is cut there, shape [B, N + 1].
    """

    segments: Tensor
    cuts: Tensor


class ArcPosteriors(NamedTuple):
    """Probabilities under P(path) proportional to exp(-penalty); 0 throughout where no path exists.

    Attributes:
        arcs: That a path contains the arc, shape [A], in the order of the lattice's arcs.
        nodes: That a path visits the node, shape [sum of all graphs' nodes], graph after graph.
    """

    arcs: Tensor
    nodes: Tensor


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
