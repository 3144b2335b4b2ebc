"""Gal and Ghahramani 2016, Table 1: the published scores of each split, and the settings of their training.

``published.csv`` has RMSE and log-likelihood of each split from the logs that the authors published with
their code:

- "paper" and "10x": of 2016, 400 epochs (the printed column) and 4 000. In the printed column, +- is the
standard deviation over the splits; - "grid": of 2018, p and tau chosen per split from a grid on validation
data, 4 000 epochs.

For protein all of these are 200 and 2 000 epochs.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Numbers(NamedTuple):
    """RMSE in the data's units, log-likelihood per test sample in nats, and their standard errors."""

    rmse: float
    rmse_se: float
    ll: float
    ll_se: float

    @classmethod
    def of(cls, scores: Sequence[tuple[float, float]]) -> Numbers:
        """Compute means over splits, with the published standard errors.

        Those are population standard deviations over the root of the number of splits.

        Args:
            scores: RMSE and log-likelihood of each split.

        Example:
            >>> Numbers.of([(2.0, -1.0), (4.0, -1.0)])
            Numbers(rmse=3.0, rmse_se=0.7071067811865476, ll=-1.0, ll_se=0.0)
        """
        found: list[float] = []
        for values in zip(*scores, strict=True):
            mean = sum(values) / len(values)
            found += [
                mean,
                math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) / len(values)),
            ]
        return cls(*found)


class Settings(NamedTuple):
    """The authors' settings for a set.

    Attributes:
        p: Probability of dropping an input or hidden unit.
        precision: tau, in the units of 1/y^2, from their Bayesian optimisation of 2016.
        length_scale: l of the prior.
        hidden_size: Number of hidden units.
        epochs: Unit of the number of epochs: "paper" is 10 of them, "10x" and "grid" are 100.
    """

    p: float
    precision: float
    length_scale: float = 1e-2
    hidden_size: int = 50
    epochs: int = 40


SETTINGS = {
    "boston": Settings(0.05, 0.159707652696),
    "concrete": Settings(0.01, 0.0557319),
    "energy": Settings(0.05, 0.427115),
    "kin8nm": Settings(0.05, 192.483),
    "naval": Settings(0.05, 42173.515211, length_scale=1.0),
    "power": Settings(0.005, 0.0871109),
    "protein": Settings(0.005, 0.0644419, hidden_size=100, epochs=20),
    "wine": Settings(0.05, 2.95834),
    "yacht": Settings(0.01, 0.541870, length_scale=0.1),
}


@cache
def scores() -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Read the published RMSE and log-likelihood of each split, by set and column.

    >>> len(scores()["protein", "10x"]), scores()["boston", "paper"][0]
    (5, (2.2732381, -2.2702962))
    """
    text = files("pl_losses.papers.dropout.table1").joinpath("published.csv").read_text(encoding="utf-8")
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in csv.DictReader(text.splitlines()):
        # The rows of splits are in order.
        found.setdefault((row["set"], row["column"]), []).append((float(row["rmse"]), float(row["ll"])))
    return found


def numbers(name: str, column: str, splits: Sequence[int]) -> Numbers | None:
    """Return the published numbers over some of the splits; ``None`` if one of them is not published.

    >>> [round(value, 3) for value in numbers("boston", "paper", range(20))]
    [2.974, 0.19, -2.46, 0.055]
    """
    published = scores().get((name, column), [])
    if not splits or max(splits) >= len(published):
        return None
    return Numbers.of([published[split] for split in splits])
