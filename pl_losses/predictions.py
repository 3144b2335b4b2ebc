"""What ``pl-losses predict`` writes: a table that people can read, and all that the model answered."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from pl_losses.core.files import save_sealed, write_table
from pl_losses.observers.loaders import evaluation_loaders, fingerprint, share_of

_NONE = object()
WIDEST = 100  # Of a tensor with more values per sample the table has none.


def write_predictions(
    answers: dict[str, Any], folder: Path, names: Sequence[str] | None = None
) -> list[Path]:
    """Write answers into a folder, where no file is overwritten.

    ``predictions.pt`` has all of them; ``torch.load`` reads it. ``predictions.csv`` has a row per sample,
    with what is a number, a text or a short row of numbers.

    Args:
        answers: What :func:`joined` or :func:`of_all_ranks` made.
        folder: Where to.
        names: Of the samples, in their order.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number, stem = 0, "predictions"
    while (folder / f"{stem}.pt").exists():
        number += 1
        stem = f"predictions-{number}"
    columns = {name: column for key, values in answers.items() for name, column in as_columns(key, values)}
    count = len(next(iter(answers.values()), ()))
    known = {} if names is None else {"name": list(names[:count])}
    paths = [folder / f"{stem}.pt"]
    save_sealed(paths[0], {**known, **answers})
    if columns and {len(column) for column in columns.values()} == {count}:
        columns = {"sample": list(range(count)), **known, **columns}
        paths.insert(0, folder / f"{stem}.csv")
        rows = zip(*columns.values(), strict=True)
        write_table(paths[0], [dict(zip(columns, row, strict=True)) for row in rows])
    return paths


def joined(batches: Sequence[Any]) -> dict[str, Any]:
    """The answers of all batches, one after the other.

    Args:
        batches: What ``predict_step`` returned: a dict with tensors or lists, one value per sample, or a
            tensor, which is called "output".
    """
    named = [batch if isinstance(batch, dict) else {"output": batch} for batch in batches]
    return {key: _one_after_the_other([batch[key] for batch in named]) for key in (named or [{}])[0]}


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


def of_all_ranks(answers: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """The answers of all ranks, on each of them, each sample's once: a collective.

    They are in the order of the samples where rank r has samples r, r + ranks, r + 2 ranks and so on. Ranks
    that share a model or an image, and ranks that have all samples, give the same answers: one will do.

    Raises:
        ValueError: If there are several dataloaders.
    """
    loaders = evaluation_loaders(trainer, "predict")
    if len(loaders) > 1:
        raise ValueError(f"Expected one dataloader to predict for but got {len(loaders)}")
    if trainer.world_size == 1:
        return answers
    share = share_of(loaders[0])
    shared = share is not None and share[1] > 1
    if share is not None and shared:
        rank, ranks, samples = share
        own = len(range(rank, samples, ranks))
        answers = {key: values[:own] for key, values in answers.items()}
    parts: list[Any] = [None] * trainer.world_size
    key = share if shared else fingerprint(answers)
    torch.distributed.all_gather_object(parts, (key, answers))
    different = {key: part for key, part in parts if part}
    return interleaved([different[key] for key in (sorted(different) if shared else different)])


def interleaved(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answers of all ranks in the order of the samples: rank r has r, r + ranks, r + 2 ranks and so on.

    >>> interleaved([{"x": ["a", "c", "e"]}, {"x": ["b", "d"]}])
    {'x': ['a', 'b', 'c', 'd', 'e']}
    """
    return {key: _in_turn([part[key] for part in parts]) for key in (parts or [{}])[0]}


def _in_turn(values: list[Any]) -> Any:
    rows = [row for turn in zip_longest(*values, fillvalue=_NONE) for row in turn if row is not _NONE]
    stacked = all(isinstance(value, Tensor) for value in values) and len({row.shape for row in rows}) == 1
    return torch.stack(rows) if stacked else rows


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
