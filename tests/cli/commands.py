"""Commands that the tests give, and what comes of them."""

import os

import pytest
import torch

from pl_losses.cli.arguments import check, split
from pl_losses.cli.main import main
from pl_losses.recipes import UsageError, dump

MODEL = ["--model", "cli_modules.Line", "--data", "cli_modules.LocalPoints"]
FAST = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
FAST += [
    "--trainer.enable_model_summary=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.logger=CSVLogger",
]


def succeeds(*args):
    assert main(list(args)) == 0


def refused(capsys, *args):
    capsys.readouterr()
    assert main(list(args)) == 2
    message = capsys.readouterr().err.strip().splitlines()
    # What a fit tells at its start, where an optimizer or Lightning refuses later.
    started = ("Seed set", "Run: ", "Checkpoint: none", "If it is interrupted", "  pl-losses fit")
    message = [line for line in message if not line.startswith(started)]
    assert len(message) <= 2
    return message[0].removeprefix("pl-losses: ")


def checkpoint_of(folder):
    return max(folder.rglob("*.ckpt"), key=os.path.getmtime)


def read(path):
    return torch.load(path, weights_only=True)


def sent(box, config):
    """The message with which a recipe is refused before torch is needed, and nothing is left behind."""
    (box / "sent.yaml").write_text(dump(config))
    before = sorted(os.listdir(box))
    with pytest.raises(UsageError) as error:
        check("fit", split(["--config", "sent.yaml"]))
    assert sorted(os.listdir(box)) == before
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)
