"""What monitors of training share: hooks around steps, one copy from the device and one row per step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from pl_losses.core.kinds import is_a
from pl_losses.core.metrics import name_class
from pl_losses.core.names import distinct
from pl_losses.core.validation import check_counts
from pl_losses.monitoring.rows import Array, JoinedRows, Row, join_rows, log_row
from pl_losses.monitoring.steps import OptimizerSteps, is_hookable, logged_step, torch_optimizers

UNREADABLE = ("DeepSpeedStrategy", "FSDPStrategy")
Numbers = Tensor | Array | list[float]


@dataclass
class Part:
    """One monitor's share of a row, before it is reduced over ranks and copied from the device.

    Attributes:
        sums: Numbers that are summed over ranks with different shards, [S]; an array if known on the CPU.
        maxima: Numbers of which the maximum over ranks is taken, [M]; otherwise the same.
        finish: Writes into the row on rank zero, given both as float64 arrays.
    """

    sums: Numbers
    maxima: Numbers
    finish: Callable[[Array, Array, Row], None]


class Monitor(Callback):
    """Base of the callbacks that look at parameters and optimizers after a step.

    A subclass overrides :meth:`prepare`, which runs once when training starts, and :meth:`collect`, which
    runs after an optimizer's step if that step is logged. Nothing is computed on other steps. When training
    replaces an optimizer by another one, :meth:`prepare` runs again. The parts of all monitors of a trainer
    are copied from the device together and logged as one row, together with Lightning's own of that step. If
    parameters or optimizer states are sharded, every rank collects its own, and at most two collectives bring
    them together; otherwise only rank zero collects. DeepSpeed and the first FSDP flatten parameters and
    states: with them a monitor warns and does nothing.

    Args:
        every_n_steps: Look at every n-th step; the trainer's ``log_every_n_steps`` if ``None``.

    Raises:
        TypeError: If ``every_n_steps`` is no integer.
        ValueError: If ``every_n_steps`` is not positive.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        check_counts(every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self._handles: list[OptimizerSteps] = []
        self._rows: list[JoinedRows] = []
        self._parts: list[Part] = []
        self._sharded = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave out hooks and parts to be logged, which belong to one process and one step.

        Leave out ``log`` and ``log_dict``, too: Lightning lends them to callbacks, bound to the module.
        """
        kept = {key: value for key, value in self.__dict__.items() if key not in ("log", "log_dict")}
        return kept | {"_handles": [], "_rows": [], "_parts": []}

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find and name what to look at; runs on all ranks, and again after optimizers were replaced."""

    def begin(self, optimizer: Optimizer) -> None:
        """Prepare for a step; called before every step, logged or not."""

    def end(self, optimizer: Optimizer) -> None:
        """Finish a step; called after every step, logged or not, before :meth:`collect`."""

    def collect(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> list[Part]:
        """Collect what to log of this optimizer's step; on all ranks or, unsharded, on rank zero only."""
        raise NotImplementedError

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what to look at, and register hooks on the optimizers."""
        self._detach()
        if not trainer.loggers:
            warnings.warn(f"{type(self).__name__} logs nothing: the trainer has no logger", stacklevel=2)
            return
        if is_a(trainer.strategy, *UNREADABLE):
            rank_zero_warn(
                f"{type(self).__name__} logs nothing: {type(trainer.strategy).__name__} keeps weights and"
                " optimizer states where it cannot read them"
            )
            return
        self._prepare(trainer, pl_module)
        every = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or not (self._sharded or trainer.is_global_zero):
            return

        def look(optimizer: Optimizer) -> None:
            self.end(optimizer)
            if (logged_step(trainer) + 1) % every == 0:
                with torch.no_grad():
                    self._parts += self.collect(trainer, pl_module, optimizer)

        renew = partial(self._prepare, trainer, pl_module)
        self._handles = [OptimizerSteps(trainer, look, self.begin, renew)]
        self._rows = join_rows(trainer.loggers)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Send the row of the step before, if Lightning logged none."""
        for rows in self._rows:
            rows.send()

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        optimizers = torch_optimizers(trainer)
        self._sharded = any(is_sharded(optimizer) for optimizer in optimizers)
        if silent := [type(one).__name__ for one in optimizers if not is_hookable(one)]:
            rank_zero_warn(
                f"{type(self).__name__} leaves out {', '.join(silent)}: it does not say when it steps, as"
                " torch's optimizers do"
            )
        self.prepare(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what all monitors of the trainer collected, in the last of those that collected something."""
        if not self._parts:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        monitors = [one for one in callbacks if isinstance(one, Monitor) and one._parts]
        if monitors[-1] is not self:
            return
        parts = [part for monitor in monitors for part in monitor._parts]
        for monitor in monitors:
            monitor._parts = []
        row = bring_together(parts, trainer, self._sharded)
        if row is not None:
            log_row(trainer, row, logged_step(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the hooks, and say what was trained."""
        self._detach()
        name_class(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hooks."""
        self._detach()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        for rows in self._rows:
            rows.remove()
        self._handles, self._rows, self._parts = [], [], []


def is_sharded(optimizer: Any) -> bool:
    """Return whether ranks hold different parts of the parameters (DTensor) or of the states (ZeRO)."""
    tensors = (tensor for group in optimizer.param_groups for tensor in group["params"])
    return type(optimizer).__name__ == "ZeroRedundancyOptimizer" or any(
        isinstance(tensor, DTensor) for tensor in tensors
    )


def own_shard(tensor: Tensor, sharded: bool, rank: int) -> Tensor | None:
    """Return the part of a tensor that this rank reports, or ``None`` if another rank reports it.

    Args:
        tensor: Plain, or a DTensor.
        sharded: Whether the ranks' parts will be summed.
        rank: This process's global rank.
    """
    if isinstance(tensor, DTensor):
        place = tensor.device_mesh.get_coordinate()
        copies = [
            where
            for where, placement in zip(place or (), tensor.placements, strict=True)
            if isinstance(placement, Replicate)
        ]
        return None if any(copies) else tensor.to_local()
    return tensor if not sharded or rank == 0 else None


def bring_together(parts: list[Part], trainer: Trainer, sharded: bool) -> Row | None:
    """Reduce the parts over the ranks if sharded, copy them once, and finish the row on rank zero."""
    vectors = [numbers for part in parts for numbers in (part.sums, part.maxima)]
    if sharded:
        device = trainer.strategy.root_device
        for start, operation in enumerate((torch.distributed.ReduceOp.SUM, torch.distributed.ReduceOp.MAX)):
            own = [vector(numbers, device) for numbers in vectors[start::2]]
            whole = torch.cat(own)
            if len(whole):
                torch.distributed.all_reduce(whole, operation)
            vectors[start::2] = torch.split(whole, [len(numbers) for numbers in own])
    if not trainer.is_global_zero:
        return None
    row, values = Row(), iter(on_cpu(vectors))
    for part in parts:
        part.finish(next(values), next(values), row)
    return row


def on_cpu(vectors: list[Numbers]) -> list[Array]:
    """Convert vectors to arrays; tensors are copied from their device all at once."""
    tensors = [one for one in vectors if isinstance(one, Tensor)]
    copied, end = np.empty(0), 0
    if tensors:
        same = [one.to(tensors[0].device, torch.float32) for one in tensors]
        copied = torch.cat(same).cpu().numpy().astype(np.float64)
    arrays = []
    for one in vectors:
        start, end = end, end + len(one) * isinstance(one, Tensor)
        arrays.append(copied[start:end] if isinstance(one, Tensor) else np.asarray(one, dtype=np.float64))
    return arrays


def vector(
    numbers: Numbers | Sequence[float | Tensor], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Move numbers to a device without waiting for it.

    Args:
        numbers: N numbers: a tensor, or a sequence of floats and scalar tensors.
        device: Target device.
        dtype: Target type.

    Returns:
        Shape [N].
    """
    if isinstance(numbers, Tensor):
        return numbers.to(device, dtype, non_blocking=True)
    if not any(isinstance(number, Tensor) for number in numbers):
        return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)
    return torch.stack(
        [
            number.reshape(()).to(device, dtype, non_blocking=True)
            if isinstance(number, Tensor)
            else torch.full((), number, device=device, dtype=dtype)
            for number in numbers
        ]
    )


def optimizer_names(optimizers: list[Any]) -> list[list[str]]:
    """Name each parameter group of each optimizer uniquely, as ``LearningRateMonitor`` does.

    Names are ``Adam``, and ``Adam-1`` for a second one; with several groups ``Adam/pg1``, ``Adam/pg2``. A
    group's own ``name`` replaces ``pg1``, with a number if it is repeated: ``Adam/weights-1``.
    """
    names = []
    for name, optimizer in zip(
        distinct([type(one).__name__ for one in optimizers], start=1), optimizers, strict=True
    ):
        groups = optimizer.param_groups
        # A slash would turn one group into two, a group and a tensor of it.
        own = [str(group.get("name", f"pg{n}")).replace("/", ".") for n, group in enumerate(groups, 1)]
        alone = len(groups) == 1 and "name" not in groups[0]
        names.append([name] if alone else [f"{name}/{group}" for group in distinct(own, start=1)])
    return names
