"""What the command adds to a run: ``pl-losses fit`` beside Lightning's own CLI and a loop with the same work.

Run with ``python -m benchmarks.fit``. Each contestant trains, tests and draws `lenet/digits` in a process of
its own, imports included, for one pass and for twenty (``--passes``). All log to W&B offline and keep the
best weights. The floor is a plain loop without Lightning. Seconds are processor time, one thread; ratios are
medians of those of turns.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import yaml

STOCK = """
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI

cli = LightningCLI(
    LightningModule, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True, run=False
)
cli.trainer.fit(cli.model, cli.datamodule)
cli.trainer.test(cli.model, cli.datamodule, ckpt_path="best")
"""

PLAIN = """
import sys
import matplotlib
matplotlib.use("agg")
import torch, wandb
from matplotlib import pyplot
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate, pad
from pl_losses.losses import map_loss
from pl_losses.papers.lenet.layers import LeNet5Features, RBFOutput, digit_codes

passes = int(sys.argv[1])
torch.manual_seed(0)
digits = load_digits()
large = interpolate(torch.from_numpy(digits.images).float()[:, None], size=(24, 24), mode="bilinear")
images = pad(large / 16, (4, 4, 4, 4)) * 1.275 - 0.1
labels = torch.from_numpy(digits.target)
train, val, test = torch.randperm(len(labels)).split([1197, 300, 300])
network = torch.nn.Sequential(LeNet5Features(), torch.nn.Flatten(), RBFOutput(digit_codes()))
optimizer = torch.optim.Adam(network.parameters())
total = passes * -(-len(train) // 32)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.003, total_steps=total)
best = 2.0
with wandb.init(project="plain", mode="offline") as run:
    for epoch in range(passes):
        wrong = 0
        for rows in train[torch.randperm(len(train))].split(32):
            optimizer.zero_grad()
            penalties = network(images[rows])
            loss = map_loss(penalties, labels[rows], 1.0)
            if not loss.isfinite():
                raise FloatingPointError(loss)
            loss.backward()
            optimizer.step()
            scheduler.step()
            wrong += (penalties.argmin(1) != labels[rows]).sum()
            if scheduler.last_epoch % 10 == 0:
                run.log({"train/loss": loss.item(), "trainer/global_step": scheduler.last_epoch})
        with torch.no_grad():
            penalties = network(images[val])
        error = (penalties.argmin(1) != labels[val]).float().mean().item()
        held_out = map_loss(penalties, labels[val], 1.0).item()
        run.log({"train/error": wrong / len(train), "val/error": error, "val/loss": held_out})
        torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, "last.pt")
        if error < best:
            best = error
            torch.save(network.state_dict(), "best.pt")
    network.load_state_dict(torch.load("best.pt"))
    with torch.no_grad():
        predicted = network(images[test]).argmin(1)
    missed = predicted != labels[test]
    run.log({"test/error": missed.float().mean().item()})
    confused = torch.zeros(10, 10).index_put_((labels[test], predicted), torch.ones(300), accumulate=True)
    pyplot.figure()
    pyplot.imshow(confused)
    for row in range(10):
        for column in range(10):
            pyplot.text(column, row, int(confused[row, column]))
    run.log({"test/confusion_matrix": wandb.Image(pyplot.gcf())})
    figure, axes = pyplot.subplots(4, 6, squeeze=False)
    for ax, at in zip(axes.flat, missed.nonzero().flatten().tolist()):
        ax.imshow(images[test][at, 0], cmap="gray_r")
        ax.set_title(f"{labels[test][at]} as {predicted[at]}")
    run.log({"test/errors": wandb.Image(figure)})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    for passes in given.passes:
        ours, stock, plain = [], [], []
        for _ in range(given.turns):
            with tempfile.TemporaryDirectory() as folder:
                ours.append(run(folder, "-m", "pl_losses", *options(passes)))
                (file,) = Path(folder).glob("runs/**/config.yaml")
                config = Path(folder, "stock.yaml")
                config.write_text(yaml.safe_dump(as_stock(yaml.safe_load(file.read_text()))))
                stock.append(run(folder, "-c", STOCK, "--config", str(config)))
                plain.append(run(folder, "-c", PLAIN, str(passes)))
        ratios = [median(a / b for a, b in zip(ours, others, strict=True)) for others in (stock, plain)]
        print(f"{passes} passes: pl-losses fit {median(ours):.1f} s, Lightning's CLI {median(stock):.1f} s,")
        print(f"  plain loop {median(plain):.1f} s; ours over Lightning's: {ratios[0]:.2f} (at most 1)")
        print(f"  ours over the plain loop's (floor): {ratios[1]:.2f}", flush=True)


def options(passes: int) -> list[str]:
    return ["fit", "--config", "lenet/digits", "--trainer.max_epochs", str(passes)]


def as_stock(config: dict) -> dict:
    """Leave out the command's own options, and name the callback that it adds on its own."""
    del config["test_after_fit"], config["compile"]
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
