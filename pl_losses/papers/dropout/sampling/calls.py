"""Types of what is seen of the calls of torch functions, and of the batches that a module is called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Batch = TypeVar("Batch")  # Whatever a module takes: a tensor, or a tuple, list or mapping with tensors in it.

# A torch function such as `F.linear`, and its arguments, as a `TorchFunctionMode` gets them.
Function = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]
