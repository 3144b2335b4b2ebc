"""What a lattice costs, forward and backward: beside gtn, torch-struct, a Python loop and bare PyTorch.

Run with ``python -m benchmarks.lattices [--picture FILE]``; libraries that can be imported take part.
Everything is computed on the CPU in one thread, on the same penalties [B, N, K, C], and every contestant's
gradient is compared with ours first. The contestants take turns; each is timed beside ours, and the ratio
taken. Medians of the ratios over the turns are printed. Times are those of the processor in this thread,
which other jobs disturb least.

gtn takes part three times. "Usual": the graphs are built anew for each batch, and intersected with the
target's. "Kept": graphs of the right shape are built once; for each batch only their weights are set, through
pointers, and the gradients read back; with a target these are the graphs of cuts and positions, whose weights
are gathered in PyTorch. "An expert's": moreover PyTorch reduces the classes first, and 16 samples are chained
to one graph, whose score is the sum of theirs. Reading a batch's weights and writing its gradient is part of
the time of all. An expert's gradient comes through autograd, as ours does; that of the others does not. In
favour of gtn: its chains tell no penalty of a single sample, and it checks no target.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median
from time import thread_time
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.sampling import peak, table
from pl_losses.losses import discriminative_forward_loss
from pl_losses.papers.gtn import SegmentLattice

try:
    import gtn
except ImportError:
    gtn = None
try:
    import torch_struct
except ImportError:
    torch_struct = None

PIECES, LONGEST, CLASSES, LABELS = 10, 4, 10, 5
CHAIN = 16
Action = Callable[[], Tensor]


@dataclass(frozen=True)
class Batch:
    """Penalties [B, N, K, C] and targets [B, L]."""

    penalties: Tensor
    targets: Tensor


def batch_of(samples: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    penalties = 5 * torch.rand(samples, PIECES, LONGEST, CLASSES, generator=generator)
    targets = torch.randint(0, CLASSES, (samples, LABELS), generator=generator)
    return Batch(penalties.requires_grad_(), targets)


def gradient(batch: Batch, penalty: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(penalty.sum(), batch.penalties)
    return found


def ours(batch: Batch, kind: str, target: bool) -> Tensor:
    lattice = SegmentLattice(batch.penalties)
    lattice = lattice.constrain(batch.targets) if target else lattice
    return gradient(batch, getattr(lattice, f"{kind}_penalty")())


def ours_both(batch: Batch) -> Tensor:
    lattice = SegmentLattice(batch.penalties)
    return gradient(batch, discriminative_forward_loss(lattice, batch.targets, reduction="sum"))


def recurrence(batch: Batch, kind: str, target: bool) -> Tensor:
    """The recurrence written with whole tensors, its gradient by autograd."""
    reduce = torch.logsumexp if kind == "forward" else torch.amax
    scores = -batch.penalties
    if target:
        index = batch.targets[:, None, None].expand(-1, PIECES, LONGEST, -1)
        scores = scores.gather(3, index)  # [B, N, K, L]
        start = torch.full((len(scores), LABELS + 1), -1e30)
        start[:, 0] = 0.0
    else:
        scores = reduce(scores, 3, keepdim=True)
        start = torch.zeros(len(scores), 1)
    cuts = [start]
    for j in range(PIECES):
        most = min(LONGEST, j + 1)
        before = torch.stack([cuts[j - k] for k in range(most)], 1)
        if target:
            reached = reduce(before[:, :, :-1] + scores[:, j, :most], 1)
            cuts.append(torch.cat([torch.full((len(scores), 1), -1e30), reached], 1))
        else:
            cuts.append(reduce(before + scores[:, j, :most], 1))
    return gradient(batch, -cuts[-1][:, -1])


def loop(batch: Batch, kind: str, target: bool) -> Tensor:
    """Sample after sample, arc after arc."""

    def add(scores: list[Tensor]) -> Tensor:
        stacked = torch.stack(scores)
        return stacked.logsumexp(0) if kind == "forward" else stacked.max()

    total = torch.zeros(())
    for rows, labels in zip((-batch.penalties).unbind(), batch.targets.tolist(), strict=True):
        reached: dict[tuple[int, int], Tensor] = {(0, 0): torch.zeros(())}
        scores = [[list(segment.unbind()) for segment in piece.unbind()] for piece in rows.unbind()]
        for j in range(PIECES):
            into: dict[int, list[Tensor]] = {}
            for k in range(min(LONGEST, j + 1)):
                for position in range(LABELS + 1 if target else 1):
                    before = reached.get((j - k, position))
                    if before is None or position == LABELS:
                        continue
                    if target:
                        into.setdefault(position + 1, []).append(before + scores[j][k][labels[position]])
                    else:
                        into.setdefault(0, []).extend(before + score for score in scores[j][k])
            for position, found in into.items():
                reached[j + 1, position] = add(found)
        total = total - reached[PIECES, LABELS if target else 0]
    return gradient(batch, total)


def reductions(batch: Batch, kind: str, target: bool) -> Tensor:
    """No lattice at all: one reduction over the same numbers, and its gradient."""
    reduce = torch.logsumexp if kind == "forward" else torch.amax
    scores = batch.penalties
    if target:
        scores = scores.gather(3, batch.targets[:, None, None].expand(-1, PIECES, LONGEST, -1))
    return gradient(batch, reduce(scores, (2, 3)))


def struct(batch: Batch, kind: str, target: bool, reduced: bool) -> Tensor:
    """torch-struct's semi-Markov model; with the classes reduced before, it has one class only."""
    semiring = torch_struct.LogSemiring if kind == "forward" else torch_struct.MaxSemiring
    scores = -batch.penalties
    if reduced:
        scores = (scores.logsumexp(3) if kind == "forward" else scores.amax(3)).unsqueeze(3)
    classes = scores.shape[3]
    start = torch.arange(PIECES)[:, None]
    end = start + torch.arange(LONGEST)
    by_start = scores[:, end.clamp(max=PIECES - 1), torch.arange(LONGEST)]
    by_start = by_start.masked_fill((end >= PIECES)[..., None], -1e5)
    # Transitions between classes cost nothing: the score does not depend on the class before.
    potentials = by_start.new_full((len(scores), PIECES, LONGEST + 1, classes, classes), -1e5)
    potentials[:, :, 1:] = by_start.unsqueeze(4)
    return gradient(batch, -torch_struct.SemiMarkov(semiring).sum(potentials))


def segment_arcs() -> list[tuple[int, int, int]]:
    """(piece, longer, source) of all segments."""
    return [(j, k, j - k) for j in range(PIECES) for k in range(min(LONGEST, j + 1))]


def free_graph() -> gtn.Graph:
    graph = gtn.Graph(True)
    for cut in range(PIECES + 1):
        graph.add_node(cut == 0, cut == PIECES)
    for j, _, source in segment_arcs():
        for label in range(CLASSES):
            graph.add_arc(source, j + 1, label)
    return graph


def string_graph(labels: list[int]) -> gtn.Graph:
    graph = gtn.Graph(False)
    graph.add_node(True, not labels)
    for position, label in enumerate(labels):
        graph.add_node(False, position + 1 == len(labels))
        graph.add_arc(position, position + 1, label)
    return graph


def free_nodes() -> tuple[int, list[tuple[int, int, int, int]]]:
    """How many cuts, and (source, destination, segment, 0) of all segments of one class."""
    arcs = [(source, j + 1, j * LONGEST + k, 0) for j, k, source in segment_arcs()]
    return PIECES + 1, arcs


def target_nodes() -> tuple[int, list[tuple[int, int, int, int]]]:
    """How many pairs of a cut and a position are on a path, the start first and the end last; their arcs."""
    nodes: dict[tuple[int, int], int] = {}
    for cut in range(PIECES + 1):
        for position in range(LABELS + 1):
            left, pieces = LABELS - position, PIECES - cut
            if position <= cut <= position * LONGEST and left <= pieces <= left * LONGEST:
                nodes[cut, position] = len(nodes)
    arcs = [
        (nodes[source, position], nodes[j + 1, position + 1], j * LONGEST + k, position)
        for j, k, source in segment_arcs()
        for position in range(LABELS)
        if (source, position) in nodes and (j + 1, position + 1) in nodes
    ]
    return len(nodes), arcs


def target_graph() -> tuple[gtn.Graph, list[int], list[int]]:
    """The graph of cuts and positions for any target; of each arc the segment and the position."""
    nodes, arcs = target_nodes()
    graph = gtn.Graph(True)
    for node in range(nodes):
        graph.add_node(node == 0, node == nodes - 1)
    for source, destination, *_ in arcs:
        graph.add_arc(source, destination, 0)
    return graph, [arc[2] for arc in arcs], [arc[3] for arc in arcs]


class Gtn:
    """gtn, with graphs kept between batches or not."""

    def __init__(self, samples: int, kind: str, target: bool, cached: bool) -> None:
        self.score = gtn.forward_score if kind == "forward" else gtn.viterbi_score
        self.target, self.cached = target, cached
        self.segments = torch.tensor([j * LONGEST + k for j, k, _ in segment_arcs()])
        self.graphs = []
        if cached and target:
            self.graphs = [target_graph()[0] for _ in range(samples)]
            _, segments, positions = target_graph()
            self.segments, self.positions = torch.tensor(segments), torch.tensor(positions)
        elif cached:
            self.graphs = [free_graph() for _ in range(samples)]

    def weights(self, batch: Batch) -> Tensor:
        """Scores of the arcs of each sample's graph, [B, A]."""
        penalties = batch.penalties.detach().flatten(1, 2)
        if self.target and self.cached:
            labels = batch.targets[:, self.positions]
            return penalties[:, self.segments].gather(2, labels[:, :, None]).squeeze(2).neg()
        return penalties[:, self.segments].flatten(1).neg()

    def __call__(self, batch: Batch) -> Tensor:
        weights = self.weights(batch)
        found = torch.empty_like(weights)
        width, start = weights.shape[1] * 4, weights.data_ptr()
        for b in range(len(weights)):
            graph = self.graphs[b] if self.cached else free_graph()
            graph.set_weights(start + b * width)
            whole = graph
            if self.target and not self.cached:
                whole = gtn.intersect(graph, string_graph(batch.targets[b].tolist()))
            if self.cached:
                graph.zero_grad()
            gtn.backward(self.score(whole))
            found[b] = torch.from_numpy(graph.grad().weights_to_numpy())
        return self.gradient(batch, found)

    def gradient(self, batch: Batch, found: Tensor) -> Tensor:
        """Gradients of the arcs, [B, A], where they belong."""
        result = torch.zeros(len(found), PIECES * LONGEST, CLASSES)
        if self.target and self.cached:
            index = self.segments * CLASSES + batch.targets[:, self.positions]
            result.flatten(1).scatter_add_(1, index, found)
        else:
            result[:, self.segments] = found.unflatten(1, (-1, CLASSES))
        return result.view(len(found), PIECES, LONGEST, CLASSES)


class Chained:
    """gtn as an expert uses it: classes reduced in PyTorch, ``CHAIN`` samples in one graph."""

    def __init__(self, samples: int, kind: str, target: bool) -> None:
        self.score = gtn.forward_score if kind == "forward" else gtn.viterbi_score
        self.kind, self.target = kind, target
        nodes, arcs = target_nodes() if target else free_nodes()
        self.segments = torch.tensor([arc[2] for arc in arcs])
        self.positions = torch.tensor([arc[3] for arc in arcs])
        self.graphs = []
        for first in range(0, samples, CHAIN):
            graph = gtn.Graph(True)
            chained = min(CHAIN, samples - first)
            for node in range(chained * (nodes - 1) + 1):
                graph.add_node(node == 0, node == chained * (nodes - 1))
            for start in range(0, chained * (nodes - 1), nodes - 1):
                for source, destination, *_ in arcs:
                    graph.add_arc(start + source, start + destination, 0)
            self.graphs.append(graph)

    def __call__(self, batch: Batch) -> Tensor:
        return gradient(batch, _Chained.apply(batch.penalties, batch, self))

    def scores_and_gradient(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The negated scores of the graphs, and their gradient [B, N, K, C]."""
        penalties = batch.penalties.flatten(1, 2)
        if self.target:
            index = self.segments * CLASSES + batch.targets[:, self.positions]
            weights = penalties.detach().flatten(1).gather(1, index).neg()
        else:
            negated = -penalties
            reduced = negated.logsumexp(2) if self.kind == "forward" else negated.amax(2)
            weights = reduced.detach()[:, self.segments]
        found, scores = torch.empty_like(weights), torch.empty(len(self.graphs))
        width, start = weights.shape[1] * 4, weights.data_ptr()
        for i, graph in enumerate(self.graphs):
            graph.set_weights(start + i * CHAIN * width)
            graph.zero_grad()
            score = self.score(graph)
            gtn.backward(score)
            scores[i] = score.item()
            part = found[i * CHAIN : (i + 1) * CHAIN]
            part.copy_(torch.from_numpy(graph.grad().weights_to_numpy()).view_as(part))
        if self.target:
            result = torch.zeros_like(batch.penalties)
            result.flatten(1).scatter_add_(1, index, found)
            return -scores, result
        spread = torch.zeros_like(reduced)
        spread[:, self.segments] = -found
        return -scores, torch.autograd.grad(reduced, batch.penalties, spread)[0]


class _Chained(torch.autograd.Function):
    """The way into a network, which a loss by gtn needs, too."""

    @staticmethod
    def forward(ctx: Any, penalties: Tensor, batch: Batch, chained: Chained) -> Tensor:
        with torch.enable_grad():
            scores, found = chained.scores_and_gradient(batch)
        ctx.save_for_backward(found)
        return scores

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * grad[0], None, None


def contestants(batch: Batch, kind: str, target: bool) -> dict[str, Action | None]:
    options = (batch, kind, target)
    return {
        "ours": partial(ours, *options),
        "gtn, kept": partial(Gtn(len(batch.targets), kind, target, True), batch) if gtn else None,
        "gtn, expert": partial(Chained(len(batch.targets), kind, target), batch) if gtn else None,
        "gtn, usual": partial(Gtn(len(batch.targets), kind, target, False), batch) if gtn else None,
        "struct, reduced": partial(struct, *options, reduced=True) if torch_struct and not target else None,
        "struct": partial(struct, *options, reduced=False) if torch_struct and not target else None,
        "recurrence": partial(recurrence, *options),
        "loop": partial(loop, *options),
        "floor": partial(reductions, *options),
    }


LABEL = {
    "ours": "`SegmentLattice`",
    "gtn, expert": "gtn, an expert's: classes joined before, 16 samples in a graph",
    "gtn, kept": "gtn, with graphs that are made once and used again",
    "gtn, usual": "gtn, the usual way",
    "struct, reduced": "torch-struct 0.5, classes joined before",
    "struct": "torch-struct 0.5 SemiMarkov",
    "recurrence": "the recurrence in whole tensors, autograd",
    "loop": "Python loop over torch scalars",
    "floor": "bare reductions (floor)",
}
SLOW = ("loop", "struct")
# At least so many times faster than that.
WANTED = {
    64: {"gtn, expert": 1.5, "gtn, kept": 1.5, "gtn, usual": 6.0, "loop": 150.0},
    512: {"gtn, expert": 1.5, "gtn, kept": 4.0},
}
# N, K, C and L, and the numbers of samples.
GRID = [(10, 4, 10, 5), (10, 4, 100, 5), (100, 8, 10, 25), (100, 8, 100, 25)]
KINDS = ("free, log", "target, log", "free, max", "target, max")
SAMPLES = [1, 8, 64, 512, 4096]
MOST = 6_000_000  # Penalties: more takes too long.


def seconds(action: Action, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = thread_time()
        action()
        times.append(thread_time() - start)
    return median(times)


def race(actions: dict[str, Action], turns: int) -> dict[str, list[float]]:
    """Ratio of each contestant's time to that of ours, turn by turn, and ours in ms."""
    mine = actions["ours"]
    for name, action in actions.items():
        # A chain's scores are large, so that in float32 its gradient is off by up to 1e-3, ours by 1e-6.
        near = {"atol": 5e-3, "rtol": 5e-3} if name == "gtn, expert" else {"atol": 2e-5, "rtol": 1e-4}
        if name != "floor":
            torch.testing.assert_close(action(), mine(), **near, msg=f"{name} differs")
    found: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(turns):
        for name, action in actions.items():
            if name == "ours" or (name in SLOW and turn >= 3):
                continue
            repeats = 1 if name in SLOW else 5
            before = seconds(mine, 5)
            time = seconds(action, repeats)
            after = seconds(mine, 5)
            found["ours"].append(500 * (before + after))
            found[name].append(2 * time / (before + after))
    return found


def cell(found: dict[str, list[float]], name: str, wanted: float | None) -> str:
    if name not in found:
        return "-"
    if name == "ours":
        return f"{median(found[name]):.3g} ms"
    times = median(found[name])
    return f"**{times:.3g}x**" if wanted is not None and times < wanted else f"{times:.3g}x"


def table_of(samples: int, names: list[str], turns: int) -> None:
    batch = batch_of(samples)
    columns = []
    for kind in ("forward", "viterbi"):
        for target in (False, True):
            chosen = contestants(batch, kind, target)
            columns.append(race({name: a for name in names if (a := chosen[name])}, turns))
            print(f"B = {samples}, {kind}, target: {target}", file=sys.stderr)
    rows = []
    for name in names:
        wanted = WANTED.get(samples, {}).get(name)
        missing = (name.startswith("gtn") and not gtn) or (name.startswith("struct") and not torch_struct)
        cells = ["not installed" if missing else cell(column, name, wanted) for column in columns]
        rows.append([LABEL[name] + (f" (at least {wanted:g}x)" if wanted else ""), *cells])
    table([f"B = {samples}", *KINDS], *rows)


def draw(best: dict[tuple[int, ...], list[list[float]]], path: str) -> None:
    """Draw the time of the best other over ours along B, one panel for each N, K and C."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True).flat
    for panel, (shape, rows) in zip(panels, best.items(), strict=True):
        panel.axhline(1, color="0.6", linewidth=1)
        for name, ratios in zip(KINDS, zip(*rows, strict=True), strict=True):
            panel.loglog(SAMPLES[: len(ratios)], ratios, "o-", label=name, markersize=4)
        panel.set_title("N = {}, K = {}, C = {}".format(*shape), fontsize=10)
        panel.set_xticks(SAMPLES, [str(samples) for samples in SAMPLES])
        panel.set_yticks([1, 2, 4], ["1x", "2x", "4x"])
        panel.minorticks_off()
    figure.axes[0].legend(fontsize=8)
    figure.supxlabel("samples in a batch")
    figure.supylabel("time of the best other way, over ours")
    figure.savefig(path, dpi=120)


def grid(picture: str | None) -> None:
    """Ours beside the best of the others, at many sizes."""
    global PIECES, LONGEST, CLASSES, LABELS
    before = PIECES, LONGEST, CLASSES, LABELS
    names = ["ours", "gtn, expert", "recurrence", "floor"]
    rows = []
    best: dict[tuple[int, ...], list[list[float]]] = {}
    for shape, samples in product(GRID, SAMPLES):
        PIECES, LONGEST, CLASSES, LABELS = shape
        if samples * PIECES * LONGEST * CLASSES > MOST:
            continue
        batch = batch_of(samples)
        wanted = 1 / 3 if samples == 1 else 1.0 if samples < 64 else 1.5
        cells = []
        ratios = best.setdefault(shape[:3], [])
        ratios.append([])
        for kind, target in product(("forward", "viterbi"), (False, True)):
            chosen = contestants(batch, kind, target)
            turns = 9 if samples * PIECES * LONGEST * CLASSES < 1_000_000 else 3
            found = race({name: action for name in names if (action := chosen[name])}, turns)
            ratios[-1].append(min(median(found[name]) for name in names[1:3] if name in found))
            rivals = [cell(found, "gtn, expert", wanted), cell(found, "recurrence", 1.0)]
            cells.append(" / ".join([*rivals, cell(found, "floor", 1 / 2.5)]))
        rows.append([" x ".join(map(str, (samples, PIECES, LONGEST, CLASSES))), *cells])
        print(rows[-1], file=sys.stderr)
    PIECES, LONGEST, CLASSES, LABELS = before
    if picture:
        draw(best, picture)
    head = "B x N x K x C: gtn, an expert's / recurrence / floor"
    table([head, *KINDS], *rows)


def table_of_pair(samples: int, turns: int) -> None:
    """Free and constrained together, as the discriminative forward criterion needs them."""
    batch = batch_of(samples)
    actions: dict[str, Action] = {"ours": partial(ours_both, batch)}
    if gtn:
        free, target = (Chained(samples, "forward", constrained) for constrained in (False, True))
        actions["gtn, expert"] = lambda: target(batch) - free(batch)
    actions["recurrence"] = lambda: recurrence(batch, "forward", True) - recurrence(batch, "forward", False)
    found = race(actions, turns)
    expert = median(found["gtn, expert"]) if gtn else 0.0
    share = f"{1 / expert:.2g}" if gtn else "gtn is not installed"
    missed = gtn is not None and expert < 1 / 0.6
    rows = [
        ["`discriminative_forward_loss`", cell(found, "ours", None)],
        ["recurrences by autograd", cell(found, "recurrence", None)],
        ["our time over that of an expert's gtn (at most 0.6)", f"**{share}**" if missed else share],
    ]
    table([f"B = {samples}, both", "forward and backward"], *rows)


def table_of_memory() -> None:
    """Peak memory of forward and backward, as a multiple of what the penalties take."""
    rows = []
    for samples, pieces, longest, classes in (
        (64, 10, 4, 10),
        (512, 10, 4, 10),
        (64, 80, 4, 10),
        (64, 10, 10, 10),
        (64, 10, 4, 100),
    ):
        shape = (samples, pieces, longest, classes)
        penalties = torch.rand(shape).requires_grad_()
        targets = torch.randint(0, classes, (samples, LABELS))
        cells = []
        for action in (ours, lambda batch, *_: ours_both(batch)):

            @torch.enable_grad()
            def run(action: Callable[..., Tensor] = action, batch: Batch = Batch(penalties, targets)) -> None:
                action(batch, "forward", False)

            cells.append(f"{1e6 * peak(run) / (4 * penalties.numel()):.2g}")
        rows.append([" x ".join(map(str, shape)), *cells])
    table(["peak memory divided by that of the penalties [B, N, K, C]", "free", "free and target"], *rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--picture", help="where the grid is drawn, too")
    picture = parser.parse_args().picture
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table_of(64, list(LABEL), turns=15)
    table_of(512, [name for name in LABEL if name not in SLOW and name != "gtn, usual"], turns=7)
    table_of_pair(64, turns=15)
    grid(picture)
    table_of_memory()


if __name__ == "__main__":
    main()
