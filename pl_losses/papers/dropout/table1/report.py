"""Gal and Ghahramani 2016, Table 1 as text, CSV, picture and W&B run, beside the published numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pl_losses.core.figures import Figure, new_figure
from pl_losses.core.results import Row as Result
from pl_losses.papers.dropout.published import Numbers, numbers, scores
from pl_losses.papers.dropout.table1.choice import COLUMNS
from pl_losses.papers.dropout.table1.columns import Row

TABLES = ("table1.csv", "per_split.csv")
ACROSS = 3  # Panels in a row of the picture: more could not be read on a page.


class Entry(NamedTuple):
    """One set and column of the table.

    Attributes:
        name: The set's name.
        column: "paper", "10x" or "grid".
        rows: One for each split.
        seconds: Duration.
        cpu_seconds: Processor time of all cores.
        scale: Factor of the number of epochs: another than 1 is a trial.
    """

    name: str
    column: str
    rows: list[Row]
    seconds: float
    cpu_seconds: float
    scale: float = 1.0

    @property
    def ours(self) -> Numbers:
        """Means over the splits, and population standard deviations by the root of their number."""
        return Numbers.of([(row.rmse, row.ll) for row in self.rows])

    @property
    def published(self) -> Numbers | None:
        """The published numbers of the same splits; none of a set of one's own."""
        return numbers(self.name, self.column, [row.split for row in self.rows])

    @property
    def trial(self) -> str:
        """Why there is no verdict on a published set; empty if there is one."""
        if self.scale != 1:
            return f"{self.scale:g} of the epochs"
        return "one split has no standard error" if len(self.rows) == 1 else ""

    def judged(self) -> bool:
        """Return whether there are published numbers to compare with."""
        return self.published is not None and not self.trial

    def within(self) -> tuple[bool, bool]:
        """Return whether RMSE and log-likelihood are at most a standard error worse than published."""
        ours, theirs = self.ours, self.published
        if theirs is None or not self.judged():
            return True, True
        return ours.rmse <= theirs.rmse + theirs.rmse_se, ours.ll >= theirs.ll - theirs.ll_se

    def better(self) -> bool:
        """Return whether both are better than published."""
        ours, theirs = self.ours, self.published
        return theirs is not None and self.judged() and ours.rmse < theirs.rmse and ours.ll > theirs.ll


def line(entry: Entry) -> str:
    """Write a line of the table."""
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
    """Write the table with a heading, and how many sets are as good as published, or why that is unknown.

    ``!`` marks scores that are worse than published by more than the published standard error.
    """
    names = ["set", "column", "RMSE", "published", "log-likelihood", "published"]
    widths = [10, 7, 21, 20, 19, 18]
    cells = [f"{name:<{width}}" for name, width in zip(names, widths, strict=True)]
    heading = "".join(cells) + f"{'seconds':>8}"
    lines = [heading, "-" * len(heading)]
    lines += [line(entry) for column in COLUMNS for entry in entries if entry.column == column]
    note = (
        "+- is the standard error over splits as in the published logs: population standard deviation / root"
        " of their number"
    )
    if any(entry.judged() for entry in entries):
        note += "; ! is worse than published by more than one of its own"
    lines.append(note)
    return "\n".join(lines + _verdicts(entries))


def _verdicts(entries: Sequence[Entry]) -> list[str]:
    lines = []
    for column in COLUMNS:
        of = [entry for entry in entries if entry.column == column and entry.judged()]
        if of:
            within, better = sum(all(entry.within()) for entry in of), sum(entry.better() for entry in of)
            lines.append(
                f"{column}: RMSE and log-likelihood within one standard error of the published ones or better"
                f" on {within} of {len(of)}, both better on {better}"
            )
    for entry in entries:
        if entry.published is None:
            continue
        done, known = len(entry.rows), len(scores()[entry.name, entry.column])
        some = f"published are the same {done} of {known} splits"
        if entry.trial:
            lines.append(f"{entry.name} {entry.column} is a trial without verdict, {entry.trial}; {some}")
        elif done < known:
            lines.append(f"{entry.name} {entry.column}: {some}, whose standard errors are rough")
    return lines


def summaries(entries: Iterable[Entry]) -> list[dict[str, object]]:
    """Make the rows of ``table1.csv``."""
    rows = []
    for entry in entries:
        theirs = entry.published
        published = dict.fromkeys(Numbers._fields) if theirs is None else theirs._asdict()
        rows.append(
            {"set": entry.name, "column": entry.column}
            | entry.ours._asdict()
            | {f"published_{name}": value for name, value in published.items()}
            | {
                "splits": len(entry.rows),
                "seconds": round(entry.seconds, 1),
                "cpu_seconds": round(entry.cpu_seconds, 1),
            }
        )
    return rows


def beside(entries: Iterable[Entry], seeds: int) -> list[Result]:
    """Make the rows of ``results.csv``, with 95 % intervals over the splits by Student's t."""
    from scipy.stats import t

    rows = []
    for entry in entries:
        known = dict.fromkeys(Numbers._fields) if entry.published is None else entry.published._asdict()
        ours, seconds = entry.ours._asdict(), entry.cpu_seconds
        for score, quantity in (("rmse", "RMSE"), ("ll", "log-likelihood, nats")):
            value, published = ours[score], known[score]
            # Both standard errors are of population standard deviations.
            free = len(entry.rows) - 1
            wide = float(t.ppf(0.975, free)) * ((free + 1) / free) ** 0.5 if free else 0.0
            half, theirs = (wide * (one[f"{score}_se"] or 0.0) for one in (ours, known))
            ends = {"low": published - theirs, "high": published + theirs} if published and theirs else {}
            low, high = (value - half, value + half) if half else (None, None)
            row = Result(f"{entry.name}, {entry.column}", quantity, value, low, high, seeds)
            beside = {f"published_{end}": number for end, number in ends.items()}
            row = replace(
                row, seconds=seconds, published=published, lower_is_better=score == "rmse", **beside
            )
            rows.append(replace(row, chosen=_chosen(entry) if score == "rmse" else ""))
            seconds = 0.0  # Both scores are of the same trainings.
    return rows


def _chosen(entry: Entry) -> str:
    """Write how many splits chose each value of "grid"."""
    counted = []
    if entry.column != "grid":
        return ""
    for name in ("p", "weight_decay", "learning_rate", "epochs"):
        counts = sorted(Counter(getattr(row, name) for row in entry.rows).items())
        values = ", ".join(f"{value:g} in {count}" for value, count in counts)
        counted.append(f"{name.replace('_', ' ')} {values}")
    falling = sum(row.cosine for row in entry.rows)
    return f"of {len(entry.rows)} splits: {'; '.join(counted)}; falling learning rate in {falling}"


def per_split(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Make the rows of ``per_split.csv``."""
    return [
        {"set": entry.name, "column": entry.column} | row._asdict() for entry in entries for row in entry.rows
    ]


def by_key(entries: Iterable[Entry]) -> dict[str, float]:
    """Make the values of a W&B run's summary."""
    return {
        f"{entry.column}/{entry.name}/{name}": value
        for entry in entries
        for name, value in entry.ours._asdict().items()
    }


def as_result(entry: Entry) -> dict[str, object]:
    """Convert an entry to plain data."""
    rows = [[getattr(value, "item", lambda value=value: value)() for value in row] for row in entry.rows]
    return {
        "set": entry.name,
        "column": entry.column,
        "rows": rows,
        "times": [entry.seconds, entry.cpu_seconds],
    }


def from_result(result: dict[str, Any], scale: float = 1.0) -> Entry:
    """Restore an entry from :func:`as_result`'s plain data, trained with this factor of the epochs."""
    rows = [Row(*row) for row in result["rows"]]
    seconds, cpu_seconds = result["times"]
    return Entry(result["set"], result["column"], rows, seconds, cpu_seconds, scale)


def draw(entries: Sequence[Entry]) -> Figure:
    """Draw our and the published numbers with their standard errors: a panel per set and score."""
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(entry.name for entry in entries))
    colours = {"ours": "C0", "published, the same splits": "0.5"}
    if all(entry.published is None for entry in entries):
        colours = {"ours": "C0"}
    across = min(len(names), ACROSS)
    rows = 2 * -(-len(names) // across)
    figure = new_figure(max(4.2, 2.5 * across), 2 * rows + 1)
    panels = figure.subplots(rows, across, squeeze=False)
    for axes in panels[-2:, len(names) - across * (rows // 2 - 1) :].flat:
        axes.remove()
    for score, label in enumerate(("RMSE", "log-likelihood, nats")):
        for position, name in enumerate(names):
            axes = panels[2 * (position // across) + score][position % across]
            own = [
                entry
                for column in COLUMNS
                for entry in entries
                if (entry.name, entry.column) == (name, column)
            ]
            for place, entry in enumerate(own):
                shifts = (-0.15, 0.15) if len(colours) > 1 else (0.0,)
                pairs = zip(shifts, colours.values(), (entry.ours, entry.published), strict=False)
                for shift, colour, values in pairs:
                    if values is not None:
                        mean, error = values[2 * score : 2 * score + 2]
                        axes.errorbar(
                            place + shift, mean, error, fmt="o", color=colour, markersize=4, capsize=2
                        )
            axes.set_xticks(range(len(own)), [entry.column for entry in own], fontsize=9)
            axes.set_xlim(-0.6, len(own) - 0.4)
            axes.margins(y=0.15)
            axes.tick_params(axis="y", labelsize=9)
            if score == 0:
                axes.set_title(name, fontsize=11)
            if position % across == 0:
                axes.set_ylabel(label, fontsize=9)
    marks = [Line2D([], [], color=colour, marker="o", markersize=4) for colour in colours.values()]
    title = "mean and standard error over splits\nRMSE: lower is better, log-likelihood: higher is better"
    if any(entry.scale != 1 for entry in entries):
        title += "\na trial with another number of epochs"
    figure.legend(
        marks, list(colours), loc="outside upper center", ncols=2, fontsize=10, frameon=False, title=title,
        title_fontsize=10,
    )  # fmt: skip
    return figure


def _cell(mean: float, error: float) -> str:
    return f"{mean:.4g} +- {error:.2g}"
