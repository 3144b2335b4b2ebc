"""A run read back from its folder: curves on their axes, histograms, pictures, tables, config, its end."""

from __future__ import annotations

import csv
import fnmatch
import json
import math
import os
import platform
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from glob import escape
from pathlib import Path
from typing import Any, TypeGuard

from pl_losses.core.compat.names import ABOUT, KIND, STEP, TIMES
from pl_losses.dashboards.offline import wire
from pl_losses.dashboards.offline.columns import SUMMARY, Array, Columns, plain_numbers
from pl_losses.dashboards.offline.records import read_payloads
from pl_losses.recipes import OVERLAYS, UsageError, load

X_AXIS = "trainer/global_step"
LARGEST = 50_000_000  # Bytes of a picture or table; larger ones are left out of a page.
HUGE = 10**300  # Larger integers are not converted to floats.
# Exceptions that damaged or forged records raise.
ODD = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, OSError, RecursionError)
NOT_CURVES = {STEP, *TIMES}
MINUTES = "minutes"
UNENDED = "no end was recorded: it is running, or was killed"


@dataclass
class Item:
    """Something logged at a point of an x axis: a histogram, pictures or a table, as wandb described it."""

    x: float
    axis: str
    value: dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A chart that ``wandb.plot`` makes of a table: W&B's name of the chart, and its texts."""

    name: str
    texts: dict[str, str]


@dataclass
class Run:
    """The contents of a run's folder.

    Attributes:
        name: Its display name, or its id.
        path: The file it was read from.
        folders: Folders that pictures' and tables' paths are relative to: that of each part, the last first.
        stage: Whether it finished or failed, or that neither is recorded.
        recipe: Names of the recipes and files it came from.
        job_type: The command that made it, such as "fit" or "test", as far as that is recorded.
        config: Everything that was configured, by key.
        facts: When it began and how long it took, versions.
        columns: All numbers.
        system: What wandb measured of the machine, over :data:`MINUTES`.
        console: What was written to the terminal, piece by piece.
        axes: Key or pattern to its x axis.
        items: By kind (histogram, picture, table), then by key.
        charts: Charts by the key of their table.
        staged: Names of files in artifacts, such as the whole of a table, to their copies.
        notes: What is wrong with its file, or missing in it.
        default_axis: The x axis of keys without one.
        began: Seconds since 1970; 0 if that is not recorded.
        ended: Whether its end is recorded.
        host: Name of the machine it is on; "" if that is not recorded.
    """

    name: str
    path: Path
    folders: list[Path]
    stage: str = UNENDED
    recipe: str = ""
    job_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    system: Columns = field(default_factory=Columns)
    console: list[str] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    items: dict[str, dict[str, list[Item]]] = field(default_factory=dict)
    charts: dict[str, Chart] = field(default_factory=dict)
    staged: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    default_axis: str = STEP
    began: int = 0
    ended: bool = False
    host: str = ""

    def axis(self, key: str) -> str:
        """Return a key's x axis: its own, else that of the first pattern that fits."""
        if key in self.axes:
            return self.axes[key]
        fitting = (
            axis for pattern, axis in self.axes.items() if "*" in pattern and fnmatch.fnmatch(key, pattern)
        )
        return next(fitting, self.default_axis)

    def curve(self, key: str) -> tuple[Array, Array, str]:
        """Return x and y of a key, and the name of the x axis."""
        axis = self.axis(key)
        x, y = self.columns.pairs(axis, key)
        if not len(x):
            axis = self.default_axis
            x, y = self.columns.pairs(axis, key)
        return x, y, axis

    def curves(self) -> list[str]:
        """List the keys that have numbers, without those that are only an axis."""
        axes = NOT_CURVES | {self.default_axis, *self.axes.values()}
        return [key for key in self.columns.names() if key not in axes]

    def file(self, name: Any) -> Path | None:
        """Return a file that the run logged; ``None`` if it is missing, outside the folder or too large."""
        found = (within(folder, str(name)) for folder in self.folders)
        return next((file for file in found if file), None)

    def copied(self, name: Any) -> Path | None:
        """Return the run's copy of a file in an artifact; ``None`` as for :meth:`file`."""
        copy = self.staged.get(str(name))
        return within(copy.parent, copy.name) if copy else None

    def beside(self, name: str) -> Path | None:
        """Return a file that the suite keeps beside wandb's; ``None`` as for :meth:`file`."""
        return within(self.path.parent, name)

    def keys(self) -> set[str]:
        """Return everything that was logged, without wandb's own columns and the x axes."""
        return set(self.curves()).union(*self.items.values())


def within(folder: Path, name: str) -> Path | None:
    """Return a file of a folder; ``None`` if it is missing, outside the folder or too large."""
    found = folder / name
    try:
        inside = found.resolve().is_relative_to(folder.resolve())
        return found if inside and found.is_file() and found.stat().st_size <= LARGEST else None
    except (OSError, ValueError):  # An invalid name: too long, or with a zero in it.
        return None


def read_run(path: Path) -> Run:
    """Read a run.

    Args:
        path: ``run-<id>.wandb`` of W&B, or ``metrics.csv`` of Lightning's ``CSVLogger``.

    Raises:
        UsageError: If it is neither, or holds nothing.
    """
    return read_csv(path) if path.suffix == ".csv" else read_wandb(path)


def read_wandb(path: Path) -> Run:
    """Read an offline run's files: of all its parts up to this one, of a killed part as far as it got."""
    parts = [*earlier_parts(path), path.parent]
    run = Run(path.stem.removeprefix("run-"), path, [part / "files" for part in reversed(parts)])
    for part in parts:
        _read_part(run, part / path.name)
    if len(parts) > 1:
        run.facts["parts"] = f"{len(parts)}, since the run was resumed"
    run.recipe = str(run.config.pop("recipe", ""))
    # Lightning's own copy of the model's arguments repeats the resolved config.
    versions = {
        name: run.config.pop(name)
        for name in ("pl_losses", "torch", "lightning", "git")
        if name in run.config
    }
    run.facts |= {name: str(value) for name, value in versions.items()}
    if isinstance(start := run.config.pop("checkpoint", None), dict):
        started = {"checkpoint": start.get("path"), "checkpoint of run": start.get("run")}
        run.facts |= {name: str(value) for name, value in started.items() if value}
    if was_killed(run):
        run.stage = "killed: its process is gone, and no end was recorded"
    if isinstance(whole := run.config.get("config"), dict):
        run.config = whole
    return run


def _read_part(run: Run, path: Path) -> None:
    """Add what is in a part's file."""
    run.stage, run.ended = UNENDED, False
    run.columns.begin_part()
    lost: Counter[str] = Counter()
    for payload in read_payloads(path, run.notes):
        if SUMMARY.match(payload):
            continue
        if numbers := plain_numbers(payload):
            run.columns.add(numbers)
            continue
        try:
            found = wire.select(payload, wire.RECORD)
            for name, values in found.items():
                for value in values:
                    _take(run, name, value if isinstance(value, bytes) else b"", path.parent)
        except ODD as error:
            lost[f"{type(error).__name__}: {error}"[:80]] += 1
    run.notes += [f"{count} records are damaged ({reason}) and left out" for reason, count in lost.items()]


def earlier_parts(path: Path) -> list[Path]:
    """Return the folders of a run's earlier parts, in order: wandb makes one each time it is resumed."""
    folders = path.parent.parent.glob(f"*run-*/{escape(path.name)}")
    began = {file.parent: file.parent.name.partition("run-")[2] for file in folders}  # Names have the time.
    return sorted(
        (one for one in began if began[one] < began.get(path.parent, "")), key=lambda one: began[one]
    )


def was_killed(run: Run) -> bool:
    """Return whether a W&B run's process is gone from this machine, without an end of the run.

    wandb writes the number of the process into its log, from the first line on. A run whose machine is not
    recorded is taken for one of this machine: it was killed before anything was recorded.
    """
    if run.ended or os.name != "posix" or run.host not in ("", platform.node()):
        return False
    try:
        with (run.path.parent / "logs" / "debug.log").open(encoding="utf-8") as file:
            found = re.search(r"stats pid to (\d{1,9})", file.read(4096))
        if found:
            os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, UnicodeDecodeError):  # It may be of somebody else.
        return False
    return False


def _take(run: Run, name: str, message: bytes, folder: Path) -> None:
    if name == "history":
        _row(run, message)
    elif name == "artifact":
        for manifest in wire.messages(message, wire.ARTIFACT, "manifest"):
            for entry in wire.messages(manifest, wire.MANIFEST, "contents"):
                found = wire.select(entry, wire.ENTRY)
                # The run may have moved since.
                copy = Path(wire.text(found.get("local_path"))).name
                run.staged[wire.text(found.get("path"))] = folder / "artifacts" / "staging" / copy
    elif name == "metric":
        found = wire.select(message, wire.METRIC)
        key = wire.text(found.get("name")) or wire.text(found.get("glob_name"))
        if "step_metric" in found:
            run.axes[key] = wire.text(found["step_metric"])
    elif name == "config":
        _config(run, message)
    elif name == "run":
        found = wire.select(message, wire.RUN)
        run.name = wire.text(found.get("display_name")) or run.name
        run.job_type = wire.text(found.get("job_type")) or run.job_type
        if not run.began and (seconds := wire.seconds(found.get("start_time"))):
            run.began = seconds
            run.facts["began"] = when(seconds)
        for part in found.get("config", []):
            _config(run, part if isinstance(part, bytes) else b"")
    elif name == "exit":
        found = wire.select(message, wire.EXIT)
        code = int(wire.text(found.get("exit_code")) or 0)
        ends = {0: "finished", 130: "interrupted", 143: "interrupted"}  # Also after Ctrl-C and SIGTERM.
        run.stage = ends.get(code, f"failed with exit code {code}")
        run.ended = True
        run.facts["took"] = f"{int(wire.text(found.get('runtime')) or 0)} s"
    elif name == "stats":
        _measured(run, wire.select(message, wire.STATS))
    elif name == "output_raw":
        run.console.append(wire.text(wire.select(message, wire.OUTPUT).get("line")))
    elif name == "environment":
        found = wire.select(message, wire.ENVIRONMENT)
        run.host = wire.text(found.get("host")) or run.host
        arguments = [wire.text([part]) for part in found.get("args", [])]
        if arguments:
            run.facts["arguments"] = " ".join(arguments)


def _measured(run: Run, found: dict[str, list[int | bytes]]) -> None:
    """Add a measurement of the machine."""
    items = [wire.item(part) for part in found.get("item", []) if isinstance(part, bytes)]
    seconds = wire.seconds(found.get("timestamp"))
    run.began = run.began or seconds
    row: dict[str, Any] = {key: json.loads(text) for (key, *_), text in items}
    row[MINUTES] = (seconds - run.began) / 60
    run.system.add(_numbers_of(row))


def _config(run: Run, message: bytes) -> None:
    for update in wire.select(message, wire.CONFIG).get("update", []):
        if isinstance(update, bytes):
            (key, *rest), text = wire.item(update)
            if (key, *rest[:1]) == (ABOUT, "visualize"):
                panel = json.loads(text).get("panel_config", {})
                texts = {str(name): str(text) for name, text in panel.get("stringSettings", {}).items()}
                run.charts[f"{rest[-1]}_table"] = Chart(str(panel.get("panelDefId")), texts)
            elif key != ABOUT and not rest:
                run.config[key] = json.loads(text)


def _row(run: Run, message: bytes) -> None:
    """Read a row that does not have numbers only, and put its nested values together again."""
    row: dict[str, Any] = {}
    for part in wire.select(message, wire.HISTORY).get("item", []):
        if isinstance(part, bytes):
            (*above, last), text = wire.item(part)
            place = row
            for name in above:
                place = place.setdefault(name, {})
            place[last] = json.loads(text)
    numbers = _numbers_of(row)
    run.columns.add(numbers)
    for key, value in row.items():
        if isinstance(value, dict) and (kind := kind_of(value)):
            axis = run.axis(key) if run.axis(key).encode() in numbers else STEP
            at = as_number(row.get(axis)) or 0.0
            run.items.setdefault(kind, {}).setdefault(key, []).append(Item(at, axis, value))


def _numbers_of(row: dict[str, Any]) -> dict[bytes, bytes]:
    """Return a row's numbers, each as JSON."""
    numbers = {key: as_number(value) for key, value in row.items()}
    return {key.encode(): json.dumps(one).encode() for key, one in numbers.items() if one is not None}


def as_number(value: Any) -> float | None:
    """Convert a value to a number, also one that JSON cannot express."""
    if isinstance(value, (int, float)):
        return float(max(-HUGE, min(HUGE, value))) if isinstance(value, int) else value
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else None


def kind_of(value: dict[str, Any]) -> str:
    """Return the kind that wandb logged: "histogram", "picture" or "table"; "" if unknown or malformed."""
    kind = str(value.get(KIND, ""))
    if kind.startswith("image"):
        return "picture" if isinstance(value.get("filenames", []), list) else ""
    if kind == "histogram":
        edges, counts = value.get("bins"), value.get("values")
        whole = are_numbers(edges) and are_numbers(counts) and len(edges) == len(counts) + 1 > 1
        return kind if whole else ""
    return "table" if kind == "table-file" else ""


def are_numbers(values: Any) -> TypeGuard[list[float]]:
    """Return whether a value is a list of finite numbers."""
    return isinstance(values, list) and all(
        isinstance(value, (int, float)) and math.isfinite(value) for value in values
    )


def read_csv(path: Path) -> Run:
    """Read a run of Lightning's ``CSVLogger``, with the pictures and the config in its folder."""
    folder = path.parent
    run = Run(f"{folder.parent.name}/{folder.name}", path, [folder], default_axis=X_AXIS)
    run.stage = "CSVLogger records no end"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                # CSVLogger's step is the x axis of W&B's runs.
                row[X_AXIS] = row.pop("step", None)
                run.columns.add(
                    {key.encode(): number for key, text in row.items() if (number := _json(text))}
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"Cannot read `{path}`: {error}") from None
    if not run.curves():
        raise UsageError(f"`{path}` has no numbers: it is no run's, or the run has logged nothing yet")
    config, record = folder / "config.yaml", folder / "record.json"
    run.config = load(config) if config.is_file() else {}
    with suppress(*ODD):
        _recorded(run, json.loads(record.read_bytes()), path.stat().st_mtime)
    last = float(run.columns.pairs(X_AXIS, X_AXIS)[0][-1:].sum())
    for picture in sorted(folder.glob("pictures/*.png")):
        key = picture.stem.replace("-", "/")
        item = Item(last, X_AXIS, {"filenames": [f"pictures/{picture.name}"]})
        run.items.setdefault("picture", {})[key] = [item]
    return run


def _recorded(run: Run, record: dict[str, Any], last: float) -> None:
    """Add what the suite's record of a fit says: what it is of, and when it was."""
    named = [name for name in record["recipes"] if not name.startswith(f"{OVERLAYS}/")]
    run.recipe = ", ".join(record["recipes"])
    what = [*(named or [record["model"].rpartition(".")[2]])[:1], run.path.parent.name]
    if "seed_everything" in run.config:
        what.insert(1, f"seed {run.config['seed_everything']}")
    run.name, run.job_type = ", ".join(what), "fit"
    run.began = int(record["started"])
    run.facts |= {"began": when(run.began), "took": f"{int(last) - run.began} s"}


def when(seconds: int) -> str:
    """Write a time of day, UTC.

    >>> when(1)
    '1970-01-01 00:00 UTC'
    """
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _json(text: Any) -> bytes | None:
    """Convert a cell's number to JSON; ``None`` for any other cell, or for cells beyond the header."""
    try:
        return json.dumps(float(text)).encode()
    except (TypeError, ValueError):
        return None
