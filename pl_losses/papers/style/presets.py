"""The weights of other tools' losses, in terms of equations 1 and 4 of Gatys et al. 2016.

They all have one form: a content term a(N, M) / 2 sum (F - P)^2 and style terms b(N) E_l. Features are taken
after the ReLU here, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

PAPER_STYLE = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")


@dataclass(frozen=True)
class Preset:
    """One tool's choices.

    Attributes:
        content: Weight of eq. 1 from channels N and positions M of the layer.
        style: Weight of eq. 4 from channels N.
        averaged: Whether the default w_l is 1 over the number of style layers, else 1.
        alpha: Its default factor of the content loss.
        weights: The weights of VGG-19 that they belong to: E grows as the 4th power of the activations, the
            content loss as the 2nd.
        normalize: Whether the weights are normalised by their mean activations.
        pooling: "avg" or "max".
        content_layers: Content layers.
        style_layers: Style layers.
    """

    content: Callable[[int, int], float]
    style: Callable[[int], float]
    averaged: bool = False
    alpha: float = 1.0
    weights: str = "oxford"
    normalize: bool = False
    pooling: str = "max"
    content_layers: tuple[str, ...] = ("conv4_2",)
    style_layers: tuple[str, ...] = PAPER_STYLE


def _means(content: float, style: float) -> dict[str, Any]:
    """Return the weights of tools that take means instead of sums."""
    return {"content": partial(_over, content, 1), "style": partial(_over, style, 2)}


# Not lambdas, which could not be pickled with a module.
def _over(weight: float, power: int, *sizes: int) -> float:
    return weight / float(prod(sizes)) ** power


PRESETS = {
    "paper": Preset(partial(_over, 1.0, 0), partial(_over, 1.0, 0), averaged=True, alpha=1e-3, pooling="avg"),
    "authors": Preset(**_means(2, 4e3), normalize=True),
    "neural-style": Preset(**_means(10, 400)),
    "tutorial": Preset(
        **_means(2, 4e6),
        weights="torchvision",
        content_layers=("conv2_2",),
        style_layers=("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"),
    ),
    "pastiche": Preset(**_means(0.02, 40)),
}
