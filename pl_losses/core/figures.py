"""Figures of matplotlib, which takes long to import and so is imported with the first picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:
    Axes = Figure = Any


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure of a size in inches, with one pair of axes."""
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def grid_of(images: Tensor, columns: int) -> Tensor:
    """Join images [N, 1 or 3, H, W] row by row, with a grey pixel between them: [3, rows, columns]."""
    from torchvision.utils import make_grid

    joined: Tensor = make_grid(images, columns, padding=1, pad_value=0.5)
    return joined
