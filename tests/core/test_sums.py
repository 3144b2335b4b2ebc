"""Sums over many samples, steps and columns, where float32 alone is visibly wrong."""

import pytest
import torch
from torch import nn

from pl_losses.core import precision
from pl_losses.papers.adam import TemporalAveraging
from pl_losses.papers.adam.monitor.statistics import Moments, squares
from pl_losses.papers.adam.monitor.update_rule import Rule
from pl_losses.papers.gan.quality import FrechetDistance, frechet_distance
from pl_losses.papers.gtn.segmentation import Cuts, cut_segments
from pl_losses.papers.lenet.optimizer import StochasticDiagonalLM


def test_the_curvature_of_very_many_patterns():
    line = nn.Linear(1, 1, bias=False)
    optimizer = StochasticDiagonalLM(line.parameters(), lr=0.1)
    # One pattern that weighs as much as very many others, which float32 would not add to it.
    batches = [(torch.full((1, 1), value), torch.zeros(1, 1)) for value in [2.0**13, *[1.0] * 400]]
    optimizer.estimate_curvature(line, batches, lambda y, t: 0.5 * (y - t).square().mean())
    expected = (2.0**26 + 400) / 401
    assert optimizer.state[line.weight]["curvature"].item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_the_average_of_weights_over_very_many_steps(dtype, rtol):
    beta2 = 0.9995
    averaging, average = TemporalAveraging(beta2), torch.full((4,), 1.0, dtype=dtype)
    expected, weight = torch.full((4,), 1.0, dtype=torch.float64), torch.empty(4, dtype=dtype)
    for step in range(4000):
        weight.fill_(1.0 + 1.0 * (step > 0))
        averaging.move([average], [weight], step)
        expected += (1 - beta2) / (1 - beta2 ** (step + 1)) * (weight.double() - expected)
    torch.testing.assert_close(average.double(), expected, rtol=rtol, atol=0)


def test_norms_of_long_tensors():
    long = torch.full((2**18 + 5,), 0.3)
    rule = Rule("adam", 1e-3, 0.9, 0.999, 1e-8)
    found = squares([Moments(1.0, 1.0, long, long, long, long)], rule, torch.device("cpu"))
    assert float(found[0]) == pytest.approx(long.double().square().sum().item(), rel=4e-5)


def test_the_ends_of_long_lines_are_cut_as_their_beginnings():
    torch.manual_seed(0)
    stroke = torch.zeros(1, 1, 28, 20)
    for row in range(4, 24):
        stroke[0, 0, row, 14 - row // 3 : 17 - row // 3] = 0.7
    width = 40_000
    line = torch.zeros(1, 1, 28, width)
    line[..., :20], line[..., -20:] = stroke, stroke
    line[0, 0, :, 100:-100] = torch.rand(28, width - 200)
    cuts = Cuts(torch.tensor([[0, 20, width - 20, width]]), torch.tensor([3]))
    images = cut_segments(line, cuts, max_pieces=1, max_width=29, deslant=True).images
    torch.testing.assert_close(images[2], images[0], rtol=0, atol=1e-3)


def test_devices_without_float64_add_up_on_the_host(monkeypatch):
    features = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)).double()
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", {"meta"})
    distance = FrechetDistance(3).to("meta")
    assert {state.device.type for state in (distance.counts, distance.sums, distance.products)} == {"cpu"}
    for kind, own in enumerate(features):
        distance.update(own, real=kind == 0)
    expected = [part for own in features for part in (own.mean(0), own.T.cov())]
    torch.testing.assert_close(distance.compute(), frechet_distance(*expected))
