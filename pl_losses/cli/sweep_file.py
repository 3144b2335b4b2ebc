"""W&B's sweep files: checked before any run, and their parameters drawn as W&B draws them."""

from __future__ import annotations

import json
import math
import os
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_losses.cli.distributions import CHOICES, RANGES, Parameter
from pl_losses.recipes import Config, UsageError, load, nearest

METHODS = ("grid", "random", "bayes")
KEYS = ("method", "parameters", "metric", "command", "program", "name", "run_cap")
# What says where the sweep is kept on W&B, and is of no account here.
IGNORED = ("project", "entity", "description", "controller", "settings", "apiVersion", "kind", "$schema")
ELSEWHERE = {
    "early_terminate": "trials run to their end here",
    "scheduler": "the sweep runs on this machine here",
    "job": "a `command` is run here",
    "image_uri": "a `command` is run here",
    "metrics": "one `metric` is sought here",
}
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
Trial = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A sweep file that was checked.

    Attributes:
        name: Of the sweep.
        method: "grid", "random" or "bayes".
        metric: Key of what is sought; empty if nothing is.
        goal: "minimize" or "maximize".
        command: With W&B's macros.
        program: What ``${program}`` stands for.
        parameters: By name; what is nested is joined by slashes, which no name has.
        cap: At most so many trials, if it is given.
    """

    name: str
    method: str
    metric: str
    goal: str
    command: Sequence[str]
    program: str
    parameters: Mapping[str, Parameter]
    cap: int | None = None

    def total(self) -> int | None:
        """Return the number of trials that it ends with by itself, if it does."""
        points = (
            math.prod(len(one.grid() or ()) for one in self.parameters.values())
            if self.method == "grid"
            else None
        )
        return min((one for one in (points, self.cap) if one is not None), default=None)

    def gives_arguments(self) -> bool:
        """Return whether the command gets the parameters; if not, the program reads W&B's config."""
        return any(part.startswith("${args") for part in self.command)

    def draw(
        self, number: int, seed: int, before: Sequence[Trial]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Draw the parameters of a trial, the same ones for the same seed and the same trials before.

        Args:
            number: From 1.
            seed: Of the random numbers.
            before: The trials so far, which Bayes' method learns from.

        Returns:
            The place of each parameter, and its value, by the names of :attr:`parameters`.
        """
        source = random.Random(f"{seed} {number}")  # Text is hashed in the same way everywhere.
        places: dict[str, float] = {}
        if self.method == "grid":
            rest, values = number - 1, {}
            for name, one in sorted(self.parameters.items(), reverse=True):  # The last one changes first.
                points = one.grid() or ()
                rest, place = divmod(rest, len(points))
                places[name], values[name] = place, points[place]
            return places, dict(sorted(values.items()))
        if self.method == "random":
            places = {name: source.random() for name in self.parameters}
        else:
            from pl_losses.cli.bayes import suggest

            choices = {
                name: 0 if one.probabilities else len(one.values) for name, one in self.parameters.items()
            }
            places = suggest(choices, self.goal, source.getrandbits(32), before)
        return places, {name: one.at(places[name]) for name, one in self.parameters.items()}

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """Return the finished trial that reached the goal best, the first of equal ones."""
        known = [one for one in trials if one["metric"] is not None and math.isfinite(one["metric"])]
        sign = 1 if self.goal == "minimize" else -1
        return min(known, key=lambda one: sign * one["metric"], default=None) if self.metric else None


def nested(flat: Mapping[str, Any]) -> Config:
    """Put nested parameters into mappings again.

    >>> nested({"lr": 1, "model/width": 2, "model/depth": 3})
    {'lr': 1, 'model': {'width': 2, 'depth': 3}}
    """
    found: Config = {}
    for name, value in flat.items():
        *above, last = name.split("/")
        place = found
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return found


def words(sweep: Sweep, values: Mapping[str, Any], file: Path = Path("parameters.json")) -> list[str]:
    """Return the command that W&B's agent would run for these parameters, with this interpreter.

    Args:
        sweep: The sweep.
        values: The parameters.
        file: That has them as JSON.

    Raises:
        UsageError: If it has a macro that is not known here.
    """
    whole = nested(values)
    given = whole.items()
    macros = {
        "env": [] if sys.platform == "win32" else ["/usr/bin/env"],
        "interpreter": [sys.executable],
        "program": [sweep.program],
        "args": [f"--{key}={value}" for key, value in given],
        "args_no_equals": [word for key, value in given for word in (f"--{key}", str(value))],
        "args_no_hyphens": [f"{key}={value}" for key, value in given],
        "args_no_boolean_flags": [
            f"--{key}" if value is True else f"--{key}={value}" for key, value in given if value is not False
        ],
        "args_json": [json.dumps(whole)],
        "args_json_file": [str(file)],
        "args_append_hydra": [f"+{key}={value}" for key, value in given],
        "args_override_hydra": [f"++{key}={value}" for key, value in given],
    }
    found: list[str] = []
    for part in sweep.command:
        if macro := re.fullmatch(r"\$\{(\w+)\}", part):
            if macro[1] not in macros:
                hint = nearest(macro[1], macros, "`${{{}}}`")
                raise UsageError(f"Unknown macro `{part}` in `command`{hint}")
            found += macros[macro[1]]
        else:
            found.append(
                re.sub(r"\$\{envvar:(\w+)\}", lambda match: os.environ.get(match[1], match[1]), part)
            )
    return found


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        UsageError: If it has a key, distribution or number that is not W&B's or not known here; in a line.
    """
    config, where = load(path), f" in {path.name}"
    for key in config:
        if key in ELSEWHERE:
            raise UsageError(
                f"`{key}`{where} is for W&B's server ({ELSEWHERE[key]}): leave it out, or `wandb sweep`"
            )
        if key not in (*KEYS, *IGNORED):
            raise UsageError(f"Unknown key `{key}`{where}{nearest(key, KEYS)}")
    method = config.get("method")
    if method not in METHODS:
        raise UsageError(f"Expected `method`{where} to be {', '.join(METHODS)} but got {method!r}")
    metric, goal = _metric(config.get("metric") or {}, where)
    if method == "bayes" and not metric:
        raise UsageError(f"Expected `metric`{where} to name what `method: bayes` seeks but got nothing")
    command = [str(part) for part in _list(config.get("command") or DEFAULT_COMMAND, "command", where)]
    program = str(config.get("program") or "")
    if "${program}" in command and not program:
        raise UsageError(f"Expected a `command` or a `program`{where} but got neither")
    cap = config.get("run_cap")
    if cap is not None and (type(cap) is not int or cap < 1):
        raise UsageError(f"Expected `run_cap`{where} to be a positive integer but got {cap!r:.80}")
    given = config.get("parameters")
    if not isinstance(given, dict) or not given:
        raise UsageError(f"Expected `parameters`{where} to be a mapping of parameters but got {given!r:.80}")
    parameters = dict(_parameters(given, "", where))
    for name, one in parameters.items():
        if method == "grid" and one.grid() is None:
            got = f"but got `distribution: {one.distribution}`"
            raise UsageError(f"Expected `{name}`{where} to have finitely many values, for a grid, {got}")
    name = re.sub(r"[^\w.-]+", "-", str(config.get("name") or path.stem)).lstrip(".")  # It names a folder.
    sweep = Sweep(name or path.stem, method, metric, goal, command, program, parameters, cap)
    words(sweep, {})
    return sweep


def _metric(given: Any, where: str) -> tuple[str, str]:
    if not isinstance(given, dict):
        raise UsageError(
            f"Expected `metric`{where} to be a mapping with a name and a goal but got {given!r:.80}"
        )
    known = ("name", "goal", "target", "impute", "impute_while_running")
    for key in given:
        if key not in known:
            raise UsageError(f"Unknown key `metric.{key}`{where}{nearest(key, known, '`metric.{}`')}")
    goal = given.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise UsageError(f"Expected `metric.goal`{where} to be minimize or maximize but got {goal!r:.80}")
    if given and not isinstance(given.get("name"), str):
        raise UsageError(
            f"Expected `metric.name`{where} to be the key of a metric but got {given.get('name')!r:.80}"
        )
    return given.get("name", ""), goal


def _parameters(given: Config, above: str, where: str) -> Iterator[tuple[str, Parameter]]:
    """Check the parameters, sorted as W&B has them, those of nested ones by their paths."""
    for key, spec in sorted(given.items()):
        name = f"{above}{key}"
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", key):
            raise UsageError(
                f"Expected the parameter `{name}`{where} to have a name of letters, digits, _, . and -"
            )
        if not isinstance(spec, dict):
            raise UsageError(
                f"Expected `{name}`{where} to be a mapping such as {{value: 1}} but got {spec!r:.80}"
            )
        if set(spec) == {"parameters"} and isinstance(spec["parameters"], dict) and spec["parameters"]:
            yield from _parameters(spec["parameters"], f"{name}/", where)
        else:
            yield name, _parameter(spec, name, where)


def _parameter(spec: Config, name: str, where: str) -> Parameter:
    distribution = spec.get("distribution") or _meant(spec, name, where)
    if distribution not in (*RANGES, *CHOICES):
        hint = (
            nearest(str(distribution), (*RANGES, *CHOICES))
            or f": expected one of {', '.join((*CHOICES, *RANGES))}"
        )
        raise UsageError(f"Unknown distribution `{distribution}` of `{name}`{where}{hint}")
    if distribution == "categorical" and "probabilities" in spec:
        distribution = "categorical_w_probabilities"
    numbers = RANGES.get(distribution, {})
    known = CHOICES.get(distribution) or tuple(numbers)
    for key in spec:
        if key not in (*known, "distribution"):
            hint = nearest(key, known) or f": `{distribution}` takes {', '.join(known)}"
            raise UsageError(f"Unknown key `{key}` of `{name}`{where}{hint}")
    for key in known:
        if key not in spec and numbers.get(key) is None:
            raise UsageError(f"Missing `{key}` of `{name}`{where}: `{distribution}` takes {', '.join(known)}")
    if distribution == "constant":
        return Parameter(distribution, [spec["value"]])
    if distribution in CHOICES:
        values = _list(spec["values"], f"{name}.values", where)
        return Parameter(
            distribution, values, None, _shares(spec.get("probabilities"), len(values), name, where)
        )
    given: dict[str, Any] = {key: spec.get(key, default) for key, default in numbers.items()}
    _check_numbers(distribution, given, name, where)
    return Parameter(distribution, (), given)


def _meant(spec: Config, name: str, where: str) -> str:
    """Return the distribution that W&B takes where none is named."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical"
    if {"min", "max"} <= set(spec):
        return "int_uniform" if all(type(spec[key]) is int for key in ("min", "max")) else "uniform"
    known = ("value", "values", "min", "max", "distribution", "parameters")
    odd = next((key for key in spec if key not in known), None)
    if odd:
        raise UsageError(f"Unknown key `{odd}` of `{name}`{where}{nearest(odd, known)}")
    raise UsageError(
        f"Expected `{name}`{where} to have value, values, min and max, or distribution but got {spec!r:.80}"
    )


def _check_numbers(distribution: str, given: Mapping[str, Any], name: str, where: str) -> None:
    for key, value in given.items():
        whole = distribution == "int_uniform"
        if type(value) not in ((int,) if whole else (int, float)) or not math.isfinite(value):
            kind = "an integer" if whole else "a number"
            raise UsageError(f"Expected `{name}.{key}`{where} to be {kind} but got {value!r:.80}")
        positive = key in ("q", "a", "b") or (key == "min" and distribution.endswith("_values"))
        if (positive and value <= 0) or (key == "sigma" and value < 0):
            raise UsageError(f"Expected `{name}.{key}`{where} to be positive but got {value}")
        if (
            key in ("min", "max")
            and "log" in distribution
            and abs(value) > 700
            and not distribution.endswith("_values")
        ):
            raise UsageError(f"Expected `{name}.{key}`{where} to be an exponent up to 700 but got {value}")
    if "min" in given and given["min"] > given["max"]:
        raise UsageError(
            f"Expected `{name}.max`{where} to be at least min = {given['min']} but got {given['max']}"
        )


def _shares(given: Any, count: int, name: str, where: str) -> list[float] | None:
    if given is None:
        return None
    shares = _list(given, f"{name}.probabilities", where)
    numbers = all(type(share) in (int, float) and share >= 0 for share in shares)
    if not numbers or len(shares) != count or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        wanted = f"to be {count} probabilities that sum to 1, one for each value,"
        raise UsageError(f"Expected `{name}.probabilities`{where} {wanted} but got {given!r:.80}")
    return shares


def _list(given: Any, name: str, where: str) -> list[Any]:
    if not isinstance(given, (list, tuple)) or not given:
        raise UsageError(f"Expected `{name}`{where} to be a list with something in it but got {given!r:.80}")
    return list(given)
