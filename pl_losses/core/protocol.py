"""How tables and figures are measured: settings chosen on held-out data, the test set used once a seed.

Each method has a grid of settings. Each of them is trained once with :data:`CHOICE`, a seed of its own, on a
part of the training data, and the one with the lowest score on the other part is chosen. Then the method is
trained on all training data, once for each seed, and tested.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from math import inf, isfinite, nan
from statistics import mean
from time import process_time
from typing import Any, NamedTuple

import lightning.pytorch as pl

from pl_losses.core.experiment import Experiment, Recording, progress_bar, quiet
from pl_losses.core.figures import Axes, Figure, new_figure
from pl_losses.core.results import Row, changed, interval, number, text

CHOICE = 1000  # The seed of the choice; those that are reported begin at 0.

Setting = dict[str, Any]


class Job(NamedTuple):
    """A training.

    Attributes:
        method: What is trained.
        setting: Its settings.
        seed: Of the start, the order and the noise.
        held_out: Whether it is scored on held-out training data, else on the test set.
    """

    method: str
    setting: Setting
    seed: int
    held_out: bool


class Score(NamedTuple):
    """What a training gave.

    Attributes:
        value: Lower is better; infinite if it diverged.
        standard_error: That of the value over the samples that it is a mean of; 0 if it is of all.
        curve: Further numbers to draw, plain data.
    """

    value: float
    standard_error: float = 0.0
    curve: Any = None

    @classmethod
    def of_error(cls, error: float, samples: int, curve: Any = None) -> Score:
        """Return the share of wrong predictions in percent.

        >>> Score.of_error(0.5, 100)
        Score(value=50.0, standard_error=5.0, curve=None)
        """
        return cls(100 * error, 100 * (error * (1 - error) / samples) ** 0.5, curve)


class Measured(NamedTuple):
    """A method's results.

    Attributes:
        method: Its name.
        setting: The chosen settings.
        scores: One of each seed.
        seconds: Processor time of all trainings, those of the choice included.
        tried: The settings that it was chosen from, with their scores on held-out data.
        by: What the scores of the choice are.
    """

    method: str
    setting: Setting
    scores: list[Score]
    seconds: float
    tried: Sequence[tuple[Setting, float]] = ()
    by: str = "held out"

    @property
    def curves(self) -> dict[int, Any]:
        """The curves of the trainings that did not diverge, by seed."""
        return {seed: score.curve for seed, score in enumerate(self.scores) if score.curve is not None}

    @property
    def value(self) -> float:
        """The mean over the seeds."""
        return mean(score.value for score in self.scores)

    def row(self) -> dict[str, Any]:
        """Return what a :class:`~pl_losses.core.results.Row` needs of it."""
        values, error = [score.value for score in self.scores], mean(s.standard_error for s in self.scores)
        low, high = interval(values, error) if isfinite(self.value) else (None, None)
        ends = {"low": low, "high": high} if error or len(values) > 1 else {}
        chosen = ", ".join(f"{name} {value}" for name, value in self.setting.items())
        if self.tried:
            chosen += f" ({self.by}: {with_scores(self.tried)})"
        found = {"measured": self.value, "seeds": len(values), "seconds": self.seconds, "chosen": chosen}
        return found | ends


def with_scores(settings: Iterable[tuple[Setting, float]]) -> str:
    """Write the settings that were tried, with their scores.

    >>> with_scores([({"lr": 0.1}, 2.5), ({"lr": 1.0, "p": 0.5}, inf)])
    '0.1: 2.50, 1.0/0.5: diverged'
    """
    return ", ".join(f"{'/'.join(map(str, one.values()))}: {number(score)}" for one, score in settings)


def measure(
    kept: Experiment,
    grids: Mapping[str, Sequence[Setting]],
    seeds: int,
    train: Callable[[list[Job]], list[Score]],
    *,
    together: bool = False,
    by: str = "held out",
) -> list[Measured]:
    """Choose the settings of each method and test it; trainings that ``kept`` has are not repeated.

    Args:
        kept: Gets a result for each training, plain data.
        grids: The settings of each method to choose from; a single one needs no choice.
        seeds: Trainings of each method, with seeds from 0.
        train: Trains jobs, and returns their scores. A training whose loss is not finite may raise
            ``FloatingPointError`` instead.
        together: Whether it is given all jobs that differ in method and setting only, else one at a time.
        by: What the scores of the choice are, for the table.
    """
    kept.also["seeds"] = max(seeds, kept.also.get("seeds", 0))
    done = {_key(Job(*result["job"])): result for result in kept.results}

    def run(jobs: list[Job]) -> None:
        left = [job for job in jobs if _key(job) not in done]
        bar.update(len(jobs) - len(left))
        for part in [left] if together and left else [[job] for job in left]:
            started = process_time()
            try:
                scores = train(part)
            except FloatingPointError:
                scores = [Score(inf)] * len(part)
            seconds = (process_time() - started) / len(part)
            for job, score in zip(part, scores, strict=True):
                done[_key(job)] = {"job": list(job), "score": list(score), "seconds": seconds}
            kept.results.extend(done[_key(job)] for job in part)
            kept.save()
            bar.update(len(part))
            bar.set_description(f"{part[-1].method}, seed {part[-1].seed}")

    choices = [
        Job(method, setting, CHOICE, True)
        for method, grid in grids.items()
        for setting in grid
        if len(grid) > 1
    ]
    with progress_bar(len(choices) + seeds * len(grids)) as bar:
        run(choices)
        chosen = {}
        for method, grid in grids.items():
            scored = (done.get(_key(Job(method, one, CHOICE, True))) for one in grid)
            values = [result["score"][0] if result else 0.0 for result in scored]
            chosen[method] = grid[values.index(min(values))]
        for seed in range(seeds):
            run([Job(method, setting, seed, False) for method, setting in chosen.items()])
    found = []
    for method, setting in chosen.items():
        tests = [done[_key(Job(method, setting, seed, False))] for seed in range(seeds)]
        spent = [done[_key(job)] for job in choices if job.method == method] + tests
        seconds = sum(result["seconds"] for result in spent)
        scores = [Score(*result["score"]) for result in tests]
        by_setting = [(job.setting, done[_key(job)]["score"][0]) for job in choices if job.method == method]
        found.append(Measured(method, setting, scores, seconds, by_setting, by))
    return found


def plain_trainer(**options: Any) -> pl.Trainer:
    """Build a Trainer on one device that keeps and shows nothing, with further options."""
    plain: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(**plain | {"enable_model_summary": False, "devices": 1} | options)


def trained(model: pl.LightningModule, data: Any, epochs: int, held_out: bool, **options: Any) -> Score:
    """Train a classifier of the suite without a logger, and return its error on "val" or "test".

    Args:
        model: A :class:`~pl_losses.core.classifier.Classifier`.
        data: A :class:`~pl_losses.data.module.TensorDataModule`.
        epochs: Passes over the training data; -1 with ``max_steps``.
        held_out: Whether the error is that on the held-out training data.
        options: Of the Trainer.
    """
    with quiet():
        trainer = plain_trainer(**{"max_epochs": epochs, "check_val_every_n_epoch": max(epochs, 1)} | options)
        trainer.fit(model, data)
        (found,) = (trainer.validate if held_out else trainer.test)(model, data, verbose=False)
    split = "val" if held_out else "test"
    return Score.of_error(found[f"{split}/error"], len(data.tensors[split][0]))


def report(
    kept: Experiment,
    wandb: Recording,
    rows: Sequence[Row],
    *,
    pictures: Mapping[str, Figure] | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """Write the tables and pictures of an experiment, give them to W&B, and print the rows.

    Args:
        kept: The experiment, whose folder gets ``results.csv``, the tables and the pictures.
        wandb: Whether W&B records it.
        rows: Measured beside published.
        pictures: By their names. Default: the rows, drawn.
        tables: By their names. Default: the trainings.
    """
    shown = {"results": draw(rows)} if pictures is None else pictures
    written = {"trainings": table(kept)} if tables is None else tables
    written = {title: one for title, one in written.items() if one}  # None has rows if all diverged.
    files = [kept.table(f"{title}.csv", one) for title, one in written.items()]
    files.append(kept.results_table(rows))
    files += [kept.picture(f"{title}.png", figure) for title, figure in shown.items()]
    keyed: dict[str, Any] = {f"{kept.name}/table": [asdict(row) for row in rows]}
    keyed |= {f"{kept.name}/{title}_table": one for title, one in written.items()}
    summary = {f"{row.what}: {row.quantity}": row.measured for row in rows}
    drawn = {f"{kept.name}/{title}": one for title, one in shown.items()}
    kept.record(wandb, tables=keyed, pictures=drawn, summary=summary)
    print(text(rows, changed(kept.name, kept.arguments | kept.also)), *files, sep="\n")


def draw(rows: Sequence[Row]) -> Figure:
    """Draw measured and published numbers side by side, with their intervals: a panel for each quantity."""
    quantities = list(dict.fromkeys(row.quantity for row in rows))
    shown = [[row for row in rows if row.quantity == quantity] for quantity in quantities]
    heights = [1.2 + 0.32 * len(part) for part in shown]
    figure = new_figure(6.4, sum(heights))
    panels = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, part in zip(panels, shown, strict=True):
        for place, row in enumerate(part):
            draw_row(axes, place, row)
        axes.plot([], [], "o-", color="C0", label="measured, 95 % interval")
        if any(row.published is not None for row in part):
            axes.plot([], [], "d", color="0.5", label="published")
        axes.set_yticks(range(len(part)), [row.what for row in part], fontsize=8)
        axes.set_ylim(len(part) - 0.4, -0.6)
        axes.set_xlabel(part[0].quantity)
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def draw_row(axes: Axes, place: int, row: Row) -> None:
    """Draw a measured number, and the published one below it."""
    ends = [row.measured if end is None else end for end in (row.low, row.high)]
    axes.plot(ends, [place, place], "-", color="C0")
    axes.plot(row.measured, place, "o", color="C0")
    if row.published is not None:
        known = [row.published if end is None else end for end in (row.published_low, row.published_high)]
        axes.plot(known, [place + 0.25] * 2, "-", color="0.5")
        axes.plot(row.published, place + 0.25, "d", color="0.5")


def draw_line(axes: Axes, places: Sequence[float], found: Sequence[Measured], label: str) -> None:
    """Draw results over ``places`` as a line with their 95 % intervals; one that diverged is left out."""
    means, below, above = [], [], []
    for one in found:
        row, middle = one.row(), one.value if isfinite(one.value) else nan
        # They are shares in percent.
        low, high = (middle if row.get(end) is None else row[end] for end in ("low", "high"))
        low, high = max(low, 0.0), min(high, 100.0)
        means.append(middle)
        below.append(middle - low)
        above.append(high - middle)
    axes.errorbar(places, means, [below, above], fmt="o-", capsize=3, label=label)


def table(kept: Experiment) -> list[dict[str, Any]]:
    """Return a row for each training."""
    rows = []
    for result in kept.results:
        method, setting, seed, held_out = result["job"]
        value, error, _ = result["score"]
        row = {"method": method, "setting": json.dumps(setting), "seed": seed}
        row |= {"stage": "choice" if held_out else "result"}
        rows.append(row | {"score": value, "standard_error": error, "seconds": round(result["seconds"], 1)})
    return rows


def _key(job: Job) -> str:
    return json.dumps(job)
