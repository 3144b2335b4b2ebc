"""The dataloaders of a run: which samples of their batches count, and where in the data set these are."""

from __future__ import annotations

import pickle
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from hashlib import blake2b
from itertools import accumulate, islice
from operator import mul
from secrets import token_bytes
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from pl_losses.core.compat import of_lightning, of_torch

Stage = Literal["val", "test", "predict"]
BLOCK = 64  # Positions whose noise is drawn together.
TRIES = 8  # Passes to compare, to see whether a batch sampler keeps the order: a shuffled one may by chance.
INSTEAD = (
    "set `use_distributed_sampler` to False and share the samples yourself, or give a number of samples that"
    " the ranks divide"
)

# Of a DataLoader with batches of any sizes: the latest batch, and the samples before and after it.
_running: WeakKeyDictionary[DataLoader[object], tuple[int, int, int]] = WeakKeyDictionary()
# Of a DataLoader with repetitions and batches of a user's own sampler: see _starts_in_order.
_starts: WeakKeyDictionary[DataLoader[object], list[int] | None] = WeakKeyDictionary()
_warned: WeakSet[DataLoader[object]] = WeakSet()
_checked: WeakSet[DataLoader[object]] = WeakSet()


def evaluation_loaders(trainer: Trainer, stage: Stage) -> list[object]:
    """Return the dataloaders of the current validation, test or prediction, as Lightning numbers them.

    If loaders give their batches together, they count as one, which is unknown: ``None``.

    Raises:
        ValueError: If Lightning repeats samples of a validation or test and it is unknown which ones.
    """
    loaders, batches = {
        "val": (trainer.val_dataloaders, trainer.num_val_batches),
        "test": (trainer.test_dataloaders, trainer.num_test_batches),
        "predict": (trainer.predict_dataloaders, trainer.num_predict_batches),
    }[stage]
    flat = CombinedLoader(loaders, "sequential").flattened
    if len(flat) != len(batches):
        return [None for _ in batches]
    for place, loader in enumerate(flat) if stage != "predict" else ():
        refuse_hidden(trainer, loader)
        refuse_replaced(trainer, loader, stage, place)
    return flat


def rank_of(trainer: Trainer | None) -> tuple[int, int]:
    """Return this rank among those that share the samples out, and their number.

    The strategy knows which ranks share a model and so must see the same samples.
    """
    share = None if trainer is None else trainer.distributed_sampler_kwargs
    return (share["rank"], share["num_replicas"]) if share else (0, 1)


def refuse_hidden(trainer: Trainer, loader: object, training: bool = False) -> None:
    """Refuse repeated samples of Lightning's sampler if a batch sampler hides which ones they are.

    Args:
        trainer: The trainer that gave the batch sampler its sampler.
        loader: A dataloader.
        training: Whether to warn instead.
    """
    _, ranks = rank_of(trainer)
    given = ranks > 1 and of_lightning.shares_samples(trainer)
    if not given or not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return
    samples = len(loader.dataset)  # type: ignore[arg-type]
    if _distributed_sampler(loader) is None and samples % ranks:
        _cannot_tell(loader, "the `sampler` it is given as an attribute", ranks, samples, training)


def refuse_replaced(trainer: Trainer, loader: object, stage: str, place: int = 0) -> None:
    """Refuse a batch sampler of some of the samples, where Lightning has it take a share of all of them.

    Args:
        trainer: Who gave the batch sampler its sampler.
        loader: A dataloader.
        stage: "train", "val" or "test".
        place: Which of its dataloaders it is.

    Raises:
        ValueError: If it is such a one.
    """
    if not isinstance(loader, DataLoader) or loader in _checked:
        return
    batches = of_lightning.own_batch_sampler(loader.batch_sampler)
    shared = of_lightning.shares_samples(trainer) and _distributed_sampler(loader) is not None
    if shared and type(batches) not in (BatchSampler, type(None)):
        given = of_lightning.given_loaders(trainer, stage)[place].batch_sampler
        own: Any = next((one for one in _attributes(given) if isinstance(one, Sampler)), loader.dataset)
        known = hasattr(own, "__len__") and not isinstance(own, DistributedSampler)
        if known and len(own) != (samples := len(loader.dataset)):  # type: ignore[arg-type]
            raise ValueError(
                f"Expected {type(batches).__name__} to be of all {samples} samples, of which Lightning has"
                f" the ranks take their shares, but got a sampler of {len(own)}: give a"
                " `torch.utils.data.Subset` of them, or set `use_distributed_sampler` to False and share the"
                " samples yourself"
            )
    _checked.add(loader)


def _cannot_tell(loader: DataLoader[object], kept: str, ranks: int, samples: int, training: bool) -> None:
    batches = of_lightning.own_batch_sampler(loader.batch_sampler)
    name = type(batches).__name__
    wanted = f"{name} to keep {kept}, as {ranks} ranks repeat some of {samples} samples"
    if not training:
        raise ValueError(f"Expected {wanted}: {INSTEAD}")
    if loader not in _warned:
        _warned.add(loader)
        rank_zero_warn(f"Repeated training samples count twice: expected {wanted}")


def training_loader(trainer: Trainer) -> object:
    """Return the dataloader of a fit; if there are several ``None``, with a warning if samples repeat."""
    loaders = CombinedLoader(trainer.train_dataloader, "sequential").flattened
    if len(loaders) == 1:
        refuse_replaced(trainer, loaders[0], "train")
        return loaders[0]
    for loader in loaders:
        share = share_of(loader)
        if share is not None and share[2] % share[1] and loader not in _warned:
            _warned.add(loader)
            rank_zero_warn(
                f"Repeated training samples count twice: {share[1]} ranks repeat some of {share[2]} samples,"
                " and of several training dataloaders it is not known which one a loss is of"
            )
    return None


def share_of(loader: object) -> tuple[int, int, int] | None:
    """Return rank, number of ranks and number of samples of a loader whose samples are shared among ranks.

    Rank r has samples r, r + ranks, r + 2 ranks and so on. Those beyond the last sample are repetitions: a
    ``DistributedSampler``, or a ``BatchLoader`` in training, adds them to give all ranks equally many.

    Args:
        loader: A dataloader.

    Returns:
        ``None`` if the loader does not tell that its samples are shared.
    """
    if (sampler := _distributed_sampler(loader)) is not None:
        return sampler.rank, sampler.num_replicas, len(sampler.dataset)  # type: ignore[arg-type]
    names = ("rank", "world_size", "samples")
    rank, ranks, samples = (getattr(loader, name, None) for name in names)
    if isinstance(rank, int) and isinstance(ranks, int) and isinstance(samples, int):
        return rank, ranks, samples
    return None


def _distributed_sampler(loader: object) -> DistributedSampler[object] | None:
    if not isinstance(loader, DataLoader):
        return None
    # A user's batch sampler draws from Lightning's sampler, which it may hold under any name.
    parts: list[object] = [loader.sampler, loader.batch_sampler, *_attributes(loader.batch_sampler)]
    for part in parts:
        if isinstance(part, DistributedSampler):
            return part
        if isinstance(part, Sampler):
            parts += [one for one in _attributes(part) if all(one is not known for known in parts)]
    return None


def _attributes(sampler: object) -> list[Any]:
    return list(getattr(sampler, "__dict__", {}).values())


def _place(loader: Any, batch_idx: int, training: bool) -> tuple[int, int] | None:
    """Return where a batch begins among this rank's samples, and how many of them it has.

    Returns:
        ``None`` if no rank has repetitions, or it is unknown which samples they are.
    """
    if callable(start := getattr(loader, "start", None)):
        return int(start(batch_idx)), int(start(batch_idx + 1)) - int(start(batch_idx))
    sampler = _distributed_sampler(loader)
    if sampler is None or sampler.num_replicas * len(sampler) <= len(sampler.dataset):  # type: ignore[arg-type]
        return None
    batches = of_lightning.own_batch_sampler(loader.batch_sampler)
    if batches is None:  # What the sampler gives makes a batch by itself.
        return batch_idx, 1
    if type(batches) is BatchSampler and batches.sampler is sampler:
        first = batch_idx * batches.batch_size
        return first, max(1, min(batches.batch_size, len(sampler) - first))
    if not batch_idx or loader not in _starts:
        _starts[loader] = _starts_in_order(loader, batches, sampler)
    if (starts := _starts[loader]) is not None:
        return starts[batch_idx], starts[batch_idx + 1] - starts[batch_idx]
    samples = len(sampler.dataset)  # type: ignore[arg-type]
    _cannot_tell(loader, "the order of its `sampler`", sampler.num_replicas, samples, training)
    return None


def _starts_in_order(loader: DataLoader[object], batches: Any, sampler: Any) -> list[int] | None:
    """Return where a pass's batches begin, and where the last ends; ``None`` if they reorder the samples.

    It is also ``None`` if batches have random sizes, or cannot be known beforehand.
    """
    found: list[list[int]] = []
    try:
        # Copies, as a pass is under way.
        sampler, batches = (deepcopy(one, {id(loader.dataset): loader.dataset}) for one in (sampler, batches))
        for seed in range(TRIES):
            order = _drawn(sampler, seed, len(sampler))
            parts = _drawn(batches, seed, len(order))
            flat = [sample for part in parts for sample in part]
            found.append([0, *accumulate(len(part) for part in parts)])
            if flat != order[: len(flat)] or found[0] != found[-1]:
                return None
    except Exception:  # A user's sampler may not be copyable, or may yield no lists.
        return None
    return found[0]


def _drawn(sampler: Any, seed: int, most: int) -> list[Any]:
    with isolate_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        return list(islice(sampler, most))


def samples_before(loader: object, batch_idx: int, size: int) -> int:
    """Count this rank's samples before a batch of ``size`` in a pass over a loader."""
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


def num_unpadded(loader: object, batch_idx: int, size: int, training: bool = False) -> int:
    """Count the first inputs of a batch, up to the first repetition, see :func:`share_of`.

    If only some samples are repetitions and the DataModule made more or fewer inputs of the samples, all
    inputs count. Of a batch that stands in for one without a whole file, none counts, except in training.

    Args:
        loader: A dataloader.
        batch_idx: Which of this rank's batches it is.
        size: How many inputs it has.
        training: Whether to warn and count all inputs instead of raising an error.

    Raises:
        ValueError: If some samples are repetitions and a batch sampler changes their order.

    Example:
        >>> sampler = DistributedSampler(range(5), num_replicas=2, rank=1)
        >>> loader = DataLoader(range(5), 2, sampler=sampler)  # ranks have 0, 2, 4 and 1, 3, 0
        >>> num_unpadded(loader, 0, 2), num_unpadded(loader, 1, 1)
        (2, 0)
    """
    if not training and batch_idx in getattr(loader, "stand_ins", ()):
        return 0
    share, place = share_of(loader), _place(loader, batch_idx, training)
    if share is None or place is None:
        return size
    (rank, ranks, samples), (before, given) = share, place
    own = max(0, min(given, len(range(rank, samples, ranks)) - before))
    return own if given == size else size if own else 0


def unrepeated_rows(loader: object, batch_idx: int, rows: int, tensors: Iterable[Tensor] = ()) -> int | None:
    """Count the first rows of a batch's outputs, those of samples that are not repetitions.

    Rows may be pixels or tokens. Each sample has equally many if the shape of a tensor in the batch says so:
    [B, T] or [B, C, T] for B T rows. That B divides the number of rows does not suffice, it may be chance.

    Args:
        loader: See :func:`num_unpadded`.
        batch_idx: Which of this rank's batches it is.
        rows: How many rows there are.
        tensors: Those of the batch.

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
    if (place := _place(loader, batch_idx, training=False)) is None:
        return rows
    _, samples = place
    own = num_unpadded(loader, batch_idx, samples)
    if own in (0, samples):
        return rows if own else 0
    shapes = [tensor.shape[1:] for tensor in tensors if tensor.ndim and len(tensor) == samples]
    known = {1, *(size for shape in shapes for size in (*accumulate(shape, mul), shape[1:].numel()))}
    return None if rows % samples or rows // samples not in known else rows // samples * own


def places_of(loader: object, batch_idx: int, size: int) -> range:
    """Return the positions of a batch's samples in the data set (a rank's own, if ranks do not share one).

    >>> loader = DataLoader(range(5), 2, sampler=DistributedSampler(range(5), num_replicas=2, rank=1))
    >>> list(places_of(loader, 0, 2))
    [1, 3]
    """
    rank, ranks, _ = share_of(loader) or (0, 1, 0)
    first = rank + ranks * samples_before(loader, batch_idx, size)
    return range(first, first + ranks * size, ranks)


def drawn_at(places: range, draw: Callable[[int], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Draw noise for samples by their positions, so that it does not depend on batches and ranks.

    Args:
        places: Positions of the samples.
        draw: Function from the number of a block to the noise of its 64 positions: tensors [64, ...].

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
    """What a rank has seen in a pass, to find out whether another rank has seen the same.

    Without a ``DistributedSampler`` (``use_distributed_sampler=False``, an ``IterableDataset``) each rank may
    have all samples, or a share of them that the user made. Only the samples themselves tell which. Each
    dataloader is judged by itself.
    """

    def __init__(self) -> None:
        self._shares: dict[int, object] = {}
        self._sums: dict[int, int] = {}
        self._counts: dict[int, bool] | None = None

    def add(self, loader: object, batch: object, position: int = 0) -> None:
        """Add a batch of the loader at ``position``."""
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return
        share = share_of(loader)
        if share is not None and share[1] > 1:
            self._shares[position] = share
        else:
            self._sums[position] = self._sums.get(position, 0) + fingerprint(batch)

    def counts(self, position: int | None = None) -> bool:
        """Return whether no lower rank has seen the same samples; the first call is a collective.

        Args:
            position: Which dataloader's samples. Default: whether those of any dataloader count.
        """
        if self._counts is None:
            self._counts = _first(self._shares | self._sums)
        if position is None:
            return not self._counts or any(self._counts.values())
        return self._counts.get(position, True)


def _first(found: dict[int, object]) -> dict[int, bool]:
    """Return for each key whether no lower rank has an equal value: a collective."""
    if not torch.distributed.is_initialized():
        return {}
    ranks: list[dict[int, object]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, found)
    before = ranks[: torch.distributed.get_rank()]
    return {key: all(other.get(key) != value for other in before) for key, value in found.items()}


def fingerprint(batch: object) -> int:
    """Compute a number that tells batches apart by their samples, in any order; their sums do so, too.

    >>> one, other = torch.arange(6.0).view(3, 2), torch.tensor([[4.0, 5.0], [0.0, 1.0], [2.0, 3.0]])
    >>> fingerprint([one]) == fingerprint([other]), fingerprint([one]) == fingerprint([one[:2]])
    (True, False)
    """
    total, columns = 0, defaultdict(list)
    for leaf in _leaves(batch):
        if isinstance(leaf, Tensor):
            rows = leaf.detach().cpu().reshape(leaf.shape[0] if leaf.ndim else 1, -1)
            # Tensors of one length hold the samples; one of another length is common to the batch.
            columns[len(rows)].append(rows.contiguous().view(torch.uint8).numpy())
        else:
            total += _digest([_content(leaf)])
    for raw in columns.values():
        total += sum(_digest([row.tobytes() for row in rows]) for rows in zip(*raw, strict=True))
    return total


def _content(value: object) -> bytes:
    """Serialize an object; if that fails return random bytes, so that it equals no other."""
    try:
        return pickle.dumps(value)
    except Exception:  # Anything may refuse to be pickled.
        return token_bytes(8)


def _digest(parts: list[bytes]) -> int:
    return int.from_bytes(blake2b(b"".join(parts), digest_size=8).digest(), "big")


def _leaves(batch: object) -> Iterator[object]:
    for leaf in of_torch.tree_leaves(batch):
        if isinstance(leaf, Mapping):  # UserDict and the like.
            yield from _leaves(dict(leaf))
        else:
            yield leaf
