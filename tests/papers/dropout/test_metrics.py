import math
import pickle

import pytest
import torch
from torch.distributions import Normal
from torchmetrics.functional.classification import multiclass_calibration_error

from pl_losses.papers.dropout.metrics import (
    ClassificationScores,
    ClassificationUncertainty,
    EntropyHistogram,
    RegressionScores,
)
from pl_losses.papers.dropout.uncertainty import (
    expected_entropy,
    max_probability,
    mc_log_likelihood,
    mutual_information,
    predictive_cdf,
    predictive_entropy,
    predictive_moments,
    variation_ratio,
)


def probabilities(samples=7, batch=23, classes=5, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(samples, batch, classes, generator=generator, dtype=torch.float64)
    return logits.softmax(dim=-1), torch.randint(classes, (batch,), generator=generator)


def values(samples=9, batch=11, outputs=(2,)):
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(samples, batch, *outputs, generator=generator, dtype=torch.float64)
    return draw, torch.randn(batch, *outputs, generator=generator, dtype=torch.float64)


def test_quantities_are_the_sums_written_out():
    samples, _ = probabilities()
    entropy = lambda p: -sum(q * math.log(q) for q in p)  # noqa: E731
    for column in range(samples.shape[1]):
        rows = samples[:, column].tolist()
        mean = [sum(row[c] for row in rows) / 7 for c in range(5)]
        votes = [row.index(max(row)) for row in rows]
        total, inner = entropy(mean), sum(map(entropy, rows)) / 7
        for quantity, by_hand in (
            (predictive_entropy, total),
            (expected_entropy, inner),
            (mutual_information, total - inner),
            (variation_ratio, 1 - max(votes.count(c) for c in range(5)) / 7),
            (max_probability, max(mean)),
        ):
            assert quantity(samples)[column].item() == pytest.approx(by_hand, abs=1e-12), quantity


def test_bounds_and_certain_predictions():
    samples, _ = probabilities(scale=30)
    inner, total = expected_entropy(samples), predictive_entropy(samples)
    assert (inner >= 0).all()
    assert (inner <= total + 1e-12).all()
    assert (total <= math.log(5)).all()
    one_hot = torch.eye(3)[torch.tensor([[0, 1], [0, 2]])]
    torch.testing.assert_close(mutual_information(one_hot), torch.tensor([0.0, math.log(2)]))
    # Equal passes in float32, whose difference of entropies falls below 0 by rounding.
    equal = torch.rand(1, 2000, 10, generator=torch.Generator().manual_seed(0)).softmax(-1).expand(20, -1, -1)
    assert (predictive_entropy(equal) - expected_entropy(equal)).min() < 0
    assert mutual_information(equal).min() == 0


def test_half_precision_is_widened():
    samples = probabilities()[0].bfloat16()
    assert predictive_entropy(samples).dtype == torch.float32
    assert predictive_moments(samples)[1].dtype == torch.float32
    assert torch.equal(variation_ratio(samples), variation_ratio(samples.float()))


def test_classification_metrics_are_exact_over_uneven_batches():
    samples, target = probabilities()
    uncertainty = ClassificationUncertainty().set_dtype(torch.float64)
    scores = ClassificationScores().set_dtype(torch.float64)
    for piece in (slice(0, 10), slice(10, 11), slice(11, 11), slice(11, None)):
        uncertainty.update(samples[:, piece])
        scores.update(samples[:, piece].mean(dim=0), target[piece])
    found = uncertainty.compute()
    for quantity in (
        predictive_entropy,
        expected_entropy,
        mutual_information,
        variation_ratio,
        max_probability,
    ):
        torch.testing.assert_close(found.pop(quantity.__name__), quantity(samples).mean())
    assert not found
    mean, found = samples.mean(dim=0), scores.compute()
    one_hot = torch.nn.functional.one_hot(target, 5)
    expected = {
        "error": (mean.argmax(1) != target).double().mean(),
        "nll": -torch.stack([mean[i, t].log() for i, t in enumerate(target)]).mean(),
        "brier": ((mean - one_hot) ** 2).sum(1).mean(),
        "ece": multiclass_calibration_error(mean, target, 5, n_bins=15).double(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-6, atol=1e-7)
    assert scores.reliability[0].sum() == 23
    assert scores.reliability[2].sum() == round(23 * (1 - expected["error"].item()))


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_is_the_sum_over_bins(bins):
    # The last bin holds confidence 1, and each its upper end.
    p = torch.tensor([1.0, 1.0, 0.75, 0.5, 0.6])
    rows = torch.stack([p, 1 - p], dim=1)
    target = torch.tensor([0, 1, 0, 1, 0])
    scores = ClassificationScores(bins)
    scores.update(rows, target)
    confidence, predicted = rows.max(dim=1)
    expected = 0.0
    for number in range(bins):
        inside = [i for i in range(5) if number / bins < confidence[i] <= (number + 1) / bins]
        right = sum(predicted[i].item() == target[i].item() for i in inside)
        expected += abs(right - sum(confidence[i].item() for i in inside)) / 5
    assert scores.compute()["ece"].item() == pytest.approx(expected, abs=1e-6)


def test_certainty_that_is_wrong_has_a_finite_likelihood():
    scores = ClassificationScores()
    scores.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert scores.compute()["nll"].item() == pytest.approx(87.34, abs=0.01)


def test_entropy_histogram():
    samples, target = probabilities(batch=200)
    histogram = EntropyHistogram(bins=10)
    histogram.update(samples[:, :150], target[:150])
    histogram.update(samples[:, 150:], target[150:])
    share = predictive_entropy(samples) / math.log(5)
    right = samples.mean(dim=0).argmax(dim=1) == target
    for row, chosen in zip(histogram.compute(), (right, ~right), strict=True):
        assert row.tolist() == torch.histc(share[chosen], 10, 0, 1).tolist()
    even = EntropyHistogram(bins=4)
    even.update(torch.full((1, 3, 4), 0.25), torch.zeros(3, dtype=torch.long))
    assert even.compute().tolist() == [[0, 0, 0, 3], [0, 0, 0, 0]]


def test_moments():
    samples, _ = values()
    mean, variance = predictive_moments(samples, precision=4.0)
    torch.testing.assert_close(mean, samples.mean(dim=0))
    torch.testing.assert_close(variance, samples.var(dim=0, correction=0) + 0.25)
    assert predictive_moments(samples[:1])[1].abs().max() == 0
    # Far from 0, where the mean of squares less the squared mean would lose everything.
    far = (samples + 1e6).float()
    torch.testing.assert_close(
        predictive_moments(far)[1].double(), far.double().var(0, correction=0), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("outputs", [(), (1,), (3,)])
def test_log_likelihood_is_that_of_a_mixture_of_normals(outputs):
    samples, target = values(outputs=outputs)
    tau = 2.5
    density = Normal(samples, tau**-0.5).log_prob(target).reshape(9, 11, -1).sum(-1).exp()
    torch.testing.assert_close(mc_log_likelihood(samples, target, tau), density.mean(dim=0).log())
    # No pass is near: the mean of exponentials would be log 0.
    assert mc_log_likelihood(samples, target + 1000, 42173.5).isfinite().all()


def test_predictive_cdf():
    samples, target = values()
    torch.testing.assert_close(
        predictive_cdf(samples, target, 2.0), Normal(samples, 2**-0.5).cdf(target).mean(dim=0)
    )
    ranks = predictive_cdf(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1.0]))
    torch.testing.assert_close(ranks, torch.tensor([[0.5]]))


@pytest.mark.parametrize("precision", [None, 2.0])
@pytest.mark.parametrize("outputs", [(), (2,)])
def test_regression_scores(precision, outputs):
    samples, target = values(batch=60, outputs=outputs)
    scores = RegressionScores(precision).set_dtype(torch.float64)
    for piece in (slice(0, 41), slice(41, 42), slice(42, None)):
        scores.update(samples[:, piece], target[piece])
    found = scores.compute()
    mean, variance = predictive_moments(samples, precision)
    torch.testing.assert_close(found["rmse"], (mean - target).square().mean().sqrt())
    torch.testing.assert_close(found["standard_deviation"], variance.sqrt().mean())
    if precision is None:
        assert "log_likelihood" not in found
    else:
        likelihood = mc_log_likelihood(samples, target, precision).mean()
        torch.testing.assert_close(found["log_likelihood"], likelihood)
    rank = predictive_cdf(samples, target, precision)
    for level in (0.5, 0.9, 0.95):
        inside = ((rank - 0.5).abs() <= level / 2 + 1e-12).double().mean()
        assert found[f"coverage_{round(100 * level)}"].item() == pytest.approx(inside.item(), abs=1e-6)
    distances = [
        abs(((rank - 0.5).abs() <= k / 40 + 1e-12).double().mean() - k / 20).item() for k in range(1, 20)
    ]
    assert found["calibration_error"].item() == pytest.approx(sum(distances) / 19, abs=1e-6)
    assert scores.coverage[-1] == 1


def test_a_calibrated_regression_covers_what_it_promises():
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(30, 20_000, generator=generator)
    pick = torch.randint(30, (20_000,), generator=generator)
    target = centre[pick, torch.arange(20_000)] + 0.5 * torch.randn(20_000, generator=generator)
    scores = RegressionScores(precision=4.0)
    scores.update(centre, target)
    assert scores.compute()["calibration_error"] < 0.01
    narrow = RegressionScores(precision=4.0)
    narrow.update(0.2 * centre, target)
    assert narrow.compute()["coverage_90"] < 0.7


@pytest.mark.parametrize(
    "make", [ClassificationUncertainty, ClassificationScores, EntropyHistogram, RegressionScores]
)
def test_metrics_keep_sums_are_reset_and_pickled(make):
    samples, target = probabilities()
    args = {
        ClassificationUncertainty: (samples,),
        ClassificationScores: (samples[0], target),
        EntropyHistogram: (samples, target),
        RegressionScores: (samples[..., 0], samples[0, :, 1]),
    }[make]
    metric = make()
    assert all(isinstance(default, torch.Tensor) for default in metric._defaults.values())
    assert all(reduction.__name__ == "dim_zero_sum" for reduction in metric._reductions.values())
    metric.update(*args)
    once = metric.compute()
    again = pickle.loads(pickle.dumps(metric)).compute()
    assert str(once) == str(again)
    metric.reset()
    metric.update(*args)
    assert str(metric.compute()) == str(once)


@pytest.mark.filterwarnings("ignore:.*was called before the:UserWarning")
def test_nothing_seen_is_not_a_number():
    scores = ClassificationScores().compute() | ClassificationUncertainty().compute()
    scores |= RegressionScores(1.0).compute()
    assert len(scores) == 4 + 5 + 7
    assert all(value.isnan() for value in scores.values())


def test_a_diverged_network_scores_not_a_number():
    samples, target = probabilities()
    samples[:, 3] = math.nan
    uncertainty, scores, regression = (
        ClassificationUncertainty(),
        ClassificationScores(),
        RegressionScores(1.0),
    )
    uncertainty.update(samples)
    scores.update(samples[0], target)
    draws, truth = values()
    regression.update(draws, truth.index_fill(0, torch.tensor([3]), math.inf))
    for metric, known in ((uncertainty, 5), (scores, 4), (regression, 7)):
        found = metric.compute()
        assert len(found) == known
        assert all(value.isnan() for value in found.values())


SAMPLES, TARGET = probabilities(batch=8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ClassificationUncertainty().update(SAMPLES[0]), r"`samples` of shape \[T, B, C\].*\[8, 5\]"),
        (lambda: ClassificationUncertainty().update(SAMPLES[:0]), r"T > 0 but got \[0, 8, 5\]"),
        (lambda: ClassificationUncertainty().update(SAMPLES.log()), "`samples` to be probabilities"),
        (lambda: ClassificationScores().update(2 * SAMPLES[0], TARGET), "sums in 2..2, .*apply a softmax"),
        (lambda: ClassificationScores().update(SAMPLES, TARGET), r"`probabilities` of shape \[B, C\]"),
        (lambda: ClassificationScores().update(SAMPLES[0], TARGET[:7]), r"B = 8 but got \[7\]"),
        (lambda: ClassificationScores().update(SAMPLES[0], TARGET.float()), "class indices but got torch.fl"),
        (lambda: ClassificationScores().update(SAMPLES[0], TARGET + 3), r"`target` in 0\.\.4 but got 3\.\.7"),
        (lambda: ClassificationScores(0), "`bins` to be at least 1 but got 0"),
        (lambda: RegressionScores(0.0), "`(precision|tau)` to be positive and finite but got 0.0"),
        (
            lambda: RegressionScores().update(SAMPLES, TARGET),
            r"\[T, B\] or \[T, B, Q\].*\[7, 8, 5\] and \[8\]",
        ),
        (lambda: mc_log_likelihood(SAMPLES, TARGET, -1.0), "`(precision|tau)` to be positive"),
        (lambda: predictive_moments(SAMPLES, math.inf), "`precision`.*inf"),
        (lambda: predictive_moments(SAMPLES[:0]), r"T > 0 but got \[0, 8, 5\]"),
        (lambda: mc_log_likelihood(SAMPLES[:0, :, 0], TARGET.double(), 1.0), "T > 0"),
    ],
)
def test_refused_arguments(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


@pytest.mark.parametrize(
    "quantity", [predictive_entropy, expected_entropy, mutual_information, variation_ratio, max_probability]
)
def test_what_is_no_probabilities_of_passes_is_refused(quantity):
    with pytest.raises((TypeError, ValueError), match=r"`samples` to be probabilities .* apply a softmax"):
        quantity(torch.randn(3, 4, 5))
    for samples in (SAMPLES[0], SAMPLES[:0]):
        with pytest.raises(
            (TypeError, ValueError), match=r"`samples` of shape \[T, B, C\] with T > 0 but got"
        ):
            quantity(samples)


@pytest.mark.parametrize("ignored", [0, 3])
def test_an_ignored_target_may_be_a_class(ignored):
    samples = torch.rand(3, 50, 4, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    target = torch.arange(50) % 4
    kept = target != ignored
    for metric, reference, given in (
        (ClassificationScores(ignore_index=ignored), ClassificationScores(), samples.mean(dim=0)),
        (EntropyHistogram(ignore_index=ignored), EntropyHistogram(), samples),
    ):
        metric.update(given, target)
        reference.update(given[..., kept, :], target[kept])
        torch.testing.assert_close(metric.compute(), reference.compute())
        assert torch.equal(metric.counts, reference.counts)
