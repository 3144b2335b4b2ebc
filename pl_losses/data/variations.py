"""Sets made like those of Larochelle et al. 2007, on which Vincent et al. 2010 compare methods.

They are the same tasks but not the same distributions: compare results on them with each other, never with
the published ones.
"""

from __future__ import annotations

from functools import cache
from math import pi
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from pl_losses.core.rng import keyed_generator
from pl_losses.core.validation import check_init, check_integer
from pl_losses.data import shapes
from pl_losses.data.digits import Digits
from pl_losses.data.image_files import LUMA
from pl_losses.data.images import ImageDataModule
from pl_losses.data.loader import Batch
from pl_losses.data.mnist import MNIST
from pl_losses.data.module import Resident
from pl_losses.data.transforms import turned

Name = Literal[
    "basic-gen",
    "rot-gen",
    "bg-rand-gen",
    "bg-img-gen",
    "bg-img-rot-gen",
    "rect-gen",
    "rect-img-gen",
    "convex-gen",
]
NAMES: tuple[str, ...] = get_args(Name)
SHAPES: dict[str, tuple[str, str]] = {
    "rect-gen": ("tall", "wide"),
    "rect-img-gen": ("tall", "wide"),
    "convex-gen": ("not convex", "convex"),
}
# Training, validation and test images of the original sets.
SIZES = {"rect-gen": (1000, 200, 50_000), "convex-gen": (7000, 1000, 50_000)}
USUAL_SIZES = (10_000, 2000, 50_000)
# Patches of photographs with a smaller standard deviation are too plain.
CONTRAST = 16.0


class Variations(ImageDataModule):
    """Generated variations of the digits and of simple shapes, 28x28, always the same for a ``data_seed``.

    "basic-gen" is a subset of the digits. "rot-gen" turns them by an angle that is uniform in [0, 2 pi).
    "bg-rand-gen" puts uniform noise behind them. "bg-img-gen" puts patches of scikit-learn's two photographs
    behind them. "bg-img-rot-gen" turns the digits and puts patches behind them. "rect-gen" has outlines of
    tall and of wide rectangles. "rect-img-gen" has rectangles that are filled with one patch, on another
    patch. "convex-gen" has regions that are convex or not. No digit is in two splits.

    Args:
        name: Which one.
        source: Digits of "mnist", or scikit-learn's 1797 packaged ones ("digits").
        root: Folder with MNIST, see :class:`~pl_losses.data.MNIST`.
        download: Whether to download MNIST if it is missing.
        train_size: Training images. Default: as many as the original set has, 10 000 (rect 1000, convex
            7000), of the packaged digits 1000.
        val_size: Validation images; 0 for none. Default: 2000 (rect 200, convex 1000), of the packaged digits
            300.
        test_size: Test images. Default: 50 000, of the packaged digits 497.
        data_seed: Seed of what is generated.
        low: Value of the background.
        high: Value of full ink.
        batch_size: Training images per step and rank.
        eval_batch_size: Images per step and rank in evaluation. Default: 1000, or ``batch_size`` if that is
            larger.
        seed: Seed of the order.
        resident: Where the images lie, see :class:`~pl_losses.data.module.TensorDataModule`.

    Raises:
        ValueError: If an argument is out of range or none of its choices.

    Example:
        >>> data = Variations("rect-gen", train_size=20, val_size=0, test_size=10)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, data.num_classes
        (torch.Size([20, 1, 28, 28]), 2)
    """

    input_shape = (1, 28, 28)

    def __init__(
        self,
        name: Name = "basic-gen",
        source: Literal["mnist", "digits"] = "mnist",
        *,
        root: str | Path | None = None,
        download: bool = True,
        train_size: int | None = None,
        val_size: int | None = None,
        test_size: int | None = None,
        data_seed: int = 0,
        low: float = 0.0,
        high: float = 1.0,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        seed: int = 0,
        resident: Resident = "auto",
    ) -> None:
        check_init(locals())
        super().__init__(
            low=low,
            high=high,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            resident=resident,
        )
        check_integer("data_seed", data_seed, 0)
        self.variation, self.source, self.root, self.download = name, source, root, download
        self.data_seed = data_seed
        packaged = source == "digits" and name not in SHAPES
        usual = (1000, 300, 497) if packaged else SIZES.get(name, USUAL_SIZES)
        given = {"train": train_size, "val": val_size, "test": test_size}
        pairs = zip(given.items(), usual, strict=True)
        self.sizes = {split: size if count is None else count for (split, count), size in pairs}
        for split, count in self.sizes.items():
            check_integer(f"{split}_size", count, int(split != "val"))
        there = 1797 if source == "digits" else 70_000
        if name not in SHAPES and sum(self.sizes.values()) > there:
            raise ValueError(
                f"Expected `train_size`, `val_size` and `test_size` of at most {there} digits in all but got"
                f" {', '.join(map(str, self.sizes.values()))}"
            )
        self.class_names = SHAPES.get(name, tuple("0123456789"))
        self.num_classes = len(self.class_names)

    def configure_digits(self) -> ImageDataModule:
        """Build the source of digits: its ``load`` returns bytes [N, 1, 28 + 2P, 28 + 2P] and labels [N]."""
        if self.source == "mnist":
            return MNIST(self.root, self.download, val_size=0, pad=0)
        return Digits(val_size=0)

    def prepare_data(self) -> None:
        """Find the digits, and download MNIST's files if they are missing and needed."""
        if self.variation not in SHAPES:
            self.configure_digits().prepare_data()

    def load(self, stage: str) -> dict[str, Batch]:
        """Generate the images of a stage."""
        wanted = ("test",) if stage in ("test", "predict") else ("train", "val")
        return {split: self._generate(split) for split in wanted if self.sizes[split]}

    def _generate(self, split: str) -> Batch:
        generator = keyed_generator(self.data_seed, self.variation, split)
        if self.variation in SHAPES:
            images, labels = _shapes(self.variation, self.sizes[split], generator)
            return images[:, None], labels
        digits, labels = self._digits(split)
        if "rot" in self.variation:
            digits = _turned(digits, generator)
        if self.variation == "bg-rand-gen":
            noise = torch.randint(0, 256, digits.shape, generator=generator, dtype=torch.uint8)
            digits = _over(digits, noise)
        elif "img" in self.variation:
            digits = _over(digits, patches(len(digits), generator))
        return digits[:, None], labels

    def _digits(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the digits of a split: bytes [N, 28, 28] and labels [N]."""
        source = self.configure_digits()
        parts = [source.load("fit")["train"], source.load("test")["test"]]
        images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        order = torch.randperm(len(labels), generator=keyed_generator(self.data_seed))
        first = {"train": 0, "val": self.sizes["train"], "test": len(labels) - self.sizes["test"]}[split]
        chosen = order[first : first + self.sizes[split]]
        margin = (images.shape[-1] - 28) // 2
        return images[chosen, 0, margin : margin + 28, margin : margin + 28], labels[chosen]


def _shapes(name: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Generate shapes: bytes [N, 28, 28] and labels [N]."""
    if name == "convex-gen":
        labels = torch.randint(0, 2, (count,), generator=generator)
        images = torch.empty(count, 28, 28, dtype=torch.bool)
        for label, make in enumerate((shapes.other_regions, shapes.convex_regions)):
            images[labels == label] = make(int((labels == label).sum()), generator)
        return images.to(torch.uint8) * 255, labels
    if name == "rect-gen":
        boxes = shapes.rectangles(count, generator)
        images = shapes.outlines(boxes).to(torch.uint8) * 255
    else:
        boxes = shapes.rectangles(count, generator, shortest=10, difference=5)
        inside, outside = patches(count, generator), patches(count, generator)
        images = torch.where(shapes.filled(boxes), inside, outside)
    return images, (boxes[:, 3] > boxes[:, 2]).long()


def _turned(digits: Tensor, generator: torch.Generator) -> Tensor:
    """Turn digits by random angles: bytes [N, H, W] -> [N, H, W]."""
    angles = 2 * pi * torch.rand(len(digits), generator=generator)
    # A thousand at a time, as the grid of all would take 400 MB.
    pairs = zip(torch.split(digits, 1000), torch.split(angles, 1000), strict=True)
    parts = [turned(images[:, None].float(), by)[:, 0].round().to(torch.uint8) for images, by in pairs]
    return torch.cat(parts)


def _over(digits: Tensor, background: Tensor) -> Tensor:
    """Put white ink over a background: bytes [N, H, W] both."""
    covered = (255 - digits.int()) * (255 - background.int())
    return (255 - (covered + 127) // 255).to(torch.uint8)


def patches(count: int, generator: torch.Generator) -> Tensor:
    """Cut random patches from the two photographs that scikit-learn packages: bytes [N, 28, 28]."""
    photographs, place = _photographs(), torch.arange(28)
    kinds, height, width = photographs.shape

    def candidates() -> Tensor:
        limits = (kinds, height - 27, width - 27)
        which, top, left = (torch.randint(0, end, (1000, 1, 1), generator=generator) for end in limits)
        found = photographs[which, top + place[:, None], left + place]
        return found[found.flatten(1).float().std(dim=1) > CONTRAST]

    return shapes.collect(candidates, count)


@cache
def _photographs() -> Tensor:
    """Load the two photographs in grey, bytes [2, 427, 640]."""
    from sklearn.datasets import load_sample_images

    weights = torch.tensor(LUMA)
    images = torch.stack([torch.from_numpy(image.copy()) for image in load_sample_images().images])
    return (images.float() @ weights).round().to(torch.uint8)
