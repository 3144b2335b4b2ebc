"""What a paper published beside what was measured: one form of row for all tables and figures.

``pl-losses reproduce NAME`` writes its rows to ``results.csv``. A copy of that file is kept with the suite,
in the paper's folder, as ``results/<figure>.csv``. ``pl-losses reproduce --results`` makes a page of all.
With the names of pages, it fills their blocks from ``<!-- results NAME -->`` to ``<!-- end of results -->``.
"""

from __future__ import annotations

import csv
import inspect
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from importlib import import_module
from importlib.metadata import version
from math import inf, isfinite, sqrt
from pathlib import Path
from statistics import mean, variance
from typing import Any, Literal

from pl_losses.core.files import write_table
from pl_losses.core.manifests import reference, reproduced
from pl_losses.recipes import HERE, UsageError, nearest

TABLE = "results.csv"
Verdict = Literal["better", "equal", "worse", ""]


@dataclass(frozen=True)
class Row:
    """A number of a paper beside the measured one.

    Attributes:
        what: What was measured, such as a method or a data set.
        quantity: Which of its numbers, with the unit.
        measured: Mean over the seeds.
        low: Lower end of its 95 % interval, see :func:`interval`; ``None`` if there is none.
        high: Upper end.
        seeds: Number of trainings.
        seconds: Processor time of all of them, and of the choice of settings.
        published: The paper's number; ``None`` if it has none that can be compared.
        published_low: Lower end of its 95 % interval, if one is known.
        published_high: Upper end.
        note: What must be known of the published number, such as that it comes from a secondary source.
        chosen: Settings that were chosen.
        peer: The best other code that was measured.
        peer_measured: Its number.
        lower_is_better: Whether a lower number is better; ``None`` if neither is.
    """

    what: str
    quantity: str
    measured: float
    low: float | None = None
    high: float | None = None
    seeds: int = 1
    seconds: float = 0.0
    published: float | None = None
    published_low: float | None = None
    published_high: float | None = None
    note: str = ""
    chosen: str = ""
    peer: str = ""
    peer_measured: float | None = None
    lower_is_better: bool | None = True

    def __post_init__(self) -> None:
        # A share: its interval lies within 0 and 100.
        if self.quantity.endswith("%"):
            for name, end in (("low", self.low), ("high", self.high)):
                object.__setattr__(self, name, None if end is None else min(max(end, 0.0), 100.0))

    def verdict(self) -> Verdict:
        """Compare with the paper: "equal" if the intervals meet, "" if there is nothing to compare.

        >>> Row("LeNet-5", "test error, %", 0.9, 0.7, 1.1, published=0.95).verdict()
        'equal'
        """
        if self.published is None or self.lower_is_better is None:
            return ""
        low, high = (self.measured if end is None else end for end in (self.low, self.high))
        known = [self.published if end is None else end for end in (self.published_low, self.published_high)]
        if low <= known[1] and known[0] <= high:
            return "equal"
        return "better" if (self.measured < self.published) == self.lower_is_better else "worse"


def interval(values: Sequence[float], standard_error: float = 0.0) -> tuple[float, float]:
    """Compute the 95 % interval of a mean over seeds, which all use the same test samples.

    .. math:: \\bar x \\pm \\sqrt{1.96^2 e^2 + t_{S-1}^2 s^2 / S}

    Args:
        values: One of each seed, S in all; with one of them, the seeds' share is left out.
        standard_error: That of one value over the test samples, e; 0 if it is not of a sample.

    Example:
        >>> [round(end, 2) for end in interval([1.0, 1.2, 1.1], standard_error=0.1)]
        [0.78, 1.42]
    """
    from scipy.stats import norm, t

    half = (float(norm.ppf(0.975)) * standard_error) ** 2
    if len(values) > 1:
        half += float(t.ppf(0.975, len(values) - 1)) ** 2 * variance(values) / len(values)
    return mean(values) - sqrt(half), mean(values) + sqrt(half)


def write_results(
    folder: Path,
    name: str,
    arguments: Mapping[str, object],
    rows: Iterable[Row],
    *,
    dates: Mapping[str, str] | None = None,
) -> Path:
    """Write ``results.csv``: the rows, when and with which versions they were made, and the options.

    Args:
        folder: Of the experiment.
        name: What ``reproduce`` calls it.
        arguments: What the results depend on; those that are not the default are noted.
        rows: At least one.
        dates: Versions that they were made with, and the last day of each. Default: those of now.
    """
    dates = dates or {versions(): date.today().isoformat()}
    made = {"date": max(dates.values()), "versions": "; ".join(dates), "options": changed(name, arguments)}
    return write_table(folder / TABLE, [asdict(row) | made for row in rows])


def versions() -> str:
    """Describe the packages that results depend on."""
    packages = ("torch", "lightning", "scikit-learn")
    found = (f"{package} {version(package)}" for package in packages)
    return ", ".join([f"Python {platform.python_version()}", *found])


def changed(name: str, arguments: Mapping[str, object]) -> str:
    """List the arguments that are not the default of the command: with any, it is a trial."""
    made = reproduced()[name]
    module, _, attribute = made.function.rpartition(".")
    known = inspect.signature(getattr(import_module(module), attribute)).parameters
    defaults = {key: known[key].default for key in known} | made.preset_values()
    given = (key for key in arguments if key in defaults and arguments[key] != defaults[key])
    return " ".join(f"{key}={arguments[key]}" for key in given)


def kept_file(name: str) -> Path:
    """Return where a copy of the results of a table or figure is kept with the suite."""
    paper, _, figure = name.partition("/")
    return HERE / "papers" / paper / "results" / f"{figure}.csv"


def kept(name: str) -> list[dict[str, str]]:
    """Read the copy of the results; empty if there is none.

    Raises:
        ValueError: If they are those of a trial. The data set may be another one: the rows name it.
    """
    if not kept_file(name).is_file():
        return []
    with kept_file(name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    options = {row["options"] for row in rows}
    if trial := sorted(one for one in options if not re.fullmatch(r"(datasets?=\S+)?", one)):
        raise ValueError(f"Expected {kept_file(name)} without options but got {', '.join(trial)}")
    return rows


def row_of(text: Mapping[str, str]) -> Row:
    """Convert a row of text back."""

    def value(kind: str, given: str) -> Any:
        if "str" in kind:
            return given
        if not given:
            return None
        return given == "True" if "bool" in kind else int(given) if kind == "int" else float(given)

    return Row(**{one.name: value(str(one.type), text[one.name]) for one in fields(Row)})


BLOCK = re.compile(r"(<!-- results (\S+) -->\n).*?(?=<!-- end of results -->)", re.S)
PAGE = """# Published and measured

`pl-losses reproduce --results` makes this page from the tables that `pl-losses reproduce` wrote. No number
was typed by hand.

How the numbers were measured:

- **Settings** are either fixed before, or chosen on a held-out part of the training data, with a seed
  that the results do not use. The column "settings" has what was chosen. In brackets it has all that was
  tried, with the score on held-out data, or with the training loss where that chose it. In
  `style/optimizers` three other photos chose the settings. In the rows `grid` of `dropout/table1` each
  split chooses among [many settings](dropout-choices.md#how-the-grid-chooses). In `gtn/cuts` the column
  has the number of pieces per digit. The learning rates of recipes were chosen like the others, in
  `sdae/mnist` that of the last stage.
- **Fixed before** are the settings of `lenet/training-size`, `prelu/fig2`, `prelu/fig3`, `prelu/table1`,
  `sdae/variations`, `sdae/levels` and `style/matrix`: all rows have the same. Noise that differs by set
  in `sdae/variations` is the paper's. In `dropout/table1` the rows `paper` and `10x` have the p and tau
  of the paper's authors, and so has `dropout/uci`. `adam/cnn` and `adam/mlp-dropout` have the learning
  rate that the paper recommends. `gtn/collapse` has settings with which it collapses. How the other fixed
  settings were found was not noted: some may come from trials on test data.
- **One test.** Each trained network is tested once, with its last weights. A stack of autoencoders is
  tested with the weights that had the lowest validation error. Only `dropout/samples` tests a network
  several times. In [`lenet/fig9`](lenet.md#measured) some classifiers were tested again with wider grids.
- **Measured** is the mean over seeds, with its 95 % interval in brackets. The interval covers what varies
  by chance: the seed and, for test errors, which samples are in the test set. In `dropout/table1` and
  `dropout/samples` it covers the splits of a data set into training and test samples. Two tables have no
  interval: `gan/table1` has medians of three turns, and `style/matrix` the losses of the pictures shown.
- **Equal** means that the measured interval contains the published number, or overlaps with the published
  interval. In `dropout/table1` [five results](dropout.md#measured) are equal by this rule, but worse by the
  authors' standard errors: naval with `10x`, and boston, naval, wine and protein with `grid`.
- **Best peer** is the best other method or code that was measured in the same way.
- **The time** below a table is the processor time of all its trainings, including those that chose the
  settings. Some older tables have the time of the clock.

{verdicts}
"""


def page() -> str:
    """Write all kept results as a page of Markdown."""
    parts, counts = [], dict.fromkeys(("better", "equal", "worse"), 0)
    for name, made in reproduced().items():
        rows = kept(name)
        for row in rows:
            if verdict := row_of(row).verdict():
                counts[verdict] += 1
        about = f"## {name}\n\n{made.title()} {reference(name.partition('/')[0])}\n"
        parts.append(f"{about}\n{section(rows)}\n")
    counted = ", ".join(f"{verdict} in {count}" for verdict, count in counts.items())
    compared = f"{sum(counts.values())} rows have a verdict"
    verdicts = f"In the tables below, {compared}. Ours is {counted}."
    return PAGE.format(verdicts=verdicts) + "\n" + "\n".join(parts)


def filled(text: str) -> str:
    """Fill the blocks of a page with the results that they name.

    Raises:
        UsageError: If nothing has a name, or a block has no end.
    """
    blocks = [block[1] for block in BLOCK.findall(text)]
    for name in blocks:
        if name not in reproduced():
            hint = nearest(name, reproduced())
            raise UsageError(f"Expected a table or figure in `<!-- results {name} -->` but it is none{hint}")
    if len(re.findall(r"^\s*<!-- results ", text, re.M)) > len(blocks):
        raise UsageError("Expected `<!-- end of results -->` after each `<!-- results NAME -->`")
    return BLOCK.sub(lambda block: f"{block[1]}{section(kept(block[2]))}\n", text)


def section(rows: Sequence[Mapping[str, str]]) -> str:
    """Write the rows of a table or figure, with a line on when they were made."""
    if not rows:
        return "No result is kept yet."
    known = [row_of(row) for row in rows]
    notes = list(dict.fromkeys(row.note for row in known if row.note))
    columns: dict[str, list[str]] = {
        "": [row.what for row in known],
        "what": [row.quantity for row in known],
        "published": [published(row, notes) for row in known],
        "measured": [measured(row) for row in known],
        "verdict": [row.verdict() for row in known],
        "best peer": [f"{row.peer} {number(row.peer_measured)}" if row.peer else "" for row in known],
        "seeds": [str(row.seeds) for row in known],
        "settings": [row.chosen for row in known],
    }
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    rules = ["---:" if title in ("published", "measured", "seeds") else "---" for title in shown]
    lines = [f"| {' | '.join(cells)} |" for cells in (shown, rules, *zip(*shown.values(), strict=True))]
    lines += ["", *(f"[{place}] {note}\n" for place, note in enumerate(notes, 1))]
    seconds = sum(row.seconds for row in known)
    spent = f"{seconds / 60:.0f} minutes" if seconds > 100 else f"{seconds:.0f} s"
    when = ", ".join(sorted({row["date"] for row in rows}))
    options = re.sub(r"[\[\]']", "", rows[0]["options"])
    made = f"`--{options.replace('=', ' ', 1)}`; " if options else ""
    return "\n".join([*lines, f"{spent} in all, {when}; {made}{rows[0]['versions']}."])


def published(row: Row, notes: Sequence[str] = ()) -> str:
    """Write the published number, with its interval and the place of its note."""
    if row.published is None:
        return ""
    place = f" [{notes.index(row.note) + 1}]" if row.note in notes else ""
    ends = "" if row.published_low is None else f" ({_ends(row.published_low, row.published_high)})"
    return number(row.published) + ends + place


def measured(row: Row) -> str:
    """Write the measured number with its interval.

    >>> measured(Row("LeNet-5", "test error, %", 0.9012, 0.7049, 1.0975))
    '0.901 (0.705 to 1.10)'
    """
    return number(row.measured) + ("" if row.low is None else f" ({_ends(row.low, row.high)})")


def _ends(low: float | None, high: float | None) -> str:
    return f"{number(low)} to {number(high)}"


def text(rows: Sequence[Row], trial: str = "") -> str:
    """Write rows for a terminal; those of a trial get no verdict.

    >>> print(text([Row("LeNet-5", "test error, %", 0.9, 0.7, 1.1, published=0.95)]))
    LeNet-5, test error, %: 0.900 (0.700 to 1.10); published 0.950: equal
    """
    lines = []
    for row in rows:
        known = "" if row.published is None else f"; published {published(row)}"
        verdict = f": {row.verdict()}" if row.verdict() and not trial else ""
        lines.append(f"{row.what}, {row.quantity}: {measured(row)}{known}{verdict}")
    return "\n".join([*lines, f"This was a trial: {trial}"] if trial else lines)


def number(value: float | None) -> str:
    """Write a number with three digits, at least.

    >>> number(12.0), number(0.00045671), number(1547.0), number(99.99)
    ('12.0', '0.000457', '1547', '100')
    """
    if value is None or not isfinite(value):
        return "diverged" if value == inf else ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
