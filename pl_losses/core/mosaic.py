"""Images side by side, as reports draw them."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import pad


def mosaic(images: Tensor, columns: int, gap: float = 0.5) -> Tensor:
    """Join images row by row, with a pixel between them.

    Args:
        images: [N, ..., H, W].
        columns: Images in a row.
        gap: Value between the images, and of places that are left over.

    Returns:
        [..., rows (H + 1) - 1, columns (W + 1) - 1].

    Example:
        >>> mosaic(torch.ones(3, 1, 1), columns=2)
        tensor([[1.0000, 0.5000, 1.0000],
                [0.5000, 0.5000, 0.5000],
                [1.0000, 0.5000, 0.5000]])
    """
    rows = ceil(len(images) / columns)
    left_over = images.new_full((rows * columns - len(images), *images.shape[1:]), gap)
    framed = pad(torch.cat([images, left_over]), (0, 1, 0, 1), value=gap)
    lines = framed.view(rows, columns, *framed.shape[1:]).movedim((0, 1), (-4, -2))
    return lines.flatten(-4, -3).flatten(-2)[..., :-1, :-1]
