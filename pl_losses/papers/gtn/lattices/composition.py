"""LeCun et al. 1998, section VIII: composition of graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import Tensor

from pl_losses.papers.gtn.lattices.dag import ragged_ranges
from pl_losses.papers.gtn.lattices.graph import EPSILON, Graph


class _Outgoing:
    """The arcs of a lattice by their source node and, optionally, label."""

    def __init__(self, lattice: Graph, labels: Tensor, num_labels: int) -> None:
        self.num_labels = num_labels
        self.destination = lattice.destination + lattice.offset[lattice.graph]
        # Node and label as one number, so that arcs of either are found by bisection.
        keys = (lattice.source + lattice.offset[lattice.graph]) * num_labels + labels + 1
        self.order = keys.argsort(stable=True)
        self.keys = keys[self.order]

    def with_label(self, node: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return the arcs that leave some nodes with a label, and the index of each arc's node."""
        return self._between(node * self.num_labels + label + 1, 1)

    def all(self, node: Tensor) -> tuple[Tensor, Tensor]:
        """Return the arcs that leave some nodes, and the index of each arc's node."""
        return self._between(node * self.num_labels, self.num_labels)

    def _between(self, keys: Tensor, width: int) -> tuple[Tensor, Tensor]:
        first = torch.searchsorted(self.keys, keys)
        arcs, owner = ragged_ranges(first, torch.searchsorted(self.keys, keys + width) - first)
        return self.order[arcs], owner


class _Product:
    """Pairs of a node of each of two lattices, and the arcs between them.

    A state is (node of left, node of right, whether an epsilon of right came last), as one number. After an
    epsilon of right, an epsilon of left must wait for the next label, so that a pair of paths has one order
    only.
    """

    def __init__(self, left: Graph, right: Graph) -> None:
        self.left, self.right = left, right
        num_labels = 2 + max((int(x.max()) for x in (left.output, right.label) if len(x)), default=0)
        self.from_left = _Outgoing(left, left.output, num_labels)
        self.from_right = _Outgoing(right, right.label, num_labels)
        self.right_total = int(right.nodes.sum())
        start = (right.start + right.offset).expand(left.samples)
        self.starts = self.encode(left.start + left.offset, start, 0)

    def encode(self, u: Tensor, v: Tensor, waits: int) -> Tensor:
        return (u * self.right_total + v) * 2 + waits

    def nodes(self, states: Tensor) -> tuple[Tensor, Tensor]:
        pairs = states.div(2, rounding_mode="floor")
        return pairs.div(self.right_total, rounding_mode="floor"), pairs % self.right_total

    def explore(self) -> tuple[Tensor, list[Tensor]]:
        """Find all reachable states, sorted, and source, destination, left and right arc of each arc."""
        frontier = visited = self.starts
        made = [[self.starts[:0]] * 4]
        while len(frontier):
            found = [list(moves) for moves in self._moves(frontier)]
            made += found
            new = torch.unique(torch.cat([moves[1] for moves in found]))
            frontier = new[~torch.isin(new, visited)]
            visited = torch.cat([visited, frontier])
        return visited.sort().values, [torch.cat(column) for column in zip(*made, strict=True)]

    def _moves(self, states: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield arcs out of some states: left's epsilons alone, agreeing labels, right's epsilons alone."""
        u, v = self.nodes(states)
        a, owner = self.from_left.all(u)
        silent = self.left.output[a] == EPSILON
        alone = silent & (states[owner] % 2 == 0)
        after = self.from_left.destination[a]
        none = torch.full_like(owner, -1)
        yield states[owner[alone]], self.encode(after, v[owner], 0)[alone], a[alone], none[alone]
        a, after, owner = a[~silent], after[~silent], owner[~silent]
        b, pair = self.from_right.with_label(v[owner], self.left.output[a])
        reached = self.encode(after[pair], self.from_right.destination[b], 0)
        yield states[owner[pair]], reached, a[pair], b
        b, owner = self.from_right.with_label(v, torch.full_like(v, EPSILON))
        reached = self.encode(u[owner], self.from_right.destination[b], 1)
        yield states[owner], reached, torch.full_like(b, -1), b


class Composed(TypedDict):
    """The arguments of an :class:`ArcLattice`."""

    source: Tensor
    destination: Tensor
    label: Tensor
    penalty: Tensor
    sizes: Tensor
    start: Tensor
    final: list[list[int]]
    output: Tensor
    position: Tensor


def compose(left: Graph, right: Graph) -> Composed:
    """Compose two lattices: return an :class:`ArcLattice`'s arguments, with states that can be reached."""
    if right.samples not in (1, left.samples):
        raise ValueError(f"Expected `other` of 1 or {left.samples} graphs but got {right.samples}")
    product = _Product(left, right)
    states, (source, destination, a, b) = product.explore()
    u, v = product.nodes(states)
    graph = torch.repeat_interleave(torch.arange(left.samples), left.nodes)[u]
    # States are sorted by left's nodes, so by graph: in each graph they are numbered from its first.
    counts = torch.bincount(graph, minlength=left.samples)
    first = counts.cumsum(0) - counts
    number = torch.arange(len(states)) - first[graph]
    # The order of the arcs, which decides between equal paths, is left's, then right's.
    for key in (b, a):
        order = key.argsort(stable=True)
        source, destination, a, b = (x[order] for x in (source, destination, a, b))
    source, destination = torch.searchsorted(states, source), torch.searchsorted(states, destination)
    order = graph[source].argsort(stable=True)
    source, destination, a, b = (x[order] for x in (source, destination, a, b))
    final = (_is_final(left)[u] & _is_final(right)[v]).nonzero().squeeze(1)
    finals: list[list[int]] = [[] for _ in range(left.samples)]
    for owner, state in zip(graph[final].tolist(), number[final].tolist(), strict=True):
        finals[owner].append(state)
    position = torch.zeros(left.samples, int(counts.max()) if left.samples else 0, dtype=torch.long)
    position[graph, number] = left.position[graph, u - left.offset[graph]]
    return {
        "source": number[source],
        "destination": number[destination],
        "label": _pick(left.label, a, EPSILON),
        "penalty": _pick(left.penalty, a, 0) + _pick(right.penalty.to(left.penalty), b, 0),
        "sizes": torch.bincount(graph[source], minlength=left.samples),
        "start": number[torch.searchsorted(states, product.starts)],
        "final": finals,
        "output": _pick(right.output, b, EPSILON),
        "position": position,
    }


def _is_final(lattice: Graph) -> Tensor:
    """Return whether each node of all graphs is final."""
    final = torch.zeros(int(lattice.nodes.sum()), dtype=torch.bool)
    final[lattice.final + lattice.offset[lattice.final_graph]] = True
    return final


def _pick(values: Tensor, index: Tensor, otherwise: int) -> Tensor:
    """Return ``values[index]``, and ``otherwise`` where the index is -1."""
    return torch.cat([values, values.new_full((1,), otherwise)])[index.to(values.device)]
