"""Pictures in any logger, and the pictures of a classifier's test run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from pl_losses.core.classifier import Gallery
from pl_losses.core.declared import Keys, Part, Recipe, declared_keys, without
from pl_losses.core.files import written_whole
from pl_losses.core.kinds import is_a, is_aim, is_mlflow, is_tensorboard, is_wandb
from pl_losses.core.loaders import SeenSamples, evaluation_loaders, num_unpadded
from pl_losses.core.metrics import name_class
from pl_losses.core.names import file_stem
from pl_losses.core.panels import Sections
from pl_losses.core.validation import check_counts, typed
from pl_losses.monitoring import manifest
from pl_losses.monitoring.charts import COUNTED, log_confusion, log_samples
from pl_losses.monitoring.record import run_folder
from pl_losses.monitoring.steps import logged_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("right", "predicted", "confidence")
_told: WeakSet[Any] = WeakSet()  # Loggers that a warning has named.


def log_figure(trainer: Trainer, key: str, figure: Figure) -> None:
    """Log a figure as an image to W&B, TensorBoard, MLflow or Aim, or as a PNG under ``pictures/``.

    For rank zero only. The folder is in the run's own. Each key has a file of its own. A logger that takes no
    picture is named once by a warning, unless it is a ``CSVLogger``, beside whose file the PNGs lie.

    Args:
        trainer: Its loggers are used.
        key: Such as "test/errors".
        figure: What to show.
    """
    without = [one for one in trainer.loggers if not _shown(one, key, figure, logged_step(trainer))]
    place = "only other loggers of the run show these"
    if len(without) == len(trainer.loggers):
        folder = Path(run_folder(trainer), "pictures")
        place = f"the pictures are under {folder}"
        with written_whole(folder / f"{file_stem(key)}.png") as file:
            figure.savefig(file, dpi=120)
    for logger in without:
        if logger not in _told and not is_a(logger, "CSVLogger", "DummyLogger"):
            _told.add(logger)
            rank_zero_warn(f"{type(logger).__name__} takes no histograms and pictures: {place}")


def _shown(logger: Any, key: str, figure: Figure, step: int) -> bool:
    """Give a figure to a logger; return whether it can show one."""
    if is_wandb(logger):
        logger.log_image(key, [figure], step)
    elif is_tensorboard(logger):
        logger.experiment.add_figure(key, figure, step)
    elif is_mlflow(logger):
        # MLflow refuses other characters.
        name = re.sub(r"[^A-Za-z0-9_\-./ ]", "_", key)
        logger.experiment.log_image(str(logger.run_id), _pixels(figure), key=name, step=step)
    elif is_aim(logger):
        import aim

        name, context = logger.parse_context(key)
        logger.experiment.track(aim.Image(figure), name, step, context=context)
    else:
        return False
    return True


def _pixels(figure: Figure) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


class ClassifierReport(Callback):
    """Draws the most confident errors and the confusion matrix after a test.

    It works on any module whose ``test_step`` returns a dict with ``predicted`` [B] and ``target`` [B]. If
    the dict has ``confidence`` [B], the errors are shown in this order. If it has ``galleries``, from names
    to :class:`~pl_losses.core.classifier.Gallery`, these samples are shown too. Inputs are the first element
    of the batch: images [B, 1 or 3, H, W]. For other inputs only the matrix is drawn. Logs ``test/errors``,
    ``test/<gallery>`` and ``test/confusion_matrix``, and to W&B the chart ``test/confusion`` and the table
    ``test/errors_table``. Exact over any number of ranks.

    Args:
        samples: How many images each picture shows at most.
        rows: How many of the errors the table has at most, the most confident ones first.

    Raises:
        ValueError: If ``samples`` or ``rows`` is negative.
    """

    KEYS: ClassVar[Keys] = {
        "test/confusion_matrix": "picture: shares of each right class by predicted class",
        "test/confusion_table": "table: how often each class is taken for each",
        "test/errors": "picture: the most confident errors",
        "test/errors_table": "table: the same, an image in each row",
    }
    panels: ClassVar[Sections] = manifest.CLASSIFIER_REPORT

    @classmethod
    def logged_keys(cls, part: Part, recipe: Recipe) -> Keys:
        """Return the keys that it logs: pictures of errors only if inputs are images."""
        images = getattr(recipe.data.cls, "pictures", True)
        drawn = {"test/errors": part.argument("samples"), "test/errors_table": part.argument("rows")}
        return without(declared_keys(cls), [key for key, count in drawn.items() if not (images and count)])

    @typed
    def __init__(self, samples: int = 32, *, rows: int = 100) -> None:
        check_counts(0, samples=samples, rows=rows)
        self.samples, self.rows = samples, rows
        # One for each dataloader.
        self._pairs: dict[int, Tensor] = {}
        self._notes: dict[str, str] = {}
        self._kept: dict[tuple[int, str], tuple[Tensor, Tensor, Tensor]] = {}
        self._seen = SeenSamples()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self._pairs, self._kept, self._seen = {}, {}, SeenSamples()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the pairs of right and predicted class; keep the images to draw so far."""
        if not isinstance(outputs, dict) or "predicted" not in outputs or "target" not in outputs:
            raise TypeError(
                f"Expected `test_step` of {type(pl_module).__name__} to return a dict with 'predicted' and"
                " 'target'"
            )
        loader = evaluation_loaders(trainer, "test")[dataloader_idx]
        self._seen.add(loader, batch, dataloader_idx)
        own = num_unpadded(loader, batch_idx, len(outputs["target"]))
        labels = torch.stack([outputs["target"], outputs["predicted"]], dim=1)[:own]
        pairs, counts = torch.unique(labels, dim=0, return_counts=True)
        table = torch.cat([pairs, counts[:, None]], dim=1)
        found = self._pairs.get(dataloader_idx)
        self._pairs[dataloader_idx] = table if found is None else torch.cat([found, table])
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
            return
        images = images[:own]
        wrong = labels[:, 0] != labels[:, 1]
        confidence = outputs.get("confidence", torch.ones_like(outputs["target"]))[:own]
        galleries = {"errors": Gallery(wrong, confidence), **outputs.get("galleries", {})}
        for name, gallery in galleries.items():
            self._notes[name] = gallery.note
            self._keep((dataloader_idx, name), gallery, images, labels)

    def _keep(self, key: tuple[int, str], gallery: Gallery, images: Tensor, labels: Tensor) -> None:
        chosen = gallery.shown[: len(labels)]
        found = (gallery.score[: len(labels)][chosen].float(), images[chosen].float(), labels[chosen])
        if key in self._kept:
            found = tuple(torch.cat(pair) for pair in zip(self._kept[key], found, strict=True))  # type: ignore[assignment]
        best = found[0].argsort(descending=True)[: self._most(key[1])]
        self._kept[key] = (found[0][best], found[1][best], found[2][best])

    def _most(self, name: str) -> int:
        """Return how many images are kept of a gallery."""
        return max(self.samples, self.rows) if name == "errors" else self.samples

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the ranks' parts (on all ranks) and draw (on rank zero)."""
        name_class(trainer, pl_module)
        self._seen.counts()  # On a rank without a batch, too.
        pairs = [table for loader, table in self._pairs.items() if self._seen.counts(loader)]
        own = [(key, kept) for (loader, key), kept in self._kept.items() if self._seen.counts(loader)]
        parts = gather_objects((pairs, own, self._notes))
        if not trainer.is_global_zero or not any(pairs for pairs, *_ in parts):
            return
        table = torch.cat([table.cpu() for pairs, *_ in parts for table in pairs])
        notes_of = {name: note for *_, notes in parts for name, note in notes.items()}
        classes = int(table[:, :2].max()) + 1
        confusion = torch.zeros(classes, classes, dtype=torch.long)
        confusion.index_put_((table[:, 0], table[:, 1]), table[:, 2], accumulate=True)
        log_figure(trainer, "test/confusion_matrix", draw_confusion(confusion))
        log_confusion(trainer, "test/confusion", confusion, title="Right and predicted class")
        for key in sorted({key for _, own, _ in parts for key, _ in own}):
            mine = [kept for _, own, _ in parts for name, kept in own if name == key]
            score, images, labels = (torch.cat([part[i].cpu() for part in mine]) for i in range(3))
            best = score.argsort(descending=True)[: self._most(key)]
            if key == "errors":
                listed = best[: self.rows]
                rows = [
                    [*pair, sure]
                    for pair, sure in zip(labels[listed].tolist(), score[listed].tolist(), strict=True)
                ]
                log_samples(trainer, "test/errors_table", COLUMNS, images=images[listed], rows=rows)
            if len(best := best[: self.samples]):
                note = notes_of[key]
                notes = [note.format(value) for value in score[best].tolist()] if note else []
                log_figure(trainer, f"test/{key}", draw_samples(images[best], labels[best], notes=notes))


def gather_objects(value: Any) -> list[Any]:
    """Gather every rank's value on every rank: a collective, so all ranks must call it."""
    if not torch.distributed.is_initialized():
        return [value]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def draw_samples(images: Tensor, labels: Tensor, *, notes: Sequence[str] = (), columns: int = 8) -> Figure:
    """Draw a grid of images, each with its right and its predicted class, in red where they differ.

    Args:
        images: [N, 1 or 3, H, W], any range: each is stretched to its own.
        labels: [N, 2], right and predicted class; a right class of -1 is unknown.
        notes: What else to say of each image.
        columns: Images in a row, at most.
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    x, y = (side / max(images.shape[2:]) for side in (images.shape[3], images.shape[2]))
    # Size of a cell in inches, with its lines of text.
    width, height = 1.1, y + (0.55 if notes else 0.35)
    figure = Figure(figsize=(columns * width, rows * height))
    # One pair of axes for all images: one for each takes four times as long to draw.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, columns * width), ylim=(rows * height, 0))
    axes.set_axis_off()
    for position, (image, (right, predicted)) in enumerate(zip(images, labels.tolist(), strict=True)):
        low, high = image.amin(), image.amax()
        picture = ((image - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0)
        middle, bottom = (position % columns + 0.5) * width, (position // columns + 1) * height - 0.05
        axes.imshow(
            picture.squeeze(-1).numpy(),
            cmap="gray_r" if len(image) == 1 else None,
            extent=(middle - x / 2, middle + x / 2, bottom, bottom - y),
        )
        said = f"read as {predicted}" if right < 0 else f"{right} read as {predicted}"
        title = "\n".join([said, *notes[position : position + 1]])
        color = "black" if right in (predicted, -1) else "firebrick"
        axes.text(middle, bottom - y - 0.04, title, ha="center", va="bottom", fontsize=9.5, color=color)
    return figure


def draw_confusion(confusion: Tensor) -> Figure:
    """Draw a confusion matrix as shares of each right class, with the counts written in.

    Args:
        confusion: [C, C] counts, rows the right class, columns the predicted one.
    """
    from matplotlib.figure import Figure

    classes = len(confusion)
    side = max(4.0, 0.55 * classes + 1)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    share = confusion / confusion.sum(dim=1, keepdim=True).clamp_min(1)
    # The square root makes rare confusions visible, which matter most.
    axes.imshow(share.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="right", xticks=range(classes), yticks=range(classes))
    if classes <= COUNTED:
        for row in range(classes):
            for column in range(classes):
                if count := int(confusion[row, column]):
                    color = "white" if share[row, column] > 0.3 else "black"
                    axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=color)
    return figure
