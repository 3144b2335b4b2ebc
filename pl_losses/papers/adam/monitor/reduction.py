"""An optimizer's numbers on their way from the devices to statistics on rank zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pl_losses.monitoring.monitor import Numbers, vector
from pl_losses.monitoring.rows import Array
from pl_losses.papers.adam.monitor.coordinates import coordinates
from pl_losses.papers.adam.monitor.statistics import (
    Moments,
    describe,
    describe_update,
    squares,
)
from pl_losses.papers.adam.monitor.update_rule import Number, Rule


@dataclass
class Group:
    """A parameter group of T parameters after a step, as far as this rank knows it.

    Attributes:
        name: Name of the group.
        rule: The update rule.
        selected: Parameters that get statistics of their own, by their number.
        steps: t of each, -inf if this rank has no state of it.
        moments: Moments of the parameters that this rank reports and this step changed, else None; kept until
            they are added to the readings.
        sizes: Coordinates of each on all ranks, 0 if this step left it alone.
        unknown: Which numbers of the rule are on a device.
    """

    name: str
    rule: Rule
    selected: dict[int, str] = field(default_factory=dict)
    steps: list[Number] = field(default_factory=list)
    moments: list[Moments | None] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def entries(self) -> Iterator[tuple[str, slice]]:
        """Yield the names of the statistics, and the parameters that each is computed of."""
        yield self.name, slice(None)
        for index, name in self.selected.items():
            yield f"{self.name}/{name}", slice(index, index + 1)


class GroupReduction:
    """The numbers that all groups of an optimizer send to rank zero.

    Args:
        device: Device to join them on.
        full: Whether to visit the coordinates.
        sharded: Whether ranks know different steps.
    """

    def __init__(self, device: torch.device, full: bool, sharded: bool) -> None:
        self.device = device
        self.full = full
        self.sharded = sharded
        self.groups: list[Group] = []
        self.sums: list[Numbers] = []
        self.maxima: list[Numbers] = []

    def add(self, group: Group) -> None:
        """Compute what a group sends: the same shapes on all ranks."""
        self.groups.append(group)
        group.unknown = group.rule.unknown
        numbers = [getattr(group.rule, name) for name in group.unknown]
        on_device = not {*map(type, group.steps)} <= {float}
        if self.sharded or on_device:
            numbers += group.steps
        self.maxima.append(vector(numbers, self.device) if group.unknown or on_device else numbers)
        rows, known = (
            coordinates(group.moments, group.rule, self.device, [*group.selected]) if self.full else ([], {})
        )
        self.sums.append(squares(group.moments, group.rule, self.device, known))
        self.sums += [row[1:] for row in rows]
        self.maxima += [row[:1] for row in rows]
        group.moments = []  # They would keep gradients alive until the row is logged.

    def vectors(self) -> tuple[Numbers, Numbers]:
        """Return sums and maxima, one vector each."""
        return _joined(self.sums, self.device), _joined(self.maxima, self.device)

    def read(self, sums: Array, maxima: Array) -> Iterator[tuple[Group, dict[str, dict[str, float]]]]:
        """Yield the groups, with all numbers on the CPU, and their statistics by name."""
        added, most = _cut(sums, self.sums), _cut(maxima, self.maxima)
        for group in self.groups:
            found, numbers, unknown = next(added), next(most), group.unknown
            if unknown:
                group.rule = Rule(**group.rule._asdict() | dict(zip(unknown, numbers, strict=False)))
            if len(numbers) > len(unknown):
                group.steps = [*numbers[len(unknown) :]]
            size = len(group.steps)
            rows = [found[start : start + size] for start in range(0, len(found), size or 1)]
            statistics = {}
            for name, chosen in group.entries():
                own = describe(
                    group.rule, group.steps[chosen], [row[chosen] for row in rows], group.sizes[chosen]
                )
                if self.full:
                    own |= describe_update(group.rule, next(added), next(most)[0], own)
                statistics[name] = own
            yield group, statistics


def _joined(parts: list[Numbers], device: torch.device) -> Numbers:
    if any(isinstance(part, Tensor) for part in parts):
        return torch.cat([vector(part, device) for part in parts])
    return [number for part in parts for number in part]


def _cut(values: Array, parts: list[Numbers]) -> Iterator[list[float]]:
    numbers: list[float] = values.tolist()  # Faster than arrays as small as these.
    start = 0
    for part in parts:
        yield numbers[start : start + len(part)]
        start += len(part)
