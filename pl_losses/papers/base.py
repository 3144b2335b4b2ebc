"""What the LightningModules of all papers share: optimizers from callables, sharding, clear refusals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from pl_losses.observers.loaders import evaluation_loaders, unrepeated
from pl_losses.observers.metrics import define_metrics
from pl_losses.observers.random_state import RandomState


class PaperModule(LightningModule):
    """Base of the papers' modules: pass it an optimizer's callable, override what the paper adds.

    Attributes:
        best: Logged key to whether its smallest or largest value is the best; loggers that can, show it.

    Args:
        optimizer: Parameters to optimizer.
        lr_scheduler: Optimizer to scheduler. One that takes ``total_steps`` (OneCycleLR) is given the
            number of optimizer steps of the run and moves every step; any other moves once an epoch,
            or as its attribute ``interval`` says ("step" or "epoch").

    Raises:
        TypeError: If ``optimizer`` cannot be called, or is an optimizer already.
    """

    best: ClassVar[dict[str, Literal["min", "max"]]] = {}

    def __init__(self, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None = None) -> None:
        super().__init__()
        if isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer):
            raise TypeError(
                "Expected `optimizer` to be a function of the parameters, such as"
                f" `lambda parameters: torch.optim.Adam(parameters)`, but got {optimizer!r:.80}"
            )
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler

    def configure_callbacks(self) -> Sequence[Callback]:
        """Let checkpoints have the state of the random numbers; an override adds its own to these."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [] if any(isinstance(one, RandomState) for one in callbacks) else [RandomState()]

    def configure_model(self) -> None:
        """Shard the parameters when the strategy has a device mesh (FSDP2), else leave them as they are."""
        if self.device_mesh is None or getattr(self, "_sharded", False):
            return
        from torch.distributed.fsdp import fully_shard

        fully_shard(self, mesh=self.device_mesh["data_parallel"])
        self._sharded = True

    def parameter_groups(self) -> Iterable[Any]:
        """What the optimizer is given: all parameters; override it to treat some of them differently."""
        return self.parameters()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer, and the scheduler if there is one, from the constructor's callables."""
        optimizer = self._optimizer(self.parameter_groups())
        if self._lr_scheduler is None:
            return optimizer
        try:
            scheduler = self._lr_scheduler(optimizer)
            interval = getattr(scheduler, "interval", "epoch")
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}
        except ValueError as error:
            if "total_steps" not in str(error):
                raise
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self._lr_scheduler(optimizer, total_steps=steps)  # type: ignore[call-arg]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Tell the logger which value of each metric is the best."""
        define_metrics(self.trainer, self.best)

    def on_train_start(self) -> None:
        """Go on within the epoch that a checkpoint was saved in."""
        # Lightning forgets where its loader was when a scheduler has asked for the number of steps.
        self.trainer.fit_loop._load_combined_loader_states()

    def own_rows(self, batch_idx: int, size: int) -> int:
        """How many inputs of a validation or test batch to count, the first ones, of ``size``.

        The others are repetitions by which a ``DistributedSampler`` evens out the ranks.
        """
        if self._trainer is None or not self._trainer.evaluating:
            return size
        loaders = evaluation_loaders(self._trainer, "test" if self._trainer.testing else "val")
        return unrepeated(loaders[0], batch_idx, size)

    def refuse_non_finite(self, loss: Tensor) -> None:
        """Stop at a loss that is not finite: at once on the CPU, at the next logged step on an accelerator.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        # Asking an accelerator for the value waits for it; at a logged step the logger does so anyway.
        every = getattr(self._trainer, "log_every_n_steps", 1)
        logged = (self.global_step + 1) % every == 0 if every else False
        if (loss.device.type == "cpu" or logged) and not torch.isfinite(loss):
            raise FloatingPointError(
                f"Expected a finite loss but got {loss.item()} at step {self.global_step}: look at the "
                "inputs, or lower the learning rate"
            )
