"""Fits that end after a whole step when they are interrupted, and checkpoints during training."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pl_losses.core.compat import of_lightning, of_torch
from pl_losses.core.run_folders import exists
from pl_losses.core.trust import folder_options
from pl_losses.monitoring.record import RunRecord, how_to_look

EVERY = 30.0  # Least seconds between checkpoints during training,
SHARE = 100  # and least multiple of the time that saving takes.
SPEED = 250e6  # Bytes a second: an estimate for the first one, of which no time is known yet.
DUE = 1  # Lower than all signals that are handled.
REQUEUE = 128  # Higher: where one rank is to be queued again and another to end, both is done.


def bytes_of(trainer: Trainer) -> int:
    """Return the bytes of most of a checkpoint: the weights, and what the optimizers keep."""
    module = trainer.lightning_module
    kept = [list(optimizer.state.values()) for optimizer in trainer.optimizers]
    parts = of_torch.tree_leaves([*module.parameters(), *module.buffers(), kept])
    return sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))


def lags(trainer: Trainer) -> bool:
    """Return whether the CPU runs ahead of the device and should not wait for it."""
    return trainer.strategy.root_device.type != "cpu"


class InterruptionCheckpoint(Callback):
    """Ends a fit after a whole step when a signal asks for it, and saves checkpoints then and before.

    The first Ctrl-C or SIGTERM lets the batch end (with several accelerators also the next one), and a
    validation that has begun. Then weights, optimizers, schedules, loader and callbacks belong to one step.
    All ranks end at the same step; they agree without waiting for accelerators. A second Ctrl-C ends at once
    and saves nothing. SLURM's signal before it stops a job (SIGUSR1) does the same, and queues the job again.

    Args:
        record: The record of the same run, which knows its folder.
        show: Prints one message.
        every: Least seconds between checkpoints, of which the newest two are kept; more if saving would take
            over 1 % of the time.

    Attributes:
        last_model_path: The newest of these checkpoints, as ``ModelCheckpoint`` calls it.
    """

    def __init__(self, record: RunRecord, show: Callable[[str], None] = print, every: float = EVERY) -> None:
        self.record = record
        self.show = show
        self.every = every
        self._noted = 0  # The signal that this process received.
        self._agreed = 0  # The signal that all ranks end for.
        self._validated = -1  # The batch after which the last validation came.
        self._training = self._telling = False
        self._handlers: dict[int, Any] = {}
        self._requeue = 0  # SLURM's signal.
        self._before: dict[int, Any] = {}
        self._zero = self._over = False
        self._group: Any = None
        self._pending: Any = None  # The ranks' request that is being reduced.
        self._saved = time.monotonic()
        self._cost: float | None = None  # Seconds of a save.
        self._recent: list[Path] = []
        self.last_model_path = ""

    def take_over(self, trainer: Trainer) -> None:
        """Take over SLURM's signal, as soon as there is a Trainer: it may come long before the first step.

        Until then it may be blocked, so that it does not end the process. :meth:`close` gives it back.
        """
        of_lightning.leave_signals(trainer)
        if threading.current_thread() is not threading.main_thread():
            return
        self._requeue = of_lightning.requeue_signal(trainer)
        taken = [signal.SIGINT, signal.SIGTERM, *([self._requeue] if self._requeue else [])]
        self._before = {number: signal.getsignal(number) for number in taken}
        if self._requeue:
            signal.signal(self._requeue, self._note)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [self._requeue])
            self._zero = trainer.is_global_zero

    def close(self) -> None:
        """Give the signals back; queue a job again whose end SLURM has announced."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if REQUEUE not in (self._noted, self._agreed) or not self._zero:
            return
        job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        command = ["scontrol", "requeue", f"{job}_{task}" if job else os.environ["SLURM_JOB_ID"]]
        try:
            subprocess.run(command, check=True, timeout=20)
        except (OSError, subprocess.SubprocessError) as error:
            self.show(f"The job is not queued again: {error}")
        else:
            self.show(f"SLURM's job {command[-1]} is queued again, and resumes this run by itself.")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print where the run is and how to resume it, in case it is killed."""
        run, saved = self.record.run, self.record.saved
        if stage == "fit" and run is not None and saved is not None and not self._training:
            place = run.folder if trainer.loggers else "last"
            self.show(f"Run: {run.folder}\nIf it is interrupted, resume with:\n  {self._command(place)}")

    def _command(self, checkpoint: object) -> str:
        command = ["pl-losses", "fit", "--config", str(self.record.saved), "--ckpt_path", str(checkpoint)]
        return shlex.join([*command, *self.record.trust, *folder_options(self.record.config.get("trainer"))])

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals."""
        # Lightning's own handler of SIGTERM makes ranks wait for one another at arbitrary places.
        if threading.current_thread() is not threading.main_thread() or self._handlers:
            return
        self._telling = trainer.is_global_zero
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self._noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = REQUEUE if number == self._requeue else number
        if self._over:
            self._noted = asked
            raise SIGTERMException
        if not self._noted and self._telling:
            # Not with `print`, which must not be entered twice.
            os.write(2, b"\nEnding after this batch; Ctrl-C once more ends at once and saves nothing.\n")
        self._noted = max(self._noted, asked)

    def _let_go(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the time to the next checkpoint: there is something to save now."""
        self.on_sanity_check_start(trainer, pl_module)
        self._saved, self._pending = time.monotonic(), None
        self._group = None
        if trainer.world_size > 1 and torch.distributed.is_initialized():
            # A group of CPUs: a number on an accelerator is readable only after all work queued before it.
            self._group = torch.distributed.new_group(backend="gloo")
        self._agree_at_once(trainer)
        if self._agreed:
            raise SIGTERMException
        self._training = True

    def _agree_at_once(self, trainer: Trainer) -> None:
        self._agree(trainer)
        self._agree(trainer)

    def _agree(self, trainer: Trainer) -> bool:
        """Agree on a signal to end for; return whether a checkpoint is due, the same on all ranks."""
        if self._agreed:
            return False
        elapsed = time.monotonic() - self._saved
        # After the first step the optimizers have made what they keep.
        due = elapsed > self.every and trainer.global_step > 0
        if due:
            self._cost = bytes_of(trainer) / SPEED if self._cost is None else self._cost
            due = elapsed > SHARE * self._cost
        asked = self._most(trainer, self._noted or (DUE if due and trainer.is_global_zero else 0))
        self._agreed = asked if asked != DUE else 0
        # Lightning ends its loops where all of a step is done.
        of_lightning.end_soon(trainer, bool(self._agreed))
        return asked == DUE

    def _most(self, trainer: Trainer, asked: int) -> int:
        """Return the largest of the ranks' requests; with accelerators those of the previous call."""
        if trainer.world_size == 1:
            return asked
        if self._group is None:  # Ranks with another way to communicate, as on TPUs.
            device = trainer.strategy.root_device
            reduced: Any = trainer.strategy.reduce(torch.tensor(asked, device=device), reduce_op="max")
            return int(reduced)
        number = torch.tensor(asked)
        most = torch.distributed.ReduceOp.MAX
        work = torch.distributed.all_reduce(number, most, self._group, async_op=True)
        before, self._pending = self._pending, (work, number)
        if lags(trainer):
            if before is None:
                return 0
            work, number = before
        work.wait()
        return int(number)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save or end, unless gradients are still accumulated."""
        if of_lightning.accumulates(trainer):
            return
        # One that is saved before its validation would go on without it.
        whole = not of_lightning.has_trained(trainer) and not of_lightning.validates_now(trainer)
        if self._agree(trainer) and whole:
            self._save_recent(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a validation end, as it could not be resumed in the middle."""
        if not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            of_lightning.end_soon(trainer, False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the fit after the validation if a signal came."""
        if not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            self._agree(trainer)
            of_lightning.end_soon(trainer, bool(self._agreed))
            self._validated = trainer.fit_loop.epoch_loop.total_batch_idx

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save or end between two epochs."""
        if self._agree(trainer):
            self._save_recent(trainer)

    def _save_recent(self, trainer: Trainer) -> None:
        folder = self.record.folder
        began = time.monotonic()
        if folder is not None and trainer.checkpoint_callbacks:
            path = folder / "checkpoints" / f"recent-step={trainer.global_step}.ckpt"
            trainer.save_checkpoint(path, weights_only=False)
            self.last_model_path = str(path)
            self.record.keep(trainer, str(path))
            self._recent = [*(one for one in self._recent if one != path), path]
            self._forget(trainer, self._recent[:-2])
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def _forget(self, trainer: Trainer, files: list[Path]) -> None:
        for file in files:
            trainer.strategy.remove_checkpoint(file)
            self._recent.remove(file)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers: what comes after training cannot be resumed."""
        self._agree_at_once(trainer)
        self._training, self._over = False, True
        self._let_go()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove outdated checkpoints; end if a signal came too late for the last batch."""
        steps = [of_lightning.saved_step(one, never=-1) for one in trainer.checkpoint_callbacks]
        if trainer.global_step in steps:
            self._forget(trainer, list(self._recent))
        if self._agreed:
            raise KeyboardInterrupt if self._agreed == signal.SIGINT else SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save if all ranks have ended at the same step; print how to resume."""
        if not isinstance(exception, (KeyboardInterrupt, SIGTERMException)):
            if not self._before:  # With them, SIGTERM waits: where a rank is gone, one of the others says so.
                self._let_go()
            return
        if isinstance(exception, SIGTERMException):
            number = self._agreed or self._noted or signal.SIGTERM
            exception.code = 128 + (self._requeue if number == REQUEUE else number)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if not self._training:
            before = trainer.global_step == 0
            self.show(
                "Interrupted before the first step: there is nothing to resume from."
                if before
                else f"Interrupted, with nothing new to save.{self._newest()}"
            )
        elif self._agreed and isinstance(exception, SIGTERMException):
            self._save_at_the_end(trainer)
        else:
            self.show(f"Interrupted at once: nothing was saved.{self._newest()}")

    def _save_at_the_end(self, trainer: Trainer) -> None:
        folder = self.record.folder
        if folder is None:
            return
        path = folder / "checkpoints" / f"interrupted-step={trainer.global_step}.ckpt"
        validated = self._validated == trainer.fit_loop.epoch_loop.total_batch_idx
        if validated and not of_lightning.has_trained(trainer):
            # Lightning skips its validation when it goes on, and counts the batch again.
            of_lightning.count_step_again(trainer)
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except KeyboardInterrupt:
            self.show(f"Interrupted at once: nothing was saved.{self._newest()}")
            return
        self._forget(trainer, list(self._recent))
        self.last_model_path = str(path)
        self.record.keep(trainer, str(path))
        look = [line for logger in trainer.loggers for line in how_to_look(logger)]
        resume = f"Interrupted at step {trainer.global_step}. Resume with:\n  {self._command(path)}"
        self.show("\n".join([resume, *look]))

    def _newest(self) -> str:
        """Describe the newest checkpoint of this run; "" if the run is unknown."""
        run = self.record.run
        if run is None:
            return ""
        run.files = list(filter(exists, run.files))
        if not run.files:
            return " There is no checkpoint to resume from."
        return f" The newest checkpoint is whole; resume with:\n  {self._command(run.newest())}"
