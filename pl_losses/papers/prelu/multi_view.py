"""He et al. 2015, section 4: testing on several views of an image, whose class probabilities are averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_losses.core.precision import at_least_float32


def at_scale(images: Tensor, shorter: int) -> Tensor:
    """Scale images so that their shorter side has this many pixels: [B, C, H, W] -> [B, C, h, w].

    Example:
        >>> at_scale(torch.zeros(1, 3, 40, 60), 20).shape
        torch.Size([1, 3, 20, 30])
    """
    least = min(images.shape[-2:])
    if least == shorter:
        return images
    size = [round(side * shorter / least) for side in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def ten_crops(images: Tensor, size: int) -> Iterator[Tensor]:
    """Yield the four corners and the centre, each with its mirror image: the 10-view test.

    Args:
        images: [B, C, H, W].
        size: Height and width of a crop.

    Yields:
        Ten times [B, C, size, size].

    Raises:
        ValueError: If the images are smaller than a crop.

    Example:
        >>> [view.item() for view in ten_crops(torch.arange(9.0).view(1, 1, 3, 3), 1)]
        [0.0, 0.0, 2.0, 2.0, 6.0, 6.0, 8.0, 8.0, 4.0, 4.0]
    """
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"Expected `images` of at least {size} pixels a side but got {height}x{width}")
    down, right = height - size, width - size
    for top, left in ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)):
        crop = images[..., top : top + size, left : left + size]
        yield crop
        yield crop.flip(-1)


def windows(features: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield all windows of a feature map, one position apart: the dense test, whose convolutions run once.

    Args:
        features: [B, C, H, W].
        size: Height and width of a window; where the map is smaller, all of it is the window.

    Yields:
        [B, C, *size] for each of the (H - height + 1) (W - width + 1) positions.
    """
    height, width = (min(side, whole) for side, whole in zip(size, features.shape[-2:], strict=True))
    for top in range(features.shape[-2] - height + 1):
        for left in range(features.shape[-1] - width + 1):
            yield features[..., top : top + height, left : left + width]


def mean_log_probabilities(views: Iterable[Tensor], logits: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute the logarithm of the class probabilities' mean over the views.

    Args:
        views: Views of equal shape.
        logits: View to unnormalised log-probabilities [B, K].

    Returns:
        [B, K], in float32 at least.

    Example:
        >>> views = [torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])]
        >>> mean_log_probabilities(views, torch.log).exp()
        tensor([[0.7000, 0.3000]])
    """
    total: Tensor | None = None
    count = 0
    for view in views:
        scores = logits(view)
        scores = at_least_float32(scores).log_softmax(dim=1)
        total = scores if total is None else torch.logaddexp(total, scores)
        count += 1
    if total is None:
        raise ValueError("Expected `views` to hold at least one but got none")
    return total - math.log(count)
