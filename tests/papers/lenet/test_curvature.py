"""The estimate of the curvature's diagonal against closed forms, in float64."""

import pytest
import torch
from papers.lenet.curvature import Applied, estimate, gauss_newton
from papers.lenet.problems import _double, cross_entropy, half_square, small_net  # noqa: F401
from torch import nn
from torch.nn import functional as F


class SubSampling(nn.Module):
    """The paper's: four inputs added, times a coefficient, plus a bias."""

    def __init__(self, channels):
        super().__init__()
        self.coefficient = nn.Parameter(torch.randn(channels, 1, 1))
        self.bias = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x):
        return 4 * F.avg_pool2d(x, 2) * self.coefficient + self.bias


class MaskedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, 2, 2))
        self.register_buffer("mask", torch.tensor([[1.0, 0], [0, 1], [1, 1]])[..., None, None])

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask)


class TableConv(nn.Module):
    """Only the connections of a table have weights, as in C3."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 2, 2))

    def forward(self, x):
        index = (torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 0, 1]))
        return F.conv2d(x, self.weight.new_zeros(3, 2, 2, 2).index_put(index, self.weight))


# --- the recursion ---


def test_a_linear_layer_has_the_mean_of_the_squared_inputs():
    x = torch.randn(50, 4)
    weight, bias = estimate(nn.Linear(4, 1), x)
    torch.testing.assert_close(weight, x.square().mean(0, keepdim=True))
    torch.testing.assert_close(bias, torch.ones(1))


def test_a_linear_network_with_one_output_has_the_exact_hessian():
    x, layer = torch.randn(20, 4), nn.Linear(4, 1, bias=False)
    exact = torch.autograd.functional.hessian(lambda w: half_square(x @ w.T, 0.0), layer.weight.detach())
    (weight,) = estimate(layer, x)
    torch.testing.assert_close(weight.flatten(), exact.reshape(4, 4).diagonal())


def test_a_tanh_network_follows_the_paper_recursion_written_out():
    network, x = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)),
        torch.randn(6, 3),
    )
    first, second, third = network[0], network[2], network[4]
    want = {p: torch.zeros_like(p) for p in network.parameters()}
    with torch.no_grad():
        for pattern in x:
            x1 = torch.tanh(first(pattern))
            x2 = torch.tanh(second(x1))
            h3 = torch.ones(2)
            h2 = torch.tensor(
                [
                    (1 - x2[j] ** 2) ** 2 * sum(third.weight[k, j] ** 2 * h3[k] for k in range(2))
                    for j in range(3)
                ]
            )
            h1 = torch.tensor(
                [
                    (1 - x1[j] ** 2) ** 2 * sum(second.weight[k, j] ** 2 * h2[k] for k in range(3))
                    for j in range(4)
                ]
            )
            for layer, h, fed in ((third, h3, x2), (second, h2, x1), (first, h1, pattern)):
                want[layer.weight] += h[:, None] * fed[None, :] ** 2 / len(x)
                want[layer.bias] += h / len(x)
    for got, expected in zip(estimate(network, x), want.values(), strict=True):
        torch.testing.assert_close(got, expected)


def test_shared_weights_add_up_over_the_positions():
    network, x = (
        nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 2)),
        torch.randn(5, 2, 7, 7),
    )
    first, second = network[0], network[2]
    with torch.no_grad():
        hidden = torch.tanh(first(x))
        h2 = torch.ones(5, 2, 9)
        want_second = torch.einsum("bol,bil->oi", h2, F.unfold(hidden, 2).square()) / 5
        back = torch.einsum("oi,bol->bil", second.weight.flatten(1).square(), h2)
        h1 = (F.fold(back, 4, 2) * (1 - hidden.square()).square()).flatten(2)
        want_first = torch.einsum("bol,bil->oi", h1, F.unfold(x, 3, padding=1, stride=2).square()) / 5
    weight1, bias1, weight2, bias2 = estimate(network, x)
    torch.testing.assert_close(weight1.flatten(1), want_first)
    torch.testing.assert_close(bias1, h1.sum((0, 2)) / 5)
    torch.testing.assert_close(weight2.flatten(1), want_second)
    torch.testing.assert_close(bias2, torch.full((2,), 9.0))


LAYERS = {
    "linear": (lambda: nn.Linear(3, 4), (3,)),
    "linear over positions": (lambda: nn.Linear(3, 4), (5, 3)),
    "linear, no bias, positions": (lambda: nn.Linear(3, 4, bias=False), (5, 3)),
    "one hidden layer": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)), (3,)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 6)),
    "conv2d strided, grouped, dilated": (lambda: nn.Conv2d(4, 6, 2, 2, 1, 2, groups=2), (4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(3, 3, 2, groups=3, bias=False), (3, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2), (2, 3, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2, output_padding=1), (2, 3, 3)),
    "masked": (MaskedConv, (2, 4, 4)),
    "table": (TableConv, (2, 4, 4)),
    "batch norm": (lambda: nn.BatchNorm2d(3).eval(), (3, 2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_have_the_exact_gauss_newton_diagonal(name):
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(6, *shape)
    if name == "batch norm":
        layer.running_mean.normal_(), layer.running_var.uniform_(0.5, 2), nn.init.normal_(layer.weight)
    for got, want in zip(estimate(layer, x), gauss_newton(layer, x), strict=True):
        torch.testing.assert_close(got, want)


KERNEL = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MATRIX = KERNEL[0, 0].repeat(2, 2)
FUNCTIONS = {
    "linear": lambda a: F.linear(a, MATRIX),
    "matmul": lambda a: MATRIX @ a,
    "bmm": lambda a: torch.bmm(a[:, 0], MATRIX.expand(len(a), 6, 6)),
    "einsum": lambda a: torch.einsum("bchw,wv->bvch", a, MATRIX),
    "conv": lambda a: F.conv2d(a, KERNEL, padding=1),
    "conv transposed": lambda a: F.conv_transpose2d(a[..., :2, :2], KERNEL.transpose(0, 1), stride=2),
    "avg_pool2d": lambda a: F.avg_pool2d(a, 2),
    "avg_pool2d, overlapping": lambda a: F.avg_pool2d(a, 3, 1, padding=1),
    "avg_pool1d": lambda a: F.avg_pool1d(a.flatten(2), 3),
    "sum pool": lambda a: F.avg_pool2d(a, 2, divisor_override=1),
    "max_pool2d": lambda a: F.max_pool2d(a, 3, 2),
    "max_pool1d": lambda a: F.max_pool1d(a.flatten(2), 4),
    "global average": lambda a: F.adaptive_avg_pool2d(a, 1),
    "mean": lambda a: a.mean((1, 3)),
    "sum": lambda a: a.sum(2),
    "max": lambda a: a.max(2).values,
    "slices": lambda a: torch.cat([a[:, :1, ::2], a[:, 1:, 1::2]], dim=1),
    "index": lambda a: a[:, :, [0, 3]],
    "split": lambda a: a.split(2, 2)[1] - 0.5 * a.split(2, 2)[0],
    "chunk, stack": lambda a: torch.stack(a.chunk(2, 1)[::-1]).permute(1, 0, 2, 3, 4),
    "views": lambda a: a.transpose(2, 3).reshape(len(a), -1)[:, None].squeeze(1).contiguous(),
    "pad": lambda a: F.pad(a, (1, 2, 0, 1)),
    "reflect": lambda a: F.pad(a, (1, 1, 1, 1), mode="reflect"),
    "unfold": lambda a: F.unfold(a, 2),
    "upsample": lambda a: F.interpolate(a, scale_factor=2),
    "flip, roll": lambda a: a.flip(2).roll(1, 3),
    "broadcast": lambda a: a * MATRIX - MATRIX,
    "minus": lambda a: 2.0 - a,
    "minus, scaled": lambda a: torch.sub(MATRIX, a, alpha=3.0),
    "plus, scaled": lambda a: torch.add(MATRIX, a, alpha=-3.0),
    "rsub, scaled": lambda a: torch.rsub(a, 1.0, alpha=3.0),
    "times": lambda a: -3 * a,
    "over": lambda a: a / 3,
    "over a tensor": lambda a: a / MATRIX,
    "under": lambda a: MATRIX / (a + 30),
    "where": lambda a: torch.where(a > 0, a, 0.1 * a.detach()),
    "masked_fill": lambda a: a.masked_fill(a < 0, 0.0),
    "dropout off": lambda a: F.dropout(a, training=False).clone(),
    "to float32 and back": lambda a: a.float().double(),
    "relu in place": lambda a: a.relu_(),
    "squash": lambda a: 1.7159 * torch.tanh(2 / 3 * a),
    "power": lambda a: a**3,
    "log": lambda a: torch.log(a.square() + 1) + 0 * a.detach(),
    "root": lambda a: torch.sqrt(a.exp()),
    **{
        f.__name__: f
        for f in (
            torch.sigmoid, F.relu, F.leaky_relu, F.softplus, F.gelu, F.silu, F.elu, F.selu, F.celu, F.mish,
            F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.logsigmoid, torch.square, torch.sin, torch.cos,
            torch.abs,
            torch.atan, torch.erf, torch.expm1, F.hardshrink, F.softshrink, torch.neg,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_pass_on_squared_derivatives(name):
    network, x = Applied(FUNCTIONS[name], 2, 6, 6), torch.randn(3, 2, 6, 6)
    (got,), (want,) = estimate(network, x), gauss_newton(network, x)
    torch.testing.assert_close(got, want, rtol=1e-5 if "float32" in name else 1e-9, atol=1e-12)


def test_the_sub_sampling_layer():
    network, x = nn.Sequential(Applied(nn.Identity(), 2, 4, 4), SubSampling(2)), torch.randn(5, 2, 4, 4)
    gain, coefficient, bias = estimate(network, x)
    maps = (x * network[0].gain).detach()
    total = 4 * F.avg_pool2d(maps, 2)
    torch.testing.assert_close(coefficient.flatten(), total.square().sum((2, 3)).mean(0))
    torch.testing.assert_close(bias.flatten(), torch.full((2,), 4.0))
    torch.testing.assert_close(gain, network[1].coefficient.detach().square() * x.square().mean(0))


def test_masked_weights_have_no_curvature_and_no_effect():
    network, x = MaskedConv(), torch.randn(4, 2, 3, 3)
    (before,) = estimate(network, x)
    with torch.no_grad():
        network.weight[0, 1] = 1e6
    (after,) = estimate(network, x)
    torch.testing.assert_close(after, before)
    assert after[0, 1].count_nonzero() == 0
    assert (after[0, 0] > 0).all()


def test_paths_that_meet_again_add_up_without_cross_terms():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor([2.0]))

        def forward(self, x):
            a = self.gain * x
            return a + 3 * a

    x = torch.randn(7, 1)
    (got,) = estimate(Skip(), x)
    torch.testing.assert_close(got, (1 + 9) * x.square().mean(0))


@pytest.mark.parametrize("act", [nn.Tanh(), nn.GELU(), nn.Mish()])
def test_the_estimate_is_never_negative(act):
    network = nn.Sequential(nn.Conv2d(1, 3, 3), act, SubSampling(3), act, nn.Flatten(), nn.Linear(27, 4))
    for h in estimate(network, torch.randn(8, 1, 8, 8), torch.randint(4, (8,)), cross_entropy):
        assert (h >= 0).all()
        assert h.any()


def test_a_network_with_frozen_layers():
    network, x = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 2, 2)), torch.randn(3, 1, 5, 5)
    whole = estimate(network, x)
    network[2].weight.requires_grad_(False)
    rest = [p for p in network.parameters() if p.requires_grad]
    for got, want in zip(estimate(network, x, params=rest), [*whole[:2], whole[3]], strict=True):
        torch.testing.assert_close(got, want)
