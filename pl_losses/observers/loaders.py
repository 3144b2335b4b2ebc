"""The dataloaders of an evaluation, and which inputs of their batches a rank is to count."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data.distributed import DistributedSampler

Stage = Literal["val", "test", "predict"]


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


def unrepeated(loader: Any, batch_idx: int, size: int) -> int:
    """How many inputs of a batch, the first ones, are no repetition that DistributedSampler ends a rank with.

    Args:
        loader: A dataloader; only that of torch, with a DistributedSampler, repeats.
        batch_idx: Which of this rank's batches it is.
        size: How many inputs it has.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> sampler = DistributedSampler(range(5), num_replicas=2, rank=1)
        >>> loader = DataLoader(range(5), 2, sampler=sampler)  # ranks have 0, 2, 4 and 1, 3, 0
        >>> unrepeated(loader, 0, 2), unrepeated(loader, 1, 1)
        (2, 0)
    """
    sampler, batch_size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    if not isinstance(sampler, DistributedSampler) or not batch_size:
        return size
    return max(0, min(size, own_share(sampler) - int(batch_idx * batch_size)))


def unrepeated_rows(loader: Any, batch_idx: int, rows: int) -> int | None:
    """How many rows of a batch's outputs, the first ones, belong to samples that are no repetition.

    Rows may be pixels or tokens, equally many for each sample.

    Args:
        loader: See :func:`unrepeated`.
        batch_idx: Which of this rank's batches it is.
        rows: How many rows there are.

    Returns:
        Their number; ``None`` if some samples are repetitions and the rows are no multiple of the samples.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> sampler = DistributedSampler(range(5), num_replicas=2, rank=1)
        >>> loader = DataLoader(range(5), 2, sampler=sampler)  # ranks have 0, 2, 4 and 1, 3, 0
        >>> unrepeated_rows(loader, 0, 8), unrepeated_rows(loader, 1, 4)
        (8, 0)
    """
    sampler, batch_size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    if not isinstance(sampler, DistributedSampler) or not batch_size:
        return rows
    samples = max(1, min(int(batch_size), len(sampler) - batch_idx * int(batch_size)))
    own = unrepeated(loader, batch_idx, samples)
    if own in (0, samples):
        return rows if own else 0
    return None if rows % samples else rows // samples * own


def own_share(sampler: DistributedSampler[Any]) -> int:
    """How many samples of a rank are no repetition."""
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]
