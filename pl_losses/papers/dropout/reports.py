"""Gal and Ghahramani 2016, Figs. 2 and 4, drawn after a test."""

from __future__ import annotations

from collections.abc import Sequence
from math import radians
from typing import ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from pl_losses.core import expected
from pl_losses.core.declared import Keys
from pl_losses.core.figures import Axes, Figure, new_axes, new_figure
from pl_losses.core.panels import Sections
from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import check_counts, check_not_negative, typed
from pl_losses.data.transforms import turned
from pl_losses.monitoring.pictures import gather_objects, log_figure
from pl_losses.papers.dropout import manifest
from pl_losses.papers.dropout.sampling.isolation import isolated_eval
from pl_losses.papers.dropout.sampling.sampling import mc_samples, without_dropout
from pl_losses.papers.dropout.uncertainty import mutual_information, predictive_entropy

SHADES = (2.0, 1.5, 1.0, 0.5)
SHADE = 0.13  # opacity of each


class ExtrapolationReport(Callback):
    """Draws Fig. 2 after a test: predictive mean and standard deviation, in and outside the training data.

    It needs a module with ``predictive(inputs) -> (mean, variance)``, such as
    :class:`~pl_losses.DropoutRegressor`, and a DataModule with ``tensors`` such as
    :class:`~pl_losses.data.TensorDataModule`, with inputs [N, 1] and targets [N, 1]. Logs the picture
    ``test/extrapolation``.

    Args:
        points: Number of inputs at which to predict, from the first to the last of the data.
        margin: How far beyond the data to go on both sides, as a share of their range.
        xlabel: Name of the inputs.
        ylabel: Name of the targets.

    Raises:
        ValueError: If an argument is out of range.
    """

    KEYS: ClassVar[Keys] = {
        "test/extrapolation": "picture: predictions with their standard deviations",
    }
    panels: ClassVar[Sections] = manifest.EXTRAPOLATION_REPORT

    @typed
    def __init__(
        self, points: int = 500, *, margin: float = 0.1, xlabel: str = "input", ylabel: str = "target"
    ) -> None:
        check_counts(2, points=points)
        check_not_negative(margin=margin)
        self.points, self.margin = points, margin
        self.xlabel, self.ylabel = xlabel, ylabel

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be drawn, before the test.

        Raises:
            TypeError: If the module has no ``predictive``.
            ValueError: If the DataModule has no inputs [N, 1].
        """
        if not callable(getattr(pl_module, "predictive", None)):
            raise TypeError(f"Expected {type(pl_module).__name__} to have `predictive(inputs)`")
        shapes = {split: list(rows[0].shape[1:]) for split, rows in _tensors(trainer).items()}
        if "test" not in shapes or any(shape != [1] for shape in shapes.values()):
            raise ValueError(f"Expected a DataModule whose `tensors` have inputs [N, 1] but got {shapes}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Predict on all ranks, as sharded modules need them all, and draw on rank zero."""
        series = {split: (rows[0].cpu(), rows[1].cpu()) for split, rows in _tensors(trainer).items()}
        inputs = torch.cat([rows[0] for rows in series.values()])
        low, high = inputs.min(), inputs.max()
        room = self.margin * (high - low)
        grid = torch.linspace(float(low - room), float(high + room), self.points)[:, None]
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            mean, variance = pl_module.predictive(grid.to(pl_module.device))  # type: ignore[operator]
        if trainer.is_global_zero:
            curve = torch.cat([grid, mean.cpu(), variance.sqrt().cpu()], dim=1)
            figure = draw_extrapolation(curve, series, self.xlabel, self.ylabel)
            log_figure(trainer, "test/extrapolation", figure)


def _tensors(trainer: Trainer) -> dict[str, tuple[Tensor, ...]]:
    """Return the splits that can be shown."""
    found = getattr(trainer.datamodule, "tensors", {})  # type: ignore[attr-defined]
    return {split: rows for split, rows in found.items() if split in ("train", "val", "test")}


def draw_extrapolation(
    curve: Tensor, series: dict[str, tuple[Tensor, Tensor]], xlabel: str = "input", ylabel: str = "target"
) -> Figure:
    """Draw predictive mean and two standard deviations up and down, in shades of half a one, over the data.

    Args:
        curve: Input, mean and standard deviation, [P, 3].
        series: Split to inputs [N, 1] and targets [N, 1]; "train" is what the network was trained on.
        xlabel: Name of the inputs.
        ylabel: Name of the targets.
    """
    from matplotlib.patches import Patch

    figure, axes = new_axes(8, 4.2)
    x, mean, deviation = curve.double().numpy().T
    shades = []
    for layers, share in enumerate(SHADES, 1):
        low, high = mean - share * deviation, mean + share * deviation
        axes.fill_between(x, low, high, color="C0", alpha=SHADE, linewidth=0)
        # As dark as the layers that overlap there.
        label = f"within {share:g} standard deviation{'s' * (share > 1)}"
        shades.append(Patch(color="C0", alpha=1 - (1 - SHADE) ** layers, linewidth=0, label=label))
    axes.plot(x, mean, color="C0", label="predictive mean")
    names = {
        "train": ("C3", "training data"),
        "val": ("C1", "validation data"),
        "test": ("0.45", "test data"),
    }
    for split, (inputs, targets) in series.items():
        color, label = names[split]
        axes.plot(inputs[:, 0], targets[:, 0], ".", color=color, markersize=3, label=label)
    if "train" in series:
        first, last = (float(end) for end in series["train"][0].aminmax())
        axes.axvline(first, color="0.6", linestyle="--", linewidth=1, label="first and last training input")
        axes.axvline(last, color="0.6", linestyle="--", linewidth=1)
    # The mean may run far off; keep to the region around the data.
    targets = torch.cat([rows[1] for rows in series.values()])
    spread = float(targets.max() - targets.min())
    axes.set_ylim(float(targets.min()) - spread, float(targets.max()) + spread)
    axes.set(xlim=(x[0], x[-1]), xlabel=xlabel, ylabel=ylabel)
    lines = axes.get_legend_handles_labels()[0]
    figure.legend(handles=[*lines, *shades], loc="outside upper center", ncols=2, frameon=False)
    return figure


class RotationReport(Callback):
    """Draws Fig. 4 after a test: softmax inputs and outputs of all passes for a digit that is turned.

    It turns the first test image of a class about its centre. A network may be sure of a wrong class while
    the passes disagree. The dashed line of the third panel is the probability without dropout. It works on
    any classifier with dropout. Batches are (images [B, C, H, W], labels [B]). ``forward`` returns logits [B,
    C], or outputs that ``scores`` turns into logits. Logs the picture ``test/rotation``.

    Args:
        digit: The class to turn.
        angles: In degrees, counter-clockwise. Default: 0, 10, ..., 110.
        samples: T, the passes for each angle.
        classes: Number of classes to show: the most probable ones at any angle.
        seed: Seed of the masks.

    Raises:
        ValueError: If an argument is out of range.
    """

    KEYS: ClassVar[Keys] = {
        "test/rotation": "picture: softmax inputs and outputs of a digit as it is turned",
    }
    panels: ClassVar[Sections] = manifest.ROTATION_REPORT

    @typed
    def __init__(
        self,
        digit: int = 1,
        angles: Sequence[float] | None = None,
        *,
        samples: int = 100,
        classes: int = 3,
        seed: int = 0,
    ) -> None:
        check_counts(0, digit=digit, seed=seed)
        check_counts(samples=samples, classes=classes)
        self.angles = [10.0 * step for step in range(12)] if angles is None else list(angles)
        if not self.angles:
            raise ValueError("Expected `angles` to hold at least one but got none")
        self.digit, self.samples, self.classes, self.seed = digit, samples, classes, seed
        self._image: Tensor | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self._image = None

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, *_: object
    ) -> None:
        """Keep the first image of the class."""
        if self._image is None:
            images, labels = expected.labelled(self, batch)
            if len(found := images[labels == self.digit]):
                self._image = found[0].detach().cpu()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the passes on all ranks, as sharded modules need them all, and draw on rank zero.

        Raises:
            ValueError: If no test image was of the class.
        """
        found = [image for image in gather_objects(self._image) if image is not None]
        if not found:
            raise ValueError(f"Expected a test image of class `digit` {self.digit} but there is none")
        images = rotated(found[0], self.angles).to(pl_module.device)
        scores = getattr(pl_module, "scores", None)

        def forward(inputs: Tensor) -> Tensor:
            outputs = pl_module(inputs)
            return at_least_float32(scores(outputs) if callable(scores) else outputs)

        # Metrics may hold tensors of inference mode, with which sampling is slow.
        network = getattr(pl_module, "network", pl_module)
        with isolated_eval(pl_module, images), trainer.precision_plugin.forward_context():
            logits = mc_samples(network, images, self.samples, seed=self.seed, forward=forward)
            single, random = without_dropout(network, images, forward)
        if random:
            rank_zero_warn(
                f"{type(pl_module).__name__} is random in evaluation too: what {type(self).__name__} draws as"
                " without dropout is one pass of many"
            )
        if trainer.is_global_zero:
            figure = draw_rotation(
                images.cpu(), self.angles, logits.cpu(), single=single.cpu(), classes=self.classes
            )
            log_figure(trainer, "test/rotation", figure)


def rotated(image: Tensor, angles: Sequence[float]) -> Tensor:
    """Turn an image by A angles in degrees, corners as its darkest pixel: [C, H, W] -> [A, C, H, W]."""
    floor = image.min()
    copies = (image - floor).expand(len(angles), *image.shape)
    return turned(copies, torch.tensor([radians(angle) for angle in angles]).to(image)) + floor


def draw_rotation(
    images: Tensor, angles: Sequence[float], logits: Tensor, *, single: Tensor, classes: int
) -> Figure:
    """Draw softmax inputs, softmax outputs and uncertainty over the angle, with the images below.

    Args:
        images: [A, 1 or 3, H, W].
        angles: In degrees, A of them.
        logits: Logits of T passes, [T, A, C].
        single: Logits without dropout, [A, C].
        classes: Number of classes to show.
    """
    probabilities = logits.softmax(dim=-1)
    shown = sorted(probabilities.mean(dim=0).amax(dim=0).argsort(descending=True)[:classes].tolist())
    figure = new_figure(7.5, 8)
    rows = figure.subplots(4, 1, sharex=True, height_ratios=(3, 3, 2.2, 1))
    places = torch.arange(len(angles)).double()
    for row, values, name in zip(rows, (logits, probabilities), ("input", "output"), strict=False):
        for position, label in enumerate(shown):
            shifted = (places + 0.18 * (position - (len(shown) - 1) / 2)).expand(len(values), -1)
            scatter = {"s": 60, "marker": "_", "linewidths": 0.8, "alpha": 0.5, "color": f"C{position}"}
            row.scatter(shifted, values[..., label], **scatter)
            row.scatter([], [], marker="s", color=f"C{position}", label=f"class {label}")
        row.set_ylabel(f"softmax {name}")
    rows[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(shown), frameon=False)
    _draw_uncertainty(rows[2], places, probabilities, single.softmax(dim=-1))
    _draw_images(rows[3], images, angles)
    return figure


def _draw_uncertainty(axes: Axes, places: Tensor, probabilities: Tensor, single: Tensor) -> None:
    confidence, predicted = single.max(dim=-1)
    axes.plot(places, confidence, "k--", label="largest probability without dropout, on top its class")
    axes.plot(places, predictive_entropy(probabilities), "C4", label="predictive entropy, nats")
    axes.plot(places, mutual_information(probabilities), "C5", label="mutual information, nats")
    # The classes' names stand above all curves.
    axes.set_ylim(0, 1.25 * max(1.0, axes.get_ylim()[1]))
    for place, label in zip(places.tolist(), predicted.tolist(), strict=True):
        axes.text(place, 0.88, str(label), transform=axes.get_xaxis_transform(), ha="center", va="center")
    axes.set_ylabel("probability, nats")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)


def _draw_images(axes: Axes, images: Tensor, angles: Sequence[float]) -> None:
    for place, image in enumerate(images):
        low, high = image.amin(), image.amax()
        picture = ((image - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0)
        cell = axes.inset_axes((place - 0.45, 0, 0.9, 1), transform=axes.transData)
        cell.imshow(picture.squeeze(-1).numpy(), cmap="gray_r" if len(image) == 1 else None)
        cell.set_axis_off()
    axes.set(ylim=(0, 1), yticks=[], xlabel="degrees", xlim=(-0.6, len(angles) - 0.4))
    axes.set_xticks(range(len(angles)), [f"{angle:g}" for angle in angles])
    axes.spines[:].set_visible(False)
