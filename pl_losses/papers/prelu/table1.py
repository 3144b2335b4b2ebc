"""He et al. 2015, Table 1: the slopes that each layer of model E learns.

``pl-losses reproduce prelu/table1`` trains a smaller network of the same kind, and draws its slopes by depth.
"""

from __future__ import annotations

from functools import partial
from statistics import correlation, fmean
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_losses.core.experiment import Experiment, Recording
from pl_losses.core.figures import Figure, new_axes
from pl_losses.core.protocol import Job, Measured, Score, measure, report, table, trained
from pl_losses.core.results import Row, interval
from pl_losses.core.validation import check_counts, check_positive, typed
from pl_losses.data import Digits
from pl_losses.data.cifar10 import CIFARS
from pl_losses.papers.prelu.module import RectifierNet
from pl_losses.papers.prelu.slopes import find_slopes

# Table 1, a slope for each channel, on ImageNet: the means of the layers.
PUBLISHED = [0.596, 0.321, 0.204, 0.294, 0.464, 0.196, 0.152, 0.145, 0.124, 0.134, 0.198, 0.074, 0.075]
NOTE = "On ImageNet, with a wider network."
DATA = {"cifar10": "CIFAR-10", "cifar10-jpeg": "JPEG copy of CIFAR-10", "digits": "digits"}


class HalfSize(RectifierNet):
    """Sees images at half their height and width, which takes a quarter of the time."""

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits: [B, C, H, W] -> [B, classes]."""
        return super().forward(F.avg_pool2d(images, 2))


@typed
def reproduce(
    dataset: Literal["cifar10", "cifar10-jpeg", "digits"] = "cifar10",
    seeds: int = 3,
    *,
    root: str | None = None,
    folder: str = "runs/prelu/table1",
    epochs: int = 12,
    batch_size: int = 128,
    lr: float = 0.02,
    width: float = 0.25,
    limit: int | None = None,
    wandb: Recording = "offline",
) -> None:
    """Table 1: the mean slope that each layer of model E learns.

    The network is the paper's model E with a slope for each channel, a quarter as wide, on CIFAR-10 at half
    its size in place of ImageNet. It is trained by SGD, whose rate falls to a tenth after four fifths of the
    passes. No setting was chosen by a test error. The folder gets ``trainings.csv``, ``results.csv``,
    ``slopes.png`` and a W&B run, and the same command resumes after an interruption.

    Args:
        dataset: "cifar10"; "cifar10-jpeg", the folders ``cifar10-jpeg/train`` and ``cifar10-jpeg/test`` with
            a folder of JPEG files for each class; or "digits" for scikit-learn's, which need no download.
        seeds: Trainings.
        root: Folder with the data. Default: the environment variable PL_LOSSES_DATA.
        folder: For the results. A folder with a part of them is resumed.
        epochs: Passes over the training data.
        batch_size: Images per step.
        lr: Learning rate, with momentum 0.9 and, for all but the slopes, weight decay 0.0005.
        width: Factor of the paper's number of channels.
        limit: Number of training images to use, the first ones. Default: all.
        wandb: Whether W&B records the tables and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, or the folder has the results of other arguments.
    """
    check_counts(seeds=seeds, epochs=epochs, batch_size=batch_size, limit=limit)
    check_positive("lr", lr)
    check_positive("width", width)
    arguments: dict[str, object] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "width": width}
    kept = Experiment("prelu/table1", folder, arguments | {"limit": limit})

    def train(jobs: list[Job]) -> list[Score]:
        (job,) = jobs
        options: dict[str, Any] = {"val_size": 0, "batch_size": batch_size, "seed": job.seed, "limit": limit}
        data = Digits(**options) if dataset == "digits" else CIFARS[dataset](root, **options)
        data.prepare_data()
        data.setup("fit")
        kept.same_input(DATA[dataset], data.identity()["train"]["checksum"])
        torch.manual_seed(job.seed)
        model = HalfSize(
            in_channels=data.input_shape[0],
            architecture="E",
            stem="small",
            width=width,
            optimizer=partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=0.0005),
            lr_scheduler=partial(
                torch.optim.lr_scheduler.MultiStepLR, milestones=[max(1, epochs * 4 // 5)], gamma=0.1
            ),
        )
        score = trained(model, data, epochs, job.held_out)
        return [
            score._replace(curve=[slopes.detach().mean().item() for slopes in find_slopes(model).values()])
        ]

    kept.also["dataset"] = dataset
    (found,) = measure(kept, {DATA[dataset]: [{"lr": lr}]}, seeds, train)
    report(
        kept,
        wandb,
        rows(found),
        pictures={"slopes": draw(found)},
        tables={"trainings": table(kept)},
    )


def rows(found: Measured) -> list[Row]:
    """Make the rows of ``results.csv``: the mean slope of each layer, and the test error.

    >>> scores = [Score(30.0, 1.0, [0.5, 0.3, 0.2]), Score(32.0, 1.0, [0.6, 0.3, 0.2])]
    >>> first, *_, error = rows(Measured("digits", {"lr": 0.02}, scores, 90.0))
    >>> first.what, first.measured, error.quantity, error.measured
    ('digits, layer 1', 0.55, 'test error, %', 31.0)
    """
    curves = list(found.curves.values())
    known: dict[str, Any] = {"seeds": len(curves), "lower_is_better": None}
    count = len(curves[0]) if curves else 0
    compared = count == len(PUBLISHED) and found.method != DATA["digits"]
    slopes: list[Row] = []
    for layer, values in enumerate(zip(*curves, strict=True), 1):
        low, high = interval(values) if len(values) > 1 else (None, None)
        what = f"{found.method}, layer {layer}" + (", fully connected" if layer > count - 2 else "")
        if compared:
            known |= {"published": PUBLISHED[layer - 1], "note": NOTE}
        seconds = found.seconds / count
        slopes.append(Row(what, "mean slope", fmean(values), low, high, seconds=seconds, **known))
    if compared:
        alike = [correlation(curve[:-2], PUBLISHED[:-2]) for curve in curves]
        low, high = interval(alike) if len(alike) > 1 else (None, None)
        what, quantity = f"{found.method}, convolutions", "correlation with the paper's slopes"
        slopes.append(Row(what, quantity, fmean(alike), low, high, len(alike), lower_is_better=None))
    error = found.row() | ({"seconds": 0.0} if curves else {}) | {"chosen": ""}
    return [*slopes, Row(found.method, "test error, %", **error)]


def draw(found: Measured) -> Figure:
    """Draw the mean slope of each layer by depth: a line for each seed."""
    figure, axes = new_axes(5.6, 3.6)
    count = max(map(len, found.curves.values()), default=0)
    for seed, curve in found.curves.items():
        axes.plot(range(1, 1 + count), curve, "o-", markersize=3, label=f"seed {seed}")
    axes.axhline(0.25, color="0.5", linestyle=":", label="at the start")
    if count == len(PUBLISHED) and found.method != DATA["digits"]:
        axes.plot(range(1, 1 + len(PUBLISHED)), PUBLISHED, "k--", linewidth=1, label="paper, ImageNet")
    axes.axvspan(count - 1.5, count + 0.5, color="0.93")
    axes.set_xticks(range(1, 1 + count))
    axes.set_xlabel("layer (grey: fully connected)")
    axes.set_ylabel("mean slope")
    axes.set_title(found.method, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
