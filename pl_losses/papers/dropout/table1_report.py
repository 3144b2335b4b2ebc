"""Gal and Ghahramani 2016, Table 1 as text, CSV, picture and W&B run, beside the published numbers."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pl_losses.papers.dropout.published import Numbers, numbers
from pl_losses.papers.dropout.table1_columns import COLUMNS, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Entry(NamedTuple):
    """One set and column of the table.

    Attributes:
        name: Of the set.
        column: "paper", "10x" or "grid".
        rows: One per split.
        epochs: Passes over the training data.
        seconds: That it took.
        cpu_seconds: Of all cores.
    """

    name: str
    column: str
    rows: list[Row]
    epochs: int
    seconds: float
    cpu_seconds: float

    @property
    def ours(self) -> Numbers:
        """Means over the splits, and population standard deviations by the root of their number."""
        return Numbers(*_mean([row.rmse for row in self.rows]), *_mean([row.ll for row in self.rows]))

    @property
    def published(self) -> Numbers | None:
        """The published numbers; none of a set of one's own."""
        return numbers().get((self.name, self.column))

    def within(self) -> tuple[bool, bool]:
        """Whether RMSE and log-likelihood are at most one published standard error worse than published."""
        ours, theirs = self.ours, self.published
        if theirs is None:
            return True, True
        return ours.rmse <= theirs.rmse + theirs.rmse_se, ours.ll >= theirs.ll - theirs.ll_se

    def better(self) -> bool:
        """Whether both are better than published."""
        ours, theirs = self.ours, self.published
        return theirs is not None and ours.rmse < theirs.rmse and ours.ll > theirs.ll


def line(entry: Entry) -> str:
    """A line of the table."""
    ours, theirs = entry.ours, entry.published
    marks = [" " if good else "!" for good in entry.within()]
    cells = [_cell(ours.rmse, ours.rmse_se) + marks[0], _cell(ours.ll, ours.ll_se) + marks[1]]
    known = (
        ["-", "-"] if theirs is None else [_cell(theirs.rmse, theirs.rmse_se), _cell(theirs.ll, theirs.ll_se)]
    )
    return (
        f"{entry.name:<10}{entry.column:<7}{cells[0]:<21}{known[0]:<20}{cells[1]:<19}{known[1]:<18}"
        f"{entry.seconds:>8.0f}"
    )


def text(entries: Sequence[Entry]) -> str:
    """The table with a heading, and how many of the sets are as good as published.

    ``!`` marks what is worse than published by more than the published standard error.
    """
    names = ["set", "column", "RMSE", "published", "log-likelihood", "published"]
    widths = [10, 7, 21, 20, 19, 18]
    cells = [f"{name:<{width}}" for name, width in zip(names, widths, strict=True)]
    heading = "".join(cells) + f"{'seconds':>8}"
    lines = [heading, "-" * len(heading)]
    lines += [line(entry) for column in COLUMNS for entry in entries if entry.column == column]
    lines.append(
        "+- is the standard error over splits; ! is worse than published by more than one of its own"
    )
    for column in COLUMNS:
        of = [entry for entry in entries if entry.column == column and entry.published is not None]
        if of:
            within, better = sum(all(entry.within()) for entry in of), sum(entry.better() for entry in of)
            lines.append(
                f"{column}: RMSE and log-likelihood within one standard error of the published ones or better"
                f" on {within} of {len(of)}, both better on {better}"
            )
    return "\n".join(lines)


def summaries(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The rows of ``table1.csv``."""
    rows = []
    for entry in entries:
        theirs = entry.published
        published = dict.fromkeys(Numbers._fields) if theirs is None else theirs._asdict()
        rows.append(
            {"set": entry.name, "column": entry.column}
            | entry.ours._asdict()
            | {f"published_{name}": value for name, value in published.items()}
            | {"splits": len(entry.rows), "epochs": entry.epochs}
            | {"seconds": round(entry.seconds, 1), "cpu_seconds": round(entry.cpu_seconds, 1)}
        )
    return rows


def save(folder: Path, entries: Sequence[Entry]) -> None:
    """Write ``per_split.csv`` and ``table1.csv``, each whole or not at all."""
    per_split = [
        {"set": entry.name, "column": entry.column} | row._asdict() for entry in entries for row in entry.rows
    ]
    # The first last: what stands in the table has its splits.
    for name, rows in (("per_split.csv", per_split), ("table1.csv", summaries(entries))):
        temporary = folder / f"{name}.part"
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, folder / name)


def load(folder: Path) -> list[Entry]:
    """What :func:`save` wrote; nothing if there is nothing."""
    if not (folder / "table1.csv").is_file():
        return []
    with open(folder / "table1.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    with open(folder / "per_split.csv", newline="", encoding="utf-8") as file:
        splits = list(csv.DictReader(file))
    entries = []
    for summary in table:
        own = [row for row in splits if (row["set"], row["column"]) == (summary["set"], summary["column"])]
        rows = [Row(int(row["split"]), *(float(row[name]) for name in Row._fields[1:])) for row in own]
        times = float(summary["seconds"]), float(summary["cpu_seconds"])
        entries.append(Entry(summary["set"], summary["column"], rows, int(summary["epochs"]), *times))
    return entries


def draw(entries: Sequence[Entry]) -> Figure:
    """Ours and the published numbers with their standard errors: a panel per set and score."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(entry.name for entry in entries))
    figure = Figure(figsize=(1.5 * len(names) + 1, 5), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False)
    for score, label in enumerate(("RMSE (lower is better)", "log-likelihood, nats (higher is better)")):
        for position, name in enumerate(names):
            axes = panels[score][position]
            own = [
                entry
                for column in COLUMNS
                for entry in entries
                if (entry.name, entry.column) == (name, column)
            ]
            for place, entry in enumerate(own):
                for shift, colour, values in ((-0.15, "C0", entry.ours), (0.15, "0.5", entry.published)):
                    if values is not None:
                        mean, error = values[2 * score : 2 * score + 2]
                        axes.errorbar(
                            place + shift, mean, error, fmt="o", color=colour, markersize=4, capsize=2
                        )
            axes.set_xticks(range(len(own)), [entry.column for entry in own], fontsize=7, rotation=45)
            axes.set_xlim(-0.6, len(own) - 0.4)
            axes.tick_params(axis="y", labelsize=6)
            if score == 0:
                axes.set_title(name, fontsize=9)
        panels[score][0].set_ylabel(label, fontsize=8)
    figure.suptitle(
        "Table 1: ours (blue) and published (grey), bars are standard errors over splits", fontsize=9
    )
    return figure


def record(
    entries: Sequence[Entry],
    figure: Figure,
    folder: Path,
    config: dict[str, Any],
    mode: Literal["offline", "online", "disabled"],
) -> None:
    """Give W&B the table, its values as the run's summary, and the picture, as a run of their own."""
    if mode == "disabled":
        return
    import wandb

    run = wandb.init(
        project="pl_losses",
        name="dropout/table1",
        dir=folder,
        mode=mode,
        config=config,
        reinit="create_new",
        settings=wandb.Settings(silent=mode == "offline"),
    )
    rows = summaries(entries)
    columns = list(rows[0])
    table = wandb.Table(columns, [[row[name] for name in columns] for row in rows])
    run.log({"dropout/table1": table, "dropout/table1/picture": wandb.Image(figure)})
    for entry in entries:
        for name, value in entry.ours._asdict().items():
            run.summary[f"{entry.column}/{entry.name}/{name}"] = value
    run.finish()


def _mean(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) / len(values))


def _cell(mean: float, error: float) -> str:
    return f"{mean:.4g} +- {error:.2g}"
