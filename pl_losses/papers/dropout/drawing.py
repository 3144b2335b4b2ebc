"""The pictures of dropout uncertainty."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pl_losses.core.figures import Figure, new_axes, new_figure
from pl_losses.monitoring.pictures import draw_samples


def draw_reliability(tables: dict[str, Tensor]) -> Figure:
    """Draw accuracy over confidence for each predictor, and the number of inputs at each confidence.

    Args:
        tables: Name to a table [3, bins] like ``ClassificationScores.reliability``.
    """
    figure = new_figure(5, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    for position, (name, table) in enumerate(tables.items()):
        count, confidence, right = table.double().cpu().numpy()
        seen = count > 0
        error = np.abs(right - confidence).sum() / max(count.sum(), 1)
        label = f"{name}, calibration error {error:.3f}"
        accuracy = right[seen] / count[seen]
        upper.plot(confidence[seen] / count[seen], accuracy, marker="o", markersize=4, label=label)
        width = 1 / len(count) / len(tables)
        left = np.arange(len(count)) / len(count) + position * width
        lower.bar(left, count, width, align="edge", color=f"C{position}")
    upper.set(ylabel="share of right predictions", xlim=(0, 1), ylim=(-0.02, 1.02))
    upper.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    lower.set(xlabel="probability of the predicted class", ylabel="inputs", yscale="symlog")
    return figure


def draw_entropy(counts: Tensor) -> Figure:
    """Draw histograms of the predictive entropy of right and of wrong predictions, each on its own scale.

    Args:
        counts: [2, bins] over [0, 1] in units of log C, right predictions first.
    """
    figure, axes = new_axes(5, 3.6)
    edges = np.linspace(0, 1, counts.shape[1] + 1)
    for name, color, row in zip(("right", "wrong"), ("C0", "C3"), counts.cpu().numpy(), strict=True):
        share = row / max(row.sum(), 1)
        axes.stairs(share, edges, fill=True, alpha=0.45, color=color, label=f"{name} ({row.sum()})")
        axes.stairs(share, edges, color=color)
    axes.set(xlabel="predictive entropy / log C", ylabel="share of the right, of the wrong", xlim=(0, 1))
    axes.legend(title="prediction of the mean")
    return figure


def draw_uncertain(images: Tensor, labels: Tensor, information: Tensor) -> Figure:
    """Draw the inputs on which the passes disagree most.

    Args:
        images: [N, 1 or 3, H, W], any range.
        labels: [N, 2], right and predicted class; a right class of -1 is unknown.
        information: Mutual information in nats, [N].
    """
    notes = [f"{nats:.2f} nats" for nats in information.tolist()]
    return draw_samples(images, labels, notes=notes)


def draw_coverage(coverage: Tensor) -> Figure:
    """Draw the share of targets in the central intervals, over the intervals' probability.

    Args:
        coverage: Coverage of intervals with probabilities 1/L, 2/L, ..., 1, shape [L].
    """
    figure, axes = new_axes(4.4, 4.2)
    found = np.concatenate([[0], coverage.cpu().numpy()])
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    axes.plot(np.linspace(0, 1, len(found)), found, marker="o", markersize=4)
    axes.set(xlabel="probability of the central interval", ylabel="share of targets in it")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.text(0.04, 0.9, "too wide", color="0.5")
    axes.text(0.72, 0.04, "too narrow", color="0.5")
    return figure


def draw_predictions(points: Tensor) -> Figure:
    """Draw the predictive mean with one predictive standard deviation up and down, over the target.

    Args:
        points: Target, mean and standard deviation, [N, 3].
    """
    figure, axes = new_axes(4.8, 4.4)
    target, mean, deviation = points.double().cpu().numpy().T
    ends = [min(target.min(), mean.min()), max(target.max(), mean.max())]
    axes.plot(ends, ends, color="0.6", linestyle="--", linewidth=1)
    axes.errorbar(target, mean, deviation, fmt="o", markersize=3, linewidth=0.8, alpha=0.7)
    axes.set(xlabel="target", ylabel="predictive mean, with one standard deviation")
    return figure
