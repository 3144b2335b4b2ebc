"""Which numbers to compute in: float32 at least, and float64 for sums over a data set."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

WITHOUT_FLOAT64 = {"mps"}  # Types of devices.


def wide_type(*dtypes: torch.dtype) -> torch.dtype:
    """Return the type to compute in with tensors of these types: float32, or float64 if one of them is that.

    Example:
        >>> wide_type(torch.bfloat16, torch.float16), wide_type(torch.float16, torch.float64)
        (torch.float32, torch.float64)
    """
    return reduce(torch.promote_types, dtypes, torch.float32)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert a tensor to float32 for losses, also under autocast; leave float64 as it is.

    Example:
        >>> at_least_float32(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def has_float64(tensor: Tensor) -> bool:
    """Return whether a tensor's device has float64."""
    return tensor.device.type not in WITHOUT_FLOAT64


def in_float64(tensor: Tensor) -> Tensor:
    """Convert a tensor to float64: on its device or, if that has none, on the host.

    Example:
        >>> in_float64(torch.tensor([0.5]))
        tensor([0.5000], dtype=torch.float64)
    """
    return (tensor if has_float64(tensor) else tensor.cpu()).double()
