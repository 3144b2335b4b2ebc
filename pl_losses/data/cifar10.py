"""CIFAR-10 from its original files, checked by their published checksums."""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as pad_image

from pl_losses.core.files import checksum
from pl_losses.core.validation import check_counts, check_init, check_integer
from pl_losses.data.download import data_root
from pl_losses.data.loader import Batch
from pl_losses.data.module import Resident, TensorDataModule, train_and_val

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # Of the training pixels, scaled to 0..1.
ADVICE = "delete it and run again, or copy the original file there"


class CIFAR10(TensorDataModule):
    """The 50 000 training and 10 000 test images of ten classes, 32x32 in colour, normalised per channel.

    The files are looked for in ``root`` and ``root/cifar10``: the folder ``cifar-10-batches-py`` of the
    original Python version, or its archive. Each is checked by the published checksums. If none is there, the
    archive is downloaded when a Trainer (or you) calls ``prepare_data``.

    Args:
        root: Folder with the files. Default: the environment variable PL_LOSSES_DATA, else
            ``~/.cache/pl_losses``.
        download: Whether to download what is missing.
        val_size: Number of training images kept for validation, drawn by ``seed``; 0 trains on all 50 000.
        augment: Whether to draw a crop and a mirror image of each training image.
        crop: Height and width of the training crops; in evaluation images are whole.
        pad: Width of the black border that crops may reach into, in pixels.
        limit: Number of training images to use, the first ones. Default: all.
        batch_size: Training images per step and rank.
        eval_batch_size: Images per step and rank in evaluation. Default: 1000, or ``batch_size`` if that is
            larger.
        seed: Seed of the split, the order and the crops.
        resident: Where the images lie, see :class:`~pl_losses.data.module.TensorDataModule`.

    Raises:
        ValueError: If an argument is out of range.
    """

    num_classes = 10
    class_names = CLASSES

    def __init__(
        self,
        root: str | Path | None = None,
        download: bool = True,
        *,
        val_size: int = 5000,
        augment: bool = True,
        crop: int = 32,
        pad: int = 4,
        limit: int | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        seed: int = 0,
        resident: Resident = "auto",
    ) -> None:
        check_init(locals())
        check_integer("val_size", val_size, 0, most=49_999)
        check_integer("pad", pad, 0)
        check_integer("crop", crop, 1, most=32 + 2 * pad)
        check_counts(limit=limit)
        super().__init__(batch_size, eval_batch_size=eval_batch_size, seed=seed, resident=resident)
        self.root = data_root(root)
        self.download = download
        self.val_size = val_size
        self.augment = augment
        self.crop = crop
        self.pad = pad
        self.limit = limit
        self.input_shape = (3, crop, crop) if augment else (3, 32, 32)

    def prepare_data(self) -> None:
        """Find the files, and download them if there are none.

        Raises:
            FileNotFoundError: If there are none and they are not to be downloaded.
            OSError: If the download fails, or gives a file with another checksum.
        """
        if self.complete():
            return
        if not self.download:
            raise FileNotFoundError(self._missing())
        from torchvision.datasets import CIFAR10 as Published

        try:
            Published(str(self.root), download=True)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"Could not download CIFAR-10 into {self.root} ({error}): {self._missing()}"
            ) from error

    def complete(self) -> bool:
        """Tell whether there are files; damage shows when they are read."""
        return self._found() is not None

    def load(self, stage: str) -> dict[str, Batch]:
        """Return the images and labels of a stage.

        Raises:
            FileNotFoundError: If there are no files.
            ValueError: If a file is damaged, or images are missing.
        """
        path = self._found()
        if path is None:
            raise FileNotFoundError(self._missing())
        if stage in ("test", "predict"):
            return {"test": self.read(path, "test")}
        images, labels = self.read(path, "train")
        rows = train_and_val(len(labels), self.val_size, limit=self.limit, seed=self.seed)
        return {split: (images[chosen], labels[chosen]) for split, chosen in rows.items()}

    def train_transform(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Crop and mirror the images if ``augment`` is set, then normalise them."""
        if self.augment:
            images, labels = batch
            batch = random_crops(pad_image(images, (self.pad,) * 4), self.crop, generator), labels
        return self.eval_transform(batch, generator)

    def eval_transform(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Normalise pixels 0..255 to mean 0 and standard deviation 1 per channel of the training set."""
        images, labels = batch
        mean, std = (torch.tensor(of, device=images.device).view(3, 1, 1) * 255 for of in (MEAN, STD))
        return images.float().sub_(mean).div_(std), labels

    def read(self, path: Path, split: str) -> Batch:
        """Read images uint8 [N, 3, 32, 32] and labels [N] of "train" or "test" from a folder or an archive.

        They are pickles, which are opened only if their checksums are right.
        """
        from torchvision.datasets import CIFAR10 as Published

        published = dict(Published.train_list if split == "train" else Published.test_list)
        images, labels = [], []
        for name, data in _files(path, list(published)):
            if (found := checksum(data, "md5")) != published[name]:
                raise ValueError(
                    f"Expected {path / name} with the published MD5 {published[name]} but got {found}:"
                    f" {ADVICE}"
                )
            content = pickle.loads(data, encoding="latin1")
            images.append(content["data"])
            labels += content["labels"]
        return torch.from_numpy(np.concatenate(images)).view(-1, 3, 32, 32), torch.tensor(labels)

    def _found(self) -> Path | None:
        names = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
        places = (folder / name for folder in (self.root, self.root / "cifar10") for name in names)
        return next((place for place in places if place.exists()), None)

    def _missing(self) -> str:
        return (
            f"Expected `root` to hold CIFAR-10 but {self.root} and {self.root / 'cifar10'} lack its files:"
            " set `root` or the environment variable PL_LOSSES_DATA to the folder that has them, or call"
            " `prepare_data` with `download=True`"
        )


class JPEGCopy(CIFAR10):
    """A copy of CIFAR-10 with a folder of JPEG files for each class, which lose detail.

    The folders are ``cifar10-jpeg/train`` and ``cifar10-jpeg/test`` in ``root``. Errors on these images are
    not those on CIFAR-10.
    """

    def _found(self) -> Path | None:
        place = self.root / "cifar10-jpeg"
        return place if all((place / split).is_dir() for split in ("train", "test")) else None

    def _missing(self) -> str:
        return f"Expected `root` to hold cifar10-jpeg/train and cifar10-jpeg/test but {self.root} does not"

    def read(self, path: Path, split: str) -> Batch:
        """Read images uint8 [N, 3, 32, 32] and labels [N] of "train" or "test"."""
        from torchvision.datasets import ImageFolder
        from torchvision.transforms.functional import pil_to_tensor

        images, labels = zip(*ImageFolder(str(path / split), pil_to_tensor), strict=True)
        return torch.stack(images), torch.tensor(labels)


CIFARS = {"cifar10": CIFAR10, "cifar10-jpeg": JPEGCopy}


def random_crops(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Cut a square from each image at a random place, half of them mirrored: one gather for the whole batch.

    Args:
        images: [B, C, H, W].
        size: Height and width of a crop.
        generator: Source of the random numbers, on the images' device.

    Returns:
        [B, C, size, size].
    """
    samples, device = len(images), images.device
    spare = torch.tensor([images.shape[-2] - size + 1, images.shape[-1] - size + 1, 2], device=device)
    draws = torch.rand(samples, 3, generator=generator, device=device).mul(spare).long()
    top, left, mirror = draws.unbind(1)
    steps = torch.arange(size, device=device)
    rows = top[:, None] + steps
    columns = left[:, None] + torch.where(mirror[:, None] > 0, size - 1 - steps, steps)
    every = torch.arange(samples, device=device)[:, None, None]
    # Indexed like this, the channels come last.
    return images[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _files(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for name in names:
            if not (path / name).is_file():
                raise FileNotFoundError(f"Expected {path} to hold {name}: copy the original file there")
            yield name, (path / name).read_bytes()
        return
    with tarfile.open(path) as archive:
        for name in names:
            member = archive.extractfile(f"cifar-10-batches-py/{name}")
            yield name, member.read() if member else b""
