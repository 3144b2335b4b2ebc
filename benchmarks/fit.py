"""What the command adds to a run: ``pl-losses fit`` beside Lightning's own CLI with the same work.

Run with ``python -m benchmarks.fit``. Each contestant trains, tests and draws `lenet/digits` in a process of
its own, imports included, for one pass and for twenty. Seconds are processor time, one thread; the ratio
is the median of those of turns.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import yaml

TURNS = 5

STOCK = """
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI

cli = LightningCLI(
    LightningModule, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True, run=False
)
cli.trainer.fit(cli.model, cli.datamodule)
cli.trainer.test(cli.model, cli.datamodule, ckpt_path="best")
"""


def main() -> None:
    for passes in (1, 20):
        ours, stock = [], []
        for _ in range(TURNS):
            with tempfile.TemporaryDirectory() as folder:
                ours.append(run(folder, "-m", "pl_losses", *options(passes)))
                (file,) = Path(folder).glob("runs/**/config.yaml")
                config = Path(folder, "stock.yaml")
                config.write_text(yaml.safe_dump(as_stock(yaml.safe_load(file.read_text()))))
                stock.append(run(folder, "-c", STOCK, "--config", str(config)))
        ratio = median(one / other for one, other in zip(ours, stock, strict=True))
        print(f"{passes} passes: pl-losses fit {median(ours):.1f} s, Lightning's CLI {median(stock):.1f} s")
        print(f"  ours over Lightning's: {ratio:.2f} (at most 1)", flush=True)


def options(passes: int) -> list[str]:
    return ["fit", "--config", "lenet/digits", "--trainer.max_epochs", str(passes)]


def as_stock(config: dict) -> dict:
    """Give Lightning's CLI the callback that the command adds on its own."""
    del config["test_after_fit"]
    kept = {"monitor": "val/error", "save_last": True}
    config["trainer"]["callbacks"].append({"class_path": "ModelCheckpoint", "init_args": kept})
    return config


def run(folder: str, *command: str) -> float:
    """Return the processor time of a command and of its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
