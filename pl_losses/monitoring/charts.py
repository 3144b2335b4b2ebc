"""W&B's tables: those that ``wandb.plot`` draws charts of, and those with a picture in each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pl_losses.core.experiment import staged_in
from pl_losses.core.kinds import is_wandb
from pl_losses.core.refusals import or_left_out

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor

SIDE = 160  # Largest side of a picture in a table, in pixels.
LINES, CONFUSION = "wandb/lineseries/v0", "wandb/confusion_matrix/v1"
# What W&B's chart calls the columns of its table.
FIELDS = {LINES: ("step", "lineKey", "lineVal"), CONFUSION: ("Actual", "Predicted", "nPredictions")}


def log_lines(
    trainer: Trainer, key: str, lines: Mapping[str, tuple[Tensor, Tensor]], title: str, x: str
) -> None:
    """Log lines whose x axis is not the step; their table is ``<key>_table``. For rank zero only.

    Args:
        trainer: Its W&B loggers are used.
        key: Such as "test/error_reject_curve".
        lines: Name to x and y, of one shape [N] each.
        title: Of the chart, with the unit of y.
        x: What the x axis is, with its unit.
    """
    rows = [
        [place, name, value]
        for name, (places, values) in lines.items()
        for place, value in zip(places.tolist(), values.tolist(), strict=True)
    ]
    _log(trainer, key, LINES, rows, {"title": title, "xname": x})


def log_confusion(trainer: Trainer, key: str, confusion: Tensor, title: str) -> None:
    """Log a confusion matrix; its table is ``<key>_table``. For rank zero only.

    Args:
        trainer: Its W&B loggers are used.
        key: Such as "test/confusion".
        confusion: Counts [C, C], rows the right class, columns the predicted one; nothing is logged of more
            than 100 classes, as W&B's tables end after 10 000 rows.
        title: Of the chart.
    """
    if len(confusion) > 100:
        return
    rows = [
        [str(right), str(predicted), count]
        for right, counts in enumerate(confusion.tolist())
        for predicted, count in enumerate(counts)
    ]
    _log(trainer, key, CONFUSION, rows, {"title": title})


def log_table(trainer: Trainer, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log rows of equal keys, at least one, as a table. For rank zero only.

    Args:
        trainer: Its W&B loggers are used.
        key: Such as "test/published".
        rows: Column to value.
    """
    for logger in trainer.loggers:
        if is_wandb(logger):
            import wandb

            with staged_in(Path(logger.experiment.dir).parent):
                logger.experiment.log({key: wandb.Table(list(rows[0]), [list(row.values()) for row in rows])})


def log_samples(
    trainer: Trainer,
    key: str,
    columns: Sequence[str],
    images: Sequence[Tensor] | Tensor,
    rows: Sequence[Sequence[Any]],
) -> None:
    """Log a table with a row for each sample, its picture first, if there is any. For rank zero only.

    Args:
        trainer: Its W&B loggers are used.
        key: Such as "test/errors_table".
        columns: Names of the columns after "image".
        images: [1 or 3, H, W] each, of any range: each is stretched to its own, and shrunk if it is large.
        rows: What there is beside each image.
    """
    loggers = [logger for logger in trainer.loggers if is_wandb(logger)]
    if not loggers or not len(images):
        return
    import wandb

    shown = [thumbnail(image) for image in images]
    for logger in loggers:
        cells = [[wandb.Image(picture), *row] for picture, row in zip(shown, rows, strict=True)]
        with staged_in(Path(logger.experiment.dir).parent):
            logger.experiment.log({key: wandb.Table(["image", *columns], cells)})


def thumbnail(image: Tensor) -> Any:
    """Make a small PIL image of [1 or 3, H, W]; of one channel, high values are dark, as ink is."""
    from PIL import Image

    image = image.float().cpu()
    low, high = image.amin(), image.amax()
    share = (image - low) / (high - low).clamp_min(1e-12)
    levels = (255 * (1 - share if len(image) == 1 else share)).round().byte()
    made = Image.fromarray(levels.permute(1, 2, 0).squeeze(-1).numpy())
    made.thumbnail((SIDE, SIDE))
    return made


def _log(trainer: Trainer, key: str, chart: str, rows: Sequence[Any], texts: dict[str, str]) -> None:
    for logger in trainer.loggers:
        if is_wandb(logger):
            import wandb

            columns = list(FIELDS[chart])
            table = wandb.Table(columns, rows)
            made = wandb.plot_table(chart, table, dict(zip(columns, columns, strict=True)), texts)
            with staged_in(Path(logger.experiment.dir).parent), or_left_out(f"`{key}`"):
                logger.experiment.log({key: made})
