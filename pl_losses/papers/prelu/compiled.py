"""He et al. 2015, eq. (3): the derivatives of a PReLU on a CPU, in one pass, compiled by Numba.

dE/dy is dE/df for positive y and a dE/df for others; dE/da adds up y dE/df over the others.
"""

from __future__ import annotations

from functools import partial

import numba
import numpy as np
import torch
from torch import Tensor

from pl_losses.core.compiled import compiled
from pl_losses.core.kernels import in_parts

_compiled = compiled(
    f"{5 * 'voidptr,'}{3 * 'intp,'} intp",
    fastmath={"reassoc", "nsz", "contract"},  # Sums may be added up in any order, many terms at a time.
)


@_compiled
def channels_first(
    gradient: int,
    input: int,
    slopes: int,
    by_input: int,
    terms: int,
    channels: int,
    positions: int,
    start: int,
    stop: int,
) -> None:
    """Compute the derivatives by the input [B, C, L], and by the slopes of each sample [B, C]."""
    shape = (stop, channels, positions)
    gradients, inputs = numba.carray(gradient, shape, np.float32), numba.carray(input, shape, np.float32)
    results, slants = numba.carray(by_input, shape, np.float32), numba.carray(slopes, channels, np.float32)
    sums, zero = numba.carray(terms, (stop, channels), np.float32), np.float32(0)
    for b in range(start, stop):
        for c in range(channels):
            y, above, below, slope, added = inputs[b, c], gradients[b, c], results[b, c], slants[c], zero
            for i in range(positions):
                positive = y[i] > zero
                below[i] = above[i] if positive else slope * above[i]
                added += zero if positive else y[i] * above[i]
            sums[b, c] = added


@_compiled
def channels_last(
    gradient: int,
    input: int,
    slopes: int,
    by_input: int,
    terms: int,
    channels: int,
    positions: int,
    start: int,
    stop: int,
) -> None:
    """Compute the derivatives by the input [B, L, C], and by the slopes of each sample [B, C]."""
    shape = (stop, positions, channels)
    gradients, inputs = numba.carray(gradient, shape, np.float32), numba.carray(input, shape, np.float32)
    results, slants = numba.carray(by_input, shape, np.float32), numba.carray(slopes, channels, np.float32)
    sums, zero = numba.carray(terms, (stop, channels), np.float32), np.float32(0)
    for b in range(start, stop):
        added = sums[b]
        added[:] = zero
        for i in range(positions):
            y, above, below = inputs[b, i], gradients[b, i], results[b, i]
            for c in range(channels):  # Without a sum that is skipped: many channels at a time.
                positive, term = y[c] > zero, y[c] * above[c]
                below[c] = above[c] if positive else slants[c] * above[c]
                added[c] = added[c] if positive else added[c] + term


def derivatives(gradient: Tensor, input: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the derivatives by the input, dense in either memory format, and by the slopes [1 or C]."""
    if gradient.stride() != input.stride():
        gradient = torch.empty_like(input).copy_(gradient)
    slopes, by_input = slopes.contiguous(), torch.empty_like(input)
    samples, channels = len(input), len(slopes)
    positions = input.numel() // (samples * channels)
    kernel = channels_first
    if channels > 1 and (positions == 1 or not input.is_contiguous()):
        kernel = channels_last
        if positions == 1:
            samples, positions = 1, samples
    terms = slopes.new_empty(samples, channels)
    addresses = [tensor.data_ptr() for tensor in (gradient, input, slopes, by_input, terms)]
    run = partial(kernel, *addresses, channels, positions)
    in_parts(run, samples, input.numel())
    return by_input, terms[0] if samples == 1 else terms.sum(0)
