"""Charts of ``wandb.plot``: W&B draws them from a table of the run, which offline runs have, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pl_losses.core.experiment import staged_in
from pl_losses.core.refusals import or_left_out

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor

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


def _log(trainer: Trainer, key: str, chart: str, rows: Sequence[Any], texts: dict[str, str]) -> None:
    from lightning.pytorch.loggers import WandbLogger

    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            columns = list(FIELDS[chart])
            table = wandb.Table(columns, rows)
            made = wandb.plot_table(chart, table, dict(zip(columns, columns, strict=True)), texts)
            with staged_in(Path(logger.experiment.dir).parent), or_left_out(f"`{key}`"):
                logger.experiment.log({key: made})
