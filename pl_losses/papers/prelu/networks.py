"""He et al. 2015, Tables 1 and 3 and Figs. 2 and 3: the plain networks, layer by layer, as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Name = Literal["E", "A", "B", "C", "depth22", "depth30"]
StemSize = Literal["paper", "small"]


class Convolution(NamedTuple):
    """A convolution with its number of output channels, and the rectifier after it."""

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Pool(NamedTuple):
    """Max-pooling over adjacent squares."""

    size: int = 2


@dataclass(frozen=True)
class Architecture:
    """A network of the paper.

    Attributes:
        stem: The first convolution.
        pool: The max-pooling after it.
        kernel: Kernel size of all other convolutions. If it is even, paddings of 0 and 1 alternate, so that
            every second map has the size of the stage's first.
        stages: Channels and number of convolutions; 2x2 max-pooling stands between two stages.
        pyramid: Bins per side of each level of the spatial pyramid.
        hidden_size: Units of each of the two fully connected layers before the classifier.
    """

    stem: Convolution
    pool: int
    kernel: int
    stages: tuple[tuple[int, int], ...]
    pyramid: tuple[int, ...]
    hidden_size: int = 4096

    @property
    def depth(self) -> int:
        """Number of layers with weights."""
        return 1 + sum(count for _, count in self.stages) + 3


# Model E with 224-pixel images: maps of 109, 36 and 18 pixels; A, B and C: of 112, 56, 28 and 14.
_E, _A = Convolution(64, 7, 2, 0), Convolution(96, 7, 2, 3)
_B = Architecture(_A, 2, 3, ((256, 6), (512, 6), (512, 6)), (7, 3, 2, 1))
ARCHITECTURES: dict[Name, Architecture] = {
    "E": Architecture(_E, 3, 2, ((128, 4), (256, 6)), (6, 3, 2, 1)),
    "A": Architecture(_A, 2, 3, ((256, 5), (512, 5), (512, 5)), (7, 3, 2, 1)),
    "B": _B,
    "C": Architecture(_A, 2, 3, ((384, 6), (768, 6), (896, 6)), (7, 3, 2, 1)),
    # Fig. 2's network is model B; Fig. 3's is model E with 16 convolutions more in the last stage.
    "depth22": _B,
    "depth30": Architecture(_E, 3, 2, ((128, 4), (256, 22)), (6, 3, 2, 1)),
}
SMALL_PYRAMID = (4, 2, 1)


def plan(
    architecture: Architecture, stem: StemSize = "paper", width: float = 1.0
) -> list[Convolution | Pool]:
    """List the layers of a network up to its pyramid.

    Args:
        architecture: The network.
        stem: "paper", or "small" for images of about 32 pixels: 3x3 with stride 1, and 2x2 pooling.
        width: Factor on all numbers of channels.

    Example:
        >>> plan(ARCHITECTURES["E"], "small", width=0.125)[:4]  # doctest: +NORMALIZE_WHITESPACE
        [Convolution(channels=8, kernel=3, stride=1, padding=1), Pool(size=2),
         Convolution(channels=16, kernel=2, stride=1, padding=0),
         Convolution(channels=16, kernel=2, stride=1, padding=1)]
    """
    small = stem == "small"
    first = Convolution(architecture.stem.channels) if small else architecture.stem
    layers: list[Convolution | Pool] = [
        first._replace(channels=scaled(first.channels, width)),
        Pool(2 if small else architecture.pool),
    ]
    for number, (channels, count) in enumerate(architecture.stages):
        layers += [Pool()] if number else []
        for index in range(count):
            padding = index % 2 if architecture.kernel % 2 == 0 else architecture.kernel // 2
            layers.append(Convolution(scaled(channels, width), architecture.kernel, 1, padding))
    return layers


def scaled(count: int, width: float) -> int:
    """Scale a number of channels or units by the width, to at least 1."""
    return max(1, round(width * count))


def build(
    layers: Sequence[Convolution | Pool], in_channels: int, rectifier: Callable[[int], nn.Module]
) -> tuple[list[nn.Module], int]:
    """Build the modules of a plan; return them and the number of output channels.

    Args:
        layers: The plan.
        in_channels: Channels of an image.
        rectifier: Number of channels to the rectifier that follows a convolution.
    """
    modules: list[nn.Module] = []
    channels = in_channels
    for layer in layers:
        if isinstance(layer, Pool):
            modules.append(nn.MaxPool2d(layer.size))
        else:
            modules += [nn.Conv2d(channels, *layer), rectifier(layer.channels)]
            channels = layer.channels
    return modules, channels


class SpatialPyramidPooling(nn.Module):
    """Max-pooling over grids of several sizes: [B, C, H, W] -> [B, C * sum of bins^2], whatever H and W.

    Args:
        bins: Bins per side of each level.

    Example:
        >>> SpatialPyramidPooling([2, 1])(torch.zeros(3, 8, 5, 7)).shape
        torch.Size([3, 40])
    """

    def __init__(self, bins: Sequence[int]) -> None:
        super().__init__()
        self.bins = list(bins)

    def forward(self, features: Tensor) -> Tensor:
        """Pool maps: [B, C, H, W] -> [B, C * sum of bins^2]."""
        return torch.cat([F.adaptive_max_pool2d(features, bins).flatten(1) for bins in self.bins], dim=1)
