"""Pictures of a GAN: samples, interpolations, the discriminator's outputs, the classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pl_losses.core.figures import Figure, grid_of, new_axes


def draw_samples(images: Tensor, columns: int, title: str = "") -> Figure:
    """Draw a grid of images [N, 1 or 3, H, W] with pixels in [-1, 1]."""
    picture = grid_of((images.clamp(-1, 1) + 1) / 2, columns).permute(1, 2, 0)
    height, width = picture.shape[:2]
    inches = 6 * max(1.0, columns / 10)
    figure, axes = new_axes(inches, inches * height / width + (0.3 if title else 0))
    axes.imshow(picture.numpy())
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=9)
    return figure


def draw_outputs(real: Tensor, fake: Tensor) -> Figure:
    """Draw histograms of the discriminator's outputs D = sigmoid(logits), real [N] and generated [M]."""
    figure, axes = new_axes(6, 3)
    edges = torch.linspace(0, 1, 41).tolist()
    for values, name, colour in ((real, "real", "C0"), (fake, "generated", "C1")):
        outputs = values.float().sigmoid().flatten()
        weights = torch.full_like(outputs, 1 / len(outputs))
        label = f"{name}, mean {outputs.mean():.2f}"
        axes.hist(outputs.numpy(), edges, weights=weights.numpy(), alpha=0.6, color=colour, label=label)
    axes.set(xlabel="D's output", ylabel="share", xlim=(0, 1))
    axes.legend(frameon=False)
    return figure


def draw_classes(shares: Tensor, names: Sequence[str] = ()) -> Figure:
    """Draw the shares of the classes among real and generated samples, [2, K], by a classifier."""
    classes = shares.shape[1]
    labels = list(names) if len(names) == classes else [str(label) for label in range(classes)]
    figure, axes = new_axes(max(5, 0.5 * classes), 2.8)
    for row, (name, colour) in enumerate((("real", "C0"), ("generated", "C1"))):
        places = [place + 0.4 * row - 0.2 for place in range(classes)]
        axes.bar(places, 100 * shares[row].numpy(), width=0.4, color=colour, label=name)
    axes.axhline(100 / classes, color="black", linestyle="--", linewidth=1, label="even")
    axes.axhspan(50 / classes, 150 / classes, color="0.92", zorder=0, label="0.5 to 1.5 times even")
    axes.set(xlabel="class, as it is read", ylabel="% of samples")
    axes.set_xticks(range(classes), labels)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return figure
