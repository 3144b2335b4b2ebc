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
from pl_losses.core.kernels import bounds_of, in_parts

_BLOCK = 1024  # Numbers that a core keeps at hand.
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
    """Compute the derivatives by the input [B, C, L], and those by the slopes, in the first sample's row."""
    shape = (stop, channels, positions)
    gradients, inputs = numba.carray(gradient, shape, np.float32), numba.carray(input, shape, np.float32)
    results, slants = numba.carray(by_input, shape, np.float32), numba.carray(slopes, channels, np.float32)
    sums, zero = numba.carray(terms, (stop, channels), np.float32), np.float32(0)
    totals = np.zeros(channels)  # In float64, of blocks in float32.
    for b in range(start, stop):
        for c in range(channels):
            slope = slants[c]
            for first in range(0, positions, _BLOCK):
                added = zero
                y = inputs[b, c, first : first + _BLOCK]
                above = gradients[b, c, first : first + _BLOCK]
                below = results[b, c, first : first + _BLOCK]
                # Two loops, the second one in the cache: in one loop memory is read at half the speed.
                for i in range(len(y)):
                    added += zero if y[i] > zero else y[i] * above[i]
                for i in range(len(y)):
                    below[i] = above[i] if y[i] > zero else slope * above[i]
                totals[c] += added
    sums[start] = totals


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
    """Compute the derivatives by the input [B, L, C], and those by the slopes, in the first sample's row."""
    shape = (stop, positions, channels)
    gradients, inputs = numba.carray(gradient, shape, np.float32), numba.carray(input, shape, np.float32)
    results, slants = numba.carray(by_input, shape, np.float32), numba.carray(slopes, channels, np.float32)
    sums, zero = numba.carray(terms, (stop, channels), np.float32), np.float32(0)
    totals, added = np.zeros(channels), sums[start]
    for b in range(start, stop):
        for first in range(0, positions, _BLOCK):
            block = slice(first, first + _BLOCK)
            ys, aboves, belows = inputs[b, block], gradients[b, block], results[b, block]
            added[:] = zero
            for i in range(len(ys)):
                y, above, below = ys[i], aboves[i], belows[i]
                for c in range(channels):  # Without a sum that is skipped: many channels at a time.
                    positive, term = y[c] > zero, y[c] * above[c]
                    below[c] = above[c] if positive else slants[c] * above[c]
                    added[c] += zero if positive else term
            totals += added
    sums[start] = totals


def derivatives(gradient: Tensor, input: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the derivatives by the input, dense in either memory format, and by the slopes [1 or C]."""
    if gradient.stride() != input.stride() or gradient.is_neg():
        gradient = torch.empty_like(input).copy_(gradient)
    slopes, by_input = slopes.contiguous(), torch.empty_like(input)
    samples, channels = input.shape[0], slopes.shape[0]
    positions = input.numel() // (samples * channels)
    kernel = channels_first
    if channels > 1 and (positions == 1 or not input.is_contiguous()):
        kernel = channels_last
        if positions == 1:
            samples, positions = 1, samples
    if channels == 1 and positions < _BLOCK:
        samples, positions = 1, samples * positions
    bounds = bounds_of(samples, input.numel())
    # A thread writes the row at which it begins.
    alone = len(bounds) == 2
    terms = torch.empty_like(slopes) if alone else slopes.new_empty(samples, channels)
    given = gradient.data_ptr(), input.data_ptr(), slopes.data_ptr()
    run = partial(kernel, *given, by_input.data_ptr(), terms.data_ptr(), channels, positions)
    if alone:
        run(0, samples)
        return by_input, terms
    in_parts(run, bounds)
    return by_input, terms[bounds[:-1]].sum(0)
