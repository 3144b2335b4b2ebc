"""What checkpoints in the course of a fit cost: ``python -m benchmarks.checkpoints [--seconds 70]``.

First a save alone, of a file of LeNet-5's size, of 100 MB and of 1 GB: with its checksum and until it is on
the disk, beside ``torch.save``. Then fits of LeNet-5 on the packaged digits, with and without such
checkpoints at the default interval, which take turns; the callback's own time is a share of the fit.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import lightning.pytorch as pl
import torch

from pl_losses import LeNet5
from pl_losses.cli.checkpoints import WholeCheckpointIO
from pl_losses.core.files import save_sealed
from pl_losses.data import Digits
from pl_losses.monitoring.interruption import InterruptionCheckpoint
from pl_losses.monitoring.record import RunRecord

SIZES = {"LeNet-5": (0.7, 9), "100 MB": (100, 5), "1 GB": (1000, 3)}  # Megabytes, and how often.


def milliseconds(function: Callable[[], object]) -> float:
    began = perf_counter()
    function()
    return 1000 * (perf_counter() - began)


def saves(folder: Path) -> None:
    """Print the time of one save."""
    print("| a save of | ms | ms of torch.save alone |\n| --- | ---: | ---: |")
    for name, (size, repeats) in SIZES.items():
        state = {"a": torch.randn(int(size * 1e6 / 4))}
        ours, plain = [], []
        for _ in range(repeats):
            ours.append(milliseconds(lambda: save_sealed(folder / "x.ckpt", state)))  # noqa: B023
            plain.append(milliseconds(lambda: torch.save(state, folder / "y.ckpt")))  # noqa: B023
        print(f"| {name} | {median(ours):.0f} | {median(plain):.0f} |", flush=True)
        for file in folder.iterdir():
            file.unlink()


class Timed(InterruptionCheckpoint):
    """Counts its own time, and its saves."""

    seconds, saved = 0.0, 0

    def on_train_batch_end(self, *args: Any) -> None:
        began = perf_counter()
        super().on_train_batch_end(*args)
        self.seconds += perf_counter() - began

    def on_train_epoch_end(self, *args: Any) -> None:
        began = perf_counter()
        super().on_train_epoch_end(*args)
        self.seconds += perf_counter() - began

    def _save_recent(self, trainer: pl.Trainer) -> None:
        super()._save_recent(trainer)
        self.saved += 1


def fit(folder: Path, seconds: float, callback: Timed | None, record: RunRecord) -> tuple[float, float]:
    """A fit of so many seconds: its seconds, and its processor's milliseconds per step."""
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        max_time={"seconds": round(seconds)},
        max_epochs=-1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record, *([callback] if callback else [])],
    )
    trainer.strategy.checkpoint_io = WholeCheckpointIO()
    model = LeNet5(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
    began, spent = perf_counter(), process_time()
    trainer.fit(model, Digits())
    return perf_counter() - began, 1000 * (process_time() - spent) / trainer.global_step


def fits(folder: Path, seconds: float, repeats: int) -> None:
    """Print what the callback takes of a fit."""
    torch.set_num_threads(1)
    ratios, shares, saved = [], [], 0
    for turn in range(repeats):
        record = RunRecord({}, [])
        callback = Timed(record, lambda message: None)
        _, without = fit(folder / f"without-{turn}", seconds, None, RunRecord({}, []))
        taken, with_them = fit(folder / f"with-{turn}", seconds, callback, record)
        ratios.append(with_them / without)
        shares.append(callback.seconds / taken)
        saved += callback.saved
    print(f"\n| fits of LeNet-5, {repeats} turns of {seconds:.0f} s, {saved} checkpoints | |\n| --- | ---: |")
    print(f"| the callback's share of a fit (at most 1 %) | {100 * median(shares):.2f} % |")
    print(f"| processor time per step, with / without | {median(ratios):.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=70, help="of a fit")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        saves(Path(folder))
        fits(Path(folder), given.seconds, given.repeats)


if __name__ == "__main__":
    main()
