"""Gal and Ghahramani 2016, Table 1: the published numbers and the settings they were made with.

``published.csv`` has RMSE and log-likelihood, each with its standard error over the splits, of

- "vi" and "pbp": the table's other columns, as printed (from Hernández-Lobato and Adams 2015);
- "paper" and "10x": the logs that the authors published with their code in 2016, 400 epochs (the printed
  column) and 4 000. What the printed column has behind its +- is the standard deviation over the splits;
- "grid": the logs of 2018, p and tau chosen per split from a grid on validation data, 4 000 epochs.

On protein all of these are 200 and 2 000 epochs.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Numbers(NamedTuple):
    """RMSE in the data's units, log-likelihood per test sample in nats, and their standard errors."""

    rmse: float
    rmse_se: float
    ll: float
    ll_se: float


class Settings(NamedTuple):
    """What the authors trained a set with.

    Attributes:
        p: Probability of dropping an input or hidden unit.
        precision: tau, in the units of 1/y^2, from their Bayesian optimisation of 2016.
        length_scale: l of the prior.
        hidden: Number of hidden units.
        epochs: Unit of the number of epochs: "paper" is 10 of them, "10x" and "grid" are 100.
    """

    p: float
    precision: float
    length_scale: float = 1e-2
    hidden: int = 50
    epochs: int = 40


SETTINGS = {
    "boston": Settings(0.05, 0.159707652696),
    "concrete": Settings(0.01, 0.0557319),
    "energy": Settings(0.05, 0.427115),
    "kin8nm": Settings(0.05, 192.483),
    "naval": Settings(0.05, 42173.515211, length_scale=1.0),
    "power": Settings(0.005, 0.0871109),
    "protein": Settings(0.005, 0.0644419, hidden=100, epochs=20),
    "wine": Settings(0.05, 2.95834),
    "yacht": Settings(0.01, 0.541870, length_scale=0.1),
}


@cache
def numbers() -> dict[tuple[str, str], Numbers]:
    """The published numbers by set and column.

    >>> numbers()["boston", "paper"]
    Numbers(rmse=2.97351, rmse_se=0.189925, ll=-2.460037, ll_se=0.055402)
    """
    text = files("pl_losses.papers.dropout").joinpath("published.csv").read_text(encoding="utf-8")
    return {
        (row["set"], row["column"]): Numbers(*(float(row[name]) for name in Numbers._fields))
        for row in csv.DictReader(text.splitlines())
    }
