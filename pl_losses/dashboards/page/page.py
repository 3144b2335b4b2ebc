"""One self-contained HTML page of a run, or of several side by side: no network, no server.

The charts are drawn by BokehJS, whose minified script comes with the Python package and goes into the page.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pl_losses.core.manifests import headlines, manifests, panels_in, rooms_of
from pl_losses.core.panels import PROGRESS, Kind, Section, automatic, fitting, joined, rank
from pl_losses.dashboards.offline.runs import Run
from pl_losses.dashboards.page.drawing import Data, Drawing
from pl_losses.recipes import UsageError

HERE = Path(__file__).parent
SOME = 4  # differences that a line has room for
SCRIPTS = ("bokeh.min.js", "bokeh-api.min.js")
KINDS: dict[str, Kind] = {"picture": "pictures", "histogram": "histogram", "table": "table"}

HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; font-src data:">
<style>{style}</style></head><body>
<h1>{title}</h1>
{runs}
<div id="sections"></div>
{tables}
<script type="application/json" id="page">{data}</script>
{scripts}
</body></html>
"""


def build_page(runs: Sequence[Run]) -> str:
    """Build the page of one run, or of several to compare.

    Args:
        runs: At least one.

    Returns:
        HTML of 5 MB at most; it says what was left out for that. Curves are thinned out, but keep the
        smallest and the largest value of every stretch.
    """
    names = distinct([run.name for run in runs])
    title = " · ".join(dict.fromkeys(run.recipe or run.name for run in runs))
    data = {"runs": names, "sections": list(_sections(runs, names))}
    sources = [_script(name) for name in SCRIPTS] + [(HERE / "page.js").read_text(encoding="utf-8")]
    return HTML.format(
        title=escape(title),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        runs=_run_table(runs, names),
        tables=_folded("All values", _values(runs, names)) + _folded("Config", _config(runs, names)),
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


def _script(name: str) -> str:
    found = importlib.util.find_spec("bokeh")
    if found is None or not found.submodule_search_locations:
        raise UsageError("The page needs Bokeh: pip install bokeh; `wandb leet` shows a run without it")
    path = Path(found.submodule_search_locations[0], "server", "static", "js", name)
    # Within a page, this end tag would end the script.
    return path.read_text(encoding="utf-8").replace("</script", "<\\/script")


def _sections(runs: Sequence[Run], names: list[str]) -> Iterator[Data]:
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
    drawing = Drawing(runs, names)
    made: dict[str, Section] = {}
    panels: dict[str, list[Data]] = {}
    for sections in [*(one for _, one in known), None]:
        if sections is None:
            sections = tuple(automatic(left, left))
        shown = set().union(*(section.shown(left) for section in sections))
        mine = {key: left[key] for key in left if key in shown}
        left = {key: kind for key, kind in left.items() if key not in mine}
        for section in sections:
            made[section.name] = joined(made.get(section.name), section)
            for panel in section.panels:
                panels.setdefault(section.name, []).extend(drawing.panel(panel, mine))
    for section in sorted(made.values(), key=rank):
        if panels.get(section.name):
            yield {"name": section.name, "panels": panels[section.name], "open": section.name != PROGRESS}


def misfit(sections: Iterable[Section], keys: Collection[str]) -> tuple[int, int]:
    """Count the sections' patterns that match no key; then, negative, the keys that they match."""
    patterns = [pattern for section in sections for panel in section.panels for pattern in panel.keys]
    found = [fitting(pattern, keys) for pattern in patterns]
    return sum(not one for one in found), -sum(map(len, found))


def classes_of(config: Any) -> list[str]:
    """List the paths of the classes in a run's config: the model, the callbacks, then all others.

    Example:
        >>> classes_of({"data": {"class_path": "a.B"}, "model": {"class_path": "pl_losses.LeNet5"}})
        ['pl_losses.LeNet5', 'a.B']
    """
    trainer = config.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    return list(dict.fromkeys(class_paths([config.get("model"), callbacks, config])))


def class_paths(config: Any) -> Iterator[str]:
    """Yield the paths of the classes in a config, with repetitions."""
    if isinstance(config, dict):
        if "class_path" in config:
            yield str(config["class_path"])
        config = list(config.values())
    if isinstance(config, list):
        for one in config:
            yield from class_paths(one)


def _folded(title: str, body: str) -> str:
    return (
        f"<details><summary>{escape(title)}</summary><div class='scroll'>{body}</div></details>"
        if body
        else ""
    )


def _row(cells: Iterable[object], tag: str = "td", kind: str = "") -> str:
    inside = "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells)
    return f"<tr class='{kind}'>{inside}</tr>" if kind else f"<tr>{inside}</tr>"


def _run_table(runs: Sequence[Run], names: list[str]) -> str:
    head = ["run", "recipe", "state", "rows", "began", "took", "final values"]
    rows = [_row([*head, "what differs"] if len(runs) > 1 else head, "th")]
    for run, name, own in zip(runs, names, differences(runs), strict=True):
        final = ", ".join(f"{key} {value:.4g}" for key, value in finals(run))
        began, took = (run.facts.get(fact, "") for fact in ("began", "took"))
        rows.append(_row([name, run.recipe, run.stage, run.columns.count, began, took, final, own]))
    notes = [
        f"<p class='note'>{escape(name)}: {escape(note)}</p>"
        for run, name in zip(runs, names, strict=True)
        for note in run.notes
    ]
    leet = " ".join(f"<code>{escape(command)}</code>" for command in leet_commands(runs))
    told = f"<p>In the terminal: {leet}</p>" if leet else ""
    return f"<table>{''.join(rows)}</table>{''.join(notes)}{told}"


def differences(runs: Sequence[Run]) -> list[str]:
    """Describe in short how each run's config differs from the others'."""
    flat = [flatten(run.config) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if differs(key, flat)]
    return [
        ", ".join(f"{key.rpartition('.')[2]} {one.get(key, '-')}" for key in keys[:SOME])
        + (" ..." if len(keys) > SOME else "")
        for one in flat
    ]


def differs(key: str, configs: Sequence[dict[str, object]]) -> bool:
    """Return whether configs have different values of a key, or only some have one."""
    return len({str(config.get(key)) for config in configs}) > 1


def leet_commands(runs: Iterable[Run]) -> list[str]:
    """Return the commands that show runs in the terminal: one for all runs in one folder."""
    folders: dict[Path, list[Path]] = {}
    for run in runs:
        if run.path.suffix == ".wandb":
            folders.setdefault(run.path.parent.parent, []).append(run.path.parent)
    paths = [own[0] if len(own) == 1 else folder for folder, own in folders.items()]
    return [f"wandb leet {shlex.quote(str(path))}" for path in paths]


def finals(run: Run) -> list[tuple[str, float]]:
    """Return a run's headline: its last value in the test, else in the validation or the training."""
    names = headlines(rooms_of(classes_of(run.config)))
    for stage in ("test", "val", "train"):
        for name in names:
            values = run.curve(f"{stage}/{name}")[1]
            if len(values):
                return [(f"{stage}/{name}", float(values[-1]))]
    return []


def _values(runs: Sequence[Run], names: list[str]) -> str:
    keys = sorted({key for run in runs for key in run.curves()})
    head = ["key"] + [
        f"{name} {what}" for name in names for what in ("last", "smallest", "largest", "values")
    ]
    rows = [_row(head, "th")]
    for key in keys:
        cells: list[object] = [key]
        for run in runs:
            _, y, _ = run.curve(key)
            finite = y[np.isfinite(y)]
            ends = [f"{end:.6g}" for end in (finite.min(), finite.max())] if len(finite) else ["", ""]
            cells += [f"{y[-1]:.6g}" if len(y) else "", *ends, len(y)]
        rows.append(_row(cells))
    return f"<table>{''.join(rows)}</table>" if keys else ""


def _config(runs: Sequence[Run], names: list[str]) -> str:
    flat = [{**flatten(run.config), **run.facts} for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [
        (_row([key, *(one.get(key, "") for one in flat)], kind="differs" if differs(key, flat) else ""))
        for key in sorted(keys, key=lambda key: not differs(key, flat))
    ]
    return f"<table>{_row(['', *names], 'th')}{''.join(rows)}</table>" if rows else ""


def flatten(config: Any, above: str = "") -> dict[str, object]:
    """Flatten a nested config to dotted names, without empty values.

    Example:
        >>> flatten({"a": {"b": 1, "c": [2]}, "d": None})
        {'a.b': 1, 'a.c.0': 2}
    """
    if isinstance(config, dict):
        inner = config.items()
    elif isinstance(config, list):
        inner = enumerate(config)  # type: ignore[assignment]
    else:
        return {} if config is None else {above: config}
    found: dict[str, object] = {}
    for key, value in inner:
        found |= flatten(value, f"{above}.{key}" if above else str(key))
    return found
