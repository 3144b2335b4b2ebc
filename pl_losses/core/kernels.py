"""Kernels for a CPU that Numba compiles. It is an extra: without it, operations on tensors do the work."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import import_module
from threading import Thread
from types import ModuleType

import torch
from torch import Tensor, nn

from pl_losses.core.compat import of_torch

log = logging.getLogger(__name__)
# From so many numbers on, another thread gains more than its start takes.
SHARE = 500_000
OFTEN = 1000  # Requests after which loading Numba, a second, is worth while for work of microseconds.
_asked: Counter[str] = Counter()
_loaded: dict[str, ModuleType | None] = {}


@cache
def kernels(name: str) -> ModuleType | None:
    """Import a module of kernels; ``None`` where Numba is not installed or does not work."""
    try:
        return import_module(name)
    except (
        Exception
    ) as error:  # Numba refuses what it does not know: a version of NumPy, a folder without a cache.
        log.info("%s is not used: %s", name, error)
        return None


def kernels_for_often(name: str) -> ModuleType | None:
    """Return a module of kernels once this was asked often; another thread loads it meanwhile."""
    if name in _loaded:
        return _loaded[name]
    _asked[name] += 1
    if _asked[name] >= OFTEN:
        _asked[name] = -(1 << 62)  # Once.
        Thread(target=lambda: _loaded.update({name: kernels(name)})).start()
    return None


def is_plain(tensor: Tensor) -> bool:
    """Return whether a kernel may read the memory: float32 or float64 on a CPU, not traced."""
    return (
        type(tensor) in (Tensor, nn.Parameter)  # No DTensor, nor what torch.fx puts there.
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not of_torch.is_transformed()
    )


def over_samples(kernel: Callable[..., None], first: Tensor, *others: object) -> None:
    """Run a kernel over all samples of its arguments, in several threads where there is much to do.

    A kernel takes the arguments, tensors as arrays, and the range of its samples.
    """
    arguments = [one.numpy() if isinstance(one, Tensor) else one for one in (first, *others)]
    in_parts(partial(kernel, *arguments), bounds_of(first.shape[0], first.numel()))


def bounds_of(samples: int, numbers: int) -> list[int]:
    """Return the bounds of the parts for several threads; of one part if there is little to do."""
    parts = numbers // SHARE
    if parts < 2 or (threads := min(torch.get_num_threads(), parts, samples)) == 1:
        return [0, samples]
    return [samples * i // threads for i in range(threads + 1)]


def in_parts(run: Callable[[int, int], None], bounds: list[int]) -> None:
    """Run over the range of all samples, or over its parts in several threads."""
    if len(bounds) == 2:
        run(*bounds)
        return
    with ThreadPoolExecutor(len(bounds) - 1) as pool:
        for _ in pool.map(run, bounds[:-1], bounds[1:]):
            pass
