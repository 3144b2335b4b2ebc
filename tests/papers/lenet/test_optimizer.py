"""The steps and the schedule of the stochastic diagonal Levenberg-Marquardt method, in float64."""

import copy
import io
import pickle

import pytest
import torch
from papers.lenet.problems import _double, half_square, small_net  # noqa: F401
from torch import nn

from pl_losses.papers.lenet.optimizer import LeCun1998Schedule, StochasticDiagonalLM, lecun_1998_schedule

# --- the step ---


def test_the_step_formula_in_groups():
    a, b = nn.Linear(3, 2), nn.Linear(2, 1)
    groups = [{"params": a.parameters()}, {"params": b.parameters(), "lr": torch.tensor(0.5), "mu": 2.0}]
    optimizer = StochasticDiagonalLM(groups, lr=0.1, mu=0.3)
    network, x = nn.Sequential(a, nn.Tanh(), b), torch.randn(10, 3)
    optimizer.estimate_curvature(network, [(x, 1.0)], half_square)
    for _ in range(2):
        before = [p.detach().clone() for p in network.parameters()]
        optimizer.zero_grad()
        loss = half_square(network(x), 1.0)
        loss.backward()
        optimizer.step()
        for p, was in zip(network.parameters(), before, strict=True):
            lr, mu = (0.1, 0.3) if any(p is q for q in a.parameters()) else (0.5, 2.0)
            torch.testing.assert_close(p.detach(), was - lr / (mu + optimizer.state[p]["curvature"]) * p.grad)


def test_a_changed_curvature_or_mu_counts_at_once():
    layer = nn.Linear(2, 1, bias=False)
    optimizer = StochasticDiagonalLM(layer.parameters(), lr=1.0, mu=1.0)
    optimizer.estimate_curvature(layer, [(torch.ones(1, 2), 0.0)], half_square)

    def step():
        before = layer.weight.detach().clone()
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
        return (before - layer.weight.detach()).mean().item()

    assert step() == pytest.approx(1 / 2)
    optimizer.param_groups[0]["mu"] = 3.0
    assert step() == pytest.approx(1 / 4)
    optimizer.estimate_curvature(layer, [(2 * torch.ones(1, 2), 0.0)], half_square)
    assert step() == pytest.approx(1 / 7)
    optimizer.state[layer.weight]["curvature"].fill_(5.0)
    assert step() == pytest.approx(1 / 8)


def test_closure_and_parameters_without_gradient():
    network, x = small_net(), torch.randn(5, 4)
    optimizer = StochasticDiagonalLM(network.parameters(), lr=1e-2)
    optimizer.estimate_curvature(network, [(x, 0.0)], half_square)
    untouched = network[4].bias.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = half_square(network(x), 0.0)
        loss.backward()
        network[4].bias.grad = None
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
    assert torch.equal(network[4].bias, untouched)


def test_state_survives_a_checkpoint():
    network, x = small_net(), torch.randn(5, 4)
    optimizer = StochasticDiagonalLM(network.parameters(), lr=1e-2)
    optimizer.estimate_curvature(network, [(x, 0.0)], half_square)
    half_square(network(x), 0.0).backward()
    twin = copy.deepcopy(network)
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        q.grad = p.grad.clone()
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = StochasticDiagonalLM(twin.parameters())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.step()
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
    assert {key for state in optimizer.state_dict()["state"].values() for key in state} == {"curvature"}


def test_copies_and_pickles_step_alike():
    layer = nn.Linear(2, 1)
    optimizer = StochasticDiagonalLM(layer.parameters())
    optimizer.estimate_curvature(layer, [(torch.ones(1, 2), 0.0)], half_square)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        p = other.param_groups[0]["params"][0]
        p.grad = torch.ones_like(p)
        other.step()
        torch.testing.assert_close(p.detach(), layer.weight.detach() - 5e-4 / 1.02)


# --- the schedule ---


def test_the_schedule_of_the_paper():
    passes = [5e-4] * 2 + [2e-4] * 3 + [1e-4] * 3 + [5e-5] * 4 + [1e-5] * 8
    assert [lecun_1998_schedule(n) for n in range(1, 21)] == passes
    optimizer = StochasticDiagonalLM(nn.Linear(1, 1).parameters())
    schedule = LeCun1998Schedule(optimizer)
    got = []
    for _ in range(20):
        got.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert got == pytest.approx(passes, rel=1e-12)


def test_the_schedule_scales_and_resumes():
    optimizer = StochasticDiagonalLM(nn.Linear(1, 1).parameters(), lr=1e-2)
    schedule = LeCun1998Schedule(optimizer)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    state = pickle.loads(pickle.dumps(schedule.state_dict()))
    resumed = LeCun1998Schedule(StochasticDiagonalLM(nn.Linear(1, 1).parameters(), lr=1e-2))
    resumed.load_state_dict(state)
    assert resumed.get_last_lr() == pytest.approx([2e-3])
    assert pickle.loads(pickle.dumps(schedule)).get_last_lr() == pytest.approx([2e-3])
    with pytest.raises(ValueError, match="`pass_number` to be at least 1 but got 0"):
        lecun_1998_schedule(0)


# --- errors ---


@pytest.mark.parametrize(
    ("options", "name"), [({"lr": -1.0}, "lr"), ({"mu": 0.0}, "mu"), ({"mu": float("nan")}, "mu")]
)
def test_bad_options(options, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        StochasticDiagonalLM(nn.Linear(1, 1).parameters(), **options)


def test_no_step_without_an_estimate():
    layer = nn.Linear(2, 1)
    optimizer = StochasticDiagonalLM(layer.parameters())
    optimizer.step()
    layer(torch.ones(1, 2)).sum().backward()
    with pytest.raises(
        RuntimeError, match=r"parameter 0 of group 0, of shape \[1, 2\]: call `estimate_curvature`"
    ):
        optimizer.step()


# --- what it is for ---


def train(optimizer, network, x, target, passes):
    for _ in range(passes):
        if isinstance(optimizer, StochasticDiagonalLM):
            optimizer.estimate_curvature(network, [(x, target)], half_square)
        for i in range(0, len(x), 10):
            optimizer.zero_grad()
            half_square(network(x[i : i + 10]), target[i : i + 10]).backward()
            optimizer.step()
    with torch.no_grad():
        loss = half_square(network(x), target).item()
    return loss if loss == loss else float("inf")


def best(make, start, x, target):
    """The loss after 5 passes with the best of 17 rates, three for each factor of ten."""
    losses = []
    for k in range(-15, 2):
        network = copy.deepcopy(start)
        losses.append(train(make(network.parameters(), lr=10 ** (k / 3)), network, x, target, passes=5))
    return min(losses)


@pytest.mark.parametrize(("hidden", "factor"), [(0, 1e-6), (8, 0.6)])
def test_beats_the_best_of_many_sgd_rates_where_inputs_are_badly_scaled(hidden, factor):
    scale = torch.logspace(0, 2, 6)
    x = torch.randn(100, 6)
    teacher = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)) if hidden else nn.Linear(6, 1)
    start = (
        nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 1)) if hidden else nn.Linear(6, 1)
    )
    with torch.no_grad():
        target = teacher(2 * x)
        next(start.parameters()).div_(scale)
    ours, theirs = (best(make, start, x * scale, target) for make in (StochasticDiagonalLM, torch.optim.SGD))
    # Up to 4e-17 and 0.19 for six seeds.
    assert ours < factor * theirs
