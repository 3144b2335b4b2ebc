import math
from itertools import product

import pytest
import torch
from papers.gtn.lattices.brute_force import all_paths, logadd, random_penalties

from pl_losses.papers.gtn import ArcLattice, SegmentLattice, ctc_topology, lexicon
from pl_losses.papers.gtn.lattices.graph import EPSILON

EXACT = {"atol": 1e-12, "rtol": 1e-12}


def random_graph(seed, nodes=6, arcs=11, labels=3):
    """A graph's arcs (source, destination, label) from lower to higher nodes, several between some."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.stack([torch.randperm(nodes, generator=generator)[:2].sort().values for _ in range(arcs)])
    label = torch.randint(EPSILON, labels, (arcs,), generator=generator)
    return ends[:, 0], ends[:, 1], label, 3 * torch.rand(arcs, dtype=torch.float64, generator=generator)


def paths_of(source, destination, penalty, start, finals):
    """(penalty, arcs) of all paths."""
    found = [(0.0, ())] if start in finals else []
    stack = [(start, 0.0, ())]
    while stack:
        node, total, taken = stack.pop()
        for arc, (s, d) in enumerate(zip(source.tolist(), destination.tolist(), strict=True)):
            if s == node:
                longer = (total + float(penalty[arc]), (*taken, arc))
                found += [longer] if d in finals else []
                stack.append((d, *longer))
    return sorted(found)


def batch_of_graphs():
    graphs = [random_graph(seed, nodes, arcs) for seed, (nodes, arcs) in enumerate([(6, 12), (2, 1), (4, 9)])]
    graphs.append(tuple(part[:0] for part in graphs[0]))  # no arcs: only the empty path, from node 0 to 0
    finals = [[5], [1], [2, 3], [0]]
    source, destination, label, penalty = (torch.cat(parts) for parts in zip(*graphs, strict=True))
    lattice = ArcLattice(
        source,
        destination,
        label,
        penalty=penalty,
        sizes=[len(graph[0]) for graph in graphs],
        final=finals,
    )
    return lattice, graphs, finals


def test_general_graphs_equal_the_list_of_all_paths():
    lattice, graphs, finals = batch_of_graphs()
    forward, viterbi, entropy = lattice.forward_penalty(), lattice.viterbi_penalty(), lattice.entropy()
    arcs = lattice.posteriors().arcs.split([len(graph[0]) for graph in graphs])
    nodes = lattice.posteriors().nodes.split(lattice.nodes.tolist())
    for b, (source, destination, label, penalty) in enumerate(graphs):
        paths = paths_of(source, destination, penalty, 0, finals[b])
        total = logadd([path[0] for path in paths])
        assert float(forward[b]) == pytest.approx(total, abs=1e-12)
        assert float(viterbi[b]) == pytest.approx(paths[0][0], abs=1e-12)
        chances = [math.exp(total - path[0]) for path in paths]
        by_hand = sum(p * (path[0] - total) for p, path in zip(chances, paths, strict=True))
        assert float(entropy[b]) == pytest.approx(by_hand, abs=1e-12)
        on = [
            sum(p for p, path in zip(chances, paths, strict=True) if a in path[1]) for a in range(len(label))
        ]
        torch.testing.assert_close(arcs[b], torch.tensor(on, dtype=torch.float64), **EXACT)
        assert float(nodes[b][0]) == pytest.approx(1)
        found = lattice.n_best(100)[b]
        assert [path.penalty for path in found] == pytest.approx([path[0] for path in paths], abs=1e-12)
        spelled = [tuple(int(label[a]) for a in path[1] if label[a] != EPSILON) for path in paths]
        assert [path.labels for path in found] == spelled
        assert lattice.best_path()[b].labels == spelled[0]
        assert {path.labels for path in lattice.sample(20)[b]} <= set(spelled)


def test_gradients_of_first_and_second_order():
    source, destination, label, penalty = random_graph(3)
    make = lambda p: ArcLattice(source, destination, label, penalty=p, final=[[4, 5]])  # noqa: E731
    penalty.requires_grad_()
    for ask in ("forward_penalty", "viterbi_penalty", "entropy"):
        assert torch.autograd.gradcheck(lambda p: getattr(make(p), ask)(), penalty)  # noqa: B023
    assert torch.autograd.gradgradcheck(lambda p: make(p).forward_penalty(), penalty)
    assert torch.autograd.gradcheck(lambda p: tuple(make(p).posteriors()), penalty)
    (grad,) = torch.autograd.grad(make(penalty).forward_penalty().sum(), penalty)
    torch.testing.assert_close(grad, make(penalty).posteriors().arcs, **EXACT)


def test_ties_go_to_the_first_arc_into_each_node():
    lattice = ArcLattice([0, 0, 1, 0], [1, 1, 2, 2], [7, 8, 9, 5], penalty=torch.zeros(4, requires_grad=True))
    assert lattice.best_path()[0].labels == (7, 9)
    assert lattice.n_best(3)[0][0].labels == (7, 9)
    (grad,) = torch.autograd.grad(lattice.viterbi_penalty().sum(), lattice.penalty)
    assert grad.tolist() == [1, 0, 1, 0]


def test_the_order_of_the_arcs_does_not_matter():
    source, destination, label, penalty = random_graph(4, nodes=9, arcs=30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    one = ArcLattice(source, destination, label, penalty=penalty)
    other = ArcLattice(source[order], destination[order], label[order], penalty=penalty[order])
    torch.testing.assert_close(one.forward_penalty(), other.forward_penalty(), **EXACT)
    torch.testing.assert_close(one.posteriors().arcs[order], other.posteriors().arcs, **EXACT)


def test_composition_equals_all_pairs_of_paths_also_with_epsilons_on_both_sides():
    for seed in range(6):
        left, right = random_graph(2 * seed), random_graph(2 * seed + 1)
        right_output = torch.arange(len(right[0])) + 10
        composed = ArcLattice(*left[:3], penalty=left[3]).compose(
            ArcLattice(*right[:3], penalty=right[3], output=right_output)
        )
        spelled = {"left": [], "right": []}
        for name, (source, destination, label, penalty) in (("left", left), ("right", right)):
            for total, arcs in paths_of(source, destination, penalty, 0, [int(destination.max())]):
                labels = tuple(int(label[a]) for a in arcs if label[a] != EPSILON)
                spelled[name].append((total, labels, arcs))
        pairs = sorted(
            (one[0] + two[0], tuple(a + 10 for a in two[2]))
            for one, two in product(spelled["left"], spelled["right"])
            if one[1] == two[1]
        )
        assert float(composed.forward_penalty()) == pytest.approx(
            logadd([pair[0] for pair in pairs]), abs=1e-12
        )
        found = composed.n_best(1000)[0]
        assert [path.penalty for path in found] == pytest.approx([pair[0] for pair in pairs], abs=1e-12)
        assert sorted(path.labels for path in found) == sorted(pair[1] for pair in pairs)


def test_a_string_a_lexicon_and_a_grammar_select_paths():
    penalties = random_penalties(2, 4, 2, 3)
    lattice = SegmentLattice(penalties, torch.tensor([4, 3]))
    targets = torch.tensor([[0, 1, 2], [2, 2, 0]])
    dense, general = lattice.constrain(targets), lattice.to_arcs().constrain(targets)
    torch.testing.assert_close(general.forward_penalty(), dense.forward_penalty(), **EXACT)
    assert general.best_path() == dense.best_path()

    words = [(0, 1), (0, 1, 2), (2,), (1, 1, 1, 1)]
    costs = torch.tensor([0.5, 0.1, 0.0, 2.0], dtype=torch.float64)
    found = lattice.constrain(lexicon(words, costs))
    for b, pieces in enumerate((4, 3)):
        paths = all_paths(penalties[b], pieces)
        chosen = [(p + float(costs[words.index(w)]), w, c) for p, w, c in paths if w in words]
        assert float(found.forward_penalty()[b]) == pytest.approx(logadd([p for p, *_ in chosen]), abs=1e-12)
        best = found.best_path()[b]
        assert (best.labels, best.cuts) == min(chosen)[1:]

    # 0 and 1 in turn, from a graph with a cycle; one for all samples or one for each.
    turns = {"source": [0, 1], "destination": [1, 0], "label": [0, 1]}
    shared = ArcLattice(**turns, penalty=torch.zeros(2), final=[[0, 1]])
    each = ArcLattice(
        *(2 * values for values in turns.values()),
        penalty=torch.zeros(4),
        sizes=[2, 2],
        final=[[0, 1], [0, 1]],
    )
    for b, pieces in enumerate((4, 3)):
        paths = [p for p, w, _ in all_paths(penalties[b], pieces) if w == tuple(i % 2 for i in range(len(w)))]
        for grammar in (shared, each):
            penalty = lattice.constrain(grammar).forward_penalty()[b]
            assert float(penalty) == pytest.approx(logadd(paths), abs=1e-12)


def test_penalties_of_a_grammar_get_gradients():
    lattice = SegmentLattice(random_penalties(2, 3, 2, 2).requires_grad_())
    costs = torch.tensor([0.3, 0.2], dtype=torch.float64, requires_grad=True)
    found = lattice.constrain(lexicon([(0, 1), (1,)], costs))
    (grad,) = torch.autograd.grad(found.forward_penalty().sum(), costs)
    assert found.feasible.tolist() == [True, False] or grad.sum() == pytest.approx(found.feasible.sum())
    assert (grad > 0).any()


@pytest.mark.parametrize("blank", [0, 3])
def test_ctc_is_a_composition(blank):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    lengths, target_lengths = torch.tensor([7, 5, 4]), torch.tensor([3, 2, 0])
    targets = torch.tensor([[1, 1, 2], [2, 1, 1], [1, 1, 1]])
    log_probs = logits.log_softmax(2)
    frames = SegmentLattice(-log_probs.transpose(0, 1)[:, :, None], lengths)
    ours = frames.constrain(ctc_topology(4, blank)).constrain(targets, target_lengths).forward_penalty()
    theirs = torch.nn.functional.ctc_loss(
        log_probs, targets, lengths, target_lengths, blank=blank, reduction="none"
    )
    torch.testing.assert_close(ours, theirs, **EXACT)
    for one, other in zip(
        *(torch.autograd.grad(x.sum(), logits, retain_graph=True) for x in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(one, other, **EXACT)


def test_a_ctc_target_that_needs_more_frames_is_infeasible():
    frames = SegmentLattice(torch.zeros(2, 2, 1, 3))
    lattice = frames.constrain(ctc_topology(3)).constrain(torch.tensor([[1, 1], [1, 2]]))
    assert lattice.feasible.tolist() == [False, True]
    assert lattice.best_path()[1].labels == (1, 2)
    assert lattice.best_path()[1].cuts == (0, 1, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: ArcLattice([0], [1], [0], penalty=torch.zeros(2)),
            ValueError,
            r"`source` of shape \[2\].*\[1\]",
        ),
        (
            lambda: ArcLattice([0], [1], [0], penalty=torch.zeros(1, 1)),
            ValueError,
            r"`penalty` of shape \[A\]",
        ),
        (lambda: ArcLattice([0], [1], [0], penalty=torch.zeros(1).long()), TypeError, "`penalty`"),
        (lambda: ArcLattice([0.0], [1], [0], penalty=torch.zeros(1)), TypeError, "`source`.*integer"),
        (
            lambda: ArcLattice([0], [-1], [0], penalty=torch.zeros(1)),
            ValueError,
            "`destination` of at least 0",
        ),
        (
            lambda: ArcLattice([0], [1], [-2], penalty=torch.zeros(1)),
            ValueError,
            "`label` of at least -1",
        ),
        (
            lambda: ArcLattice([0], [1], [0], penalty=torch.zeros(1), sizes=[2]),
            ValueError,
            "`sizes`.*A = 1.*2",
        ),
        (
            lambda: ArcLattice([0], [1], [0], penalty=torch.zeros(1), final=[[0], [1]]),
            ValueError,
            "`final` of 1",
        ),
        (
            lambda: ArcLattice([0, 1], [1, 0], [0, 0], penalty=torch.zeros(2)).forward_penalty(),
            ValueError,
            "without cycles",
        ),
        (lambda: lexicon([]), ValueError, "`words`"),
        (lambda: lexicon([(1,), (1,)]), ValueError, "`words`.*different"),
        (lambda: lexicon([(1,)], torch.zeros(2)), ValueError, r"`penalties` of shape \[1\]"),
        (lambda: ctc_topology(3, 3), ValueError, "`blank`"),
        (
            lambda: SegmentLattice(torch.zeros(3, 1, 1, 1)).constrain(
                ArcLattice([0, 0], [1, 1], [0, 0], penalty=torch.zeros(2), sizes=[1, 1])
            ),
            ValueError,
            "`other` of 1 or 3 graphs but got 2",
        ),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()
