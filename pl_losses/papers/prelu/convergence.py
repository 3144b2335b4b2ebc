"""He et al. 2015, Figs. 2 and 3: how 22 and 30 layers of ReLUs converge from two initialisations.

``pl-losses reproduce prelu/fig2`` (22 layers) and ``prelu/fig3`` (30 layers) train both and draw the curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from pl_losses.core.experiment import Experiment, Recording
from pl_losses.core.figures import Figure, new_axes
from pl_losses.core.protocol import Job, Measured, Score, measure, report, table, trained
from pl_losses.core.results import Row
from pl_losses.core.validation import check_counts, check_positive, typed
from pl_losses.data import MNIST, Digits
from pl_losses.papers.prelu.module import RectifierNet

INITS: dict[str, Literal["he", "xavier"]] = {"He": "he", "Xavier": "xavier"}
DEPTHS: dict[str, tuple[Literal["depth22", "depth30"], int]] = {
    "fig2": ("depth22", 22),
    "fig3": ("depth30", 30),
}


class Curve(pl.Callback):
    """Keeps the step and the validation error, in percent, of each validation."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the error."""
        if not trainer.sanity_checking:
            self.points.append((trainer.global_step, 100 * float(trainer.callback_metrics["val/error"])))


@typed
def reproduce(
    figure: Literal["fig2", "fig3"] = "fig2",
    seeds: int = 5,
    dataset: Literal["mnist", "digits"] = "mnist",
    *,
    root: str | None = None,
    folder: str = "runs/prelu/fig2",
    epochs: int = 2,
    validations: int = 10,
    batch_size: int = 64,
    lr: float = 0.01,
    width: float = 0.125,
    limit: int | None = None,
    wandb: Recording = "offline",
) -> None:
    """Figs. 2 and 3: error of 22 or 30 layers over training, from the weights of He and of Xavier.

    The networks are the paper's with ReLUs, an eighth as wide, on digits in place of ImageNet. Both are
    trained by SGD with the same settings, none of which was chosen. The curve is the error on 5 000 held-out
    training images. The folder gets ``trainings.csv``, ``curves.csv``, ``results.csv``, ``curves.png`` and a
    W&B run, and the same command resumes after an interruption.

    Args:
        figure: "fig2" has 22 layers, "fig3" has 30.
        seeds: Trainings of each.
        dataset: "mnist", or "digits" for scikit-learn's, which need no download.
        root: Folder with MNIST. Default: the environment variable PL_LOSSES_DATA.
        folder: For the results. A folder with a part of them is resumed.
        epochs: Passes over the training data.
        validations: Points of the curve in each pass.
        batch_size: Images per step.
        lr: Learning rate, with momentum 0.9 and weight decay 0.0005.
        width: Factor of the paper's number of channels.
        limit: Number of training images to use, the first ones. Default: all.
        wandb: Whether W&B records the tables and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, or the folder has the results of other arguments.
    """
    check_counts(seeds=seeds, epochs=epochs, validations=validations, batch_size=batch_size)
    check_positive("lr", lr)
    arguments: dict[str, object] = {"dataset": dataset, "epochs": epochs}
    arguments |= {"validations": validations, "batch_size": batch_size, "lr": lr, "width": width}
    kept = Experiment(f"prelu/{figure}", folder, arguments | {"limit": limit})
    architecture, depth = DEPTHS[figure]
    optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=0.0005)

    def train(jobs: list[Job]) -> list[Score]:
        (job,) = jobs
        options: dict[str, Any] = {"batch_size": batch_size, "seed": job.seed, "limit": limit}
        data = MNIST(root, **options) if dataset == "mnist" else Digits(**options)
        torch.manual_seed(job.seed)
        init = INITS[job.method.rpartition(", ")[2]]
        model = RectifierNet(
            architecture=architecture,
            stem="small",
            width=width,
            rectifier="relu",
            init=init,
            optimizer=optimizer,
        )
        curve = Curve()
        often = {"val_check_interval": 1 / validations, "check_val_every_n_epoch": 1}
        score = trained(model, data, epochs, job.held_out, callbacks=[curve], **often)
        return [score._replace(curve=[list(point) for point in curve.points])]

    methods = {f"{depth} layers, {init}": [{"lr": lr}] for init in INITS}
    found = measure(kept, methods, seeds, train)
    rows = [
        Row(one.method, f"test error after {epochs} pass{'es' * (epochs > 1)}, %", **one.row())
        for one in found
    ]
    points = [
        {"method": one.method, "seed": seed, "step": step, "error": error}
        for one in found
        for seed, curve in one.curves.items()
        for step, error in curve
    ]
    tables = {"trainings": table(kept), "curves": points}
    report(kept, wandb, rows, pictures={"curves": draw(found)}, tables=tables)


def draw(found: Sequence[Measured]) -> Figure:
    """Draw the error over the steps: a line for each seed, the first method's over the second's wide ones."""
    figure, axes = new_axes(5.6, 3.6)
    styles: tuple[dict[str, Any], ...] = (
        {"color": "tab:red", "marker": "o", "zorder": 3},
        {"color": "tab:blue", "linewidth": 7, "alpha": 0.4},
    )
    for style, one in zip(styles, found, strict=True):
        for number, curve in enumerate(one.curves.values()):
            steps, errors = zip(*curve, strict=True)
            axes.plot(steps, errors, label=None if number else one.method, **style)
    axes.set_xlabel("steps")
    axes.set_ylabel("error on held-out images, %")
    axes.grid(alpha=0.3)
    if axes.lines:  # All may have diverged.
        axes.legend(fontsize=8)
    return figure
