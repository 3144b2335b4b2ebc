"""Activation checkpointing for any LightningModule: less memory for more time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.checkpoint import checkpoint

from pl_losses.core.compat import of_lightning
from pl_losses.core.compat.of_torch import own_buffers
from pl_losses.core.validation import typed


class ActivationCheckpointing(Callback):
    """Keeps only the inputs of chosen layers in training, and computes what is within them again (Chen 2016).

    Autograd keeps what each operation needs for the backward pass. With this callback it keeps the inputs of
    the chosen layers alone, and runs these layers once more in the backward pass. Dropout draws the same
    masks the second time, and running statistics, as of batch normalisation, count the batch once. So the
    gradients are the same to the bit, under FSDP2 too.

    Choose blocks of several layers, such as residual blocks or the layers of an encoder. The memory is that
    of the inputs of all blocks, and of the inside of one.

    Args:
        layers: Pattern of the layers' names as in ``named_modules()``, such as "network.*", with the
            wildcards of ``fnmatch``. "*" also stands for dots. A layer within a chosen one is not
            wrapped again.

    Raises:
        TypeError: If ``layers`` is no string.
        ValueError: When a fit starts, if no layer has such a name, or the module is compiled.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = ActivationCheckpointing("encoder.layers.*")
        >>> trainer = Trainer(callbacks=[callback], accelerator="cpu", logger=False)

    Reference:
        Chen, Xu, Zhang and Guestrin 2016, Training Deep Nets with Sublinear Memory Cost.
    """

    @typed
    def __init__(self, layers: str) -> None:
        self.layers = layers
        self._wrapped: list[nn.Module] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wrap the layers before a strategy wraps the module."""
        if stage != "fit":
            return
        if of_lightning.is_compiled(pl_module):
            raise ValueError(
                "Expected no `ActivationCheckpointing` of a compiled module: torch.compile chooses by itself"
                " what is computed again"
            )
        names = [name for name, _ in pl_module.named_modules() if name]
        chosen = outermost([name for name in names if fnmatchcase(name, self.layers)])
        if not chosen:
            some = ", ".join(names[:3]) or "none"
            raise ValueError(f"Expected `layers` to match a layer such as {some} but got {self.layers!r}")
        self._wrapped = [pl_module.get_submodule(name) for name in chosen]
        for layer in self._wrapped:
            layer.forward = Recomputed(layer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the layers their own ``forward`` back."""
        for layer in self._wrapped:
            if isinstance(vars(layer).get("forward"), Recomputed):
                del layer.forward
        self._wrapped = []


class Recomputed:
    """A layer's ``forward`` that keeps its inputs only."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the outputs; with gradients, keep nothing but the inputs."""
        forward = type(self.layer).forward.__get__(self.layer)
        if not (self.layer.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=self.contexts, **kwargs)

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return what surrounds the first and the second time."""
        return nullcontext(), with_other_buffers(self.layer)


@contextmanager
def with_other_buffers(layer: nn.Module) -> Iterator[None]:
    """Let a layer change copies of its buffers, since it has changed the buffers themselves already."""
    owners = [own_buffers(module) for module in layer.modules()]
    kept = [dict(buffers) for buffers in owners]
    for buffers in owners:
        buffers.update({name: None if one is None else one.clone() for name, one in buffers.items()})
    try:
        yield
    finally:
        for buffers, before in zip(owners, kept, strict=True):
            buffers.update(before)


def outermost(names: list[str]) -> list[str]:
    """Return the names that lie in no other one.

    Example:
        >>> outermost(["a", "a.b", "ab", "c.d"])
        ['a', 'ab', 'c.d']
    """
    return [one for one in names if not any(one.startswith(f"{other}.") for other in names)]
