"""Sums over more rows than float32 counts, held against float64 sums of the same numbers."""

import math

import numpy as np
import pytest
import torch

from pl_losses.core.sums import Mean, Sum
from pl_losses.papers.dropout.metrics import (
    ClassificationScores,
    ClassificationUncertainty,
    RegressionScores,
)
from pl_losses.papers.dropout.noise_precision import PrecisionSearch

ROWS = 2**21
PIECES = 32


def pieces(*tensors):
    return zip(*(tensor.chunk(PIECES, dim=-1) for tensor in tensors), strict=True)


def in_float32(metric):
    """As on a device without float64."""
    for name in metric._defaults:
        state = getattr(metric, name)
        setattr(metric, name, state.float() if state.is_floating_point() else state)
    return metric


@pytest.fixture(scope="module")
def calibrated():
    """The probability of class 0, right as often as it says, and the class; nearly all in one bin."""
    generator = torch.Generator().manual_seed(0)
    confidence = 1 - 0.07 * torch.rand(ROWS, generator=generator)
    return confidence, (torch.rand(ROWS, generator=generator) >= confidence).long()


@pytest.mark.parametrize("device", ["with float64", "without"])
def test_scores_of_two_million_predictions(calibrated, device):
    confidence, target = calibrated
    scores, uncertainty = ClassificationScores(), ClassificationUncertainty()
    if device == "without":
        scores, uncertainty = in_float32(scores), in_float32(uncertainty)
    for p, right in pieces(confidence, target):
        rows = torch.stack([p, 1 - p], dim=1)
        scores.update(rows, right)
        uncertainty.update(rows[None])
    found = scores.compute()
    p, wrong = confidence.double().numpy(), target.numpy()
    other = (1 - confidence).double().numpy()
    inside = np.ceil((confidence * 15).numpy()).astype(int)
    distances = [abs(np.sum(1 - wrong[inside == b]) - np.sum(p[inside == b])) for b in range(1, 16)]
    expected = {
        "ece": sum(distances) / ROWS,
        "error": wrong.mean(),
        "nll": -np.log(np.where(wrong, other, p)).mean(),
        "brier": np.square(np.stack([p, other]) - np.stack([1 - wrong, wrong])).sum(axis=0).mean(),
    }
    # Each number has float32's precision, and their sum as much. Without float64, the 65 536 rows of a batch
    # are added up in float32, and only the batches exactly.
    room = 2e-7 if device == "with float64" else 2e-6
    assert expected["ece"] < 1e-3
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=room, abs=room), name
    entropy = -(p * np.log(p) + other * np.log(np.maximum(other, 1e-300))).mean()
    found = uncertainty.compute()
    assert found["predictive_entropy"].item() == pytest.approx(entropy, rel=1e-6)
    assert found["max_probability"].item() == pytest.approx(np.maximum(p, other).mean(), rel=1e-6)
    assert uncertainty.total == ROWS
    assert scores.counts.sum() == ROWS + (ROWS - wrong.sum())


@pytest.mark.parametrize("device", ["with float64", "without"])
def test_regression_of_two_million_values(device):
    generator = torch.Generator().manual_seed(0)
    target, error = 100 + torch.rand(2, ROWS, generator=generator)
    samples = target + (error - 100)
    scores, single, search = RegressionScores(1.0), Mean(), PrecisionSearch([0.5, 1.0])
    if device == "without":
        scores, single, search = in_float32(scores), in_float32(single), in_float32(search)
    for y, truth in pieces(samples, target):
        scores.update(y[None], truth)
        single.update((y - truth).square())
        search.update(y[None], truth)
    squares = np.square(samples.double().numpy() - target.double().numpy())
    assert single.compute().item() == pytest.approx(squares.mean(), rel=2e-7)
    found = scores.compute()
    assert found["rmse"].item() == pytest.approx(math.sqrt(squares.mean()), rel=2e-7)
    assert found["standard_deviation"].item() == pytest.approx(1.0, rel=2e-7)
    likelihood = -0.5 * squares.mean() - 0.5 * math.log(2 * math.pi)
    assert found["log_likelihood"].item() == pytest.approx(likelihood, rel=2e-7)
    assert search.compute()["log_likelihood"].item() == pytest.approx(likelihood, rel=2e-7)


def test_a_sum_goes_on_growing_by_small_addends():
    for total in (Sum(), in_float32(Sum())):
        total.update(2.0**26)
        for _ in range(1000):
            total.update(torch.tensor(1.0))
        assert total.compute().double().item() == pytest.approx(2**26 + 1000, abs=4)


def test_a_model_that_becomes_half_precision_leaves_the_sums_as_they_are():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scores = torch.nn.Linear(2, 2), ClassificationScores()

    for change in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()):
        model = Model()
        change(model)
        assert model.layer.weight.dtype != torch.float32
        assert model.scores.sums.dtype == model.scores._defaults["sums"].dtype == torch.float64
        assert model.scores.counts.dtype == torch.long
    assert ClassificationScores().to("meta").sums.device.type == "meta"


def test_a_device_without_float64_has_compensated_sums():
    class Place(torch.nn.Module):
        """Says what MPS says of float64."""

        def __init__(self):
            super().__init__()
            self.metric = Sum()

    def move(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor

    place = Place()
    real = torch.Tensor.to
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", lambda self, *args: real(move(self), *args))
        place._apply(lambda tensor: tensor)
    assert place.metric.total.dtype == torch.float32
    place.metric.update(3)
    place.metric.reset()
    assert place.metric.total.dtype == torch.float32
