"""Test scores of recipes over seeds: the same command as a user's, once for each seed.

``pl-losses reproduce gan/recipes`` (and those of other papers) trains and tests the recipes that the pages
quote. Settings that are to be chosen are trained first, on a part of the training data, and never tested.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from math import inf, isfinite
from pathlib import Path
from time import process_time
from typing import Any

from pl_losses.cli.sweep import last_line
from pl_losses.core.experiment import PlainExperiment, Recording, progress_bar, quiet
from pl_losses.core.files import checksum
from pl_losses.core.protocol import CHOICE, Measured, Score, Setting, report
from pl_losses.core.results import Row
from pl_losses.core.validation import check_counts, check_some, typed
from pl_losses.recipes import resolve

SEEDED = ("seed_everything", "data.seed")
OWN = (*SEEDED, "config", "trainer.logger", "ckpt_path")  # What a training is told, and nobody else tells it.
DIVERGED = "Expected a finite loss"  # What the suite's modules say.
LOWER_IS_BETTER = ("error", "loss", "rmse", "distance")
# What metrics are called in a table, if not by their own words.
NAMES = {
    "rmse": "RMSE",
    "log_likelihood": "log-likelihood, nats",
    "lenet_frechet_distance": "Frechet distance of LeNet-5's features",
    "lenet_precision": "precision by LeNet-5's features",
    "lenet_recall": "recall by LeNet-5's features",
}


@typed
def reproduce(
    paper: str,
    recipes: list[str],
    metrics: list[str],
    *,
    folder: str,
    seeds: int = 5,
    grids: dict[str, list[dict[str, Any]]] | None = None,
    choice: dict[str, dict[str, Any]] | None = None,
    published: dict[str, float] | None = None,
    notes: dict[str, str] | None = None,
    more: dict[str, Any] | None = None,
    wandb: Recording = "offline",
) -> None:
    """Test scores of the recipes that the pages quote, means over seeds.

    Where there is a grid of settings, each is trained once, with a seed of its own. The one with the best
    score on held-out training data is taken, and of equal ones that with the lowest loss. Then ``pl-losses
    fit`` trains the recipe with each seed, and tests it. The folder gets ``trainings.csv``, ``results.csv``,
    ``results.png``, the output of each training and a W&B run, and the same command resumes after an
    interruption.

    Args:
        paper: Whose recipes they are, such as "gan".
        recipes: Names or files.
        metrics: Of the test. A recipe need not log all of them. One that ends in "error" is a share, and is
            shown in percent.
        folder: For the results. A folder with a part of them is resumed.
        seeds: Trainings of each recipe. They have the seeds from 0, and so has their data.
        grids: Settings to choose from, by recipe: options of ``fit``, such as [{"model.optimizer.lr": 0.1}].
        choice: Further options of ``fit`` while they are chosen, by recipe.
        published: The paper's value of a recipe's first metric, by recipe.
        notes: What must be known of it, by recipe.
        more: Further options of ``fit``, such as {"trainer.max_epochs": 1}.
        wandb: Whether W&B records the tables and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, a training fails or logs none of the metrics, or the
            folder has the results of other arguments.
    """
    check_counts(seeds=seeds)
    check_some(recipes=recipes, metrics=metrics)
    recipes, metrics = list(dict.fromkeys(recipes)), list(dict.fromkeys(metrics))
    # It refuses an unknown one before any training.
    sums = {recipe: checksum(json.dumps(resolve(recipe), default=str).encode()) for recipe in recipes}
    for given in (grids, choice, published, notes):
        for recipe in given or {}:
            resolve(recipe)
    settings = [setting for grid in (grids or {}).values() for setting in grid]
    own = {"more": [more or {}], "grids": settings, "choice": list((choice or {}).values())}
    for name, asked in own.items():
        if fixed := [key for setting in asked for key in setting if key.startswith(OWN)]:
            raise ValueError(f"Expected no {', '.join(fixed)} in `{name}`: each training has its own")
    options = _options(more or {})
    kept = PlainExperiment(f"{paper}/recipes", folder, {"more": more, "choice": choice})
    kept.also |= {"seeds": seeds, "recipes": recipes, "metrics": metrics, "grids": grids}
    kept.also |= {"published": published, "notes": notes}
    tried = {recipe: (grids or {}).get(recipe, []) for recipe in recipes}
    done: dict[str, dict[str, Any]] = {
        _key(one["recipe"], one["seed"], one["setting"]): one for one in kept.results
    }
    for one in kept.results:
        if one["recipe"] in sums:
            kept.same_input(f"the recipe {one['recipe']}", sums[one["recipe"]])

    # Of the results, and of the choice.
    wanted = (metrics, [metric.replace("test/", "val/", 1) for metric in metrics])

    def run(recipe: str, seed: int, setting: Setting, more: Setting) -> dict[str, Any]:
        if (key := _key(recipe, seed, setting)) not in done:
            kept.same_input(f"the recipe {recipe}", sums[recipe])
            spent, began = (kept.unfinished or {}).get(key, 0.0), process_time()
            given = options + _options(more)
            try:
                place = Path(folder)
                scores = train(recipe, seed, place, setting=setting, more=given, resume=spent > 0)
            except (KeyboardInterrupt, SystemExit):
                kept.save({key: spent + process_time() - began})
                raise
            if scores is None:
                scores = dict.fromkeys(wanted[seed == CHOICE], inf)
            seconds = spent + process_time() - began
            found = {"recipe": recipe, "seed": seed, "setting": setting, "seconds": seconds, "scores": scores}
            kept.add(found)
            done[key] = found
        bar.update()
        bar.set_description(f"{recipe}, seed {seed}")
        _logged(wanted[seed == CHOICE], recipe, done[key]["scores"])
        return done[key]

    def score(recipe: str, setting: Setting) -> tuple[float, float]:
        """Return the score and the loss on held-out training data, lower is better."""
        only = {"test_after_fit": "false"} | (choice or {}).get(recipe, {})
        found = run(recipe, CHOICE, setting, only)["scores"]
        name = _logged(wanted[True], recipe, found)[0]
        sign = 1 if name.endswith(LOWER_IS_BETTER) else -1
        return sign * found[name], found.get("val/loss", 0.0)

    def held_out(recipe: str, setting: Setting) -> tuple[Setting, float]:
        """Return a setting and its score on held-out training data."""
        found = done[_key(recipe, CHOICE, setting)]["scores"]
        return setting, score_of(found, _logged(wanted[True], recipe, found)[0]).value

    with progress_bar(sum(map(len, tried.values())) + seeds * len(recipes)) as bar:
        chosen = {
            recipe: min(settings, key=partial(score, recipe)) if settings else {}
            for recipe, settings in tried.items()
        }
        results = [run(recipe, seed, chosen[recipe], {}) for seed in range(seeds) for recipe in recipes]
    rows = []
    for recipe in recipes:
        of = [one for one in results if one["recipe"] == recipe]
        spent = sum(done[_key(recipe, CHOICE, setting)]["seconds"] for setting in tried[recipe])
        logged = _logged(metrics, recipe, of[0]["scores"])
        for metric in logged:
            known = (published or {}).get(recipe) if metric == logged[0] else None
            seconds = sum(one["seconds"] for one in of) + spent if metric == logged[0] else 0.0
            scores = [score_of(one["scores"], metric) for one in of]
            setting = {name.removeprefix("model."): value for name, value in chosen[recipe].items()}
            scored = [held_out(recipe, one) for one in tried[recipe]] if metric == logged[0] else []
            row = Measured(recipe, setting, scores, seconds, scored).row()
            name = metric.removeprefix("test/")
            name = NAMES.get(name, name.replace("_", " "))
            quantity = f"test {name}, %" if metric.endswith("error") else f"test {name}"
            lower = True if metric.endswith(LOWER_IS_BETTER) else None
            note = (notes or {}).get(recipe, "") if known is not None else ""
            rows.append(Row(recipe, quantity, published=known, note=note, lower_is_better=lower, **row))
    choices = [done[_key(recipe, CHOICE, setting)] for recipe in recipes for setting in tried[recipe]]
    # Each logs its own.
    every = dict.fromkeys(metric for one in [*results, *choices] for metric in one["scores"])
    if lacking := [metric for metric in metrics if metric not in every]:
        print(f"No recipe logs {', '.join(lacking)}: the tests log {', '.join(sorted(every))}")
    trainings = [
        {"stage": stage, "recipe": one["recipe"], "setting": json.dumps(one["setting"]), "seed": one["seed"]}
        | {"seconds": one["seconds"]}
        | every
        | one["scores"]
        for stage, part in {"choice": choices, "result": results}.items()
        for one in part
    ]
    report(kept, wandb, rows, tables={"trainings": trainings})


def train(
    recipe: str, seed: int, folder: Path, *, setting: Setting, more: list[str], resume: bool
) -> dict[str, float] | None:
    """Fit and test a recipe with a seed, and return the scores of its test, or of its last validation.

    ``None`` means that it diverged. ``resume`` goes on from the newest checkpoint of an earlier call.

    Raises:
        KeyboardInterrupt: If it was interrupted, or SystemExit.
        ValueError: If it failed.
    """
    from pl_losses.cli.main import main

    values = "".join(re.sub(r"[^\w.]+", "-", f"-{value}") for value in setting.values())
    name = f"{recipe.replace('/', '-')}-{seed}{values}"
    runs, log = folder / "runs", folder / "logs" / f"{name}.log"
    if resume and any((runs / name / "checkpoints").glob("*.ckpt")):
        more = [*more, f"--ckpt_path={runs / name}"]
    else:
        shutil.rmtree(runs / name, ignore_errors=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    logger = {"save_dir": str(runs.parent), "name": runs.name, "version": name}
    options = ["--trainer.logger=CSVLogger", *(f"--trainer.logger.{key}={at}" for key, at in logger.items())]
    with log.open("a" if resume else "w") as file, redirect_stdout(file), redirect_stderr(file), quiet():
        seeded = [f"--{key}={seed}" for key in SEEDED]
        status = main(["fit", "--config", recipe, *seeded, *options, *_options(setting), *more])
    if status == 130:
        raise KeyboardInterrupt
    if status == 143:
        raise SystemExit(status)
    if status and DIVERGED in log.read_text(errors="replace"):
        return None
    if status:
        reason = last_line(log, status)
        raise ValueError(f"Expected {recipe} to train with seed {seed} but it failed: {reason} ({log})")
    with (runs / name / "metrics.csv").open(newline="") as file:
        last = {key: value for row in csv.DictReader(file) for key, value in row.items() if value}
    part = "test/" if any(key.startswith("test/") for key in last) else "val/"
    return {key: float(at) for key, at in last.items() if key.startswith(part)}


def _options(given: Setting) -> list[str]:
    return [f"--{key}={value}" for key, value in given.items()]


def _key(recipe: str, seed: int, setting: Setting) -> str:
    return json.dumps([recipe, seed, setting])


def _logged(metrics: list[str], recipe: str, scores: dict[str, float]) -> list[str]:
    """List the metrics that a recipe logs.

    Raises:
        ValueError: If it logs none.
    """
    if not scores:
        raise ValueError(
            f"Expected {recipe} to log {' or '.join(metrics)} but it logs nothing: without held-out"
            " data nothing can be chosen; `choice` may set some, such as data.val_size"
        )
    if not (logged := [metric for metric in metrics if metric in scores]):
        raise ValueError(
            f"Expected {recipe} to log {' or '.join(metrics)} but it logs {', '.join(sorted(scores))}"
        )
    return logged


def score_of(scores: dict[str, float], metric: str) -> Score:
    """Return a metric, an error in percent, with the standard error that its interval implies.

    >>> score_of({"test/error": 0.5, "test/error_low": 0.4, "test/error_high": 0.6}, "test/error").value
    50.0
    """
    factor = 100.0 if metric.endswith("error") else 1.0
    ends = [scores.get(f"{metric}_{end}", scores[metric]) for end in ("low", "high")]
    error = (ends[1] - ends[0]) / 2 / 1.96 if isfinite(scores[metric]) else 0.0
    return Score(factor * scores[metric], factor * error)
