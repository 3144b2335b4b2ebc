"""One self-contained HTML page of a run, or of several side by side: no network, no server.

The charts are drawn by BokehJS, whose minified script comes with the Python package and goes into the page.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pl_losses.dashboards.columns import Array, thin_out
from pl_losses.dashboards.panels import Panel, Section, automatic, matches
from pl_losses.dashboards.papers import PROGRESS, REPRODUCED, SECTIONS
from pl_losses.dashboards.runs import Item, Run
from pl_losses.recipes import UsageError

HERE = Path(__file__).parent
SCRIPTS = ("bokeh.min.js", "bokeh-api.min.js")
# Of the 5 MB that a page may have, BokehJS takes 1.4; what the curves and the pictures take, in bytes.
CURVES, PICTURES = 1_300_000, 1_900_000
POINT = 2 * 8 * 4 / 3  # x and y as float64 in base64
LEAST, MOST = 40, 2000
STEPS, ROWS = 120, 200
KINDS = {"picture": "pictures", "histogram": "histogram", "table": "table"}

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
    """The page of one run, or of several to compare.

    Args:
        runs: At least one.

    Returns:
        HTML of 5 MB at most; what was left out to keep to that is said on it. Of each curve the
        smallest and the largest value of every stretch are kept.
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
        data=json.dumps(data, separators=(",", ":")).replace("</", "<\\/"),
        scripts="\n".join(f"<script>{source}</script>" for source in sources),
    )


def distinct(names: list[str]) -> list[str]:
    """Names with a number where they come twice.

    Example:
        >>> distinct(["a", "b", "a"])
        ['a', 'b', 'a (2)']
    """
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    count: dict[str, int] = {}
    made = []
    for name in names:
        count[name] = count.get(name, 0) + 1
        made.append(name if count[name] == 1 else f"{name} ({count[name]})")
    return made


def _script(name: str) -> str:
    found = importlib.util.find_spec("bokeh")
    if found is None or not found.submodule_search_locations:
        raise UsageError("The page takes Bokeh: pip install bokeh; `wandb leet` shows a run without it")
    path = Path(found.submodule_search_locations[0], "server", "static", "js", name)
    # Within a page the end tag would end the script.
    return path.read_text(encoding="utf-8").replace("</script", "<\\/script")


def _sections(runs: Sequence[Run], names: list[str]) -> Iterable[dict[str, Any]]:
    """The sections of the papers' dashboards that have something to show, and what none of them speaks of.

    A key is shown once: by the tables of the classes that the config names, then by those that fit most keys.
    """
    kinds = {key: KINDS[kind] for run in runs for kind, items in run.items.items() for key in items}
    curves = dict.fromkeys((key for run in runs for key in run.curves()), "lines")
    left = curves | kinds
    tables = {name: (spoken(sections, left), sections) for name, sections in (SECTIONS | REPRODUCED).items()}
    named = {name for run in runs for name in class_names(run.config)}
    order = sorted(tables, key=lambda name: (name not in named, -len(tables[name][0])))
    drawn = Drawing(runs, names, len(curves))
    shown: dict[str, list[dict[str, Any]]] = {}
    figures = set()
    for name in [*order, ""]:
        keys, sections = tables[name] if name else (list(left), automatic(left, left))  # type: ignore[arg-type]
        mine = {key: left.pop(key) for key in keys if key in left}
        for section in sections:
            figures |= {section.name} if section.figure else set()
            for panel in section.panels:
                shown.setdefault(section.name, []).extend(drawn.panel(panel, mine))
    for name in sorted(shown, key=lambda name: (name not in figures, name == PROGRESS.name)):
        if shown[name]:
            yield {"name": name, "panels": shown[name], "open": name != PROGRESS.name}


def spoken(sections: Iterable[Section], keys: Iterable[str]) -> list[str]:
    """The keys that are on a panel of the sections."""
    patterns = [pattern for section in sections for panel in section.panels for pattern in panel.keys]
    return [key for key in keys if any(matches(pattern, key) for pattern in patterns)]


def class_names(config: Any) -> set[str]:
    """The names of the classes in a config.

    Example:
        >>> class_names({"model": {"class_path": "pl_losses.LeNet5", "init_args": {}}})
        {'LeNet5'}
    """
    if not isinstance(config, (dict, list)):
        return set()
    inner = list(config.values()) if isinstance(config, dict) else config
    own = [config["class_path"]] if isinstance(config, dict) and "class_path" in config else []
    return {str(path).rpartition(".")[2] for path in own}.union(*map(class_names, inner))


class Drawing:
    """Makes the panels' data, and keeps to the page's size.

    Args:
        runs: What is shown.
        names: What the runs are called.
        curves: How many different curves there are.
    """

    def __init__(self, runs: Sequence[Run], names: list[str], curves: int) -> None:
        self.runs, self.names = runs, names
        self.points = int(min(MOST, max(LEAST, CURVES / POINT / max(1, curves * len(runs)))))
        files = [
            _file(run, one)
            for run in runs
            for _, frames in run.items.get("picture", {}).items()
            for one in frames
        ]
        sizes = [file.stat().st_size * 4 / 3 for file in files if file is not None]
        self.share = min(1.0, PICTURES / max(1.0, sum(sizes)))
        self.left = float(PICTURES)

    def panel(self, panel: Panel, logged: dict[str, str]) -> Iterable[dict[str, Any]]:
        """The data of a panel: none if there is nothing, several where each key needs one of its own."""
        keys = [key for key in logged if any(matches(pattern, key) for pattern in panel.keys)]
        keys.sort(key=natural)
        wanted = "lines" if panel.kind == "bars" else panel.kind
        keys = [key for key in keys if logged[key] == wanted]
        makers = {
            "pictures": self.pictures,
            "histogram": self.histograms,
            "table": self.tables,
            "lines": self.lines,
        }
        return makers[wanted](panel, keys)

    def lines(self, panel: Panel, keys: list[str]) -> Iterable[dict[str, Any]]:
        """Curves, or a table where no key has more than one value."""
        made, axis, longest = [], "", 0
        for number, run in enumerate(self.runs):
            for key in keys:
                x, y, name = run.curve(key)
                if not len(x):
                    continue
                axis, longest = name, max(longest, len(x))
                kept_x, kept_y = thin_out(x, y, self.points)
                gone = int((~np.isfinite(y)).sum())
                note = f"{gone} values are not finite, the first at {x[~np.isfinite(y)][0]:g}" if gone else ""
                finite = np.isfinite(kept_y)
                line = {"x": encoded(kept_x[finite]), "y": encoded(kept_y[finite])}
                made.append({"run": number, "key": key, "note": note, **line})
        if longest > 1:
            look = {"x": axis, "smoothing": panel.smoothing, "log": panel.log_y}
            yield {"kind": "lines", "title": panel.title, **look, "lines": made}
        elif made:
            rows = [[key, *(last(run, key) for run in self.runs)] for key in keys]
            yield {"kind": "table", "title": panel.title, "columns": ["", *self.names], "rows": rows}

    def histograms(self, panel: Panel, keys: list[str]) -> Iterable[dict[str, Any]]:
        """A heat map for each key and run."""
        for run in self.runs:
            for key in keys:
                items = evenly(run.items.get("histogram", {}).get(key, []), STEPS)
                whole = [item for item in items if "bins" in item.value and "values" in item.value]
                if whole:
                    title = key if len(self.runs) == 1 else f"{key} · {run.name}"
                    yield {
                        "kind": "histogram",
                        "title": title,
                        "x": run.axis(key),
                        "steps": [item.x for item in whole],
                        "edges": [[float(f"{edge:.5g}") for edge in item.value["bins"]] for item in whole],
                        "counts": [item.value["values"] for item in whole],
                    }

    def pictures(self, panel: Panel, keys: list[str]) -> Iterable[dict[str, Any]]:
        """Pictures with their steps."""
        made = []
        for number, run in enumerate(self.runs):
            for key in keys:
                items = run.items.get("picture", {}).get(key, [])
                kept = evenly(items, max(1, int(self.share * len(items))))
                frames = [frame for item in kept for frame in self._frames(run, item)]
                if frames:
                    note = f"({len(kept)} of {len(items)} steps)" if len(kept) < len(items) else ""
                    made.append({"run": number, "key": key, "frames": frames, "note": note})
        if made:
            yield {
                "kind": "pictures",
                "title": panel.title,
                "x": self.runs[0].axis(keys[0]),
                "pictures": made,
            }

    def _frames(self, run: Run, item: Item) -> Iterable[dict[str, Any]]:
        file = _file(run, item)
        if file is None or (size := file.stat().st_size * 4 / 3) > self.left:
            return
        self.left -= size
        kind = {".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}.get(
            file.suffix.lower(), "png"
        )
        yield {
            "x": item.x,
            "source": f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}",
        }

    def tables(self, panel: Panel, keys: list[str]) -> Iterable[dict[str, Any]]:
        """The last table of each key and run."""
        for run in self.runs:
            for key in keys:
                for item in run.items.get("table", {}).get(key, [])[-1:]:
                    found = _read_table(run.files / str(item.value.get("path", "")))
                    if found:
                        title = panel.title if len(self.runs) == 1 else f"{panel.title} · {run.name}"
                        yield {"kind": "table", "title": title, **found}


def last(run: Run, key: str) -> str:
    """The last value of a key, if there is one."""
    return "".join(f"{y:.5g}" for y in run.curve(key)[1][-1:])


def _file(run: Run, item: Item) -> Path | None:
    """The first file of a logged picture, if it is there and within the run's folder."""
    names = item.value.get("filenames") or [item.value.get("path", "")]
    file = (run.files / str(names[0])).resolve()
    return file if file.is_file() and file.is_relative_to(run.files.resolve()) else None


def _read_table(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        columns, rows = found["columns"], found["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    note = f"The first {ROWS} of {len(rows)} rows" if len(rows) > ROWS else ""
    return {"columns": columns, "rows": rows[:ROWS], "note": note}


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` of them, evenly spread, the last one always, the first one from two on."""
    if len(items) <= count:
        return list(items)
    places = np.linspace(0, len(items) - 1, count).round().astype(int) if count > 1 else [-1]
    return [items[place] for place in places]


def natural(key: str) -> list[tuple[int, str]]:
    """What to sort keys by, so that layer 2 comes before layer 10.

    Example:
        >>> sorted(["features.10/mean", "features.2/mean"], key=natural)
        ['features.2/mean', 'features.10/mean']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]


def encoded(values: Array) -> str:
    """Numbers as base64 of little-endian float64."""
    return base64.b64encode(values.astype("<f8").tobytes()).decode()


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
    rows = [_row(["run", "recipe", "state", "rows", "began", "took", "final values"], "th")]
    for run, name in zip(runs, names, strict=True):
        final = ", ".join(f"{key} {value:.4g}" for key, value in finals(run))
        began, took = (run.facts.get(fact, "") for fact in ("began", "took"))
        rows.append(_row([name, run.recipe, run.stage, run.columns.count, began, took, final]))
    notes = [
        f"<p class='note'>{escape(name)}: {escape(note)}</p>"
        for run, name in zip(runs, names, strict=True)
        for note in run.notes
    ]
    leet = [f"<code>{escape(leet_command(run))}</code>" for run in runs if run.path.suffix == ".wandb"]
    told = f"<p>In the terminal: {' '.join(leet)}</p>" if leet else ""
    return f"<table>{''.join(rows)}</table>{''.join(notes)}{told}"


def leet_command(run: Run) -> str:
    """The command that shows a run in the terminal."""
    return f"wandb leet {shlex.quote(str(run.path.parent))}"


def finals(run: Run) -> list[tuple[str, float]]:
    """What a run is summed up in: the last test error, RMSE or loss, else that of the validation."""
    for stage in ("test", "val", "train"):
        for name in ("error", "rmse", "loss"):
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
    rows = [(key, [one.get(key, "") for one in flat]) for key in keys]
    differing = [(key, values) for key, values in rows if len(set(map(str, values))) > 1]
    same = [(key, values) for key, values in rows if len(set(map(str, values))) == 1]
    body = "".join(_row([key, *values], kind="differs") for key, values in differing)
    body += "".join(_row([key, *values]) for key, values in same)
    return f"<table>{_row(['', *names], 'th')}{body}</table>" if rows else ""


def flatten(config: Any, above: str = "") -> dict[str, object]:
    """A nested config by dotted names, without what is empty.

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
