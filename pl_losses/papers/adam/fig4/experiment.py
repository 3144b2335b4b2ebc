"""Kingma and Ba 2015, Fig. 4: the loss of an autoencoder over Adam's settings, with and without correction.

``pl-losses reproduce adam/fig4`` trains the paper's 60 autoencoders at once and draws the figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from statistics import mean
from typing import Any, Literal

from torch import Tensor

from pl_losses.core.experiment import Experiment, Recording, progress_bar
from pl_losses.core.figures import Axes, Figure, new_figure
from pl_losses.core.results import Row, interval, write_results
from pl_losses.core.validation import check_counts, check_device, typed
from pl_losses.data import MNIST, Digits
from pl_losses.papers.adam.fig4.grid import Grid, Outcome, Plan, Results, rows

COLOURS = {True: "tab:red", False: "tab:green"}
NAMES = {True: "with bias correction", False: "without"}


@typed
def reproduce(
    steps: int = 300,
    at: list[int] | None = None,
    seeds: int = 5,
    *,
    folder: str = "runs/adam/fig4",
    root: str | None = None,
    dataset: Literal["mnist", "digits"] = "mnist",
    beta1: list[float] | None = None,
    beta2: list[float] | None = None,
    log_alpha: list[float] | None = None,
    batch_size: int = 100,
    hidden_size: int = 500,
    latent_size: int = 50,
    together: int | None = None,
    device: str = "auto",
    save_every: float = 60.0,
    wandb: Recording = "offline",
) -> None:
    """Fig. 4: autoencoders trained with Adam over beta1, beta2, alpha, with and without bias correction.

    All runs of a seed have the same start, batches and noise. The folder gets ``losses.csv``,
    ``results.csv``, ``fig4.png``, a W&B run, and a folder for each seed, from which the same command resumes
    after an interruption. A run whose loss stops being finite is recorded as diverged and trained no further.

    Args:
        steps: Steps of each run; the paper's are 60 000 (100 passes).
        at: Steps after which the loss is evaluated, on the first 1 000 training images. Default: a tenth of
            the steps and all, as in the paper.
        seeds: Grids, which differ in the start, the batches and the noise.
        folder: For the results. A folder with a part of them is resumed.
        root: Folder with the MNIST files. Default: the environment variable PL_LOSSES_DATA.
        dataset: The images, made binary: "mnist", or "digits" for scikit-learn's, which need no download.
        beta1: Such as [0.5] or [0.5,0.9]. Default: 0 and 0.9.
        beta2: Likewise. Default: 0.99, 0.999 and 0.9999.
        log_alpha: Likewise, decimal logarithms of the learning rate. Default: -5 to -1.
        batch_size: Images per step.
        hidden_size: Units of the encoder and of the decoder.
        latent_size: Dimensions of z.
        together: Runs trained at once. Default: 10 on the CPU, all on an accelerator.
        device: Such as "cpu" or "cuda". Default: a GPU if there is one.
        save_every: Seconds between savings of the state.
        wandb: Whether W&B records the table and the figure, and where.

    Raises:
        ValueError: If an argument is out of range, or the folder has the results of others.
    """
    check_counts(seeds=seeds)
    plan = Plan(
        beta1=[0.0, 0.9] if beta1 is None else beta1,
        beta2=[0.99, 0.999, 0.9999] if beta2 is None else beta2,
        log_alpha=[-5.0, -4.0, -3.0, -2.0, -1.0] if log_alpha is None else log_alpha,
        steps=steps,
        at=sorted({max(1, steps // 10), steps}) if at is None else at,
        batch_size=batch_size,
        hidden_size=hidden_size,
        latent_size=latent_size,
        seed=0,
        dataset=dataset,
    )
    device = check_device(device)
    if together is None:
        together = 10 if device == "cpu" else len(plan.settings())
    images = load_images(dataset, root)
    arguments = {**asdict(plan), "images": list(images.shape)}
    del arguments["seed"]
    kept = Experiment("adam/fig4", folder, arguments)
    chance = images.shape[1] * math.log(2)  # The loss of a network that guesses each pixel at one half.
    grids: list[Grid] = []
    with progress_bar(seeds * plan.steps * len(plan.settings())) as bar:
        for seed in range(seeds):
            bar.set_description(f"steps, seed {seed}")
            grid = Grid(
                replace(plan, seed=seed),
                images,
                kept.folder / f"seed{seed}",
                together=together,
                device=device,
                save_every=save_every,
                progress=partial(_advance, bar, seed),
            )
            grid.run()
            grids.append(grid)
            bar.update((seed + 1) * plan.steps * len(plan.settings()) - bar.n)
            kept.save()  # Not before: a refused option must not decide for the folder.
    results = [grid.results for grid in grids]
    table = [row for grid in grids for row in rows(grid.plan, grid.results)]
    losses = kept.table("losses.csv", table)
    given: dict[str, object] = {"steps": steps, "at": at, "seeds": seeds, "dataset": dataset}
    given |= {"beta1": beta1, "beta2": beta2, "log_alpha": log_alpha}
    given |= {"batch_size": batch_size, "hidden_size": hidden_size, "latent_size": latent_size}
    write_results(kept.folder, "adam/fig4", given, beside(results, sum(grid.seconds for grid in grids)))
    figure = draw(plan, average(results), chance)
    picture = kept.picture("fig4.png", figure, dpi=110)
    kept.record(
        wandb,
        tables={"adam/fig4/losses": table},
        pictures={"adam/fig4": figure},
        summary=diverged(results),
        config=arguments | {"seeds": seeds},
    )
    print(summary(results, chance))
    print(f"Table: {losses}\nFigure: {picture}")


def _advance(bar: Any, seed: int, done: int, total: int) -> None:
    """Move the bar of all seeds to ``done`` of ``total`` steps of one."""
    bar.update(seed * total + done - bar.n)


def load_images(dataset: Literal["mnist", "digits"], root: str | None) -> Tensor:
    """Load the training images as bytes: [N, D].

    Raises:
        OSError: If files are missing and cannot be downloaded.
    """
    data = MNIST(root, val_size=0, pad=0) if dataset == "mnist" else Digits(val_size=0)
    data.prepare_data()
    data.setup("fit")
    images = data.tensors["train"][0].flatten(1)
    # A border that is empty in all images, as around the enlarged digits, carries no information.
    return images if dataset == "mnist" else images[:, images.amax(0) > 0]


def of(correction: bool, results: Results, most: float = math.inf) -> list[Outcome]:
    """List the outcomes with or without correction, with alpha up to ``most``."""
    return [
        outcome for run, outcome in results.items() if run.bias_correction is correction and run.alpha <= most
    ]


def summary(results: Sequence[Results], chance: float) -> str:
    """Say how many runs stayed finite and ended better than guessing, with and without correction."""
    lines = []
    for correction, name in NAMES.items():
        runs = [outcome for one in results for outcome in of(correction, one)]
        finite = [outcome for outcome in runs if outcome.diverged is None]
        better = sum(outcome.losses[max(outcome.losses)] < chance for outcome in finite)
        lines.append(
            f"{name}: {len(finite)} of {len(runs)} runs stayed finite, {better} ended below {chance:.0f}"
            " nats, the loss of guessing"
        )
    return "\n".join(lines).capitalize()


def beside(results: Sequence[Results], seconds: float) -> list[Row]:
    """Make the rows of ``results.csv``: the paper has a figure, and no numbers."""
    rows = []
    alphas = [run.alpha for run in results[0]]
    most = max([alpha for alpha in alphas if alpha < 0.05] or alphas)
    for correction, name in NAMES.items():
        runs = [of(correction, one, most) for one in results]
        finite = [float(sum(outcome.diverged is None for outcome in one)) for one in runs]
        about = f"runs with a finite loss out of the {len(runs[0])} with alpha up to {most:.2g}"
        low, high = interval(finite) if len(runs) > 1 else (None, None)
        row = Row(name, about, mean(finite), low, high, seeds=len(runs), seconds=seconds / 2)
        rows.append(replace(row, lower_is_better=False))
    return rows


def average(results: Sequence[Results]) -> Results:
    """Average the losses over the seeds; a run that diverged with one of them has diverged."""
    averaged: Results = {}
    for run in results[0]:
        outcomes = [one[run] for one in results]
        steps = set.intersection(*(set(outcome.losses) for outcome in outcomes))
        ends = [outcome.diverged for outcome in outcomes if outcome.diverged is not None]
        losses = {step: mean(outcome.losses[step] for outcome in outcomes) for step in sorted(steps)}
        averaged[run] = Outcome(losses, min(ends, default=None))
    return averaged


def draw(plan: Plan, results: Results, chance: float) -> Figure:
    """Draw the paper's figure: loss over log10 alpha, a panel per beta1 and beta2, a block per step count.

    Losses up to a little above that of guessing are drawn in place, higher ones as off the scale.
    """
    steps = sorted(plan.at)
    figure = new_figure(2.3 * len(plan.beta2) + 0.6, (1.9 * len(plan.beta1) + 1.0) * len(steps))
    scale = _scale(results, chance)
    blocks = figure.subfigures(len(steps), 1, squeeze=False)[:, 0]
    for block, step in zip(blocks, steps, strict=True):
        block.suptitle(f"after {step} steps (x: diverged, triangle: off the scale)")
        panels = block.subplots(len(plan.beta1), len(plan.beta2), sharex=True, sharey=True, squeeze=False)
        for row, beta1 in zip(panels, plan.beta1, strict=True):
            for axes, beta2 in zip(row, plan.beta2, strict=True):
                _panel(axes, plan, results, (beta1, beta2, step), scale)
        block.legend(
            *panels[0][0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(2, len(plan.beta2)),
        )
    return figure


def _scale(results: Results, chance: float) -> tuple[float, float]:
    """Return the ends of the loss axis, which leave out losses worse than guessing."""
    losses = [value for outcome in results.values() for value in outcome.losses.values()]
    values = [value for value in losses if value <= 1.1 * chance]
    return min(values, default=0.0), max(values, default=chance)


def _panel(
    axes: Axes, plan: Plan, results: Results, where: tuple[float, float, int], ends: tuple[float, float]
) -> None:
    beta1, beta2, step = where
    low, top = ends
    margin = 0.06 * (top - low)
    for correction, colour in COLOURS.items():
        runs = [
            run
            for run in plan.settings()
            if (run.beta1, run.beta2, run.bias_correction) == (beta1, beta2, correction)
        ]
        values = [results[run].losses.get(step, math.nan) for run in runs]
        axes.plot(plan.log_alpha, values, "o-", color=colour, markersize=3, label=NAMES[correction])
        # Side by side if both are off the scale.
        shift = -0.08 if correction else 0.08
        for power, value in zip(plan.log_alpha, values, strict=True):
            if not value <= top:
                mark = "x" if math.isnan(value) else "^"
                axes.plot(power + shift, top + 2 * margin, mark, color=colour, markersize=5)
    axes.set_ylim(low - margin, top + 3 * margin)
    axes.set_title(rf"$\beta_1={beta1:g}$, $\beta_2={beta2:g}$", fontsize=10)
    if axes.get_subplotspec().is_last_row():  # type: ignore[union-attr]
        axes.set_xlabel(r"$\log_{10}\alpha$")
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel("loss, nats")


def diverged(results: Sequence[Results]) -> dict[str, int]:
    """Count the runs that did not stay finite, with and without correction."""
    return {
        f"diverged {name}": sum(
            outcome.diverged is not None for one in results for outcome in of(correction, one)
        )
        for correction, name in NAMES.items()
    }
