"""How many batches a monitor may look at, if it is to take a share of a fit's validations and no more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch

SHARE = 0.2  # Of the time that validations take without looks; these slow down what follows, too: a quarter.


class Budget:
    """Seconds of a fit's validations, of the looks at them, and what these allow for the next one.

    The first look is at one batch: nothing is known yet. Its time is saved up for afterwards. A later look
    waits until its first batch, with all that comes once in a look, is within the share of all validations so
    far; it has as many batches as are within it.

    Attributes:
        validations: Their number.
        others: Seconds of all validations without the looks.
        own: Seconds of all looks.
        first: Seconds of the latest look, without its further batches; NaN before there is one.
        further: Seconds of each further batch of it.
    """

    def __init__(self) -> None:
        self.validations = 0
        self.others = self.own = self.further = 0.0
        self.first = math.nan
        self._began = self._spent = 0.0
        self._rounds: dict[int, float] = {}  # By the number of a batch, in all dataloaders together.

    def begin(self) -> None:
        """Begin a validation."""
        self._began, self._spent, self._rounds = perf_counter(), 0.0, {}

    @contextmanager
    def spending(self, device: torch.device, batch: int | None = None) -> Iterator[None]:
        """Count the time within as that of the look: all of it, also of what a GPU does later."""
        _wait(device)
        start = perf_counter()
        yield
        _wait(device)
        seconds = perf_counter() - start
        self._spent += seconds
        if batch is not None:
            self._rounds[batch] = self._rounds.get(batch, 0.0) + seconds

    def end(self) -> None:
        """End a validation."""
        self.validations += 1
        self.own += self._spent
        self.others += perf_counter() - self._began - self._spent
        if self._rounds:
            one, *further = self._rounds.values()
            self.first = self._spent - sum(further)
            self.further = sum(further) / len(further) if further else one

    def batches(self, most: int) -> int:
        """Return how many batches, at most ``most``, the look at the validation that begins may have."""
        if math.isnan(self.first):
            return min(most, 1)
        return self._within(SHARE * self.others * (1 + 1 / self.validations) - self.own, most)

    def _within(self, seconds: float, most: int) -> int:
        if seconds < self.first:
            return 0
        return min(most, 1 + int((seconds - self.first) / max(self.further, 1e-9)))

    def words(self, most: int) -> str:
        """Say what fewer looks there will be than at ``most`` batches of each validation; "" if none."""
        room = SHARE * self.others / max(self.validations, 1)
        count = self._within(room, most)
        if count == most or math.isnan(self.first):
            return ""
        if count:
            return f"looks at {count} of the first {most} batches of each validation"
        return f"looks at one batch of each {math.ceil(self.first / max(room, 1e-9))} validations or so"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
