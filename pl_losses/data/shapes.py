"""Shapes to tell apart by their form: outlines of rectangles, filled rectangles, convex and other regions."""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import torch
from torch import Tensor

SIDE = 28
# Least and greatest share of the image that a region covers.
LEAST, MOST = 0.19, 0.75
# A region is not convex if its hull has at least so many more pixels.
DENT = 20
LINES, PARTS, DIRECTIONS, CANDIDATES = 8, 3, 120, 1024


def rectangles(count: int, generator: torch.Generator, *, shortest: int = 3, difference: int = 3) -> Tensor:
    """Draw rectangles that lie within the image.

    Args:
        count: Number N of rectangles.
        generator: Source of the random numbers.
        shortest: The least height and width, in pixels.
        difference: The least difference of height and width.

    Returns:
        Top, left, height and width, integers [N, 4]; wide and tall ones are equally likely.

    Example:
        >>> top, left, height, width = rectangles(100, torch.Generator().manual_seed(0)).unbind(dim=1)
        >>> bool((top + height <= 28).all()), bool(((height - width).abs() >= 3).all())
        (True, True)
    """

    def candidates() -> Tensor:
        sides = torch.randint(shortest, SIDE + 1, (CANDIDATES, 2), generator=generator)
        corners = torch.rand(CANDIDATES, 2, generator=generator) * (SIDE - sides + 1)
        found = torch.cat([corners.long(), sides], dim=1)
        return found[(sides[:, 0] - sides[:, 1]).abs() >= difference]

    return collect(candidates, count)


def filled(boxes: Tensor) -> Tensor:
    """Mark the pixels that lie in rectangles: top, left, height, width [N, 4] -> bool [N, 28, 28]."""
    top, left, height, width = (column[:, None] for column in boxes.unbind(dim=1))
    place = torch.arange(SIDE)
    rows = (place >= top) & (place < top + height)
    columns = (place >= left) & (place < left + width)
    return rows[:, :, None] & columns[:, None, :]


def outlines(boxes: Tensor) -> Tensor:
    """Mark the outermost pixels of rectangles: [N, 4] -> bool [N, 28, 28]."""
    inner = boxes + torch.tensor([1, 1, -2, -2])
    return filled(boxes) & ~filled(inner)


def convex_regions(count: int, generator: torch.Generator) -> Tensor:
    """Draw regions that are intersections of half-planes: bool [N, 28, 28]."""
    return collect(lambda: _sized(_intersections(CANDIDATES, generator)), count)


def other_regions(count: int, generator: torch.Generator) -> Tensor:
    """Draw unions of two or three such regions that are clearly not convex: bool [N, 28, 28]."""

    def candidates() -> Tensor:
        parts = _intersections(PARTS * CANDIDATES, generator).view(PARTS, CANDIDATES, SIDE, SIDE)
        third = torch.rand(CANDIDATES, generator=generator) < 0.5
        union = parts[0] | parts[1] | (parts[2] & third[:, None, None])
        found = _sized(union)
        return found[dents(found) >= DENT]

    return collect(candidates, count)


def dents(regions: Tensor) -> Tensor:
    """Count by how many pixels the convex hull of each region is larger: bool [N, 28, 28] -> [N].

    The hull is the intersection of the region's supporting half-planes in 120 directions.

    Example:
        >>> regions = torch.zeros(2, 28, 28, dtype=torch.bool)
        >>> regions[:, 5:20, 5:20] = True
        >>> regions[1, 5:15, 5:15] = False
        >>> dents(regions)
        tensor([ 0, 45])
    """
    angles = torch.arange(DIRECTIONS) * (2 * pi / DIRECTIONS)
    normals = torch.stack([angles.sin(), angles.cos()], dim=1)
    heights = normals @ _pixels().T
    flat = regions.flatten(1)
    hull = torch.ones_like(flat)
    for height in heights:
        reach = height.expand_as(flat).masked_fill(~flat, -torch.inf).amax(dim=1, keepdim=True)
        hull &= height <= reach + 1e-4
    return hull.sum(dim=1) - flat.sum(dim=1)


def collect(candidates: Callable[[], Tensor], count: int) -> Tensor:
    """Collect ``count`` rows by calling ``candidates`` as often as needed."""
    found, enough = [], 0
    while enough < count:
        found.append(candidates())
        enough += len(found[-1])
    return torch.cat(found)[:count]


def _pixels() -> Tensor:
    """Return row and column of each pixel, from the middle of the image: [784, 2]."""
    place = torch.arange(SIDE) - (SIDE - 1) / 2
    return torch.cartesian_prod(place, place)


def _intersections(count: int, generator: torch.Generator) -> Tensor:
    """Draw intersections of one to eight half-planes that hold a random point: bool [N, 28, 28]."""
    numbers = torch.rand(count, LINES, 3, generator=generator)
    lines = 1 + (torch.rand(count, 1, generator=generator) * LINES).long()
    anchors = (torch.rand(count, 1, 2, generator=generator) - 0.5) * SIDE
    normals = torch.stack([(2 * pi * numbers[..., 0]).sin(), (2 * pi * numbers[..., 0]).cos()], dim=-1)
    points = (numbers[..., 1:] - 0.5) * SIDE
    normals *= ((normals * (points - anchors)).sum(dim=-1, keepdim=True) >= 0) * 2.0 - 1.0
    bounds = (normals * points).sum(dim=-1)
    inside = torch.ones(count, SIDE * SIDE, dtype=torch.bool)
    for line in range(LINES):
        within = normals[:, line] @ _pixels().T <= bounds[:, line, None]
        inside &= within | (line >= lines)
    return inside.view(count, SIDE, SIDE)


def _sized(regions: Tensor) -> Tensor:
    share = regions.flatten(1).float().mean(dim=1)
    return regions[(share > LEAST) & (share < MOST)]
