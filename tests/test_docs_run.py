"""Every block of Python in the documents runs, every command is accepted."""

import re
import shlex
import shutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from wandb_workspaces.workspaces import Workspace

from pl_losses.cli.main import main
from pl_losses.core.run_folders import Run, write_record
from pl_losses.data import MNIST
from pl_losses.papers.style.vgg import find_oxford

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
# The example of a paper, whose page is within tildes, has tests of its own.
TUTORIAL = re.sub(r"^~~~.*?^~~~$", "", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.M | re.S)
COMMANDS = PAGES | {"CONTRIBUTING.md": TUTORIAL}
# What else is called: the checks of the project itself, other programs, and comments to SLURM.
OTHERS = r"uv run (pytest|ruff|mypy|--group docs)|pip install \W?\.|\.ci/run|wandb (sweep recipes/|login)|#"
# How to get the suite, on the first page and in the README.
OTHERS += r"|git clone <|cd <|uv sync$|source \.venv/bin/activate$"
SMALL = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False}
LIMITS = {f"limit_{stage}_batches": 2 for stage in ("train", "val", "test", "predict")}


def fences(text):
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.S)


def blocks(text, *languages):
    return [block for language, block in fences(text) if language in languages]


def lines_of(text):
    return "".join(blocks(text, "", "console", "bash")).replace("\\\n", " ").splitlines()


def called(line):
    """The arguments of `pl-losses`, if that is what is called; paths with a <name> are those of `here`."""
    words = [re.sub(r".*<\w+>.*ckpt", "last.ckpt", word) for word in shlex.split(line, comments=True)]
    words = ["runs" if re.search(r"<\w+>", word) else word for word in words]
    start = next((i + 1 for i, word in enumerate(words) if word in ("pl-losses", "pl_losses")), None)
    return None if start is None else words[start:]


def commands(text):
    return list(filter(None, map(called, lines_of(text))))


@pytest.fixture
def here(folder, monkeypatch):
    """A folder with what the documents say the user has."""
    (folder / "my_module.py").write_text(
        "from pl_losses import LeNet5\nfrom pl_losses.data import Digits\n"
        "class MyModel(LeNet5): pass\nclass MyData(Digits): pass\n"
        "class Softer(LeNet5): pass\nclass Plain(LeNet5): pass\n"
    )
    (folder / "my_lines").mkdir()
    (folder / "my_lines" / "labels.csv").write_text("file,label\na.png,1\n")
    for name in ("my_lines/a.png", "photo.jpg", "painting.jpg", "drawing.jpg"):
        Image.new("RGB", (64, 32), "white").save(folder / name)
    (folder / "runs").mkdir()
    (folder / "runs" / "metrics.csv").write_text("step,train/loss\n0,2.5\n1,1.5\n")
    known = {"model": {"class_path": "pl_losses.LeNet5"}, "data": {"class_path": "pl_losses.data.Digits"}}
    torch.save({"state_dict": {}, "pl_losses": known}, folder / "last.ckpt")
    run = folder / "runs" / "pl_losses" / "a"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(folder / "last.ckpt", run / "checkpoints")
    recipes = ["lenet/digits", "lenet/mnist"]
    write_record(run / "config.yaml", Run(run, 0.0, recipes, "pl_losses.LeNet5", [], []))
    known = {
        "model": {"class_path": "pl_losses.LatticeReader"},
        "data": {"class_path": "pl_losses.data.DigitStrings"},
    }
    torch.save({"state_dict": {}, "pl_losses": known}, folder / "reader.ckpt")
    monkeypatch.setattr("pl_losses.cli.dashboard.sign_in", lambda: True)
    # A run in a CSV file records no end, so that `--watch` would go on for ever.
    monkeypatch.setattr("pl_losses.cli.show.follow", lambda runs, out: runs)
    monkeypatch.setattr(Workspace, "save", lambda self: self)
    monkeypatch.setattr(Workspace, "url", "https://wandb.example/view")
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(PAGES[page], "python")])
def test_python(page, here, monkeypatch, request):
    shown = blocks(PAGES[page].replace("size=512", "size=32"), "python")
    # The answers of howto.md are pasted one by one, a page's other blocks one after another.
    texts = shown if page == "howto.md" else ["\n".join(shown)]
    text = "\n".join(texts)
    if re.search(r"MNIST\(|\"mnist\"", text):
        request.getfixturevalue("mnist_root")
    if "StyleTransfer(" in text and find_oxford() is None:
        pytest.skip("no VGG-19 weights: set PL_LOSSES_DATA")
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
    for text in texts:
        exec(compile(text, page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", COMMANDS)
def test_nothing_is_left_out(page):
    """Each block is Python, commands, or what a test below takes; each command is known."""
    shown = {"", "console", "bash", "python", *(["yaml"] if page == "CONTRIBUTING.md" else [])}
    assert {language for language, _ in fences(COMMANDS[page]) if not language.startswith("{")} <= shown
    lines = filter(str.strip, lines_of(COMMANDS[page]))
    assert [line for line in lines if called(line) is None and not re.match(OTHERS, line)] == []
    assert all(
        (ROOT / path).is_file() for path in re.findall(r"wandb sweep (recipes/\S+?yaml)", COMMANDS[page])
    )


@pytest.mark.parametrize("page", [page for page in COMMANDS if commands(COMMANDS[page])])
def test_commands(page, here, capsys):
    for command, *words in commands(COMMANDS[page]):
        if command == "reproduce":
            assert main([command, words[0], "--help"]) == 0
            printed = capsys.readouterr().out
            assert all(f"  {word[2:]}:" in printed for word in words if word.startswith("--")), words
        elif command == "sweep":
            assert main([command, words[0], "--dry_run", "true", *words[1:]]) == 0, words
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
