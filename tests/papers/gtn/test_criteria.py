from itertools import product

import pytest
import torch
from papers.gtn.lattices.brute_force import all_paths, expected, random_penalties

from pl_losses.losses import (
    discriminative_forward_loss,
    discriminative_viterbi_loss,
    forward_loss,
    viterbi_loss,
)
from pl_losses.papers.gtn import ArcLattice, SegmentLattice, lexicon
from pl_losses.papers.gtn.lattices.frames import FrameLattice
from pl_losses.papers.gtn.lattices.protocol import (
    ConstrainableLattice,
    DecodableLattice,
    Lattice,
    PathPenalties,
)

INF = float("inf")
LOSSES = (viterbi_loss, discriminative_viterbi_loss, forward_loss, discriminative_forward_loss)


def test_the_papers_example_of_discriminative_viterbi_training():
    # Target "34". Two pieces, or three: "3" is the first; then "4" for the rest, or "1" and another "4".
    source = [0, 1, 1, 2, 0]
    destination = [1, 3, 2, 3, 2]
    label = [3, 4, 1, 4, 5]
    penalty = torch.tensor([0.1, 0.6, 0.1, 0.4, 2.3], dtype=torch.float64, requires_grad=True)
    lattice = ArcLattice(source, destination, label, penalty=penalty)
    target = torch.tensor([[3, 4]])
    assert lattice.best_path()[0].labels == (3, 1, 4)
    assert lattice.viterbi_penalty().item() == pytest.approx(0.6)
    assert viterbi_loss(lattice, target).item() == pytest.approx(0.7)
    loss = discriminative_viterbi_loss(lattice, target)
    assert loss.item() == pytest.approx(0.1)
    loss.backward()
    assert penalty.grad.tolist() == [0, 1, -1, -1, 0]


def dense_example():
    """The same in pieces: a cut after the "3", one in the middle of the "4"."""
    penalties = torch.full((1, 3, 2, 10), 5.0, dtype=torch.float64)
    penalties[0, 0, 0, 3] = 0.1
    penalties[0, 2, 1, 4] = 0.6
    penalties[0, 1, 0, 1] = 0.1
    penalties[0, 2, 0, 4] = 0.4
    return penalties.requires_grad_()


def test_the_papers_example_over_segments():
    penalties = dense_example()
    loss = discriminative_viterbi_loss(SegmentLattice(penalties), torch.tensor([[3, 4]]))
    loss.backward()
    assert loss.item() == pytest.approx(0.1)
    wanted = torch.zeros_like(penalties)
    wanted[0, 2, 1, 4], wanted[0, 1, 0, 1], wanted[0, 2, 0, 4] = 1, -1, -1
    assert torch.equal(penalties.grad, wanted)


def test_all_four_equal_the_list_of_all_paths():
    penalties = random_penalties(2, 4, 2, 2)
    targets = torch.tensor([[0, 1, 1], [1, 0, 0]])
    for b, loss in product(range(2), LOSSES):
        paths = all_paths(penalties[b])
        free = expected(paths, (4, 2, 2))
        constrained = expected([p for p in paths if p[1] == tuple(targets[b].tolist())], (4, 2, 2))
        kind = "viterbi" if "viterbi" in loss.__name__ else "forward"
        by_hand = constrained[kind] - (free[kind] if "discriminative" in loss.__name__ else 0)
        for lattice in (SegmentLattice(penalties), SegmentLattice(penalties).to_arcs()):
            assert float(loss(lattice, targets, reduction="none")[b]) == pytest.approx(by_hand, abs=1e-12)


def test_the_probabilities_of_all_strings_sum_to_1():
    penalties = random_penalties(1, 4, 3, 2)
    strings = [labels for length in range(1, 5) for labels in product(range(2), repeat=length)]
    lengths = torch.tensor([len(string) for string in strings])
    targets = torch.tensor([[*string, *[0] * (4 - len(string))] for string in strings])
    lattice = SegmentLattice(penalties.expand(len(strings), -1, -1, -1))
    losses = discriminative_forward_loss(lattice, targets, lengths, "none")
    assert float(torch.exp(-losses).sum()) == pytest.approx(1, abs=1e-12)
    truth = expected(all_paths(penalties[0]), (4, 3, 2))["strings"]
    assert torch.exp(-losses).tolist() == pytest.approx([truth[s] for s in strings], abs=1e-12)


def test_gradients_are_differences_of_posteriors():
    penalties = random_penalties(3, 4, 2, 3).requires_grad_()
    lattice, targets = SegmentLattice(penalties, torch.tensor([4, 3, 4])), torch.tensor([[0, 2, 1]] * 3)
    (grad,) = torch.autograd.grad(discriminative_forward_loss(lattice, targets, reduction="sum"), penalties)
    difference = lattice.constrain(targets).posteriors().segments - lattice.posteriors().segments
    torch.testing.assert_close(grad, difference, atol=1e-12, rtol=1e-12)
    for loss in LOSSES:
        assert torch.autograd.gradcheck(
            lambda p: loss(SegmentLattice(p, torch.tensor([4, 3, 4])), targets),  # noqa: B023
            penalties,
        )
    assert torch.autograd.gradgradcheck(
        lambda p: discriminative_forward_loss(SegmentLattice(p[:1]), targets[:1]), penalties
    )


def test_reductions_leave_out_what_has_no_path():
    penalties = random_penalties(3, 3, 2, 2).requires_grad_()
    lattice = SegmentLattice(penalties, torch.tensor([3, 1, 3]))
    targets = torch.tensor([[0, 1], [0, 1], [1, 1]])
    for loss in LOSSES:
        each = loss(lattice, targets, reduction="none")
        assert each[1] == INF
        assert torch.equal(loss(lattice, targets, reduction="sum"), each[0] + each[2])
        mean = loss(lattice, targets)
        torch.testing.assert_close(mean, (each[0] + each[2]) / 2)
        (grad,) = torch.autograd.grad(mean, penalties)
        assert torch.isfinite(grad).all()
        assert (grad[1] == 0).all()
        none = loss(SegmentLattice(penalties, torch.tensor([1, 1, 1])), targets)
        assert none == 0
        (grad,) = torch.autograd.grad(none, penalties)
        assert (grad == 0).all()


def test_discriminative_criteria_are_never_negative():
    penalties = random_penalties(200, 6, 1, 3, scale=400.0).float()
    targets = penalties[:, :, 0].argmin(-1)
    lattice = SegmentLattice(penalties)
    assert (discriminative_forward_loss(lattice, targets, reduction="none") >= 0).all()
    assert (discriminative_viterbi_loss(lattice, targets, reduction="none") == 0).all()


def test_certain_segments_give_no_nan():
    penalties = random_penalties(2, 2, 2, 2)
    penalties[:, 0, 0, 0] = -INF
    penalties.requires_grad_()
    targets = torch.tensor([[0, 1], [1, 1]])
    for loss in (discriminative_viterbi_loss, discriminative_forward_loss):
        each = loss(SegmentLattice(penalties), targets, reduction="none")
        assert each.tolist() == [0, INF]
        (grad,) = torch.autograd.grad(loss(SegmentLattice(penalties), targets), penalties)
        assert (grad == 0).all()


def test_an_unknown_reduction_is_refused():
    for loss in LOSSES:
        with pytest.raises(ValueError, match='"mean", "sum" or "none" but got \'avg\''):
            loss(SegmentLattice(torch.zeros(1, 1, 1, 1)), torch.tensor([[0]]), reduction="avg")


def test_every_lattice_has_what_losses_and_readers_ask_for():
    segments = SegmentLattice(torch.rand(1, 3, 2, 3))
    frames = FrameLattice(torch.rand(1, 3, 3), torch.tensor([3]))
    for lattice in (segments, segments.to_arcs(), frames):
        assert isinstance(lattice, ConstrainableLattice)
        assert isinstance(lattice, DecodableLattice)
        spelt = lattice.constrain(targets=torch.tensor([[0, 1]]), target_lengths=torch.tensor([2]))
        assert isinstance(spelt, PathPenalties)
        assert bool(spelt.feasible)
        assert isinstance(lattice.constrain(targets=lexicon([(0, 1), (1,)])), Lattice)
    assert all(isinstance(lattice, Lattice) for lattice in (segments, segments.to_arcs()))
    assert not isinstance(frames, Lattice)


def test_a_lattice_without_penalties_is_refused():
    class Half:
        def constrain(self, targets, target_lengths=None):
            return self

    with pytest.raises(TypeError, match="Expected `lattice` to be a ConstrainableLattice"):
        viterbi_loss(Half(), torch.tensor([[0]]))
