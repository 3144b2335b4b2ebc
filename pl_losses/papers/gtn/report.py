"""LeCun et al. 1998, sections V to VIII: how a reader reads lines, drawn after a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from pl_losses.core.declared import Keys
from pl_losses.core.figures import Figure, new_axes, new_figure
from pl_losses.core.panels import Sections
from pl_losses.core.validation import check_counts, typed
from pl_losses.data.lines import Lines
from pl_losses.monitoring.charts import log_lines, log_samples
from pl_losses.monitoring.pictures import gather_objects, log_figure
from pl_losses.papers.gtn import manifest
from pl_losses.papers.gtn.base import Reading, StringReader
from pl_losses.papers.gtn.metrics import error_reject_curve


class ReadLine(NamedTuple):
    """A line and its answer.

    Attributes:
        image: Ink in [0, 1], [H, W].
        candidates: All columns where the line may be cut; none for a reader that does not cut.
        columns: Columns between which the answer's characters lie.
        answer: The string that was read.
        right: The right string.
        confidence: Probability of the answer.
    """

    image: Tensor
    candidates: list[int]
    columns: list[int]
    answer: str
    right: str
    confidence: float


class ReadingReport(Callback):
    """Draws segmentations, the most confident errors and the error-reject curve after a test.

    It works on :class:`~pl_losses.LatticeReader` and :class:`~pl_losses.papers.gtn.SDNN`. It logs three
    pictures. ``test/segmentation`` has the first lines with their best path. ``test/errors`` has the most
    confident wrong answers. ``test/error_reject`` is the error-reject curve. To W&B it also logs the chart
    ``test/error_reject_curve`` and the table ``test/strings_table``. Exact over any number of ranks.

    Args:
        lines: Most lines in the first picture.
        errors: Most lines in the second one.
        rows: Most lines in the table: the most confident errors, then the first lines.

    Raises:
        ValueError: If a number is negative.
    """

    KEYS: ClassVar[Keys] = {
        "test/error_reject": "picture: error over the share of strings rejected",
        "test/error_reject_curve_table": "table: the same as numbers",
        "test/segmentation": "picture: the best paths of the first strings",
        "test/errors": "picture: the most confident errors",
        "test/strings_table": "table: what was read of a string in each row",
    }
    panels: ClassVar[Sections] = manifest.READING_REPORT

    @typed
    def __init__(self, lines: int = 8, *, errors: int = 16, rows: int = 100) -> None:
        check_counts(0, lines=lines, errors=errors, rows=rows)
        self.lines, self.errors, self.rows = lines, errors, rows
        self._first, self._worst = max(lines, rows), max(errors, rows)  # As many are kept.
        # For each dataloader: the first lines, the worst errors and all confidences.
        self._parts: dict[int, tuple[list[ReadLine], list[ReadLine], list[Tensor]]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self._parts = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Lines,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first lines, the worst errors so far, and all confidences."""
        assert isinstance(pl_module, StringReader)
        assert isinstance(outputs, Mapping)  # an `Evaluation`
        reading: Reading = outputs["reading"]
        own: int = outputs["own"]
        wrong = outputs["wrong"][:own]
        lines, worst, answers = self._parts.setdefault(dataloader_idx, ([], [], []))
        answers.append(torch.stack([reading.confidence[:own].float(), wrong.float()]).cpu())
        order = reading.confidence[:own].argsort(descending=True)
        surest = order[wrong[order]][: self._worst].tolist()
        first = list(range(min(self._first - len(lines), len(wrong))))
        found = _described(pl_module, batch, reading, [*first, *surest])
        lines += found[: len(first)]
        worst[:] = _most_confident([*worst, *found[len(first) :]], self._worst)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the ranks' parts (on all ranks) and draw (on rank zero)."""
        assert isinstance(pl_module, StringReader)
        pl_module.counts()  # On a rank without a batch, too.
        own = [part for loader, part in self._parts.items() if pl_module.counts(loader)]
        parts = [part for rank in gather_objects(own) for part in rank]
        answers = [answer for _, _, own in parts for answer in own]
        if not trainer.is_global_zero or not answers:
            return
        first = [line for own, _, _ in parts for line in own][: self._first]
        worst = _most_confident([line for _, own, _ in parts for line in own], self._worst)
        rows = [*worst, *(line for line in first if line.answer == line.right)][: self.rows]
        read = [[line.right, line.answer, line.confidence] for line in rows]
        columns = ("right", "read", "confidence")
        log_samples(
            trainer, "test/strings_table", columns, images=[line.image[None] for line in rows], rows=read
        )
        for key, lines in (("segmentation", first[: self.lines]), ("errors", worst[: self.errors])):
            if lines:
                log_figure(trainer, f"test/{key}", draw_lines(lines))
        confidence, wrong = torch.cat(answers, dim=1)
        threshold = getattr(pl_module, "reject_below", None)
        log_figure(trainer, "test/error_reject", draw_error_reject(confidence, wrong > 0, threshold))
        _, rejected, error = error_reject_curve(confidence, wrong > 0)
        curve = {"strings": (100 * rejected, 100 * error)}
        title, x = "Errors among the strings that are not rejected, %", "rejected strings, %"
        log_lines(trainer, "test/error_reject_curve", curve, title=title, x=x)


def _described(
    module: StringReader[Any], batch: Lines, reading: Reading, chosen: Sequence[int]
) -> list[ReadLine]:
    """Return the chosen lines of a batch, on the host."""
    if not chosen:
        return []
    images = batch.images[list(chosen)]
    paths = [reading.paths[i] for i in chosen]
    cut = getattr(module, "cut", None)
    cuts: list[list[int]] = [[] for _ in chosen] if cut is None else cut(images).columns.tolist()
    rows = zip(chosen, images, cuts, paths, module.columns(images, paths), strict=True)
    lines = []
    for i, image, candidates, path, columns in rows:
        right = batch.targets[i, : batch.target_lengths[i]].tolist()
        answer, spelt = ("".join(module.alphabet[label] for label in row) for row in (path.labels, right))
        ink = image[0, :, : batch.widths[i]].float().cpu()
        confidence = float(reading.confidence[i])
        lines.append(ReadLine(ink, sorted(set(candidates)), columns, answer, spelt, confidence))
    return lines


def _most_confident(lines: Sequence[ReadLine], count: int) -> list[ReadLine]:
    return sorted(lines, key=lambda line: -line.confidence)[:count]


def draw_lines(lines: Sequence[ReadLine], per_row: int = 4) -> Figure:
    """Draw lines with all candidate cuts (dotted), the answer's cuts (solid) and its characters below.

    Titles are the right string and the confidence, in red if the answer is wrong.
    """
    per_row = min(per_row, len(lines))
    rows = -(-len(lines) // per_row)
    figure = new_figure(3 * per_row, 1.7 * rows)  # Inches: two lines of text stay readable on a page.
    for position, line in enumerate(lines, start=1):
        axes = figure.add_subplot(rows, per_row, position)
        axes.imshow(line.image.numpy(), cmap="gray_r", vmin=0, vmax=1)
        # Column x is the cut between pixels x - 1 and x.
        for column in set(line.candidates) - set(line.columns):
            axes.axvline(column - 0.5, color="C0", linestyle=":", linewidth=0.9)
        for column in line.columns:
            axes.axvline(column - 0.5, color="C3", linewidth=1.1)
        for left, right, character in zip(line.columns, line.columns[1:], line.answer, strict=False):
            middle = (left + right) / 2 - 0.5
            axes.text(middle, len(line.image) + 1, character, ha="center", va="top", color="C3", fontsize=13)
        right_one = line.answer == line.right
        reading = line.right if right_one else f"{line.right} read as {line.answer or 'nothing'}"
        color = "black" if right_one else "firebrick"
        axes.set_title(f"{reading}\nconfidence {line.confidence:.1%}", fontsize=13, color=color)
        axes.set_axis_off()
    return figure


def draw_error_reject(confidence: Tensor, wrong: Tensor, threshold: float | None = None) -> Figure:
    """Draw the error-reject curve: confidence [N], whether the answer is wrong [N], a threshold to mark."""
    thresholds, rejected, error = error_reject_curve(confidence, wrong)
    figure, axes = new_axes(5, 3.2)
    axes.step(100 * rejected, 100 * error, where="post")
    at = None if threshold is None else int(torch.searchsorted(thresholds, threshold))
    if at is not None and at < len(error):
        axes.plot(100 * rejected[at], 100 * error[at], "o", color="C3", label=f"confidence {threshold:g}")
        axes.legend()
    axes.set_title(f"{len(confidence)} strings", fontsize=9)
    axes.set(xlabel="rejected strings, %", ylabel="errors among the others, %")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 100)
    axes.grid(alpha=0.3)
    return figure
