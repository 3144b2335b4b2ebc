"""Noise that depends on a key only: the same on any number of ranks, and in every draw."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_losses.core.rng import keyed_generator

# Noise is drawn in multiples of this many rows, so that fewer rows are the first of more.
ROWS = 64


def standard_normal(rows: int, columns: int, *key: object) -> Tensor:
    """Draw independent standard normal numbers on the host.

    Args:
        rows: Number of rows.
        columns: Numbers in each row.
        key: What determines the numbers.

    Returns:
        Shape [rows, columns], float32.

    Example:
        >>> torch.equal(standard_normal(100, 3, "key")[:7], standard_normal(7, 3, "key"))
        True
    """
    generator = keyed_generator(*key)
    return torch.randn(-(-rows // ROWS) * ROWS, columns, generator=generator)[:rows]


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
