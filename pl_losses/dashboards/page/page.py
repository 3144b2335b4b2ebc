"""One self-contained HTML page of a run, or of several side by side: no network, no server.

The charts are drawn with D3, whose minified script comes with the Python package mpld3.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from pl_losses.core.manifests import manifests, panels_in, rooms_of
from pl_losses.core.panels import PROGRESS, Kind, Section, automatic, fitting, joined, rank, topic
from pl_losses.dashboards.offline.runs import Run
from pl_losses.dashboards.page.comparison import (
    classes_of,
    compared,
    differences,
    differs,
    finals,
    flatten,
    made_from,
    origin,
    parallel,
)
from pl_losses.dashboards.page.drawing import Data, Drawing
from pl_losses.recipes import UsageError

Configs = Sequence[dict[str, object]]
HERE = Path(__file__).parent
SCRIPTS = ("charts.js", "panels.js", "page.js")
KINDS: dict[str, Kind] = {"picture": "pictures", "histogram": "histogram", "table": "table"}

HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>{style}</style></head><body>
<header>
<h1>{title}</h1>
{runs}
</header>
<nav id="contents"></nav>
<form id="controls" onsubmit="return false">
<input type="search" id="search" placeholder="Search keys" aria-label="Search keys">
<label>smooth all <input type="range" id="smoothing" min="0" max="0.99" step="0.01" value="0"></label>
<label><input type="checkbox" id="linked"> link x axes</label>
<label><input type="checkbox" id="dark"> dark</label>
<span id="watched"></span>
</form>
<main>
<p id="nothing" hidden>No key has these words.</p>
<div id="sections"></div>
{tables}
</main>
<script type="application/json" id="page">{data}</script>
{scripts}
</body></html>
"""


def build_page(
    runs: Sequence[Run],
    *,
    refresh: int = 0,
    metric: str = "",
    title: str = "",
    drawn: Sequence[Mapping[str, object]] = (),
) -> str:
    """Build the page of one run, or of several to compare.

    Args:
        runs: At least one.
        refresh: Seconds after which the page loads itself again; never by default.
        metric: The key by which runs are compared; by default the headline of their modules.
        title: Of the page; by default what the runs are of.
        drawn: What each run of a sweep was given, by which they are compared; by default their configs.

    Returns:
        HTML of 5 MB at most; it says what was left out for that. Curves are thinned out, but keep the
        smallest and the largest value of every stretch.
    """
    names = distinct([run.name for run in runs])
    title = title or " · ".join(dict.fromkeys(origin(run) or run.name for run in runs))
    configs = [dict(one) for one in drawn] or [compared(run) for run in runs]
    drawing = Drawing(runs, names)
    sections = [*_comparison(runs, configs, metric), *_sections(runs, drawing)]
    if system := list(drawing.system()):
        sections.append({"name": "System", "panels": system, "open": False})
    data = {"runs": names, "sections": sections, "refresh": refresh}
    sources = [d3(), *((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)]
    folded = {
        "Console": _consoles(drawing, names),
        "All values": _values(runs, names),
        "Config": _config(runs, names),
    }
    return HTML.format(
        title=escape(title),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        runs=_run_table(runs, names, configs, metric),
        tables="".join(_folded(name, body) for name, body in folded.items()),
        # Escape "<", which could end the element.
        data=json.dumps(plain(data), separators=(",", ":")).replace("<", "\\u003c"),
        scripts="\n".join(f"<script>{source}</script>" for source in sources),
    )


def plain(value: Any) -> Any:
    """Replace what JSON cannot express by text.

    Example:
        >>> plain({"a": [1.5, float("nan")]})
        {'a': [1.5, 'nan']}
    """
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def distinct(names: list[str]) -> list[str]:
    """Make names distinct: one that occurs before gets a number.

    Example:
        >>> distinct(["a", "b", "a"])
        ['a', 'b', 'a (2)']
    """
    count: dict[str, int] = {}
    made = []
    for name in names:
        count[name] = count.get(name, 0) + 1
        made.append(name if count[name] == 1 else f"{name} ({count[name]})")
    return made


def d3() -> str:
    """Read D3's script.

    Raises:
        UsageError: If mpld3, with which it comes, is not installed.
    """
    found = importlib.util.find_spec("mpld3")
    if found is None or not found.submodule_search_locations:
        raise UsageError("The page needs mpld3: pip install mpld3; `wandb leet` shows a run without it")
    path = Path(found.submodule_search_locations[0], "js", "d3.v5.min.js")
    # Within a page, this end tag would end the script.
    return path.read_text(encoding="utf-8").replace("</script", "<\\/script")


def _comparison(runs: Sequence[Run], configs: Configs, metric: str) -> Iterator[Data]:
    """Yield a section that compares three runs or more by their configs."""
    if panel := parallel(configs, [finals(run, metric) for run in runs]):
        yield {"name": "Runs compared", "panels": [panel], "open": True}


def _sections(runs: Sequence[Run], drawing: Drawing) -> Iterator[Data]:
    """Yield the sections of the papers' dashboards that have something to show, then those of other keys.

    A key is shown once: by the panels of the rooms of the model and the callbacks that the config names, then
    by the panels with most of their keys there.
    """
    left: dict[str, Kind] = {key: "lines" for run in runs for key in run.curves()}
    left |= {key: KINDS[kind] for run in runs for kind, items in run.items.items() for key in items}
    named = rooms_of(name for run in runs for name in classes_of(run.config))
    rooms = [*named, *(room for room in manifests() if room not in named)]
    known = [(place, one) for place, room in enumerate(rooms) for one in panels_in(room)]
    # Panels that the config names come first.
    known.sort(key=lambda one: (min(one[0], len(named)), *misfit(one[1], left)))
    made: dict[str, Section] = {}
    panels: dict[str, list[Data]] = {}
    for sections in [*(one for _, one in known), None]:
        if sections is None:
            sections = tuple(automatic(left, left))
        shown = set().union(*(section.shown(left) for section in sections))
        mine = {key: left[key] for key in left if key in shown}
        left = {key: kind for key, kind in left.items() if key not in mine}
        for section in sections:
            about = topic(section.name)
            if drawn := [data for panel in section.panels for data in drawing.panel(panel, mine)]:
                made[about] = joined(made.get(about), section)
                panels.setdefault(about, []).extend(drawn)
    for about, section in sorted(made.items(), key=lambda one: rank(one[1])):
        yield {"name": section.name, "panels": panels[about], "open": section.name != PROGRESS}


def misfit(sections: Iterable[Section], keys: Collection[str]) -> tuple[int, int]:
    """Count the sections' patterns that match no key; then, negative, the keys that they match."""
    patterns = [pattern for section in sections for panel in section.panels for pattern in panel.keys]
    found = [fitting(pattern, keys) for pattern in patterns]
    return sum(not one for one in found), -sum(map(len, found))


def _folded(title: str, body: str) -> str:
    inside = f"<summary>{escape(title)}</summary><div class='scroll'>{body}</div>"
    return f"<details>{inside}</details>" if body else ""


def _row(cells: Iterable[object], tag: str = "td", owners: Iterable[int | None] = (), kind: str = "") -> str:
    """Make a row; a cell that belongs to a run is hidden with it, and kinds of rows are shown as such."""
    inside = "".join(
        f"<{tag}{'' if owner is None else f' data-run={owner}'}>{escape(str(cell))}</{tag}>"
        for cell, owner in zip_longest(cells, owners)
    )
    return f"<tr{kind}>{inside}</tr>"


def _keyed(key: str, kind: str = "") -> str:
    """Return the attributes of a row that the search finds."""
    return f' data-key="{escape(key)}"' + (f" class='{kind}'" if kind else "")


def _run_table(runs: Sequence[Run], names: list[str], configs: Configs, metric: str) -> str:
    head = ["run", "job type", "made from", "state", "rows", "began", "took", "final values"]
    rows = [_row([*head, "what differs"] if len(runs) > 1 else head, "th")]
    for number, (run, name, own) in enumerate(zip(runs, names, differences(configs), strict=True)):
        final = ", ".join(f"{key} {value:.4g}" for key, value in finals(run, metric))
        began, took = (run.facts.get(fact, "") for fact in ("began", "took"))
        cells = [name, run.job_type, made_from(run), run.stage, run.columns.count, began, took, final, own]
        rows.append(_row(cells, kind=f" data-switch={number}" if len(runs) > 1 else ""))
    notes = [
        f"<p class='note'>{escape(name)}: {escape(note)}</p>"
        for run, name in zip(runs, names, strict=True)
        for note in run.notes
    ]
    leet = " ".join(f"<code>{escape(command)}</code>" for command in leet_commands(runs))
    hint = f"<p>In the terminal: {leet}</p>" if leet else ""
    return f"<div class='scroll'><table id='runs'>{''.join(rows)}</table></div>{''.join(notes)}{hint}"


def leet_commands(runs: Iterable[Run]) -> list[str]:
    """Return the commands that show runs in the terminal: one for all runs in one folder."""
    folders: dict[Path, list[Path]] = {}
    for run in runs:
        if run.path.suffix == ".wandb":
            folders.setdefault(run.path.parent.parent, []).append(run.path.parent)
    paths = [own[0] if len(own) == 1 else folder for folder, own in folders.items()]
    return [f"wandb leet {shlex.quote(str(path))}" for path in paths]


def _values(runs: Sequence[Run], names: list[str]) -> str:
    keys = sorted({key for run in runs for key in run.curves()})
    columns = ("last", "smallest", "largest", "values")
    head = ["key"] + [f"{name} {what}" for name in names for what in columns]
    owners = [None, *(number for number in range(len(runs)) for _ in columns)]
    rows = [_row(head, "th", owners)]
    for key in keys:
        cells: list[object] = [key]
        for run in runs:
            _, y, _ = run.curve(key)
            finite = y[np.isfinite(y)]
            ends = [f"{end:.6g}" for end in (finite.min(), finite.max())] if len(finite) else ["", ""]
            cells += [f"{y[-1]:.6g}" if len(y) else "", *ends, len(y)]
        rows.append(_row(cells, owners=owners, kind=_keyed(key)))
    return f"<table>{''.join(rows)}</table>" if keys else ""


def _consoles(drawing: Drawing, names: list[str]) -> str:
    texts = [
        f"<div data-run={number}><b>{escape(name)}</b><pre>{escape(text)}</pre></div>"
        for number, (name, text) in enumerate(zip(names, drawing.consoles(), strict=True))
        if text
    ]
    return "".join(texts)


def _config(runs: Sequence[Run], names: list[str]) -> str:
    flat = [{**flatten(run.config), **run.facts} for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    owners = [None, *range(len(runs))]
    rows = []
    for key in sorted(keys, key=lambda key: not differs(key, flat)):
        kind = _keyed(key, "differs" if differs(key, flat) else "")
        rows.append(_row([key, *(one.get(key, "") for one in flat)], owners=owners, kind=kind))
    return f"<table>{_row(['', *names], 'th', owners)}{''.join(rows)}</table>" if rows else ""
