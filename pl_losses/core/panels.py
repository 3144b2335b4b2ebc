"""The parts of a dashboard, be it W&B's or a page: sections of panels, which name keys by patterns."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

PROGRESS = "Progress"
STAGES = ("train", "val", "test", "predict")
Kind = Literal["lines", "bars", "pictures", "histogram", "table", "chart"]


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: What it shows, with the unit.
        keys: Keys, or patterns of them: see :func:`regex`.
        kind: Curves, one value per run, pictures, histograms over time, a table, or a chart made of one.
        smoothing: Weight of the exponential moving average, in [0, 1).
        log_y: Whether the y axis is logarithmic.
        chart: W&B's name of the chart.
    """

    title: str
    keys: tuple[str, ...]
    kind: Kind = "lines"
    smoothing: float = 0.0
    log_y: bool = False
    chart: str = ""

    def shown(self, logged: Mapping[str, Kind]) -> set[str]:
        """Return the keys that it shows, of those logged as lines, pictures, histograms or tables."""
        kind = {"bars": "lines", "chart": "table"}.get(self.kind, self.kind)
        return {key for pattern in self.keys for key in fitting(pattern, logged) if logged[key] == kind}


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

    def shown(self, logged: Mapping[str, Kind]) -> set[str]:
        """Return the keys that its panels show."""
        return set().union(*(panel.shown(logged) for panel in self.panels))


Sections = tuple[Section, ...]


def lines(title: str, *keys: str, smoothing: float = 0.0, log_y: bool = False) -> Panel:
    """Make a panel of curves over the x axis."""
    return Panel(title, keys, "lines", smoothing, log_y)


def bars(title: str, *keys: str) -> Panel:
    """Make a panel of the final value of each run."""
    return Panel(title, keys, "bars")


def pictures(title: str, *keys: str) -> Panel:
    """Make a panel of pictures, over the steps at which they were logged."""
    return Panel(title, keys, "pictures")


def histogram(title: str, *keys: str) -> Panel:
    """Make a panel of histograms over time."""
    return Panel(title, keys, "histogram")


def table(title: str, key: str) -> Panel:
    """Make a panel of a table."""
    return Panel(title, (key,), "table")


def chart(title: str, key: str, name: str) -> Panel:
    """Make a panel of a chart that the run logged with ``wandb.plot``, by the key of its table."""
    return Panel(title, (key,), "chart", chart=name)


def reproduction(title: str, name: str, *shown: str) -> Sections:
    """Return the panels of what :func:`~pl_losses.core.protocol.report` records.

    Args:
        title: The paper's figure.
        name: What ``reproduce`` calls it.
        shown: Names of its pictures. Default: "results".
    """
    keys = [f"{name}/{one}" for one in shown or ("results",)]
    known = table("Beside the published numbers", f"{name}/table")
    return (Section(title, (pictures(title, *keys), known), figure=True),)


@cache
def regex(pattern: str) -> str:
    """Return the regular expression of a key's pattern.

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
    """Escape a text for regular expressions, also in engines that know no escaped slash or dash."""
    return re.sub(r"([.^$*+?()\[\]{}|\\])", r"\\\1", text)


def matches(pattern: str, key: str) -> bool:
    """Return whether a key fits a pattern; the key may be a pattern that is equal or more specific.

    Example:
        >>> matches("prelu/<layer>/mean", "prelu/features.1/mean"), matches("<stage>/loss", "val/error")
        (True, False)
        >>> matches("<stage>/dropout/nll", "<stage>/dropout/nll")
        True
    """
    if pattern == key:
        return True
    key = key.replace("<stage>", "val")
    return compiled(pattern).match(key) is not None if "<" in pattern else pattern == key


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """Compile a key's pattern, once; ``re`` itself keeps 512 expressions."""
    return re.compile(regex(pattern))


def fitting(pattern: str, keys: Collection[str]) -> list[str]:
    """Return the keys that fit a pattern, of keys that are no patterns.

    >>> fitting("<stage>/loss", {"val/loss": "lines", "train/loss": "lines", "x/loss": "lines"})
    ['train/loss', 'val/loss']
    """
    first, _, rest = pattern.partition("/")
    if "<" in rest or ("<" in first and first != "<stage>"):
        return [key for key in keys if matches(pattern, key)]
    # Look the names up: there may be thousands of keys, each with a panel.
    named = [f"{stage}/{rest}" for stage in STAGES] if first == "<stage>" else [pattern]
    return [key for key in named if key in keys]


def topic(name: str) -> str:
    """Return a section's name without its reference: sections of one topic are joined.

    Example:
        >>> topic("What was misread (Fig. 8)")
        'What was misread'
    """
    return name.partition(" (")[0]


def joined(one: Section | None, other: Section) -> Section:
    """Join two sections of one topic; the name with a reference is kept."""
    if one is None:
        return other
    return Section(max(one.name, other.name, key=len), one.panels + other.panels, one.figure or other.figure)


def rank(section: Section) -> int:
    """Return the place of a section: the paper's figures, training, test, others, progress."""
    places = {"Training": 1, "Test": 2, PROGRESS: 4}
    return 0 if section.figure else places.get(topic(section.name), 3)


def sorted_sections(sections: Iterable[Section]) -> list[Section]:
    """Join sections of one topic, leave out repeated panels, and sort."""
    found: dict[str, Section] = {}
    seen: set[Panel] = set()
    for section in sections:
        new = tuple(panel for panel in dict.fromkeys(section.panels) if panel not in seen)
        seen.update(new)
        if new:
            about = topic(section.name)
            found[about] = joined(found.get(about), replace(section, panels=new))
    return sorted(found.values(), key=rank)


def automatic(keys: Iterable[str], kinds: dict[str, Kind] | None = None) -> list[Section]:
    """Make panels for keys without a declared panel: stages together, a section for each first word.

    Args:
        keys: Keys or patterns of them.
        kinds: What is logged under a key, if it is not a number.

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
        # A panel of pictures or tables has to name its key: it cannot be a pattern.
        pattern = f"<stage>/{rest}" if staged and kind in ("lines", "histogram") else key
        panel = Panel(name, (pattern,), kind)
        sections.setdefault(name.partition("/")[0], {}).setdefault(f"{kind} {pattern}", panel)
    return [Section(name, tuple(panels.values())) for name, panels in sections.items()]
