"""Eq. 7 after the same number of evaluations by four optimizers, from the same start.

``pl-losses reproduce style/optimizers`` compares :class:`MonotoneLBFGS` with torch's L-BFGS, as three other
programs use it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import accumulate, product
from math import prod
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pl_losses.core.experiment import Experiment, Recording, progress_bar
from pl_losses.core.figures import Figure, new_figure
from pl_losses.core.files import checksum
from pl_losses.core.protocol import CHOICE, report, with_scores
from pl_losses.core.results import Row, interval
from pl_losses.core.validation import check_counts, check_integer, check_positive, check_some, typed
from pl_losses.data.pictures import Pictures, PictureSet
from pl_losses.papers.style.module import WHITE, StyleTransfer
from pl_losses.papers.style.objective import Objective
from pl_losses.papers.style.optimizer import MonotoneLBFGS
from pl_losses.papers.style.vgg import find_oxford

OURS = "MonotoneLBFGS"
NAMES = ("stretch", "smooth")  # Its settings that are chosen.
# Its settings are chosen on these packaged pairs, of which none is reported by default.
HELD_OUT = [("china", "starry-night"), ("flower", "starry-night"), ("grace-hopper", "starry-night")]
PAIRS = [
    ("content_chelsea.jpg", "style_starry_night.jpg"),
    ("content_astronaut.jpg", "style_shipwreck.jpg"),
    ("content_astronaut.jpg", "style_the_scream.jpg"),
]


class Way(NamedTuple):
    """How a program minimises the loss.

    Attributes:
        optimizer: Given the image in a list.
        scale: The largest value of a pixel.
        clamp: Whether the pixels are clamped before each evaluation.
    """

    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    scale: float = WHITE
    clamp: bool = False


OTHERS = {
    "L-BFGS, strong Wolfe": Way(
        partial(torch.optim.LBFGS, max_iter=20, history_size=100, line_search_fn="strong_wolfe")
    ),
    "L-BFGS as in PyTorch's tutorial": Way(torch.optim.LBFGS, scale=1.0, clamp=True),
    "L-BFGS as in pastiche": Way(partial(torch.optim.LBFGS, max_iter=1)),
}


@typed
def reproduce(
    pairs: list[list[str]] | None = None,
    seeds: int = 5,
    *,
    evaluations: int = 200,
    size: int = 128,
    stretches: list[float] | None = None,
    smooths: list[float] | None = None,
    root: str | None = None,
    folder: str = "runs/style/optimizers",
    wandb: Recording = "offline",
) -> None:
    """Section 2: the loss (eq. 7) after 200 evaluations, by the suite's optimizer and by torch's L-BFGS.

    All minimise the loss of the recipes, and start from the photograph with a noise of one grey level, which
    decides where they end. Three other programs have L-BFGS with their own settings. Those of ours,
    ``stretch`` and ``smooth``, are chosen on three packaged pairs of images. The folder gets
    ``losses.csv``, ``results.csv``, ``losses.png`` and a W&B run, and the same command resumes after an
    interruption. The paper gives no losses.

    Args:
        pairs: Content and style images: files, or names of packaged images. Default: three pairs of the files
            content_chelsea.jpg, content_astronaut.jpg, style_starry_night.jpg, style_shipwreck.jpg and
            style_the_scream.jpg in the folder ``images`` of ``root``.
        seeds: Starts of each, which differ in the noise.
        evaluations: Of the loss and its gradient.
        size: Longer side of the images, in pixels.
        stretches: Values to choose from. Default: 1, 2 and 4.
        smooths: Likewise. Default: 0.005, 0.01, 0.02 and 0.05.
        root: Folder with the images and the weights of VGG-19. Default: the environment variable
            PL_LOSSES_DATA; the extra ``style`` brings the weights.
        folder: For the results. A folder with a part of them is resumed.
        wandb: Whether W&B records the tables and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, or the folder has the results of other arguments.
        OSError: If there are no weights, or an image is missing.
    """
    check_counts(seeds=seeds, evaluations=evaluations)
    check_integer("size", size, 16)
    check_some(pairs=pairs, stretches=stretches, smooths=smooths)
    for name, values in {"stretches": stretches, "smooths": smooths}.items():
        for value in values or []:
            check_positive(name, value)
    grid = product(stretches or [1.0, 2.0, 4.0], smooths or [0.005, 0.01, 0.02, 0.05])
    settings = list(dict.fromkeys(grid))
    for given in pairs or []:
        if len(given) != 2:
            raise ValueError(f"Expected `pairs` of a content and a style image but got {given}")
    kept = Experiment("style/optimizers", folder, {"evaluations": evaluations, "size": size})
    kept.also |= {"pairs": pairs, "seeds": seeds, "stretches": stretches, "smooths": smooths}
    reported: list[tuple[str, ...]] = [*dict.fromkeys(tuple(pair) for pair in pairs or PAIRS)]
    # Opened first, so that a missing image is refused before work starts.
    modules = {pair: Pictures(pair[0], pair[1], size, root=root) for pair in [*HELD_OUT, *reported]}
    shown = {pair: data.pictures() for pair, data in modules.items()}
    sums = {pair: data.identity()["train"]["checksum"] for pair, data in modules.items()}
    names = [" in the style of ".join(map(title, pair)) for pair in reported]
    if len(set(names)) < len(names):
        names = [" in the style of ".join(pair) for pair in reported]
    done = {(*one["pair"], one["way"], one["seed"], *one["setting"]): one for one in kept.results}

    weights = weights_of(root)

    def check(pair: tuple[str, ...]) -> None:
        kept.same_input(f"the images {' and '.join(pair)}", sums[pair])
        kept.same_input(*weights)

    for one in kept.results:
        if (pair := tuple(one["pair"])) in sums:
            check(pair)
    used: set[tuple[object, ...]] = set()

    def losses(pair: tuple[str, ...], way: str, seed: int, setting: tuple[float, ...] = ()) -> list[float]:
        if (key := (*pair, way, seed, *setting)) not in done:
            check(pair)
            started = process_time()
            objective = objective_of(shown[pair], root)
            contents = shown[pair].contents
            noise = torch.randn(contents.shape, generator=torch.Generator().manual_seed(seed)) / WHITE
            options: dict[str, Any] = dict(zip(NAMES, setting, strict=False))
            program = OTHERS.get(way) or Way(partial(MonotoneLBFGS, **options))
            found = minimise(objective, contents + noise, program, evaluations)
            result = {"pair": list(pair), "way": way, "seed": seed, "setting": list(setting)}
            done[key] = result | {"losses": found, "seconds": process_time() - started}
            kept.add(done[key])
        used.add(key)
        bar.update()
        bar.set_description(f"{way}, {title(pair[0])}")
        return list(done[key]["losses"])

    with progress_bar(len(HELD_OUT) * len(settings) + seeds * len(reported) * (1 + len(OTHERS))) as bar:
        # The product, because the losses of the pairs differ in scale.
        tried = {one: prod(min(losses(pair, OURS, CHOICE, one)) for pair in HELD_OUT) for one in settings}
        best = min(tried, key=lambda one: tried[one])
        curves: dict[str, dict[str, list[list[float]]]] = {}
        for name, pair in zip(names, reported, strict=True):
            curves[name] = {
                way: [losses(pair, way, seed, best if way == OURS else ()) for seed in range(seeds)]
                for way in (OURS, *OTHERS)
            }
    seconds = sum(done[key]["seconds"] for key in used) / len(reported)
    lowest = {
        name: {way: [min(values) for values in starts] for way, starts in by_way.items()}
        for name, by_way in curves.items()
    }
    above = {one: 100 * (value / tried[best] - 1) for one, value in tried.items()}
    scores = with_scores((dict(zip(NAMES, one, strict=True)), value) for one, value in above.items())
    chosen = f"stretch {best[0]:g}, smooth {best[1]:g}"
    choice = f"{chosen} (held out, % above the lowest: {scores})"
    about = f"loss after {evaluations} evaluation{'s' * (evaluations > 1)}, eq. 7"
    rows: list[Row] = []
    for name, by_way in lowest.items():
        for way, values in by_way.items():
            low, high = interval(values) if seeds > 1 else (None, None)
            row = Row(f"{name}, {way}", about, mean(values), low, high, seeds)
            if way == OURS:  # All that the pair took.
                row = replace(row, seconds=seconds, chosen=chosen if rows else choice)
            rows.append(row)
    table = [
        {"pair": name, "way": way, "seed": seed, "loss": value}
        for name, by_way in lowest.items()
        for way, values in by_way.items()
        for seed, value in enumerate(values)
    ]
    report(kept, wandb, rows, pictures={"losses": draw(curves)}, tables={"losses": table})


def title(file: str) -> str:
    """Return what an image shows by the name of its file.

    >>> title("style_the_scream.jpg"), title("china")
    ('the scream', 'china')
    """
    return Path(file).stem.removeprefix("content_").removeprefix("style_").replace("_", " ").replace("-", " ")


def weights_of(root: str | None) -> tuple[str, str]:
    """Return the words and the checksum of the weights that the loss is made with."""
    file = find_oxford(root or os.environ.get("PL_LOSSES_DATA"))
    return "the weights of VGG-19", checksum(file) if file else ""


def objective_of(shown: PictureSet, root: str | None) -> Objective:
    """Build the recipes' loss of a pair of images."""
    model = StyleTransfer()
    objective = model.configure_objective(model.configure_features(root or os.environ.get("PL_LOSSES_DATA")))
    objective.set_targets(shown.contents, shown.styles)
    return objective


def minimise(objective: Objective, start: Tensor, way: Way, evaluations: int) -> list[float]:
    """Return the loss of each evaluation.

    Args:
        objective: The loss of an image of values in [0, 1].
        start: The first image, [1, 3, H, W].
        way: How to minimise it.
        evaluations: How many there are.
    """
    image, losses = (start * way.scale).requires_grad_(), list[float]()
    optimizer = way.optimizer([image])

    def closure() -> float:
        if len(losses) == evaluations:
            raise Enough
        if way.clamp:
            with torch.no_grad():
                image.clamp_(0, way.scale)
        optimizer.zero_grad()
        loss, _ = objective(image / way.scale)
        loss.backward()
        losses.append(float(loss.detach()))
        return losses[-1]

    with suppress(Enough):
        before = -1
        while before < len(losses):  # An optimizer that has converged evaluates nothing more.
            before = len(losses)
            optimizer.step(closure)
    return losses


class Enough(Exception):
    """The loss was evaluated as often as wanted."""


def draw(curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> Figure:
    """Draw the lowest loss so far, divided by that of the suite's optimizer: a panel for each pair."""
    figure = new_figure(3.4 * len(curves), 3.8)
    panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for axes, (name, by_way) in zip(panels, curves.items(), strict=True):
        means = {way: _falling(starts) for way, starts in by_way.items()}
        for way, values in means.items():
            ratios = [value / ours for value, ours in zip(values, means[OURS], strict=False)]
            axes.plot(range(1, 1 + len(ratios)), ratios, label=way)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("evaluations")
        axes.grid(alpha=0.3)
    panels[0].set_ylim(0.8, 1.5)
    panels[0].set_ylabel(f"loss, divided by that of {OURS}", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _falling(starts: Sequence[Sequence[float]]) -> list[float]:
    """Return the lowest loss so far, its mean over the starts."""
    return [mean(values) for values in zip(*(accumulate(one, min) for one in starts), strict=False)]
