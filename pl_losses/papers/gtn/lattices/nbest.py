"""LeCun et al. 1998, section VI.C: the best n paths of a graph, and random paths.

Both go from the end of the graph to its start, as the potentials are the exact scores of the rest of a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import islice

import torch
from torch import Tensor

from pl_losses.core.validation import check_integer
from pl_losses.papers.gtn.lattices.graph import Graph
from pl_losses.papers.gtn.lattices.paths import Path
from pl_losses.papers.gtn.lattices.recursions import CERTAIN, IMPOSSIBLE


class Search:
    """The arcs of a lattice sorted by destination, with its potentials in float64."""

    def __init__(self, lattice: Graph, scores: Tensor, total: Tensor, best: Tensor) -> None:
        recursion = lattice.recursion
        self.lattice = lattice
        self.log_weights = recursion.log_weights(scores, total).cpu()
        source, destination = recursion.source.cpu(), recursion.destination.cpu()
        sums = (best[recursion.source] + scores).cpu()
        # Into each node the best arc comes first; of equals the first in the lattice's order.
        order = sums.argsort(descending=True, stable=True)
        self.order = order[destination[order].argsort(stable=True)]
        self.counts = torch.bincount(destination, minlength=recursion.nodes)
        self.first = self.counts.cumsum(0) - self.counts
        self.source, self.real = source, len(lattice.penalty)
        self.starts = lattice.start + lattice.offset
        self.ends = torch.arange(recursion.nodes - lattice.samples, recursion.nodes)
        self.feasible = best[-lattice.samples :].cpu() > IMPOSSIBLE / 2 if lattice.samples else best > 0
        # Python numbers: the queue of the n best reads them one at a time.
        self.scores, self.sums = scores.tolist(), sums[self.order].tolist()
        self.arcs, self.sources = self.order.tolist(), source.tolist()
        self.ranges = torch.stack([self.first, self.first + self.counts], 1).tolist()

    def n_best(self, n: int) -> list[list[Path]]:
        """Find the ``n`` best paths of each graph."""
        check_integer("n", n, 1)
        return [list(islice(self._paths(b), n)) for b in range(self.lattice.samples)]

    def _paths(self, graph: int) -> Iterator[Path]:
        """Yield the paths of a graph, best first.

        An entry of the queue is a path's tail from some node on, the next arc to put before it, and the score
        of the best path that ends like this. The arcs into a node are sorted: it suffices to queue the next
        one when one is taken.
        """
        end, start = int(self.ends[graph]), int(self.starts[graph])
        queue: list[tuple[float, tuple[int, ...], float, int, tuple[int, ...]]] = []

        def push(score: float, node: int, ranks: tuple[int, ...], tail: tuple[int, ...]) -> None:
            """Queue the arc into a node with the last of ``ranks``; of equal paths the first ranks win."""
            first, stop = self.ranges[node]
            index = first + ranks[-1]
            if index < stop and (whole := score + self.sums[index]) > IMPOSSIBLE / 2:
                heappush(queue, (-whole, ranks, score, node, tail))

        push(0.0, end, (0,), ())
        while queue:
            _, ranks, score, node, tail = heappop(queue)
            push(score, node, (*ranks[:-1], ranks[-1] + 1), tail)
            arc = self.arcs[self.ranges[node][0] + ranks[-1]]
            longer = (arc, *tail) if arc < self.real else tail
            if self.sources[arc] == start:
                yield self.lattice.path(graph, longer, self._sum(longer))
            push(score + self.scores[arc], self.sources[arc], (*ranks, 0), longer)

    def _sum(self, arcs: tuple[int, ...]) -> float:
        """Add up a path's penalty in its order."""
        penalty = sum(-self.scores[arc] for arc in arcs)
        return penalty if penalty > -CERTAIN / 2 else float("-inf")

    def sample(self, n: int, generator: torch.Generator | None) -> list[list[Path]]:
        """Draw ``n`` random paths of each graph, all of them one arc at a time."""
        check_integer("n", n, 0)
        samples = self.lattice.samples
        graph = torch.arange(samples).repeat_interleave(n)
        graph = graph[self.feasible[graph]]
        taken: list[list[int]] = [[] for _ in range(len(graph))]
        # Weights sum to 1 over the arcs into a node: a uniform number in the node's part of the running sum
        # picks an arc. All walks go from the end to the start together, each until it is there.
        totals = self.log_weights.exp()[self.order].cumsum(0)
        totals = torch.cat([totals.new_zeros(1), totals])
        walker, node = torch.arange(len(graph)), self.ends[graph]
        while len(walker):
            low, high = totals[self.first[node]], totals[self.first[node] + self.counts[node]]
            device = None if generator is None else generator.device
            drawn = torch.rand(len(walker), generator=generator, dtype=low.dtype, device=device).cpu()
            index = torch.searchsorted(totals, low + drawn * (high - low), right=True) - 1
            index = index.clamp(self.first[node], self.first[node] + self.counts[node] - 1)
            arcs = self.order[index]
            for w, arc in zip(walker.tolist(), arcs.tolist(), strict=True):
                if arc < self.real:
                    taken[w].append(arc)
            node = self.source[arcs]
            going = node != self.starts[graph[walker]]
            walker, node = walker[going], node[going]
        paths: list[list[Path]] = [[] for _ in range(samples)]
        for b, arcs_taken in zip(graph.tolist(), taken, strict=True):
            tail = tuple(reversed(arcs_taken))
            paths[b].append(self.lattice.path(b, tail, self._sum(tail)))
        return paths
