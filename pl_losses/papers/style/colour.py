"""Colour preservation: the painting's strokes without its palette (Gatys et al. 2016, "Preserving color").

Either the style image is recoloured to the content's colours first, or only the luminance is transferred.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pl_losses.data.image_files import LUMA


def luminance(images: Tensor) -> Tensor:
    """Compute the luminance of images [..., 3, H, W], as grey images of three equal channels."""
    weights = images.new_tensor(LUMA)[:, None, None]
    return (images * weights).sum(-3, keepdim=True).expand_as(images)


def match_luminance(style: Tensor, content: Tensor) -> Tensor:
    """Scale a style image's luminance to mean and standard deviation of the content's: both [3, H, W]."""
    own, wanted = luminance(style), luminance(content)
    scale = wanted.std() / own.std().clamp_min(1e-6)
    return ((own - own.mean()) * scale + wanted.mean()).clamp(0, 1)


def with_chroma(image: Tensor, content: Tensor) -> Tensor:
    """Combine the luminance of an image with the colours of another of its size: both [..., 3, H, W]."""
    return (luminance(image) - luminance(content) + content).clamp(0, 1)


def match_colours(style: Tensor, content: Tensor) -> Tensor:
    """Recolour a style image linearly to the mean and covariance of the content's pixels.

    The map is S_c^(1/2) S_s^(-1/2), with the symmetric roots of the covariances. Of all maps with this result
    it changes colours little.

    Args:
        style: [3, h, w] in [0, 1].
        content: [3, H, W] in [0, 1].

    Returns:
        [3, h, w], clamped to [0, 1].
    """
    pixels, wanted = style.flatten(1).double(), content.flatten(1).double()
    spread = _power(torch.cov(wanted), 0.5) @ _power(torch.cov(pixels), -0.5)
    matched = spread @ (pixels - pixels.mean(1, keepdim=True)) + wanted.mean(1, keepdim=True)
    return matched.clamp(0, 1).to(style.dtype).view_as(style)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Compute the power of a symmetric positive matrix; missing directions, as of grey, count as flat."""
    values, vectors = torch.linalg.eigh(matrix)
    power: Tensor = (vectors * values.clamp_min(1e-6) ** exponent) @ vectors.mT
    return power
