"""Gatys et al. 2016, eq. 7: alpha L_content + beta L_style of an image, for fixed targets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_losses.papers.style.features import VGG19Features
from pl_losses.papers.style.losses import (
    content_loss,
    gram_loss,
    gram_matrix,
    gram_on_the_way,
    total_variation,
)

if TYPE_CHECKING:
    from pl_losses.papers.style.presets import Preset

Terms = dict[str, Tensor]
# Content losses by (layer,), Gram matrices [B, N, N] by (layer, region): sums over positions.
Sums = dict[tuple[str, ...], Tensor]


@dataclass
class Window:
    """A part of an image, by its first row and the row after the last one, and its columns likewise.

    Attributes:
        rows: In pixels; multiples of the deepest layer's stride, or the edge.
        columns: The same.
        origin: First row and column of the pixels that the features are computed from.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    origin: tuple[int, int] = (0, 0)

    def cut(self, values: Tensor, layer: str, origin: tuple[int, int] = (0, 0)) -> Tensor:
        """Cut the window out of a layer's values [..., H', W'], whose first pixel is ``origin``."""
        stride = 2 ** (int(layer[4]) - 1)
        rows, columns = (
            slice((span[0] - start) // stride, (span[1] - start) // stride)
            for span, start in zip((self.rows, self.columns), origin, strict=True)
        )
        return values[..., rows, columns]


def windows(
    image: Tensor, tile: int | None, features: VGG19Features
) -> Iterator[tuple[Window, tuple[slice, slice]]]:
    """Yield the tiles of an image, and the rows and columns that the features of each are computed from.

    Args:
        image: A tensor [..., H, W].
        tile: Largest height and width of a tile, rounded up to the deepest layer's stride; None for one tile.
        features: The network.
    """
    reach = features.reach
    spans = [_spans(side, tile or side, features.stride) for side in image.shape[-2:]]
    for rows in spans[0]:
        for columns in spans[1]:
            top, left = max(rows[0] - reach, 0), max(columns[0] - reach, 0)
            around = slice(top, rows[1] + reach), slice(left, columns[1] + reach)
            yield Window(rows, columns, (top, left)), around


def _spans(length: int, tile: int, stride: int) -> list[tuple[int, int]]:
    """Return first pixel and the pixel after the last of each tile along an axis, evenly long.

    >>> _spans(100, 48, 16), _spans(130, 128, 16)
    ([(0, 48), (48, 96), (96, 100)], [(0, 80), (80, 130)])
    """
    units, largest = -(-length // stride), -(-tile // stride)
    each = -(-units // -(-units // largest)) * stride
    return [(first, min(first + each, length)) for first in range(0, length, each)]


@dataclass
class Targets:
    """The targets that an image of one size is compared with.

    Attributes:
        content: Layer to P, [B, N, H', W'].
        grams: (layer, region) to A per position, [B, N, N].
        masks: (layer, region) to the region's mask at the layer's size, [1, H', W']; empty if there is one
            region, the whole image.
        positions: (layer, region) to the number of positions M, or the sum of the mask.
        shares: Weight of each region.
    """

    content: dict[str, Tensor]
    grams: Sums
    masks: Sums
    positions: dict[tuple[str, ...], float]
    shares: list[float]


class Objective(nn.Module):
    """The loss of an image [B, 3, H, W] and its terms.

    Args:
        features: VGG-19, with all content and style layers.
        content_layers: Layers of eq. 1.
        style_layers: Layers of eq. 4.
        preset: Weights of equations 1 and 4, by layer.
        alpha: Factor of the content loss.
        beta: Factor of the style loss.
        layer_weights: w_l. Default: the preset's.
        tv_weight: Factor of the squared differences of neighbouring pixels.
    """

    def __init__(
        self,
        features: VGG19Features,
        content_layers: Sequence[str],
        style_layers: Sequence[str],
        *,
        preset: Preset,
        alpha: float,
        beta: float,
        layer_weights: Sequence[float] | None = None,
        tv_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = features
        self.content_layers, self.style_layers = tuple(content_layers), tuple(style_layers)
        default = 1 / len(self.style_layers) if preset.averaged else 1.0
        weights = [default] * len(self.style_layers) if layer_weights is None else layer_weights
        self.layer_weights = dict(zip(self.style_layers, weights, strict=True))
        self.preset, self.alpha, self.beta, self.tv_weight = preset, alpha, beta, tv_weight
        self.targets: Targets | None = None

    @torch.no_grad()
    def set_targets(
        self,
        content: Tensor,
        styles: Sequence[Sequence[Tensor]],
        *,
        shares: Sequence[float] | None = None,
        masks: Tensor | None = None,
        tile: int | None = None,
    ) -> None:
        """Fix what images are compared with; :meth:`forward` computes none of it again.

        Several styles are blended: the loss is compared with the mean of their Gram matrices per position,
        weighted by ``shares``. This differs by a constant from the weighted mean of their losses, and has the
        same gradient.

        Args:
            content: [B, 3, H, W], red, green, blue in [0, 1].
            styles: For each image of the batch its K style images, each [3, h, w].
            shares: Of the K styles. Default: 1 / K each. With masks: weights of the regions, default 1 each.
            masks: In [0, 1], [K, H, W]: style k is for the part of the image where mask k is.
            tile: Compute the targets in tiles of this height and width, which takes less memory.
        """
        count = len(styles[0])
        grams = [[self._grams(style, tile) for style in own] for own in styles]
        targets = Targets(self._contents(content, tile), {}, {}, {}, [])
        even = 1 / count if masks is None else 1.0
        shares = [even] * count if shares is None else list(shares)
        targets.shares = [1.0] if masks is None else shares
        for layer in self.style_layers:
            # [K, B, N, N]
            each = torch.stack([torch.stack([own[k][layer] for own in grams]) for k in range(count)])
            if masks is None:
                blended = torch.einsum("k,k...->...", each.new_tensor(shares), each)
                targets.grams[layer, "0"] = blended
                targets.positions[layer, "0"] = float(math.prod(_size(layer, content)))
                continue
            small = F.adaptive_avg_pool2d(masks[:, None], _size(layer, content))
            for region in range(count):
                key = (layer, str(region))
                targets.grams[key], targets.masks[key] = each[region], small[region].to(each.dtype)
                # An empty region has a Gram matrix of zeros, whatever it is divided by.
                targets.positions[key] = float(small[region].sum()) or 1.0
        self.targets = targets

    def forward(self, image: Tensor) -> tuple[Tensor, Terms]:
        """Compute loss and terms of an image.

        Args:
            image: [B, 3, H, W], as large as the content.

        Returns:
            The loss, eq. 7, and its terms by name, without gradient: ``content_loss`` (eq. 1), ``style_loss``
            (eq. 5), ``content_<layer>`` and ``style_<layer>`` (eq. 1 and eq. 4 of a layer), and
            ``total_variation`` if it takes part. All are summed over the batch, and scaled by the preset but
            not by alpha and beta; those of a layer are not scaled by w_l.
        """
        total, terms = self.combine(self.measure(image))
        return self.add_variation(total, terms, image)

    def measure(self, image: Tensor, window: Window | None = None) -> Sums:
        """Sum content losses and Gram matrices over all positions, or over those of a window.

        Args:
            image: [B, 3, H, W]; with a window, the part of the image around it.
            window: The positions to sum over.
        """
        targets = self.fixed()
        sums: Sums = {}

        def fixed(values: Tensor, layer: str) -> Tensor:
            return values if window is None else window.cut(values, layer)

        def visit(layer: str, features: Tensor) -> Tensor:
            if window is None and not targets.masks and (layer, "0") in targets.grams:
                features, sums[layer, "0"] = gram_on_the_way(features)
            own = features if window is None else window.cut(features, layer, window.origin)
            if layer in targets.content:
                sums[layer,] = content_loss(own, fixed(targets.content[layer], layer))
            for key in targets.grams:
                if key[0] == layer and key not in sums:
                    mask = targets.masks.get(key)
                    sums[key] = gram_matrix(own, None if mask is None else fixed(mask, layer))
            return features

        self.features(image, visit)
        return sums

    def combine(self, sums: Sums) -> tuple[Tensor, Terms]:
        """Compute equations 4, 5 and 7 from the sums over all positions."""
        targets, terms = self.fixed(), dict[str, Tensor]()
        contents, styles = [], []
        for layer, target in targets.content.items():
            weight = self.preset.content(target.shape[1], target.shape[2:].numel())
            contents.append(weight * sums[layer,])
            terms[f"content_{layer}"] = contents[-1].detach()
        for layer in self.style_layers:
            regions = [
                share * gram_loss(sums[key] / targets.positions[key], targets.grams[key])
                for region, share in enumerate(targets.shares)
                for key in [(layer, str(region))]
            ]
            value = self.preset.style(targets.grams[layer, "0"].shape[-1]) * torch.stack(regions).sum()
            styles.append(self.layer_weights[layer] * value)
            terms[f"style_{layer}"] = value.detach()
        content, style = torch.stack(contents).sum(), torch.stack(styles).sum()
        terms |= {"content_loss": content.detach(), "style_loss": style.detach()}
        return self.alpha * content + self.beta * style, terms

    def add_variation(self, total: Tensor, terms: Terms, image: Tensor) -> tuple[Tensor, Terms]:
        """Add the total variation, if it takes part."""
        if not self.tv_weight:
            return total, terms
        value = total_variation(image)
        return total + self.tv_weight * value, terms | {"total_variation": value.detach()}

    def fixed(self) -> Targets:
        """Return the targets.

        Raises:
            RuntimeError: If they are not set yet.
        """
        if self.targets is None:
            raise RuntimeError("Expected targets: call `set_targets` first")
        return self.targets

    def _grams(self, style: Tensor, tile: int | None) -> dict[str, Tensor]:
        """Compute the Gram matrices per position of a style image [3, h, w]."""
        sums: dict[str, Tensor] = {}
        for window, around in windows(style, tile, self.features):

            def visit(layer: str, features: Tensor, window: Window = window) -> Tensor:
                if layer in self.style_layers:
                    gram = gram_matrix(window.cut(features, layer, window.origin))[0]
                    sums[layer] = sums[layer] + gram if layer in sums else gram
                return features

            self.features(style[(None, ..., *around)], visit)
        return {layer: gram / math.prod(_size(layer, style)) for layer, gram in sums.items()}

    def _contents(self, content: Tensor, tile: int | None) -> dict[str, Tensor]:
        """Compute P of the content layers, for images [B, 3, H, W]."""
        whole: dict[str, Tensor] = {}
        for window, around in windows(content, tile, self.features):

            def visit(layer: str, features: Tensor, window: Window = window) -> Tensor:
                if layer in self.content_layers:
                    if layer not in whole:
                        shape = (*features.shape[:2], *_size(layer, content))
                        whole[layer] = features.new_empty(shape).to(memory_format=torch.channels_last)
                    window.cut(whole[layer], layer).copy_(window.cut(features, layer, window.origin))
                return features

            self.features(content[(..., *around)], visit)
        return whole


def _size(layer: str, image: Tensor) -> tuple[int, int]:
    """Return height and width of a layer's features for an image [..., H, W]."""
    stride = 2 ** (int(layer[4]) - 1)
    return image.shape[-2] // stride, image.shape[-1] // stride
