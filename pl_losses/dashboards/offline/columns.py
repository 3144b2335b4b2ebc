"""Numbers of a run by key: collected row by row, parsed together, thinned out without losing extremes."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from pl_losses.core.compat.names import STEP

Array = npt.NDArray[np.float64]

# A row with nothing but numbers, as wandb writes it: the record's number (field 1), then the row (2); of each
# item the name (2) and the value (16). Counting the tags of values shows whether a match is complete.
ROW = re.compile(rb"(?:\x08[\x80-\xff]*[\x00-\x7f])?\x12")
# What a row changes in the summary (3): half of a file, and nothing that its rows do not have.
SUMMARY = re.compile(rb"(?:\x08[\x80-\xff]*[\x00-\x7f])?\x1a")
LENGTH = rb"(?:[\x00-\x7f]|[\x80-\xff][\x00-\x7f])"
ITEM = re.compile(rb"\n" + LENGTH + rb"\x12.([\x20-\x7e]+)\x82\x01.([-0-9NI][^\n]*)", re.DOTALL)
NUMBER = re.compile(rb"[-+.0-9eENaInfity]*")
VALUE_TAG = b"\x82\x01"
CHUNK = 512  # Rows that are parsed together: as text and as Python's numbers they take six times the memory.


def plain_numbers(payload: bytes) -> dict[bytes, bytes] | None:
    """Return the numbers of a serialised row, unparsed; ``None`` if it has, or may have, anything else."""
    if not ROW.match(payload):
        return None
    items = ITEM.findall(payload)
    if len(items) != payload.count(VALUE_TAG):
        return None
    numbers = dict(items)
    for name, rest in items[-1:]:  # The record's other fields may follow.
        numbers[name] = NUMBER.match(rest)[0]  # type: ignore[index]  # At least nothing matches.
    return numbers


@dataclass
class _Block:
    """Rows with the same keys: the latest as written, all others as numbers."""

    keys: tuple[bytes, ...]
    pick: Callable[[Mapping[bytes, bytes]], Iterable[bytes]]
    rows: array[int] = field(default_factory=lambda: array("q"))
    text: list[bytes] = field(default_factory=list)
    parsed: list[Array] = field(default_factory=list)

    def add(self, row: int, numbers: Mapping[bytes, bytes]) -> None:
        """Add a row by its number."""
        self.rows.append(row)
        self.text.append(b",".join(self.pick(numbers)))
        if len(self.text) == CHUNK:
            self.parse()

    def parse(self) -> None:
        """Parse the rows that are kept as text."""
        shape = len(self.text), len(self.keys)
        try:
            parsed = _numbers(b",".join(self.text)).reshape(shape)
        except (ValueError, TypeError, OverflowError):
            # A damaged row must not hide the others.
            parsed = np.full(shape, np.nan)
            for index, text in enumerate(self.text):
                with suppress(ValueError, TypeError, OverflowError):
                    parsed[index] = _numbers(text).reshape(len(self.keys))
        self.parsed.append(parsed)
        self.text = []

    def columns(self, *keys: bytes) -> Array:
        """Return the values of some keys, [rows, keys]."""
        if self.text:
            self.parse()
        places = [self.keys.index(key) for key in keys]
        return np.concatenate([chunk[:, places] for chunk in self.parsed])


def _numbers(text: bytes) -> Array:
    """Parse numbers between commas."""
    return np.array(from_json(b"[" + text + b"]"), dtype=np.float64)


class Columns:
    """Numbers by key.

    Example:
        >>> columns = Columns()
        >>> columns.add({b"loss": b"2.5", b"step": b"0"})
        >>> columns.add({b"step": b"10", b"loss": b"1.5", b"error": b"NaN"})
        >>> columns.pairs("step", "loss")
        (array([ 0., 10.]), array([2.5, 1.5]))
    """

    def __init__(self) -> None:
        self.count = 0
        self._begins: list[int] = []  # Number of rows before each part.
        self._blocks: dict[frozenset[bytes], _Block] = {}

    def begin_part(self) -> None:
        """Let later rows replace those that a resumed run repeats."""
        self._begins.append(self.count)

    def add(self, numbers: Mapping[bytes, bytes]) -> None:
        """Add a row of numbers, each as JSON."""
        self.count += 1
        if not numbers:
            return
        # wandb writes the keys in another order in each row.
        same = frozenset(numbers)
        block = self._blocks.get(same) or self._block(same, tuple(numbers))
        block.add(self.count, numbers)

    def _block(self, same: frozenset[bytes], keys: tuple[bytes, ...]) -> _Block:
        # itemgetter of one name returns no tuple.
        pick = itemgetter(*keys) if len(keys) > 1 else lambda row: (row[keys[0]],)
        block = self._blocks[same] = _Block(keys, pick)
        return block

    def names(self) -> list[str]:
        """List all keys, in the order of their first rows."""
        blocks = self._blocks.values()
        return list(dict.fromkeys(key.decode() for block in blocks for key in block.keys))

    def pairs(self, x: str, y: str) -> tuple[Array, Array]:
        """Return both values of the rows that have both; of a part, those before the next part's first x."""
        first, second, rows = x.encode(), y.encode(), []
        for block in self._blocks.values():
            if first in block.keys and second in block.keys:
                # A copy: of an array that is exported this way none can be appended to.
                rows.append((np.array(block.rows, dtype=np.int64), block.columns(first, second)))
        if not rows:
            return np.empty(0), np.empty(0)
        both: Array = np.concatenate([chosen for _, chosen in rows])
        numbers = np.concatenate([at for at, _ in rows])
        if len(rows) > 1:
            order = numbers.argsort(kind="stable")
            both, numbers = both[order], numbers[order]
        for begin in self._begins[1:]:
            later = numbers > begin
            if later.any() and x == STEP:  # It counts rows, and may start again at 0.
                both[later, 0] += max(0, both[~later, 0].max(initial=-1) + 1 - both[later, 0][0])
            elif later.any():
                kept = later | (both[:, 0] < both[later, 0][0])
                both, numbers = both[kept], numbers[kept]
        return both[:, 0], both[:, 1]


def thin_out(x: Array, y: Array, points: int) -> tuple[Array, Array]:
    """Keep at most ``points`` points, in order: the ends, and the extremes of each stretch.

    Args:
        x: Shape [N].
        y: Shape [N]; values that are not finite are left out, unless all points are kept.
        points: At least 4.

    Example:
        >>> x = np.arange(1000.0)
        >>> y = np.where(x == 421, 9.0, np.sin(x))
        >>> kept, values = thin_out(x, y, points=20)
        >>> len(kept), 421.0 in kept, bool(values.min() == y.min()), kept[[0, -1]]
        (20, True, True, array([  0., 999.]))
    """
    if len(x) <= points:
        return x, y
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= points:
        return x, y
    stretches = (points - 2) // 2
    edges = np.linspace(0, len(y), stretches + 1).astype(int)
    width = int(np.diff(edges).max())
    # Equal stretches as a matrix; a shorter one has its last value twice.
    index = np.minimum(edges[:-1, None] + np.arange(width), edges[1:, None] - 1)
    rows, values = np.arange(stretches), y[index]
    extremes = index[rows, values.argmin(axis=1)], index[rows, values.argmax(axis=1)]
    kept = np.unique(np.concatenate([*extremes, [0, len(y) - 1]]))
    return x[kept], y[kept]
