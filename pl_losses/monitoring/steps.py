"""The steps of a trainer's optimizers, seen where they happen, and the step that a row is logged with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from pl_losses.core.compat import of_torch
from pl_losses.core.compat.of_lightning import logged_step as logged_step


class OptimizerSteps:
    """Calls back before and after every step of a trainer's optimizers, whoever asks for it.

    It hooks into torch's optimizers, since not every step passes Lightning: those of
    ``optimizers(use_pl_optimizer=False)`` do not. An optimizer that is put in place of another one is met at
    its first step. A step within a step, as of a class that calls its parent's, is part of it.

    Args:
        trainer: Whose optimizers.
        after: Called with the optimizer that has made a step.
        before: Called with the optimizer that begins one.
        renew: Called when the trainer's optimizers are others than before.
    """

    def __init__(
        self,
        trainer: Trainer,
        after: Callable[[Optimizer], None],
        before: Callable[[Optimizer], None] = lambda optimizer: None,
        renew: Callable[[], None] = lambda: None,
    ) -> None:
        self.trainer, self.after, self.before, self.renew = trainer, after, before, renew
        self._handles: list[RemovableHandle] = []
        self._attach()
        self._everywhere = register_optimizer_step_pre_hook(self._begin)

    def remove(self) -> None:
        """Let go of all optimizers."""
        self._everywhere.remove()
        self._release()

    def known(self, optimizer: Optimizer) -> bool:
        """Whether it is one of the trainer's, which may have got others since the last look."""
        if id(optimizer) in self._optimizers:
            return True
        if not any(optimizer is one for one in torch_optimizers(self.trainer)):
            return False
        self._release()
        self._attach()
        self.renew()
        return id(optimizer) in self._optimizers

    def _attach(self) -> None:
        self._optimizers = {id(one): one for one in torch_optimizers(self.trainer) if is_hookable(one)}
        self._handles = [one.register_step_post_hook(self._end) for one in self._optimizers.values()]
        self._under_way: dict[int, FrameType] = {}

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # Both run in every step of training, logged or not: each call counts.
    def _begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        key = id(optimizer)
        if key in self._optimizers or self.known(optimizer):
            step, outer = sys._getframe(1), self._under_way.get(key)
            if outer is None or not is_within(step, outer):
                self._under_way[key] = step
                self.before(optimizer)

    def _end(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        key = id(optimizer)
        if self._under_way.get(key) is sys._getframe(1):
            del self._under_way[key]
            self.after(optimizer)


def is_within(frame: FrameType | None, outer: FrameType | None) -> bool:
    """Whether a call is part of another one: one that raised an exception is over, though no hook told."""
    while outer is not None and frame is not None:
        if frame is outer:
            return True
        frame = frame.f_back
    return False


def unwrap(optimizer: Any) -> Any:
    """The torch optimizer in Lightning's or other wrappers, or the innermost thing that is none."""
    while (inner := getattr(optimizer, "optimizer", None)) is not None and hasattr(inner, "param_groups"):
        optimizer = inner
    return optimizer


def torch_optimizers(trainer: Trainer) -> list[Any]:
    """A trainer's optimizers, out of their wrappers."""
    return [unwrap(optimizer) for optimizer in trainer.optimizers]


def is_hookable(optimizer: Any) -> bool:
    """Whether torch tells when it steps."""
    return of_torch.counts_steps(optimizer) and hasattr(type(optimizer).step, "hooked")
