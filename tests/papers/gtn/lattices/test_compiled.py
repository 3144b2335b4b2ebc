"""The compiled kernels beside the same lattices by operations on tensors."""

import sys

import pytest
import torch

from pl_losses.core.kernels import is_plain, kernels
from pl_losses.papers.gtn import SegmentLattice
from pl_losses.papers.gtn.lattices import segmental

NAME = "pl_losses.papers.gtn.lattices.compiled"
pytest.importorskip(NAME, reason="no Numba: install the extra `fast`", exc_type=ImportError)


def drawn(seed, dtype=torch.float64):
    """Penalties [7, 6, 3, 4] with infinite ones, lengths, targets and their lengths, some not feasible."""
    generator = torch.Generator().manual_seed(seed)
    penalties = 5 * torch.randn(7, 6, 3, 4, generator=generator, dtype=dtype)
    chosen = torch.rand(penalties.shape, generator=generator)
    penalties[chosen < 0.2] = float("inf")
    penalties[0][chosen[0] > 0.9] = -float("inf")
    return (
        penalties.requires_grad_(),
        torch.randint(0, 7, (7,), generator=generator),
        torch.randint(0, 4, (7, 4), generator=generator),
        torch.randint(0, 5, (7,), generator=generator),
    )


def penalties_and_gradients(seed, dtype=torch.float64):
    penalties, lengths, targets, target_lengths = drawn(seed, dtype)
    found = []
    free = SegmentLattice(penalties, lengths)
    for lattice in (
        free,
        free.constrain(targets, target_lengths),
        SegmentLattice(penalties).constrain(targets),
    ):
        for penalty in (lattice.forward_penalty(), lattice.viterbi_penalty()):
            worth = torch.arange(1.0, 8.0, dtype=dtype)
            (grad,) = torch.autograd.grad((worth * penalty).sum(), penalties)
            found += [penalty.detach(), grad]
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_infinite_ragged_and_infeasible(seed, dtype, monkeypatch):
    mine = penalties_and_gradients(seed, dtype)
    monkeypatch.setattr(segmental, "kernels", lambda name: None)
    torch.testing.assert_close(mine, penalties_and_gradients(seed, dtype))


def test_threads_share_the_samples(monkeypatch):
    one = penalties_and_gradients(0)
    monkeypatch.setattr("pl_losses.core.kernels.SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.testing.assert_close(penalties_and_gradients(0), one, rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["channels first", "expanded", "a part"])
def test_any_layout(layout):
    penalties = {
        "channels first": torch.rand(3, 4, 5, 2).permute(0, 2, 3, 1),
        "expanded": torch.rand(1, 5, 2, 4).expand(3, 5, 2, 4),
        "a part": torch.rand(3, 5, 2, 8)[..., ::2],
    }[layout].requires_grad_()
    results = []
    for given in (
        penalties,
        penalties.detach().clone(memory_format=torch.contiguous_format).requires_grad_(),
    ):
        penalty = SegmentLattice(given).forward_penalty()
        results.append((penalty.detach(), *torch.autograd.grad(penalty.sum(), given)))
    torch.testing.assert_close(*results)


def test_without_numba(monkeypatch):
    kernels.cache_clear()
    monkeypatch.delitem(sys.modules, NAME)
    monkeypatch.setitem(sys.modules, "numba", None)
    penalties = drawn(0)[0]
    penalty = SegmentLattice(penalties).forward_penalty()
    assert type(penalty.grad_fn).__name__ == "_PenaltiesBackward"
    kernels.cache_clear()
    monkeypatch.undo()
    penalty = SegmentLattice(penalties).forward_penalty()
    assert type(penalty.grad_fn).__name__ == "CompiledPenaltyBackward"


def test_only_plain_tensors_are_read():
    assert is_plain(torch.zeros(1))
    assert not is_plain(torch.zeros(1, dtype=torch.bfloat16))
    assert not is_plain(torch.zeros(1, device="meta"))
    seen = []
    torch.func.vmap(lambda one: [seen.append(is_plain(one)), one][1])(torch.zeros(2, 1))
    assert seen == [False]
