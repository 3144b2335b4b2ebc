"""The results of lattices: paths and posteriors (section VI.C)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Path(NamedTuple):
    """A path through a lattice.

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
        segments: Probability that a path has the segment with this class, [B, N, K, C], indexed as the
            penalties are.
        cuts: Probability that a path is cut there, shape [B, N + 1].
    """

    segments: Tensor
    cuts: Tensor


class ArcPosteriors(NamedTuple):
    """Probabilities under P(path) proportional to exp(-penalty); 0 throughout where no path exists.

    Attributes:
        arcs: Probability that a path has the arc, shape [A], in the order of the lattice's arcs.
        nodes: Probability that a path visits the node, [sum of all graphs' nodes], graph after graph.
    """

    arcs: Tensor
    nodes: Tensor
