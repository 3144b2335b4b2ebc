"""What ``pl-losses predict`` writes: a table for people, and everything that the model returned."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Subset

from pl_losses.core.compat import of_lightning
from pl_losses.core.files import save_sealed, write_table
from pl_losses.core.loaders import SeenSamples, evaluation_loaders, share_of

_NONE = object()
WIDEST = 100  # Values per sample; a tensor with more of them is not in the table.


def write_predictions(
    answers: dict[str, Any], folder: Path, names: Sequence[str] | None = None
) -> list[Path]:
    """Write predictions into a folder without overwriting files.

    ``predictions.pt`` has all of them; ``torch.load`` reads it. ``predictions.csv`` has a row per sample and
    a column for each number, text or short row of numbers.

    Args:
        answers: What :func:`of_all_ranks` returned.
        folder: Where to write.
        names: Names of the samples, in order.

    Returns:
        The files' paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number, stem = 0, "predictions"
    while (folder / f"{stem}.pt").exists():
        number += 1
        stem = f"predictions-{number}"
    paths = [folder / f"{stem}.pt"]
    save_sealed(paths[0], {**_named(answers, names), **answers})
    if rows := rows_of(answers, names):
        paths.insert(0, folder / f"{stem}.csv")
        write_table(paths[0], rows)
    return paths


def rows_of(answers: dict[str, Any], names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the table of predictions, a row per sample; none if they are not one value per sample."""
    columns = {name: column for key, values in answers.items() for name, column in as_columns(key, values)}
    count = len(next(iter(answers.values()), ()))
    if not columns or {len(column) for column in columns.values()} != {count}:
        return []
    columns = {"sample": list(range(count)), **_named(answers, names), **columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _named(answers: dict[str, Any], names: Sequence[str] | None) -> dict[str, list[str]]:
    return {} if names is None else {"name": list(names[: len(next(iter(answers.values()), ()))])}


def joined(batches: Sequence[object]) -> dict[str, Any]:
    """Join the predictions of all batches.

    Args:
        batches: What ``predict_step`` returned: a dict with tensors or lists, one value per sample, or a
            tensor, which is called "output".
    """
    named = [batch if isinstance(batch, dict) else {"output": batch} for batch in batches]
    return {key: _one_after_the_other([batch[key] for batch in named]) for key in (named or [{}])[0]}


def _one_after_the_other(values: list[Any]) -> Any:
    if all(isinstance(value, Tensor) and value.ndim for value in values):
        # Only the first dimension is common to all.
        same = len({value.shape[1:] for value in values}) == 1
        return (
            torch.cat([value.cpu() for value in values]) if same else [row for v in values for row in v.cpu()]
        )
    if all(isinstance(value, list) for value in values):
        return [plain(one) for value in values for one in value]
    return values


class PredictedSamples(Callback):
    """Notes during a prediction which samples this rank is given, for :func:`of_all_ranks`."""

    def __init__(self) -> None:
        self.seen = SeenSamples()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier prediction."""
        self.seen = SeenSamples()

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note a batch before anything changes it."""
        self.seen.add(evaluation_loaders(trainer, "predict")[dataloader_idx], batch, dataloader_idx)


def of_all_ranks(batches: Sequence[object], trainer: Trainer, seen: SeenSamples) -> dict[str, Any]:
    """Gather the predictions of all ranks on each of them, every sample's once: a collective.

    They are in the order of the samples if rank r has samples r, r + ranks, r + 2 ranks and so on; with a
    user's batch sampler they are in the order of its indices. Of ranks that share a model or an image, and of
    ranks that were given the same samples, one is used. A sample that several ranks have beside samples of
    their own is there several times.

    Args:
        batches: What ``predict_step`` returned on this rank, see :func:`joined`.
        trainer: The trainer that predicted.
        seen: The samples of the prediction, as :class:`PredictedSamples` has noted them.

    Raises:
        ValueError: If there are several dataloaders.
    """
    loaders = evaluation_loaders(trainer, "predict")
    if len(loaders) > 1:
        raise ValueError(f"Expected one dataloader to predict for but got {len(loaders)}")
    rank, ranks, samples = share_of(loaders[0]) or (0, 1, 0)
    places = _places(loaders[0], batches, shared=ranks > 1, alone=trainer.world_size == 1)
    if trainer.world_size == 1:
        return joined(batches) if places is None else _by_place([(places, joined(batches))])
    # Without a batch sampler, what the sampler gives makes a batch by itself.
    by_batch = isinstance(loaders[0], DataLoader) and loaders[0].batch_sampler is None
    answers = {"batches": list(batches)} if by_batch else joined(batches)
    if ranks > 1 and places is None:
        own = len(range(rank, samples, ranks))
        answers = {key: values[:own] for key, values in answers.items()}
    parts: list[Any] = [None] * trainer.world_size
    # Predictions of samples that another rank has seen, too, are not sent.
    sent = answers if seen.counts() else {}
    torch.distributed.all_gather_object(parts, (rank, places, sent))
    parts = [part for part in parts if part[2]]
    if all(part[1] is not None for part in parts):
        all_places = [place for part in parts for place in part[1]]
        # The same place on two ranks: of data sets of their own, if nobody has shared one out.
        if ranks > 1 or len(set(all_places)) == len(all_places):
            return _by_place([part[1:] for part in parts])
    if ranks == 1 and len(parts) > 1:
        rank_zero_warn(
            "It is not known which samples each rank was given: the answers are written as if rank r had"
            " samples r, r + ranks, r + 2 ranks and so on"
        )
    answers = interleaved([part for _, _, part in sorted(parts, key=lambda part: part[0])])
    return joined(answers.get("batches", ())) if by_batch else answers


def _places(loader: Any, batches: Sequence[object], shared: bool, alone: bool) -> list[int] | None:
    """Find where the data set has the samples of these batches' answers, if samplers say so.

    Args:
        loader: Of the prediction.
        batches: Its answers.
        shared: Whether a DistributedSampler shares the samples out: it is then known, except for batch
            samplers.
        alone: Whether this is the only rank.
    """
    wrapper = getattr(loader, "batch_sampler", None)  # Lightning's, which notes what it gives.
    plain = type(of_lightning.own_batch_sampler(wrapper)) is BatchSampler
    if (plain and shared) or not hasattr(wrapper, "seen_batch_indices"):
        return None
    given: Any = [list(batch) for batch in wrapper.seen_batch_indices[: len(batches)]]  # type: ignore[union-attr]
    sizes = [{len(values) for values in joined([batch]).values()} for batch in batches]
    fit = sizes == [{len(indices)} for indices in given]
    places = [index for indices in given for index in indices]
    if not fit or (plain and alone and len(set(places)) < len(places)):  # A sampler may draw one twice.
        return None
    data = loader.dataset
    while isinstance(data, Subset) and not alone and not shared:
        places, data = [data.indices[place] for place in places], data.dataset
    return places


def _by_place(parts: Sequence[tuple[list[int], dict[str, Any]]]) -> dict[str, Any]:
    """Order the predictions of all ranks by their indices in the data set, one for each.

    >>> _by_place([([2, 0], {"x": ["c", "a"]}), ([1, 0], {"x": ["b", "a"]})])
    {'x': ['a', 'b', 'c']}
    """
    rows = [(place, part, row) for part, (places, _) in enumerate(parts) for row, place in enumerate(places)]
    first = {place: (part, row) for place, part, row in reversed(rows)}
    chosen = [first[place] for place in sorted(first)]
    keys = parts[0][1] if parts else {}
    return {key: _stacked([parts[part][1][key][row] for part, row in chosen]) for key in keys}


def interleaved(parts: Sequence[dict[str, object]]) -> dict[str, Any]:
    """Interleave the predictions of ranks: rank r has samples r, r + ranks, r + 2 ranks and so on.

    >>> interleaved([{"x": ["a", "c", "e"]}, {"x": ["b", "d"]}])
    {'x': ['a', 'b', 'c', 'd', 'e']}
    """
    return {key: _in_turn([part[key] for part in parts]) for key in (parts or [{}])[0]}


def _in_turn(values: list[Any]) -> Any:
    return _stacked(
        [row for turn in zip_longest(*values, fillvalue=_NONE) for row in turn if row is not _NONE]
    )


def _stacked(rows: list[Any]) -> Any:
    """Stack rows into one tensor, if they are tensors of one shape."""
    same = all(isinstance(row, Tensor) for row in rows) and len({row.shape for row in rows}) == 1
    return torch.stack(rows) if same else rows


def plain(value: object) -> Any:
    """Convert a named tuple to a dict: files of plain data hold no classes."""
    return value._asdict() if hasattr(value, "_asdict") else value


def as_columns(key: str, values: object) -> list[tuple[str, list[Any]]]:
    """Make columns of a table from values, one per sample; none if they are not table cells.

    >>> as_columns("p", torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    [('p_0', [0.25, 1.0]), ('p_1', [0.75, 0.0])]
    >>> as_columns("name", ["a", 1])
    [('name', ['a', '1'])]
    """
    if isinstance(values, Tensor) and values.ndim == 1:
        return [(key, values.tolist())]
    if isinstance(values, Tensor) and values.ndim == 2 and values.shape[1] <= WIDEST:
        return [(f"{key}_{i}", column) for i, column in enumerate(values.T.tolist())]
    if isinstance(values, list) and values and all(isinstance(value, (str, int, float)) for value in values):
        # W&B's tables have one type per column.
        kinds = {type(value) for value in values}
        return [(key, values if kinds <= {int, float} or len(kinds) == 1 else list(map(str, values)))]
    return []
