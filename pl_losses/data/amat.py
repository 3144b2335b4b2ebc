"""The original files of Larochelle et al. 2007, ``.amat``: rows of 784 pixels and a label."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch

from pl_losses.core.files import checksum, written_whole
from pl_losses.core.validation import check_counts, check_init
from pl_losses.data.loader import Batch
from pl_losses.data.module import Resident, TensorDataModule

# In these sets images lie on their side; bg-img-rot, whose names have both words, is not one of them.
SIDEWAYS = ("all_rotation_normalized", "background_random", "background_images")


class Amat(TensorDataModule):
    """Images 28x28 from a training and a test file in ``.amat`` format.

    Reading text takes ten seconds and more for 50 000 images. So a binary copy is kept beside each file
    (``<file>.npy``). It has the checksums of the file and of itself, and is used only if both are right.

    Args:
        train_file: Such as "mnist_all_rotation_normalized_float_train_valid.amat".
        test_file: Such as "mnist_all_rotation_normalized_float_test.amat".
        val_size: Number of rows at the end of the training file that are for validation; 0 for none.
            Default: a sixth.
        num_classes: Number of classes. Default: as many as the training file has; its labels must then be 0,
            1, 2 and so on without a gap.
        sideways: Whether to transpose the images. Default: as the file's name implies.
        cache: Whether to keep the copies.
        batch_size: Training images per step and rank.
        eval_batch_size: Images per step and rank in evaluation. Default: 1000, or ``batch_size`` if that is
            larger.
        seed: Seed of the order.
        resident: Where the images lie, see :class:`~pl_losses.data.module.TensorDataModule`.

    Raises:
        ValueError: If an argument is out of range, or the files' names do not belong together.
    """

    input_shape = (1, 28, 28)

    def __init__(
        self,
        train_file: str | Path,
        test_file: str | Path,
        *,
        val_size: int | None = None,
        num_classes: int | None = None,
        sideways: bool | None = None,
        cache: bool = True,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        seed: int = 0,
        resident: Resident = "auto",
    ) -> None:
        check_init(locals())
        super().__init__(batch_size, eval_batch_size=eval_batch_size, seed=seed, resident=resident)
        check_counts(0, val_size=val_size)
        self.files = {"train_file": Path(train_file).expanduser(), "test_file": Path(test_file).expanduser()}
        train, test = self.files.values()
        if "test" in train.name and "train" not in train.name and "train" in test.name:
            raise ValueError(
                f"Expected `train_file` to be for training and `test_file` for the test but got {train} and"
                f" {test}: they are interchanged"
            )
        if sideways is None and _sideways(train) != _sideways(test):
            raise ValueError(
                "Expected `train_file` and `test_file` of one set but by their names one of"
                f" {train} and {test} has images that lie on their side: set `sideways` if they are alike"
            )
        self.sideways = _sideways(train) if sideways is None else sideways
        self.val_size, self.num_classes, self.cache = val_size, num_classes, cache

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
            found = sorted({*labels.tolist()})
            if found != list(range(len(found))):
                raise ValueError(
                    f"Expected labels 0..K-1 in {self.files['train_file']}, each of them at least once, but"
                    f" got {found[:20]}: number classes from 0 on, or set `num_classes`"
                )
            self.num_classes = len(found)
        return splits

    def _read(self, name: str) -> Batch:
        path = self.files[name]
        rows = torch.from_numpy(read_amat(path, self.cache))
        images, labels = rows[:, :-1].view(-1, 1, 28, 28), rows[:, -1]
        if not torch.equal(labels, labels.round()):
            raise ValueError(f"Expected the last column of {path} to hold labels but it has fractions")
        if self.sideways:
            images = images.transpose(2, 3)
        return images.contiguous(), labels.long()


def _sideways(path: Path) -> bool:
    both = "background_images_rotation" in path.name
    return any(word in path.name for word in SIDEWAYS) and not both


def read_amat(path: Path, cache: bool = True) -> np.ndarray:
    """Read rows of 785 numbers, float32, from a text file or its binary copy.

    Args:
        path: The text file.
        cache: Whether to read and write a binary copy beside it.

    Raises:
        ValueError: If the file does not hold rows of 785 numbers.
    """
    copy = path.with_name(path.name + ".npy")
    if cache and (found := _copied(copy, path)) is not None:
        return found
    text = path.read_bytes()
    rows = 0
    for number, line in enumerate(text.splitlines(), start=1):
        columns = len(line.split())
        if columns not in (0, 785):
            raise ValueError(
                f"Expected {path} to hold rows of 785 numbers but got {columns} in line {number}"
            )
        rows += columns > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # For text that is no number, refused below.
        try:
            numbers = np.fromstring(text, dtype=np.float32, sep=" ")
        except ValueError:  # A newer NumPy raises it instead, without the file's name.
            numbers = np.empty(0, dtype=np.float32)
    if not rows or numbers.size != rows * 785:
        raise ValueError(f"Expected {path} to hold rows of 785 numbers but got other text, or none")
    table = numbers.reshape(rows, 785)
    if cache:
        try:
            with written_whole(copy) as file:
                np.save(file, table)
                np.save(file, np.array([checksum(text), checksum(table.data)]))
        except OSError as error:
            warnings.warn(f"No copy of {path} is kept: {error}", stacklevel=2)
    return table


def _copied(copy: Path, path: Path) -> np.ndarray | None:
    """Read the table in a copy of a file; None if the copy is missing, damaged or of another file."""
    try:
        with copy.open("rb") as file:
            table: np.ndarray = np.load(file)
            known = np.load(file).tolist()
        return table if known == [checksum(path), checksum(table.data)] else None
    except Exception:  # NumPy raises nearly anything for a damaged file.
        return None
