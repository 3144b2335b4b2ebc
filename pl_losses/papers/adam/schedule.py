"""Kingma and Ba 2015, section 4: the learning rate that the convergence proof asks for."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pl_losses.core.validation import typed


class InverseSqrtLR(LRScheduler):
    r"""A learning rate of :math:`\alpha_t = \alpha / \sqrt{t}` at step t = 1, 2, ...

    The experiments of section 6.1 use it. The papers' modules call it every step, by its ``interval``.

    Args:
        optimizer: Its learning rates are alpha, group by group.
        last_epoch: Index of the last step, counted from 0; -1 at the start.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler = InverseSqrtLR(optimizer)
        >>> for t in range(1, 5):
        ...     print(t, round(optimizer.param_groups[0]["lr"], 4))
        ...     optimizer.step()
        ...     scheduler.step()
        1 1.0
        2 0.7071
        3 0.5774
        4 0.5
    """

    # How often a Trainer is to call it.
    interval = "step"

    @typed
    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rates of all groups for the next step."""
        return [base / math.sqrt(self.last_epoch + 1) for base in self.base_lrs]
