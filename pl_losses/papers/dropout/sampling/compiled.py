"""Dropout of few numbers in one pass over memory, compiled by Numba, with the masks that MaskSampler has.

By calls of NumPy and torch, to draw a mask and to multiply takes longer than a small layer.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from pl_losses.core.compiled import compiled


@numba.njit(error_model="numpy")
def _next(a, b, c, counter):  # type: ignore[no-untyped-def]
    """Return the next word of NumPy's SFC64, and its state."""
    word = a + b + counter
    turned = (c << np.uint64(24)) | (c >> np.uint64(40))
    return word, b ^ (b >> np.uint64(11)), c + (c << np.uint64(3)), turned + word, counter + np.uint64(1)


@numba.njit(error_model="numpy")
def _apply(words, threshold, scale, inputs, outputs):  # type: ignore[no-untyped-def]
    """Write inputs [n L] times scale where one of n words is below the threshold, else times 0."""
    zero, size = np.float32(0), len(inputs) // max(1, len(words))
    if len(inputs) == len(words):
        for i in range(len(inputs)):
            outputs[i] = inputs[i] * (scale if words[i] < threshold else zero)
        return
    for i in range(len(words)):
        factor = scale if words[i] < threshold else zero
        for j in range(i * size, (i + 1) * size):
            outputs[j] = inputs[j] * factor


@compiled("voidptr, voidptr, voidptr, intp, intp, float64, intp, intp, intp, intp")
def _drop(
    seed: int,
    input: int,
    output: int,
    bits: int,
    threshold: int,
    scale: float,
    given: int,
    samples: int,
    size: int,
    inner: int,
) -> None:
    """Drop from inputs [1 or K, n, L] in all K samples, with n words of some bits for each."""
    key, length = numba.carray(seed, 3, np.uint64), size * inner
    inputs = numba.carray(input, (given, length), np.float32)
    outputs = numba.carray(output, (samples, length), np.float32)
    a, b, c, counter = key[0], key[1], key[2], np.uint64(1)
    for _ in range(12):
        _, a, b, c, counter = _next(a, b, c, counter)
    words, factor = np.empty((size * bits + 63) // 64, np.uint64), np.float32(scale)
    for k in range(samples):
        for i in range(len(words)):
            words[i], a, b, c, counter = _next(a, b, c, counter)
        x, y = inputs[k % given], outputs[k]
        if bits == 8:
            _apply(words.view(np.int8)[:size], np.int8(threshold), factor, x, y)
        else:
            _apply(words.view(np.int16)[:size], np.int16(threshold), factor, x, y)


def drop(inputs: Tensor, seed: bytes, word: tuple[int, int, float], sizes: tuple[int, int, int]) -> Tensor:
    """Drop from inputs in all samples.

    Args:
        inputs: Dense float32 [B, ...] for all samples, or [K B, ...].
        seed: Of the stream, 24 bytes.
        word: A word's width (8 or 16), the threshold below which it keeps, and the probability of that.
        sizes: K, how many elements the mask of one sample has, and how many inputs each of them is for.

    Returns:
        [K B, ...].
    """
    samples, size, inner = sizes
    bits, threshold, kept = word
    given = inputs.numel() // (size * inner)
    if given == samples:
        outputs = torch.empty_like(inputs)
    else:
        outputs = inputs.new_empty((samples * inputs.shape[0], *inputs.shape[1:]))
    scale = 1.0 / kept if kept else 0.0
    addresses = seed, inputs.data_ptr(), outputs.data_ptr()
    _drop(*addresses, bits, threshold, scale, given, samples, size, inner)
    return outputs
