"""Images at other sizes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def scaled(images: Tensor, size: Sequence[int]) -> Tensor:
    """Resize images [B, C, H, W]; return a copy if they have the size."""
    if tuple(images.shape[2:]) == tuple(size):
        return images.clone()
    return F.interpolate(images, list(size), mode="bilinear", antialias=True)


def by_share(image: Tensor, share: float) -> Tensor:
    """Resize an image [3, H, W] to a share of its size, at least 16 pixels."""
    return scaled(image[None], [max(16, round(share * side)) for side in image.shape[1:]])[0]


def filling(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize an image [3, h, w] to just cover a size, and cut out its middle: [1, 3, H, W]."""
    share = max(size[0] / image.shape[1], size[1] / image.shape[2])
    sides = [max(want, round(share * side)) for want, side in zip(size, image.shape[1:], strict=True)]
    large = scaled(image[None], sides)
    top, left = (large.shape[2] - size[0]) // 2, (large.shape[3] - size[1]) // 2
    return large[:, :, top : top + size[0], left : left + size[1]].clone()
