"""What cannot be computed for many samples at a time is computed one by one, to the same result."""

import copy
import itertools
import logging
import random
import re

import numpy as np
import pytest
import torch
from papers.dropout.sampling.called import Called
from papers.dropout.sampling.fast import P, counted, inputs, linear, one_by_one
from torch.nn import functional as F

from pl_losses.papers.dropout.sampling import vectorized as module_under_test
from pl_losses.papers.dropout.sampling.sampling import mc_samples


def filled(m, x):
    hidden, output = F.dropout(x, P, m.training), torch.zeros(4, 8, dtype=x.dtype)
    output[:, :4] = hidden[:, 4:]
    return output


def deciding(m, x):
    x = F.dropout(m.first(x), P, m.training)
    return m.second(x) if x[0, 0] > 0 else x


class Untold(torch.autograd.Function):
    """A function of the user's that says nothing about `torch.func.vmap`."""

    @staticmethod
    def forward(ctx, x):
        return x.sin()


def noisy(m, x):
    return F.dropout(m.first(x), P, m.training) + torch.randn(8)


def noisy_before(m, x):
    return F.dropout(m.first(x + torch.randn(8)), P, m.training)


def noisy_in_numpy(m, x):
    return F.dropout(m.first(x), P, m.training) * np.random.rand()


def noisy_in_python(m, x):
    return F.dropout(m.first(x) * random.random(), P, m.training)


def counting(m, x):
    m.steps += 1
    return F.dropout(m.first(x) * m.steps, P, m.training)


def collecting(m, x):
    m.kept = [*m.kept[:1], F.dropout(m.first(x), P, m.training)]
    return m.kept[-1]


def alternating(m, x):
    m.number += 1
    x = [m.first, m.second][m.number % 2](x)
    return F.dropout(x, P, m.training)


def shared_memory(m, x):
    """In place on one view of what another one, computed before the dropout, sees."""
    x = m.first(x)
    left, dropped = x[:, :4], F.dropout(x, P, m.training)
    left.mul_(2)
    return dropped + x


def with_arrays(m, x):
    return F.dropout(m.first(x) + torch.from_numpy(x.numpy() * 2), P, m.training)


def with_gradients(m, x):
    with torch.enable_grad():
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(m.first(x).square().sum(), x)
    return F.dropout(slope, P, m.training)


SLOW = {
    "decision": (deciding, r"data-dependent control flow|__bool__", "replayed"),
    "own function": (lambda m, x: Untold.apply(F.dropout(m.first(x), P)), "vmap", "replayed"),
    "new tensor": (filled, "inplace|vmap", "replayed"),
    "noise after": (noisy, "random numbers", "whole"),
    "noise before": (noisy_before, "random numbers", "whole"),
    "NumPy": (noisy_in_numpy, "random numbers", "whole"),
    "Python": (noisy_in_python, "random numbers", "whole"),
    "counts": (counting, "changes what it holds", "whole"),
    "collects": (collecting, "changes what it holds", "whole"),
    "alternates": (alternating, "changes what it holds", "whole"),
}


def troublesome(function):
    torch.manual_seed(0)
    module = Called(function, first=linear(), second=linear()).double()
    module.register_buffer("steps", torch.zeros(()))
    module.number, module.kept = 0, []
    return module


@pytest.mark.parametrize("kind", SLOW)
def test_what_cannot_be_computed_together_is_one_at_a_time_and_says_so_once(kind, monkeypatch, caplog):
    function, reason, way = SLOW[kind]
    monkeypatch.setattr(module_under_test, "_logged", set())
    counts = counted(monkeypatch)
    module = troublesome(function)
    twin, x = copy.deepcopy(module), inputs(4, 8)
    with caplog.at_level(logging.WARNING):
        samples = mc_samples(module, x, 6, seed=0)
    (record,) = caplog.records
    assert record.getMessage().startswith("The samples of Called are computed one at a time")
    assert "http" not in record.getMessage()
    assert "please" not in record.getMessage().lower()
    assert re.search(reason, record.getMessage())
    assert counts[way] >= 5
    expected = one_by_one(monkeypatch, twin, x, 6, seed=0)
    torch.testing.assert_close(samples, expected, rtol=1e-12, atol=1e-12)
    mc_samples(module, x, 2, seed=0)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("function", [shared_memory, with_arrays, with_gradients])
def test_a_beginning_that_cannot_be_recorded_is_computed_with_the_rest(function, monkeypatch):
    counts, module, x = counted(monkeypatch), troublesome(function), inputs(4, 8)
    samples = mc_samples(module, x, 6, seed=0)
    expected = one_by_one(monkeypatch, module, x, 6, seed=0)
    torch.testing.assert_close(samples, expected, rtol=1e-12, atol=1e-12)
    assert counts["replayed"] == 0


VARYING = {
    "weights": lambda m, x, turn: [m.first, m.second][turn](x),
    "tensors": lambda m, x, turn: [m.first(x), m.second(x)][:: 1 - 2 * turn][0] * 1,
    "fewer": lambda m, x, turn: [lambda y: y * 2, lambda y: y][turn](m.first(x)),
    "more": lambda m, x, turn: [lambda y: y, lambda y: y * 2][turn](m.first(x)),
    "numbers": lambda m, x, turn: m.first(x) * (turn + 1),
}


@pytest.mark.parametrize("kind", VARYING)
def test_a_beginning_that_varies_is_never_given_back(kind):
    """By a state that nobody sees: each pass has what is its turn, as in a loop over the samples."""
    turns, vary = itertools.cycle((0, 1)), VARYING[kind]
    module = Called(lambda m, x: F.dropout(vary(m, x, next(turns)), P), first=linear(), second=linear())
    module, x = module.double(), inputs(40, 8)
    samples = mc_samples(module, x, 7, seed=0)
    dropped = samples == 0
    assert 0.1 < dropped.double().mean() < 0.5
    fits = []
    for turn in (0, 1):
        expected = vary(module, x, turn).detach() / (1 - P)
        close = (samples - expected).abs() < 1e-4 * expected.abs() + 1e-4
        fits.append(close.logical_or(dropped).flatten(1).all(dim=1))
    assert (fits[0] ^ fits[1]).all()
    assert fits[0][1:].tolist() in ([True, False] * 3, [False, True] * 3)


def test_random_numbers_that_are_first_drawn_in_later_passes_are_noticed(monkeypatch):
    passes, counts = itertools.count(), counted(monkeypatch)
    module = Called(lambda m, x: F.dropout(x, P) * (random.random() if next(passes) else 1.0))
    samples = mc_samples(module, inputs(4, 8), 10, seed=0)
    assert counts["replayed"] == 10
    factors = (samples.abs() / inputs(4, 8).abs() * (1 - P)).amax(dim=(1, 2))
    assert len(factors.round(decimals=6).unique()) == 10


def test_tensors_of_inference_mode_are_no_hindrance_unless_they_are_changed(monkeypatch):
    """Such as the states of metrics, after a validation."""
    module = Called(lambda m, x: F.dropout(m.first(x), P, m.training), first=linear()).double()
    x = inputs(4, 8)
    expected, counts = mc_samples(module, x, 9, seed=0), counted(monkeypatch)
    with torch.inference_mode():
        module.correct = torch.zeros(())
        samples = mc_samples(module, x, 9, seed=0)
        torch.testing.assert_close(samples, expected, rtol=1e-12, atol=1e-12)
        assert counts == {"many": 1, "replayed": 0, "whole": 0}
        for part in (changing := troublesome(counting), attribute := troublesome(counting)):
            part.steps = torch.zeros(())
        del attribute.steps
        attribute.__dict__["steps"] = torch.zeros(())
        samples = mc_samples(changing, inputs(4, 8), 9, seed=0)
        assert counts == {"many": 1, "replayed": 0, "whole": 9}
        assert changing.steps == 9
        mc_samples(attribute, inputs(4, 8), 9, seed=0)
        assert counts == {"many": 1, "replayed": 0, "whole": 18}
    torch.testing.assert_close(samples, mc_samples(troublesome(counting), inputs(4, 8), 9, seed=0))
