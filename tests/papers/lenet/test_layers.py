import pytest
import torch
from torch.nn import functional as F

from pl_losses.papers.lenet.layers import (
    C3_INPUTS,
    LeNet5Features,
    RBFOutput,
    ScaledTanh,
    SubSampling,
    TableConv2d,
    digit_codes,
)


def test_parameters_and_connections_are_the_papers():
    net = LeNet5Features()
    counts = {name: sum(p.numel() for p in getattr(net, name).parameters()) for name in net._modules}
    assert {name: n for name, n in counts.items() if n} == {
        "c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164,
    }  # fmt: skip
    assert sum(counts.values()) == 60_000
    maps = torch.zeros(1, 1, 32, 32)
    shapes = {}
    for name, layer in net.named_children():
        maps = layer(maps)
        shapes[name] = tuple(maps.shape[1:])
    assert shapes["c1"] == (6, 28, 28)
    assert shapes["s2"] == (6, 14, 14)
    assert shapes["c3"] == (16, 10, 10)
    assert shapes["s4"] == (16, 5, 5)
    assert shapes["f6"] == (84, 1, 1)
    # A connection per weight and position; a sub-sampling unit has 4 inputs and a bias.
    connections = 156 * 28 * 28 + 6 * 14 * 14 * 5 + 1516 * 10 * 10 + 16 * 5 * 5 * 5 + 48120 + 10164
    assert connections + 84 * 10 == 340_908


def test_squashing():
    f = ScaledTanh()
    torch.testing.assert_close(
        f(torch.tensor([1.0, -1.0, 0.0])), torch.tensor([1.0, -1.0, 0.0]), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_layers_are_those_of_one_operation(dtype):
    maps = torch.randn(2, 3, 7, 8, dtype=dtype)  # An odd height: the last row is in no field.
    layer = SubSampling(3).to(dtype)
    layer.coefficient.data, layer.bias.data = torch.ones(3, dtype=dtype), torch.zeros(3, dtype=dtype)
    tolerance = {"atol": 8 * torch.finfo(dtype).eps, "rtol": torch.finfo(dtype).eps}
    torch.testing.assert_close(layer(maps), F.avg_pool2d(maps, 2, divisor_override=1), **tolerance)
    torch.testing.assert_close(ScaledTanh()(maps), 1.7159 * torch.tanh(maps * (2 / 3)), **tolerance)
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(ScaledTanh(), maps.requires_grad_())
        assert torch.autograd.gradcheck(lambda x: layer(x), maps)


def test_sub_sampling_adds_the_four_inputs():
    layer = SubSampling(2)
    layer.coefficient.data, layer.bias.data = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.0])
    maps = torch.arange(32.0).reshape(1, 2, 4, 4)
    first = 2 * (0 + 1 + 4 + 5) + 0.5
    last = -1 * (26 + 27 + 30 + 31)
    result = layer(maps)
    assert result.shape == (1, 2, 2, 2)
    assert result[0, 0, 0, 0] == first
    assert result[0, 1, 1, 1] == last


def test_table_is_the_papers():
    assert len(C3_INPUTS) == 16
    feeds = [sum(source in sources for sources in C3_INPUTS) for source in range(6)]
    assert feeds == [10] * 6
    assert sum(map(len, C3_INPUTS)) == 60


def test_table_convolution_equals_one_convolution_per_map():
    layer = TableConv2d(C3_INPUTS, 6, 5).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    maps = torch.randn(3, 6, 14, 14, dtype=torch.float64)
    result = layer(maps)
    start = 0
    for out, sources in enumerate(C3_INPUTS):
        kernels = layer.weight[start : start + len(sources)]
        alone = F.conv2d(maps[:, list(sources)], kernels[None], layer.bias[out : out + 1])
        torch.testing.assert_close(result[:, out : out + 1], alone)
        start += len(sources)


def test_a_table_that_names_no_map_is_refused():
    with pytest.raises(ValueError, match=r"`table`.*\[0, 5\].*\[6\]"):
        TableConv2d(((0, 6),), 6, 5)


def test_weights_start_in_the_papers_range():
    torch.manual_seed(0)
    net = LeNet5Features()
    assert net.c5.weight.abs().max() <= 2.4 / 400
    assert net.c5.weight.abs().max() > 2.39 / 400
    for out, sources in enumerate(C3_INPUTS):
        weights = net.c3.weight[net.c3.outputs == out]
        assert 0.85 * 2.4 / (25 * len(sources)) < weights.abs().max() <= 2.4 / (25 * len(sources))


def test_a_wider_image_gives_a_column_every_four_pixels():
    net = LeNet5Features().eval()
    wide = torch.randn(1, 1, 32, 48)
    columns = net(wide)
    assert columns.shape == (1, 84, 1, 5)
    torch.testing.assert_close(columns[..., 2], net(wide[..., 8:40])[..., 0])


def test_codes():
    codes = digit_codes()
    assert codes.shape == (10, 84)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    assert len({tuple(code.tolist()) for code in codes}) == 10
    assert codes[7].reshape(12, 7)[0].tolist() == [1.0] * 7


def test_fixed_centres_are_no_parameters():
    assert not list(RBFOutput(digit_codes()).parameters())
    assert [p.shape for p in RBFOutput(digit_codes(), adaptable=True).parameters()] == [(10, 84)]
    with pytest.raises(ValueError, match="`codes`"):
        RBFOutput(torch.full((10, 84), float("nan")))
