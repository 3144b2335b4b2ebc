"""Gal and Ghahramani 2016, Table 1: RMSE and log-likelihood of dropout networks on nine regression sets.

``pl-losses reproduce dropout/table1`` trains all splits of a set at once and sets the results beside the
published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import perf_counter, process_time
from typing import Any

from pl_losses.core.experiment import Experiment, Recording, names_of, progress_bar
from pl_losses.core.validation import check_counts, check_integer, check_positive, typed
from pl_losses.data import uci
from pl_losses.data.download import data_root
from pl_losses.papers.dropout.published import SETTINGS
from pl_losses.papers.dropout.table1 import report
from pl_losses.papers.dropout.table1.choice import COLUMNS
from pl_losses.papers.dropout.table1.columns import Case, reproduce_column
from pl_losses.papers.dropout.table1.report import Entry


@typed
def reproduce(
    sets: str | list[str] = "all",
    columns: str | list[str] = "all",
    *,
    root: str | None = None,
    folder: str = "runs/dropout/table1",
    splits: int | None = None,
    samples: int = 10_000,
    repeats: int = 5,
    seed: int = 0,
    epochs_scale: float = 1.0,
    wandb: Recording = "offline",
) -> None:
    """Table 1: RMSE and log-likelihood of dropout networks on UCI sets, beside the published ones.

    Columns: "paper" is the printed one, 400 epochs at batch size 32 with the authors' p and tau; "10x" has
    4 000 at 128; "grid" chooses p, weight decay, learning rate, schedule, steps and tau of each split on the
    last fifth of its training samples. The folder gets ``table1.csv``, ``per_split.csv``, ``table1.png``
    and a W&B run. The tables are written after each set and column, and the same command resumes after an
    interruption.

    Args:
        sets: Names of UCI sets, or of folders of your own ("grid" only), between commas; "all" are the nine.
        columns: Of "paper", "10x" and "grid", between commas; "all" are the three.
        root: Folder with the sets, else they are downloaded to it. Default: the environment variable
            PL_LOSSES_DATA.
        folder: For the results. A folder with a part of them is resumed.
        splits: Use only the first this many splits, of a set with fewer all of them; the published numbers
            beside them are of the same splits. Default: all, 20 and of protein 5.
        samples: Passes T per test sample, as many as the authors'.
        repeats: Trainings of each split from other seeds, whose scores are averaged: one alone may be a
            standard error off.
        seed: Of the start, the order of the samples and the masks.
        epochs_scale: Factor of the numbers of epochs, below 1 for a trial, which gets no verdict.
        wandb: Whether W&B records the table and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, a file is damaged, or the folder has the results of other
            arguments.
        OSError: If a set is missing and cannot be downloaded.
    """
    # Sets may also be the user's own, see `_refuse`.
    names = names_of("sets", sets, list(SETTINGS), others=True)
    chosen = names_of("columns", columns, list(COLUMNS))
    arguments: dict[str, Any] = {
        "splits": splits,
        "samples": samples,
        "repeats": repeats,
        "seed": seed,
        "epochs_scale": epochs_scale,
    }
    _refuse(names, chosen, root, **arguments)
    kept = Experiment("dropout/table1", folder, arguments)
    kept.also |= {"sets": sets, "columns": columns}
    read = partial(Case.read, splits=splits, samples=samples, repeats=repeats, seed=seed, scale=epochs_scale)
    # The small sets first, for early results.
    cases = {name: read(name, root) for name in names}
    data = {name: case.checksum() for name, case in cases.items()}
    for name in {result["set"] for result in kept.results} & data.keys():
        kept.same_input(f"the data of {name}", data[name])
    entries = [report.from_result(result, epochs_scale) for result in kept.results]
    done = {(entry.name, entry.column) for entry in entries}
    tasks = [
        (case, column)
        for column in chosen
        for case in sorted(cases.values(), key=lambda case: len(case.targets))
        if (case.name, column) not in done
    ]
    with progress_bar(sum(case.work(column) for case, column in tasks)) as bar:
        for case, column in tasks:
            bar.set_description(f"{case.name} {column}")
            kept.same_input(f"the data of {case.name}", data[case.name])
            entries.append(_entry(case, column, bar))
            kept.add(report.as_result(entries[-1]))
            _write(kept, entries)
            bar.write(report.line(entries[-1]))
    _write(kept, entries)
    shown = [entry for entry in entries if entry.name in names and entry.column in chosen]
    kept.results_table(report.beside(shown, repeats))
    figure = report.draw(shown)
    kept.picture("table1.png", figure, dpi=130)
    kept.record(
        wandb,
        tables={"dropout/table1": report.summaries(shown)},
        pictures={"dropout/table1/picture": figure},
        summary=report.by_key(shown),
        config=arguments | {"sets": names, "columns": chosen},
    )
    print(report.text(shown))
    table, per_split, picture = (kept.folder / name for name in (*report.TABLES, "table1.png"))
    print(f"Table: {table}, {per_split}\nPicture: {picture}")


def _write(kept: Experiment, entries: Sequence[Entry]) -> None:
    for name, rows in zip(report.TABLES, (report.summaries(entries), report.per_split(entries)), strict=True):
        kept.table(name, rows)


def _entry(case: Case, column: str, bar: Any) -> Entry:
    started, cpu = perf_counter(), process_time()
    end = bar.n + case.work(column)
    # The work is an estimate.
    rows = reproduce_column(case, column, lambda done: bar.update(min(done, end - bar.n)))
    bar.update(end - bar.n)
    return Entry(case.name, column, rows, perf_counter() - started, process_time() - cpu, case.scale)


def _refuse(
    names: list[str],
    columns: list[str],
    root: str | None,
    *,
    splits: int | None,
    samples: int,
    repeats: int,
    seed: int,
    epochs_scale: float,
) -> None:
    for name in names:
        if name not in SETTINGS and uci.find(name, root) is None:
            raise ValueError(
                f"Expected `sets` of {', '.join(SETTINGS)}, or a folder with a data.txt in"
                f" {data_root(root) / 'uci'} or {data_root(root)}, but got {name!r}"
            )
        if name not in SETTINGS and columns != ["grid"]:
            raise ValueError(
                f'Expected `columns` of "grid" alone for {name}, a set without published p and tau, but got'
                f" {', '.join(columns)}"
            )
    check_counts(samples=samples, repeats=repeats)
    check_counts(0, seed=seed)
    if splits is not None:
        check_integer("splits", splits, 1, most=max(uci.shape_of(name, root)[2] for name in names))
    check_positive("epochs_scale", epochs_scale)
