import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pl_losses.papers.prelu import he_init_, he_normal_, he_uniform_
from pl_losses.papers.prelu.dataflow import feeding_slopes
from pl_losses.papers.prelu.init import fan

CONVOLUTIONS = [
    (nn.Conv1d, {}),
    (nn.Conv2d, {"stride": 2}),
    (nn.Conv2d, {"groups": 2, "stride": (2, 1)}),
    (nn.ConvTranspose2d, {"stride": 2}),
    (nn.ConvTranspose1d, {"groups": 4, "stride": 3}),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("layer", "options"), CONVOLUTIONS)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_fan_counts_the_products_that_are_added_up(layer, options, mode):
    """Of ones, each sum is its number of products; here without borders."""
    convolution = layer(8, 12, 4, bias=False, **options)
    nn.init.ones_(convolution.weight)
    dimensions = convolution.weight.ndim - 2
    inputs = torch.ones(1, 8, *[36] * dimensions, requires_grad=True)
    outputs = convolution(inputs)
    (gradient,) = torch.autograd.grad(outputs.sum(), inputs)
    middle = (..., *[slice(6, 18)] * dimensions)  # Whole periods of strides 2 and 3.
    counted = (outputs if mode == "fan_in" else gradient)[middle].mean().item()
    transposed = isinstance(convolution, (nn.ConvTranspose1d, nn.ConvTranspose2d))
    result = fan(
        convolution.weight,
        mode,
        groups=convolution.groups,
        stride=convolution.stride,
        transposed=transposed,
    )
    assert result == pytest.approx(counted, rel=1e-6)


def test_the_deviations_of_the_paper():
    for maps, wanted in ((64, 0.059), (128, 0.042), (256, 0.029), (512, 0.021)):
        weight = he_normal_(torch.empty(maps, maps, 3, 3), generator=seeded())
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * maps)), rel=0.01)
        assert round(math.sqrt(2 / (9 * maps)), 3) == wanted


def test_uniform_and_normal_have_the_same_variance_and_the_generator_is_obeyed():
    for draw in (he_normal_, he_uniform_):
        weight = draw(
            torch.empty(300, 400, dtype=torch.float64), slope=0.5, mode="fan_out", generator=seeded()
        )
        assert weight.var().item() == pytest.approx(2 / (1.25 * 300), rel=0.02)
        again = draw(
            torch.empty(300, 400, dtype=torch.float64), slope=0.5, mode="fan_out", generator=seeded()
        )
        assert torch.equal(weight, again)
    assert weight.abs().max().item() == pytest.approx(math.sqrt(3 * 2 / (1.25 * 300)), rel=1e-3)
    assert he_normal_(nn.Parameter(torch.empty(2, 2))).requires_grad


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"mode": "fan"}, "mode"),
        ({"groups": 3}, "groups"),
        ({"stride": (1, 2, 3)}, "stride"),
        ({"stride": 0}, "stride"),
        ({"slope": math.nan}, "slope"),
    ],
)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(ValueError, match=f"Expected `{name}`"):
        he_normal_(torch.empty(4, 4, 3, 3), **options)


def test_a_vector_is_refused():
    with pytest.raises(
        ValueError, match=r"`tensor` with at least two dimensions, none of size 0, but got shape \[4\]"
    ):
        he_uniform_(torch.empty(4))


def test_modules_are_refused_by_argument():
    with pytest.raises(ValueError, match="`distribution`"):
        he_init_(nn.Linear(2, 2), distribution="cauchy")
    with pytest.raises(ValueError, match="`mode`"):
        he_init_(nn.Linear(2, 2), mode="both")
    with pytest.raises(ValueError, match="`module` with all sizes known but 0 "):
        he_init_(nn.Sequential(nn.LazyLinear(2)))


class Branches(nn.Module):
    """Functional rectifiers, a concatenation, a reshape by size, a layer called twice, one never called."""

    def __init__(self):
        super().__init__()
        self.never = nn.Linear(2, 2)
        self.tail = nn.Linear(8, 8)  # Registered before what it follows.
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.slopes = nn.Parameter(torch.tensor([0.6, 0.8]))
        self.act = nn.PReLU(2, init=0.5)
        self.fold = nn.Linear(8, 8)

    def forward(self, x):
        left = F.leaky_relu(self.left(x), 0.2)
        right = torch.relu(F.layer_norm(self.right(x), (4,)))
        both = torch.cat([left, right], dim=1).reshape(x.shape[0], -1)
        x = F.prelu(self.tail(both).view(x.size(0), 2, 4), self.slopes).flatten(1)
        x = self.act(self.fold(x).view(-1, 2, 4)).flatten(1)
        return self.fold(x)


def test_rectifiers_are_found_by_data_flow():
    of = feeding_slopes(Branches())
    assert list(of) == ["left", "right", "tail", "fold", "never"]
    assert of["left"] == pytest.approx(0.2)  # The first layer: the one that follows.
    assert of["right"] == 0
    assert of["tail"] == pytest.approx(math.sqrt((0.2**2 + 0) / 2))
    assert of["fold"] == pytest.approx(math.sqrt(((0.36 + 0.64) / 2 + 0.5**2) / 2))
    back = feeding_slopes(Branches(), "fan_out")
    assert back["left"] == pytest.approx(0.2)
    assert back["tail"] == pytest.approx(math.sqrt(0.5))
    assert back["fold"] == pytest.approx(math.sqrt((0.5**2 + 1) / 2))


def test_linear_layers_in_a_row_have_gain_one():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 3), nn.ReLU())
    assert feeding_slopes(net) == {"0": 1, "1": 1, "3": 1}
    assert feeding_slopes(net, "fan_out") == {"0": 1, "1": 1, "3": 0}


class Untraceable(nn.Sequential):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


def test_what_cannot_be_traced_is_taken_as_registered():
    net = Untraceable(nn.Linear(2, 2), nn.LeakyReLU(0.3), nn.Linear(2, 2), nn.Linear(2, 2), nn.PReLU())
    with pytest.warns(UserWarning, match="Untraceable cannot be traced"):
        assert feeding_slopes(net) == {"0": 0.3, "2": 0.3, "3": 1}
    with pytest.warns(UserWarning, match="order in which modules are registered"):
        assert feeding_slopes(net, "fan_out") == {"0": 0.3, "2": 1, "3": 0.25}


def test_every_weight_is_drawn_with_its_own_slope_and_fan():
    net = nn.Sequential(
        nn.Conv2d(16, 64, 5, groups=4), nn.PReLU(init=0.5), nn.ConvTranspose2d(64, 32, 4, stride=2), nn.ReLU()
    )
    net.append(nn.Conv2d(32, 64, 3)).append(nn.BatchNorm2d(64))
    assert he_init_(net, generator=seeded()) is net
    for place, variance in ((0, 2 / (1.25 * 4 * 25)), (2, 2 / (1.25 * 64 * 4)), (4, 2 / (32 * 9))):
        assert net[place].weight.var().item() == pytest.approx(variance, rel=0.06)
        assert not net[place].bias.any()
    assert (net[5].weight == 1).all()
    he_init_(net, "fan_out", "uniform", generator=seeded())
    for place, variance in ((0, 2 / (1.25 * 16 * 25)), (2, 2 / (32 * 16)), (4, 2 / (2 * 64 * 9))):
        assert net[place].weight.var().item() == pytest.approx(variance, rel=0.06)


def log_gains(depth, width, slope, draw, seeds):
    """Logarithm of the variance of each seed's last layer over that of its first layer's outputs."""
    logs = []
    for seed in range(seeds):
        generator = seeded(seed)
        x = torch.randn(64, width, generator=generator)
        first = None
        for _ in range(depth):
            y = x @ draw(torch.empty(width, width), generator).T
            first = y.square().mean() if first is None else first
            x = F.leaky_relu(y, slope)
        logs.append(math.log(y.square().mean() / first))
    return logs


def he(slope):
    return lambda weight, generator: he_normal_(weight, slope, generator=generator)


def xavier(weight, generator):
    return nn.init.xavier_normal_(weight, generator=generator)


@pytest.mark.parametrize(
    ("draw", "slope", "ratio"),
    [(he(0.0), 0.0, 1.0), (he(0.25), 0.25, 1.0), (xavier, 0.0, 0.5), (he(0.0), 0.5, 1.25)],
)
def test_each_layer_multiplies_the_variance_by_its_gain_times_the_rectifiers_share(draw, slope, ratio):
    """gain^2 (1 + a^2)/2, eq. 13: here over 4 of 5 layers, narrow."""
    logs = log_gains(5, 256, slope, draw, 4)
    assert sum(logs) / 4 == pytest.approx(4 * math.log(ratio), abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "slope", "ratio"),
    [(he(0.0), 0.0, 1.0), (he(0.25), 0.25, 1.0), (xavier, 0.0, 0.5), (he(0.0), 0.5, 1.25)],
)
def test_thirty_layers_are_within_a_fifth_of_the_theory(draw, slope, ratio):
    """Xavier gives 2^-29; He(0) with a = 0.5 overshoots by 1.25^29 > 600.

    A layer of n units multiplies the second moment by a random factor of relative variance r / n, whose
    logarithm is -r / 2n in the mean. Of 8 seeds the log-mean has a standard deviation of 0.13: here are 24.
    """
    spread = 6 * (1 + slope**4) / (1 + slope**2) ** 2 - 1
    theory = 29 * (math.log(ratio) - spread / (2 * 1024))
    logs = log_gains(30, 1024, slope, draw, 24)
    assert math.exp(sum(logs) / 24 - theory) == pytest.approx(1, abs=0.2)


def test_clamps_and_the_other_rectifiers_are_seen():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(6))
            self.capped, self.random = nn.ReLU6(), nn.RReLU(0.1, 0.3)

        def forward(self, x):
            x = self.layers[0](x).clamp(min=0)
            x = torch.clamp_min(self.layers[1](x), 0)
            x = self.capped(self.layers[2](x))
            x = self.random(self.layers[3](x))
            return self.layers[5](self.layers[4](x).clamp(-1, 1))

    assert list(feeding_slopes(Net()).values()) == [0, 0, 0, 0, pytest.approx(0.2), 1]


def test_unused_layers_are_drawn_too_and_attention_is_not():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.rectifier = nn.Linear(64, 64), nn.PReLU()
            self.auxiliary, self.attention = nn.Linear(64, 4096), nn.MultiheadAttention(64, 2)

        def forward(self, x):
            return self.attention(*3 * [self.rectifier(self.used(x))])[0]

    net = Net()
    before = net.attention.out_proj.weight.clone()
    with pytest.warns(UserWarning, match="does not call auxiliary"):
        he_init_(net, generator=torch.Generator().manual_seed(0))
    assert net.auxiliary.weight.std().item() == pytest.approx(math.sqrt(2 / (1 + 0.25**2) / 64), rel=0.02)
    assert torch.equal(net.attention.out_proj.weight, before)


@pytest.mark.parametrize("parametrised", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_parametrised_weights_are_assigned(parametrised):
    net = nn.Sequential(parametrised(nn.Linear(64, 64)), nn.ReLU())
    before = net[0].weight.clone()
    he_init_(net, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(net[0].weight, before)
    if parametrised is parametrizations.weight_norm:
        assert net[0].weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.03)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"single Linear, .*`he_normal_"):
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()).apply(he_init_)
    layer = nn.Linear(2, 2)
    weight = layer.weight
    del layer.weight
    layer.weight = weight.detach() * 2
    with pytest.raises(ValueError, match="those of 0 are computed"):
        he_init_(nn.Sequential(layer))
