"""Kingma and Ba 2015, Figs. 1 to 3: the training loss by Adam and by four other optimizers.

``pl-losses reproduce adam/fig1`` (and ``fig2``, ``fig3``) trains all rates of all optimizers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from math import inf, isfinite, sqrt
from time import monotonic
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from pl_losses.core.experiment import Experiment, Recording, names_of
from pl_losses.core.figures import Figure, new_figure
from pl_losses.core.protocol import Job, Measured, Score, measure, report, table
from pl_losses.core.results import Row
from pl_losses.core.rng import fold_in
from pl_losses.core.validation import check_counts, check_device, check_positive, typed
from pl_losses.data import MNIST, Digits
from pl_losses.data.bag_of_words import BagOfWords
from pl_losses.data.cifar10 import CIFARS
from pl_losses.data.module import TensorDataModule
from pl_losses.papers.adam.batched import BatchedClassifiers
from pl_losses.papers.adam.modules import MLP, ConvNet, LogisticRegression
from pl_losses.papers.adam.optimizer import Adam

DATA = {
    "mnist": "MNIST",
    "digits": "digits",
    "bow": "bag of words",
    "cifar10": "CIFAR-10",
    "cifar10-jpeg": "JPEG copy of CIFAR-10",
}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "Adam": partial(Adam, fused=True),
    "AdaGrad": torch.optim.Adagrad,
    "RMSProp": torch.optim.RMSprop,
    "AdaDelta": torch.optim.Adadelta,
    "Nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # Of the middle of a grid of rates.
SAVE_EVERY = 60.0  # Seconds between savings of an unfinished training.


class Curves(NamedTuple):
    """One of the figures.

    Attributes:
        datasets: Whose curves it shows.
        passes: Over the training data; the paper's are 45, 200 and 45.
        choice_passes: The same, of the choice of the rate.
        rates: The middle of each optimizer's grid.
        width: Factor of the number of units and channels of the paper's network.
        decay: Optimizers with the rate alpha / sqrt(t).
    """

    datasets: tuple[str, ...]
    passes: int
    choice_passes: int
    rates: dict[str, float]
    width: float = 1.0
    decay: tuple[str, ...] = ()


RATES = {"Adam": 0.001, "AdaGrad": 0.01, "RMSProp": 0.0003, "AdaDelta": 1.0, "Nesterov": 0.03}
FIGURES = {
    # AdaGrad and AdaDelta choose the rate of each weight by themselves.
    "fig1": Curves(
        ("mnist", "bow"),
        45,
        10,
        {"Adam": 0.1, "AdaGrad": 0.1, "RMSProp": 0.03, "AdaDelta": 3.0, "Nesterov": 0.3},
        decay=("Adam", "RMSProp", "Nesterov"),
    ),
    "fig2": Curves(("mnist",), 5, 1, RATES),
    "fig3": Curves(("cifar10",), 3, 1, RATES, width=0.25),
}


@typed
def reproduce(
    figure: Literal["fig1", "fig2", "fig3"] = "fig1",
    seeds: int = 5,
    datasets: list[str] | None = None,
    *,
    root: str | None = None,
    folder: str = "runs/adam/fig1",
    passes: int | None = None,
    choice_passes: int | None = None,
    batch_size: int = 128,
    limit: int | None = None,
    width: float | None = None,
    device: str = "cpu",
    wandb: Recording = "offline",
) -> None:
    """Figs. 1 to 3: training loss of three kinds of networks over the passes, by five optimizers.

    All rates of all optimizers are trained at once, with the same start, batches and dropout masks. The rate
    of each is the one with the lowest training loss, with a seed of its own. The folder gets
    ``trainings.csv``, ``results.csv``, ``curves.csv``, ``curves.png`` and a W&B run, and the same command
    resumes after an interruption.

    Args:
        figure: "fig1" is logistic regression, on MNIST and on a bag of words of which half is dropped; "fig2"
            a network of two hidden layers with dropout; "fig3" a convolutional network with dropout.
        seeds: Trainings of each optimizer.
        datasets: Such as ["mnist"], of "mnist", "digits", "bow", "cifar10" and "cifar10-jpeg". The last is a
            folder ``cifar10-jpeg/train`` with a folder of JPEG files for each class. Default: the figure's.
        root: Folder with the data; the bag of words is generated where IMDB is not there. Default: the
            environment variable PL_LOSSES_DATA.
        folder: For the results. A folder with a part of them is resumed.
        passes: Over the training data. Default: 45, 5 and 3.
        choice_passes: The same, of the choice of the rate. Default: 10, 1 and 1.
        batch_size: Inputs per step.
        limit: Use only the first this many training inputs. Default: all.
        width: Factor of the number of units and channels. Default: 1, and 0.25 for "fig3".
        device: Such as "cpu" or "cuda".
        wandb: Whether W&B records the tables and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, or the folder has the results of other arguments.
    """
    known = FIGURES[figure]
    names = names_of("datasets", list(known.datasets) if datasets is None else datasets, list(DATA))
    lengths = (
        known.passes if passes is None else passes,
        known.choice_passes if choice_passes is None else choice_passes,
    )
    check_counts(seeds=seeds, passes=lengths[0], choice_passes=lengths[1], batch_size=batch_size, limit=limit)
    arguments: dict[str, object] = {"passes": passes, "choice_passes": choice_passes}
    arguments |= {"batch_size": batch_size, "limit": limit, "width": width}
    device = check_device(device)
    width = known.width if width is None else width
    check_positive("width", width)
    kept = Experiment(f"adam/{figure}", folder, arguments)
    kept.also["datasets"] = datasets
    found: dict[str, list[Measured]] = {}
    for name in names:

        def train(jobs: list[Job], name: str = name) -> list[Score]:
            data = load(name, root, batch_size, jobs[0].seed)
            kept.same_input(DATA[name], data.identity()["train"]["checksum"])
            torch.manual_seed(jobs[0].seed)
            start = network(figure, name, width).to(device)
            return train_together(
                start,
                jobs,
                data,
                passes=lengths[jobs[0].held_out],
                limit=limit or len(data.tensors["train"][0]),
                figure=known,
                kept=kept,
            )

        grids = {
            f"{DATA[name]}, {optimizer}": [{"lr": float(f"{rate * factor:.1g}")} for factor in FACTORS]
            for optimizer, rate in known.rates.items()
        }
        found[name] = measure(kept, grids, seeds, train, together=True, by="training loss")
    about = f"training loss of pass {lengths[0]}, nats"
    rows = [Row(one.method, about, **one.row()) for measured in found.values() for one in measured]
    tables = {"trainings": table(kept), "curves": list(points(found))}
    report(kept, wandb, rows, pictures={"curves": draw(found)}, tables=tables)


def load(name: str, root: str | None, batch_size: int, seed: int) -> TensorDataModule:
    """Load a training set whose inputs are scaled to 0..1, or normalised."""
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    if name == "bow":
        data: TensorDataModule = BagOfWords(root=root, **options)
    elif name in CIFARS:
        data = CIFARS[name](root, val_size=0, augment=False, **options)
    elif name == "mnist":
        data = MNIST(root, val_size=0, low=0.0, high=1.0, **options)
    else:
        data = Digits(val_size=0, low=0.0, high=1.0, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def network(figure: str, name: str, width: float) -> nn.Module:
    """Build the network of a figure for a data set."""
    words, channels, units = name == "bow", 3 if name in CIFARS else 1, round(1000 * width)
    if figure == "fig1":
        size = 10_000 if words else channels * 1024
        return LogisticRegression(size, 2 if words else 10, p=0.5 if words else 0.0)
    if figure == "fig2":
        return MLP(channels * 1024, [units, units])
    maps = [round(width * size) for size in (64, 64, 128)]
    return ConvNet(in_channels=channels, out_channels=maps, hidden_size=units)


def train_together(
    start: nn.Module,
    jobs: list[Job],
    data: TensorDataModule,
    *,
    passes: int,
    limit: int,
    figure: Curves,
    kept: Experiment,
) -> list[Score]:
    """Train a network for each job, and return its training loss in the last pass, and in all passes.

    Now and then the state is saved as unfinished in ``kept``, from which the same jobs go on.
    """
    names = [job.method.rpartition(", ")[2] for job in jobs]
    rates: list[float] = [job.setting["lr"] for job in jobs]
    builders = [partial(OPTIMIZERS[name], lr=rate) for name, rate in zip(names, rates, strict=True)]
    stack = BatchedClassifiers(start, builders)
    asked, losses, saved = [list(job) for job in jobs], list[list[float]](), monotonic()
    if kept.unfinished and kept.unfinished["jobs"] == asked:
        losses = kept.unfinished["losses"]
        stack.load_state_dict(kept.unfinished["stack"])
    device = stack.weights.device
    steps = -(-limit // data.batch_size)
    while len(losses) < passes:
        loader = data.train_dataloader()
        loader.set_epoch(len(losses))
        found = []
        for step, (inputs, target) in enumerate(islice(loader, steps), 1 + steps * len(losses)):
            for name, rate, optimizer in zip(names, rates, stack.optimizers, strict=True):
                if name in figure.decay:
                    optimizer.param_groups[0]["lr"] = rate / sqrt(step)
            found.append(stack.step(inputs.to(device), target.to(device), fold_in(jobs[0].seed, step)))
        losses.append(torch.stack(found).mean(0).tolist())
        if monotonic() - saved > SAVE_EVERY and len(losses) < passes:
            kept.save({"jobs": asked, "losses": losses, "stack": stack.state_dict()})
            saved = monotonic()
    return [
        Score(own[-1] if isfinite(own[-1]) else inf, curve=list(own)) for own in zip(*losses, strict=True)
    ]


def points(found: Mapping[str, Sequence[Measured]]) -> Iterator[dict[str, object]]:
    """Yield the training loss of each pass, optimizer and seed."""
    for measured in found.values():
        for one in measured:
            for seed, score in enumerate(one.scores):
                for number, loss in enumerate(score.curve, 1):
                    yield {"method": one.method, "seed": seed, "pass": number, "loss": loss}


def draw(found: Mapping[str, Sequence[Measured]]) -> Figure:
    """Draw the training loss over the passes, its mean over the seeds, as the paper does."""
    figure = new_figure(5 * len(found), 3.6)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, measured) in zip(panels, found.items(), strict=True):
        for one in measured:
            curves = torch.tensor([score.curve for score in one.scores])
            label = f"{one.method.rpartition(', ')[2]}, {one.setting['lr']:g}"
            axes.plot(range(1, 1 + curves.shape[1]), curves.mean(0).tolist(), "o-", markersize=3, label=label)
        axes.set_yscale("log")
        axes.set_title(DATA[name], fontsize=9)
        axes.set_xlabel("passes over the training data")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    panels[0].set_ylabel("training loss, nats")
    return figure
