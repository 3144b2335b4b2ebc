"""LeCun et al. 1998, section VI.C: the recurrences in a general directed acyclic graph, level by level."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from pl_losses.papers.gtn.lattices.recursions import IMPOSSIBLE, Recursion


def ragged_ranges(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Join the ranges start, ..., start + count - 1; also return the range that each number belongs to."""
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    before = counts.cumsum(0) - counts
    return torch.arange(len(owner)) - before[owner] + starts[owner], owner


def levels(source: Tensor, destination: Tensor, nodes: int) -> Tensor:
    """Compute the length of the longest chain of arcs that ends at each node; -1 on and after a cycle."""
    order = source.argsort(stable=True)
    outgoing = torch.bincount(source, minlength=nodes)
    first = outgoing.cumsum(0) - outgoing
    waiting = torch.bincount(destination, minlength=nodes)
    level = torch.full((nodes,), -1)
    ready = (waiting == 0).nonzero().squeeze(1)
    depth = 0
    # Take away, round by round, all nodes that no remaining arc enters (Kahn's algorithm).
    while len(ready):
        level[ready] = depth
        arcs, _ = ragged_ranges(first[ready], outgoing[ready])
        entered, times = torch.unique(destination[order[arcs]], return_counts=True)
        waiting[entered] -= times
        ready = entered[waiting[entered] == 0]
        depth += 1
    return level


class DagRecursion(Recursion):
    """Nodes and arcs of all graphs at once: scores are [A], potentials [nodes], both in the given order.

    Inside, nodes are ordered by level and arcs by their destination, so that those of a level are contiguous.
    The plan is made on the CPU; the recurrences run on the scores' device.

    Raises:
        ValueError: If there is a cycle.
    """

    def __init__(
        self, source: Tensor, destination: Tensor, *, starts: Tensor, nodes: int, device: torch.device
    ) -> None:
        level = levels(source, destination, nodes)
        if (level < 0).any():
            raise ValueError("Expected `source` and `destination` without cycles but got a graph with one")
        self.nodes = nodes
        order = level.argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(nodes)
        # Stable: among the arcs into a node, the given order decides which one is the first.
        arcs = rank[destination].argsort(stable=True)
        per_node = torch.bincount(rank[destination], minlength=nodes)
        node_ends = [0, *torch.bincount(level, minlength=1).cumsum(0).tolist()]
        arc_ends = torch.cat([torch.zeros(1, dtype=torch.long), per_node.cumsum(0)])[node_ends].tolist()
        self.slices = list(zip(pairwise(node_ends), pairwise(arc_ends), strict=True))[1:]
        self.arcs, self.rank, self.order = arcs.to(device), rank.to(device), order.to(device)
        self.source, self.destination = source.to(device), destination.to(device)
        self._sources, self._destinations = rank[source][arcs].to(device), rank[destination][arcs].to(device)
        self._starts = rank[starts].to(device)

    def potentials(self, scores: Tensor, tropical: bool) -> Tensor:
        """Compute the potentials, [nodes]."""
        values = scores.new_full((self.nodes,), IMPOSSIBLE)
        values[self._starts] = 0.0
        scores = scores[self.arcs]
        # All nodes of a level at once: their arcs come from earlier levels, and are contiguous.
        for (node, node_end), (arc, arc_end) in self.slices:
            sums = values[self._sources[arc:arc_end]] + scores[arc:arc_end]
            entered = self._destinations[arc:arc_end] - node
            before = values[node:node_end]
            most = before.scatter_reduce(0, entered, sums, "amax")
            if not tropical:  # logsumexp, from the largest on.
                terms = (sums - most[entered]).exp_()
                most = most + (before - most).exp_().index_add_(0, entered, terms).log_()
            values[node:node_end] = most
        return values[self.rank]

    def from_source(self, values: Tensor) -> Tensor:
        """Return the values of the arcs' sources, [A]."""
        return values[self.source]

    def at_destination(self, values: Tensor) -> Tensor:
        """Return the values of the arcs' destinations, [A]."""
        return values[self.destination]

    def first_best(self, sums: Tensor) -> Tensor:
        """Mark the best arc into each node, [A]; of equals the first in the given order."""
        best = sums.new_full((self.nodes,), float("-inf"))
        best.scatter_reduce_(0, self.destination, sums, "amax")
        number = torch.arange(len(sums), device=sums.device)
        candidate = number.where(sums == best[self.destination], len(sums))
        first = torch.full((self.nodes,), len(sums), device=sums.device)
        first.scatter_reduce_(0, self.destination, candidate, "amin")
        return (first[self.destination] == number).to(sums.dtype)

    def solve(self, weights: Tensor, inputs: Tensor, backward: bool) -> Tensor:
        """Solve the recurrence, [nodes]."""
        values, weights = inputs[self.order], weights[self.arcs]
        for _, (arc, arc_end) in reversed(self.slices) if backward else self.slices:
            read, written = self._sources[arc:arc_end], self._destinations[arc:arc_end]
            if backward:
                read, written = written, read
            values.index_add_(0, written, weights[arc:arc_end] * values[read])
        return values[self.rank]
