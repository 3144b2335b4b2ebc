"""Photographs in folders, one for each class, of which a few batches at a time are in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from pl_losses.core.validation import check_counts, check_init, check_not_negative
from pl_losses.data.download import data_root
from pl_losses.data.file_loader import Crop, FileLoader, Reader, letters, name_of
from pl_losses.data.images import ImageDataModule
from pl_losses.data.loader import Batch, BatchLoader

# Principal components of ImageNet's colours [channels, 3] in [0, 1], each times the root of its variance.
COLOURS = [
    [-0.5675 * 0.2175, 0.7192 * 0.0188, 0.4009 * 0.0045],
    [-0.5808 * 0.2175, -0.0045 * 0.0188, -0.8140 * 0.0045],
    [-0.5836 * 0.2175, -0.6948 * 0.0188, 0.4203 * 0.0045],
]


class ImageFolders(ImageDataModule):
    """Images in ``root/train/CLASS`` and ``root/val/CLASS``, read and cropped by worker processes.

    This is the layout of torchvision's ``ImageFolder``, and of ImageNet as its files unpack and as
    ``torchvision.datasets.ImageNet`` leaves them. The test images are in ``root/test/CLASS``, or else they
    are those of ``val``. Files may be of any size and kind that Pillow reads. They are turned upright, and
    read as sRGB. What is drawn for an image depends on the seed, the epoch and the image only: not on the
    number of workers or ranks. So a fit that goes on inside an epoch sees the same batches. In evaluation
    each rank has its own part, and every image is seen once.

    The attribute ``damaged`` lists what was wrong with the files that were left out.

    Args:
        root: Folder of the folders. Default: the one that PL_LOSSES_DATA names.
        size: Height and width of an image as the model sees it, in pixels.
        scales: Smallest and largest length of the shorter side, in pixels. A training image is scaled to a
            random length between them, and cropped at a random place. Default: its central square is seen.
        flip: Whether half of the training images are mirrored.
        colour: How much the colours of a training image change: the standard deviation of the shift along
            each principal component of ImageNet's colours, 0.1 in Krizhevsky et al. 2012. 0 for no change.
        transform: Another change of the training images, such as one of ``torchvision.transforms.v2``. It
            takes and returns bytes [B, C, ``size``, ``size``] on the Trainer's device. Torch's global random
            numbers start from a seed of the batch there.
        test_scale: Length of the shorter side in a test. Default: ``size``, as in validation.
        whole: Whether a test sees the whole image, one in a batch, not its central square. Where the ranks
            cannot share the images evenly, some see one more, which is not counted.
        grey: Whether images have one channel.
        low: Value of pixel 0.
        high: Value of pixel 255; pixel p becomes ``low + (high - low) * (p / 255 - mean)``.
        mean: Mean of each channel, in [0, 1], to subtract it. Default: 0.
        on_error: Whether a damaged file is an error, or is left out of its batch: "refuse" or "skip". If all
            files of a batch are damaged, another image stands in for it: it is trained on, and is not counted
            in evaluation. A prediction refuses damaged files: it is of all of them.
        num_workers: Processes that read images for this rank; 0 to read them in this one. Default: one for
            each core, shared by the ranks of the machine.
        prefetch_factor: Batches that each of them reads ahead.
        persistent_workers: Whether they stay from one epoch to the next.
        batch_size: Training images per step and rank.
        eval_batch_size: Images per step and rank in evaluation. Default: ``batch_size``.
        seed: Seed of the order, and of all that is drawn.

    Raises:
        ValueError: If an argument is out of range, or two do not go together. Batches raise one that names a
            damaged file.
    """

    default_root: ClassVar[str | None] = None

    def __init__(
        self,
        root: str | Path | None = None,
        size: int = 224,
        *,
        scales: list[int] | None = None,
        flip: bool = False,
        colour: float = 0.0,
        transform: nn.Module | Callable[[Tensor], Tensor] | None = None,
        test_scale: int | None = None,
        whole: bool = False,
        grey: bool = False,
        low: float = 0.0,
        high: float = 1.0,
        mean: list[float] | None = None,
        on_error: Literal["refuse", "skip"] = "refuse",
        num_workers: int | None = None,
        prefetch_factor: int = 2,
        persistent_workers: bool = True,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        check_init(locals())
        check_counts(size=size, test_scale=test_scale, prefetch_factor=prefetch_factor)
        check_counts(0, num_workers=num_workers)
        check_not_negative(colour=colour)
        if scales is not None and (len(scales) != 2 or not size <= scales[0] <= scales[1]):
            raise ValueError(
                f"Expected `scales` to be two lengths in order, of at least `size` {size}, but got {scales}"
            )
        if test_scale is not None and test_scale < size:
            raise ValueError(f"Expected `test_scale` to be at least `size` {size} but got {test_scale}")
        channels = 1 if grey else 3
        if mean is not None and len(mean) != channels:
            raise ValueError(f"Expected `mean` of {channels} channels but got {mean}")
        if grey and colour:
            raise ValueError(f"Expected `colour` to be 0 with `grey` but got {colour}")
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        super().__init__(
            low=low, high=high, batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed
        )
        self.root = data_root(root or self.default_root)
        self.colour, self.transform, self.on_error = colour, transform, on_error
        self.shift = low - (high - low) * torch.tensor(mean or [0.0]).view(-1, 1, 1)
        self.crops = {
            "train": Crop(size, (scales[0], scales[1]) if scales else None, flip, grey=grey),
            "val": Crop(size, grey=grey),
            "test": Crop(test_scale or size, whole=whole, grey=grey),
        }
        self.num_workers = num_workers
        self.workers = {"prefetch_factor": prefetch_factor, "persistent_workers": persistent_workers}
        self.input_shape = (channels, size, size)
        self.damaged: list[str] = []
        self._loaders: list[FileLoader] = []

    def load(self, stage: str) -> dict[str, Batch]:
        """Return the names of the files as bytes [N, L], which zeros fill up, and the labels [N].

        Raises:
            FileNotFoundError: If there are no folders, or no images of a class to train on.
            ValueError: If the classes of two splits differ.
        """
        from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

        train, val, test = (self.root / name for name in ("train", "val", "test"))
        evaluated = {"val": val} if stage in ("fit", "validate") else {"test": test if classes(test) else val}
        folders = {split: folder for split, folder in evaluated.items() if folder.is_dir()}
        if stage == "fit":
            folders["train"] = train
        for folder in folders.values():
            if not classes(folder):
                raise FileNotFoundError(
                    f"Expected `root` to hold {folder.name} with a folder for each class but {folder} is no"
                    " folder, or has none: set `root` or the environment variable PL_LOSSES_DATA to another"
                    " one; files of ImageNet are sorted by `torchvision.datasets.ImageNet(root, 'val')`"
                )
        if stage == "fit" and not val.is_dir():
            rank_zero_warn(f"Nothing is validated, since there is no folder {val}")
        names = classes(train) or [name for folder in folders.values() for name in classes(folder)]
        places = {name: place for place, name in enumerate(names)}
        found: dict[str, Batch] = {}
        for split, folder in folders.items():
            if unknown := [name for name in classes(folder) if name not in places]:
                raise ValueError(f"Expected the classes of {train} in {folder} but got {unknown[0]!r}")
            samples = make_dataset(folder, places, extensions=IMG_EXTENSIONS, allow_empty=True)
            if not samples:
                raise FileNotFoundError(f"Expected images in the folders of {folder} but there are none")
            empty = sorted({*places.values()} - {label for _, label in samples})
            if empty and split == "train":
                raise FileNotFoundError(
                    f"Expected images of each class but there are none in {folder / names[empty[0]]}"
                )
            if empty:
                rank_zero_warn(f"No images of the class {names[empty[0]]!r} are in {folder}")
            paths = letters([os.path.relpath(path, self.root) for path, _ in samples])
            found[split] = paths, torch.tensor([label for _, label in samples])
        self.num_classes, self.class_names = len(names), in_words(names)
        return found

    def predict_names(self) -> list[str]:
        """Return the names of the test images, in order."""
        return [name_of(one) for one in self.tensors["test"][0]]

    def make_loader(self, split: str, **options: Any) -> BatchLoader:
        """Make the loader of a split; its workers start with the first batch."""
        number = self.num_workers
        if number is None:
            number = max(1, cores() // (self.trainer.num_devices if self.trainer else 1))
        crop = self.crops[split]
        if crop.whole:
            options |= {"batch_size": 1, "pad": True}
        reader = self.make_reader(split, crop)
        workers = self.workers | {"num_workers": number}
        loader = FileLoader(reader, device=self._device, damaged=self.note, workers=workers, **options)
        self._loaders.append(loader)
        return loader

    def make_reader(self, split: str, crop: Crop) -> Reader:
        """Make what reads a batch of a split."""
        return Reader(self.root, self.tensors[split], crop, self.seed)

    def note(self, messages: list[str], left: int) -> None:
        """Note damaged files of a batch that is now of ``left`` images; refuse them if asked to.

        Raises:
            ValueError: If they are refused, or no image of the split is left.
        """
        if self.on_error == "refuse":
            raise ValueError(f'{messages[0]} (`on_error` "skip" leaves such files out)')
        if self.trainer is not None and self.trainer.predicting:
            raise ValueError(f"{messages[0]}: a prediction is of all files, take it out of the folder")
        if not left:
            raise ValueError(f"{messages[0]}, and no other image is whole either")
        if not self.damaged:
            rank_zero_warn(f"{messages[0]}: such files are left out; `damaged` of the data lists them")
        self.damaged += [one for one in messages if one not in self.damaged]

    def train_transform(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Change bytes [B, C, H, W] by ``transform``, scale them, and shift their colours."""
        images, labels, normals = batch
        if self.transform is not None:
            cuda = [images.device] if images.is_cuda else []
            with torch.random.fork_rng(cuda):
                torch.manual_seed(generator.initial_seed())
                images = self.transform(images)
            if images.dtype != torch.uint8:
                raise TypeError(f"Expected `transform` to return bytes, torch.uint8, but got {images.dtype}")
        images, labels = self.eval_transform((images, labels, normals), generator)
        if self.colour:
            axes = torch.tensor(COLOURS, device=images.device) * (self.colour * (self.high - self.low))
            images += (normals @ axes.T)[:, :, None, None]
        return images, labels

    def eval_transform(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Scale bytes [B, C, H, W]."""
        images, labels, _ = batch
        # Pixels came with their channels side by side.
        values = images.to(torch.float32, memory_format=torch.contiguous_format)
        shift = self.shift.to(values.device, non_blocking=True)
        return values.mul_((self.high - self.low) / 255).add_(shift), labels

    def teardown(self, stage: str) -> None:
        """End the workers."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def on_exception(self, exception: BaseException) -> None:
        """End the workers."""
        self.teardown("")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def classes(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted; none if there is no such folder."""
    return sorted(one.name for one in os.scandir(folder) if one.is_dir()) if folder.is_dir() else []


def in_words(names: list[str]) -> tuple[str, ...]:
    """Return ImageNet's names of its 1000 classes, if these are its synsets; else the names as they are."""
    if len(names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names):
        from torchvision.models import AlexNet_Weights

        return tuple(AlexNet_Weights.DEFAULT.meta["categories"])
    return tuple(names)
