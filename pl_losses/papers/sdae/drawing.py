"""Vincent et al. 2010, Figs. 5 to 9, 14 and 15: filters, reconstructions and samples as pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_losses.core.figures import Figure, grid_of, new_axes, new_figure


def draw_filters(weights: Tensor, side: tuple[int, int], title: str) -> Figure:
    """Draw filters, each scaled by its own largest weight; grey is 0.

    Args:
        weights: [N, D].
        side: Height and width of an input, H W = D.
        title: Title above the picture.
    """
    scale = 2 * weights.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    picture = grid_of((0.5 + weights / scale).view(-1, 1, *side), 16)[0]
    height, width = picture.shape
    figure, axes = new_axes(7, 7 * height / width + 0.3)
    axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    return figure


def draw_rows(rows: list[tuple[str, Tensor]], side: tuple[int, int]) -> Figure:
    """Draw rows of images in [0, 1], [N, D] each, with their names on the left."""
    joined = torch.cat([images for _, images in rows]).view(-1, 1, *side)
    picture = grid_of(joined, len(rows[0][1]))[0]
    height, width = picture.shape
    figure, axes = new_axes(7, 6 * height / width + 0.1)
    axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
    middles = [(row + 0.5) * height / len(rows) for row in range(len(rows))]
    axes.set_yticks(middles, [name for name, _ in rows])
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    return figure


def draw_curves(curves: dict[str, list[tuple[int, float]]], boundaries: list[int], layers: int) -> Figure:
    """Draw the criterion of each stage over the epochs, with lines where stages begin.

    Args:
        curves: Name such as "val/reconstruction_1" to epochs and values.
        boundaries: The first epoch of each stage except the first.
        layers: Number of stages that are pre-training.
    """
    # A fit that is cut short, or has no pre-training, has one kind of criterion only.
    kinds = sorted({"reconstruction" not in name for name in curves})
    figure = new_figure(8, 2.5 * len(kinds))
    parts = dict(zip(kinds, figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0], strict=True))
    for name, points in curves.items():
        fine = "reconstruction" not in name
        epochs, values = zip(*points, strict=True)
        # Layers have criteria of different sizes: show how each falls, relative to its start.
        shown = values if fine else [value / values[0] for value in values]
        parts[fine].plot(epochs, shown, marker=".", label=name)
    for fine, axes in parts.items():
        axes.set_ylabel(
            "validation error, 0 to 1" if fine else "reconstruction error\nover that of its first epoch"
        )
    axes.set_xlabel("epoch")
    for axes in parts.values():
        for number, epoch in enumerate(boundaries, 2):
            axes.axvline(epoch - 0.5, color="0.6", linestyle="--", linewidth=1)
            name = f"layer {number}" if number <= layers else "fine-tuning"
            axes.text(epoch - 0.4, 0.03, name, transform=axes.get_xaxis_transform(), fontsize=8)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8, loc="upper right")
    return figure
