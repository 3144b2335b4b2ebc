"""LeNet-5 training, images per second at batch 64: the recipe, a tutorial's loop, and the floor.

Run with ``python -m benchmarks.lenet``. All train the same network on the same criterion with Adam. The
recipe is ``lenet/mnist`` through its Trainer with default logging (W&B offline, progress bar); the tutorial's
loop takes its batches from torchvision's MNIST and a DataLoader; the floor is the bare loop over preloaded,
scaled tensors. They take turns, and medians are compared.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable
from statistics import median
from time import perf_counter

import lightning.pytorch as pl
import torch
from torch import Tensor

from benchmarks.loader import images, per_sample
from pl_losses import LeNet5
from pl_losses.cli.lightning_cli import run
from pl_losses.data import MNIST

BATCH, STEPS, REPEATS = 64, 400, 5


class Clock(pl.Callback):
    """Times the steps after the first few, which warm up; the command line makes its own instance."""

    started = 0.0
    seconds = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        if batch_idx == 20:
            self.started = perf_counter()

    def on_train_batch_end(self, *_: object, **__: object) -> None:
        Clock.seconds = perf_counter() - self.started


def recipe(folder: str) -> float:
    flags = [
        *(
            "--config",
            "lenet/mnist",
            "--trainer.max_epochs",
            "1",
            "--trainer.limit_train_batches",
            str(STEPS),
        ),
        *(
            "--test_after_fit",
            "false",
            "--trainer.callbacks+=benchmarks.lenet.Clock",
            "--trainer.max_steps",
            str(STEPS),
        ),
    ]
    with (
        contextlib.chdir(folder),
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stderr(nothing),
        contextlib.redirect_stdout(nothing),
    ):
        run(["fit", *flags])
    from benchmarks import lenet

    return (STEPS - 20) * BATCH / lenet.Clock.seconds


def plain(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    torch.manual_seed(0)
    model = LeNet5()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step, (inputs, target) in enumerate(batches):
        if step == 20:
            started = perf_counter()
        optimizer.zero_grad()
        model.compute_loss(model(inputs), target).backward()
        optimizer.step()
        if step == STEPS - 1:
            return (STEPS - 20) * BATCH / (perf_counter() - started)
    raise RuntimeError(f"Expected at least {STEPS} batches but got {step + 1}")


def preloaded(inputs: Tensor, target: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(inputs)).split(BATCH)
    return ((inputs[index], target[index]) for index in order)


def rows() -> list[tuple[str, float, float]]:
    """Name, median images per second, and the median ratio of the recipe to it, turn by turn."""
    pixels, labels, _ = images()
    data = MNIST(val_size=0)
    data.prepare_data()
    data.setup("fit")
    padded, target = data.tensors["train"]
    inputs, _ = data.eval_transform((padded, target), torch.Generator())
    with tempfile.TemporaryDirectory() as folder:
        contestants: dict[str, Callable[[], float]] = {
            "recipe lenet/mnist (Trainer, W&B offline)": lambda: recipe(folder),
            "tutorial loop, torchvision, 0 workers": lambda: plain(
                per_sample(pixels, labels, 0, BATCH, 60_000)
            ),
            "tutorial loop, torchvision, 2 workers": lambda: plain(
                per_sample(pixels, labels, 2, BATCH, 60_000)
            ),
            "floor: bare loop, preloaded tensors": lambda: plain(preloaded(inputs, target)),
        }
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(REPEATS):
            for name, contestant in contestants.items():
                speeds[name].append(contestant())
    ours = next(iter(speeds.values()))
    return [
        (name, median(values), median(mine / other for mine, other in zip(ours, values, strict=True)))
        for name, values in speeds.items()
    ]


def main() -> None:
    """Print the table."""
    print(f"LeNet-5 training, batch {BATCH}, {torch.get_num_threads()} threads, {REPEATS} turns\n")
    print("| loop | images/s | recipe is faster by |\n| --- | ---: | ---: |")
    for name, speed, ratio in rows():
        print(f"| {name} | {speed:,.0f} | {ratio:.2f}x |")


if __name__ == "__main__":
    main()
