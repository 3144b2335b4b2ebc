"""What ``pl-losses predict`` writes: a table that people can read, and all that the model answered."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIDEST = 100  # Of a tensor with more values per sample the table has none.


def write_predictions(
    batches: Sequence[Any], folder: Path, names: Sequence[str] | None = None, rank: int = 0, ranks: int = 1
) -> list[Path]:
    """Write the answers of a Trainer's ``predict``.

    ``predictions.pt`` has a dict with the answers of all batches, joined; ``torch.load`` reads it.
    ``predictions.csv`` has a row per sample, with what is a number, a text or a short row of numbers. Several
    ranks write a file of their own each.

    Args:
        batches: What ``predict_step`` returned: a dict with tensors or lists, one value per sample, or a
            tensor.
        folder: Where to; no file is overwritten.
        names: Of the samples, in their order.
        rank: This process's, of those that share the samples.
        ranks: Their number; rank r has the samples r, r + ranks, r + 2 ranks and so on.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = first = "predictions" if ranks == 1 else f"predictions-rank{rank}"
    number = 0
    while (folder / f"{stem}.pt").exists():
        number += 1
        stem = f"{first}-{number}"
    answers = joined([batch if isinstance(batch, dict) else {"output": batch} for batch in batches])
    paths = [folder / f"{stem}.pt"]
    torch.save(answers, paths[0])
    columns = {name: column for key, values in answers.items() for name, column in as_columns(key, values)}
    if columns and len({len(column) for column in columns.values()}) == 1:
        count = len(next(iter(columns.values())))
        samples = range(rank, rank + ranks * count, ranks)
        known = {} if names is None else {"name": [names[sample] for sample in samples]}
        columns = {"sample": list(samples), **known, **columns}
        paths.insert(0, folder / f"{stem}.csv")
        with paths[0].open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    return paths


def joined(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The values of all batches, one after the other."""
    return {key: _one_after_the_other([batch[key] for batch in batches]) for key in (batches or [{}])[0]}


def _one_after_the_other(values: list[Any]) -> Any:
    if all(isinstance(value, Tensor) and value.ndim for value in values):
        # Only the first dimension has to be common.
        same = len({value.shape[1:] for value in values}) == 1
        return (
            torch.cat([value.cpu() for value in values]) if same else [row for v in values for row in v.cpu()]
        )
    if all(isinstance(value, list) for value in values):
        return [plain(one) for value in values for one in value]
    return values


def plain(value: Any) -> Any:
    """A named tuple as a dict: files of plain data hold no classes."""
    return value._asdict() if hasattr(value, "_asdict") else value


def as_columns(key: str, values: Any) -> list[tuple[str, list[Any]]]:
    """The columns of a table that values, one per sample, make; none if they are no cells.

    >>> as_columns("p", torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    [('p_0', [0.25, 1.0]), ('p_1', [0.75, 0.0])]
    """
    if isinstance(values, Tensor) and values.ndim == 1:
        return [(key, values.tolist())]
    if isinstance(values, Tensor) and values.ndim == 2 and values.shape[1] <= WIDEST:
        return [(f"{key}_{i}", column) for i, column in enumerate(values.T.tolist())]
    if isinstance(values, list) and values and all(isinstance(value, (str, int, float)) for value in values):
        return [(key, values)]
    return []
