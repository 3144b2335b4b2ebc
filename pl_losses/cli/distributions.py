"""What a sweep's parameters are drawn from: W&B's distributions, each by its inverse."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

SPREAD: dict[str, float | None] = {"mu": 0.0, "sigma": 1.0}
# Distribution to its numbers; those with a value may be left out.
RANGES: dict[str, dict[str, float | None]] = {
    **{name: {"min": None, "max": None} for name in ("int_uniform", "uniform")},
    **{
        f"{inv}log_uniform{values}": {"min": None, "max": None}
        for inv in ("", "inv_")
        for values in ("", "_values")
    },
    **{"normal": SPREAD, "log_normal": SPREAD, "beta": {"a": 1.0, "b": 1.0}},
}
STEPPED = ("uniform", "log_uniform", "log_uniform_values", "normal", "log_normal", "beta")
RANGES |= {f"q_{name}": {**RANGES[name], "q": 1} for name in STEPPED}
CHOICES = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
}


@dataclass(frozen=True)
class Parameter:
    """What one parameter of a sweep is drawn from.

    Attributes:
        distribution: W&B's name of it.
        values: What it may be, of a constant or categorical one.
        numbers: Of the other distributions, by W&B's names.
        probabilities: Of the values, if they are not equal.
    """

    distribution: str
    values: Sequence[Any] = ()
    numbers: Mapping[str, float] | None = None
    probabilities: Sequence[float] | None = None

    def at(self, share: float) -> Any:
        """Return the value below which this share of all draws lies: the inverse of the distribution.

        >>> Parameter("uniform", numbers={"min": 1.0, "max": 2.0}).at(0.5)
        1.5
        >>> Parameter("categorical", ("a", "b", "c")).at(0.5)
        'b'
        """
        if self.values:
            sums = itertools.accumulate(self.probabilities or [1 / len(self.values)] * len(self.values))
            return next(
                (value for value, end in zip(self.values, sums, strict=True) if share < end), self.values[-1]
            )
        numbers = dict(self.numbers or {})
        step = numbers.pop("q", None)
        value = QUANTILES[self.distribution.removeprefix("q_")](share, *numbers.values())
        return value if step is None else round(value / step) * step

    def grid(self) -> Sequence[Any] | None:
        """Return all values, if there are finitely many that are equally likely."""
        numbers = self.numbers or {}
        if self.distribution == "int_uniform":
            return range(int(numbers["min"]), int(numbers["max"]) + 1)
        if self.distribution == "q_uniform":
            count = math.ceil((numbers["max"] - numbers["min"]) / numbers["q"])  # W&B leaves out the end.
            return [numbers["min"] + step * numbers["q"] for step in range(count)]
        return self.values if self.values and not self.probabilities else None


def _log_uniform(share: float, low: float, high: float) -> float:
    return math.exp(low + share * (high - low))


def _log_uniform_values(share: float, low: float, high: float) -> float:
    return min(max(math.exp(math.log(low) + share * math.log(high / low)), low), high)


def _normal(share: float, mu: float, sigma: float) -> float:
    return mu + sigma * NormalDist().inv_cdf(min(max(share, 2**-53), 1 - 2**-53))


def _beta(share: float, a: float, b: float) -> float:
    from scipy.special import betaincinv

    return float(betaincinv(a, b, share))


QUANTILES: dict[str, Callable[..., float]] = {
    "uniform": lambda share, low, high: low + share * (high - low),
    "int_uniform": lambda share, low, high: min(low + int(share * (high - low + 1)), high),
    "log_uniform": _log_uniform,
    "log_uniform_values": _log_uniform_values,
    "inv_log_uniform": lambda share, low, high: 1 / _log_uniform(1 - share, low, high),
    "inv_log_uniform_values": _log_uniform_values,  # 1 / x is log uniform just as x is.
    "normal": _normal,
    "log_normal": lambda share, mu, sigma: math.exp(_normal(share, mu, sigma)),
    "beta": _beta,
}
