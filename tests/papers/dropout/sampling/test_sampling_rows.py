"""The samples as further rows of the batch, and plans of modules seen before, held against the other ways."""

import copy
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from papers.dropout.sampling.called import Called
from papers.dropout.sampling.fast import P, counted, inputs, linear
from papers.dropout.sampling.test_sampling_fast import make
from torch import nn
from torch.nn import functional as F

from pl_losses.core import kernels
from pl_losses.papers.dropout.sampling.rows import KERNELS, in_rows
from pl_losses.papers.dropout.sampling.sampling import mc_samples


def network():
    return nn.Sequential(linear(), nn.ReLU(inplace=True), nn.Dropout(P), linear(), nn.Dropout(0.02)).double()


@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize(
    "kind", ["Dropout", "input in place", "Dropout1d", "2d and BatchNorm", "Dropout3d", "TransformerEncoder"]
)
def test_rows_are_the_same_as_the_other_ways(kind, chunk, monkeypatch):
    module, x = make(kind)
    before = x.clone()
    rows = in_rows(module.train(), x, seed=3, samples=9, chunk=chunk)
    assert torch.equal(x, before)
    assert torch.equal(rows, mc_samples(module, x, 9, chunk=chunk, seed=3))
    counted(monkeypatch)  # It switches this way off.
    torch.testing.assert_close(rows, mc_samples(module, x, 9, chunk=chunk, seed=3), rtol=1e-12, atol=1e-12)


class Own(nn.Linear):
    pass


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].register_forward_hook(lambda *_: None),
        lambda m: m[3].register_forward_pre_hook(lambda *_: None),
        lambda m: setattr(m[3], "forward", lambda x: x.flip(0)),
        lambda m: m.append(Own(8, 8).double()),
        lambda m: m.append(nn.LayerNorm((4, 8)).double()),
        lambda m: m.append(nn.Flatten(0)),
        lambda m: m.append(nn.BatchNorm1d(8, track_running_stats=False).double()),
        lambda m: m.append(nn.RReLU()),
        lambda m: (setattr(m[2], "p", 0.0), setattr(m[4], "p", 0.0)),
    ],
)
def test_a_change_after_the_first_call_ends_the_way_of_rows(change):
    module, x = network(), inputs(4, 8)
    assert in_rows(module, x, seed=0, samples=5, chunk=None) is not None
    change(module)
    assert in_rows(module, x, seed=0, samples=5, chunk=None) is None


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d(3), (2, 3, 4, 4)), (nn.BatchNorm2d(3), (2, 3, 4))]
)
def test_what_a_norm_refuses_is_refused(norm, shape):
    with pytest.raises(ValueError, match="expected"):
        mc_samples(nn.Sequential(nn.Dropout(P), norm), torch.zeros(shape), 5)


def planned():
    return Called(
        lambda m, x: m.second(F.dropout(m.first(x), m.p, m.training)), first=linear(), second=linear()
    )


def test_a_module_seen_before_takes_one_pass_and_gives_the_same_bits(monkeypatch):
    counts, module, x = counted(monkeypatch), planned().double(), inputs(4, 8)
    module.p = P
    first = mc_samples(module, x, 9, seed=0)
    recorded = []
    monkeypatch.setattr(
        "pl_losses.papers.dropout.sampling.vectorized.PrefixTrace", lambda *_: recorded.append(1)
    )
    assert torch.equal(first, mc_samples(module, x, 9, seed=0))
    assert counts == {"many": 2, "replayed": 0, "whole": 0}
    assert not recorded


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "p", 0.5),
        lambda m: (
            setattr(m, "first", nn.Linear(8, 16).double()) or setattr(m, "second", nn.Linear(16, 8).double())
        ),
        lambda m: setattr(m, "function", lambda m, x: F.dropout(F.dropout(m.first(x), P), P)),
        lambda m: m.float(),
        lambda m: setattr(m, "function", lambda m, x: x + setattr(m, "p", m.p / 2) if m.p else x),
        lambda m: setattr(m, "function", lambda m, x: F.dropout(x, P) * torch.rand(())),
        lambda m: m.first.weight.data.mul_(2),
        lambda m: m.first.register_forward_hook(lambda m, x, y: y * 2),
    ],
)
def test_no_plan_is_out_of_date(change):
    module, fresh, x = planned().double(), planned().double(), inputs(4, 8)
    fresh.load_state_dict(module.state_dict())
    module.p = fresh.p = P
    mc_samples(module, x, 9, seed=0)
    torch.manual_seed(0)
    change(module)
    torch.manual_seed(0)
    change(fresh)
    if module.first.weight.dtype == torch.float32:
        x = x.float()

    def samples(module):
        try:
            return mc_samples(module, x, 9, seed=0)
        except TypeError as error:
            return str(error)

    assert type(found := samples(module)) is type(expected := samples(fresh))
    assert found == expected if isinstance(found, str) else torch.equal(found, expected)


NETWORKS = {
    "vectors": lambda p: (nn.Sequential(nn.Dropout(p), linear(), nn.ReLU(), nn.Dropout(p)), (5, 8)),
    "no batch to repeat": lambda p: (nn.Sequential(linear(), nn.Dropout(p), linear(), nn.Dropout(p)), (1, 8)),
    "maps": lambda p: (nn.Sequential(nn.Dropout2d(p), nn.Conv2d(3, 4, 3), nn.Dropout2d(p)), (2, 3, 6, 6)),
    "attention": lambda p: (
        nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, p, batch_first=True), nn.Dropout(p)),
        (3, 4, 8),
    ),
    "few dropped": lambda p: (nn.Sequential(nn.Dropout(0.02), linear(), nn.Dropout(p)), (600, 8)),
}


@pytest.mark.parametrize("p", [0.5, 0.3, 0.05, 1.0])
@pytest.mark.parametrize("kind", NETWORKS)
def test_compiled_kernels_give_the_same_bits(kind, p, monkeypatch):
    module = pytest.importorskip(KERNELS, reason="no Numba: install the extra `fast`", exc_type=ImportError)
    calls, drop = [], module.drop
    monkeypatch.setattr(module, "drop", lambda *args: calls.append(args) or drop(*args))
    network, shape = NETWORKS[kind](p)
    x = inputs(*shape).float()
    x[0, 0] = torch.nan
    for samples in (1, 7):
        expected = in_rows(network, x, seed=3, samples=samples, chunk=None)
        assert not calls
        with monkeypatch.context() as loaded:
            loaded.setitem(kernels._loaded, KERNELS, module)
            found = in_rows(network, x, seed=3, samples=samples, chunk=None)
            assert in_rows(network.double(), x.double(), seed=3, samples=samples, chunk=None) is not None
        network.float()
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        # A convolution's size is known after a first sample; and of few that are dropped places are drawn.
        others = (kind == "maps" and samples > 1) or (kind == "few dropped" and p < 0.1)
        assert bool(calls) != others
        calls.clear()


def test_kernels_are_loaded_once_they_were_asked_for_often(monkeypatch):
    monkeypatch.setattr(kernels, "_loaded", {})
    monkeypatch.setattr(kernels, "_asked", Counter())
    monkeypatch.setattr(kernels, "kernels", lambda name: f"the module {name}")
    found = [kernels.kernels_for_often("a") for _ in range(kernels.OFTEN)]
    assert found == [None] * kernels.OFTEN
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(10)
    assert kernels.kernels_for_often("a") == "the module a"
    assert kernels.kernels_for_often("b") is None


@pytest.mark.parametrize("module", [network, lambda: planned().double()])
def test_an_integer_of_numpy_is_the_same_seed(module):
    module, x = module(), inputs(4, 8)
    module.p = P
    assert torch.equal(mc_samples(module, x, 5, seed=7), mc_samples(module, x, 5, seed=np.int64(7)))


def test_threads_take_turns():
    """Modes and random streams are those of all threads."""

    def passes(module, x):
        return module.second(F.dropout(module.first(x), P) + 0 * (torch.rand(()) if module.training else 0))

    module, x = Called(passes, first=linear(), second=linear()).double(), inputs(4, 8)
    module.train()
    before, expected = torch.get_rng_state(), mc_samples(module, x, 5, seed=0)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: mc_samples(module, x, 5, seed=0), range(40)))
    assert all(torch.equal(one, expected) for one in found)
    assert all(part.training for part in module.modules())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "keep", [lambda held, y: held.update(a=y), lambda held, y: held["a"].mul_(0.9).add_(y.detach().mean(0))]
)
def test_a_value_that_is_kept_in_a_collection_is_no_samples(keep):
    def passes(module, x):
        y = F.dropout(module.first(x), P)
        result = y + module.held["a"]
        keep(module.held, y.mean(0))
        return result

    def module():
        found = Called(passes, first=linear()).double()
        found.held = {"a": torch.zeros(8, dtype=torch.float64)}
        return found

    torch.manual_seed(0)
    one, x = module(), inputs(4, 8)
    other = module()
    other.load_state_dict(one.state_dict())
    assert torch.equal(mc_samples(one, x, 6, seed=0), mc_samples(other, x, 6, seed=0, chunk=1))
    assert one.held["a"].shape == (8,)
    copy.deepcopy(one)
