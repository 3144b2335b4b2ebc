"""What a second rank costs: collectives and numbers sent per step, and processor time per sample.

Run with ``python -m benchmarks.ranks [module ...]``. Each module trains on two gloo ranks of the CPU, one
thread each, and in one process, with the same samples in a step. Collectives are those that torch's profiler
sees in rank zero's steps, DDP's own among them; a number is one element of what a rank sends. Processor time
is the sum over both ranks, divided by that of one process. "No exchange" is the same for two processes that
do not know of each other: what smaller batches cost anyway. Medians over turns.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from pl_losses import GAN, DenoisingAutoencoder, DropoutClassifier, FullBasicModel, LeNet5, RectifierNet
from pl_losses.data.module import TensorDataModule
from pl_losses.papers.adam import MLP, VAE, ConvNet
from pl_losses.strategies import DDPPerModule

BATCH, WARM_UP, STEPS, TURNS = 128, 5, 25, 3
PROFILED = 4
adam = partial(torch.optim.Adam, lr=1e-3)
Make = Callable[[], pl.LightningModule]
MODULES: dict[str, tuple[Make, tuple[int, ...]]] = {
    "LeNet5": (LeNet5, (1, 32, 32)),
    "RectifierNet": (partial(RectifierNet, stages=[[16, 16], [32, 32]], hidden_size=64), (1, 32, 32)),
    "MLP": (partial(MLP, 784, [256, 256]), (1, 28, 28)),
    "ConvNet": (partial(ConvNet, 10, 1, out_channels=[16, 16, 32], hidden_size=64), (1, 32, 32)),
    "VAE": (partial(VAE, 784, 256, 20), (1, 28, 28)),
    "DenoisingAutoencoder": (partial(DenoisingAutoencoder, 784, 500), (1, 28, 28)),
    "DropoutClassifier": (DropoutClassifier, (1, 32, 32)),
    "FullBasicModel": (FullBasicModel, (1, 28, 28)),
    "GAN": (partial(GAN, 64, width=8), (1, 32, 32)),
}


class Images(TensorDataModule):
    """Random images of ten classes."""

    def __init__(self, batch_size: int, shape: tuple[int, ...]) -> None:
        super().__init__(batch_size)
        self.shape = shape

    def load(self, stage: str) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        count = (WARM_UP + STEPS) * BATCH
        labels = torch.randint(10, (count,), generator=generator)
        return {"train": (torch.rand(count, *self.shape, generator=generator), labels)}


class Meter(pl.Callback):
    """Processor seconds of the steps, or what a few steps send."""

    def __init__(self, profiled: bool) -> None:
        self.profiled = profiled
        self.seconds, self.sent = 0.0, [0.0, 0.0]

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == WARM_UP:
            self.seconds = -process_time()
            if self.profiled:
                cpu = [torch.profiler.ProfilerActivity.CPU]
                self.profiler = torch.profiler.profile(activities=cpu, record_shapes=True)
                self.profiler.start()
        if batch_idx == WARM_UP + PROFILED and self.profiled:
            self.profiler.stop()
            for event in self.profiler.events() or ():
                if event.name.startswith("gloo:"):
                    numbers = sum(prod(shape) for shape in event.input_shapes)
                    self.sent = [self.sent[0] + 1 / PROFILED, self.sent[1] + numbers / PROFILED]

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == WARM_UP + STEPS - 1:
            self.seconds += process_time()


def fit(name: str, ranks: int, batch: int, profiled: bool = False) -> Meter:
    make, shape = MODULES[name]
    strategy = DDPPerModule if name == "GAN" else DDPStrategy
    torch.manual_seed(0)
    module, meter = make(), Meter(profiled)
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy(process_group_backend="gloo") if ranks > 1 else "auto",
        max_epochs=1,
        limit_val_batches=0,
        callbacks=[meter],
        **dict.fromkeys(quiet, False),
    )
    trainer.fit(module, Images(batch, shape))
    return meter


def on_a_rank(rank: int, folder: str, names: list[str], alone: bool) -> None:
    """Write down the seconds of each module on this rank."""
    torch.set_num_threads(1)
    if not alone:
        elastic = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        elastic |= {"MASTER_ADDR": "localhost", "MASTER_PORT": 0, "TORCHELASTIC_RUN_ID": "benchmark"}
        os.environ.update({key: str(value) for key, value in elastic.items()})
        store = distributed.FileStore(str(Path(folder, "store")), 2)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {}
    for name in names:
        if not alone:
            distributed.barrier()
        meter = fit(name, 1 if alone else 2, BATCH // 2)
        found[name] = [meter.seconds, *([0, 0] if alone else fit(name, 2, BATCH // 2, True).sent)]
    torch.save(found, Path(folder, f"{rank}.pt"))


def both(names: list[str], alone: bool) -> dict[str, list[float]]:
    """Seconds of both ranks together, and what rank zero sends: collectives and numbers in a step."""
    with tempfile.TemporaryDirectory() as folder:
        work = (folder, names, alone)
        torch.multiprocessing.start_processes(on_a_rank, work, nprocs=2, start_method="fork")
        first, second = (torch.load(Path(folder, f"{rank}.pt")) for rank in range(2))
    return {name: [first[name][0] + second[name][0], *first[name][1:]] for name in names}


def main() -> None:
    """Print the table."""
    names = [one for one in MODULES if not sys.argv[1:] or one in sys.argv[1:]]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.chdir(tempfile.gettempdir())
    turns = []
    for _ in range(TURNS):
        # Forked first: a process with gloo's threads is not to be forked.
        ddp, alone = both(names, alone=False), both(names, alone=True)
        turns.append((ddp, alone, {name: fit(name, 1, BATCH).seconds for name in names}))
    print("| a step, batch 128 | collectives | numbers sent | weights | two ranks | no exchange |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in names:
        _, collectives, numbers = turns[0][0][name]
        weights = sum(one.numel() for one in MODULES[name][0]().parameters() if one.requires_grad)
        two = median(ddp[name][0] / one[name] for ddp, _, one in turns)
        apart = median(alone[name][0] / one[name] for _, alone, one in turns)
        print(f"| {name} | {collectives:g} | {numbers:,.0f} | {weights:,} | {two:.2f}x | {apart:.2f}x |")


if __name__ == "__main__":
    main()
