"""Paths between the noise of two samples."""

from __future__ import annotations

import torch
from torch import Tensor


def spherical(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Interpolate from one noise to another along the arc between them, on which lengths stay typical.

    Points on the straight line between two normal vectors are shorter than such vectors typically are.

    Args:
        start: Shape [N, Z].
        end: Shape [N, Z].
        steps: Number of points, with both ends; at least 2.

    Returns:
        Shape [N, steps, Z].

    Example:
        >>> spherical(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 3)
        tensor([[[2.0000, 0.0000],
                 [1.4142, 1.4142],
                 [0.0000, 2.0000]]])
    """
    cosine = torch.cosine_similarity(start, end, dim=1).clamp(-0.9999, 0.9999)
    angle = cosine.acos()[:, None]
    share = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype)[None]
    first = ((1 - share) * angle).sin() / angle.sin()
    second = (share * angle).sin() / angle.sin()
    points: Tensor = first[:, :, None] * start[:, None] + second[:, :, None] * end[:, None]
    # No negative zeros.
    return points + 0.0
