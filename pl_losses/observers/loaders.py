"""The dataloaders of a run: which samples of their batches count, and where in the data set these are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from itertools import accumulate
from operator import mul
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

Stage = Literal["val", "test", "predict"]
BLOCK = 64  # Places whose noise is drawn together.

# Of a DataLoader with batches of any sizes: the latest batch, and the samples before and after it.
_running: WeakKeyDictionary[DataLoader[Any], tuple[int, int, int]] = WeakKeyDictionary()


def evaluation_loaders(trainer: Trainer, stage: Stage) -> list[Any]:
    """The dataloaders of a validation, test or prediction that is under way, as Lightning numbers them.

    Loaders that give their batches together count as one, of which nothing more is known: ``None``.
    """
    loaders, batches = {
        "val": (trainer.val_dataloaders, trainer.num_val_batches),
        "test": (trainer.test_dataloaders, trainer.num_test_batches),
        "predict": (trainer.predict_dataloaders, trainer.num_predict_batches),
    }[stage]
    flat = CombinedLoader(loaders, "sequential").flattened
    return flat if len(flat) == len(batches) else [None for _ in batches]


def share_of(loader: Any) -> tuple[int, int, int] | None:
    """Rank, number of ranks and number of samples of a loader whose samples ranks share.

    Rank r has sample r, r + ranks, r + 2 ranks and so on. What it has beyond the samples are repetitions, by
    which a ``DistributedSampler``, or a ``BatchLoader`` in training, gives all ranks equally many.

    Args:
        loader: A dataloader.

    Returns:
        ``None`` if the loader does not tell that its samples are shared.
    """
    if isinstance(loader, DataLoader):
        # The batches of a user's own sampler are made of what Lightning's sampler gives.
        for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
            if isinstance(sampler, DistributedSampler):
                return sampler.rank, sampler.num_replicas, len(sampler.dataset)  # type: ignore[arg-type]
    names = ("rank", "world_size", "samples")
    rank, ranks, samples = (getattr(loader, name, None) for name in names)
    if isinstance(rank, int) and isinstance(ranks, int) and isinstance(samples, int):
        return rank, ranks, samples
    return None


def samples_before(loader: Any, batch_idx: int, size: int) -> int:
    """How many of this rank's samples come before a batch of ``size`` in a pass over a loader."""
    if callable(start := getattr(loader, "start", None)):
        return int(start(batch_idx))
    batch_size = getattr(loader, "batch_size", None)
    if batch_size or not isinstance(loader, DataLoader):
        return batch_idx * (batch_size or size)
    index, before, after = _running.get(loader, (-1, 0, 0))
    if batch_idx != index:
        before = 0 if not batch_idx else after if batch_idx == index + 1 else batch_idx * size
    _running[loader] = batch_idx, before, before + size
    return before


def unrepeated(loader: Any, batch_idx: int, size: int) -> int:
    """How many inputs of a batch, the first ones, are no repetition, see :func:`share_of`.

    All are counted if the DataModule made other inputs of the samples, more or fewer.

    Args:
        loader: A dataloader.
        batch_idx: Which of this rank's batches it is.
        size: How many inputs it has.

    Example:
        >>> sampler = DistributedSampler(range(5), num_replicas=2, rank=1)
        >>> loader = DataLoader(range(5), 2, sampler=sampler)  # ranks have 0, 2, 4 and 1, 3, 0
        >>> unrepeated(loader, 0, 2), unrepeated(loader, 1, 1)
        (2, 0)
    """
    before = samples_before(loader, batch_idx, size)
    given = samples_before(loader, batch_idx + 1, size) - before if hasattr(loader, "start") else size
    if (share := share_of(loader)) is None or given != size:
        return size
    rank, ranks, samples = share
    return max(0, min(size, len(range(rank, samples, ranks)) - before))


def unrepeated_rows(loader: Any, batch_idx: int, rows: int, tensors: Iterable[Tensor] = ()) -> int | None:
    """How many rows of a batch's outputs, the first ones, belong to samples that are no repetition.

    Rows may be pixels or tokens, equally many for each sample if the shape of a tensor of the batch says so:
    one of [B, T] or [B, C, T] for B T rows. A total that the samples divide may do so by chance.

    Args:
        loader: See :func:`unrepeated`.
        batch_idx: Which of this rank's batches it is.
        rows: How many rows there are.
        tensors: Of the batch.

    Returns:
        Their number; ``None`` if some samples are repetitions and nothing says how many rows each has.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> sampler = DistributedSampler(range(5), num_replicas=2, rank=1)
        >>> loader = DataLoader(range(5), 2, sampler=sampler)  # ranks have 0, 2, 4 and 1, 3, 0
        >>> unrepeated_rows(loader, 0, 8), unrepeated_rows(loader, 1, 4)
        (8, 0)
        >>> loader = DataLoader(range(5), 3, sampler=sampler)
        >>> unrepeated_rows(loader, 0, 12, [torch.zeros(3, 4)]), unrepeated_rows(loader, 0, 12)
        (8, None)
    """
    sampler, batch_size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    if not isinstance(sampler, DistributedSampler) or not batch_size:
        return rows
    samples = max(1, min(int(batch_size), len(sampler) - batch_idx * int(batch_size)))
    own = unrepeated(loader, batch_idx, samples)
    if own in (0, samples):
        return rows if own else 0
    shapes = [tensor.shape[1:] for tensor in tensors if tensor.ndim and len(tensor) == samples]
    known = {1, *(size for shape in shapes for size in (*accumulate(shape, mul), shape[1:].numel()))}
    return None if rows % samples or rows // samples not in known else rows // samples * own


def places_of(loader: Any, batch_idx: int, size: int) -> range:
    """The places of a batch's samples in the data set; in this rank's own one, if ranks do not share it.

    >>> loader = DataLoader(range(5), 2, sampler=DistributedSampler(range(5), num_replicas=2, rank=1))
    >>> list(places_of(loader, 0, 2))
    [1, 3]
    """
    rank, ranks, _ = share_of(loader) or (0, 1, 0)
    first = rank + ranks * samples_before(loader, batch_idx, size)
    return range(first, first + ranks * size, ranks)


def drawn_at(places: range, draw: Callable[[int], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Noise of samples by their places, so that it does not depend on batches and ranks.

    Args:
        places: Of the samples.
        draw: The number of a block to the noise of its 64 places: tensors [64, ...].

    Returns:
        As many tensors [len(places), ...].

    Example:
        >>> drawn_at(range(62, 68, 2), lambda block: (64 * block + torch.arange(64),))
        (tensor([62, 64, 66]),)
    """
    first, last = places[0] // BLOCK, places[-1] // BLOCK
    blocks = zip(*(draw(block) for block in range(first, last + 1)), strict=True)
    start = places[0] - BLOCK * first
    return tuple(torch.cat(parts)[start :: places.step][: len(places)] for parts in blocks)


class SeenSamples:
    """What a rank has seen in a pass, to find out whether another one has seen the same.

    Without a ``DistributedSampler`` (``use_distributed_sampler=False``, an ``IterableDataset``) all ranks may
    be given all samples, or shares of them that the user made: only the samples themselves tell.
    """

    def __init__(self) -> None:
        self._found: dict[Any, int] = {}
        self._counts: bool | None = None

    def add(self, loader: Any, batch: Any) -> None:
        """Take in a batch of a loader."""
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return
        share = share_of(loader)
        if share is not None and share[1] > 1:
            self._found[share] = 0
        else:
            self._found[None] = self._found.get(None, 0) + fingerprint(batch)

    def counts(self) -> bool:
        """Whether no rank before this one has seen the same samples: the first time a collective."""
        if self._counts is None:
            self._counts = _is_first(self._found)
        return self._counts


def _is_first(value: Any) -> bool:
    """Whether no rank before this one has an equal value: a collective."""
    if not torch.distributed.is_initialized():
        return True
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values.index(value) == torch.distributed.get_rank()


def fingerprint(batch: Any) -> int:
    """A number that tells batches apart by their samples, whatever the order; so does its sum over batches.

    >>> one, other = torch.arange(6.0).view(3, 2), torch.tensor([[4.0, 5.0], [0.0, 1.0], [2.0, 3.0]])
    >>> fingerprint([one]) == fingerprint([other]), fingerprint([one]) == fingerprint([one[:2]])
    (True, False)
    """
    leaves = tree_leaves(batch)
    total = sum(_digest([repr(leaf).encode()]) for leaf in leaves if not isinstance(leaf, Tensor))
    found = (leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim and leaf.numel())
    tensors = [leaf.detach().cpu() for leaf in found]
    columns = [tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in tensors]
    raw = [column.contiguous().view(torch.uint8).numpy() for column in columns]
    # What is not one per sample tells nothing of them.
    raw = [column for column in raw if len(column) == len(raw[0])]
    return total + sum(_digest([row.tobytes() for row in rows]) for rows in zip(*raw, strict=True))


def _digest(parts: list[bytes]) -> int:
    return int.from_bytes(blake2b(b"".join(parts), digest_size=8).digest(), "big")
