"""Kingma and Ba 2015: the picture of bias correction over training, and the points that it needs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pl_losses.papers.adam.monitor.update_rule import Rule, effective_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPACING = 1.035  # Ratio of the steps of kept points: at most about 450 points in 10^8 steps.
SHOWN = 8


class History:
    """Effective and largest steps of each parameter group, thinned out evenly on a logarithmic axis.

    Attributes:
        groups: By name, how it is stepped (plain data) and points [t, effective step, largest step or None].
            A point keeps the largest step since the one before.
    """

    def __init__(self) -> None:
        self.groups: dict[str, dict[str, Any]] = {}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the groups, as plain data."""
        return copy.deepcopy(self.groups)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the groups."""
        self.groups = copy.deepcopy(state_dict)

    def forget(self, names: Sequence[str]) -> None:
        """Start anew with these groups."""
        for name in names:
            self.groups.pop(name, None)

    def add(self, name: str, rule: Rule, statistics: dict[str, float]) -> None:
        """Note a step of a group."""
        step, largest = statistics["step_max"], statistics.get("max_update")
        if step < 1:  # All steps so far were skipped.
            return
        if name not in self.groups:
            betas = [float(rule.beta1), float(rule.beta2)]
            plain = {"kind": rule.kind, "betas": betas, "momentum_decay": rule.momentum_decay}
            self.groups[name] = plain | {"points": []}
        points = self.groups[name]["points"]
        if points and step < points[-1][0]:
            points.clear()
        if not points or (step > points[-1][0] and step >= SPACING * points[-1][0]):
            points.append([step, statistics.get("measured_step", statistics["effective_step"]), largest])
        elif largest is not None:
            points[-1][2] = max(largest, points[-1][2] or 0.0)


def draw_history(history: History) -> Figure:
    """Draw effective steps beside their closed forms and, if known, the largest steps beside their bounds."""
    from matplotlib.figure import Figure

    shown = {name: group for name, group in list(history.groups.items())[:SHOWN] if group["points"]}
    known = any(point[2] is not None for group in shown.values() for point in group["points"])
    figure = Figure(figsize=(7, 7 if known else 4), layout="constrained")
    panels = figure.subplots(1 + known, sharex=True, squeeze=False)[:, 0]
    rules: dict[Rule, float] = {}
    for number, (name, group) in enumerate(shown.items(), 1):
        steps, effective, largest = zip(*group["points"], strict=True)
        rule = _rule(group)
        rules[rule] = max(steps[-1], rules.get(rule, 1))
        ring = 5 + 2 * (len(shown) - number)  # Rings around each other, as most groups have the same points.
        panels[0].plot(steps, effective, "o", markersize=ring, fillstyle="none", label=name)
        if known:
            panels[1].plot(
                steps, np.array(largest, dtype=float), "o-", markersize=3, linewidth=0.8, label=name
            )
    for number, (rule, last) in enumerate(rules.items()):
        style = ("--", ":", "-.")[number % 3]
        _draw_rule(panels, rule, last, style)
    panels[0].set(ylabel="effective step / alpha", title="Bias correction: what multiplies alpha m / sqrt(v)")
    if known:
        panels[1].set(ylabel="largest |step| / alpha", title="Largest step of a coordinate", ylim=(0, None))
    panels[-1].set(xlabel="step t of the optimizer", xscale="log")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.21 if axes is panels[-1] else -0.03), ncols=2)
    return figure


def _rule(group: dict[str, Any]) -> Rule:
    beta1, beta2 = group["betas"]
    return Rule(group["kind"], 1.0, beta1, beta2, 1e-8, momentum_decay=group["momentum_decay"])


def _draw_rule(panels: Any, rule: Rule, last: float, style: str) -> None:
    grid = np.geomspace(1, max(last, 10), 300)
    betas = f"betas {rule.beta1:g}, {rule.beta2:g}"
    factors = [effective_step(rule, step) for step in grid]
    panels[0].plot(grid, factors, style, color="0.3", linewidth=1, label=f"corrected, closed form, {betas}")
    if len(panels) > 1 and rule.bounds:
        for name, bound, color in zip(("paper's", "tight"), rule.bounds, ("tab:red", "0.3"), strict=True):
            if np.isfinite(bound):
                panels[1].axhline(bound, linestyle=style, color=color, label=f"{name} bound, {betas}")
