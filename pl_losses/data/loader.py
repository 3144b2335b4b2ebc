"""Batches of tensors in memory: one gather per batch instead of one Python call per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import ceil
from typing import Any

import torch
from torch import Tensor

from pl_losses.core.rng import fold_in, keyed_generator
from pl_losses.core.validation import check_counts, check_integer, typed

Batch = tuple[Tensor, ...]
Transform = Callable[[Batch, torch.Generator], Batch]
Order = Callable[[torch.Generator], Tensor]


class BatchLoader:
    """Iterates over equally long tensors in batches, on the device of the tensors.

    An epoch's order is one permutation drawn from ``(seed, epoch)`` that all ranks share. Rank ``r`` takes
    every ``world_size``-th sample of it, starting with the ``r``-th. In step ``i`` all ranks together
    therefore see the batch that one process with ``batch_size * world_size`` would see.

    When the ranks cannot share the samples evenly, ``pad`` decides:

    * ``pad=True`` (training) repeats the first samples of the epoch until all ranks have equally many.
    * ``pad=False`` (evaluation) yields every sample exactly once over all ranks, in equally many batches on
      every rank, so that collectives match. In each step the ranks' batches differ by at most one sample.

    Each new iteration is a new epoch, complete or not; :meth:`set_epoch`, which a Lightning Trainer calls,
    sets the epoch. :meth:`state_dict` and :meth:`load_state_dict` let a Trainer resume in the middle of an
    epoch.

    Args:
        tensors: Tensors with the same length along their first dimension, all on one device.
        batch_size: Samples per batch and rank.
        shuffle: Whether each epoch has a new order.
        seed: Seed of the orders and of the generator that ``transform`` gets.
        order: With ``shuffle``, draws the order of an epoch from a generator on the host: as many indices as
            there are samples; samples may be repeated or left out. Default: a permutation.
        transform: ``transform(batch, generator) -> batch``, called on each batch. The generator lies on the
            tensors' device and is seeded from ``(seed, epoch, rank, batch index)``; it is only valid during
            the call.
        drop_last: Whether to drop the samples that do not fill a batch on every rank.
        pad: Whether to repeat samples, see above. Default: the value of ``shuffle``.
        rank: Rank of this process among those that share the samples.
        world_size: Number of processes that share the samples.

    Raises:
        ValueError: If an argument is out of range, the tensors do not fit together, or, with ``pad=False``,
            the samples cannot be shared in equally many batches.

    Example:
        >>> loader = BatchLoader((torch.arange(5),), 2)
        >>> [batch.tolist() for (batch,) in loader]
        [[0, 1], [2, 3], [4]]
        >>> first, second = (BatchLoader(loader.tensors, 2, rank=rank, world_size=2) for rank in (0, 1))
        >>> [batch.tolist() for (batch,) in first], [batch.tolist() for (batch,) in second]
        ([[0, 2], [4]], [[1], [3]])
    """

    # Lightning looks for `set_epoch` on a loader's `sampler`, and reads `batch_sampler` if there is a
    # `sampler`.
    batch_sampler = None

    @typed
    def __init__(
        self,
        tensors: Batch,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        order: Order | None = None,
        transform: Transform | None = None,
        drop_last: bool = False,
        pad: bool | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.tensors = tuple(tensors)
        self.samples = _common_length(self.tensors)
        check_counts(batch_size=batch_size, world_size=world_size)
        check_counts(0, seed=seed)
        check_integer("rank", rank, 0, most=world_size - 1)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.order = order
        self.transform = transform
        self.drop_last = drop_last
        self.pad = shuffle if pad is None else pad
        self.rank = rank
        self.world_size = world_size
        self._stops = self._batch_stops()
        self._generator = torch.Generator(self.tensors[0].device)
        # The next iteration's start (epoch, batch), and the position after the last batch handed
        # out.
        self._start = (0, 0)
        self._position = (0, 0)

    @property
    def sampler(self) -> BatchLoader:
        """The loader itself, where Lightning looks for :meth:`set_epoch`."""
        return self

    def __len__(self) -> int:
        return len(self._stops)

    def start(self, batch_idx: int) -> int:
        """Return how many of this rank's samples come before a batch of an epoch."""
        return self._stops[batch_idx - 1] if batch_idx else 0

    def __iter__(self) -> Iterator[Batch]:
        # A generator runs from its first `next` on: Lightning makes the iterator before it sets the epoch.
        epoch, first = self._start
        self._start = (epoch + 1, 0)
        order = self._order(epoch)
        rows = (order[self.start(index) : self._stops[index]] for index in range(first, len(self)))
        for index, batch in enumerate(self.fetched(epoch, rows), first):
            if self.transform is not None:
                self._generator.manual_seed(fold_in(self.seed, epoch, self.rank, index))
                batch = self.transform(batch, self._generator)
            self._position = (epoch, index + 1)
            yield batch

    def fetched(self, epoch: int, rows: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield a batch for each list of samples of an epoch; override it for samples from elsewhere."""
        for chosen in rows:
            yield tuple(tensor.index_select(0, chosen) for tensor in self.tensors)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; a position loaded for this very epoch is kept."""
        if epoch != self._start[0]:
            self._start = (epoch, 0)
        self._position = self._start

    def state_dict(self) -> dict[str, object]:
        """Return the position after the last batch handed out, which is the same on all ranks."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch, "order": self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume the next iteration after the last batch handed out.

        Args:
            state_dict: What :meth:`state_dict` returned. A state at the end of an epoch starts the next one.

        Raises:
            ValueError: If the state lies inside an epoch and comes from a loader with another order: other
                samples, seed, shuffling or number of samples per step.
        """
        epoch, batch = state_dict["epoch"], state_dict["batch"]
        if 0 < batch < len(self) and state_dict["order"] != self._identity():
            raise ValueError(
                f"Expected `state_dict` of a loader with {self._identity()} but got {state_dict['order']}: to"
                " go on inside an epoch the order must be the same; resume from a checkpoint at the end of an"
                " epoch instead"
            )
        self._start = self._position = (epoch, batch) if batch < len(self) else (epoch + 1, 0)

    def _identity(self) -> dict[str, int]:
        step = self.batch_size * self.world_size
        return {"samples": self.samples, "per_step": step, "seed": self.seed, "shuffle": int(self.shuffle)}

    def _order(self, epoch: int) -> Tensor:
        """Return the indices of this rank's samples in the order of ``epoch``, on the tensors' device."""
        if self.shuffle:
            # Drawn on the host, so that the order does not depend on the tensors' device.
            generator = keyed_generator(self.seed, epoch)
            order = self._drawn(generator)
        else:
            order = torch.arange(self.samples)
        if self.pad:
            order = order[torch.arange(ceil(self.samples / self.world_size) * self.world_size) % self.samples]
        return order[self.rank :: self.world_size].to(self.tensors[0].device)

    def _drawn(self, generator: torch.Generator) -> Tensor:
        if self.order is None:
            return torch.randperm(self.samples, generator=generator)
        order = self.order(generator)
        if order.shape != (self.samples,) or not 0 <= int(order.min()) <= int(order.max()) < self.samples:
            raise ValueError(
                f"Expected `order` to draw {self.samples} places in 0..{self.samples - 1} but got"
                f" {list(order.shape)} in {int(order.min())}..{int(order.max())}"
            )
        return order

    def _batch_stops(self) -> list[int]:
        """Return where this rank's batches end, counted in its own samples."""
        size, ranks = self.batch_size, self.world_size
        if self.drop_last:
            steps = self.samples // (size * ranks)
            if steps == 0:
                raise ValueError(
                    f"Expected at least {size * ranks} samples for one batch of `batch_size` {size} on each"
                    f" of {ranks} ranks with `drop_last=True` but got {self.samples}"
                )
            return [size * (step + 1) for step in range(steps)]
        largest = ceil(self.samples / ranks)
        steps = ceil(largest / size)
        if self.pad:
            return [min(size * (step + 1), largest) for step in range(steps)]
        if self.samples < ranks:
            raise ValueError(
                f"Expected at least one sample per rank but got {self.samples} for `world_size` {ranks}: use"
                " fewer ranks, or `pad=True` to repeat samples"
            )
        if size == 1 and self.samples % ranks:
            raise ValueError(
                f"Expected `batch_size` to be at least 2 to share {self.samples} samples over {ranks} ranks"
                " in equally many batches but got 1: use a larger batch, a number of ranks that divides the"
                " samples, or `pad=True` to repeat samples"
            )
        own = len(range(self.rank, self.samples, ranks))
        stops = [min(size * (step + 1), own) for step in range(steps)]
        if steps > 1 and stops[-2] == own:
            # The other ranks have one more sample for a last batch: keep one here, too.
            stops[-2] -= 1
        return stops


def _common_length(tensors: Batch) -> int:
    if not tensors or any(tensor.ndim == 0 for tensor in tensors):
        raise ValueError(
            "Expected `tensors` to be at least one tensor with samples along its first dimension"
        )
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1 or lengths[0] == 0:
        raise ValueError(f"Expected `tensors` of one length of at least 1 but got {lengths}")
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"Expected `tensors` on one device but got {sorted(devices)}")
    return lengths[0]
