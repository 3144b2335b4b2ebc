"""Kernels for a CPU that Numba compiles. It is an extra: without it, operations on tensors do the work."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn

from pl_losses.core.compat import of_torch

log = logging.getLogger(__name__)


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


def is_plain(tensor: Tensor) -> bool:
    """Return whether a kernel may read the memory: float32 or float64 on a CPU, not traced."""
    return (
        type(tensor) in (Tensor, nn.Parameter)  # No DTensor, nor what torch.fx puts there.
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not of_torch.is_transformed()
    )
