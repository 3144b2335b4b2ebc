"""Every block of Python in the documents runs, every command is accepted."""

import re
import shlex
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from wandb_workspaces.workspaces import Workspace

from pl_losses.__main__ import main
from pl_losses.data import MNIST
from pl_losses.papers.style.vgg import find_oxford

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
SMALL = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False}
LIMITS = {f"limit_{stage}_batches": 2 for stage in ("train", "val", "test", "predict")}


def blocks(text, *languages):
    fences = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.S)
    return [block for language, block in fences if language in languages]


def commands(text):
    joined = "".join(blocks(text, "", "console", "bash")).replace("\\\n", " ")
    for line in joined.splitlines():
        words = shlex.split(line, comments=True)
        start = next((i + 1 for i, word in enumerate(words) if word in ("pl-losses", "pl_losses")), None)
        if start is not None and "<" not in line:
            yield words[start:]


@pytest.fixture
def here(folder, monkeypatch):
    """A folder with what the documents say the user has."""
    (folder / "my_module.py").write_text(
        "from pl_losses import LeNet5\nfrom pl_losses.data import Digits\n"
        "class MyModel(LeNet5): pass\nclass MyData(Digits): pass\nclass Softer(LeNet5): pass\n"
    )
    (folder / "my_lines").mkdir()
    (folder / "my_lines" / "labels.csv").write_text("file,label\na.png,1\n")
    for name in ("my_lines/a.png", "photo.jpg", "painting.jpg", "drawing.jpg"):
        Image.new("RGB", (64, 32), "white").save(folder / name)
    (folder / "runs").mkdir()
    (folder / "runs" / "metrics.csv").write_text("step,train/loss\n0,2.5\n1,1.5\n")
    monkeypatch.setattr("pl_losses.dashboards.command.sign_in", lambda: None)
    monkeypatch.setattr(Workspace, "save", lambda self: self)
    monkeypatch.setattr(Workspace, "url", "https://wandb.example/view")
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("my_module", None)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(PAGES[page], "python")])
def test_python(page, here, monkeypatch, request):
    text = "\n".join(blocks(PAGES[page], "python")).replace("size=512", "size=32")
    if re.search(r"MNIST\(|\"mnist\"", text):
        request.getfixturevalue("mnist_root")
    if "StyleTransfer(" in text and find_oxford() is None:
        pytest.skip("no VGG-19 weights: set PL_LOSSES_DATA to the folder that holds them")
    made = pl.Trainer.__init__

    def small(self, *args, **options):
        made(
            self,
            *args,
            **(options | SMALL | LIMITS | {"devices": 1, "strategy": "auto", "logger": CSVLogger(".")}),
        )

    monkeypatch.setattr(pl.Trainer, "__init__", small)
    load = MNIST.load

    def little(self, stage):
        return {split: tuple(rows[:300] for rows in batch) for split, batch in load(self, stage).items()}

    monkeypatch.setattr(MNIST, "load", little)
    exec(compile(text, page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(PAGES[page]))])
def test_commands(page, here, capsys):
    for command, *words in commands(PAGES[page]):
        if command == "reproduce":
            assert main([command, words[0], "--help"]) == 0
            told = capsys.readouterr().out
            assert all(f"  {word[2:]}:" in told for word in words if word.startswith("--")), words
        elif command in ("fit", "test", "validate", "predict"):
            assert main([command, *words, "--print_config"]) == 0, words
        else:
            assert main([command, *words]) == 0, words


def test_the_picture_of_the_losses(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import draw_losses

    for title, _, (low, high), losses in draw_losses.PANELS:
        for name, loss in losses.items():
            places, values, slopes = draw_losses.curve(loss, low, high, points=41)
            assert values.isfinite().all(), (title, name)
            # The slope is that of the line: Simpson's rule from one place to the next but one.
            step = (places[1] - places[0]) / 3
            risen = step * (slopes[:-2:2] + 4 * slopes[1:-1:2] + slopes[2::2])
            torch.testing.assert_close(values[2::2] - values[:-2:2], risen, rtol=0.02, atol=0.3)
