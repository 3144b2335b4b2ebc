"""He et al. 2015, eq. (3): the derivatives of a PReLU on a CPU, in one pass, compiled by Numba.

dE/dy is dE/df for positive y and a dE/df for others; dE/da adds up y dE/df over the others.
"""

from __future__ import annotations

from typing import TypeAlias

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pl_losses.core.kernels import over_samples

Floats: TypeAlias = NDArray[np.float32]
# Sums may be added up in any order, many terms at a time.
compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz", "contract"})


@compiled
def channels_first(
    gradient: Floats, input: Floats, slopes: Floats, by_input: Floats, terms: Floats, start: int, stop: int
) -> None:
    """Compute the derivatives by the input [B, C, L], and by the slopes of each sample [B, C]."""
    zero = input.dtype.type(0)
    for b in range(start, stop):
        for c in range(input.shape[1]):
            slope, added = slopes[c], zero
            for i in range(input.shape[2]):
                positive, slant = input[b, c, i] > zero, gradient[b, c, i]
                by_input[b, c, i] = slant if positive else slope * slant
                added += zero if positive else input[b, c, i] * slant
            terms[b, c] = added


@compiled
def channels_last(
    gradient: Floats, input: Floats, slopes: Floats, by_input: Floats, terms: Floats, start: int, stop: int
) -> None:
    """Compute the derivatives by the input [B, L, C], and by the slopes of each sample [B, C]."""
    zero = input.dtype.type(0)
    for b in range(start, stop):
        terms[b] = zero
        for i in range(input.shape[1]):
            for c in range(input.shape[2]):
                positive, slant = input[b, i, c] > zero, gradient[b, i, c]
                by_input[b, i, c] = slant if positive else slopes[c] * slant
                terms[b, c] += zero if positive else input[b, i, c] * slant


def derivatives(gradient: Tensor, input: Tensor, slopes: Tensor, side_by_side: bool) -> tuple[Tensor, Tensor]:
    """Return the derivatives by the input, [B, L, C] if its channels lie ``side_by_side`` else [B, C, L]."""
    by_input, terms = torch.empty_like(input), slopes.new_empty(len(input), len(slopes))
    kernel = channels_last if side_by_side else channels_first
    over_samples(kernel, gradient, input, slopes, by_input, terms)
    return by_input, terms.sum(0)
