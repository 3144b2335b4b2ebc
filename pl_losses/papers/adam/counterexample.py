"""Reddi, Kale and Kumar 2018, section 3: the convex problem on which Adam goes to the worst point."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from pl_losses.core.base import PaperModule
from pl_losses.core.declared import Keys
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.panels import Sections
from pl_losses.core.validation import check_counts, check_init
from pl_losses.papers.adam import manifest
from pl_losses.papers.adam.optimizer import Adam


class AMSGradCounterexample(PaperModule):
    r"""One weight x in [-1, 1] with the loss C x at every third step t = 1, 4, ... and -x at the others.

    The sum over three steps is :math:`(C - 2) x`. It is least at x = -1. But Adam goes to +1 with
    :math:`\beta_1 = 0`, :math:`\beta_2 = 1 / (1 + C^2)` and the learning rate :math:`\alpha / \sqrt{t}`. Adam
    divides the rare large gradient by its own size, so the small gradients win. AMSGrad goes to -1, since its
    denominator never gets smaller. The module brings its own data, the numbers of the steps. It logs
    ``train/loss``, ``train/x`` and the average regret ``train/regret``. In the test it logs ``test/x`` and
    ``test/loss``, the mean loss over three steps. That is :math:`-(C - 2) / 3` at the best point and
    :math:`(C - 2) / 3` at the worst.

    Args:
        slope: C.
        steps: Number of steps of an epoch.
        optimizer: Makes the optimizer from the parameters. With ``amsgrad=True`` x goes to -1.
        lr_scheduler: Makes the scheduler from the optimizer; the paper's is
            :class:`~pl_losses.papers.adam.schedule.InverseSqrtLR`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> AMSGradCounterexample(slope=3.0).objective(1), AMSGradCounterexample(slope=3.0).objective(2)
        (3.0, -1.0)
    """

    KEYS: ClassVar[Keys] = {
        "train/loss": "loss of the step",
        "train/x": "the coordinate",
        "train/regret": "average regret so far",
        "test/loss": "average loss at the end",
        "test/x": "the coordinate at the end",
    }
    panels: ClassVar[Sections] = manifest.AMSGRAD
    best: ClassVar[dict[str, Literal["min", "max"]]] = {"train/regret": "min", "test/loss": "min"}

    def __init__(
        self,
        slope: float = 3.0,
        steps: int = 3000,
        *,
        optimizer: OptimizerCallable = Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        if slope <= 2:
            raise ValueError(
                f"Expected `slope` to be more than 2, for -1 to be the best point, but got {slope}"
            )
        check_counts(steps=steps)
        super().__init__(optimizer, lr_scheduler)
        save_plain_hyperparameters(self)
        self.slope, self.steps = slope, steps
        self.x = nn.Parameter(torch.zeros(()))
        # Regret of the fit so far, against the best fixed point, -1.
        self.regret = 0.0

    def objective(self, t: int) -> float:
        """Return the slope of f_t, t = 1, 2, ..."""
        return self.slope if t % 3 == 1 else -1.0

    def train_dataloader(self) -> Iterable[int]:
        """Return the numbers of an epoch's steps, from 0 on."""
        return range(self.steps)

    def test_dataloader(self) -> Iterable[int]:
        """Return one entry, as the test is a closed form."""
        return range(1)

    def on_train_start(self) -> None:
        """Start with no regret, unless the fit resumes from a checkpoint."""
        super().on_train_start()
        if self.global_step == 0:
            self.regret = 0.0

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Save the regret so far."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["regret"] = self.regret

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the regret so far."""
        super().on_load_checkpoint(checkpoint)
        self.regret = checkpoint["regret"]

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """Compute and log f_t(x) at the step's t."""
        t = self.global_step + 1
        loss = self.objective(t) * self.x
        self.regret += loss.item() + self.objective(t)
        self.log_dict({"train/loss": loss, "train/x": self.x.detach(), "train/regret": self.regret / t})
        return loss

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Move x to the nearest point of [-1, 1]."""
        self.x.data.clamp_(-1, 1)

    def test_step(self, batch: int, batch_idx: int) -> None:
        """Log the mean loss over three steps."""
        mean = (self.slope - 2) / 3 * self.x.detach()
        self.log_dict({"test/loss": mean, "test/x": self.x.detach()}, batch_size=1, sync_dist=True)
