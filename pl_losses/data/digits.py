"""Scikit-learn's packaged handwritten digits, shaped like MNIST: real data that needs no download."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from pl_losses.core.validation import check_init, check_integer
from pl_losses.data.images import ImageDataModule
from pl_losses.data.loader import Batch
from pl_losses.data.module import Resident


class Digits(ImageDataModule):
    """The 1797 8x8 digits of ``sklearn.datasets.load_digits``, enlarged to 24x24 in the middle of 32x32.

    Each split has the classes in the proportions of the whole set. The test images are the same for every
    seed, so that settings can be chosen with one seed and tested with others.

    Args:
        val_size: Number of validation images; 0 for none.
        test_size: Number of test images.
        low: Value of the background.
        high: Value of full ink.
        distort: Whether to draw a random affine map per training image; a mapping gives the ranges, see
            :class:`~pl_losses.data.transforms.RandomAffine`.
        limit: Number of training images to use, the first ones. Default: all.
        batch_size: Training images per step and rank.
        eval_batch_size: Images per step and rank in evaluation. Default: 1000, or ``batch_size`` if that is
            larger.
        seed: Seed of the validation split, the order and the distortions.
        resident: Where the images lie, see :class:`~pl_losses.data.module.TensorDataModule`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> data = Digits(batch_size=32)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([32, 1, 32, 32]), torch.Size([32]))
    """

    num_classes = 10
    class_names = tuple("0123456789")
    input_shape = (1, 32, 32)

    def __init__(
        self,
        val_size: int = 300,
        test_size: int = 300,
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
        check_integer("test_size", test_size, 10, most=1777)
        if val_size != 0:
            check_integer("val_size", val_size, 10, most=1777, also="0, or ")
        if val_size + test_size > 1787:
            raise ValueError(
                "Expected `val_size` and `test_size` to leave 10 of 1797 images to train on but got"
                f" {val_size} and {test_size}"
            )
        super().__init__(
            low=low,
            high=high,
            distort=distort,
            limit=limit,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            resident=resident,
        )
        self.val_size = val_size
        self.test_size = test_size

    def load(self, stage: str) -> dict[str, Batch]:
        """Return the images and labels of all splits."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = _enlarged(torch.from_numpy(digits.images))
        labels = torch.from_numpy(digits.target).long()

        def part(rows: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
            left, taken = train_test_split(
                rows.numpy(), test_size=size, random_state=seed, stratify=labels[rows].numpy()
            )
            return torch.from_numpy(left), torch.from_numpy(taken)

        rows, test = part(torch.arange(len(labels)), self.test_size, 0)
        splits = {"test": test}
        if self.val_size:
            rows, splits["val"] = part(rows, self.val_size, self.seed)
        splits["train"] = rows[: self.limit]
        return {split: (images[chosen], labels[chosen]) for split, chosen in splits.items()}


def _enlarged(images: Tensor) -> Tensor:
    """Turn pixels 0..16, [N, 8, 8], into bytes, [N, 1, 32, 32]."""
    large = interpolate(images.float()[:, None], size=(24, 24), mode="bilinear", align_corners=False)
    return pad((large * (255 / 16)).round().to(torch.uint8), (4, 4, 4, 4))
