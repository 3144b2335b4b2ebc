"""LeCun et al. 1998, Fig. 6: LeNet-5's test error over the number of training images.

``pl-losses reproduce lenet/training-size`` trains with and without distortions, always as many steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch

from pl_losses.core.experiment import Experiment, Recording
from pl_losses.core.figures import Figure, new_axes
from pl_losses.core.protocol import Job, Measured, Score, draw_line, measure, report, trained
from pl_losses.core.results import Row
from pl_losses.core.validation import check_counts, check_positive, check_some, typed
from pl_losses.data import MNIST, Digits
from pl_losses.papers.lenet.module import LeNet5

PUBLISHED = {"60000 images": 0.95, "60000 images, distorted": 0.80}
SUFFIX = ", distorted"


@typed
def reproduce(
    sizes: list[int] | None = None,
    seeds: int = 5,
    dataset: Literal["mnist", "digits"] = "mnist",
    *,
    root: str | None = None,
    folder: str = "runs/lenet/training-size",
    steps: int = 4690,
    batch_size: int = 128,
    max_lr: float = 0.003,
    wandb: Recording = "offline",
) -> None:
    """Fig. 6: LeNet-5's test error over the number of training images, with and without distortions.

    All trainings have the same number of steps and the same settings, none of which was chosen: Adam with a
    one-cycle learning rate. The folder gets ``trainings.csv``, ``results.csv``, ``sizes.png`` and a W&B run,
    and the same command resumes after an interruption.

    Args:
        sizes: Numbers of training images. Default: from 1000 to the paper's 15000, 30000 and 60000.
        seeds: Trainings of each; they differ in the start and the order, and have the same images.
        dataset: "mnist", or "digits" for scikit-learn's, which need no download.
        root: Folder with MNIST. Default: the environment variable PL_LOSSES_DATA.
        folder: For the results. A folder with a part of them is resumed.
        steps: Steps of each training; the default is ten passes over all images.
        batch_size: Images per step.
        max_lr: Largest learning rate.
        wandb: Whether W&B records the tables and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, or the folder has the results of other arguments.
    """
    check_some(sizes=sizes)
    counts = sorted(set(sizes or [1000, 3000, 15_000, 30_000, 60_000]))
    for count in counts:
        check_counts(sizes=count)
    check_counts(seeds=seeds, steps=steps, batch_size=batch_size)
    check_positive("max_lr", max_lr)
    arguments: dict[str, object] = {"sizes": sizes, "dataset": dataset, "steps": steps}
    kept = Experiment("lenet/training-size", folder, arguments | {"batch_size": batch_size, "max_lr": max_lr})

    def load(size: int, seed: int = 0, distort: bool = False) -> MNIST | Digits:
        options: dict[str, Any] = {"limit": size, "distort": distort, "batch_size": batch_size, "seed": seed}
        return MNIST(root, val_size=0, **options) if dataset == "mnist" else Digits(val_size=0, **options)

    whole = load(counts[-1])
    whole.prepare_data()
    whole.setup("fit")
    if (known := len(whole.tensors["train"][0])) < counts[-1]:
        raise ValueError(
            f"Expected `sizes` of at most {known}, the images of {dataset}, but got {counts[-1]}"
        )

    def train(jobs: list[Job]) -> list[Score]:
        (job,) = jobs
        data = load(int(job.method.split()[0]), job.seed, job.method.endswith(SUFFIX))
        torch.manual_seed(job.seed)
        cycle = partial(torch.optim.lr_scheduler.OneCycleLR, **job.setting)
        model = LeNet5(optimizer=partial(torch.optim.Adam, fused=True), lr_scheduler=cycle)
        return [trained(model, data, -1, job.held_out, max_steps=steps)]

    methods = [f"{count} images{end}" for end in ("", SUFFIX) for count in counts]
    found = measure(kept, {method: [{"max_lr": max_lr}] for method in methods}, seeds, train)
    rows = [
        Row(one.method, "test error, %", published=PUBLISHED.get(one.method), **one.row()) for one in found
    ]
    report(kept, wandb, rows, pictures={"sizes": draw(found, counts)})


def draw(found: Sequence[Measured], counts: Sequence[int]) -> Figure:
    """Draw the test error over the number of images, with its 95 % interval."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure, axes = new_axes(5.6, 3.6)
    for name, part in (("as they are", found[: len(counts)]), ("distorted", found[len(counts) :])):
        draw_line(axes, counts, part, name)
    axes.plot([60_000, 60_000], list(PUBLISHED.values()), "d", color="0.3", zorder=5, label="published")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xticks(counts, [str(count) for count in counts], fontsize=8)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("training images")
    axes.set_ylabel("test error, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return figure
