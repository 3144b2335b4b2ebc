"""Stacked denoising autoencoders: a stage's step beside a plain loop, and what cached codes save.

Run with ``python -m benchmarks.sdae``. Steps: layer 1 (784-1000-784, a quarter masked, batch 128) under a
Trainer that logs as a recipe does (every 50th step), beside a loop by hand of the same work: the same noise,
torch's fused loss and fused Adam. Codes: steps of the third of three layers of 1000 units, with the codes of
the two below computed once, and computed with each batch. The contestants take turns, and ratios of processor
time within a turn are compared.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

from pl_losses import StackedDenoisingAutoencoder
from pl_losses.data.loader import Batch
from pl_losses.data.module import TensorDataModule

BATCH, WARM_UP, STEPS, TURNS = 128, 5, 40, 5


class Images(TensorDataModule):
    """Random images in [0, 1]."""

    def load(self, stage: str) -> dict[str, Batch]:
        images = torch.rand((STEPS + WARM_UP) * BATCH, 784, generator=torch.Generator().manual_seed(0))
        return {"train": (images, torch.zeros(len(images), dtype=torch.long))}


class Clock(pl.Callback):
    """Processor time of the steps after those that warm up."""

    seconds = 0.0

    def __init__(self, epoch: int = 0) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.current_epoch == self.epoch and args[2] == WARM_UP:
            self.seconds = -process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.current_epoch == self.epoch and args[3] == STEPS + WARM_UP - 1:
            self.seconds += process_time()


def under_trainer(mode: Any, layers: int = 1, cached: bool = True) -> float:
    """Seconds of a step of the last layer."""
    torch.manual_seed(0)
    model = StackedDenoisingAutoencoder(
        hidden=[1000] * layers,
        mode=mode,
        # Two epochs of the last layer: its codes are computed in the first.
        pretrain_epochs=[0] * (layers - 1) + [2],
        cache_codes=cached,
        pretrain_optimizer=lambda parameters: torch.optim.Adam(parameters, fused=True),
    )
    clock = Clock(epoch=1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=CSVLogger(folder),
            log_every_n_steps=50,
            callbacks=[clock],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, Images(BATCH))
    return clock.seconds / STEPS


def plain(mode: Any) -> float:
    """Seconds of a step of a loop by hand."""
    torch.manual_seed(0)
    data = Images(BATCH)
    data.setup("fit")
    images = data.tensors["train"][0]
    weight = torch.nn.Parameter(torch.empty(1000, 784))
    torch.nn.init.xavier_uniform_(weight, gain=4.0)
    hidden, visible = torch.nn.Parameter(torch.zeros(1000)), torch.nn.Parameter(torch.zeros(784))
    optimizer = torch.optim.Adam([weight, hidden, visible], fused=True)
    started = 0.0
    for step, chosen in enumerate(torch.randperm(len(images)).split(BATCH)):
        if step == WARM_UP:
            started = process_time()
        clean = images.index_select(0, chosen)
        keys = torch.rand(clean.shape)
        if mode == "bernoulli":
            touched = keys < 0.25
        else:
            touched = torch.zeros_like(keys, dtype=torch.bool)
            touched.scatter_(1, keys.topk(196, dim=1, sorted=False).indices, True)
        codes = F.linear(clean.masked_fill(touched, 0), weight, hidden).sigmoid()
        decoded = F.linear(codes, weight.t(), visible)
        loss = F.binary_cross_entropy_with_logits(decoded, clean, reduction="sum") / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (process_time() - started) / STEPS


def compare(ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, float, float]:
    """Median seconds of both, and the median over turns of theirs over ours."""
    turns = [(ours(), theirs()) for _ in range(TURNS + 1)][1:]  # The first one warms up.
    return (
        median(one for one, _ in turns),
        median(other for _, other in turns),
        median(other / one for one, other in turns),
    )


def main() -> None:
    """Print both tables; ``steps`` or ``codes`` as an argument prints one."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if "codes" not in sys.argv[1:]:
        print("| a step of layer 1 | ours, ms | plain loop, ms | speed, of the plain loop's |")
        print("| --- | ---: | ---: | ---: |")
        for mode in ("bernoulli", "exact"):
            one, other, ratio = compare(lambda m=mode: under_trainer(m), lambda m=mode: plain(m))
            print(f"| {mode} masks | {1000 * one:.1f} | {1000 * other:.1f} | {ratio:.2f}x |", flush=True)
    if "steps" not in sys.argv[1:]:
        one, other, ratio = compare(
            lambda: under_trainer("bernoulli", 3), lambda: under_trainer("bernoulli", 3, cached=False)
        )
        print("\n| a step of layer 3 | codes cached, ms | computed with each batch, ms | faster by |")
        print(f"| --- | ---: | ---: | ---: |\n| | {1000 * one:.1f} | {1000 * other:.1f} | {ratio:.2f}x |")


if __name__ == "__main__":
    main()
