"""Masks of dropout from random streams of their own: one stream per call of a dropout, sample after sample.

On the CPU a mask costs a few bits of a fast generator per element: words of 8 to 64 bits are compared with a
threshold. The narrowest words are used that give p to 0.2 % of min(p, 1 - p). Kept elements are scaled by the
exact probability of the words, so that means are exact. If few elements are dropped, their places are drawn
instead: a Poisson variable of mean -n log(1 - p) is the number of hits, each anywhere among n elements. This
leaves each element without a hit with probability 1 - p, independently of the others.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from math import log1p, prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray
from torch import Tensor

from pl_losses.core.rng import fold_in

_BLOCK = 1 << 18  # Elements that are drawn at a time, so that words and mask stay in the cache.
_RARE = 0.1  # Up to this p, drawing places takes less time than drawing words,
# in masks of so many elements. In larger ones, 32 bits do not make all places equally likely.
_PLACES = range(1 << 12, (1 << 22) + 1)
FEW = range(1, 1 << 13)  # Elements whose time counts less than that of a call: NumPy takes half of torch's.
_WORDS = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}
_INTEGERS = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
_NUMBERS = {torch.float32: np.float32, torch.float64: np.float64}


class DropoutCall(NamedTuple):
    """What a call of a dropout draws for each sample.

    Attributes:
        shape: Shape of the mask, which is broadcast to that of the input.
        p: Probability to drop.
        scaled: Whether kept elements are 1 / (1 - p) instead of 1.
        dtype: The mask's type.
        device: The mask's device.
    """

    shape: tuple[int, ...]
    p: float
    scaled: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def rare(self) -> bool:
        """Whether the places of what is dropped are drawn."""
        return is_rare(self.p, prod(self.shape)) and self.device.type == "cpu"

    @property
    def kept(self) -> float:
        """The probability to keep an element, 1 - p as closely as words can have it."""
        return 1.0 - self.p if self.rare or self.device.type != "cpu" else word_of(self.p)[2]


def is_rare(p: float, size: int) -> bool:
    """Return whether the places of what is dropped are drawn on a CPU."""
    return p <= _RARE and size in _PLACES


@lru_cache(maxsize=256)
def word_of(p: float) -> tuple[int, int, float]:
    """Return a word's width, the threshold below which an element is kept, and the probability of that."""
    for bits in _WORDS:
        count = round((1.0 - p) * 2**bits)
        if bits == 64 or abs(1.0 - p - count / 2**bits) <= 0.002 * min(p, 1.0 - p):
            break
    top = 2 ** (bits - 1) - 1
    return bits, min(count - 2 ** (bits - 1), top), count / 2**bits


# Of the dropout's index, its device, and whether places are drawn; see `MaskSampler._stream`.
_Key = tuple[int, torch.device, bool]
_Stream = torch.Generator | list[np.random.SFC64] | None


def seed_of(*key: int) -> bytes:
    """Return the 24 bytes that start a stream, the hash of its key."""
    return blake2b(repr(key).encode(), digest_size=24).digest()


class _Seed(ISeedSequence):
    """Seed of a stream: NumPy's own takes as long as a pass of a small network."""

    def __init__(self, *key: int) -> None:
        self.key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        return np.frombuffer(seed_of(*self.key), dtype)[:n_words]


class MaskSampler:
    """Streams of masks, each from a seed and the position of its dropout among those that a pass calls.

    Each sample takes the next part of every stream. Masks therefore do not depend on how many samples are
    drawn at a time, nor on how many follow.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._streams: dict[_Key, _Stream] = {}

    def draw(self, index: int, site: DropoutCall, samples: int, out: Tensor | None = None) -> Tensor:
        """Draw the next masks of a site: 0 where an element is dropped.

        Args:
            index: Number of dropouts that were called before it in its pass.
            site: The site's description.
            samples: K, the number of masks.
            out: [K, *shape], to write the masks into.

        Returns:
            [K, *shape].
        """
        rare = site.rare
        stream = self._stream(index, site.device, rare)
        if isinstance(stream, list) and not rare and samples * prod(site.shape) in FEW:
            number = _NUMBERS.get(site.dtype)
            if number is not None:
                few = torch.from_numpy(_few(samples, site, number, stream[0]))
                return few if out is None else out.copy_(few)
        if out is None:
            out = torch.empty((samples, *site.shape), dtype=site.dtype, device=site.device)
        kept = site.kept
        if kept <= 0.0:
            return out.zero_()
        scale = 1.0 / kept if site.scaled else 1.0
        if isinstance(stream, list):  # On the CPU.
            (_fill_sparse if rare else _fill)(out.view(samples, -1), site.p, scale, stream)
            return out
        for mask in out:  # Not all at once: on an accelerator that would be another stream.
            mask.bernoulli_(kept, generator=stream)
        return out.mul_(scale)

    def state(self) -> dict[_Key, Any]:
        """Return the state of the streams."""
        return {key: _state(stream) for key, stream in self._streams.items()}

    def rewind(self, state: dict[_Key, Any]) -> None:
        """Reset the streams to an earlier state."""
        self._streams = {key: stream for key, stream in self._streams.items() if key in state}
        for key, stream in self._streams.items():
            if isinstance(stream, torch.Generator):
                stream.set_state(state[key])
            elif stream is not None:
                for one, then in zip(stream, state[key], strict=True):
                    one.state = then

    def _stream(self, index: int, device: torch.device, rare: bool) -> _Stream:
        key = (index, device, rare)
        if key not in self._streams:
            if device.type == "cpu":
                # The number of places needs a second stream, as it takes an unknown part of it.
                kinds = (2, 3) if rare else (1,)
                seeds: list[Any] = [_Seed(self.seed, kind, index) for kind in kinds]  # NumPy's types lack it.
                self._streams[key] = [np.random.SFC64(seed) for seed in seeds]
            elif device.type == "meta":
                self._streams[key] = None  # There is nothing to draw.
            else:
                generator = torch.Generator(device)
                self._streams[key] = generator.manual_seed(fold_in(self.seed, 1, index))
        return self._streams[key]


def _state(stream: _Stream) -> object:
    if stream is None:
        return None
    return stream.get_state() if isinstance(stream, torch.Generator) else [one.state for one in stream]


def _few(count: int, site: DropoutCall, number: Any, stream: np.random.SFC64) -> NDArray[Any]:
    """Return [K, *shape] as `_fill` does."""
    bits, threshold, kept = word_of(site.p)
    size = prod(site.shape)
    words = stream.random_raw(count * -(-size * bits // 64)).view(_INTEGERS[bits])
    mask = (words < threshold).reshape(count, -1)[:, :size]
    scaled = mask * number(1.0 / kept if site.scaled and kept else 1.0)
    return scaled.reshape(count, *site.shape)  # type: ignore[no-any-return]


def _fill_sparse(masks: Tensor, p: float, scale: float, streams: list[np.random.SFC64]) -> None:
    """Fill [K, n] except for the dropped places; each row takes as many words as it has hits."""
    count, size = masks.shape
    numbers = np.random.Generator(streams[1])
    rows = max(1, _BLOCK // max(1, size))
    integers = _WORDS[8 * masks.element_size()]  # NumPy lacks bfloat16; all bits 0 are the number 0.
    for start in range(0, count if size else 0, rows):
        part = masks[start : start + rows].fill_(scale)
        hits = numbers.poisson(-size * log1p(-p), len(part))
        places = streams[0].random_raw(int(hits.sum()))
        # The upper half of each word, as a share of the row.
        places >>= np.uint64(32)
        places *= np.uint64(size)
        places >>= np.uint64(32)
        places += np.repeat(np.arange(0, part.numel(), size, dtype=np.uint64), hits)
        # NumPy's assignment takes half the time of torch's.
        part.view(integers).view(-1).numpy()[places.view(np.int64)] = 0


def _fill(masks: Tensor, p: float, scale: float, streams: list[np.random.SFC64]) -> None:
    """Fill [K, n] row by row; each row takes a whole number of the stream's 64 bits."""
    count, size = masks.shape
    bits, threshold, _ = word_of(p)
    draws = -(-size * bits // 64)  # Whole ones: so each row's mask is the same, however many are drawn.
    rows = max(1, _BLOCK // max(1, size))
    for start in range(0, count if size else 0, rows):
        part = masks[start : start + rows]
        words = torch.from_numpy(streams[0].random_raw(len(part) * draws).view(np.int64)).view(_WORDS[bits])
        words = words.view(len(part), -1)[:, :size].contiguous()
        # Comparing into floating point is several times faster than into bool.
        torch.lt(words, threshold, out=part)
        if scale != 1.0:
            part.mul_(scale)
