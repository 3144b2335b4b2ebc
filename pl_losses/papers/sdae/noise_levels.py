"""Vincent et al. 2010, section 6.3: the test error over the level of the noise and the number of layers.

``pl-losses reproduce sdae/levels`` trains a stack for each, on one of the generated variations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pl_losses.core.experiment import Experiment, Recording
from pl_losses.core.figures import Figure, new_axes
from pl_losses.core.protocol import Job, Measured, Score, draw_line, measure, report, trained
from pl_losses.core.results import Row
from pl_losses.core.validation import check_counts, check_positive, check_share, check_some, typed
from pl_losses.data.variations import Name, Variations
from pl_losses.papers.sdae.comparison import stack


@typed
def reproduce(
    variation: Name = "rot-gen",
    levels: list[float] | None = None,
    layers: list[int] | None = None,
    *,
    seeds: int = 5,
    source: Literal["mnist", "digits"] = "mnist",
    root: str | None = None,
    folder: str = "runs/sdae/levels",
    train_size: int | None = None,
    val_size: int | None = None,
    test_size: int | None = None,
    hidden_size: int = 500,
    pretrain_epochs: int = 10,
    finetune_epochs: int = 15,
    pretrain_lr: float = 0.002,
    finetune_lr: float = 0.001,
    batch_size: int = 128,
    wandb: Recording = "offline",
) -> None:
    """Section 6.3: test error of stacks over the share of masked elements and over the number of layers.

    All have the settings of ``sdae/variations``; the weights with the lowest validation error are tested. The
    folder gets ``trainings.csv``, ``results.csv``, ``levels.png`` and a W&B run, and the same command resumes
    after an interruption. The set is not the published one, nor are the errors comparable with the published.

    Args:
        variation: The set, such as rot-gen.
        levels: Shares of masked elements. Default: 0, 0.1, 0.25 and 0.4.
        layers: Numbers of layers. Default: 1, 2 and 3.
        seeds: Trainings of each; they differ in the start, the order and the noise, not in the images.
        source: Digits of "mnist", or the packaged ones, "digits".
        root: Folder with MNIST.
        folder: For the results. A folder with a part of them is resumed.
        train_size: Training images. Default: as many as the original sets have.
        val_size: Validation images.
        test_size: Test images.
        hidden_size: Units of each layer.
        pretrain_epochs: Epochs of each layer.
        finetune_epochs: Epochs of fine-tuning.
        pretrain_lr: Largest learning rate of pre-training (Adam, one cycle).
        finetune_lr: The same of fine-tuning.
        batch_size: Images per step.
        wandb: Whether W&B records the tables and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, or the folder has the results of other arguments.
    """
    check_some(levels=levels, layers=layers)
    shares = list(dict.fromkeys(levels or [0.0, 0.1, 0.25, 0.4]))
    depths = list(dict.fromkeys(layers or [1, 2, 3]))
    for share in shares:
        check_share("levels", share)
    for depth in depths:
        check_counts(layers=depth)
    settings: dict[str, Any] = {
        "hidden_size": hidden_size,
        "pretrain_epochs": pretrain_epochs,
        "batch_size": batch_size,
    }
    settings |= {"pretrain_lr": pretrain_lr, "finetune_lr": finetune_lr, "finetune_epochs": finetune_epochs}
    for name, rate in (("pretrain_lr", pretrain_lr), ("finetune_lr", finetune_lr)):
        check_positive(name, rate)
    check_counts(
        seeds=seeds, hidden_size=hidden_size, pretrain_epochs=pretrain_epochs, finetune_epochs=finetune_epochs
    )
    sizes: dict[str, Any] = {"train_size": train_size, "val_size": val_size, "test_size": test_size}
    arguments = {"variation": variation, "levels": levels, "layers": layers, "source": source}
    kept = Experiment("sdae/levels", folder, arguments | settings | sizes)
    data = Variations(variation, source=source, root=root, batch_size=batch_size, **sizes)

    def train(jobs: list[Job]) -> list[Score]:
        (job,) = jobs
        depth, share = job.setting["layers"], job.setting["level"]
        data.seed = job.seed
        epochs = depth * pretrain_epochs + finetune_epochs
        model = stack(variation, depth, share, settings, seed=job.seed)
        return [trained(model, data, epochs, job.held_out, check_val_every_n_epoch=1)]

    grids = {
        f"{named(n)}, level {level:g}": [{"layers": n, "level": level}] for n in depths for level in shares
    }
    found = measure(kept, grids, seeds, train)
    rows = [Row(f"{variation}, {one.method}", "test error, %", **one.row() | {"chosen": ""}) for one in found]
    report(kept, wandb, rows, pictures={"levels": draw(variation, found, depths)})


def draw(variation: str, found: Sequence[Measured], depths: Sequence[int]) -> Figure:
    """Draw the test error over the level of the noise, with its 95 % interval: a line for each depth."""
    figure, axes = new_axes(5.6, 3.6)
    axes.set_title(variation, fontsize=9)
    for depth in depths:
        part = [one for one in found if one.setting["layers"] == depth]
        shares = [one.setting["level"] for one in part]
        draw_line(axes, shares, part, named(depth))
    axes.set_xlabel("share of masked elements")
    axes.set_ylabel("test error, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def named(depth: int) -> str:
    """Name a number of layers.

    >>> named(1), named(2)
    ('1 layer', '2 layers')
    """
    return f"{depth} layer{'s' * (depth > 1)}"
