"""Contexts of the step's backward passes: a frozen network, ranks that do not wait; and scaled gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through a module without leaving any in its parameters, within this context."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def unsynchronised(strategy: object) -> AbstractContextManager[object]:
    """Leave each rank its own gradients within this context; a later backward pass averages their sums."""
    block = getattr(strategy, "block_backward_sync", nullcontext)
    context: AbstractContextManager[object] = block()
    return context


@torch.no_grad()
def scale_gradients(module: nn.Module, factor: float) -> None:
    """Multiply the existing gradients of a module's parameters."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
