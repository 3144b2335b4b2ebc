"""He et al. 2015, Table 1 in pictures: the learned slopes by depth, and their course in training."""

from __future__ import annotations

import numpy as np

from pl_losses.core.figures import Axes, Figure, new_axes

INITIAL = 0.25  # Where the paper starts all slopes, and torch does.


class History:
    """Mean slopes over the steps, in evenly spaced columns; beyond ``columns`` every second one is dropped.

    Attributes:
        steps: Step of each column.
        means: Mean slope of each layer in each column; NaN where there was no such layer.
        every: One of this many rows is kept.
        seen: Rows so far.
        last: Step of the last row, -1 before any.

    Args:
        columns: Largest number of columns, an even number.

    Example:
        >>> history = History(columns=4)
        >>> for step in range(9):
        ...     history.add(step, {"layer": step / 10})
        >>> history.steps, history.means
        ([0, 4, 8], {'layer': [0.0, 0.4, 0.8]})
    """

    def __init__(self, columns: int = 500) -> None:
        self.columns, self.every, self.seen, self.last = columns, 1, 0, -1
        self.steps: list[int] = []
        self.means: dict[str, list[float]] = {}

    def add(self, step: int, means: dict[str, float]) -> None:
        """Take in a row, or a later view of the same step."""
        self.seen += step != self.last
        self.last = step
        if (self.seen - 1) % self.every:
            return
        if not self.steps or self.steps[-1] != step:
            self.steps.append(step)
            for column in self.means.values():
                column.append(float("nan"))
        for path, mean in means.items():
            self.means.setdefault(path, [float("nan")] * len(self.steps))[-1] = mean
        if len(self.steps) > self.columns:
            self.every *= 2
            self.steps = self.steps[::2]
            self.means = {path: column[::2] for path, column in self.means.items()}


def draw_heat_map(steps: list[int], means: dict[str, list[float]]) -> Figure:
    """Draw the mean slope of each layer (rows, the first on top) over the steps (columns).

    Args:
        steps: At least 2, rising.
        means: Mean slope at each step by the layer's path; NaN where there was none.
    """
    figure, axes = _one_row_per_layer(list(means), "Mean PReLU slopes over training, the first layer on top")
    values = np.ma.masked_invalid(np.array(list(means.values())))
    low, high = (float(values.min()), float(values.max())) if values.count() else (0.0, 1.0)
    low, high = min(low, 0.0), max(high, 1e-6)
    # Both signs: around 0, with as much colour for a slope of -a as for one of a.
    reach = max(-low, high)
    colors = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach} if low < 0 else {"vmin": 0.0, "vmax": high}
    middles = (np.array(steps[1:]) + np.array(steps[:-1])) / 2
    edges = np.concatenate([[2 * steps[0] - middles[0]], middles, [2 * steps[-1] - middles[-1]]])
    axes.set_facecolor("0.85")
    image = axes.pcolormesh(edges, np.arange(len(means) + 1) - 0.5, values, rasterized=True, **colors)
    bar = figure.colorbar(image, ax=axes, label="mean slope", pad=0.02, aspect=5 * figure.get_figheight())
    bar.ax.set_ylim(low, high)
    axes.set_xlabel("step")
    return figure


def draw_final_slopes(slopes: dict[str, tuple[float, float, float]]) -> Figure:
    """Draw a bar per layer, the first on top: its mean slope, with whiskers from the smallest to the largest.

    Args:
        slopes: Mean, smallest and largest slope by the layer's path, in the order of definition.
    """
    figure, axes = _one_row_per_layer(list(slopes), "Final PReLU slopes, the first layer on top")
    values = np.array(list(slopes.values()))
    mean, low, high = np.where(np.isfinite(values), values, 0).T
    whiskers = np.where(high > low, [mean - low, high - mean], np.nan)
    style = {"ecolor": "0.25", "elinewidth": 1.2, "capsize": 3}
    axes.barh(np.arange(len(slopes)), mean, height=0.7, color="#4c78a8", xerr=whiskers, error_kw=style)
    axes.axvline(0, color="0.25", linewidth=0.8)
    axes.axvline(INITIAL, color="#d62728", linestyle="--", linewidth=1.2)
    above = axes.get_xaxis_transform()
    text = f"start {INITIAL}"
    axes.text(INITIAL, 1.0, text, transform=above, ha="center", va="bottom", fontsize=10, color="#d62728")
    left, right = min(0.0, low.min()), max(INITIAL, high.max())
    axes.set_xlim(left - (0.04 * (right - left) if left < 0 else 0), right + 0.04 * (right - left))
    axes.text(1.01, 1.0, "mean", transform=axes.transAxes, va="bottom", fontsize=10)
    for row, value in enumerate(values[:, 0]):
        axes.text(1.01, row, f"{value:.3f}", transform=axes.get_yaxis_transform(), va="center", fontsize=10)
    axes.set_xlabel("slope: mean, and range over channels")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return figure


def _one_row_per_layer(paths: list[str], title: str) -> tuple[Figure, Axes]:
    labels = [shorten(path) for path in paths]
    width = 7 + 0.07 * max(map(len, labels))
    figure, axes = new_axes(width, 1.3 + 0.27 * max(2, len(paths)))
    axes.set_ylim(len(paths) - 0.5, -0.5)
    axes.set_yticks(range(len(paths)), labels, fontsize=10)
    axes.set_title(title, loc="left", pad=16, fontsize=11)
    return figure, axes


def shorten(path: str, most: int = 48) -> str:
    """Shorten a path to at most ``most`` characters: words are cut, numbers that tell layers apart stay.

    Example:
        >>> shorten("encoder.blocks.11.residual_branch.activation", most=32)
        'encode.blocks.11.residu.activa'
    """
    parts = path.split(".")
    for length in range(max(map(len, parts)), 0, -1):
        label = ".".join(part[:length] for part in parts)
        if len(label) <= most:
            return label
    return f"…{path[1 - most :]}"
