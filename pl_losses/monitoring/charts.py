"""W&B's tables: those that ``wandb.plot`` draws charts of, and those with a picture in each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pl_losses.core.experiment import kept_by
from pl_losses.core.kinds import is_wandb
from pl_losses.core.names import file_stem

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor

SIDE = 160  # Largest side of a picture in a table, in pixels.
COUNTED = 30  # Classes up to which the picture of a confusion matrix has the counts written in.
LINES, CONFUSION = "wandb/lineseries/v0", "wandb/confusion_matrix/v1"
# What W&B's chart calls the columns of its table.
FIELDS = {LINES: ("step", "lineKey", "lineVal"), CONFUSION: ("Actual", "Predicted", "nPredictions")}


def log_lines(
    trainer: Trainer, key: str, lines: Mapping[str, tuple[Tensor, Tensor]], *, title: str, x: str
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
    _log_chart(trainer, key, LINES, rows, {"title": title, "xname": x})


def log_confusion(trainer: Trainer, key: str, confusion: Tensor, *, title: str) -> None:
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
    _log_chart(trainer, key, CONFUSION, rows, {"title": title})


def log_table(trainer: Trainer, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log rows of equal keys, at least one, as a table. For rank zero only.

    Args:
        trainer: Its W&B loggers are used.
        key: Such as "test/published".
        rows: Column to value.
    """
    _log(trainer, key, lambda wandb: wandb.Table(list(rows[0]), [list(row.values()) for row in rows]))


def log_samples(
    trainer: Trainer,
    key: str,
    columns: Sequence[str],
    *,
    images: Sequence[Tensor] | Tensor,
    rows: Sequence[Sequence[Any]],
) -> None:
    """Log a table with a row for each sample, its picture first, if there is any. For rank zero only.

    The pictures of the latest table of a key stay in the run's folder, too: wandb deletes its own copies once
    they are uploaded.

    Args:
        trainer: Its W&B loggers are used.
        key: Such as "test/errors_table".
        columns: Names of the columns after "image".
        images: [1 or 3, H, W] each, of any range: each is stretched to its own, and shrunk if it is large.
        rows: What there is beside each image.
    """

    small = [thumbnail(image) for image in images]

    def table(wandb: Any) -> Any:
        cells = [[wandb.Image(picture), *row] for picture, row in zip(small, rows, strict=True)]
        return wandb.Table(["image", *columns], cells)

    if not small:
        return
    for logger in trainer.loggers:
        if is_wandb(logger) and not logger.experiment.disabled:
            folder = Path(logger.experiment.dir).parent / row_pictures(key)
            folder.mkdir(parents=True, exist_ok=True)
            for number, picture in enumerate(small):
                picture.save(folder / f"{number}.png")
    _log(trainer, key, table)


def row_pictures(key: str) -> str:
    """Return the folder, within the one of a W&B run, of the pictures in a table's rows: 0.png, 1.png ..."""
    return f"row_pictures/{file_stem(key)}"


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


def _log_chart(trainer: Trainer, key: str, chart: str, rows: Sequence[Any], texts: dict[str, str]) -> None:
    columns = list(FIELDS[chart])
    fields = dict(zip(columns, columns, strict=True))
    _log(trainer, key, lambda wandb: wandb.plot_table(chart, wandb.Table(columns, rows), fields, texts))


def _log(trainer: Trainer, key: str, make: Callable[[Any], Any]) -> None:
    """Log what is made with the module ``wandb`` to each of its loggers."""
    for logger in trainer.loggers:
        if is_wandb(logger):
            import wandb

            from pl_losses.monitoring.steps import logged_step  # Imported here: it needs torch.

            with kept_by(logger.experiment):
                logger.log_metrics({key: make(wandb)}, logged_step(trainer))
