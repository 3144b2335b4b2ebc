import math

import pytest
import torch
from papers.gtn.lattices.brute_force import all_paths, expected, random_penalties

from pl_losses.core.kernels import kernels
from pl_losses.papers.gtn import ArcLattice, SegmentLattice, lexicon
from pl_losses.papers.gtn.lattices import segmental

INF = float("inf")
EXACT = {"atol": 1e-12, "rtol": 1e-12}
SHAPES = [(n, k, c) for n in range(6) for k in (1, 2, 3) for c in (1, 2, 3) if c**n <= 32 or (k, c) == (3, 3)]


@pytest.fixture(autouse=True, params=["compiled", "tensors"])
def engine(request, monkeypatch):
    """Both ways to the same numbers, the second for a GPU and where Numba is missing."""
    if request.param == "tensors":
        monkeypatch.setattr(segmental, "kernels", lambda name: None)
    elif kernels("pl_losses.papers.gtn.lattices.compiled") is None:
        pytest.skip("no Numba: install the extra `fast`")


def spelling(paths, target):
    return [path for path in paths if path[1] == tuple(target)]


def check(lattice, truths, posteriors=True):
    """Everything that a lattice can be asked against the list of its paths."""
    for asked, name in ((lattice.forward_penalty(), "forward"), (lattice.viterbi_penalty(), "viterbi")):
        torch.testing.assert_close(asked, torch.tensor([t[name] for t in truths], dtype=asked.dtype), **EXACT)
    entropy = torch.tensor([t["entropy"] for t in truths], dtype=torch.float64)
    torch.testing.assert_close(lattice.entropy(), entropy, **EXACT)
    assert lattice.feasible.tolist() == [bool(t["sorted"]) for t in truths]
    if posteriors:
        found = lattice.posteriors()
        torch.testing.assert_close(found.segments, torch.stack([t["segments"] for t in truths]), **EXACT)
        torch.testing.assert_close(found.cuts, torch.stack([t["cuts"] for t in truths]), **EXACT)
    for best, several, truth in zip(lattice.best_path(), lattice.n_best(4), truths, strict=True):
        if not truth["sorted"]:
            assert best.penalty == INF
            assert several == []
            continue
        assert best.penalty == pytest.approx(truth["viterbi"], abs=1e-12)
        assert (best.labels, best.cuts) == truth["sorted"][0][1:]
        assert [(path.labels, path.cuts) for path in several] == [path[1:] for path in truth["sorted"][:4]]
        assert [path.penalty for path in several] == pytest.approx([path[0] for path in truth["sorted"][:4]])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_quantities_equal_the_list_of_all_paths(shape):
    penalties = random_penalties(1, *shape)
    paths = all_paths(penalties[0])
    lattice = SegmentLattice(penalties)
    check(lattice, [expected(paths, shape)])
    for target in {paths[0][1], paths[-1][1], paths[len(paths) // 2][1]} if paths else {(0,)}:
        constrained = lattice.constrain(torch.tensor([target], dtype=torch.long))
        check(constrained, [expected(spelling(paths, target), shape)])


def ragged():
    """Penalties, lengths, targets and their lengths of five samples, with NaN where nothing may be read."""
    penalties = random_penalties(5, 5, 3, 2)
    lengths = torch.tensor([5, 3, 0, 4, 1])
    targets = torch.tensor([[0, 1, 1], [1, 0, -7], [99, 99, 99], [1, 1, 0], [0, 1, 1]])
    target_lengths = torch.tensor([3, 2, 0, 3, 2])
    for b, length in enumerate(lengths):
        penalties[b, length:] = float("nan")
        for k in range(3):
            penalties[b, :k, k] = float("nan")
    return penalties, lengths, targets, target_lengths


def test_ragged_samples_are_each_as_if_alone_whatever_lies_outside():
    penalties, lengths, targets, target_lengths = ragged()
    free, constrained = [], []
    for b, length in enumerate(lengths.tolist()):
        paths = all_paths(penalties[b], length)
        free.append(expected(paths, (5, 3, 2)))
        target = targets[b, : target_lengths[b]].tolist()
        constrained.append(expected(spelling(paths, target), (5, 3, 2)))
    penalties.requires_grad_()
    lattice = SegmentLattice(penalties, lengths)
    check(lattice, free)
    check(lattice.constrain(targets, target_lengths), constrained)
    check(lattice.to_arcs(), free, posteriors=False)
    check(lattice.constrain(targets, target_lengths).to_arcs(), constrained, posteriors=False)
    for one in (lattice, lattice.constrain(targets, target_lengths)):
        for penalty in (one.forward_penalty(), one.viterbi_penalty()):
            (grad,) = torch.autograd.grad(penalty.nan_to_num(posinf=0).sum(), penalties)
            assert torch.isfinite(grad).all()


def test_the_gradient_is_the_posterior_and_the_best_path():
    penalties, lengths, targets, target_lengths = ragged()
    penalties.requires_grad_()
    lattice = SegmentLattice(penalties, lengths)
    for one in (lattice, lattice.constrain(targets, target_lengths)):
        (grad,) = torch.autograd.grad(one.forward_penalty().sum(), penalties)
        torch.testing.assert_close(grad, one.posteriors().segments, **EXACT)
        (grad,) = torch.autograd.grad(one.viterbi_penalty().sum(), penalties)
        taken = torch.zeros_like(grad)
        for b, path in enumerate(one.best_path()):
            for i, label in enumerate(path.labels):
                end = path.cuts[i + 1]
                taken[b, end - 1, end - path.cuts[i] - 1, label] = 1
        torch.testing.assert_close(grad, taken)


def test_gradients_of_first_and_second_order():
    penalties = random_penalties(2, 3, 3, 2).requires_grad_()
    lengths, targets = torch.tensor([3, 2]), torch.tensor([[0, 1], [1, 1]])
    lattices = [
        lambda p: SegmentLattice(p, lengths),
        lambda p: SegmentLattice(p, lengths).constrain(targets, torch.tensor([2, 1])),
        lambda p: SegmentLattice(p, lengths).constrain(targets).to_arcs(),
    ]
    for make in lattices:
        for ask in ("forward_penalty", "viterbi_penalty", "entropy"):
            assert torch.autograd.gradcheck(lambda p: getattr(make(p), ask)(), penalties)  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda p: make(p).forward_penalty(), penalties)  # noqa: B023
        assert torch.autograd.gradcheck(lambda p: tuple(make(p).posteriors()), penalties)  # noqa: B023
    assert torch.autograd.gradgradcheck(lambda p: lattices[0](p).entropy(), penalties)


def test_identities():
    penalties = random_penalties(3, 5, 3, 2)
    lattice = SegmentLattice(penalties, torch.tensor([5, 4, 2]))
    segments, cuts = lattice.posteriors()
    spans = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[:, None]
    pieces = torch.tensor([5.0, 4.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close((spans * segments).sum((1, 2, 3)), pieces, **EXACT)
    # Across piece 1 of each sample goes exactly one segment: which end with it or later and begin before.
    over = segments[:, 1, :].sum((1, 2)) + segments[:, 2, 1:].sum((1, 2)) + segments[:, 3, 2:].sum((1, 2))
    torch.testing.assert_close(over, torch.ones(3, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(cuts[:, 0], torch.ones(3, dtype=torch.float64), **EXACT)
    # A constant per piece in every segment shifts every path by the same.
    shifted = SegmentLattice(penalties + 0.7 * spans, torch.tensor([5, 4, 2]))
    torch.testing.assert_close(shifted.forward_penalty(), lattice.forward_penalty() + 0.7 * pieces, **EXACT)
    cold = SegmentLattice(penalties / 1e-4, torch.tensor([5, 4, 2])).forward_penalty() * 1e-4
    torch.testing.assert_close(cold, lattice.viterbi_penalty(), atol=1e-9, rtol=0)


def test_no_samples_and_no_pieces():
    for penalties in (torch.zeros(0, 3, 2, 2), torch.zeros(2, 0, 2, 2)):
        samples = len(penalties)
        lattice = SegmentLattice(penalties)
        for one in (lattice, lattice.constrain(torch.zeros(samples, 1, dtype=torch.long))):
            assert one.forward_penalty().shape == (samples,)
            assert one.posteriors().cuts.shape == (samples, penalties.shape[1] + 1)
            assert len(one.best_path()) == len(one.n_best(1)) == samples
        assert [path.penalty for path in lattice.best_path()] == [0.0] * samples


def test_a_sample_with_nan_does_not_touch_the_others():
    penalties = random_penalties(3, 3, 2, 2)
    penalties[1] = float("nan")
    targets = torch.tensor([[0, 1]] * 3)
    for lattice in (SegmentLattice(penalties), SegmentLattice(penalties).constrain(targets)):
        assert lattice.forward_penalty().isnan().tolist() == [False, True, False]
        assert lattice.posteriors().cuts[[0, 2]].isfinite().all()


def test_infinite_penalties_give_no_nan():
    penalties = random_penalties(4, 3, 2, 2)
    penalties[0] = INF
    penalties[1, 0, 0, 0] = -INF
    penalties[2, 1] = INF  # only one way remains
    penalties[3, :, :, 0] = INF
    penalties[3, 2, 0, 1] = -INF
    targets = torch.tensor([[0, 1], [0, 1], [0, 1], [1, 1]])
    penalties.requires_grad_()
    lattice = SegmentLattice(penalties)
    for one in (lattice, lattice.constrain(targets), lattice.to_arcs(), lattice.to_arcs().constrain(targets)):
        assert one.feasible.tolist()[:2] == [False, True]
        forward, viterbi = one.forward_penalty(), one.viterbi_penalty()
        for penalty in (forward, viterbi):
            assert penalty[0] == INF
            assert penalty[1] == -INF
            (grad,) = torch.autograd.grad(penalty.sum(), penalties, retain_graph=True)
            assert torch.isfinite(grad).all()
            assert (grad[:2] == 0).all()
        assert torch.isfinite(one.entropy()).all()
        assert one.best_path()[0] == (INF, (), ())
        assert one.best_path()[1].penalty == -INF
        assert one.sample(1)[0] == []
    segments, cuts = lattice.posteriors()
    assert (segments[0] == 0).all()
    torch.testing.assert_close(cuts[1:, 3], torch.ones(3, dtype=torch.float64))


def test_an_infeasible_target_has_no_gradient_and_leaves_others_alone():
    penalties = random_penalties(2, 3, 2, 2).requires_grad_()
    lattice = SegmentLattice(penalties).constrain(torch.tensor([[0] * 4, [0, 1, 1, 9]]), torch.tensor([4, 3]))
    assert lattice.feasible.tolist() == [False, True]
    penalty = lattice.forward_penalty()
    assert penalty[0] == INF
    (grad,) = torch.autograd.grad(penalty.sum(), penalties)
    assert (grad[0] == 0).all()
    assert grad[1].sum() == pytest.approx(3)


def test_ties_go_to_the_shortest_last_segment_and_the_first_class():
    lattice = SegmentLattice(torch.zeros(1, 3, 3, 2))
    for one in (lattice, lattice.to_arcs()):
        assert one.best_path()[0] == (0.0, (0, 0, 0), (0, 1, 2, 3))
    constrained = lattice.constrain(torch.tensor([[1, 0]]))
    for one in (constrained, constrained.to_arcs(), lattice.to_arcs().constrain(torch.tensor([[1, 0]]))):
        assert one.best_path()[0] == (0.0, (1, 0), (0, 2, 3))
    penalties = torch.zeros(1, 3, 3, 2, requires_grad=True)
    SegmentLattice(penalties).viterbi_penalty().backward()
    assert penalties.grad[0, :, 0, 0].tolist() == [1, 1, 1]
    assert penalties.grad.sum() == 3


def test_samples_have_the_paths_probabilities():
    penalties = random_penalties(2, 3, 2, 2, scale=1.0)
    lattice = SegmentLattice(penalties, torch.tensor([3, 2]))
    draws = lattice.sample(4000, torch.Generator().manual_seed(0))
    assert draws == lattice.sample(4000, torch.Generator().manual_seed(0))
    for b, pieces in enumerate((3, 2)):
        paths = all_paths(penalties[b], pieces)
        total = expected(paths, (3, 2, 2))["forward"]
        seen = [(path.labels, path.cuts) for path in draws[b]]
        for penalty, labels, cuts in paths:
            probability = math.exp(total - penalty)
            error = 4 * math.sqrt(probability * (1 - probability) / 4000)
            assert seen.count((labels, cuts)) / 4000 == pytest.approx(probability, abs=error)
        assert all(
            path.penalty == pytest.approx(next(p for p, *rest in paths if tuple(rest) == path[1:]))
            for path in draws[b][:20]
        )


def test_n_best_lists_all_paths_where_there_are_no_more():
    penalties = random_penalties(1, 4, 2, 2)
    paths = sorted(all_paths(penalties[0]))
    found = SegmentLattice(penalties).n_best(10_000)[0]
    assert [(path.labels, path.cuts) for path in found] == [path[1:] for path in paths]


def test_float32_under_autocast_and_half_precision():
    penalties = random_penalties(2, 12, 4, 10, scale=50.0).bfloat16()
    targets = torch.tensor([[1, 2, 3, 4]] * 2)
    exact = SegmentLattice(penalties.float()).constrain(targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = SegmentLattice(penalties.requires_grad_()).constrain(targets)
        penalty = half.forward_penalty()
    assert penalty.dtype == torch.float32
    assert torch.equal(penalty, exact.forward_penalty())
    penalty.sum().backward()
    assert penalties.grad.dtype == torch.bfloat16


def test_everything_works_in_inference_mode():
    with torch.inference_mode():
        lattice = SegmentLattice(torch.rand(2, 3, 2, 2), torch.tensor([3, 2]))
        for one in (lattice, lattice.constrain(torch.tensor([[0, 1], [1, 1]]))):
            assert len(one.best_path()) == 2
            assert one.posteriors().cuts.shape == (2, 4)
            assert len(one.n_best(2)[0]) == 2
            assert one.entropy().shape == (2,)
    # What was cached there is of use elsewhere.
    penalties = torch.rand(2, 3, 2, 2, requires_grad=True)
    SegmentLattice(penalties).forward_penalty().sum().backward()
    assert penalties.grad.sum() > 0


def test_float32_far_from_0_and_long_rows():
    penalties = (600 + 20 * random_penalties(2, 200, 4, 10)).float()
    targets = torch.randint(0, 10, (2, 80), generator=torch.Generator().manual_seed(0))
    for make in (lambda p: SegmentLattice(p), lambda p: SegmentLattice(p).constrain(targets)):
        for ask in ("forward_penalty", "viterbi_penalty"):
            single, double = (getattr(make(p), ask)() for p in (penalties, penalties.double()))
            torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same():
    penalties, lengths, targets, target_lengths = ragged()
    on_cpu, on_gpu = (SegmentLattice(penalties.to(device), lengths) for device in ("cpu", "cuda"))
    for ask in (
        lambda lattice: lattice,
        lambda lattice: lattice.constrain(targets, target_lengths),
        lambda lattice: lattice.to_arcs(),
        lambda lattice: lattice.constrain(lexicon([(0, 1, 1), (1, 0)])),
    ):
        one, other = ask(on_cpu), ask(on_gpu)
        for name in ("forward_penalty", "viterbi_penalty", "entropy"):
            torch.testing.assert_close(getattr(one, name)(), getattr(other, name)().cpu(), **EXACT)
        assert [path[1:] for path in one.best_path()] == [path[1:] for path in other.best_path()]
        assert [len(paths) for paths in one.n_best(3)] == [len(paths) for paths in other.n_best(3)]
        assert len(other.sample(2)) == 5


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SegmentLattice(torch.zeros(2, 3, 4)), ValueError, r"`penalties`.*\[2, 3, 4\]"),
        (lambda: SegmentLattice(torch.zeros(2, 3, 0, 4)), ValueError, "at least 1"),
        (lambda: SegmentLattice(torch.zeros(2, 3, 1, 4).long()), TypeError, "`penalties`.*int64"),
        (
            lambda: lattice_of(2).constrain(torch.zeros(3, 2).long()),
            ValueError,
            r"`targets`.*B = 2.*\[3, 2\]",
        ),
        (lambda: lattice_of(2).constrain(torch.zeros(2, 2)), TypeError, "`targets`.*integers"),
        (lambda: lattice_of(2).constrain([[0], [1]]), TypeError, "`targets`.*tensor"),
        (
            lambda: lattice_of(2).constrain(torch.full((2, 2), 4)),
            ValueError,
            r"`targets` in \[0, 3\].*4 to 4",
        ),
        (
            lambda: lattice_of(2).constrain(torch.zeros(2, 2).long(), torch.tensor([2, 3])),
            ValueError,
            r"`target_lengths` in \[0, 2\].*2 to 3",
        ),
        (lambda: SegmentLattice(torch.zeros(2, 3, 1, 4), torch.tensor([3])), ValueError, "`lengths`.*B = 2"),
        (lambda: SegmentLattice(torch.zeros(2, 3, 1, 4), torch.tensor([3, 4])), ValueError, r"\[0, 3\]"),
        (lambda: lattice_of(2).n_best(0), ValueError, "`n`"),
        (
            lambda: lattice_of(2).constrain(
                ArcLattice([0], [1], [0], penalty=torch.zeros(1)), torch.tensor([1, 1])
            ),
            ValueError,
            "`target_lengths` only",
        ),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()


def lattice_of(samples):
    return SegmentLattice(torch.zeros(samples, 3, 2, 4))
