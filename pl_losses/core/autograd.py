"""The type of what torch hands to the passes of a ``torch.autograd.Function``."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Context(Protocol):
    """What a function keeps for its backward pass; torch has no one type that says all of this.

    A function that keeps more than tensors extends it by these attributes.
    """

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """What ``save_for_backward`` was given."""

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        """Whether each argument of the forward pass needs a gradient."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors that are arguments or results."""

    def set_materialize_grads(self, value: bool) -> None:
        """Say whether gradients that are missing arrive as zeros, else as ``None``."""
