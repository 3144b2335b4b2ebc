"""Adam with a switch against Algorithm 1 written out, and against torch; AdaMax against Algorithm 2."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import nn

from pl_losses.papers.adam import Adam, AdaMax

SWITCH = (True, False, "denominator")
KERNELS = ({"foreach": False}, {"foreach": True}, {"fused": True}, {"capturable": False, "foreach": None})
SHAPES = [(3, 4), (5,), ()]


def parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def gradients(steps, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield [
            torch.randn(shape, generator=generator, dtype=dtype)
            * 10 ** torch.randn((), generator=generator, dtype=dtype)
            for shape in SHAPES
        ]


def train(optimizer, weights, steps=30, skip=lambda step, index: False):
    for step, grads in enumerate(gradients(steps, weights[0].dtype)):
        for index, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
            weight.grad = None if skip(step, index) else grad.clone()
        optimizer.step()
    return [weight.detach().clone() for weight in weights]


def algorithm_1(weight, grads, switch, lr, betas, eps, l2=0.0, decoupled=0.0, amsgrad=False, maximize=False):
    beta1, beta2 = betas
    m = v = largest = torch.zeros_like(weight)
    for t, grad in enumerate(grads, 1):
        grad = (-grad if maximize else grad) + l2 * weight
        weight = weight - lr * decoupled * weight
        m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad**2
        largest = torch.maximum(largest, v)
        c1 = 1 - beta1**t if switch is True else 1
        c2 = 1 - beta2**t if switch is not False else 1
        weight = weight - lr * (m / c1) / (((largest if amsgrad else v) / c2).sqrt() + eps)
    return weight


def close(ours, theirs, tolerance=1e-12):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


OPTIONS = {
    "plain": ({}, {}),
    "eps": ({"eps": 0.3}, {"eps": 0.3}),
    "betas": ({"betas": (0.0, 0.5)}, {"betas": (0.0, 0.5)}),
    "l2": ({"weight_decay": 0.1}, {"l2": 0.1}),
    "decoupled": ({"weight_decay": 0.1, "decoupled_weight_decay": True}, {"decoupled": 0.1}),
    "amsgrad": ({"amsgrad": True}, {"amsgrad": True}),
    "maximize": ({"maximize": True}, {"maximize": True}),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("switch", SWITCH)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_algorithm_1(switch, kernel, options):
    given, means = OPTIONS[options]
    weights = parameters()
    rule = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8} | means
    columns = zip(*gradients(30), strict=True)
    expected = [
        algorithm_1(w.detach(), grads, switch, **rule) for w, grads in zip(weights, columns, strict=True)
    ]
    close(train(Adam(weights, lr=0.01, bias_correction=switch, **given, **kernel), weights), expected)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_with_correction_it_is_torchs_to_the_bit(kernel):
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    train(Adam(ours, weight_decay=0.1, amsgrad=True, **kernel), ours)
    train(torch.optim.Adam(theirs, weight_decay=0.1, amsgrad=True, **kernel), theirs)
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("switch", SWITCH)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_parameters_that_miss_steps_have_their_own_t(switch, kernel):
    weights = parameters()
    starts = [weight.detach().clone() for weight in weights]

    def skip(step, index):
        return index == 1 and step % 3 == 0

    optimizer = Adam(weights, lr=0.01, bias_correction=switch, **kernel)
    reached = train(optimizer, weights, skip=skip)
    for index, (start, column) in enumerate(zip(starts, zip(*gradients(30), strict=True), strict=True)):
        grads = [grad for step, grad in enumerate(column) if not skip(step, index)]
        expected = algorithm_1(start, grads, switch, 0.01, (0.9, 0.999), 1e-8)
        close([reached[index]], [expected])
        assert optimizer.state[weights[index]]["step"] == len(grads)


@pytest.mark.parametrize("switch", [False, "denominator"])
def test_without_looking_at_steps_on_a_device(switch, monkeypatch):
    # What is done where steps lie on an accelerator, with the host's tensors.
    import pl_losses.papers.adam.optimizer as module

    kernels = module.adam
    monkeypatch.setattr(module, "adam", lambda *args, **kw: kernels(*args, **kw | {"capturable": False}))
    weights, others = parameters(), parameters()
    optimizer = Adam(weights, lr=0.01, bias_correction=switch, weight_decay=0.1, decoupled_weight_decay=True)
    optimizer.param_groups[0]["capturable"] = True
    plain = Adam(others, lr=0.01, bias_correction=switch, weight_decay=0.1, decoupled_weight_decay=True)
    # There 1 - beta1^t is computed in float32, as in torch's own capturable kernels.
    close(train(optimizer, weights), train(plain, others), 1e-6)
    assert optimizer.state[weights[0]]["step"] == 30


def test_first_steps_without_correction():
    for beta1, beta2 in itertools.product((0.0, 0.9), (0.99, 0.999, 0.9999)):
        weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        weight.grad = torch.ones_like(weight)
        Adam([weight], lr=1.0, betas=(beta1, beta2), eps=0.0, bias_correction=False).step()
        assert weight.item() == pytest.approx(-(1 - beta1) / math.sqrt(1 - beta2))


def test_groups_have_their_own_switch():
    weights, single = parameters(), parameters()
    optimizer = Adam([{"params": weights[:1], "bias_correction": False}, {"params": weights[1:]}])
    assert [group["bias_correction"] for group in optimizer.param_groups] == [False, True]
    reached = train(optimizer, weights)
    close(reached[:1], train(Adam(single, bias_correction=False), single)[:1], 0)


@pytest.mark.parametrize("switch", SWITCH)
def test_state_is_interchangeable_with_torchs(switch):
    weights = parameters()
    ours = Adam(weights, lr=0.01, bias_correction=switch)
    train(ours, weights, 5)
    theirs = torch.optim.Adam(parameters())
    theirs.load_state_dict(ours.state_dict())
    again = Adam(parameters(), bias_correction=switch)
    state = theirs.state_dict()
    for group in state["param_groups"]:
        group.pop("bias_correction")
    again.load_state_dict(state)
    assert again.param_groups[0]["bias_correction"] == switch
    assert again.param_groups[0]["lr"] == 0.01
    for one, other in zip(ours.state.values(), again.state.values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("switch", SWITCH)
def test_resumed_and_copied(switch):
    whole, half = parameters(), parameters()
    train(Adam(whole, bias_correction=switch), whole)
    first = Adam(half, bias_correction=switch)
    grads = list(gradients(30))
    for step, now in enumerate(grads):
        for weight, grad in zip(half, now, strict=True):
            weight.grad = grad.clone()
        if step == 10:
            second = Adam(half)
            second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
            first = second
        first.step()
    assert first.param_groups[0]["bias_correction"] == switch
    close(whole, half, 0)
    assert copy.deepcopy(first).param_groups[0]["bias_correction"] == switch


@pytest.mark.parametrize("switch", SWITCH)
def test_a_step_that_overflowed_is_skipped(switch):
    weights = parameters(torch.float32)
    options = {"fused": True, "weight_decay": 0.1, "decoupled_weight_decay": True}
    optimizer = Adam(weights, bias_correction=switch, **options)
    before = train(optimizer, weights, 3)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    optimizer.step()
    close(weights, before, 0)
    assert optimizer.state[weights[0]]["step"] == 3


def test_closure_and_hooks_run_once():
    weights = parameters()
    optimizer = Adam(weights, bias_correction=False)
    calls = []
    optimizer.register_step_pre_hook(lambda *args: calls.append("before"))
    optimizer.register_step_post_hook(lambda *args: calls.append("after"))

    def closure():
        loss = sum(weight.square().sum() for weight in weights)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert calls == ["before", "after"]


@pytest.mark.parametrize("switch", SWITCH)
def test_differentiable_in_the_learning_rate(switch):
    def reached(lr):
        weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
        optimizer = Adam([weight.clone()], lr=lr, bias_correction=switch, differentiable=True)
        value = optimizer.param_groups[0]["params"][0]
        for grad in (1.0, -0.3):
            value.grad = torch.full_like(value, grad)
            optimizer.step()
        return value.sum()

    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(reached, lr)


def test_amsgrad_counterexample():
    """Reddi et al. 2018: Adam goes to the worst point of [-1, 1], AMSGrad to the best one."""
    slope, ends = 3.0, {}
    for amsgrad in (False, True):
        x = nn.Parameter(torch.zeros((), dtype=torch.float64))
        optimizer = Adam([x], lr=1.0, betas=(0.0, 1 / (1 + slope**2)), eps=0.0, amsgrad=amsgrad)
        for t in range(1, 3001):
            optimizer.param_groups[0]["lr"] = 0.5 / math.sqrt(t)
            x.grad = torch.tensor(slope if t % 3 == 1 else -1.0, dtype=torch.float64)
            optimizer.step()
            x.data.clamp_(-1, 1)
        ends[amsgrad] = x.item()
    assert ends[False] > 0.9
    assert ends[True] < -0.9


def test_bad_switch():
    for wrong in ("both", None, 2):
        with pytest.raises(
            (TypeError, ValueError), match=r"`bias_correction` to be True or False or .denominator."
        ):
            Adam(parameters(), bias_correction=wrong)
    with pytest.raises((TypeError, ValueError), match="`bias_correction`"):
        Adam([{"params": parameters(), "bias_correction": "m"}])


def test_adamax_is_algorithm_2():
    weights = parameters()
    beta1, beta2, expected = 0.9, 0.999, []
    for weight, grads in zip(weights, zip(*gradients(30), strict=True), strict=True):
        value, m, u = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
        for t, grad in enumerate(grads, 1):
            m, u = beta1 * m + (1 - beta1) * grad, torch.maximum(beta2 * u, grad.abs())
            value = value - 0.002 / (1 - beta1**t) * m / u
        expected.append(value)
    close(train(AdaMax(weights), weights), expected)


def test_adamax_stands_still_at_zero_and_refuses_an_epsilon_that_is_none():
    weight = nn.Parameter(torch.ones(2))
    optimizer = AdaMax([weight])
    weight.grad = torch.zeros(2)
    optimizer.step()
    assert weight.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"`eps` to be more than 0 in torch.float16"):
        AdaMax([nn.Parameter(torch.ones(2, dtype=torch.float16))])
