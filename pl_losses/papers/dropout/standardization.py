"""Gal and Ghahramani 2016, section 5.3: the training data's moments, and standardisation by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from pl_losses.core.loaders import SeenSamples, num_unpadded, share_of
from pl_losses.core.validation import in_words
from pl_losses.monitoring.pictures import gather_objects


@dataclass(frozen=True)
class Moments:
    """A part's contribution to the moments of a data set.

    Attributes:
        count: Number of rows.
        mean: Their mean, float64, [...].
        squares: Sum of their squared distances from it, float64, [...].
    """

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """Compute the moments of rows [N, ...], N > 0."""
        rows = rows.detach().cpu().double()
        mean = rows.mean(dim=0)
        return cls(len(rows), mean, (rows - mean).square().sum(dim=0))

    @classmethod
    def merged(cls, parts: Sequence[Moments]) -> Moments:
        """Combine the moments of all parts, without the cancellation of a sum of squares minus a squared sum.

        >>> first, second = (Moments.of(torch.tensor(rows)) for rows in ([1.0], [2.0, 6.0]))
        >>> Moments.merged([first, second])
        Moments(count=3, mean=tensor(3., dtype=torch.float64), squares=tensor(14., dtype=torch.float64))
        """
        count = sum(part.count for part in parts)
        mean = sum((part.mean * part.count for part in parts), torch.zeros(())) / count
        between = [part.squares + part.count * (part.mean - mean).square() for part in parts]
        return cls(count, mean, torch.stack(between).sum(dim=0))


class Standardization(nn.Module):
    """z = (x - mean) / std; the identity until :meth:`fit`. Both are buffers, so that checkpoints have them.

    Example:
        >>> scale = Standardization()
        >>> scale.fit(Moments.of(torch.tensor([[1.0, 7.0], [3.0, 7.0]])))
        >>> scale(torch.tensor([[5.0, 8.0]])), scale.inverse(torch.tensor([[3.0, 1.0]]))
        (tensor([[3., 1.]]), tensor([[5., 8.]]))
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_load_state_dict_pre_hook(Standardization.make_room)  # type: ignore[no-untyped-call]

    def fit(self, moments: Moments, common: bool = False) -> None:
        """Set mean and population standard deviation; a deviation of 0, up to float32's precision, becomes 1.

        Args:
            moments: Moments of the training data.
            common: Whether all columns share one standard deviation, the root of their mean variance.
        """
        mean, variance = moments.mean, moments.squares / moments.count
        size = mean.abs()
        if common:
            size, variance = size.max(), variance.mean()
        std = variance.sqrt()
        # A column of equal values has a variance of rounding errors.
        constant = std <= torch.finfo(torch.float32).eps * size
        self.mean = mean.to(self.mean)
        self.std = torch.where(constant, 1.0, std).to(self.std)

    def forward(self, rows: Tensor) -> Tensor:
        """Convert x to z: [B, ...] -> [B, ...]."""
        return (rows - self.mean) / self.std

    def inverse(self, rows: Tensor) -> Tensor:
        """Convert z to x: [B, ...] -> [B, ...]."""
        return rows * self.std + self.mean

    def make_room(self, state_dict: dict[str, object], prefix: str, *_: object) -> None:
        """Take over the shapes of a state to be loaded: before a fit that of a row is unknown."""
        for name in ("mean", "std"):
            if isinstance(stored := state_dict.get(prefix + name), Tensor):
                setattr(self, name, torch.empty_like(stored, device=self.mean.device))


def read_moments(loader: Iterable[Any]) -> tuple[Moments, Moments]:
    """Compute the moments of inputs and of flattened targets in a pass of all ranks' loaders: a collective.

    They are exact if ranks share the samples unevenly: a loader's repetitions are left out, and so are
    samples that a lower rank has, too. Global random streams are restored.

    Args:
        loader: This rank's batches (inputs [B, ...], targets [B, ...]).

    Raises:
        TypeError: If a batch is anything else.
        ValueError: If there are no samples at all.
    """
    seen = SeenSamples()
    own: list[Moments] = []
    for batch, count in _own_batches(loader, seen):
        if not count:
            continue
        inputs, target = (rows[:count] for rows in batch)
        new = [Moments.of(inputs), Moments.of(target.flatten(1) if target.ndim > 1 else target[:, None])]
        own = [Moments.merged(pair) for pair in zip(own, new, strict=True)] if own else new
    ranks = [part for part in gather_objects(own if seen.counts() else []) if part]
    if not ranks:
        raise ValueError("Expected training samples to standardise by but got none")
    of_inputs, of_targets = (Moments.merged(parts) for parts in zip(*ranks, strict=True))
    return of_inputs, of_targets


def own_samples(loader: object) -> int | None:
    """Count this rank's samples of an epoch, without repetitions; ``None`` if only a pass can count them.

    >>> from pl_losses.data import BatchLoader
    >>> [own_samples(BatchLoader((torch.arange(5),), 2, pad=True, rank=r, world_size=2)) for r in (0, 1)]
    [3, 2]
    """
    if isinstance(loader, DataLoader) and loader.batch_sampler is None:
        return None  # Each item of its sampler is a batch.
    alone = not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1
    share = share_of(loader)
    if share is not None and (alone or share[1] > 1):
        rank, ranks, samples = share
        return len(range(rank, samples, ranks))
    sampler = getattr(loader, "sampler", None)
    plain = isinstance(loader, DataLoader) and type(loader.batch_sampler) is BatchSampler
    return len(sampler) if alone and plain and hasattr(sampler, "__len__") else None  # type: ignore[arg-type]


def count_samples(loader: Any) -> int:
    """Count the training samples over all ranks, by a pass only if there is no other way: a collective."""
    own, seen = own_samples(loader), SeenSamples()
    if own is None:
        own = sum(count for _, count in _own_batches(loader, seen)) * seen.counts()
    return sum(gather_objects(own))


def _own_batches(loader: Any, seen: SeenSamples) -> Iterator[tuple[Any, int]]:
    """Yield the batches of a pass, noted in ``seen``, and how many samples of each are no repetitions."""
    with isolate_rng():
        # A copy, so that the epoch about to begin starts at its own first batch.
        for index, batch in enumerate(copy(loader)):
            pair = isinstance(batch, (tuple, list)) and len(batch) == 2
            if not pair or not all(isinstance(rows, Tensor) and rows.ndim for rows in batch):
                raise TypeError(
                    f"Expected a batch to be a pair of tensors (inputs, targets) but got {in_words(batch)}"
                )
            seen.add(loader, batch)
            yield batch, num_unpadded(loader, index, len(batch[0]), training=True)
