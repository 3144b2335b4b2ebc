"""Results of :class:`~pl_losses.papers.dropout.monitor.DropoutUncertaintyMonitor` for one data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pl_losses.core.metrics import computed
from pl_losses.core.sums import Mean, Sum
from pl_losses.monitoring.pictures import gather_objects
from pl_losses.papers.dropout.drawing import (
    draw_coverage,
    draw_entropy,
    draw_predictions,
    draw_reliability,
    draw_uncertain,
)
from pl_losses.papers.dropout.metrics import (
    IGNORED,
    ClassificationScores,
    ClassificationUncertainty,
    EntropyHistogram,
    RegressionScores,
    as_classes,
)
from pl_losses.papers.dropout.sampling.isolation import tensors_in
from pl_losses.papers.dropout.uncertainty import mutual_information, predictive_moments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# <stage> is val, test or predict; with several dataloaders /dataloader_idx_<n> follows.
INPUTS = {"<stage>/dropout/inputs": "number of inputs that the other numbers are computed from"}
CLASSIFICATION = {
    "<stage>/dropout/predictive_entropy": "entropy of the passes' mean, averaged over inputs, nats",
    "<stage>/dropout/expected_entropy": "entropy of a pass, averaged over passes and inputs, nats",
    "<stage>/dropout/mutual_information": "difference of these two entropies (BALD): how much the passes"
    " disagree, nats",
    "<stage>/dropout/variation_ratio": "mean share of passes that disagree with the majority, 0 to 1",
    "<stage>/dropout/max_probability": "mean probability of the predicted class, 0 to 1",
    "<stage>/dropout/error": "share of wrong predictions of the mean of the passes, 0 to 1",
    "<stage>/dropout/error_deterministic": "the same for a pass without dropout, 0 to 1",
    "<stage>/dropout/nll": "-log p of the right class, by the mean of the passes, nats",
    "<stage>/dropout/nll_deterministic": "the same for a pass without dropout, nats",
    "<stage>/dropout/brier": "Brier score of the mean of the passes, 0 to 2",
    "<stage>/dropout/brier_deterministic": "the same for a pass without dropout, 0 to 2",
    "<stage>/dropout/ece": "expected calibration error of the mean of the passes, 15 bins, 0 to 1",
    "<stage>/dropout/ece_deterministic": "the same for a pass without dropout, 0 to 1",
    "<stage>/dropout/reliability": "picture: accuracy for each confidence, with and without dropout",
    "<stage>/dropout/entropy": "picture: predictive entropy of right and of wrong predictions",
    "<stage>/dropout/most_uncertain": "picture: the images of highest mutual information",
    "<stage>/dropout/most_uncertain_table": "table: an image in each row, with its mutual information",
}
REGRESSION = {
    "<stage>/dropout/rmse": "root mean squared error of the predictive mean, units of the target",
    "<stage>/dropout/rmse_deterministic": "the same for a pass without dropout, units of the target",
    "<stage>/dropout/standard_deviation": "mean predictive standard deviation, units of the target",
    "<stage>/dropout/log_likelihood": "mean log-likelihood per input, nats (only if the"
    " monitor has a `precision`, the tau of the noise)",
    "<stage>/dropout/coverage_50": "share of targets in the central 50 % interval, 0 to 1",
    "<stage>/dropout/coverage_90": "share of targets in the central 90 % interval, 0 to 1",
    "<stage>/dropout/coverage_95": "share of targets in the central 95 % interval, 0 to 1",
    "<stage>/dropout/calibration_error": "mean distance of coverage and probability, 0 to 1",
    "<stage>/dropout/calibration": "picture: coverage of the central intervals for each probability",
    "<stage>/dropout/predictions": "picture: predictive mean and standard deviation for each target",
}
KEYS = {**INPUTS, **CLASSIFICATION, **REGRESSION}
POINTS = 200  # points of a regression that each rank keeps for a picture


class Summary(nn.Module):
    """Sums over the batches of one dataloader, on the module's device.

    Args:
        labelled: Whether there are targets.
    """

    def __init__(self, labelled: bool) -> None:
        super().__init__()
        self.labelled = labelled
        self.inputs = Sum()

    def check(self, single: Tensor, target: Tensor | None) -> None:
        """Refuse targets that do not fit the outputs, before any sampling.

        Raises:
            ValueError: If they do not.
        """
        raise NotImplementedError

    def update(self, samples: Tensor, single: Tensor, target: Tensor | None, inputs: object) -> None:
        """Add a batch: T passes [T, B, ...], the pass without dropout [B, ...], targets and inputs."""
        raise NotImplementedError

    def values(self) -> dict[str, Tensor]:
        """Compute the quantities over all ranks: a collective."""
        raise NotImplementedError

    def figures(self, draw: bool) -> dict[str, Figure]:
        """Draw the pictures after :meth:`values`: a collective; empty on ranks that do not draw."""
        raise NotImplementedError

    def rows(self) -> tuple[Tensor, list[list[object]]] | None:
        """Return the images of a table and what is beside each, after :meth:`figures`; ``None`` without."""
        return None


class ClassificationSummary(Summary):
    """Uncertainty, scores and the most uncertain images of a classification.

    Args:
        labelled: Whether there are targets.
        images: Number of images to keep.
        ignore_index: Target of rows that are not counted.
    """

    def __init__(self, labelled: bool, images: int, ignore_index: int = IGNORED) -> None:
        super().__init__(labelled)
        self.images, self.ignore_index = images, ignore_index
        self.uncertainty = ClassificationUncertainty()
        self.scores, self.single = (ClassificationScores(ignore_index=ignore_index) for _ in range(2))
        self.histogram = EntropyHistogram(ignore_index=ignore_index)
        self.kept: tuple[Tensor, ...] = ()
        self.uncertain: tuple[Tensor, ...] = ()
        self.counts = torch.zeros(2, 1)

    def check(self, single: Tensor, target: Tensor | None) -> None:
        """Refuse targets that are not classes of these probabilities."""
        if single.ndim != 2:
            raise ValueError(f"Expected probabilities of shape [B, C] but got {list(single.shape)}")
        if target is not None:
            as_classes(target, single, self.ignore_index)

    def update(self, samples: Tensor, single: Tensor, target: Tensor | None, inputs: object) -> None:
        """Add a batch of probabilities."""
        mean, information = samples.mean(dim=0), mutual_information(samples)
        predicted = mean.argmax(dim=1)
        right, counted = torch.full_like(predicted, -1), None
        if target is not None:
            right = as_classes(target, single, self.ignore_index)
            counted = right != self.ignore_index
            information = information.where(counted, -torch.inf)
            self.scores.update(mean, right)
            self.single.update(single, right)
            self.histogram.update(samples, right)
        self.inputs.update(len(single) if counted is None else counted.sum())
        self.uncertainty.update(samples, counted)
        if self.images and (images := images_of(inputs, len(mean))) is not None:
            found = (information, images, torch.stack([right, predicted], dim=1))
            self.kept = self._most_uncertain([self.kept, found] if self.kept else [found])

    def _most_uncertain(self, parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        information, images, labels = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        best = information.topk(min(self.images, len(information))).indices
        return information[best], images[best], labels[best]

    def values(self) -> dict[str, Tensor]:
        """Compute the uncertainty, and with targets the scores with and without dropout."""
        values: dict[str, Tensor] = {"inputs": computed(self.inputs), **computed(self.uncertainty)}
        if self.labelled:
            values |= computed(self.scores)
            values |= {f"{name}_deterministic": value for name, value in computed(self.single).items()}
            self.counts = computed(self.histogram)
        return values

    def figures(self, draw: bool) -> dict[str, Figure]:
        """Draw reliability, entropies of right and wrong predictions, and the most uncertain images."""
        parts = gather_objects(tuple(tensor.cpu() for tensor in self.kept))
        if not draw:
            return {}
        figures = {}
        if self.labelled:
            tables = {"mean of passes": self.scores.reliability}
            if self.single.reliability.isfinite().all():
                tables["no dropout"] = self.single.reliability
            figures = {"reliability": draw_reliability(tables), "entropy": draw_entropy(self.counts)}
        if parts := [part for part in parts if part]:
            information, images, labels = self._most_uncertain(parts)
            counted = information != -torch.inf
            information, images, labels = information[counted], images[counted], labels[counted]
            self.uncertain = images, labels, information
            figures["most_uncertain"] = draw_uncertain(images.float(), labels, information)
        return figures

    def rows(self) -> tuple[Tensor, list[list[object]]] | None:
        """Return the most uncertain images; a right class of -1 is unknown."""
        if not self.uncertain:
            return None
        images, labels, information = self.uncertain
        columns = zip(labels.tolist(), information.tolist(), strict=True)
        return images, [
            [None if right < 0 else right, predicted, nats] for (right, predicted), nats in columns
        ]


class RegressionSummary(Summary):
    """Scores and calibration of a regression.

    Args:
        labelled: Whether there are targets.
        precision: tau, or ``None`` for no noise.
        pictures: Whether some predictions are kept for a picture.
    """

    def __init__(self, labelled: bool, precision: float | None, pictures: bool) -> None:
        super().__init__(labelled)
        self.precision, self.pictures = precision, pictures
        self.spread = Sum()
        self.scores = RegressionScores(precision)
        self.single = Mean()
        self.points: list[Tensor] = []

    def check(self, single: Tensor, target: Tensor | None) -> None:
        """Refuse targets of another shape than the values, or with more dimensions than can be scored."""
        if target is None:
            return
        if target.ndim not in (1, 2):
            raise ValueError(
                f"Expected `target` of shape [B] or [B, Q], pixels and the like flattened to rows, but got"
                f" {list(target.shape)}"
            )
        if len(target) != len(single) or target.numel() != single.numel():
            raise ValueError(f"Expected `target` of shape {list(single.shape)} but got {list(target.shape)}")

    def update(self, samples: Tensor, single: Tensor, target: Tensor | None, inputs: object) -> None:
        """Add a batch of values."""
        self.inputs.update(len(single))
        if target is None:
            deviation = predictive_moments(samples, self.precision)[1].sqrt()
            self.spread.update(deviation.sum() * len(single) / single.numel())
            return
        target = target.to(single.dtype)
        # Values [B, 1] and targets [B] mean the same.
        samples, single = samples.reshape(len(samples), *target.shape), single.reshape(target.shape)
        self.scores.update(samples, target)
        self.single.update((single - target).square())
        room = POINTS - sum(map(len, self.points))
        if self.pictures and room > 0:
            mean, variance = predictive_moments(samples, self.precision)
            first = [values.flatten(1)[:room, 0] for values in (target[:, None], mean[:, None])]
            deviation = variance[:, None].sqrt().flatten(1)[:room, 0]
            self.points.append(torch.stack([*first, deviation], dim=1))

    def values(self) -> dict[str, Tensor]:
        """Compute scores if there are targets, else the mean standard deviation."""
        values: dict[str, Tensor] = {"inputs": computed(self.inputs)}
        if not self.labelled:
            return values | {"standard_deviation": computed(self.spread) / values["inputs"]}
        values |= computed(self.scores)
        return values | {"rmse_deterministic": computed(self.single).sqrt()}

    def figures(self, draw: bool) -> dict[str, Figure]:
        """Draw the calibration of the central intervals, and predictions over targets."""
        parts = gather_objects([points.cpu() for points in self.points])
        if not draw or not self.labelled:
            return {}
        points = torch.cat([points for part in parts for points in part])
        return {
            "calibration": draw_coverage(self.scores.coverage),
            "predictions": draw_predictions(points),
        }


def images_of(inputs: object, rows: int) -> Tensor | None:
    """Return the images [B, 1 or 3, H, W] of ``rows`` rows, one each; ``None`` if there are none."""
    images = next(iter(tensors_in(inputs)), None)
    if images is None or images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) != rows:
        return None
    return images
