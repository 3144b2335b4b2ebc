"""Vincent et al. 2010, section 6.2: SDAE-3 beside SAE-3 and a random start, on the generated variations.

``pl-losses reproduce sdae/variations`` trains all three on the same images for the same number of epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import hypot
from statistics import mean
from time import process_time
from typing import Any

import torch

from pl_losses.core.experiment import Experiment, Recording, names_of, quiet
from pl_losses.core.protocol import plain_trainer, report
from pl_losses.core.results import Row, interval
from pl_losses.core.validation import check_counts, check_positive
from pl_losses.data.variations import NAMES, Name, Variations
from pl_losses.papers.sdae.module import StackedDenoisingAutoencoder

METHODS = ("SDAE-3", "SAE-3", "MLP-3")
# The paper's share of masked elements, for basic, bg-rand and so on.
LEVELS = {"basic-gen": 0.1, "bg-rand-gen": 0.4, "rect-gen": 0.1, "convex-gen": 0.1}
TABLE = "variations.csv"


def reproduce(
    variations: str | list[str] = "all",
    seeds: int = 5,
    source: str = "mnist",
    *,
    root: str | None = None,
    folder: str = "runs/sdae/variations",
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
    """Test errors of denoising and other networks (SDAE-3, SAE-3, MLP-3) on variations of the digits.

    All train on the same images for the same number of epochs, of which the random start (MLP-3) has all for
    supervised training; the weights with the lowest validation error are tested. The folder gets
    ``variations.csv``, a row for each training, ``results.csv``, ``results.png`` and a W&B run. The same
    command resumes after an interruption. The sets are not the published ones, nor are the errors comparable
    with the published.

    Args:
        variations: Names between commas, such as rot-gen,rect-gen; "all" are the eight.
        seeds: Trainings of each method; they differ in the start, the order and the noise, not in the images.
        source: Digits of "mnist", or the packaged ones, "digits".
        root: Folder with MNIST.
        folder: For the results.
        train_size: Training images. Default: as many as the original sets have.
        val_size: Validation images.
        test_size: Test images.
        hidden_size: Units of each of the three layers.
        pretrain_epochs: Epochs of each layer.
        finetune_epochs: Epochs of fine-tuning.
        pretrain_lr: Largest learning rate of pre-training (Adam, one cycle).
        finetune_lr: The same of fine-tuning.
        batch_size: Images per step.
        wandb: Whether W&B records the tables and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, or the folder has the results of other arguments.
    """
    names: list[Any] = names_of("variations", variations, list(NAMES))
    for name, rate in (("pretrain_lr", pretrain_lr), ("finetune_lr", finetune_lr)):
        check_positive(name, rate)
    check_counts(
        seeds=seeds, hidden_size=hidden_size, pretrain_epochs=pretrain_epochs, finetune_epochs=finetune_epochs
    )
    settings = {
        "source": source,
        "train_size": train_size,
        "val_size": val_size,
        "test_size": test_size,
        "hidden_size": hidden_size,
        "pretrain_epochs": pretrain_epochs,
        "finetune_epochs": finetune_epochs,
        "pretrain_lr": pretrain_lr,
        "finetune_lr": finetune_lr,
        "batch_size": batch_size,
    }
    kept = Experiment("sdae/variations", folder, settings)
    kept.also |= {"variations": variations, "seeds": seeds}
    rows = kept.results
    done = {(row["variation"], row["method"], row["seed"]) for row in rows}
    sizes: dict[str, Any] = {"train_size": train_size, "val_size": val_size, "test_size": test_size}
    # It refuses arguments out of range before any training.
    sets = {name: _data(name, source, root, batch_size, sizes) for name in names}
    for seed in range(seeds):
        for name, data in sets.items():
            for method in METHODS:
                if (name, method, seed) not in done:
                    kept.add(_train(name, method, seed, data, settings))
                    kept.table(TABLE, rows)
                    print(_line(rows[-1]), flush=True)
    shown = [row for row in rows if row["variation"] in names and row["seed"] < seeds]
    print(f"\n{table(shown)}\n")
    report(kept, wandb, beside(shown), tables={"variations": rows})


def _data(name: Name, source: Any, root: str | None, batch_size: int, sizes: dict[str, Any]) -> Variations:
    return Variations(name, source=source, root=root, batch_size=batch_size, **sizes)


def configure(method: str, name: str, settings: dict[str, Any], seed: int = 0) -> StackedDenoisingAutoencoder:
    """Build the model of one of :data:`METHODS` for a variation.

    >>> settings = {"hidden_size": 5, "pretrain_epochs": 2, "pretrain_lr": 0.01, "finetune_lr": 0.01}
    >>> sae = configure("SAE-3", "rect-gen", settings)
    >>> sae.level, sae.pretrain_epochs, sae.num_classes
    (0.0, [2, 2, 2], 2)
    """

    level = LEVELS.get(name, 0.25) if method == "SDAE-3" else 0.0
    own = settings | {"pretrain_epochs": 0} if method == "MLP-3" else settings
    return stack(name, 3, level, own, seed=seed)


def stack(
    name: str, layers: int, level: float, settings: dict[str, Any], *, seed: int
) -> StackedDenoisingAutoencoder:
    """Build a model of so many layers for a variation, with a share of masked elements."""

    def cycle(largest: float) -> Any:
        return lambda optimizer, **options: torch.optim.lr_scheduler.OneCycleLR(optimizer, largest, **options)

    torch.manual_seed(seed)
    return StackedDenoisingAutoencoder(
        hidden=[settings["hidden_size"]] * layers,
        num_classes=2 if name.startswith(("rect", "convex")) else 10,
        level=level,
        mode="bernoulli",
        pretrain_epochs=settings["pretrain_epochs"],
        seed=seed,
        pretrain_optimizer=lambda parameters: torch.optim.Adam(parameters, fused=True),
        pretrain_lr_scheduler=cycle(settings["pretrain_lr"]),
        optimizer=lambda parameters: torch.optim.Adam(parameters, fused=True),
        lr_scheduler=cycle(settings["finetune_lr"]),
    )


def _train(name: str, method: str, seed: int, data: Variations, settings: dict[str, Any]) -> dict[str, Any]:
    started = process_time()
    model = configure(method, name, settings, seed)
    data.seed = seed
    with quiet():
        trainer = plain_trainer(max_epochs=3 * settings["pretrain_epochs"] + settings["finetune_epochs"])
        trainer.fit(model, data)
        (result,) = trainer.test(model, data, verbose=False)
    values = {end: result[f"test/error{end}"] for end in ("", "_low", "_high")}
    return {
        "variation": name,
        "method": method,
        "seed": seed,
        "error": values[""],
        "low": values["_low"],
        "high": values["_high"],
        "val_error": model.lowest_error,
        "seconds": round(process_time() - started, 1),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the mean test error of each method in percent, with its 95 % interval, and a verdict.

    The interval covers the seeds and the test images. SDAE-3 is named better if its mean is below the other's
    by more than the interval of their difference.

    >>> row = {"variation": "rot-gen", "seed": 0, "seconds": 60.0}
    >>> rows = [row | {"method": method, "error": error, "low": error - 0.005, "high": error + 0.005}
    ...         for method, error in (("SDAE-3", 0.1), ("SAE-3", 0.12), ("MLP-3", 0.105))]
    >>> print(table(rows))
    variation               SDAE-3            SAE-3            MLP-3   SDAE-3 better than
    rot-gen          10.00 +- 0.50    12.00 +- 0.50    10.50 +- 0.50   SAE-3
    """
    lines = [f"{'variation':<13}" + "".join(f"{method:>17}" for method in METHODS) + "   SDAE-3 better than"]
    found = {row.what: row for row in beside(rows)}
    for name in dict.fromkeys(row["variation"] for row in rows):
        known = {method: found[what] for method in METHODS if (what := f"{name}, {method}") in found}
        means = {method: (row.measured, _half(row)) for method, row in known.items()}
        ours = means.get("SDAE-3", (float("inf"), 0.0))
        beaten = [method for method, (error, half) in means.items() if error - ours[0] > hypot(half, ours[1])]
        cells = [f"{error:.2f} +- {half:.2f}" for error, half in means.values()]
        lines.append(f"{name:<13}" + "".join(f"{cell:>17}" for cell in cells) + "   " + ", ".join(beaten))
    return "\n".join(lines)


def _half(row: Row) -> float:
    return 0.0 if row.low is None or row.high is None else (row.high - row.low) / 2


def beside(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Make the rows of ``results.csv``.

    >>> row = {"variation": "rot-gen", "method": "SAE-3", "low": 0.09, "high": 0.11, "seconds": 60.0}
    >>> [found] = beside([row | {"seed": seed, "error": 0.1 + seed / 1000} for seed in (0, 1)])
    >>> found.what, round(found.measured, 2), found.seeds, found.seconds
    ('rot-gen, SAE-3', 10.05, 2, 120.0)
    """
    found = []
    for name, method in product(dict.fromkeys(row["variation"] for row in rows), METHODS):
        of = [row for row in rows if (row["variation"], row["method"]) == (name, method)]
        if of:
            errors = [100 * row["error"] for row in of]
            half = mean(50 * (float(row["high"]) - float(row["low"])) for row in of)
            ends, seconds = interval(errors, half / 1.96), sum(row["seconds"] for row in of)
            found.append(Row(f"{name}, {method}", "test error, %", mean(errors), *ends, len(of), seconds))
    return found


def _line(row: dict[str, Any]) -> str:
    error = f"{100 * row['error']:.2f} % ({100 * row['low']:.2f} to {100 * row['high']:.2f} %)"
    return f"{row['variation']}, {row['method']}, seed {row['seed']}: {error}, {row['seconds']:.0f} s"
