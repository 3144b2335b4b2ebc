"""Random streams of their own: a seed for each key, whatever else is drawn."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

# Noise is drawn in multiples of this many rows, so that fewer rows are the first of more.
ROWS = 64


def fold_in(*key: object) -> int:
    """Return a seed in [0, 2^63) that differs in all bits for keys that differ a little.

    Args:
        key: What determines it, such as a seed, an epoch and a rank: numbers and texts.

    Example:
        >>> fold_in(0, 1) == fold_in(np.int64(0), 1), fold_in(0, 1) == fold_in(1, 0)
        (True, False)
    """
    # NumPy writes its integers otherwise.
    plain = tuple(int(one) if isinstance(one, np.integer) else one for one in key)
    return int.from_bytes(blake2b(repr(plain).encode(), digest_size=8).digest(), "big") >> 1


def keyed_generator(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose stream the key determines, see :func:`fold_in`."""
    return torch.Generator(device).manual_seed(fold_in(*key))


def standard_normal(rows: int, columns: int, *key: object, dtype: torch.dtype | None = None) -> Tensor:
    """Draw standard normal numbers [rows, columns] that the key determines, on the host.

    >>> torch.equal(standard_normal(100, 3, "key")[:7], standard_normal(7, 3, "key"))
    True
    """
    generator = keyed_generator(*key)
    return torch.randn(-(-rows // ROWS) * ROWS, columns, generator=generator, dtype=dtype)[:rows]
