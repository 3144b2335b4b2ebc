"""LeCun et al. 1998, sections VI and VIII: general graphs with penalties on their arcs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pl_losses.core.validation import typed
from pl_losses.papers.gtn.lattices.composition import compose
from pl_losses.papers.gtn.lattices.dag import DagRecursion
from pl_losses.papers.gtn.lattices.graph import EPSILON
from pl_losses.papers.gtn.lattices.nbest import Search
from pl_losses.papers.gtn.lattices.paths import NO_PATH, ArcPosteriors, Path
from pl_losses.papers.gtn.lattices.recursions import (
    CERTAIN,
    IMPOSSIBLE,
    ForwardScores,
    LinearRecurrence,
    penalties_of,
)
from pl_losses.papers.gtn.lattices.validation import check_targets, floating, integers, numbers

if TYPE_CHECKING:
    from typing import Self

CPU = torch.device("cpu")


class ArcLattice:
    """B directed graphs given by lists of arcs, one graph after the other.

    The graphs may be of different sizes. Penalties may be on any device; the structure of the graphs is kept
    on the CPU. A graph with a cycle can be composed with another one, as a grammar, but has no penalties of
    its own. Among paths of equal penalty the best one is found from its end backwards: of the arcs into a
    node, the first in the list is taken.

    Args:
        source: Node that each arc leaves, numbered from 0 in each graph, integers, shape [A].
        destination: Node that each arc enters, shape [A].
        label: Label of each arc, shape [A]; ``EPSILON`` (-1) for none.
        penalty: Penalty of each arc, floating point, shape [A]; ``inf`` and ``-inf`` as in
            :class:`SegmentLattice`.
        sizes: Number of arcs of each graph, shape [B]; ``None`` for a single graph.
        start: Start node of each graph, shape [B]; ``None`` for node 0.
        final: Final nodes of each graph: a tensor [B], or B sequences; ``None`` for the node of the
            highest number.
        output: Second label of each arc, shape [A], for transducers such as :func:`ctc_topology`;
            ``None`` if it is the same as ``label``.
        position: Position of each node, for the cuts of paths: integers, shape [nodes] or [B, nodes], with
            the nodes of the largest graph; ``None`` for the node's number.

    Raises:
        TypeError: If ``penalty`` is not floating point or the others not integers.
        ValueError: If shapes or numbers do not fit together.

    Example:
        Two ways from node 0 to node 2.

        >>> arcs = ArcLattice([0, 1, 0], [1, 2, 2], [3, 4, 5], penalty=torch.tensor([0.1, 0.6, 0.8]))
        >>> [(path.labels, path.cuts) for path in arcs.best_path()]
        [((3, 4), (0, 1, 2))]
        >>> arcs.forward_penalty()
        tensor([0.0556])
    """

    @typed
    def __init__(
        self,
        source: Tensor | Sequence[int],
        destination: Tensor | Sequence[int],
        label: Tensor | Sequence[int],
        *,
        penalty: Tensor,
        sizes: Tensor | Sequence[int] | None = None,
        start: Tensor | Sequence[int] | None = None,
        final: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
        output: Tensor | Sequence[int] | None = None,
        position: Tensor | None = None,
    ) -> None:
        self.penalty = floating("penalty", penalty)
        if penalty.ndim != 1:
            raise ValueError(f"Expected `penalty` of shape [A] but got {list(penalty.shape)}")
        count = len(penalty)  # A
        # Graph by graph, and on the CPU: what is looked up here decides which operations run on the device.
        self.source = _integers("source", source, count, 0)
        self.destination = _integers("destination", destination, count, 0)
        self.label = _integers("label", label, count, EPSILON)
        self.output = self.label if output is None else _integers("output", output, count, EPSILON)
        self.sizes = torch.tensor([count]) if sizes is None else _integers("sizes", sizes, None, 0)
        if int(self.sizes.sum()) != count:
            raise ValueError(f"Expected `sizes` that sum to A = {count} but got {int(self.sizes.sum())}")
        self.samples = len(self.sizes)  # B
        # Arcs of all graphs stand in one list: `graph` tells whose an arc is, `offset` adds up to where that
        # graph's nodes begin if all graphs are one.
        self.graph = torch.repeat_interleave(torch.arange(self.samples), self.sizes)
        zeros = torch.zeros(self.samples, dtype=torch.long)
        self.start = zeros if start is None else _integers("start", start, self.samples, 0)
        # The highest node that an arc touches; a graph without arcs has its start alone.
        highest = zeros.scatter_reduce(0, self.graph, torch.maximum(self.source, self.destination), "amax")
        self._set_final(torch.maximum(highest, self.start) if final is None else final)
        highest = torch.maximum(highest, self.start)
        self.nodes = highest.scatter_reduce(0, self.final_graph, self.final, "amax") + 1
        self.offset = self.nodes.cumsum(0) - self.nodes
        self.position = self._positions(position)

    def _positions(self, position: Tensor | None) -> Tensor:
        """Return the position of each node, [B, nodes of the largest graph]."""
        most = int(self.nodes.max()) if self.samples else 0
        if position is None:
            return torch.arange(most).expand(self.samples, -1)
        position = integers("position", position, CPU)
        if position.ndim not in (1, 2) or position.shape[-1] < most:
            raise ValueError(f"Expected `position` of shape [{most}] but got {list(position.shape)}")
        return position.expand(self.samples, -1)

    def _set_final(self, final: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> None:
        """Store the final nodes of all graphs, and the graph of each."""
        if not isinstance(final, Tensor) and any(isinstance(nodes, Sequence) for nodes in final):
            if len(final) != self.samples:
                raise ValueError(f"Expected `final` of {self.samples} graphs but got {len(final)}")
            listed: Any = final
            pairs = [(graph, node) for graph, nodes in enumerate(listed) for node in nodes]
            self.final_graph = torch.tensor([graph for graph, _ in pairs], dtype=torch.long)
            self.final = _integers("final", [node for _, node in pairs], None, 0)
        else:
            self.final_graph = torch.arange(self.samples)
            self.final = _integers("final", final, self.samples, 0)

    @cached_property
    def recursion(self) -> DagRecursion:
        """The recurrences, with an arc from each final node to one more node per graph.

        Raises:
            ValueError: If there is a cycle.
        """
        # Nodes of all graphs, numbered on; then one more end for each, which any final node leads to. So a
        # graph of several final nodes has one end, too, and the B ends are the last B potentials.
        total = int(self.nodes.sum())
        source = torch.cat(
            [self.source + self.offset[self.graph], self.final + self.offset[self.final_graph]]
        )
        destination = torch.cat([self.destination + self.offset[self.graph], total + self.final_graph])
        starts = self.start + self.offset
        return DagRecursion(
            source, destination, starts=starts, nodes=total + self.samples, device=self.penalty.device
        )

    def _scores(self, penalty: Tensor) -> Tensor:
        # Scores are log weights; no infinities, of which differences would be NaN. See `recursions.py`.
        scores = penalty.neg().clamp(IMPOSSIBLE, CERTAIN)
        # The arcs from final nodes to the ends add nothing.
        return torch.cat([scores, scores.new_zeros(len(self.final))])

    def _potentials(self, tropical: bool) -> tuple[Tensor, Tensor]:
        scores = self._scores(self.penalty)
        return scores, ForwardScores.apply(self.recursion, scores, tropical)

    def _penalty(self, tropical: bool) -> Tensor:
        _, potentials = self._potentials(tropical)
        return penalties_of(potentials[-self.samples :] if self.samples else potentials)

    @property
    def feasible(self) -> Tensor:
        """Whether a path exists, bool, shape [B]."""
        with torch.no_grad():
            return self.viterbi_penalty() < float("inf")

    def forward_penalty(self) -> Tensor:
        r"""Return :math:`-\log \sum_\text{paths} e^{-\text{penalty}}`, [B].

        It is ``inf``, without gradient, if there is no path.
        """
        return self._penalty(tropical=False)

    def viterbi_penalty(self) -> Tensor:
        """Return the smallest penalty of a path, shape [B]; ``inf`` without gradient if there is none."""
        return self._penalty(tropical=True)

    def _flow(self, tropical: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the probabilities of arcs and nodes, and log weights; with ``tropical`` the best path's."""
        scores, potentials = self._potentials(tropical)
        weights = self.recursion.weights(scores, potentials, tropical)
        # Probability 1 at each end flows back along the arcs, by each its weight among those into its node.
        # Into an end that no path reaches there is none.
        possible = potentials.detach()[-self.samples :] > IMPOSSIBLE / 2
        inputs = torch.zeros_like(potentials)
        inputs[-self.samples :] = possible.to(inputs.dtype)
        nodes = LinearRecurrence.apply(self.recursion, weights, inputs, True)
        return (
            weights * nodes[self.recursion.destination],
            nodes,
            self.recursion.log_weights(scores, potentials),
        )

    def posteriors(self) -> ArcPosteriors:
        """Return the probabilities of arcs [A] and of nodes, graph after graph; differentiable."""
        arcs, nodes, _ = self._flow(tropical=False)
        return ArcPosteriors(arcs[: len(self.penalty)], nodes[: -self.samples])

    def entropy(self) -> Tensor:
        """Return the entropy of the paths' distribution in nats, shape [B]; 0 where no path exists."""
        # A path's log probability is the sum of its arcs' log weights, so the entropy is that of the arcs,
        # each as often as paths take it.
        arcs, _, log_weights = self._flow(tropical=False)
        graph = torch.cat([self.graph, self.final_graph]).to(arcs.device)
        return arcs.new_zeros(self.samples).index_add(0, graph, -arcs * log_weights)

    def best_path(self) -> list[Path]:
        """Return the path of smallest penalty for each graph; an empty one of penalty ``inf`` if none."""
        with torch.no_grad():
            penalties = numbers(self.viterbi_penalty()).tolist()
            # Weights of the best path are 0 and 1; by the rank of their sources its arcs are in order.
            taken = (self._flow(tropical=True)[0][: len(self.penalty)] > 0.5).nonzero().squeeze(1)
        depth = self.recursion.rank[self.recursion.source[taken]].argsort()
        arcs: list[list[int]] = [[] for _ in penalties]
        for arc in taken[depth].tolist():
            arcs[int(self.graph[arc])].append(arc)
        return [
            self.path(b, arcs[b], penalty) if penalty < float("inf") else NO_PATH
            for b, penalty in enumerate(penalties)
        ]

    @cached_property
    def _lists(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Position of each arc's source and destination, its output, and the position of each start."""
        starts = self.position[torch.arange(self.samples), self.start]
        source = self.position[self.graph, self.source]
        destination = self.position[self.graph, self.destination]
        return source.tolist(), destination.tolist(), self.output.tolist(), starts.tolist()

    def path(self, graph: int, arcs: Sequence[int], penalty: float) -> Path:
        """Return the path of consecutive arcs; an arc without a label belongs to the segment before it."""
        sources, destinations, outputs, starts = self._lists
        labels: list[int] = []
        # One cut more than labels: where the first segment begins, then where each one ends.
        cuts = [sources[arcs[0]] if arcs else starts[graph]]
        for arc in arcs:
            if outputs[arc] != EPSILON:
                labels.append(outputs[arc])
                cuts.append(destinations[arc])
            elif labels:
                cuts[-1] = destinations[arc]
        return Path(penalty, tuple(labels), tuple(cuts))

    @cached_property
    def _search(self) -> Search:
        with torch.no_grad():
            # float64: the search compares and draws by differences of sums over many arcs.
            scores = self._scores(self.penalty.double())
            potentials = self.recursion.potentials(scores, tropical=False)
            best = self.recursion.potentials(scores, tropical=True)
            numbers(best[len(best) - self.samples :])
            return Search(self, scores, potentials, best)

    @typed
    def n_best(self, n: int) -> list[list[Path]]:
        """Return the ``n`` paths of smallest penalty in ascending order, or fewer if there are fewer.

        Paths differ in an arc: two of them may spell the same string.
        """
        return self._search.n_best(n)

    @typed
    def sample(self, n: int, generator: torch.Generator | None = None) -> list[list[Path]]:
        """Draw ``n`` independent paths with P(path) proportional to exp(-penalty); none where none exists."""
        return self._search.sample(n, generator)

    @typed
    def compose(self, other: ArcLattice) -> ArcLattice:
        """Return pairs of a path here and one there that agree: ``output`` here with ``label`` in ``other``.

        Penalties add up. Arcs without a label on the agreeing side are taken alone. A pair of paths appears
        once, in whichever order such arcs of both may come. Cuts are those of this lattice.

        Args:
            other: As many graphs as here, or one for all. It may have cycles if their arcs read labels.
        """
        return ArcLattice(**compose(self, other))

    @typed
    def constrain(self, targets: Tensor | ArcLattice, target_lengths: Tensor | None = None) -> ArcLattice:
        """Return the lattice of the paths whose outputs spell ``targets``.

        Args:
            targets: One label string per graph, integers, shape [B, L], or a grammar to compose with.
            target_lengths: Length of each label string, shape [B]; ``None`` for L. Only with strings.
        """
        if isinstance(targets, ArcLattice):
            if target_lengths is not None:
                raise ValueError("Expected `target_lengths` only with a `targets` of label strings")
            return self.compose(targets)
        return self.compose(
            _strings(*check_targets(targets, target_lengths, samples=self.samples, classes=None, device=CPU))
        )

    def to_arcs(self) -> Self:
        """Return itself."""
        return self


def _strings(targets: Tensor, lengths: Tensor | None = None) -> ArcLattice:
    """Build the graphs that spell one label string each: targets [B, L], target_lengths [B]."""
    samples, longest = targets.shape
    counts = torch.full((samples,), longest) if lengths is None else lengths
    node = torch.arange(longest).expand(samples, longest)
    used = node < counts[:, None]  # Chains: node n to n + 1 by label n, as long as the string.
    zeros = torch.zeros(int(counts.sum()))
    return ArcLattice(node[used], node[used] + 1, targets[used], penalty=zeros, sizes=counts, final=counts)


def _integers(name: str, values: Tensor | Sequence[object], count: int | None, low: int) -> Tensor:
    """Convert to integers on the CPU, and check that there are ``count``, at least ``low``."""
    if not isinstance(values, Tensor):
        values = torch.as_tensor(values) if len(values) else torch.zeros(0, dtype=torch.long)
    found = integers(name, values, CPU)
    if found.ndim != 1 or (count is not None and len(found) != count):
        shape = "one dimension" if count is None else f"shape [{count}]"
        raise ValueError(f"Expected `{name}` of {shape} but got {list(found.shape)}")
    if len(found) and int(found.min()) < low:
        raise ValueError(f"Expected `{name}` of at least {low} but got {int(found.min())}")
    return found
