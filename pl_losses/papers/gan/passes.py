"""What a step needs of its backward passes: a network frozen meanwhile, ranks that do not wait, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within it gradients pass through a module but none are left in its parameters."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def unsynchronised(strategy: Any) -> AbstractContextManager[Any]:
    """Within it backward passes leave each rank its own gradients; a later one averages their sums."""
    block = getattr(strategy, "block_backward_sync", nullcontext)
    context: AbstractContextManager[Any] = block()
    return context


@torch.no_grad()
def scale_gradients(module: nn.Module, factor: float) -> None:
    """Multiply the gradients that a module's parameters have."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
