"""LeCun et al. 1998, section VI: strings read after each way of training, with the error-reject curves.

``pl-losses reproduce gtn/criteria`` trains all of them on the same strings, from the same start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from pl_losses.core.experiment import Experiment, Recording, names_of
from pl_losses.core.figures import Figure, new_axes
from pl_losses.core.protocol import Job, Measured, Score, measure, report, table, trained
from pl_losses.core.results import Row
from pl_losses.core.validation import check_counts, typed
from pl_losses.data import DigitStrings
from pl_losses.papers.gtn.lattice_reader import LatticeReader
from pl_losses.papers.gtn.metrics import error_reject_curve

CRITERIA = ("isolated", "viterbi", "forward", "discriminative_viterbi", "discriminative_forward")
# As in the recipes gtn/strings-digits and gtn/strings-discriminative-forward.
READER: dict[str, dict[str, Any]] = {
    "digits": {},
    "mnist": {"max_pieces": 6, "radius": 1, "projection_radius": 9, "deslant": True},
}
MAX_LR = {"digits": (0.0015, 0.003, 0.006), "mnist": (0.002, 0.004, 0.008, 0.016)}
# The learning rate of all is the best one of this criterion.
LEADER = "discriminative_forward"
STRINGS: dict[str, dict[str, Any]] = {
    "digits": {"batch_size": 16},
    "mnist": {"batch_size": 32, "elastic": 1.2},
}
POINTS = 51  # Of an error-reject curve, from no string rejected to half of them.


class Answers(pl.Callback):
    """Keeps the confidence of each test string, and whether it was misread."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        """Add a batch."""
        own = outputs["own"]
        self.rows.append(
            torch.stack([outputs["reading"].confidence[:own].float(), outputs["wrong"][:own].float()])
        )

    def score(self) -> Score:
        """Return the error of strings, with the error-reject curve: rejected share and error, percent."""
        confidence, wrong = torch.cat(self.rows, dim=1).cpu()
        _, rejected, error = error_reject_curve(confidence, wrong > 0)
        places = torch.searchsorted(rejected, torch.linspace(0, 0.5, POINTS)).clamp(max=len(rejected) - 1)
        curve = torch.stack([100 * rejected[places], 100 * error[places]], dim=1).tolist()
        return Score.of_error(float(wrong.mean()), len(wrong), curve)


@typed
def reproduce(
    criteria: str | list[str] = "all",
    seeds: int = 5,
    dataset: Literal["mnist", "digits"] = "mnist",
    *,
    root: str | None = None,
    folder: str = "runs/gtn/criteria",
    isolated_epochs: int = 8,
    string_epochs: int = 4,
    strings: int | None = None,
    eval_strings: int | None = None,
    wandb: Recording = "offline",
) -> None:
    """Section VI: strings misread after training by four criteria, and after isolated digits alone.

    All start with the same passes over isolated digits, and then see strings; "isolated" goes on with digits.
    The settings are those of the recipes ``gtn/strings-...``, with fewer passes. The learning rate of all is
    the one with which "discriminative_forward" reads held-out strings best. The folder gets
    ``trainings.csv``, ``curves.csv``, ``results.csv``, ``error_reject.png`` and a W&B run, and the same
    command resumes after an interruption. The paper's strings were written with a pen, so that its numbers
    cannot be compared.

    Args:
        criteria: Of "isolated", "viterbi", "forward", "discriminative_viterbi" and "discriminative_forward",
            between commas; "all" are the five.
        seeds: Trainings of each.
        dataset: Strings of MNIST's digits ("mnist"), or of scikit-learn's, which need no download ("digits").
        root: Folder with MNIST. Default: the environment variable PL_LOSSES_DATA.
        folder: For the results. A folder with a part of them is resumed.
        isolated_epochs: Passes over isolated digits.
        string_epochs: Passes over strings after them.
        strings: Training strings of a pass. Default: as many as use each digit once.
        eval_strings: Test strings. Default: likewise.
        wandb: Whether W&B records the tables and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, or the folder has the results of other arguments.
    """
    names = names_of("criteria", criteria, list(CRITERIA))
    check_counts(seeds=seeds, isolated_epochs=isolated_epochs, string_epochs=string_epochs)
    arguments: dict[str, object] = {"dataset": dataset, "isolated_epochs": isolated_epochs}
    arguments |= {"string_epochs": string_epochs, "strings": strings, "eval_strings": eval_strings}
    kept = Experiment("gtn/criteria", folder, arguments)
    kept.also["criteria"] = criteria
    epochs = isolated_epochs + string_epochs

    def train(jobs: list[Job]) -> list[Score]:
        (job,) = jobs
        alone = epochs if job.method == "isolated" else isolated_epochs
        sizes: dict[str, Any] = {"strings": strings, "eval_strings": eval_strings, "isolated_epochs": alone}
        if not job.held_out:
            sizes["val_size"] = 0
        data = DigitStrings(dataset, root, seed=job.seed, **sizes, **STRINGS[dataset])
        torch.manual_seed(job.seed)
        criterion: Any = "discriminative_forward" if job.method == "isolated" else job.method
        model = LatticeReader(
            criterion,
            optimizer=partial(torch.optim.AdamW, weight_decay=0.01),
            lr_scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, **job.setting),
            **READER[dataset],
        )
        answers = Answers()
        held_out = trained(model, data, epochs, job.held_out, callbacks=[answers])
        return [held_out if job.held_out else answers.score()]

    rates = [{"max_lr": rate} for rate in MAX_LR[dataset]]
    (leader,) = measure(kept, {LEADER: rates}, seeds if LEADER in names else 0, train)
    others = measure(kept, {name: [leader.setting] for name in names if name != LEADER}, seeds, train)
    found = sorted([leader, *others], key=lambda one: CRITERIA.index(one.method))
    found = [one for one in found if one.method in names]
    rows = [Row(one.method, "strings misread, %", **one.row() | settings(one)) for one in found]
    tables: Mapping[str, Any] = {"trainings": table(kept), "curves": list(points(found))}
    report(kept, wandb, rows, pictures={"error_reject": draw(found)}, tables=tables)


def settings(one: Measured) -> dict[str, str]:
    """Say for whom the settings were chosen."""
    chosen = one.row()["chosen"]
    return {"chosen": chosen if one.method == LEADER else f"{chosen}, chosen for {LEADER}"}


def points(found: Sequence[Measured]) -> list[dict[str, object]]:
    """List the points of all error-reject curves."""
    return [
        {"criterion": one.method, "seed": seed, "rejected": rejected, "error": error}
        for one in found
        for seed, curve in one.curves.items()
        for rejected, error in curve
    ]


def draw(found: Sequence[Measured]) -> Figure:
    """Draw the error-reject curves, means over the seeds."""
    figure, axes = new_axes(6.4, 4.2)
    for one in found:
        if not one.curves:
            continue
        rejected, error = torch.tensor([*one.curves.values()]).mean(0).T.tolist()
        axes.plot(rejected, error, label=one.method)
    axes.set_xlabel("rejected strings, %")
    axes.set_ylabel("errors among the others, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
