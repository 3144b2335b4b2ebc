"""Gal and Ghahramani 2016, section 4: the uncertainty of T passes over a data set, and its quality.

All metrics keep sums only, in float64 or integers. They are exact over uneven batches, long streams and any
number of ranks, also if a rank has seen nothing. The quantities that they sum up are in :mod:`.uncertainty`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from pl_losses.core.precision import at_least_float32
from pl_losses.core.sums import Sums
from pl_losses.core.validation import check_counts, check_positive, check_shape, typed
from pl_losses.papers.dropout.uncertainty import (
    check_probabilities,
    check_samples,
    expected_entropy,
    fitting,
    max_probability,
    mc_log_likelihood,
    mutual_information,
    predictive_cdf,
    predictive_entropy,
    predictive_moments,
    variation_ratio,
)

IGNORED = -100  # F.cross_entropy's target for "no target"
BINS = 15  # of the calibration error
LEVELS = 20  # of the intervals' calibration: 5 %, 10 %, ..., 100 %


class ClassificationUncertainty(Sums):
    """Mean uncertainty of T passes over a data set, without targets.

    ``update`` takes probabilities [T, B, C], ``compute`` returns a dict of scalars: ``predictive_entropy``,
    ``expected_entropy`` and ``mutual_information`` in nats, ``variation_ratio`` and ``max_probability``.

    Example:
        >>> metric = ClassificationUncertainty()
        >>> metric.update(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}["mutual_information"]
        0.693
    """

    total: Tensor
    quantities = (
        predictive_entropy,
        expected_entropy,
        mutual_information,
        variation_ratio,
        max_probability,
    )

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("sums", len(self.quantities))
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @typed
    def update(self, samples: Tensor, counted: Tensor | None = None) -> None:
        """Add a batch of samples [T, B, C], or those of its inputs that are ``counted``, a mask [B].

        Raises:
            ValueError: If ``samples`` is not of shape [T, B, C] or, on the CPU, no probabilities.
        """
        if samples.ndim != 3:
            raise ValueError(f"Expected `samples` of shape [T, B, C] but got {list(samples.shape)}")
        if counted is not None:
            check_shape("counted", counted, samples.shape[1])
        rows = torch.stack([self.exact(quantity(samples)) for quantity in self.quantities])
        self.increase("sums", (rows if counted is None else rows.where(counted, 0)).sum(dim=1))
        self.total += samples.shape[1] if counted is None else counted.sum()

    def compute(self) -> dict[str, Tensor]:
        """Compute the means; all NaN before any input, and if one was not finite."""
        sums = self.total_of("sums")
        means = sums / (self.total + 0 * sums.sum())
        return {quantity.__name__: mean for quantity, mean in zip(self.quantities, means, strict=True)}


class ClassificationScores(Sums):
    """Error, negative log-likelihood, Brier score and expected calibration error of probabilities.

    ``update`` takes probabilities [B, C], such as the mean of T passes, and targets as :func:`as_classes`
    does; ``compute`` returns a dict of scalars: ``error``, a share; ``nll``, -log p of the right class in
    nats, at most 87.3 an input; ``brier``, the sum over classes of the squared difference from the one-hot
    target, in [0, 2]; ``ece``, the mean distance of confidence and accuracy over equally wide bins of the
    confidence.

    Args:
        bins: Number of bins of the calibration error.
        ignore_index: Target of inputs that are not counted.

    Attributes:
        reliability: After :meth:`compute`, per bin the number of inputs of all ranks, their summed
            confidence, and how many were right, [3, bins].

    Example:
        >>> metric = ClassificationScores()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'error': 0.5, 'nll': 0.857, 'brier': 0.65, 'ece': 0.45}
    """

    counts: Tensor

    @typed
    def __init__(self, bins: int = BINS, ignore_index: int = IGNORED) -> None:
        super().__init__()
        check_counts(bins=bins)
        self.bins, self.ignore_index = bins, ignore_index
        self.reliability = torch.zeros(3, bins)
        self.add_sum("sums", 2)
        self.add_sum("confidence", bins)
        self.add_state("counts", torch.zeros(2, bins, dtype=torch.long), dist_reduce_fx="sum")

    @typed
    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Add a batch.

        Raises:
            ValueError: If the shapes do not fit, or ``target`` holds no classes.
        """
        target = as_classes(target, probabilities, self.ignore_index)
        check_probabilities("probabilities", probabilities)
        counted = target != self.ignore_index
        probabilities = at_least_float32(probabilities)
        chosen = probabilities.gather(1, target.where(counted, 0)[:, None])[:, 0]
        nll = -chosen.clamp_min(torch.finfo(torch.float32).tiny).log()
        brier = probabilities.square().sum(dim=1) - 2 * chosen + 1
        self.increase("sums", self.exact(torch.stack([nll, brier])).where(counted, 0).sum(dim=1))
        confidence, predicted = probabilities.max(dim=1)
        inside = (confidence * self.bins).ceil().long().clamp(1, self.bins) - 1
        sums = self.exact(torch.zeros(self.bins, device=inside.device))
        sums.index_add_(0, inside, self.exact(confidence).where(counted, 0))
        self.increase("confidence", sums)
        self.counts[0].index_add_(0, inside, counted.long())
        self.counts[1].index_add_(0, inside, (counted & (predicted == target)).long())

    def compute(self) -> dict[str, Tensor]:
        """Compute the scores; all NaN before any input, and if one was not finite."""
        count, right = self.counts
        sums, confidence = self.total_of("sums"), self.total_of("confidence")
        self.reliability = torch.stack([count, confidence, right])
        total = count.sum() + 0 * sums.sum()
        nll, brier = sums / total
        return {
            "error": (total - right.sum()) / total,
            "nll": nll,
            "brier": brier,
            "ece": (right - confidence).abs().sum() / total,
        }


class EntropyHistogram(Metric):
    """Counts of right and wrong predictions by their predictive entropy, as a share of log C.

    ``update`` takes probabilities [T, B, C] and targets as :func:`as_classes` does, ``compute`` returns
    counts [2, bins], right predictions of the mean first. A useful uncertainty is low where the network is
    right.

    Args:
        bins: Number of equally wide bins of [0, 1].
        ignore_index: Target of inputs that are not counted.

    Example:
        >>> histogram = EntropyHistogram(bins=2)
        >>> histogram.update(torch.tensor([[[1.0, 0.0], [0.4, 0.6]]]), torch.tensor([0, 0]))
        >>> histogram.compute()
        tensor([[1, 0],
                [0, 1]])
    """

    full_state_update = False
    counts: Tensor

    @typed
    def __init__(self, bins: int = 30, ignore_index: int = IGNORED) -> None:
        super().__init__()
        check_counts(bins=bins)
        self.bins, self.ignore_index = bins, ignore_index
        self.add_state("counts", torch.zeros(2, bins, dtype=torch.long), dist_reduce_fx="sum")

    @typed
    def update(self, samples: Tensor, target: Tensor) -> None:
        """Add a batch."""
        check_shape("samples", samples, "T", "B", "C")
        check_samples(samples)
        target = as_classes(target, samples[0], self.ignore_index)
        counted = (target != self.ignore_index).long()
        share = predictive_entropy(samples) / math.log(samples.shape[-1])
        inside = (share * self.bins).long().clamp(0, self.bins - 1)
        wrong = (samples.mean(dim=0).argmax(dim=1) != target).long()
        self.counts.view(-1).index_add_(0, wrong * self.bins + inside, counted)

    def compute(self) -> Tensor:
        """Return the counts, [2, bins]."""
        return self.counts.clone()


class RegressionScores(Sums):
    """Error, spread, likelihood and calibration of T passes of a regression, in the targets' units.

    ``update`` takes samples [T, B] or [T, B, Q] and targets [B] or [B, Q]; ``compute`` returns a dict of
    scalars: ``rmse`` of the predictive mean; ``standard_deviation``, the mean predictive one, 1/tau included;
    ``log_likelihood`` per input, jointly over its outputs, if there is a precision; ``coverage_50``,
    ``coverage_90`` and ``coverage_95``, the share of targets in the central intervals of that probability in
    percent; ``calibration_error``, the mean distance of coverage and probability over 5 %, 10 %, ..., 95 %.

    Args:
        precision: tau, in the units of 1/y^2; ``None`` for passes without noise.

    Attributes:
        coverage: After :meth:`compute`, the coverage over all ranks of the intervals of 5 %, 10 %, ...,
            100 %, [20].

    Raises:
        ValueError: If ``precision`` is not positive.

    Example:
        >>> metric = RegressionScores(precision=1.0)
        >>> metric.update(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), torch.tensor([0.0, 2.0]))
        >>> scores = metric.compute()
        >>> [round(scores[name].item(), 3) for name in ("rmse", "standard_deviation", "log_likelihood")]
        [0.0, 1.207, -1.169]
    """

    total: Tensor
    counts: Tensor

    @typed
    def __init__(self, precision: float | None = None) -> None:
        super().__init__()
        check_positive("precision", precision, none=True)
        self.precision = precision
        self.coverage = torch.zeros(LEVELS)
        self.add_sum("sums", 3)
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(LEVELS, dtype=torch.long), dist_reduce_fx="sum")

    @typed
    def update(self, samples: Tensor, target: Tensor) -> None:
        """Add a batch.

        Raises:
            ValueError: If the shapes do not fit.
        """
        likelihood = self.exact(torch.zeros((), device=samples.device))
        if self.precision is not None:
            likelihood = self.exact(mc_log_likelihood(samples, target, self.precision)).sum()
        # The smallest central interval with the target has probability |2 P(Y <= y) - 1|.
        reach = (2 * predictive_cdf(samples, target, self.precision) - 1).abs().flatten()
        inside = (reach * LEVELS).ceil().long().clamp(1, LEVELS) - 1
        self.counts.index_add_(0, inside, torch.ones_like(inside))
        samples, target = fitting(samples, target)
        mean, variance = predictive_moments(samples, self.precision)
        squares, deviations = self.exact(target - mean).square(), self.exact(variance.sqrt())
        self.increase("sums", torch.stack([squares.sum(), deviations.sum(), likelihood]))
        self.total += len(target)

    def compute(self) -> dict[str, Tensor]:
        """Compute the scores; all NaN before any input, and if one was not finite."""
        sums = self.total_of("sums")
        values = self.counts.sum() + 0 * sums[:2].sum()
        squares, deviations, likelihood = sums
        self.coverage = self.counts.cumsum(0) / values
        levels = torch.arange(1, LEVELS, device=values.device) / LEVELS
        scores = {
            "rmse": (squares / values).sqrt(),
            "standard_deviation": deviations / values,
            **{f"coverage_{percent}": self.coverage[percent * LEVELS // 100 - 1] for percent in (50, 90, 95)},
            "calibration_error": (self.coverage[:-1] - levels).abs().mean(),
        }
        return (
            scores
            if self.precision is None
            else scores | {"log_likelihood": likelihood / (self.total + 0 * values)}
        )


def as_classes(target: Tensor, probabilities: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """Convert targets to right classes, integers [B]; ignored ones stay ``ignore_index``.

    Args:
        target: Integers [B] or [B, 1]; of two classes also booleans, or 0 and 1 as floating point, the
            targets of ``F.binary_cross_entropy_with_logits``.
        probabilities: [B, C].
        ignore_index: Target of inputs that are not counted.

    Raises:
        ValueError: If the shapes do not fit, or ``target`` holds no classes or, on the CPU, ones out of
            range.
    """
    if probabilities.ndim != 2:
        raise ValueError(f"Expected `probabilities` of shape [B, C] but got {list(probabilities.shape)}")
    batch, classes = probabilities.shape
    if target.shape == (batch, 1):
        target = target[:, 0]
    if target.shape != (batch,):
        raise ValueError(f"Expected `target` of shape [B] with B = {batch} but got {list(target.shape)}")
    number = target.is_floating_point() or target.dtype == torch.bool
    if target.is_complex() or (number and classes != 2):
        raise ValueError(f"Expected `target` to hold class indices but got {target.dtype}")
    given = target
    if given.is_floating_point():
        # What is not a whole number becomes a class that does not exist.
        target = given.where(given == given.round(), classes)
    target = target.long()
    # On an accelerator the check would wait; there, indexing fails by itself.
    if batch and target.device.type == "cpu":
        wrong = (target != ignore_index) & ((target < 0) | (target >= classes))
        if wrong.any():
            found = given[wrong]
            raise ValueError(
                f"Expected `target` to hold class indices in 0..{classes - 1} but got"
                f" {found.min():.4g}..{found.max():.4g}"
                if number
                else f"Expected `target` in 0..{classes - 1} but got {int(given.min())}..{int(given.max())}"
            )
    return target
