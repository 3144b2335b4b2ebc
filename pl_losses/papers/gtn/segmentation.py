r"""LeCun et al. 1998, section V.A: heuristic over-segmentation.

A line of characters is cut into pieces wherever two characters may meet, rather too often than too seldom.
The recogniser sees segments of up to K consecutive pieces. As the paper suggests, candidates are the minima
of the vertical projection and the minima of the distance between the upper and the lower contour.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_losses.core.precision import at_least_float32, in_float64
from pl_losses.core.validation import check_counts, check_shape, typed

INK = 0.2  # Pixels darker than this are ink, as a share of full ink.
MAX_SLANT = 0.7  # In pixels per row: strokes that lean more are not considered slanted.


class Cuts(NamedTuple):
    """The cuts of lines into pieces.

    Attributes:
        columns: Cut 0 before the first ink to cut N after the last, ascending, [B, N + 1]; a cut at column x
            lies between pixels x - 1 and x. A line's last cut is repeated up to N.
        lengths: Number of pieces of each line, [B]; 0 for a line without ink.
    """

    columns: Tensor
    lengths: Tensor


class Segments(NamedTuple):
    """The segments to recognise in a batch of lines, M in all.

    Attributes:
        images: [M, 1, size, size], the centre of ink in the middle, other segments' ink left out.
        line: Line of each segment, [M].
        last: Its last piece, [M].
        extra: Number of its pieces before the last one, [M]: 0 to K - 1.
    """

    images: Tensor
    line: Tensor
    last: Tensor
    extra: Tensor


@typed
def cutting_costs(images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the costs of a cut before each column: images [B, 1, H, W], ink in [0, 1] -> two of [B, W].

    The first cost is the vertical projection, the ink that is cut through; the second is the distance between
    the upper and the lower contour; both in pixels, as the mean of the columns on both sides of the cut. In a
    gap both are below 0 and least in its middle.
    """
    _check_images(images)
    ink = _precise(images)
    height, width = ink.shape[1:]
    inked = ink > INK
    rows = torch.arange(height, device=ink.device)[:, None]
    columns = torch.arange(width, device=ink.device)
    top = torch.where(inked, rows, height).amin(dim=1)
    bottom = torch.where(inked, rows, -1).amax(dim=1)
    distance = (bottom - top + 1).clamp(min=0).to(ink.dtype)
    filled = inked.any(dim=1)
    before = torch.where(filled, columns, -width).cummax(dim=1).values
    after = torch.where(filled, columns, 2 * width).flip(1).cummin(dim=1).values.flip(1)
    # Depth in a gap: the cut before column x has column x - 1 on its left.
    depth = torch.minimum(columns - 1 - _before(before, -width), after - columns)

    def cost(values: Tensor) -> Tensor:
        return torch.where(depth > 0, -depth.to(ink.dtype), (values + _before(values, 0)) / 2)

    return cost(ink.sum(dim=1)), cost(distance)


@typed
def candidate_cuts(
    images: Tensor, *, radius: int = 2, projection_radius: int = 3, max_ink: float = 12.0
) -> Cuts:
    """Cut lines where characters may meet.

    Args:
        images: Ink in [0, 1] on background 0, [B, 1, H, W].
        radius: Candidates are the columns with the smallest distance of contours within this many columns on
            both sides; of candidates as close as this only the best one is kept, by the projection plus half
            the distance.
        projection_radius: Columns with the smallest projection within this many columns are candidates, too.
        max_ink: No cut goes through more ink, in pixels.

    Raises:
        TypeError: If ``images`` is not floating point.
        ValueError: If ``images`` is of another shape or a radius is below 1.

    Example:
        >>> line = torch.zeros(1, 1, 32, 30)
        >>> line[:, :, 8:24, 4:10] = line[:, :, 8:24, 14:20] = 1.0
        >>> candidate_cuts(line)
        Cuts(columns=tensor([[ 4, 12, 20]]), lengths=tensor([2]))
    """
    _check_images(images)
    check_counts(radius=radius, projection_radius=projection_radius)
    width = images.shape[-1]
    columns = torch.arange(width, device=images.device)
    filled = (images[:, 0] > INK).any(dim=1)
    first = torch.where(filled, columns, width).amin(dim=1, keepdim=True)
    stop = torch.where(filled, columns + 1, 0).amax(dim=1, keepdim=True)
    projection, distance = cutting_costs(images)
    chosen = _lowest(distance, radius) | _lowest(projection, projection_radius)
    chosen = _lowest((projection + distance / 2).masked_fill(~chosen, float("inf")), radius) & chosen
    chosen &= (projection <= max_ink) & (columns > first + 1) & (columns < stop - 1)
    chosen |= (columns == first) & (first < stop)
    lengths = chosen.sum(dim=1)
    # The chosen columns first, in order; then the end of the ink.
    ordered = torch.where(chosen, columns, width).sort(dim=1).values[:, : max(1, int(lengths.max()))]
    return Cuts(torch.minimum(torch.cat([ordered, stop], dim=1), stop), lengths)


def _check_images(images: Tensor) -> None:
    check_shape("images", images, "B", 1, "H", "W")
    if not images.is_floating_point():
        raise TypeError(f"Expected `images` of a floating point type, from 0 to 1, but got {images.dtype}")
    if not images.numel():
        raise ValueError(f"Expected `images` with pixels but got {list(images.shape)}")


def _precise(images: Tensor) -> Tensor:
    """Return images [B, 1, H, W] as [B, H, W], in float32 at least: bfloat16 cannot count columns."""
    return at_least_float32(images[:, 0])


def _before(values: Tensor, first: float) -> Tensor:
    """Return each column's left neighbour."""
    return F.pad(values, (1, 0), value=first)[:, :-1]


def _lowest(cost: Tensor, radius: int) -> Tensor:
    """Mark columns with the lowest cost within ``radius``, of equal ones the leftmost: [B, W]."""
    cost = cost + 1e-4 * torch.arange(cost.shape[1], device=cost.device, dtype=cost.dtype)
    return cost <= -F.max_pool1d(-cost[:, None], 2 * radius + 1, 1, radius)[:, 0]


def cut_segments(
    images: Tensor,
    cuts: Cuts,
    *,
    max_pieces: int = 4,
    max_width: int = 29,
    min_ink: float = 2.0,
    size: int = 32,
    deslant: bool = False,
) -> Segments:
    """Cut out all segments of up to K pieces, each with the centre of its ink in the middle.

    The ink and its moments up to each column are summed once per line and shared by all segments. With
    deslant, each row of a segment is shifted so that its ink no longer drifts to one side, by the
    least-squares line that predicts the ink's column from its row.

    Args:
        images: Ink in [0, 1] on background 0, [B, 1, H, W].
        cuts: Where the lines are cut.
        max_pieces: K.
        max_width: Segments of several pieces that are wider than this, in columns, are left out.
        min_ink: Segments of several pieces with less ink than this many full pixels are left out. Single
            pieces stay, so that every line has a path.
        size: Height and width of a segment's image.
        deslant: Whether to remove the slant of each segment.
    """
    height, width = images.shape[2:]
    line, last, extra, start, stop = _spans(cuts, max_pieces, max_width)
    precise = _precise(images)
    moments = _moments(precise)
    first, after = ([part.to(moments[0].device) for part in (line, place)] for place in (start, stop))
    ink, x, y, xy, yy = (sums[after[0], after[1]] - sums[first[0], first[1]] for sums in moments)
    enough = (ink >= min_ink).to(line.device) | (extra == 0)
    # The middle of the ink, and the slope of its column by its row: on the host if sums are there.
    ink = ink.clamp(min=1e-6)
    x, y = x / ink, y / ink
    slant = ((xy / ink - x * y) / (yy / ink - y * y).clamp(min=1.0)).clamp(-MAX_SLANT, MAX_SLANT)
    x, y, slant = (part.to(line.device, precise.dtype)[enough] for part in (x, y, slant))
    line, last, extra, start, stop = (part[enough] for part in (line, last, extra, start, stop))
    # The window's middle lies between two pixels.
    left, above = (x + 0.5).round().long(), (y + 0.5).round().long()
    # With a frame of background, every window lies within the image.
    half = size // 2
    framed = F.pad(images[:, 0], (half, size - half, half, size - half)).flatten()
    offset = torch.arange(size, device=images.device)
    rows = (line * (height + size) + above)[:, None] + offset
    start, stop = (start + half)[:, None, None], (stop + half)[:, None, None]

    def taken(columns: Tensor) -> Tensor:
        inside = (columns >= start) & (columns < stop)
        return framed[rows[:, :, None] * (width + size) + columns.clamp(0, width + size - 1)] * inside

    if not deslant:
        columns = (left[:, None] + offset)[:, None, :]
        return Segments(taken(columns)[:, None], line, last, extra)
    drift = slant[:, None] * (offset + (above - half)[:, None] - y[:, None])
    whole = drift.floor()
    # Each pixel lies between two columns, which are taken with their neighbours at once.
    columns = left[:, None, None] + whole.long()[:, :, None] + torch.arange(size + 1, device=images.device)
    share, pair = (drift - whole)[:, :, None].to(images.dtype), taken(columns)
    return Segments(torch.lerp(pair[..., :-1], pair[..., 1:], share)[:, None], line, last, extra)


def centred(images: Tensor, size: int = 32, deslant: bool = False) -> Tensor:
    """Centre whole images as single segments: [B, 1, H, W] -> [B, 1, size, size]; empty ones stay empty."""
    width = images.shape[-1]
    columns = torch.tensor([0, width], device=images.device).expand(len(images), 2)
    cuts = Cuts(columns, torch.ones(len(images), dtype=torch.long, device=images.device))
    return cut_segments(images, cuts, max_pieces=1, max_width=width, size=size, deslant=deslant).images


def _spans(cuts: Cuts, max_pieces: int, max_width: int) -> tuple[Tensor, ...]:
    """Return line, last piece, further pieces, first column and end of each segment, each [M]."""
    pieces = torch.arange(cuts.columns.shape[1] - 1, device=cuts.columns.device)
    extra = torch.arange(max_pieces, device=cuts.columns.device)
    first = pieces[:, None] - extra  # [N, K]
    start = cuts.columns[:, first.clamp(min=0)]
    stop = cuts.columns[:, 1:, None]
    wanted = (stop - start <= max_width) | (extra == 0)
    wanted = wanted & (first >= 0) & (pieces < cuts.lengths[:, None])[:, :, None]
    line, last, more = wanted.nonzero(as_tuple=True)
    return line, last, more, start[line, last, more], cuts.columns[line, last + 1]


def _moments(ink: Tensor) -> tuple[Tensor, ...]:
    """Sum the ink and its moments x, y, xy and yy up to each column: [B, H, W] -> [B, W + 1] each."""
    height, width = ink.shape[1:]
    rows = torch.arange(height, device=ink.device, dtype=ink.dtype)
    # Moments are differences of sums: in float32 the end of a long line would be noise.
    mass, by_row, squared = (in_float64(torch.einsum("bhw,h->bw", ink, rows**power)) for power in (0, 1, 2))
    columns = in_float64(torch.arange(width)).to(mass.device)
    moments = (mass, mass * columns, by_row, by_row * columns, squared)
    return tuple(F.pad(moment.cumsum(dim=1), (1, 0)) for moment in moments)
