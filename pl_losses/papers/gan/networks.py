"""Generators and discriminators for Listing 2: convolutional as in Radford et al. 2015, and perceptrons."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Side of an image to that of its first map, and the number of doublings between them.
STAGES = {28: (7, 2), 32: (4, 3), 64: (4, 4)}


class DCGANGenerator(nn.Sequential):
    """Transposed convolutions that double the maps until they are an image with pixels in [-1, 1].

    Noise [B, Z] -> images [B, C, S, S]. The last maps have ``width`` channels; from there back to the first
    maps, 4x4 (7x7 for 28 pixels), each halving of the size doubles the channels.

    Args:
        latent_size: Z.
        channels: C.
        image_size: S: 28, 32 or 64.
        width: Channels of the last maps before the image; the paper's network for 64 pixels has 64 * 2.

    Example:
        >>> DCGANGenerator(latent_size=16, image_size=28, width=4)(torch.zeros(2, 16)).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self, latent_size: int = 100, channels: int = 1, image_size: int = 32, *, width: int = 64
    ) -> None:
        side, doublings = stages(image_size)
        wide = width * 2 ** (doublings - 1)
        # A transposed convolution of the 1x1 noise, written as the matrix product that it is.
        layers: list[nn.Module] = [
            nn.Linear(latent_size, wide * side * side, bias=False),
            _Maps(1, (wide, side, side)),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
        ]
        for _ in range(doublings - 1):
            layers += [
                nn.ConvTranspose2d(wide, wide // 2, 4, 2, 1, bias=False),
                nn.BatchNorm2d(wide // 2),
                nn.ReLU(inplace=True),
            ]
            wide //= 2
        super().__init__(*layers, nn.ConvTranspose2d(wide, channels, 4, 2, 1), nn.Tanh())
        init_dcgan_(self)


class DCGANDiscriminator(nn.Sequential):
    """Strided convolutions that halve the image until a 4x4 (7x7 for 28 pixels) map is one logit.

    Images [B, C, S, S] -> logits [B]; the mirror image of :class:`DCGANGenerator`, with LeakyReLUs.

    Args:
        channels: C.
        image_size: S: 28, 32 or 64.
        width: Channels of the first maps.

    Example:
        >>> DCGANDiscriminator(image_size=64, width=4)(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2])
    """

    def __init__(self, channels: int = 1, image_size: int = 32, *, width: int = 64) -> None:
        side, halvings = stages(image_size)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        wide = width
        for _ in range(halvings - 1):
            layers += [
                nn.Conv2d(wide, wide * 2, 4, 2, 1, bias=False),
                nn.BatchNorm2d(wide * 2),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            wide *= 2
        # The Identity keeps the names that the weights have in checkpoints.
        super().__init__(*layers, nn.Identity(), _Logits(wide * side * side, 1), nn.Flatten(0))
        init_dcgan_(self)


class _Maps(nn.Unflatten):
    """Rows [B, C S S] -> maps [B, C, S, S] with the channels side by side, as the convolutions have them.

    Element by element, a CPU takes thirty times as long where a gradient is laid out in another way.
    """

    def forward(self, rows: Tensor) -> Tensor:
        maps: Tensor = super().forward(rows)
        return maps.contiguous(memory_format=torch.channels_last)


class _Logits(nn.Linear):
    """Maps [B, C, S, S] -> logits [B, 1], as of rows [B, C S S]; gradients have the channels side by side."""

    def forward(self, maps: Tensor) -> Tensor:
        weight = self.weight.view(-1, *maps.shape[1:]).permute(0, 2, 3, 1)
        return F.linear(maps.permute(0, 2, 3, 1).flatten(1), weight.flatten(1), self.bias)


class MLPGenerator(nn.Sequential):
    """Three hidden layers of ReLUs: noise [B, Z] -> images [B, C, S, S] with pixels in [-1, 1].

    Args:
        latent_size: Z.
        channels: C.
        image_size: S, any.
        width: Units of the first hidden layer; the next have two and four times as many.
    """

    def __init__(
        self, latent_size: int = 100, channels: int = 1, image_size: int = 32, *, width: int = 64
    ) -> None:
        shape = (channels, image_size, image_size)
        sizes = [latent_size, width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Linear(sizes[-1], prod(shape)), nn.Tanh(), nn.Unflatten(1, shape))


class MLPDiscriminator(nn.Sequential):
    """Two hidden layers of LeakyReLUs: images [B, C, S, S] -> logits [B].

    Args:
        channels: C.
        image_size: S, any.
        width: A quarter of the units of the first hidden layer, half of those of the second.
    """

    def __init__(self, channels: int = 1, image_size: int = 32, *, width: int = 64) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(channels * image_size**2, 4 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(4 * width, 2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(2 * width, 1),
            nn.Flatten(0),
        )


def stages(image_size: int) -> tuple[int, int]:
    """Return the side of the smallest map, and how often it doubles.

    Raises:
        ValueError: If there is no network for images of this size.
    """
    if image_size not in STAGES:
        known = ", ".join(map(str, STAGES))
        raise ValueError(
            f"Expected `image_size` to be one of {known} but got {image_size}; pass `generator` and"
            ' `discriminator` for others, or `architecture="mlp"`'
        )
    return STAGES[image_size]


@torch.no_grad()
def init_dcgan_(network: nn.Module) -> None:
    """Draw Radford et al.'s initial weights: mean 0 (in batch normalisation 1), standard deviation 0.02."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
