"""Runs of every wing that are ended anywhere, and what they are compared by once they have gone on."""

import csv
import os
import re
import signal
from pathlib import Path

import torch
from papers.style.networks import picture, state
from processes import Fork
from shooter import Shooter

from pl_losses.cli.lightning_cli import PLLossesCLI
from pl_losses.cli.main import main
from pl_losses.data.image_files import write_image

OPTIONS = ["--trainer.logger=CSVLogger", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu"]
OPTIONS += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
OPTIONS += ["--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2", "--trainer.max_epochs=2"]
WINGS = {
    "lenet/digits": ["--data.batch_size=50"],
    "prelu/digits-prelu": ["--data.batch_size=50"],
    "adam/vae": ["--data.batch_size=50"],
    "dropout/rotated-digits": ["--model.samples=3"],
    "dropout/co2": ["--model.samples=3", "--trainer.max_epochs=6"],  # An epoch is one batch.
    "gan/digits": [],
    "gtn/strings-digits": ["--data.isolated_epochs=0", "--data.eval_strings=20"],
    "sdae/digits": ["--model.pretrain_epochs=1", "--trainer.max_epochs=4"],
    # An epoch is the run, a batch of it 20 iterations of L-BFGS.
    "style/demo": [
        *("--model.weights=weights.pt", "--data.content=photo.png", "--data.style=painting.png"),
        *("--data.size=48", "--data.steps=6", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1.0"),
    ],
}


def plant(folder):
    """Put into a folder what the recipes need that is not packaged: small ones of their kind."""
    torch.save(state(), folder / "weights.pt")
    for seed, name in enumerate(("photo", "painting")):
        write_image(picture(40, 32, seed), folder / f"{name}.png")
    inputs = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    (folder / "mine").mkdir()
    rows = torch.cat([inputs, inputs[:, :1] * inputs[:, 1:2]], 1).tolist()
    (folder / "mine/data.txt").write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))


def command(args, shooter=None):
    """Run a command in this process."""
    build = PLLossesCLI.instantiate_trainer

    def instantiate_trainer(self, **kwargs):
        trainer = build(self, **kwargs)
        trainer.callbacks += [shooter] if shooter else []
        return trainer

    PLLossesCLI.instantiate_trainer = instantiate_trainer
    return main(args)


def run(args, *shooter, status=0):
    """Run a command in a process of its own: what it printed to stdout and stderr."""
    process = Fork(command, args, Shooter(*shooter) if shooter else None)
    assert process.wait() == status, process.printed[1]
    assert "Traceback" not in process.printed[1]
    return process.printed


def newest(folder):
    return max(Path(folder).rglob("*.ckpt"), key=os.path.getmtime)


def outcome(folder, output):
    """All that a finished run is compared by."""
    found = torch.load(newest(folder), weights_only=True)
    names = ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "random_states")
    tested = re.findall(r"^ +test\S* +\S+ *$", output, re.M)
    return {name: found[name] for name in names}, tested


def losses(folder):
    """What was logged of each step, over all runs in a folder."""
    logged = {}
    for path in sorted(Path(folder).rglob("metrics.csv")):
        for row in csv.DictReader(path.open()):
            logged |= {(row["step"], key): value for key, value in row.items() if value and "loss" in key}
    return logged


def goes_on(errors):
    hint = errors[errors.rindex("Interrupted") :]
    return re.search(r"[Rr]esume with:\n  pl-losses (fit .*)", hint)[1].split()


def same(one, other):
    """Whether two outcomes are equal in all bits; NaN equals NaN."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return bool((one == other).logical_or(one.isnan() & other.isnan()).all())
    return one == other or repr(one) == repr(other)


def interrupted_and_resumed(args, place, step, number=signal.SIGINT):
    """What an interrupted run and the one that goes on from it leave in a folder of their own."""
    root = f"--trainer.logger.save_dir={place}-{step}"
    _, errors = run([*args, root], place, step, [number], status=128 + number)
    output, _ = run([*goes_on(errors)])
    return outcome(f"{place}-{step}", output), losses(f"{place}-{step}")
