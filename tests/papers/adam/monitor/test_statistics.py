import math
import tracemalloc
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Adam, Adamax, AdamW, NAdam, RAdam
from torch.utils._python_dispatch import TorchDispatchMode

from pl_losses.papers.adam.bounds import adamax_step_bounds, step_bounds
from pl_losses.papers.adam.monitor.coordinates import coordinates
from pl_losses.papers.adam.monitor.monitor import AdamBiasCorrectionMonitor
from pl_losses.papers.adam.monitor.statistics import Moments, describe, squares
from pl_losses.papers.adam.monitor.update_rule import Rule

CPU = torch.device("cpu")


def stepped(make, shapes, steps=4, dtype=torch.float64, scale=1.0, **options):
    """An optimizer after steps with random gradients."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]
    optimizer = make(parameters, **options)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator, dtype=dtype) * scale
        optimizer.step()
    return optimizer


def joined(optimizer, key):
    states = [optimizer.state[p] for p in optimizer.param_groups[0]["params"]]
    return torch.cat([state[key].double().flatten() for state in states])


def by_hand(optimizer, t):
    """Adam's statistics over all coordinates at once, in float64; all tensors have made t steps."""
    group = optimizer.param_groups[0]
    (beta1, beta2), eps, lr = group["betas"], group["eps"], group["lr"]
    m, v = joined(optimizer, "exp_avg"), joined(optimizer, "exp_avg_sq")
    largest = joined(optimizer, "max_exp_avg_sq") if group["amsgrad"] else v
    m_hat, v_hat = m / (1 - beta1**t), largest / (1 - beta2**t)
    effective = math.sqrt(1 - beta2**t) / (1 - beta1**t)
    signal = torch.where(v_hat > 0, m_hat / v_hat.sqrt(), 0.0)
    direction = m_hat / (v_hat.sqrt() + eps)
    bounds = step_bounds(group["betas"])
    return {
        "lr": lr,
        "coordinates": len(m),
        "step_max": t,
        "step_min": t,
        "bias_correction1": 1 - beta1**t,
        "bias_correction2": 1 - beta2**t,
        "effective_step": effective,
        "effective_lr": lr * effective,
        "m_norm": m.norm().item(),
        "m_hat_norm": m_hat.norm().item(),
        "v_norm": v.norm().item(),
        "v_hat_norm": v_hat.norm().item(),
    }, {
        "snr": signal.square().mean().sqrt().item(),
        "eps_share": (v_hat.sqrt() < 10 * eps).double().mean().item(),
        "trust_region_share": (direction.abs() > 0.9).double().mean().item(),
        "max_update": direction.abs().max().item(),
        "measured_step": effective * (direction.norm() / signal.norm()).item(),
        "share_of_paper_bound": direction.abs().max().item() / bounds.paper,
        "share_of_tight_bound": direction.abs().max().item() / bounds.tight,
    }


def found(row, keys, name="Adam"):
    return {key: row[f"adam/{name}/{key}"] for key in keys}


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("eps", [1e-8, 0.05, 0.0])
def test_statistics_written_out(look, amsgrad, eps):
    optimizer = stepped(Adam, [(7, 3), (2,)], amsgrad=amsgrad, eps=eps, betas=(0.8, 0.95), lr=0.02)
    aggregate, full = by_hand(optimizer, 4)
    row = look(optimizer)
    assert found(row, aggregate | full) == pytest.approx(aggregate | full, rel=1e-5)
    if eps == 0.05:
        assert 0 < row["adam/Adam/eps_share"] < 1
        assert row["adam/Adam/measured_step"] < row["adam/Adam/effective_step"]
    own = {f"adam/Adam/{key}" for key in aggregate}
    assert look(optimizer, level="aggregate").keys() == own | {"adam/Adam/skipped_steps"}


# Tensors that are cut into blocks, joined in one or several, or exactly as long as one.
SHAPES = {
    "joined": [(100, 30), (17,), (1,), (0, 4), (3000,)],
    "in several": [(4000,)] * 5 + [(3,)] * 4,
    "cut": [(300, 1000), (5,), (3 * 2**15,), (3 * 2**15 + 1,), (2**18 + 1,)],
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks(look, shapes, dtype):
    optimizer = stepped(Adam, shapes, dtype=dtype)
    aggregate, full = by_hand(optimizer, 4)
    expected = aggregate | full
    assert found(look(optimizer), expected) == pytest.approx(expected, rel=2e-5)


def test_shares_count_every_coordinate_of_a_large_tensor(look):
    optimizer = stepped(AdamW, [(2**18 + 5,)], steps=1, dtype=torch.float32, weight_decay=0.0)
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    state["exp_avg"][-7:] = 0
    state["exp_avg_sq"][-3:] = 0
    row = look(optimizer)
    assert row["adam/AdamW/trust_region_share"] == pytest.approx(1 - 7 / (2**18 + 5), abs=1e-9)
    assert row["adam/AdamW/eps_share"] == pytest.approx(3 / (2**18 + 5), rel=1e-5)
    assert row["adam/AdamW/snr"] == pytest.approx(math.sqrt(1 - 7 / (2**18 + 5)), rel=1e-6)


def test_coordinates_without_any_gradient_are_no_nan(look):
    optimizer = stepped(Adam, [(40,)], scale=0.0, dtype=torch.float32)
    row = look(optimizer)
    assert row["adam/Adam/snr"] == row["adam/Adam/max_update"] == row["adam/Adam/update_norm"] == 0
    assert row["adam/Adam/eps_share"] == 1
    assert "adam/Adam/measured_step" not in row


def test_groups_without_parameters(look):
    nothing = Adam([{"params": []}])
    assert look(nothing) == {}
    some = stepped(Adam, [(3,)])
    expected = {key.replace("Adam/", "Adam/pg1/"): value for key, value in look(some).items()}
    some.add_param_group({"params": []})
    assert {key: value for key, value in look(some).items() if "pg1" in key} == {
        key: value for key, value in expected.items() if "skipped" not in key
    }


def test_a_decay_that_takes_all_of_the_weights(look):
    row = look(stepped(AdamW, [(40,)], lr=0.5, weight_decay=2.0))
    assert math.isnan(row["adam/AdamW/update_norm"])
    assert 0 < row["adam/AdamW/max_update"] <= 1.1


@pytest.mark.parametrize("scale", [1e-15, 1e-10, 1e8])
def test_gradients_of_any_size(look, scale):
    optimizer = stepped(Adam, [(500,)], scale=scale, eps=scale * 1e-8)
    expected = by_hand(optimizer, 4)[1]
    assert found(look(optimizer), expected) == pytest.approx(expected, rel=1e-4)


def test_channels_last_is_visited_in_the_same_order(look):
    weights = torch.randn(8, 6, 5, 5).to(memory_format=torch.channels_last)
    optimizer = AdamW([nn.Parameter(weights)], weight_decay=0.1)
    (parameter,) = optimizer.param_groups[0]["params"]
    for _ in range(3):
        parameter.grad = torch.randn(weights.shape)
        optimizer.step()
    assert not optimizer.state[parameter]["exp_avg"].is_contiguous()
    plain = AdamW([nn.Parameter(parameter.detach().contiguous())], weight_decay=0.1)
    (copy,) = plain.param_groups[0]["params"]
    copy.grad = parameter.grad
    moments = optimizer.state[parameter]
    plain.state[copy] = {key: value.contiguous() for key, value in moments.items()}
    expected = look(plain)
    assert look(optimizer) == pytest.approx(expected, rel=1e-5)
    # Layouts that differ, as after loading a state: elements still belong together.
    moments["exp_avg"] = moments["exp_avg"].contiguous()
    assert look(optimizer) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [Adam, AdamW, NAdam, RAdam, Adamax])
def test_half_precision_is_summed_in_float32(look, make):
    optimizer = stepped(make, [(300, 40), (20,)], dtype=torch.bfloat16, steps=20)
    row = look(optimizer)
    m = joined(optimizer, "exp_avg")
    assert row[f"adam/{make.__name__}/m_norm"] == pytest.approx(m.norm().item(), rel=1e-5)
    assert all(math.isfinite(value) for value in row.values())


def test_dtypes_in_one_group(look):
    parts = [nn.Parameter(torch.randn(50, dtype=t)) for t in (torch.float32, torch.float64, torch.bfloat16)]
    optimizer = Adam(parts, foreach=False)
    for p in parts:
        p.grad = torch.randn_like(p)
    optimizer.step()
    aggregate = by_hand(optimizer, 1)[0]
    row = look(optimizer)
    assert found(row, aggregate) == pytest.approx(aggregate, rel=1e-5)
    assert row["adam/Adam/max_update"] == pytest.approx(1, rel=1e-2)


def test_adamax_bounds(look):
    optimizer = stepped(Adamax, [(30,)], betas=(0.7, 0.9))
    row, bounds = look(optimizer), adamax_step_bounds((0.7, 0.9))
    u = joined(optimizer, "exp_inf")
    assert row["adam/Adamax/v_norm"] == pytest.approx(u.norm().item(), rel=1e-5)
    assert row["adam/Adamax/share_of_tight_bound"] == row["adam/Adamax/max_update"] / bounds.tight
    assert row["adam/Adamax/share_of_paper_bound"] == row["adam/Adamax/max_update"]
    assert not any(key.endswith(("snr", "eps_share", "v_hat_norm", "bias_correction2")) for key in row)


@pytest.mark.parametrize("make", [NAdam, RAdam])
def test_no_bounds(look, make):
    assert not any("bound" in key for key in look(stepped(make, [(30,)])))


def test_norms_of_long_tensors_are_accurate():
    long = torch.rand(3_000_000, generator=torch.Generator().manual_seed(0))
    moments = Moments(1.0, 1.0, long, long.square(), long, long)
    rule = Rule("adam", 1e-3, 0.9, 0.999, 1e-8)
    sums = squares([moments, None], rule, CPU)
    second, fourth = (long.double().pow(power).sum().item() for power in (2, 4))
    assert list(sums) == pytest.approx([second, 0, fourth, 0], rel=5e-6)
    ((_, weight, *_),), _ = coordinates([moments], rule, CPU)
    assert weight == pytest.approx(second, rel=5e-6)


def test_nothing_to_tell():
    rule = Rule("adam", 1e-3, 0.9, 0.999, 1e-8)
    assert describe(rule, [-math.inf], [[0.0], [0.0]], [3]) == {}
    assert coordinates([], rule, CPU) == ([[-math.inf, *[0] * 6]], {})


class Peak(TorchDispatchMode):
    """The most memory that tensors made under it held at a time, and the reads of single numbers."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.reads = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        result = func(*args, **kwargs or {})
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        self.alive = {key: pair for key, pair in self.alive.items() if not pair[0].expired()}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def _tensors(tree):
    return [one for one in torch.utils._pytree.tree_leaves(tree) if isinstance(one, torch.Tensor)]


LARGE = [(2000, 500)] * 8 + [(1000, 1000)] * 2 + [(500,)] * 50 + [(8_000,)] * 8


@pytest.mark.parametrize("make", [AdamW, NAdam, Adam, RAdam, Adamax])
def test_extra_memory_is_below_a_megabyte(look, make):
    parameters = [nn.Parameter(torch.rand(shape)) for shape in LARGE]
    assert sum(p.numel() for p in parameters) > 10_000_000
    optimizer = make(parameters, **{"weight_decay": 0.1} | ({"amsgrad": True} if make is Adam else {}))
    for p in parameters:
        values = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"}
        optimizer.state[p] = dict.fromkeys(values, p.detach()) | {
            "step": torch.tensor(5.0),
            "mu_product": torch.tensor(0.3),
        }
        p.grad = p.detach()
    with Peak() as tensors:
        look(optimizer)
    assert tensors.peak > 100_000  # The buffers were seen.
    assert tensors.reads == 0
    tracemalloc.start()
    try:
        look(optimizer)
        assert tensors.peak + tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("level", ["aggregate", "full"])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Adam, {"capturable": True}),
        (Adam, {"fused": True, "amsgrad": True}),
        (AdamW, {"fused": True, "weight_decay": 0.1}),
        (Adam, {"capturable": True, "lr": "tensor", "betas": "tensor"}),
        (NAdam, {"capturable": True, "weight_decay": 0.1}),
        (RAdam, {"capturable": True}),
        (Adamax, {"capturable": True}),
        (Adam, {}),
        (NAdam, {}),
        (RAdam, {}),
        (Adamax, {}),
    ],
)
def test_nothing_waits_for_the_device(make, options, level):
    """Fake tensors have no values: whatever would read one raises."""
    mode, shapes = FakeTensorMode(allow_non_fake_inputs=True), [(300, 1000), (5,), (0,), (7, 2)]
    on_device = options.get("capturable") or options.get("fused")
    group = {}
    with mode:
        if options.get("lr") == "tensor":
            lr, beta1, beta2 = (torch.empty((), device="cuda") for _ in range(3))
            group, options = {"lr": lr, "betas": (beta1, beta2)}, {"capturable": True}
        parameters = [nn.Parameter(torch.empty(shape, device="cuda")) for shape in shapes]
        optimizer = make(parameters, **options)
        for p in parameters:
            p.grad = torch.empty_like(p)
        optimizer.step()
    optimizer.param_groups[0].update(group)
    for state in optimizer.state.values():
        assert state["step"].is_cuda == bool(on_device)
        if not on_device:
            state |= {"step": torch.tensor(1.0), "mu_product": torch.tensor(0.5)}
    monitor = AdamBiasCorrectionMonitor(level=level, tensors="0")
    trainer = SimpleNamespace(optimizers=[optimizer], is_global_zero=True, global_rank=0, strategy=None)
    with mode, torch.no_grad():
        monitor.prepare(trainer, nn.ParameterList(parameters))
        (part,) = monitor.collect(trainer, nn.Module(), optimizer)
        assert part.sums.is_cuda
        assert part.maxima == [1] if level == "aggregate" and not on_device else part.maxima.is_cuda
        with pytest.raises(DataDependentOutputException):
            part.sums.sum().item()


def test_selected_tensors_have_what_they_have_alone(look):
    """Joined ones of equal and other steps, and large ones: each as in an optimizer of its own."""
    optimizer = stepped(AdamW, [(3,), (7, 5), (9000,), (2,), (70_000,), (1,)], weight_decay=0.1)
    parameters = optimizer.param_groups[0]["params"]
    optimizer.step()
    optimizer.state[parameters[3]]["step"] += 3
    module = nn.ParameterList(parameters)
    whole, row = look(optimizer), look(optimizer, module=module, tensors="*")
    assert {key: row[key] for key in whole} == pytest.approx(whole, rel=1e-6)
    for index, parameter in enumerate(parameters):
        single = AdamW([parameter], weight_decay=0.1)
        single.state[parameter] = optimizer.state[parameter]
        alone = {key.rpartition("/")[2]: value for key, value in look(single).items()}
        del alone["skipped_steps"]
        assert found(row, alone, f"AdamW/{index}") == pytest.approx(alone, rel=1e-6)
    parameters[1].grad = None
    assert "adam/AdamW/1/m_norm" not in look(optimizer, module=module, tensors="*")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_many_tensors_are_those_of_each(dtype):
    """So many that they are joined, across the places where a line of them ends, with one left out."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator).to(dtype) for size in (8000, 3, 1, 8192) * 12]
    rule = Rule("adam", 1e-3, 0.9, 0.999, 1e-8)
    moments = [Moments(1.0, 1.0, one, 2 * one, 2 * one, one) for one in tensors]
    expected = [one.double().square().sum().item() for one in tensors]
    expected += [4 * square for square in expected]
    assert list(squares(moments, rule, CPU)) == pytest.approx(expected, rel=1e-6)
    moments[5], expected[5], expected[53] = None, 0.0, 0.0
    assert list(squares(moments, rule, CPU)) == pytest.approx(expected, rel=1e-6)
