"""Small grey images: kept as bytes, served in the paper's range and with its distortions."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pl_losses.core.validation import check_counts, check_init
from pl_losses.data.loader import Batch
from pl_losses.data.module import Resident, TensorDataModule
from pl_losses.data.transforms import RandomAffine


class ImageDataModule(TensorDataModule):
    """Grey images, kept as bytes with background 0 and served as floating point numbers.

    To subclass, override ``load`` to return (images uint8 [N, C, H, W], labels int64 [N]) per split.

    Args:
        low: Value of the background, pixel 0.
        high: Value of full ink, pixel 255; pixel p becomes ``low + (high - low) * p / 255``.
        distort: Whether to draw a random affine map per training image; a mapping gives the ranges, see
            :class:`~pl_losses.data.transforms.RandomAffine`.
        limit: Number of training images to use, the first ones. Default: all.
        batch_size: Training images per step and rank.
        eval_batch_size: Images per step and rank in evaluation. Default: 1000, or ``batch_size`` if that is
            larger.
        seed: Seed of the split, the order and the distortions.
        resident: Where the images lie, see :class:`~pl_losses.data.module.TensorDataModule`.

    Raises:
        ValueError: If an argument is out of range or ``distort`` names an unknown one. ``setup`` raises a
            TypeError if ``load`` returns other images than bytes.
    """

    def __init__(
        self,
        *,
        low: float = -0.1,
        high: float = 1.175,
        distort: bool | dict[str, float] = False,
        limit: int | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        seed: int = 0,
        resident: Resident = "auto",
    ) -> None:
        check_init(locals())
        if not low < high:
            raise ValueError(f"Expected `low` to be less than `high` but got {low} and {high}")
        check_counts(limit=limit)
        super().__init__(batch_size, eval_batch_size=eval_batch_size, seed=seed, resident=resident)
        self.low = low
        self.high = high
        self.limit = limit
        self._affine = _affine(distort)

    def _check(self, split: str, tensors: Batch) -> None:
        if tensors[0].dtype != torch.uint8:
            raise TypeError(
                f"Expected `load` to return images of bytes, 0..255, for {split!r} but got {tensors[0].dtype}"
            )
        super()._check(split, tensors)

    def train_transform(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Distort the images if asked to, then scale their pixels."""
        if self._affine is None:
            return self.eval_transform(batch, generator)
        images, *rest = batch
        # Before scaling, as background 0 moves in from outside.
        return self.eval_transform((self._affine(images.float(), generator), *rest), generator)

    def eval_transform(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Scale pixels 0..255 to ``low``..``high``."""
        images, *rest = batch
        return (images.float().mul_((self.high - self.low) / 255).add_(self.low), *rest)


def _affine(distort: bool | Mapping[str, float]) -> RandomAffine | None:
    if isinstance(distort, bool):
        return RandomAffine() if distort else None
    try:
        return RandomAffine(**distort)
    except TypeError:
        known = ["translate", "scale", "squeeze", "shear", "rotate"]
        raise ValueError(
            f"Expected `distort` to be a bool or to map some of {known} but got {distort}"
        ) from None
