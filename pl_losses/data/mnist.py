"""MNIST from its four original files: found, checked by their published checksums, or downloaded."""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_image

from pl_losses.core.files import checksum
from pl_losses.core.validation import check_init, check_integer
from pl_losses.data.download import data_root, download
from pl_losses.data.images import ImageDataModule
from pl_losses.data.loader import Batch
from pl_losses.data.module import Resident, train_and_val

# MD5 of the four unpacked files, which are published for the packed ones' contents.
UNPACKED = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
ADVICE = "delete it and run again, or copy the original file there"


class MNIST(ImageDataModule):
    """The 60 000 training and 10 000 test digits, padded to 32x32 as LeNet-5 wants them.

    The files are looked for in ``root``, ``root/mnist`` and ``root/MNIST/raw``, packed or unpacked, and
    verified by their checksums. Missing files of MNIST are downloaded into ``root/MNIST/raw`` when a Trainer
    (or you) calls ``prepare_data``. The files of another set have no checksums. So all its files must be in
    one folder. A packed and an unpacked file must have the same content.

    Args:
        root: Folder with the files. Default: the environment variable PL_LOSSES_DATA, else
            ``~/.cache/pl_losses``.
        download: Whether to download what is missing.
        val_size: Number of training images kept for validation, drawn by ``seed``; 0 trains on all 60 000.
        pad: Width of the background added on each side, in pixels.
        low: Value of the background.
        high: Value of full ink.
        distort: Whether to draw a random affine map per training image; a mapping gives the ranges, see
            :class:`~pl_losses.data.transforms.RandomAffine`.
        limit: Number of training images to use, the first ones. Default: all.
        batch_size: Training images per step and rank.
        eval_batch_size: Images per step and rank in evaluation. Default: 1000, or ``batch_size`` if that is
            larger.
        seed: Seed of the split, the order and the distortions.
        resident: Where the images lie, see :class:`~pl_losses.data.module.TensorDataModule`.
        source: "mnist" for MNIST's own files only; "any" to read another set of 28x28 images in ten
            classes under the same names, such as Fashion-MNIST, without checksums or downloads.

    Raises:
        ValueError: If an argument is out of range or none of its choices.
    """

    num_classes = 10
    class_names = tuple("0123456789")

    def __init__(
        self,
        root: str | Path | None = None,
        download: bool = True,
        val_size: int = 5000,
        *,
        pad: int = 2,
        low: float = -0.1,
        high: float = 1.175,
        distort: bool | dict[str, float] = False,
        limit: int | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        seed: int = 0,
        resident: Resident = "auto",
        source: Literal["mnist", "any"] = "mnist",
    ) -> None:
        check_init(locals())
        check_integer("val_size", val_size, 0, most=59_999 if source == "mnist" else None)
        check_integer("pad", pad, 0)
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
        self.root = data_root(root)
        self.source = source
        self.download = download and source == "mnist"
        self.val_size = val_size
        self.pad = pad
        self.input_shape = (1, 28 + 2 * pad, 28 + 2 * pad)

    def prepare_data(self) -> None:
        """Find the files, and download those that are missing.

        Raises:
            FileNotFoundError: If files are missing and not to be downloaded.
            OSError: If no mirror gives a file with the right checksum, or the folder cannot be written.
        """
        mirrors, resources = _published()
        missing = self._missing_files()
        if missing and not self.download:
            raise FileNotFoundError(self._missing(missing))
        for name in missing:
            addresses = [mirror + name for mirror in mirrors]
            path = self.root / "MNIST" / "raw" / name
            download(
                addresses, path, algorithm="md5", checksum=resources[name], contents="the four MNIST files"
            )

    def complete(self) -> bool:
        """Tell whether all four files are there; damage shows when they are read."""
        return not self._missing_files()

    def load(self, stage: str) -> dict[str, Batch]:
        """Return the images and labels of a stage.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged.
        """
        if stage in ("test", "predict"):
            return {"test": self._read("t10k", 10_000)}
        images, labels = self._read("train", 60_000)
        if self.val_size >= len(labels):
            raise ValueError(f"Expected `val_size` below the {len(labels)} images but got {self.val_size}")
        rows = train_and_val(len(labels), self.val_size, limit=self.limit, seed=self.seed)
        return {split: (images[chosen], labels[chosen]) for split, chosen in rows.items()}

    def _read(self, part: str, samples: int) -> Batch:
        names = (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz")
        found = {name: paths for name in names if (paths := self._find(name))}
        if len(found) < len(names):
            raise FileNotFoundError(self._missing([name for name in names if name not in found]))
        paths = [found[name][0] for name in names]
        if self.source == "any":
            images, labels = _read_all(found[names[0]], (None, 28, 28)), _read_all(found[names[1]], (None,))
            if len(images) != len(labels):
                raise ValueError(
                    f"Expected a label for each image but {paths[0]} has {len(images)} and {paths[1]} has"
                    f" {len(labels)}"
                )
        else:
            known = {**_published()[1], **UNPACKED}
            images = read_idx(paths[0], (samples, 28, 28), known[paths[0].name])
            labels = read_idx(paths[1], (samples,), known[paths[1].name])
        return pad_image(images[:, None], (self.pad,) * 4), labels.long()

    def _missing_files(self) -> list[str]:
        return [name for name in _published()[1] if not self._find(name)]

    def _find(self, name: str) -> list[Path]:
        """Find the existing files of a name, packed ones first."""
        folders = (self.root, self.root / "mnist", self.root / "MNIST" / "raw")
        there = [[path for path in _both(folder, name) if path.is_file()] for folder in folders]
        if self.source == "mnist":
            return [path for paths in there for path in paths]
        # Without checksums only the folder shows which files belong together.
        parts = list(_published()[1])
        used = (any(path.is_file() for part in parts for path in _both(folder, part)) for folder in folders)
        return next((paths for paths, some in zip(there, used, strict=True) if some), [])

    def _missing(self, names: list[str]) -> str:
        together = " beside the others" if self.source == "any" else ""
        return (
            f"Expected `root` to hold the MNIST files {', '.join(names)}{together} but {self.root},"
            f" {self.root / 'mnist'} and {self.root / 'MNIST' / 'raw'} lack them: set `root` or the"
            " environment variable PL_LOSSES_DATA to the folder that has them, or call `prepare_data` with"
            " `download=True`"
        )


def read_idx(path: Path, shape: tuple[int | None, ...], md5: str | None = None) -> Tensor:
    """Read one file of bytes in the format of MNIST.

    Args:
        path: The file, packed if its name ends in ``.gz``.
        shape: Required shape of the file; None for a dimension of any size.
        md5: Published checksum of the file itself, packed or unpacked.

    Returns:
        uint8, of ``shape``.

    Raises:
        ValueError: If the file is damaged, or holds something else.
    """
    data = path.read_bytes()
    if md5 is not None and (found := checksum(data, "md5")) != md5:
        raise ValueError(
            f"Expected {path} with the published MD5 {md5} but got {found}: {ADVICE}; to read another set"
            ' under this name, set `source` to "any"'
        )
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"Expected {path} to be a complete gzip file but got: {error}: {ADVICE}"
            ) from error
    # Two zero bytes, the type (8: unsigned bytes), the number of dimensions, and each of them in four bytes.
    magic, header = bytes([0, 0, 8, len(shape)]), data[: 4 + 4 * len(shape)]
    sizes = [int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4)]
    fits = len(sizes) == len(shape) and all(
        known in (None, size) for known, size in zip(shape, sizes, strict=True)
    )
    if header[:4] != magic or not fits:
        wanted = ["any" if size is None else size for size in shape]
        raise ValueError(
            f"Expected {path} to hold bytes of shape {wanted}, header {magic.hex()} and these sizes, but its"
            f" header is {header.hex()}: {ADVICE}"
        )
    if len(data) != len(header) + prod(sizes):
        raise ValueError(
            f"Expected {path} of {len(header) + prod(sizes)} bytes but got {len(data)}: {ADVICE}"
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=len(header)).view(sizes)


def _published() -> tuple[list[str], dict[str, str]]:
    """Return the mirrors' addresses, and each file's name with its checksum, as torchvision lists them."""
    from torchvision.datasets import MNIST as Published

    return list(Published.mirrors), dict(Published.resources)


def _both(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / name, folder / name.removesuffix(".gz")


def _read_all(paths: list[Path], shape: tuple[int | None, ...]) -> Tensor:
    """Read a file, packed and unpacked: both must be the same, as nothing says which one is wanted."""
    contents = [read_idx(path, shape) for path in paths]
    if not all(torch.equal(contents[0], content) for content in contents):
        raise ValueError(
            f"Expected {' and '.join(map(str, paths))} to hold the same but they differ: delete one of them"
        )
    return contents[0]
