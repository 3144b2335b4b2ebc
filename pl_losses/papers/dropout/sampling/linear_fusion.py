"""Linear layers for many samples: one call for all samples, with masks folded into the weights if possible.

A mask that all inputs share can be moved to the weights: (x m) W^T = x (W m)^T.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_losses.core.compat import of_torch
from pl_losses.papers.dropout.sampling.calls import Args, Function, Kwargs
from pl_losses.papers.dropout.sampling.prefix_trace import PrefixDiffersError


class LinearFusion:
    """Calls linear layers for all samples, and finds dropouts whose product can be left to such a layer.

    A first pass finds the dropouts whose result only goes to a linear layer. In later passes, under
    ``torch.func.vmap``, each of these returns a stand-in, which only that layer may use.

    Attributes:
        found: The indices of these dropouts in a pass.
    """

    def __init__(self) -> None:
        self.found: frozenset[int] = frozenset()
        # All by the dropout's index in the pass.
        self._linear: dict[int, int]  # Bytes of the weights that its result went to.
        self._results: dict[int, weakref.ref[Tensor]]  # Its result, or the stand-in for it.
        self._bytes: dict[int, int]  # Bytes of that.
        self._products: dict[int, tuple[Tensor, Tensor]]  # What a stand-in is for: inputs and mask.
        self.begin()

    def watch(self, index: int, result: Tensor) -> None:
        """Note the result of a dropout in the first pass."""
        self._results[index] = weakref.ref(result)
        self._bytes[index] = result.numel() * result.element_size()

    def on_call(self, func: Function, args: Args, kwargs: Kwargs) -> None:
        """Note in the first pass a function that is about to be called."""
        for index in self._seen_by(args, kwargs):
            fits = func is F.linear and len(args) > 1 and args[0] is self._results[index]()
            # Folding pays if the layer has fewer outputs than the batch has inputs.
            if fits and index not in self._linear and args[1].ndim == 2 and len(args[1]) < len(args[0]):
                self._linear[index] = args[1].numel() * args[1].element_size()
            else:  # Another function sees the result, or a second one does: it has to be computed.
                del self._results[index]

    def finalize(self) -> int:
        """Finish the first pass, while its output still exists.

        Returns:
            Bytes of the largest result, or of the weights of the layer for which it has a stand-in.
        """
        # A result that is alive is in the output, or kept by the module, where no function call shows it.
        dead = {index for index, result in self._results.items() if result() is None}
        self.found = frozenset(dead & self._linear.keys())
        self._bytes.update({index: self._linear[index] for index in self.found})
        return max(self._bytes.values(), default=0)

    def begin(self) -> None:
        """Prepare for a pass, for many samples within that ``torch.func.vmap``."""
        self._level = of_torch.maybe_current_level()
        self._linear, self._results, self._bytes, self._products = {}, {}, {}, {}

    def placeholder(self, index: int, inputs: Tensor, mask: Tensor) -> Tensor:
        """Return a stand-in for ``inputs * mask``, inputs [B, I] and mask [1, I]."""
        # A new tensor of the unmasked values: whoever takes it is recognised by its identity.
        result = inputs.view(inputs.shape)
        self.watch(index, result)
        self._products[index] = inputs, mask
        return result

    def linear(self, func: Function, args: Args, kwargs: Kwargs) -> Tensor | None:
        """Compute a linear layer in a later pass, if its inputs differ between samples; else ``None``."""
        inputs, mask = args[0] if args else None, None
        # Every other use of a stand-in would take unmasked values for the dropout's result.
        for index in self._seen_by(args, kwargs):
            if func is not F.linear or inputs is not self._results[index]() or index not in self._products:
                raise PrefixDiffersError("it does not always call the same functions after a dropout")
            inputs, mask = self._products.pop(index)
        if func is F.batch_norm:
            return self._batch_norm(args, kwargs)
        if func is not F.linear or inputs is None:
            return None
        if of_torch.maybe_current_level() != self._level:  # Within a transform of the module's own.
            return None if mask is None else F.linear(inputs * mask, *args[1:], **kwargs)
        return _linear(inputs, mask, *args[1:], **kwargs)

    def _batch_norm(self, args: Args, kwargs: Kwargs) -> Tensor | None:
        """Normalise by running statistics: samples join the batch; vmap would copy them to channels."""
        others = (*args[1:], *kwargs.values())
        if len(args) < 2 or of_torch.maybe_current_level() != self._level or any(map(_is_batched, others)):
            return None
        rows = _of_all(args[0])
        if rows is None or args[1] is None:
            return None
        found = F.batch_norm(rows.flatten(0, 1), *args[1:], **kwargs)
        return _for_each(found.view(rows.shape), 0)

    def finish(self) -> None:
        """Finish a later pass, and check that no stand-in is left."""
        if any(result() is not None for result in self._results.values()):
            raise PrefixDiffersError("it does not always keep the same results")

    def _seen_by(self, args: Args, kwargs: Kwargs) -> list[int]:
        if not self._results:
            return []
        results = ((index, reference()) for index, reference in self._results.items())
        return [index for index, result in results if result is not None and _among(result, (args, kwargs))]


def _among(tensor: Tensor, values: Args | list[object] | Kwargs) -> bool:
    inner = values.values() if isinstance(values, dict) else values
    return any(
        value is tensor or (isinstance(value, (tuple, list, dict)) and _among(tensor, value))
        for value in inner
    )


def _linear(inputs: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """Compute a linear layer of ``inputs * mask`` for all samples; ``None`` if ``torch.func.vmap`` shall."""
    if _of_all(weight) is not None or _of_all(bias) is not None:
        return None if mask is None else F.linear(inputs * mask, weight, bias)
    rows, masks = _of_all(inputs), _of_all(mask)
    if masks is None:
        # One call, for which vmap would make a product and then a sum.
        return None if rows is None else _for_each(F.linear(rows, weight, bias), 0)
    weights = weight * masks  # [K, O, I]
    if rows is not None:
        product = rows @ weights.mT if bias is None else torch.baddbmm(bias, rows, weights.mT)
        return _for_each(product, 0)
    # The inputs are the same for all samples: one matrix product with the weights of all of them.
    biases = bias if bias is None else bias.repeat(len(masks))
    product = F.linear(inputs, weights.flatten(0, 1), biases)
    return _for_each(product.view(len(inputs), len(masks), -1), 1)


def _is_batched(value: object) -> bool:
    return isinstance(value, Tensor) and of_torch.is_batched(value)


def _of_all(tensor: Tensor | None) -> Tensor | None:
    """Return [K, ...] of a tensor that differs between the samples; ``None`` for other tensors."""
    if tensor is None or not of_torch.is_batched(tensor):
        return None
    return of_torch.unwrapped(tensor).movedim(of_torch.batch_dim(tensor), 0)


def _for_each(tensor: Tensor, dim: int) -> Tensor:
    """Return each sample's view of a tensor that has all samples along ``dim``."""
    return of_torch.add_batch_dim(tensor, dim, of_torch.current_level())
