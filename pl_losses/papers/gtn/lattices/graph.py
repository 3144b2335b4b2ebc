"""What the search for paths and the composition use of a graph."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pl_losses.papers.gtn.lattices.dag import DagRecursion
from pl_losses.papers.gtn.lattices.paths import Path

EPSILON = -1  # The label of an arc without one.


class Graph(Protocol):
    """B directed graphs with A arcs and V nodes in all; :class:`ArcLattice` says what its tensors are.

    Attributes:
        source: Node that each arc leaves, in its graph, [A]; so are ``destination``, ``label``, ``output``.
        penalty: Penalty of each arc, [A].
        graph: Graph of each arc, [A].
        nodes: Number of each graph's nodes, [B].
        offset: Number of the nodes before each graph's, [B].
        start: Start node of each graph, [B].
        final: Final nodes, and ``final_graph`` the graphs that they are of.
        position: Positions of each graph's nodes, [B, nodes of the largest graph].
    """

    source: Tensor
    destination: Tensor
    label: Tensor
    output: Tensor
    penalty: Tensor
    graph: Tensor
    nodes: Tensor
    offset: Tensor
    start: Tensor
    final: Tensor
    final_graph: Tensor
    position: Tensor
    samples: int

    @property
    def recursion(self) -> DagRecursion:
        """The recurrences, which go through the arcs in order."""

    def path(self, graph: int, arcs: tuple[int, ...], penalty: float) -> Path:
        """Return the path of some arcs of a graph."""
