"""Gal and Ghahramani 2016, section 4: what more passes with dropout bring, on the sets of Table 1.

``pl-losses reproduce dropout/samples`` trains as the table's "paper" column, and tests with several T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import process_time
from typing import Any

import numpy as np

from pl_losses.core.experiment import Experiment, Recording, names_of, progress_bar
from pl_losses.core.figures import Figure, new_figure
from pl_losses.core.protocol import report
from pl_losses.core.results import Row, interval
from pl_losses.core.validation import check_counts, check_positive, check_some, typed
from pl_losses.papers.dropout.published import SETTINGS, numbers
from pl_losses.papers.dropout.table1.columns import Case, over_samples

SCORES = {"rmse": "RMSE", "ll": "log-likelihood, nats"}
NOTE = "The published number has 10 000 passes."
SHOWN = (1, 10, 100, 1000)  # Numbers of passes that are rows of the results.


@typed
def reproduce(
    sets: str | list[str] = "yacht,boston,energy,concrete,wine",
    samples: list[int] | None = None,
    root: str | None = None,
    *,
    folder: str = "runs/dropout/samples",
    splits: int | None = None,
    repeats: int = 5,
    seed: int = 0,
    epochs_scale: float = 1.0,
    wandb: Recording = "offline",
) -> None:
    """RMSE and log-likelihood of Table 1's networks over T, the number of passes with dropout.

    Each network is trained once, with the authors' p and tau, and tested with each T. The folder gets
    ``over_samples.csv``, ``results.csv``, ``over_samples.png`` and a W&B run, and the same command resumes
    after an interruption.

    Args:
        sets: Names of UCI sets, between commas; "all" are the nine.
        samples: The values of T. Default: from 1 to 3000, three or so for a factor of ten.
        root: Folder with the sets, else they are downloaded to it. Default: the environment variable
            PL_LOSSES_DATA.
        folder: For the results. A folder with a part of them is resumed.
        splits: Use only the first this many splits. Default: all.
        repeats: Trainings of each split from other seeds, whose scores are averaged.
        seed: Of the start, the order of the samples and the masks.
        epochs_scale: Factor of the numbers of epochs, below 1 for a trial.
        wandb: Whether W&B records the table and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, or the folder has the results of other arguments.
        OSError: If a set is missing and cannot be downloaded.
    """
    names = names_of("sets", sets, list(SETTINGS))
    check_some(samples=samples)
    counts = sorted(set(samples or [1, 2, 5, 10, 30, 100, 300, 1000, 3000]))
    for count in counts:
        check_counts(samples=count)
    check_counts(splits=splits, repeats=repeats)
    check_positive("epochs_scale", epochs_scale)
    arguments = {"samples": samples, "splits": splits, "repeats": repeats, "seed": seed}
    kept = Experiment("dropout/samples", folder, arguments | {"epochs_scale": epochs_scale})
    kept.also["sets"] = sets
    done = {result["set"] for result in kept.results}
    cases = [
        Case.read(
            name,
            root,
            splits=splits,
            samples=1,
            repeats=repeats,
            seed=seed,
            scale=epochs_scale,
        )
        for name in names
        if name not in done
    ]
    with progress_bar(sum(case.work("paper") for case in cases)) as bar:
        for case in cases:
            bar.set_description(case.name)
            started = process_time()
            # The estimate is not exact, and a bar must not run beyond its end.
            scores = over_samples(case, counts, lambda done: bar.update(min(done, bar.total - bar.n)))
            kept.add({"set": case.name, "scores": scores.tolist(), "seconds": process_time() - started})
    found = {result["set"]: result for result in kept.results if result["set"] in names}
    points = [
        {"set": name, "samples": count, "split": split}
        | dict(zip(("rmse", "rmse_deterministic", "ll"), row, strict=True))
        for name, result in found.items()
        for count, rows in zip(counts, result["scores"], strict=True)
        for split, row in enumerate(rows)
    ]
    rows = [row for name in found for row in beside(name, found[name], counts, repeats)]
    report(
        kept,
        wandb,
        rows,
        pictures={"over_samples": draw(found, counts)},
        tables={"over_samples": points},
    )


def beside(name: str, result: Mapping[str, Any], counts: Sequence[int], repeats: int) -> list[Row]:
    """Make the rows of ``results.csv`` of a set; intervals are over the splits."""
    rows, seconds = [], result["seconds"]
    known = numbers(name, "paper", range(len(result["scores"][0])))
    paper = {"rmse": (known.rmse, known.rmse_se), "ll": (known.ll, known.ll_se)} if known else {}
    for score, place in (("rmse", 0), ("ll", 2)):
        for count, scores in zip(counts, result["scores"], strict=True):
            if count in SHOWN:
                values = [row[place] for row in scores]
                low, high = interval(values) if len(values) > 1 else (None, None)
                about = f"{name}, T = {count}", SCORES[score], sum(values) / len(values)
                # The published number has more passes: no verdict.
                row = Row(*about, low, high, repeats, seconds, lower_is_better=None)
                if count == SHOWN[-1] and paper:
                    value, half = paper[score][0], 1.96 * paper[score][1]
                    row = replace(row, published=value, note=NOTE)
                    if half:
                        row = replace(row, published_low=value - half, published_high=value + half)
                rows.append(row)
                seconds = 0.0
    return rows


def draw(found: Mapping[str, Mapping[str, Any]], counts: Sequence[int]) -> Figure:
    """Draw both scores over T, means over the splits: a column for each set."""
    figure = new_figure(2.4 * len(found), 4.4)
    panels = figure.subplots(2, len(found), squeeze=False, sharex=True)
    for column, (name, result) in zip(panels.T, found.items(), strict=True):
        means = np.array(result["scores"]).mean(axis=1)
        for axes, (title, place) in zip(column, zip(SCORES.values(), (0, 2), strict=True), strict=True):
            axes.plot(counts, means[:, place], "o-", markersize=3, label="T passes")
            if place == 0:
                axes.axhline(means[0, 1], color="0.5", linestyle="--", label="without dropout")
                axes.set_title(name, fontsize=9)
            axes.set_xscale("log")
            axes.tick_params(labelsize=7)
            axes.grid(alpha=0.3)
            axes.set_ylabel(title, fontsize=7)
    panels[0, 0].legend(fontsize=7)
    for axes in panels[1]:
        axes.set_xlabel("T", fontsize=8)
    return figure
