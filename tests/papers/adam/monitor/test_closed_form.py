"""The last step in closed form against the difference of the weights, for every optimizer."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, SparseAdam

from pl_losses.papers.adam import AdaMax
from pl_losses.papers.adam.monitor.update_rule import Rule, effective_step, kind_of


class OwnAdam(Optimizer):
    """Algorithm 1 with a switch, in loops."""

    def __init__(self, params, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, bias_correction=True):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "bias_correction": bias_correction})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            (beta1, beta2), switch = group["betas"], group["bias_correction"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    zeros = torch.zeros_like
                    state |= {"step": torch.tensor(0.0), "exp_avg": zeros(p), "exp_avg_sq": zeros(p)}
                state["step"] += 1
                t = state["step"].item()
                state["exp_avg"].lerp_(p.grad, 1 - beta1)
                state["exp_avg_sq"].lerp_(p.grad**2, 1 - beta2)
                m = state["exp_avg"] / (1 - beta1**t if switch is True else 1)
                v = state["exp_avg_sq"] / (1 - beta2**t if switch else 1)
                p -= group["lr"] * m / (v.sqrt() + group["eps"])


OPTIMIZERS = {
    "adam": Adam,
    "betas": partial(Adam, betas=(0.5, 0.9)),
    "beta1=0": partial(Adam, betas=(0.0, 0.99)),
    "large eps": partial(Adam, eps=0.3),
    "l2": partial(Adam, weight_decay=0.1),
    "amsgrad": partial(Adam, amsgrad=True, betas=(0.5, 0.6)),
    "maximize": partial(Adam, maximize=True),
    "for-loop": partial(Adam, foreach=False),
    "foreach": partial(Adam, foreach=True, weight_decay=0.1),
    "fused": partial(Adam, fused=True),
    "fused amsgrad": partial(AdamW, fused=True, amsgrad=True, weight_decay=0.3),
    "decoupled": partial(Adam, weight_decay=0.3, decoupled_weight_decay=True),
    "adamw": partial(AdamW, weight_decay=0.3),
    "adamw maximize": partial(AdamW, weight_decay=0.3, maximize=True, foreach=True),
    "lr tensor": partial(AdamW, lr=torch.tensor(0.02, dtype=torch.float64), foreach=False),
    "betas tensor": partial(
        Adam,
        betas=tuple(torch.tensor(beta, dtype=torch.float64) for beta in (0.8, 0.99)),
        foreach=False,
    ),
    "nadam": NAdam,
    "nadam l2": partial(NAdam, weight_decay=0.1),
    "nadam decoupled": partial(NAdam, weight_decay=0.1, decoupled_weight_decay=True, momentum_decay=0.1),
    "nadam maximize": partial(NAdam, maximize=True, weight_decay=0.1),
    "radam": RAdam,
    "radam never rectified": partial(RAdam, betas=(0.9, 0.6)),
    "radam soon rectified": partial(RAdam, betas=(0.9, 0.7)),
    "radam l2": partial(RAdam, weight_decay=0.1),
    "radam decoupled": partial(RAdam, weight_decay=0.1, decoupled_weight_decay=True),
    "adamax": Adamax,
    "adamax l2": partial(Adamax, weight_decay=0.1),
    "own": OwnAdam,
    "own without": partial(OwnAdam, bias_correction=False),
    "own denominator": partial(OwnAdam, bias_correction="denominator"),
}


def tensors(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,), (2, 3, 2), ()]
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def train(optimizer, parameters, steps, skip=()):
    """Steps with random gradients of very different sizes; the parameters before the last one."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        before = [p.detach().clone() for p in parameters]
        for index, p in enumerate(parameters):
            size = 10.0 ** torch.randint(-4, 2, p.shape, generator=generator)
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) * size
            if (index, step) in skip:
                p.grad = None
        optimizer.step()
    return before


def check(row, name, parameters, before, group, rtol=1e-5):
    """Against what really happened."""
    lr = float(group["lr"])
    steps = [(p - b).detach() for p, b in zip(parameters, before, strict=True) if p.grad is not None]
    pairs = [(b, p) for p, b in zip(parameters, before, strict=True) if p.grad is not None]
    flat = torch.cat([step.flatten() for step in steps])
    count = flat.numel() * (1 + flat.is_complex())
    decoupled = group.get("decoupled_weight_decay", False)
    decay = lr * group.get("weight_decay", 0.0) if decoupled else 0.0
    own = [step + decay * b for step, (b, _) in zip(steps, pairs, strict=True)]
    own = [torch.view_as_real(one) if one.is_complex() else one for one in own]
    largest = torch.cat([one.flatten() for one in own]).abs() / lr
    weights = torch.cat([p.detach().flatten() for _, p in pairs]).norm().item()
    expected = {
        "coordinates": count,
        "update_norm": flat.norm().item(),
        "update_rms": flat.norm().item() / count**0.5,
        "update_to_weight": flat.norm().item() / weights,
        "max_update": largest.max().item(),
        "trust_region_share": (largest > 0.9).double().mean().item(),
    }
    found = {key: row[f"adam/{name}/{key}"] for key in expected}
    assert found == pytest.approx(expected, rel=rtol)


@pytest.mark.parametrize("steps", [1, 3, 20])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_last_step(look, make, steps):
    parameters = tensors()
    optimizer = make(parameters)
    before = train(optimizer, parameters, steps)
    name = type(optimizer).__name__
    check(look(optimizer), name, parameters, before, optimizer.param_groups[0])


@pytest.mark.parametrize("make", [AdamW, Adam, NAdam, RAdam, Adamax])
def test_last_step_of_complex_parameters(look, make):
    parameters = [nn.Parameter(torch.randn(n, dtype=torch.complex128)) for n in (4, 7)]
    optimizer = make(parameters)
    before = train(optimizer, parameters, 7)
    check(look(optimizer), make.__name__, parameters, before, optimizer.param_groups[0])


@pytest.mark.parametrize("make", [AdamW, NAdam, partial(RAdam, betas=(0.9, 0.7)), Adamax])
def test_last_step_where_step_counts_differ(look, make):
    parameters = tensors()
    optimizer = make(parameters)
    before = train(optimizer, parameters, 9, skip=[(1, 2), (1, 3), (2, 8), (3, 0)])
    row, name = look(optimizer), type(optimizer).__name__
    check(row, name, parameters, before, optimizer.param_groups[0])
    assert (row[f"adam/{name}/step_max"], row[f"adam/{name}/step_min"]) == (9, 7)


@pytest.mark.parametrize("make", [AdamW, NAdam, partial(RAdam, betas=(0.9, 0.7)), Adamax, OwnAdam])
def test_last_step_in_float32(look, make):
    parameters = tensors(torch.float32)
    optimizer = make(parameters)
    before = train(optimizer, parameters, 9)
    # The difference of weights near 1 is known to 1e-7 of the weights.
    check(look(optimizer), type(optimizer).__name__, parameters, before, optimizer.param_groups[0], rtol=1e-3)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_numbers_on_a_device_give_the_same(look, make, monkeypatch):
    """Steps, learning rates and betas stay tensors, as on a device whose memory is not read."""
    parameters = tensors()
    optimizer = make(parameters)
    train(optimizer, parameters, 7, skip=[(1, 2), (2, 6)])
    expected = look(optimizer, tensors="3", module=nn.ParameterList(parameters))
    for module in ("monitor", "update_rule"):
        keep = "pl_losses.papers.adam.monitor." + module + ".number"
        monkeypatch.setattr(keep, lambda value: value if isinstance(value, torch.Tensor) else float(value))
    found = look(optimizer, tensors="3", module=nn.ParameterList(parameters))
    assert found == pytest.approx(expected, rel=1e-4)  # 1 - beta in float32 is known to 6e-5.
    assert found.keys() == expected.keys()


def test_effective_step_of_the_paper():
    rule = Rule("adam", 1e-3, 0.9, 0.999, 1e-8)
    for t in (1, 7, 1000):
        expected = math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        assert effective_step(rule, t) == pytest.approx(expected)
        assert effective_step(rule._replace(bias_correction=False), t) == 1
        denominator = rule._replace(bias_correction="denominator")
        assert effective_step(denominator, t) == pytest.approx(math.sqrt(1 - 0.999**t))
        assert effective_step(rule._replace(kind="adamax"), t) == pytest.approx(1 / (1 - 0.9**t))


def test_effective_step_of_nadam_is_its_factor_of_m():
    parameters = tensors()
    optimizer = NAdam(parameters)
    train(optimizer, parameters, 30)
    product = optimizer.state[parameters[0]]["mu_product"].item()
    following = 0.9 * (1 - 0.5 * 0.96 ** (31 * 4e-3))
    expected = math.sqrt(1 - 0.999**30) * following / (1 - product * following)
    rule = Rule.of(optimizer.param_groups[0], "nadam")
    assert effective_step(rule, 30) == pytest.approx(expected, rel=1e-6)
    assert effective_step(rule, 10**6) == pytest.approx(0.9, rel=1e-3)


def test_kinds():
    parameters = tensors()
    kinds = {
        Adam: ("adam", False),
        AdamW: ("adam", True),
        NAdam: ("nadam", False),
        RAdam: ("radam", False),
        Adamax: ("adamax", False),
        OwnAdam: ("adam", False),
        AdaMax: ("adamax", False),
        type("Mine", (AdamW,), {}): ("adam", True),
        SGD: None,
        SparseAdam: None,
    }
    for make, kind in kinds.items():
        assert kind_of(make(parameters, lr=0.1)) == kind
