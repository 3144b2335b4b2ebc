"""Sums over a data set: float32 stops growing by what is small beside it."""

from __future__ import annotations

from torch import Tensor

WITHOUT_FLOAT64 = {"mps"}  # Types of devices.


def has_float64(tensor: Tensor) -> bool:
    """Whether a tensor's device can add up in float64."""
    return tensor.device.type not in WITHOUT_FLOAT64


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float64: on its device or, where that has none, on the host.

    Example:
        >>> import torch
        >>> wide(torch.tensor([0.5]))
        tensor([0.5000], dtype=torch.float64)
    """
    return (tensor if has_float64(tensor) else tensor.cpu()).double()
