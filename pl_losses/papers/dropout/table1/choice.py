"""Gal and Ghahramani 2016, section 5.2: the settings of Table 1's columns, and those to choose from."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple


class Schedule(NamedTuple):
    """The length of a training, and its learning rate over the steps.

    Attributes:
        epochs: Epochs in units of the set's, see ``Settings``.
        batch_size: Samples per step.
        cosine: Whether the learning rate falls to 0 as a half cosine.
        steps: Least number of steps; the epochs are increased to reach it.
    """

    epochs: int
    batch_size: int
    cosine: bool = False
    steps: int = 0

    def factor(self) -> Callable[[float], float] | None:
        """Return the function from the share of steps done to the learning rate's factor."""
        return (lambda share: 0.5 * (1 + math.cos(math.pi * share))) if self.cosine else None


PAPER = Schedule(10, 32)
COLUMNS = {"paper": PAPER, "10x": Schedule(100, 128), "grid": PAPER}  # "grid" tries others, too.
LEARNING_RATE = 1e-3  # The authors'.

# From noise ten times the targets' variance to a hundred-thousandth of it, 16 a decade.
GRID = tuple(10 ** (exponent / 16) for exponent in range(-16, 81))


# The paper's 400 epochs, and more for a small set.
SCHEDULES = tuple(
    PAPER._replace(cosine=cosine, steps=steps)
    for steps in (0, 10_000, 30_000, 100_000)
    for cosine in (False, True)
)


class Setting(NamedTuple):
    """How a network is trained.

    Attributes:
        p: Probability of dropping a unit.
        weight_decay: lambda for the whole training set; for a part of it, larger by the ratio of their sizes.
        learning_rate: Adam's, at the start.
        schedule: The length, and the learning rate over the steps.
    """

    p: float
    weight_decay: float
    learning_rate: float
    schedule: Schedule


class Choice(NamedTuple):
    """The values that "grid" chooses from, each split for itself.

    All p, weight decays and learning rates are trained with the first schedule. The best p and weight decay
    are then trained with the other schedules and all learning rates.

    Attributes:
        p: Probabilities of dropping a unit.
        weight_decay: lambda, see :class:`Setting`.
        learning_rate: Adam's, at the start.
        schedule: Lengths, with a constant and a falling learning rate.
        precision: tau, in the units of the standardised targets.
        samples: Passes T per validation sample.
    """

    # The authors' p; decades of lambda, around theirs; their learning rate and its tenfold.
    p: tuple[float, ...] = (0.005, 0.01, 0.05, 0.1)
    weight_decay: tuple[float, ...] = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
    learning_rate: tuple[float, ...] = (1e-3, 1e-2)
    schedule: tuple[Schedule, ...] = SCHEDULES
    precision: tuple[float, ...] = GRID
    samples: int = 200

    def settings(self) -> list[Setting]:
        """List all p, weight decays and learning rates with the first schedule."""
        found = product(self.p, self.weight_decay, self.learning_rate, self.schedule[:1])
        return [Setting(*values) for values in found]
