"""What a dashboard is made of, before it is one of W&B or a page: sections of panels, keys by pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

STAGES = ("train", "val", "test", "predict")
Kind = Literal["lines", "bars", "pictures", "histogram", "table"]


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: What it shows, with the unit.
        keys: Keys, or patterns of them: see :func:`regex`.
        kind: Curves, one value per run, pictures, histograms over time, or a table.
        smoothing: Weight of the exponential moving average, in [0, 1).
        log_y: Whether the y axis is logarithmic.
    """

    title: str
    keys: tuple[str, ...]
    kind: Kind = "lines"
    smoothing: float = 0.0
    log_y: bool = False


@dataclass(frozen=True)
class Section:
    """Panels under a heading.

    Attributes:
        name: The heading.
        panels: The first one is shown first.
        figure: Whether this is a figure of the paper: those come first.
    """

    name: str
    panels: tuple[Panel, ...]
    figure: bool = False


def lines(title: str, *keys: str, smoothing: float = 0.0, log_y: bool = False) -> Panel:
    """Curves over the x axis."""
    return Panel(title, keys, "lines", smoothing, log_y)


def bars(title: str, *keys: str) -> Panel:
    """The final value of each run."""
    return Panel(title, keys, "bars")


def pictures(title: str, *keys: str) -> Panel:
    """Pictures, over the steps at which they were logged."""
    return Panel(title, keys, "pictures")


def histogram(title: str, *keys: str) -> Panel:
    """Histograms over time."""
    return Panel(title, keys, "histogram")


def table(title: str, key: str) -> Panel:
    """A table."""
    return Panel(title, (key,), "table")


@cache
def regex(pattern: str) -> str:
    """The regular expression of a key's pattern.

    ``<stage>`` is train, val, test or predict; ``<a|b>`` is a or b; any other ``<name>`` is anything.

    Example:
        >>> regex("<stage>/loss")
        '^(train|val|test|predict)/loss$'
        >>> regex("prelu/<layer>/<min|max>")
        '^prelu/.+/(min|max)$'
    """
    parts = re.split(r"(<[^>]+>)", pattern)
    return "^" + "".join(_part(part) if part[:1] == "<" else literal(part) for part in parts) + "$"


def _part(name: str) -> str:
    choices = "|".join(STAGES) if name == "<stage>" else name[1:-1]
    return f"({choices})" if "|" in choices else ".+"


def literal(text: str) -> str:
    """Text as a regular expression, also for engines that know no escaped slash or dash."""
    return re.sub(r"([.^$*+?()\[\]{}|\\])", r"\\\1", text)


def matches(pattern: str, key: str) -> bool:
    """Whether a key fits a pattern; a pattern fits one that says the same or more.

    Example:
        >>> matches("prelu/<layer>/mean", "prelu/features.1/mean"), matches("<stage>/loss", "val/error")
        (True, False)
        >>> matches("<stage>/dropout/nll", "<stage>/dropout/nll")
        True
    """
    return pattern == key or re.fullmatch(regex(pattern), key.replace("<stage>", "val")) is not None


def is_pattern(key: str) -> bool:
    """Whether a key stands for several."""
    return "<" in key


def sorted_sections(sections: Iterable[Section]) -> list[Section]:
    """Sections of one name joined, panels that come twice left out, the paper's figures first."""
    joined: dict[str, Section] = {}
    seen: set[Panel] = set()
    for section in sections:
        new = tuple(panel for panel in dict.fromkeys(section.panels) if panel not in seen)
        seen.update(new)
        before = joined.get(section.name)
        if before is not None:
            section = Section(section.name, before.panels + new, before.figure or section.figure)
        else:
            section = Section(section.name, new, section.figure)
        joined[section.name] = section
    return sorted((one for one in joined.values() if one.panels), key=lambda section: not section.figure)


def automatic(keys: Iterable[str], kinds: dict[str, Kind] | None = None) -> list[Section]:
    """Panels for keys that no table speaks of: stages together, a section for the first word.

    Args:
        keys: Keys or patterns of them.
        kinds: What is logged under a key, where that is no number.

    Example:
        >>> [section] = automatic(["train/margin", "val/margin"])
        >>> section.name, section.panels[0].title, section.panels[0].keys
        ('margin', 'margin', ('<stage>/margin',))
    """
    kinds = kinds or {}
    sections: dict[str, dict[str, Panel]] = {}
    for key in keys:
        first, _, rest = key.partition("/")
        staged = bool(rest) and (first in STAGES or first == "<stage>")
        kind = kinds.get(key, "lines")
        name = rest if staged else key
        # Where a key has to be named, as for pictures, it cannot stand for several.
        pattern = f"<stage>/{rest}" if staged and kind in ("lines", "histogram") else key
        panel = Panel(name, (pattern,), kind)
        sections.setdefault(name.partition("/")[0], {}).setdefault(f"{kind} {pattern}", panel)
    return [Section(name, tuple(panels.values())) for name, panels in sections.items()]
