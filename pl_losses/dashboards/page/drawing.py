"""The data of a page's panels, as plain data within the size limit of a page."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pl_losses.core.compat.names import KIND
from pl_losses.core.panels import STAGES, Kind, Panel
from pl_losses.dashboards.offline.columns import Array, thin_out
from pl_losses.dashboards.offline.runs import MINUTES, ODD, Item, Run, as_number
from pl_losses.dashboards.page.images import THUMBNAIL, THUMBNAILS, embedded, fair, files, size
from pl_losses.monitoring.charts import CONFUSION, COUNTED, FIELDS, LINES, row_pictures

Data = dict[str, Any]
CODES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\a]*\a)|[\x00-\x08\x0e-\x1a]")  # A terminal's.
# D3 and the page's own code take 0.3 of a page's 5 MB; these share the rest, in bytes.
CURVES, PICTURES, HISTOGRAMS, TABLES, CELLS = 1_500_000, 1_600_000, 400_000, 200_000, 400_000
SYSTEM, CONSOLE = 200_000, 100_000
POINT = 2 * 8 * 4 / 3  # x and y as float64 in base64
BIN = 12  # an edge and a count
CELL = (int, float, str, type(None))
POINTS, STEPS, ROWS = (16, 2000), (2, 120), 200


class Drawing:
    """Makes the panels' data within the page's size.

    Args:
        runs: The runs to show.
        names: Their names.
    """

    def __init__(self, runs: Sequence[Run], names: Sequence[str]) -> None:
        self.runs, self.names = runs, names
        self.points = share(CURVES, POINT * sum(len(run.curves()) for run in runs), *POINTS)
        bins = [len(items[-1].value["values"]) for _, _, items in self.found("histogram")]
        self.steps = share(HISTOGRAMS, BIN * sum(bins), *STEPS)
        tables = max(1, len(self.found("table")))
        self.table, self.cells = TABLES // tables, CELLS // tables
        self.sizes = {
            (run, key): sum(size(file) for item in items for file in files(runs[run], item))
            for run, key, items in self.found("picture")
        }
        self.room = fair(self.sizes, PICTURES)
        self.makers = {
            "pictures": self.pictures,
            "histogram": self.histograms,
            "table": self.tables,
            "chart": self.tables,
        }

    def found(self, kind: str, keys: Sequence[str] | None = None) -> list[tuple[int, str, list[Item]]]:
        """Return the runs' numbers, keys and items of a kind, for all keys or in the order of those given."""
        return [
            (number, key, run.items[kind][key])
            for number, run in enumerate(self.runs)
            for key in (run.items.get(kind, {}) if keys is None else keys)
            if key in run.items.get(kind, {})
        ]

    def title(self, text: str, run: int) -> str:
        """Return a panel's title, which names the run if there are several."""
        return text if len(self.runs) == 1 else f"{text} · {self.names[run]}"

    def panel(self, panel: Panel, logged: Mapping[str, Kind]) -> Iterator[Data]:
        """Make the data of a panel: none if there is nothing, several if each key needs its own.

        Args:
            panel: What to show.
            logged: What is logged by key: lines, pictures, histograms or tables.
        """
        keys = sorted(panel.shown(logged), key=natural)
        return self.makers.get(panel.kind, self.lines)(panel, keys)

    def lines(self, panel: Panel, keys: list[str]) -> Iterator[Data]:
        """Make a panel of curves for each x axis, or a table if no curve has more than one value."""
        made: dict[str, list[Data]] = {}
        longest = 0
        for number, run in enumerate(self.runs):
            for key in keys:
                x, y, axis = run.curve(key)
                if len(x):
                    longest = max(longest, len(x))
                    line = {"run": number, "key": key, **made_line(x, y, self.points)}
                    made.setdefault(axis, []).append(line)
        if longest > 1:
            look = {"title": panel.title, "smoothing": panel.smoothing, "log": panel.log_y}
            for axis, drawn in made.items():
                yield {"kind": "lines", "x": axis, "lines": drawn, **look}
        elif made:
            rows = [[key, *(last(run, key) for run in self.runs)] for key in keys]
            owners = [None, *range(len(self.runs))]
            columns = ["", *self.names]
            yield {"kind": "table", "title": panel.title, "columns": columns, "rows": rows, "owners": owners}

    def histograms(self, panel: Panel, keys: list[str]) -> Iterator[Data]:
        """Make a heat map for each key, the runs' side by side."""
        maps: dict[str, list[Data]] = {}
        for run, key, items in self.found("histogram", keys):
            kept = evenly(items, self.steps)
            made = {
                "run": run,
                "x": kept[0].axis,
                "steps": [item.x for item in kept],
                "edges": [[float(f"{edge:.5g}") for edge in item.value["bins"]] for item in kept],
                "counts": [item.value["values"] for item in kept],
            }
            maps.setdefault(key, []).append(made)
        for key in keys:
            if key in maps:
                yield {"kind": "histogram", "title": key, "x": maps[key][0]["x"], "maps": maps[key]}

    def pictures(self, panel: Panel, keys: list[str]) -> Iterator[Data]:
        """Make pictures with their steps: at least the last of each key, smaller if there is no room."""
        made = []
        for run, key, items in self.found("picture", keys):
            kept = evenly(items, max(1, int(len(items) * self.kept(run, key))))
            frames = [(item.x, file) for item in kept for file in files(self.runs[run], item)]
            room = self.room[run, key] / max(1, len(frames))
            shown = [{"x": x, "source": embedded(file, room)} for x, file in frames]
            steps = len(kept) if frames else 0
            note = f"({steps} of {len(items)} steps are shown)" if steps < len(items) else ""
            made.append({"run": run, "key": key, "x": items[0].axis, "frames": shown, "note": note})
        if made:
            yield {"kind": "pictures", "title": panel.title, "pictures": made}

    def kept(self, run: int, key: str) -> float:
        """Return the share of a key's steps that there is room for."""
        return self.room[run, key] / self.sizes[run, key] if self.sizes[run, key] else 1.0

    def tables(self, panel: Panel, keys: list[str]) -> Iterator[Data]:
        """Show the last table of each key and run, or the chart that the run made of it."""
        lines: list[Data] = []
        chart = None
        for run, key, items in self.found("table", keys):
            columns, rows = read_table(self.runs[run], key, items[-1])
            charted = self.runs[run].charts.get(key)
            if charted and charted.name == LINES and set(FIELDS[LINES]) <= set(columns):
                chart = charted
                lines += [{"run": run, **line} for line in self.series(columns, as_text(rows))]
            elif columns:
                if charted and charted.name == CONFUSION and set(FIELDS[CONFUSION]) <= set(columns):
                    columns, rows = matrix(columns, as_text(rows))
                    if len(rows) <= COUNTED and self.pictured(run, key):
                        continue
                title = self.title(panel.title, run)
                yield {"kind": "table", "run": run, "title": title, **self.cut(columns, rows)}
        if chart:
            title = chart.texts.get("title", panel.title)
            yield {"kind": "lines", "title": title, "x": chart.texts.get("xname", ""), "lines": lines}

    def pictured(self, run: int, key: str) -> bool:
        """Return whether a run has a picture of a confusion matrix, by the key of its table."""
        pictures = self.runs[run].items.get("picture", {}).get(key.removesuffix("_table") + "_matrix")
        return bool(pictures and files(self.runs[run], pictures[-1]))

    def series(self, columns: list[str], rows: list[list[Any]]) -> Iterator[Data]:
        """Yield the lines of a table of W&B's line series."""
        x, name, y = (columns.index(field) for field in FIELDS[LINES])
        for key in dict.fromkeys(str(row[name]) for row in rows):
            own = [(as_number(row[x]), as_number(row[y])) for row in rows if str(row[name]) == key]
            points = np.array([pair for pair in own if None not in pair], dtype=np.float64).reshape(-1, 2)
            yield {"key": key, **made_line(points[:, 0], points[:, 1], self.points)}

    def cut(self, columns: list[str], rows: list[list[Any]]) -> Data:
        """Cut a table to the rows that there is room for, with the pictures in their cells."""
        kept = rows[:ROWS]
        while kept and (
            len(json.dumps(as_text(kept))) > self.table or THUMBNAIL * count_pictures(kept) > self.cells
        ):
            kept = kept[: len(kept) // 2]
        note = f"The first {len(kept)} of {len(rows)} rows" if len(kept) < len(rows) else ""
        room = self.cells / max(1, count_pictures(kept))
        drawn = [
            [{"source": embedded(cell, room, THUMBNAILS)} if isinstance(cell, Path) else cell for cell in row]
            for row in kept
        ]
        return {"columns": columns, "rows": drawn, "note": note}

    def system(self) -> Iterator[Data]:
        """Make a panel for each thing that was measured of the machines, of all cores or devices."""
        keys = [(key, run) for run in self.runs for key in run.system.names() if key != MINUTES]
        points = share(SYSTEM, POINT * len(keys), *POINTS)
        titles: dict[str, list[str]] = {}
        for key in sorted({key for key, _ in keys}, key=natural):
            titles.setdefault(re.sub(r"\.\d+(?=\.)", "", key), []).append(key)
        for title, mine in titles.items():
            lines = []
            for number, run in enumerate(self.runs):
                for key in mine:
                    x, y = run.system.pairs(MINUTES, key)
                    lines += [{"run": number, "key": key, **made_line(x, y, points)}] if len(x) else []
            yield {"kind": "lines", "title": title, "x": MINUTES, "lines": lines}

    def consoles(self) -> list[str]:
        """Return what each run wrote to the terminal: of a long text its beginning and its end."""
        room = CONSOLE // len(self.runs)
        texts = [as_seen("".join(run.console)) for run in self.runs]
        for number, text in enumerate(texts):
            if (lost := len(text) - room) > 0:
                begin, end = text[: room // 3], text[-2 * room // 3 :]
                texts[number] = f"{begin}\n... {lost} characters left out ...\n{end}"
        return texts


def made_line(x: Array, y: Array, points: int) -> Data:
    """Make a curve of at most so many points."""
    lost = ~np.isfinite(y)
    note = f"{lost.sum()} values are not finite, the first at {x[lost][0]:g}" if lost.any() else ""
    x, y = thin_out(x[~lost], y[~lost], points)
    return {"x": encoded(x), "y": encoded(y), "note": note}


def as_seen(text: str) -> str:
    """Return a terminal's text as it is seen in the end: of lines that were overwritten, the last.

    Example:
        >>> as_seen("Epoch 0:  50%\\rEpoch 0: 100%\\n\\x1b[1mdone\\x1b[0m\\n")
        'Epoch 0: 100%\\ndone'
    """
    lines = CODES.sub("", text).split("\n")
    seen = [next(filter(str.strip, reversed(line.split("\r"))), "").rstrip() for line in lines]
    return "\n".join(seen).strip()


def share(room: float, need: float, least: int, most: int) -> int:
    """Count how many fit into the room if one takes ``need`` of it; at least ``least``, at most ``most``.

    Example:
        >>> share(1000, 50, 2, 10), share(1000, 200, 2, 10), share(1000, 0, 2, 10)
        (10, 5, 10)
    """
    return int(min(most, max(least, room / need))) if need else most


def last(run: Run, key: str) -> str:
    """Return the last value of a key, if there is one."""
    return "".join(f"{y:.5g}" for y in run.curve(key)[1][-1:])


def read_table(run: Run, key: str, item: Item) -> tuple[list[str], list[list[Any]]]:
    """Read the columns and rows of a table that wandb wrote; empty if it is missing or damaged.

    A cell is a number, a text, empty, or a picture's file; any other value is converted to text.
    """
    # Only the copy in the artifact has pictures; wandb deletes it once it is uploaded.
    path = run.copied(f"{key}.table.json") or run.file(item.value.get("path", ""))
    if path is None:
        return [], []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        columns = [str(name) for name in found["columns"]]
        rows = [[_cell(run, cell) for cell in row] for row in found["data"]]
    except ODD:
        return [], []
    for number, row in enumerate(rows):
        if picture := run.beside(f"{row_pictures(key)}/{number}.png"):
            row[:1] = [picture]
    return (columns, rows) if all(len(row) == len(columns) for row in rows) else ([], [])


def _cell(run: Run, cell: Any) -> Any:
    picture = cell.get("path") if isinstance(cell, dict) and cell.get(KIND) == "image-file" else None
    if picture and (file := run.copied(picture) or run.file(picture)):
        return file
    return cell if isinstance(cell, CELL) else str(cell)


def count_pictures(rows: list[list[Any]]) -> int:
    """Count the cells that are pictures."""
    return sum(isinstance(cell, Path) for row in rows for cell in row)


def as_text(rows: list[list[Any]]) -> list[list[Any]]:
    """Replace pictures by their names."""
    return [[cell.name if isinstance(cell, Path) else cell for cell in row] for row in rows]


def matrix(columns: list[str], rows: list[list[Any]]) -> tuple[list[str], list[list[Any]]]:
    """Make a confusion matrix of a table that has a row for each of its cells.

    Example:
        >>> matrix(["Actual", "Predicted", "nPredictions"], [["a", "a", 3], ["a", "b", 1], ["b", "b", 2]])
        (['right, predicted', 'a', 'b'], [['a', 3, 1], ['b', '', 2]])
    """
    right, predicted, count = (columns.index(field) for field in FIELDS[CONFUSION])
    cells = {(row[right], row[predicted]): row[count] or "" for row in rows}
    names = list(dict.fromkeys(name for pair in cells for name in pair))
    head = ["right, predicted", *map(str, names)]
    return head, [[name, *(cells.get((name, other), "") for other in names)] for name in names]


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Choose at most ``count`` items, evenly spread: always the last one, and the first one from two on."""
    if len(items) <= count:
        return list(items)
    places = np.linspace(0, len(items) - 1, count).round().astype(int) if count > 1 else [-1]
    return [items[place] for place in places]


def natural(key: str) -> list[tuple[int, str]]:
    """Return a sort key: training before validation before test, layer 2 before layer 10.

    Example:
        >>> sorted(["features.10/mean", "features.2/mean"], key=natural)
        ['features.2/mean', 'features.10/mean']
        >>> sorted(["test/loss", "val/loss", "train/loss"], key=natural)
        ['train/loss', 'val/loss', 'test/loss']
    """
    first = key.partition("/")[0]
    stage = STAGES.index(first) if first in STAGES else -1
    parts = re.split(r"(\d+)", key)
    return [(stage, ""), *((int(part), "") if part.isdigit() else (-1, part) for part in parts)]


def encoded(values: Array) -> str:
    """Encode numbers as base64 of little-endian float64."""
    return base64.b64encode(values.astype("<f8").tobytes()).decode()
