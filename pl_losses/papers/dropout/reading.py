"""How :class:`~pl_losses.papers.dropout.monitor.DropoutUncertaintyMonitor` reads batches and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import in_words, typed
from pl_losses.papers.dropout.sampling.isolation import call_module


class Reading:
    """Reads inputs and targets of a batch, and probabilities or values of outputs; override any method.

    Args:
        target: Position of the target in a tuple, or its name in a mapping.
    """

    @typed
    def __init__(self, target: int | str | None = None) -> None:
        self.target = target

    def get_inputs(self, batch: Any) -> Any:
        """Return what the module is called with: a tensor, a tuple of arguments or a mapping of keywords.

        From a tuple that is its first item or, with ``target``, the items before the target (after it, if the
        target is the first). From a mapping it is everything but the target.

        Raises:
            TypeError: If the batch is anything else; then override this method.
        """
        if isinstance(batch, Mapping):
            name = self._name(batch)
            return {key: value for key, value in batch.items() if name is None or key != name}
        if isinstance(batch, (Tensor, PackedSequence)):
            return batch
        if isinstance(batch, (tuple, list)) and batch:
            place = 1 if self.target is None else self._place(batch)
            # Predictions may have no target.
            found = list(batch if place is None or len(batch) == 1 else batch[:place] or batch[1:])
            if all(isinstance(one, (Tensor, PackedSequence, Mapping)) for one in found):
                return found[0] if len(found) == 1 else tuple(found)
        raise TypeError(
            f"Expected a batch to be a tensor or (inputs, target) but got {in_words(batch)}: override"
            f" `get_inputs` of {type(self).__name__}"
        )

    def get_target(self, batch: Any) -> Tensor:
        """Return right classes or values, by default a pair's second item, or a mapping's "labels".

        Raises:
            TypeError: If it is ambiguous and there is no ``target``; then set that, or override this
                method.
        """
        found = None
        if isinstance(batch, Mapping):
            name = self._name(batch)
            found = None if name is None else batch[name]
        elif isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence):
            place = self._place(batch)
            if self.target is None and len(batch) == 2:
                place = 1
            found = None if place is None else batch[place]
        if isinstance(found, Tensor):
            return found
        methods, options = "`get_target`", ""
        if isinstance(batch, Mapping):
            methods, options = "`get_inputs`", f", and `get_target`, or set `target` to one of {list(batch)}"
        elif isinstance(batch, (tuple, list)) and len(batch) > 1:
            options = f", or set `target` to its place, 0 to {len(batch) - 1}"
        raise TypeError(
            f"Expected a batch to be (inputs, target) but got {in_words(batch)}: override {methods} of"
            f" {type(self).__name__}{options}"
        )

    def _name(self, batch: Mapping[str | int, object]) -> str | int | None:
        """Return the key of a mapping's target."""
        if self.target is not None:
            return self.target if self.target in batch else None
        return "labels" if "labels" in batch else None

    def _place(self, batch: Sequence[object]) -> int | None:
        """Return the position of a tuple's target, if it was given and exists."""
        names = getattr(batch, "_fields", ())
        place = names.index(self.target) if self.target in names else self.target
        if not isinstance(place, int) or not -len(batch) <= place < len(batch):
            return None
        return place % len(batch)

    def call(self, pl_module: LightningModule, inputs: Any) -> Any:
        """Make one pass through the module, by default by its ``forward``."""
        return call_module(pl_module, inputs)

    def to_probabilities(self, pl_module: LightningModule, outputs: Any) -> Tensor:
        """Turn the outputs of one pass into probabilities [B, C].

        Raises:
            TypeError: If the outputs are not a tensor, and have no "logits"; then override this method.
            ValueError: If they are of another shape than [B, C], [B, 1] or [B].
        """
        hook = getattr(pl_module, "class_probabilities", None)
        if callable(hook):
            return self._tensor(hook(outputs), "to_probabilities")
        logits = self._tensor(outputs, "to_probabilities")
        if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
            second = logits.flatten().sigmoid()
            return torch.stack([1 - second, second], dim=1)
        if logits.ndim != 2:
            raise ValueError(
                f"Expected logits of shape [B, C] but got {list(logits.shape)}: override `to_probabilities`"
                f" of {type(self).__name__}, or give the module a `class_probabilities(outputs)`"
            )
        return logits.softmax(dim=1)

    def to_values(self, pl_module: LightningModule, outputs: Any) -> Tensor:
        """Turn the outputs of one pass into values [B] or [B, Q], in the units of the target.

        Raises:
            TypeError: If the outputs are not a tensor, and have no "logits"; then override this method.
        """
        hook = getattr(pl_module, "predicted_values", None)
        return self._tensor(hook(outputs) if callable(hook) else outputs, "to_values")

    def _tensor(self, value: object, method: str) -> Tensor:
        if isinstance(value, Mapping) and "logits" in value:  # such as a ModelOutput of transformers
            value = value["logits"]
        if isinstance(value, Tensor):
            return at_least_float32(value)
        hook = {"to_probabilities": "class_probabilities", "to_values": "predicted_values"}[method]
        raise TypeError(
            f"Expected the module to return a tensor but got {in_words(value)}: override `{method}` of"
            f" {type(self).__name__}, or give the module a `{hook}(outputs)`"
        )
