"""Draws the ideas of four papers; needs MNIST: `PL_LOSSES_DATA=... python docs/draw_ideas.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import nn

from pl_losses import PretrainedLeNet5
from pl_losses.data import MNIST
from pl_losses.papers.lenet import digit_codes
from pl_losses.papers.prelu import he_normal_

PICTURES = Path(__file__).parent / "pictures"
BLUE, RED, GREY = "#1f77b4", "#d62728", "#777777"


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], **options: Any) -> None:
    """Draw an arrow in the coordinates of the axes."""
    style = {"arrowstyle": "-|>", "mutation_scale": 14, "color": GREY, "linewidth": 1.5} | options
    axes.add_patch(FancyArrowPatch(start, end, **style))


def lenet() -> Figure:
    """Draw a digit, the 84 numbers that LeNet-5 makes of it, and their distances from the ten bitmaps."""
    data = MNIST(low=-1.0, high=1.0)
    data.prepare_data()
    data.setup("test")
    images, labels = data.tensors["test"]
    image = images[(labels == 4).nonzero()[0]].float()
    features = PretrainedLeNet5()
    found = features(image)
    penalties = -features.scores(found)[0]
    figure = Figure(figsize=(8, 4), layout="constrained")
    rows = figure.subfigures(1, 2, width_ratios=[1, 1.3])
    left = rows[0].subplots(1, 2)
    left[0].imshow(image[0, 0], cmap="gray_r")
    left[0].set_title("the image", fontsize=14)
    left[1].imshow(found.view(12, 7), cmap="gray_r", vmin=-1.2, vmax=1.2)
    left[1].set_title("84 outputs", fontsize=14)
    right = list(rows[1].subplots(2, 5).flat)
    for digit, axes in enumerate(right):
        axes.imshow(digit_codes()[digit].view(12, 7), cmap="gray_r", vmin=-1.2, vmax=1.2)
        best = digit == penalties.argmin()
        axes.set_xlabel(f"{digit}: {penalties[digit]:.0f}", fontsize=14, color=RED if best else "black")
    for axes in (*left, *right):
        axes.set(xticks=[], yticks=[])
    rows[1].suptitle("class: squared distance from its bitmap", fontsize=14)
    return figure


def gtn() -> Figure:
    """Draw the paper's example of a graph: the best way to spell 34, and the best way of all."""
    figure = Figure(figsize=(8, 2.9), layout="constrained")
    axes = figure.subplots()
    places = {0: (0.0, 0.0), 1: (1.6, 0.0), 2: (3.0, -0.9), 3: (4.6, 0.0)}
    # From, to, what is read, its penalty, the bend of the arrow, its colour, where its name stands.
    arcs = [
        (0, 1, "3", 0.1, 0.0, "black", (0.8, 0.16)),
        (1, 3, "4", 0.6, -0.35, BLUE, (3.1, 0.72)),
        (1, 2, "1", 0.1, 0.0, RED, (2.0, -0.72)),
        (2, 3, "4", 0.4, 0.0, RED, (4.1, -0.72)),
    ]
    for start, end, label, penalty, bend, colour, at in arcs:
        curve = {"connectionstyle": f"arc3,rad={bend}", "shrinkA": 14, "shrinkB": 14}
        arrow(axes, places[start], places[end], color=colour, linewidth=2, **curve)
        axes.text(*at, f'"{label}"   {penalty}', color=colour, ha="center", fontsize=12)
    for cut, (x, y) in places.items():
        axes.plot(x, y, "o", markersize=20, color="white", markeredgecolor="black")
        axes.text(x, y, str(cut), ha="center", va="center", fontsize=11)
    words = [
        (0.35, "spells 34: penalty 0.1 + 0.6 = 0.7", BLUE),
        (-0.35, "best of all, 314: 0.1 + 0.1 + 0.4 = 0.6", RED),
    ]
    for y, text, colour in words:
        axes.text(5.1, y, text, color=colour, fontsize=12, va="center")
    axes.set(xlim=(-0.3, 8.6), ylim=(-1.3, 1.1))
    axes.axis("off")
    return figure


def prelu() -> Figure:
    """Draw the rectifiers, and how large signals are in each of 30 layers by the initialisation."""
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = torch.linspace(-3, 3, 101)
    for slope, name in ((0.0, "ReLU, a = 0"), (0.25, "PReLU, a = 0.25 at first")):
        left.plot(places, places.clamp_min(0) + slope * places.clamp_max(0), label=name)
    left.set(xlabel="y", ylabel="f(y)")
    depths = range(1, 31)
    for name, colour, gain in (("He", BLUE, 1.0), ("Xavier", RED, 0.5)):
        generator = torch.Generator().manual_seed(0)
        signals = torch.randn(256, 512, generator=generator)
        sizes = []
        for _ in depths:
            weight = he_normal_(torch.empty(512, 512), generator=generator) * gain**0.5
            signals = nn.functional.linear(signals.relu() if sizes else signals / 2**0.5, weight)
            sizes.append(signals.var().item())
        right.semilogy(depths, [gain**depth for depth in depths], "--", color=colour, linewidth=1)
        right.semilogy(depths, sizes, "o", color=colour, markersize=4, label=f"{name}'s initialisation")
    right.set(xlabel="layer", ylabel="variance of the signals")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def gan() -> Figure:
    """Draw who makes images, who judges them, and which way each loss goes back."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    boxes = {
        (0.0, 0.0, "noise z"): "#eeeeee",
        (2.1, 0.0, "generator G"): "#fdd9b5",
        (4.6, 0.0, "generated image\nG(z)"): "#eeeeee",
        (4.6, 1.5, "real image\nx"): "#eeeeee",
        (7.1, 0.75, "discriminator D"): "#c6dbef",
        (9.5, 0.75, "real or\ngenerated?"): "#eeeeee",
    }
    for (x, y, text), colour in boxes.items():
        width = 1.7
        axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - 0.35), width, 0.7, "round,pad=0.05", facecolor=colour, edgecolor=GREY
            )
        )
        axes.text(x, y, text, ha="center", va="center", fontsize=11)
    for start, end in (
        ((0.95, 0), (1.15, 0)),
        ((3.05, 0), (3.65, 0)),
        ((5.55, 0.1), (6.2, 0.55)),
        ((5.55, 1.4), (6.2, 0.95)),
        ((8.05, 0.75), (8.55, 0.75)),
    ):
        arrow(axes, start, end)
    back = {"linestyle": "--", "connectionstyle": "arc3,rad=0.3"}
    arrow(axes, (9.5, 1.25), (7.1, 1.25), color=BLUE, **back)
    axes.text(8.3, 1.85, "discriminator's step: tell them apart", color=BLUE, ha="center", fontsize=11)
    arrow(axes, (9.5, 0.25), (2.1, -0.5), color=RED, linestyle="--", connectionstyle="arc3,rad=-0.25")
    axes.text(5.8, -1.5, "generator's step: be taken for real", color=RED, ha="center", fontsize=11)
    axes.set(xlim=(-1.0, 10.5), ylim=(-1.8, 2.2))
    axes.axis("off")
    return figure


if __name__ == "__main__":
    for draw in (lenet, gtn, prelu, gan):
        draw().savefig(PICTURES / f"{draw.__name__}-idea.png", dpi=110)
