"""Masks that all inputs share, folded into the weights of a linear layer: (x m) W^T = x (W m)^T."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_losses.papers.dropout.replay import PrefixDiffersError


class Folding:
    """Finds dropouts whose result only goes to a linear layer, and leaves the product to that layer.

    A first pass finds them. In later ones, under ``torch.func.vmap``, each returns a stand-in, which nothing
    but the linear layer may see.

    Attributes:
        found: Which of the dropouts of a pass these are.
    """

    def __init__(self) -> None:
        self.found: frozenset[int] = frozenset()
        self._linear: set[int]
        self._results: dict[int, weakref.ref[Tensor]]
        self._bytes: dict[int, int]
        self._products: dict[int, tuple[Tensor, Tensor]]
        self.begin()

    def watch(self, index: int, result: Tensor) -> None:
        """In the first pass: the result of a dropout."""
        self._results[index] = weakref.ref(result)
        self._bytes[index] = result.numel() * result.element_size()

    def look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """In the first pass: a function that is going to be called."""
        for index in self._seen_by(args, kwargs):
            fits = func is F.linear and args[0] is self._results[index]() and index not in self._linear
            # Where the layer has many outputs, it does not pay.
            if fits and args[1].ndim == 2 and 4 * len(args[1]) <= args[1].shape[1]:
                self._linear.add(index)
            else:
                del self._results[index]

    def settle(self) -> int:
        """The first pass is over, its output still there.

        Returns:
            The most bytes of a result for which there is no stand-in.
        """
        dead = {index for index, result in self._results.items() if result() is None}
        self.found = frozenset(dead & self._linear)
        return max((size for index, size in self._bytes.items() if index not in self.found), default=0)

    def begin(self) -> None:
        """Before a pass."""
        self._linear, self._results, self._bytes, self._products = set(), {}, {}, {}

    def stand_in(self, index: int, inputs: Tensor, mask: Tensor) -> Tensor:
        """In place of ``inputs * mask``, inputs [B, I] and mask [1, I]."""
        result = inputs.view(inputs.shape)
        self.watch(index, result)
        self._products[index] = inputs, mask
        return result

    def linear(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """In a later pass: the result of a linear layer that is called with a stand-in, if this is one."""
        for index in self._seen_by(args, kwargs):
            if func is not F.linear or args[0] is not self._results[index]() or index not in self._products:
                raise PrefixDiffersError("it does not always call the same functions after a dropout")
            return _linear(*self._products.pop(index), *args[1:], **kwargs)
        return None

    def finish(self) -> None:
        """A later pass is over."""
        if any(result() is not None for result in self._results.values()):
            raise PrefixDiffersError("it does not always keep the same results")

    def _seen_by(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        if not self._results:
            return []
        results = ((index, reference()) for index, reference in self._results.items())
        return [index for index, result in results if result is not None and _among(result, (args, kwargs))]


def _among(tensor: Tensor, values: Any) -> bool:
    inner = values.values() if isinstance(values, dict) else values
    return any(
        value is tensor or (isinstance(value, (tuple, list, dict)) and _among(tensor, value))
        for value in inner
    )


def _linear(inputs: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    output: Tensor = _FoldedLinear.apply(inputs, mask, weight, bias)
    return output


class _FoldedLinear(torch.autograd.Function):
    """For inputs that are the same for all samples, one matrix product with the weights of all of them."""

    @staticmethod
    def forward(inputs: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(inputs * mask, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: there are no gradients."""

    @staticmethod
    def vmap(info: Any, dims: Any, *tensors: Any) -> tuple[Tensor, int]:
        inputs, mask, weight, bias = tensors
        if dims != (None, 0, None, None):
            return torch.func.vmap(_FoldedLinear.forward, dims)(*tensors), 0
        weights = (weight * mask).flatten(0, 1)  # [K, O, I] -> [K O, I]
        bias = bias if bias is None else bias.repeat(info.batch_size)
        return F.linear(inputs, weights, bias).view(len(inputs), info.batch_size, -1), 1
