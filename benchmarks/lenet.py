"""LeNet-5 training, images per second at batch 64: the recipe, a tutorial's loop, and the floor.

Run with ``python -m benchmarks.lenet``. All train the same network on the same criterion with Adam. The
recipe is ``lenet/mnist`` through its Trainer with default logging (W&B offline, progress bar); the
tutorial's loop takes its batches from torchvision's MNIST and a DataLoader; the floor is the bare loop over
preloaded, scaled tensors. Both have the network as it is usually written, with torch's tanh and pooling; the
floor also has the suite's layers. What Lightning itself takes is a bare module that logs its loss, under a
Trainer without a logger. They take turns, and medians are compared: by the clock, and by this process's
processor time, which leaves out workers and is less disturbed by other jobs.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable
from time import perf_counter, process_time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.loader import images, per_sample
from pl_losses import LeNet5
from pl_losses.cli.lightning_cli import run
from pl_losses.data import MNIST
from pl_losses.papers.lenet.layers import AMPLITUDE, SLOPE, ScaledTanh, SubSampling

BATCH, STEPS, REPEATS = 64, 400, 5


def now() -> Tensor:
    """Return seconds by the clock and of the processor, [2]."""
    return torch.tensor([perf_counter(), process_time()], dtype=torch.float64)


class Clock(pl.Callback):
    """Times the steps after the first few, which warm up; the command line makes its own instance."""

    started = torch.zeros(2)
    seconds = torch.zeros(2)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        if batch_idx == 20:
            self.started = now()

    def on_train_batch_end(self, *_: object, **__: object) -> None:
        Clock.seconds = now() - self.started


def recipe(folder: str) -> Tensor:
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


class Tanh(nn.Module):
    def forward(self, activation: Tensor) -> Tensor:
        return AMPLITUDE * torch.tanh(SLOPE * activation)


class Pooling(SubSampling):
    def forward(self, maps: Tensor) -> Tensor:
        total = F.avg_pool2d(maps, 2, divisor_override=1)
        return total * self.coefficient[:, None, None] + self.bias[:, None, None]


def as_usual(network: nn.Module) -> None:
    """Replace the suite's layers by those that one writes."""
    for name, layer in network.named_children():
        if isinstance(layer, ScaledTanh):
            setattr(network, name, Tanh())
        elif isinstance(layer, SubSampling):
            layer.__class__ = Pooling
        else:
            as_usual(layer)


def plain(batches: Iterable[tuple[Tensor, Tensor]], usual: bool = True) -> Tensor:
    torch.manual_seed(0)
    model = LeNet5()
    if usual:
        as_usual(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step, (inputs, target) in enumerate(batches):
        if step == 20:
            started = now()
        optimizer.zero_grad()
        model.compute_loss(model(inputs), target).backward()
        optimizer.step()
        if step == STEPS - 1:
            return (STEPS - 20) * BATCH / (now() - started)
    raise RuntimeError(f"Expected at least {STEPS} batches but got {step + 1}")


class Bare(pl.LightningModule):
    """The network and its criterion, and nothing else that the recipe does."""

    def __init__(self) -> None:
        super().__init__()
        self.model = LeNet5()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.model.compute_loss(self.model(batch[0]), batch[1])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def lightning(data: MNIST) -> Tensor:
    options: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    torch.manual_seed(0)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=STEPS, limit_val_batches=0, callbacks=[clock := Clock()], **options
    )
    trainer.fit(Bare(), data)
    return (STEPS - 20) * BATCH / clock.seconds


def preloaded(inputs: Tensor, target: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(inputs)).split(BATCH)
    return ((inputs[index], target[index]) for index in order)


def rows() -> list[tuple[str, float, list[float]]]:
    """Name, median images per second, and the median ratios of the recipe to it, turn by turn."""
    pixels, labels, _ = images()
    data = MNIST(val_size=0, batch_size=BATCH)
    data.prepare_data()
    data.setup("fit")
    padded, target = data.tensors["train"]
    inputs, _ = data.eval_transform((padded, target), torch.Generator())
    with tempfile.TemporaryDirectory() as folder:
        contestants: dict[str, Callable[[], Tensor]] = {
            "recipe lenet/mnist (Trainer, W&B offline)": lambda: recipe(folder),
            "a bare LightningModule": lambda: lightning(data),
            "tutorial loop, torchvision, 0 workers": lambda: plain(
                per_sample(pixels, labels, 0, BATCH, 60_000)
            ),
            "tutorial loop, torchvision, 2 workers": lambda: plain(
                per_sample(pixels, labels, 2, BATCH, 60_000)
            ),
            "floor: bare loop, preloaded tensors": lambda: plain(preloaded(inputs, target)),
            "the floor with the suite's layers": lambda: plain(preloaded(inputs, target), usual=False),
        }
        speeds: dict[str, list[Tensor]] = {name: [] for name in contestants}
        for _ in range(REPEATS):
            for name, contestant in contestants.items():
                speeds[name].append(contestant())
    ours = torch.stack(next(iter(speeds.values())))
    return [
        (name, float(every[:, 0].median()), (ours / every).median(dim=0).values.tolist())
        for name, every in ((name, torch.stack(values)) for name, values in speeds.items())
    ]


def main() -> None:
    """Print the table."""
    print(f"LeNet-5 training, batch {BATCH}, {torch.get_num_threads()} threads, {REPEATS} turns\n")
    print("| loop | images/s | recipe is faster by | by processor time |\n| --- | ---: | ---: | ---: |")
    for name, speed, (clock, processor) in rows():
        print(f"| {name} | {speed:,.0f} | {clock:.2f}x | {processor:.2f}x |")


if __name__ == "__main__":
    main()
