"""The original files of Larochelle et al. 2007, ``.amat``: rows of 784 pixels and a label."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import torch

from pl_losses.data.loader import Batch
from pl_losses.data.module import Resident, TensorDataModule, check_integer

# Of these sets the images lie on their side; bg-img-rot, whose names have both words, is none of them.
SIDEWAYS = ("all_rotation_normalized", "background_random", "background_images")


class Amat(TensorDataModule):
    """Images 28x28 from a training and a test file in ``.amat`` format.

    Reading text takes a minute for 50 000 images, so that a copy in binary is kept beside each file
    (``<file>.npy``), and read as long as it is newer.

    Args:
        train_file: Such as "mnist_all_rotation_normalized_float_train_valid.amat".
        test_file: Such as "mnist_all_rotation_normalized_float_test.amat".
        val_size: The last this many rows of the training file are for validation; 0 for none. Default: a
            sixth.
        num_classes: Number of classes. Default: one more than the largest label of the training file.
        sideways: Whether to transpose the images. Default: as the file's name tells.
        cache: Whether to keep the copies.
        batch_size: Training images per step and rank.
        eval_batch_size: Images per step and rank in evaluation. Default: 1000, or ``batch_size`` if that is
            larger.
        seed: Seed of the order.
        resident: Where the images lie, see :class:`~pl_losses.data.module.TensorDataModule`.

    Raises:
        ValueError: If an argument is out of range.
    """

    input_shape = (1, 28, 28)

    def __init__(
        self,
        train_file: str,
        test_file: str,
        val_size: int | None = None,
        num_classes: int | None = None,
        sideways: bool | None = None,
        cache: bool = True,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        seed: int = 0,
        resident: Resident = "auto",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, resident)
        if val_size is not None:
            check_integer("val_size", val_size, 0)
        self.files = {"train_file": Path(train_file).expanduser(), "test_file": Path(test_file).expanduser()}
        self.val_size, self.num_classes, self.sideways, self.cache = val_size, num_classes, sideways, cache

    def prepare_data(self) -> None:
        """Find the files.

        Raises:
            FileNotFoundError: If one is missing.
        """
        for name, path in self.files.items():
            if not path.is_file():
                raise FileNotFoundError(
                    f"Expected `{name}` to be an .amat file but there is no {path}: the sets of Larochelle et"
                    " al. 2007 are not downloaded, bring them yourself"
                )

    def load(self, stage: str) -> dict[str, Batch]:
        """Return the images [N, 1, 28, 28] and labels [N] of a stage.

        Raises:
            ValueError: If a file is damaged, or ``val_size`` leaves no image to train on.
        """
        if stage in ("test", "predict"):
            return {"test": self._read("test_file")}
        images, labels = self._read("train_file")
        val_size = len(labels) // 6 if self.val_size is None else self.val_size
        if val_size >= len(labels):
            raise ValueError(
                f"Expected `val_size` below the {len(labels)} rows of `train_file` but got {val_size}"
            )
        first = len(labels) - val_size
        splits: dict[str, Batch] = {"train": (images[:first], labels[:first])}
        if val_size:
            splits["val"] = (images[first:], labels[first:])
        if self.num_classes is None:
            self.num_classes = int(labels.max()) + 1
        return splits

    def _read(self, name: str) -> Batch:
        path = self.files[name]
        rows = torch.from_numpy(read_amat(path, self.cache))
        images, labels = rows[:, :-1].view(-1, 1, 28, 28), rows[:, -1]
        if not torch.equal(labels, labels.round()):
            raise ValueError(f"Expected the last column of {path} to hold labels but it has fractions")
        both = "background_images_rotation" in path.name
        sideways = any(word in path.name for word in SIDEWAYS) and not both
        if sideways if self.sideways is None else self.sideways:
            images = images.transpose(2, 3)
        return images.contiguous(), labels.long()


def read_amat(path: Path, cache: bool = True) -> np.ndarray:
    """Rows of 785 numbers, float32, from a text file or its copy in binary.

    Args:
        path: The text file.
        cache: Whether to read, and write, a copy in binary beside it.

    Raises:
        ValueError: If the file does not hold rows of 785 numbers.
    """
    copy = path.with_name(path.name + ".npy")
    if cache and copy.is_file() and copy.stat().st_mtime >= path.stat().st_mtime:
        found: np.ndarray | None = _copied(copy)
        if found is not None:
            return found
    with path.open(encoding="ascii", errors="replace") as file:
        columns = len(file.readline().split())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Of text that is no number, told below.
        try:
            numbers = np.fromfile(path, dtype=np.float32, sep=" ")
        except ValueError:  # So does a newer NumPy tell, without the file's name.
            raise ValueError(f"Expected {path} to hold rows of 785 numbers but got other text") from None
    rows = sum(1 for line in path.read_bytes().splitlines() if line.strip())
    if columns != 785 or numbers.size != rows * columns:
        raise ValueError(
            f"Expected {path} to hold rows of 785 numbers but got {columns} in the first, and {numbers.size}"
            f" in {rows} rows"
        )
    table = numbers.reshape(rows, columns)
    if cache:
        try:
            _keep(copy, table)
        except OSError as error:
            warnings.warn(f"No copy of {path} is kept: {error}", stacklevel=2)
    return table


def _copied(copy: Path) -> np.ndarray | None:
    """The table in a copy; None if it is damaged, so that the text is read again."""
    try:
        table: np.ndarray = np.load(copy)
    except (OSError, EOFError, ValueError):
        return None
    return table if table.ndim == 2 and table.shape[1] == 785 else None


def _keep(copy: Path, table: np.ndarray) -> None:
    """Write a copy beside and then put it in place: another process never reads half of one."""
    with NamedTemporaryFile(dir=copy.parent, prefix=copy.name, delete=False) as file:
        try:
            np.save(file, table)
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).chmod(0o644)
    Path(file.name).replace(copy)
