"""Documents as bags of words: IMDB's labelled reviews, or a generated set that needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from pl_losses.core.validation import check_counts, check_init
from pl_losses.data.download import data_root
from pl_losses.data.loader import Batch
from pl_losses.data.module import Resident, TensorDataModule, train_and_val

Labels = NDArray[np.int64]


class BagOfWords(TensorDataModule):
    """Documents of two classes as zeros and ones for their most frequent words: [B, vocabulary].

    There are two sets. IMDB's reviews (Maas et al. 2011) have 25 000 documents for training and 25 000 for
    the test. They are read from ``labeledBow.feat`` of ``root/aclImdb/train`` and ``root/aclImdb/test`` (or
    ``root/train`` and ``root/test``), and never downloaded. Ratings above 5 are class 1. The generated set
    has 4 000 documents for training and 1 000 for the test. The frequencies of its words follow Zipf's law,
    up to a factor that depends on the class. In memory a document is the list of its words.

    Attributes:
        found: "imdb" or "synthetic", whichever is read.

    Args:
        source: "imdb", "synthetic", or "auto" for IMDB if its files are there, else the generated set.
        root: Folder with the files. Default: the environment variable PL_LOSSES_DATA, else
            ``~/.cache/pl_losses``.
        vocabulary: Number of words, the most frequent ones in the training documents.
        val_size: Number of training documents kept for validation, drawn by ``seed``; 0 trains on all.
        batch_size: Training documents per step and rank.
        eval_batch_size: Documents per step and rank in evaluation. Default: 1000, or ``batch_size`` if that
            is larger.
        seed: Seed of the split and the order; the generated documents do not depend on it.
        resident: Where the documents lie, see :class:`~pl_losses.data.module.TensorDataModule`.

    Raises:
        ValueError: If an argument is out of range, or a file is damaged.

    Example:
        >>> data = BagOfWords(source="synthetic", vocabulary=500)
        >>> data.setup("fit")
        >>> words, labels = next(iter(data.train_dataloader()))
        >>> words.shape, words.unique(), labels.shape
        (torch.Size([128, 500]), tensor([0., 1.]), torch.Size([128]))
    """

    num_classes = 2
    class_names = ("negative", "positive")
    pictures = False

    def __init__(
        self,
        source: Literal["auto", "imdb", "synthetic"] = "auto",
        root: str | Path | None = None,
        *,
        vocabulary: int = 10_000,
        val_size: int = 0,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        seed: int = 0,
        resident: Resident = "auto",
    ) -> None:
        check_init(locals())
        check_counts(vocabulary=vocabulary)
        check_counts(0, val_size=val_size)
        super().__init__(batch_size, eval_batch_size=eval_batch_size, seed=seed, resident=resident)
        self.root = data_root(root)
        self.vocabulary, self.val_size = vocabulary, val_size
        self.input_shape = (vocabulary,)
        # Having one of the two files is an accident, which prepare_data refuses.
        there = any(_find(self.root, part) for part in ("train", "test"))
        self.found = ("imdb" if there else "synthetic") if source == "auto" else source

    def prepare_data(self) -> None:
        """Find the files.

        Raises:
            FileNotFoundError: If IMDB's are missing.
        """
        for part in ("train", "test") if self.found == "imdb" else ():
            self._file(part)

    def load(self, stage: str) -> dict[str, Batch]:
        """Return the words and labels of all splits.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged, or ``val_size`` leaves nothing to train on.
        """
        if self.found == "imdb":
            parts = [read_labelled(self._file(part)) for part in ("train", "test")]
        else:
            parts = [generate(4000, 20_000, 0), generate(1000, 20_000, 1)]
        largest = max(documents.shape[1] for documents, _ in parts)
        for documents, labels in parts:
            documents.resize(len(labels), largest)
        (documents, labels), test = parts
        if self.val_size >= len(labels):
            raise ValueError(
                f"Expected `val_size` below {len(labels)}, all documents, but got {self.val_size}"
            )
        rows = train_and_val(len(labels), self.val_size, limit=None, seed=self.seed)
        splits = {name: (documents[own.numpy()], labels[own.numpy()]) for name, own in rows.items()}
        frequent = most_frequent(splits["train"][0], self.vocabulary)
        return {
            name: (_lists(documents[:, frequent]), torch.from_numpy(labels))
            for name, (documents, labels) in {**splits, "test": test}.items()
        }

    def eval_transform(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Turn lists of words [B, L], padded with -1, into zeros and ones [B, vocabulary]."""
        words, *rest = batch
        present = torch.zeros(len(words), self.vocabulary + 1, device=words.device)
        # Padding is counted in a last column, which is cut off.
        places = torch.where(words < 0, self.vocabulary, words).long()
        return (present.scatter_(1, places, 1.0)[:, :-1], *rest)

    def _file(self, part: str) -> Path:
        path = _find(self.root, part)
        if path is None:
            wanted = Path("aclImdb", part, "labeledBow.feat")
            raise FileNotFoundError(
                f"Expected `root` to hold {wanted} but {self.root} lacks it:"
                " set `root` or the environment variable PL_LOSSES_DATA to the folder that has aclImdb, or"
                " `source` to synthetic"
            )
        return path


def _find(root: Path, part: str) -> Path | None:
    # Both parts come from one folder.
    folder = root / "aclImdb" if (root / "aclImdb").is_dir() else root
    file = folder / part / "labeledBow.feat"
    return file if file.is_file() else None


def read_labelled(path: Path) -> tuple[Any, Labels]:
    """Read a ``labeledBow.feat``: on each line a rating of 1 to 10 and ``word:count`` for each word in it.

    Returns:
        The counts of words in documents, sparse [N, V], and labels [N]: 1 for ratings above 5, else 0.

    Raises:
        ValueError: If a line has another format.
    """
    labels: list[int] = []
    entries: list[Any] = []
    with path.open(encoding="ascii", errors="replace") as file:
        for number, line in enumerate(file):
            rating, _, rest = line.partition(" ")
            try:
                pairs = np.array(rest.replace(":", " ").split(), dtype=np.int64).reshape(-1, 2)
                if not 1 <= int(rating) <= 10 or rest.count(":") != len(pairs) or (pairs < [0, 1]).any():
                    raise ValueError
            except (ValueError, OverflowError):
                raise ValueError(
                    f"Expected line {number + 1} of {path} to be a rating of 1 to 10 and pairs word:count but"
                    f" got {line.strip()[:60]!r}"
                ) from None
            labels.append(int(int(rating) > 5))
            entries.append(pairs)
    if not labels:
        raise ValueError(f"Expected {path} to hold documents but it is empty")
    if len({*labels}) < 2:
        raise ValueError(f"Expected ratings of both classes, up to 5 and above, in {path} but all are of one")
    rows = np.repeat(np.arange(len(labels)), list(map(len, entries)))
    words, counts = np.concatenate(entries).T
    return csr_array((counts, (rows, words))), np.array(labels)


def generate(documents: int, words: int, seed: int) -> tuple[Any, Labels]:
    """Draw documents of about 120 words, half in each class, whose word frequencies follow Zipf's law.

    The word of rank k has a probability proportional to exp(+-s_k) / (k + 2.7), with the sign of the class;
    s_k is normal with standard deviation 0.25, the same for all seeds.

    Args:
        documents: Their number N.
        words: Size of the language V.
        seed: Seed of the draw.

    Returns:
        The counts of words in documents, sparse [N, V], and labels [N].

    Example:
        >>> counts, labels = generate(4, 1000, seed=0)
        >>> counts.shape, labels.tolist()
        ((4, 1000), [0, 1, 0, 1])
    """
    tilt = np.random.default_rng(0).normal(scale=0.25, size=words)
    labels = np.arange(documents) % 2
    random = np.random.default_rng([seed, 1])
    lengths = random.poisson(120, size=documents)
    rows = np.repeat(np.arange(documents), lengths)
    drawn = np.empty(len(rows), dtype=np.int64)
    for label, sign in ((0, -1), (1, 1)):
        cumulated = np.cumsum(np.exp(sign * tilt) / (np.arange(1, words + 1) + 2.7))
        own = labels[rows] == label
        drawn[own] = np.searchsorted(cumulated, random.random(own.sum()) * cumulated[-1], side="right")
    return csr_array((np.ones(len(rows)), (rows, drawn)), shape=(documents, words)), labels


def most_frequent(documents: Any, most: int) -> Labels:
    """Find the words that occur most often in all documents together, the most frequent first.

    >>> most_frequent(csr_array([[0, 0, 1, 0, 3], [0, 0, 1, 0, 0]]), 2).tolist()
    [4, 2]
    """
    totals = np.asarray(documents.sum(axis=0)).ravel()
    order = np.argsort(-totals, kind="stable")[:most]
    return order[totals[order] > 0]


def _lists(documents: Any) -> Tensor:
    """List the words of each document, sparse [N, V], as int32 [N, L], padded with -1."""
    lengths = np.diff(documents.indptr)
    lists = np.full((len(lengths), max(lengths.max(), 1)), -1, dtype=np.int32)
    lists[np.arange(lists.shape[1]) < lengths[:, None]] = documents.indices
    return torch.from_numpy(lists)
