"""Signals at a fixed place of a fit."""

import os

from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode


class Shot(TorchDispatchMode):
    """Sends a signal before the next operation, whichever comes first."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = list(numbers)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.numbers and "_" in str(function):
            os.kill(os.getpid(), self.numbers.pop())
        return function(*args, **(kwargs or {}))


class Shooter(Callback):
    """Sends signals to its own process at one place of one batch."""

    def __init__(self, place, step, numbers):
        self.place, self.step, self.numbers = place, step, list(numbers)
        self.shot = None

    def shoot(self, trainer, place):
        if place == self.place and trainer.fit_loop.epoch_loop.total_batch_idx >= self.step:
            while self.numbers:
                os.kill(os.getpid(), self.numbers.pop())

    def on_train_batch_start(self, trainer, *_):
        self.shoot(trainer, "start")

    def on_before_backward(self, trainer, *_):
        self.shoot(trainer, "forward")

    def on_after_backward(self, trainer, *_):
        self.shoot(trainer, "backward")

    def on_before_optimizer_step(self, trainer, *_):
        due = trainer.fit_loop.epoch_loop.total_batch_idx >= self.step
        if self.place == "step" and due and self.numbers:
            self.shot = Shot(self.numbers)
            self.shot.__enter__()
            self.numbers = []

    def on_train_batch_end(self, trainer, *_):
        self.disarm()
        self.shoot(trainer, "end")

    def on_exception(self, trainer, *_):
        # A second signal ends the step in the middle.
        self.disarm()

    def disarm(self):
        if self.shot:
            self.shot.__exit__(None, None, None)
            self.shot = None

    def on_validation_batch_end(self, trainer, *_):
        if not trainer.sanity_checking:
            self.shoot(trainer, "validation")

    def on_train_epoch_end(self, trainer, *_):
        self.shoot(trainer, "epoch")

    def on_train_end(self, trainer, *_):
        self.shoot(trainer, "after")

    def on_test_batch_end(self, trainer, *_):
        self.shoot(trainer, "test")
