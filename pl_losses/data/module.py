"""The base of all DataModules here: tensors in memory, shared exactly by the ranks of a Trainer."""

from __future__ import annotations

import json
import warnings
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from pl_losses.core.compat.of_lightning import OfLightning
from pl_losses.core.files import checksum
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.loaders import rank_of
from pl_losses.core.validation import check_counts, check_init
from pl_losses.data.loader import Batch, BatchLoader

Resident = Literal["auto", "host", "device"]


class TensorDataModule(OfLightning, LightningDataModule):
    """Serves the tensors that :meth:`load` returns, in batches.

    To subclass, override :meth:`load`; :meth:`train_order` draws the order of an epoch, and
    :meth:`train_transform` and :meth:`eval_transform` turn what is kept in memory into what the model sees.
    Every rank trains on equally many samples and evaluates its own part: each validation or test sample is
    seen exactly once over all ranks. Where this would leave a rank without a batch, it sees a sample again,
    which the suite's modules do not count.

    Attributes:
        num_classes: Number of classes; None when the targets are no classes.
        class_names: Name of each class.
        input_shape: Shape of one input as the model sees it, without the batch.

    Args:
        batch_size: Training samples per step and rank.
        eval_batch_size: Samples per step and rank in evaluation. Default: 1000, or ``batch_size`` if that is
            larger.
        seed: Seed of the split, the order and the training transform.
        resident: Where the tensors lie: on the "host", or on the Trainer's "device". "auto" takes the device
            if it is a GPU, and the tensors take less than a quarter of its free memory.

    Raises:
        TypeError: If an argument that counts is no integer.
        ValueError: If an argument is out of range.
    """

    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    input_shape: tuple[int, ...] = ()

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        *,
        seed: int = 0,
        resident: Resident = "auto",
    ) -> None:
        check_init(locals())
        super().__init__()
        eval_size = max(1000, batch_size) if eval_batch_size is None else eval_batch_size
        check_counts(batch_size=batch_size, eval_batch_size=eval_size)
        check_counts(0, seed=seed)
        save_plain_hyperparameters(self, logger=False)
        self.batch_size = batch_size
        self.eval_batch_size = eval_size
        self.seed = seed
        self.resident = resident
        self.tensors: dict[str, Batch] = {}
        self._loaded: set[str] = set()

    def load(self, stage: str) -> dict[str, Batch]:
        """Return the tensors of the splits that a stage needs, on the host.

        Args:
            stage: "fit" (needs "train" and, if there is one, "val"), "validate" ("val"), "test" or "predict".

        Returns:
            Split to its tensors, equally long: usually inputs and targets. More splits than needed do no
            harm; without "predict", predictions are made for "test".
        """
        raise NotImplementedError(f"Expected `{type(self).__name__}` to override `load`")

    def train_order(self, generator: torch.Generator) -> Tensor:
        """Draw the order of an epoch: as many indices of training samples as there are samples, [N].

        Each step takes the next indices for all ranks together. Override it for batches with another
        composition, such as equally many samples of each class. By default each sample comes once.
        """
        return torch.randperm(len(self.tensors["train"][0]), generator=generator)

    def train_transform(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Turn a training batch into what the model sees; take random numbers from ``generator`` only."""
        return self.eval_transform(batch, generator)

    def eval_transform(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Turn a batch of any other split into what the model sees."""
        return batch

    def __str__(self) -> str:
        """Say how many samples each split has, once they are there."""
        counts = [f"{split} {len(tensors[0])}" for split, tensors in sorted(self.tensors.items())]
        return f"{type(self).__name__}({', '.join(counts) or 'not set up'})"

    def setup(self, stage: str | None = None) -> None:
        """Load and check the splits of a stage, once.

        Args:
            stage: "fit", "validate", "test" or "predict"; None for all.

        Raises:
            ValueError: If inputs or targets are not finite, or a label is out of range.
        """
        for name in ("fit", "validate", "test", "predict") if stage is None else (stage,):
            if name not in self._loaded:
                splits = self.load(name)
                for split, tensors in splits.items():
                    self._check(split, tensors)
                self.tensors.update(splits)
                self._loaded.add(name)

    def identity(self) -> dict[str, dict[str, Any]]:
        """Return what the splits loaded so far are, plain data: runs with the same checksums saw the same.

        Returns:
            Split to "name", "source" (the class and what its docstring begins with), "samples", the "shapes"
            of its tensors without the first dimension, and the "checksum" of the tensors, SHA-256.
        """
        return {
            split: identity_of(self, len(tensors[0]), [list(one.shape[1:]) for one in tensors], tensors)
            for split, tensors in self.tensors.items()
        }

    def train_dataloader(self) -> BatchLoader:
        """Return the training batches: shuffled, unless the Trainer overfits some batches."""
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        return self.loader_of("train", shuffle=not overfit, pad=True)

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Return the validation batches; an empty list when there is no validation split."""
        if "val" in self.tensors:
            return self.loader_of("val")
        # Lightning takes the list as a loader without batches.
        warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
        return []

    def test_dataloader(self) -> BatchLoader:
        """Return the test batches."""
        return self.loader_of("test")

    def predict_dataloader(self) -> BatchLoader:
        """Return the batches to predict: the test batches unless :meth:`load` returns a split "predict"."""
        return self.loader_of("predict" if "predict" in self.tensors else "test")

    def predict_names(self) -> list[str] | None:
        """Return names of the samples to predict, in order: ``pl-losses predict`` writes them."""
        return None

    def loader_of(self, split: str, *, shuffle: bool = False, pad: bool = False) -> BatchLoader:
        """Return the batches of a split.

        Args:
            split: Such as "train".
            shuffle: Whether the order is another one in each epoch.
            pad: Whether all ranks get as many samples, some of them twice.

        Raises:
            RuntimeError: If the split is not loaded yet.
            ValueError: If there is none.
        """
        if split not in self.tensors:
            there = ", ".join(sorted(self.tensors)) or "nothing"
            stages = {"train": {"fit"}, "val": {"fit", "validate"}}.get(split, {"test", "predict"})
            if stages & self._loaded:
                raise ValueError(f"Expected data with samples of the {split!r} split but there is {there}")
            raise RuntimeError(
                f"Expected the {split!r} split to be loaded but there is {there}: call `prepare_data()` and"
                " `setup()` first, or pass the DataModule to a Trainer"
            )
        train = split == "train"
        rank, ranks = rank_of(self.trainer)
        size, samples = self.batch_size if train else self.eval_batch_size, len(self.tensors[split][0])
        return self.make_loader(
            split,
            batch_size=size,
            shuffle=shuffle,
            seed=self.seed,
            order=self.train_order if train else None,
            transform=self.train_transform if train else self.eval_transform,
            pad=pad or samples < ranks or (size == 1 and samples % ranks > 0),
            rank=rank,
            world_size=ranks,
        )

    def make_loader(self, split: str, **options: Any) -> BatchLoader:
        """Make the loader of a split that is loaded, with the options of a :class:`BatchLoader`."""
        return BatchLoader(self._placed(self.tensors[split]), **options)

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _placed(self, tensors: Batch) -> Batch:
        device = self._device
        if self.resident == "host" or (self.resident == "auto" and not _has_room(device, tensors)):
            return tensors
        return tuple(tensor.to(device) for tensor in tensors)

    def _check(self, split: str, tensors: Batch) -> None:
        for position, tensor in enumerate(tensors):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                bad = int((~tensor.isfinite()).sum())
                raise ValueError(
                    f"Expected finite values in tensor {position} of {split!r} but {bad} are not"
                )
        if self.num_classes is not None:
            _check_labels(split, tensors[-1], self.num_classes)


def identity_of(
    module: LightningDataModule, samples: int, shapes: list[list[int]], tensors: Batch
) -> dict[str, Any]:
    """Return what a split is, see :meth:`TensorDataModule.identity`."""
    about = (type(module).__doc__ or "").strip().partition("\n")[0]
    return {
        "name": type(module).__name__,
        "source": f"{type(module).__module__}.{type(module).__qualname__}: {about}",
        "samples": samples,
        "shapes": shapes,
        "checksum": _checksum(tensors),
    }


def _checksum(tensors: Batch) -> str:
    parts = []
    for tensor in tensors:
        values = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
        parts.append([str(tensor.dtype), list(tensor.shape), checksum(values.data)])
    return checksum(json.dumps(parts).encode())


def _check_labels(split: str, labels: Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"Expected labels of {split!r} in 0..{classes - 1} but got {low}..{high}")


def _has_room(device: torch.device, tensors: Batch) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(tensor.nbytes for tensor in tensors) < free // 4


def train_and_val(samples: int, val_size: int, *, limit: int | None, seed: int) -> dict[str, Tensor]:
    """Draw which samples are for validation, and return the indices of both splits.

    Those to train on stay in order, so that ``limit`` takes the first ones whatever the seed.
    """
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    rows = {"train": order[: samples - val_size].sort().values[:limit]}
    return rows | {"val": order[samples - val_size :]} if val_size else rows
