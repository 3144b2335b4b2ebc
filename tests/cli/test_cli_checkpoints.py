"""Checkpoints on the command line: plain data, enough by themselves, and refused where they are damaged."""

from pathlib import Path

import pytest
import torch
from commands import FAST, MODEL, checkpoint_of, read, refused, succeeds

cli_modules = pytest.importorskip("cli_modules")

from pl_losses.cli.checkpoints import read_checkpoint  # noqa: E402
from pl_losses.core.hparams import is_plain  # noqa: E402
from pl_losses.recipes import UsageError, load  # noqa: E402

pytestmark = pytest.mark.usefixtures("folder")


def test_checkpoints_are_plain_data(trained, folder):
    checkpoint = read(trained)
    assert checkpoint["hyper_parameters"]["optimizer"]["class_path"] == "torch.optim.SGD"
    assert checkpoint["datamodule_hyper_parameters"]["count"] == 8
    model = cli_modules.Line.load_from_checkpoint(trained)
    assert model.scale == 0.5
    assert model.configure_optimizers().param_groups[0]["lr"] == 0.25


def test_checkpoints_from_python_are_plain_data(folder):
    from functools import partial

    from lightning.pytorch import Trainer

    model = cli_modules.Other(width=4, scale=0.5, optimizer=partial(torch.optim.SGD, lr=0.25))
    assert dict(model.hparams) == {"width": 4, "scale": 0.5, "pause": 0.0}
    trainer = Trainer(max_epochs=1, logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.fit(model, cli_modules.LocalPoints())
    path = checkpoint_of(folder)
    assert read(path)["hyper_parameters"]["scale"] == 0.5
    assert cli_modules.Other.load_from_checkpoint(path).scale == 0.5
    # The file does not know its class; named by the user, the rest comes from the file.
    succeeds(
        "test", *FAST, "--model=cli_modules.Other", "--data=cli_modules.LocalPoints", "--ckpt_path", str(path)
    )


def test_plain():
    assert is_plain({"a": [1, (2.0, None)], "b": torch.ones(1), "c": torch.float32})
    assert not is_plain({"a": [torch.optim.Adam]})
    assert not is_plain(Path())
    assert not is_plain({"a": lambda: 0})


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_a_checkpoint_is_enough(trained, command, capsys):
    capsys.readouterr()
    succeeds(command, *FAST, "--ckpt_path", str(trained))
    assert "Different from the checkpoint" not in capsys.readouterr().err


def test_a_model_without_hyper_parameters_resumes_too(folder):
    args = [*FAST, "--test_after_fit=false"]
    succeeds(
        "fit",
        "--model=cli_modules.Plain",
        "--model.width=3",
        "--data=cli_modules.LocalPoints",
        "--data.width=3",
        *args,
    )
    path = checkpoint_of(folder)
    assert "hyper_parameters" not in read(path)
    succeeds("fit", *args, "--trainer.max_epochs=2", "--ckpt_path", str(path))


def test_options_go_over_the_checkpoint(trained, folder, capsys):
    args = ["--ckpt_path", str(trained), "--trainer.max_epochs=2", "--model.optimizer.lr=0.125"]
    succeeds("fit", *FAST, *args, "--data.count=16")
    shown = capsys.readouterr().err
    assert "model.optimizer.lr: 0.25 -> 0.125" in shown
    assert "data.count: 8 -> 16" in shown
    assert "scale" not in shown
    config = load(folder / "runs" / "pl_losses" / "version_1" / "config.yaml")
    assert config["model"]["init_args"]["scale"] == 0.5
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.125
    assert read(checkpoint_of(folder))["epoch"] == 1


def test_a_recipe_goes_over_the_checkpoint(trained, folder, capsys):
    (folder / "mine.yaml").write_text("model: {class_path: cli_modules.Line, init_args: {scale: 2}}")
    succeeds("test", *FAST, "--config=mine", "--ckpt_path", str(trained))
    assert "model.scale: 0.5 -> 2.0" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(trained, folder, capsys):
    message = refused(capsys, "fit", *FAST, "--model=cli_modules.Other", "--ckpt_path", str(trained))
    assert "is of a `cli_modules.Line` but the model is a `cli_modules.Other`" in message
    assert not (folder / "runs" / "pl_losses" / "version_1").exists()


def test_what_is_no_checkpoint_is_refused(folder, capsys):
    torch.save({"weights": 1}, folder / "other.ckpt")
    assert "has no `state_dict`" in refused(capsys, "test", "--ckpt_path=other.ckpt")
    torch.save({"state_dict": {}, "x": cli_modules.Line}, folder / "code.ckpt")
    assert "holds more than plain data" in refused(capsys, "test", "--ckpt_path=code.ckpt")
    whole = (folder / "other.ckpt").read_bytes()
    (folder / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in refused(capsys, "test", "--ckpt_path=half.ckpt")


PROGRESS = {"epoch_loop.batch_progress": {"total": {"ready": -5}}}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("loops", 3, "loops"),
        ("loops", {"fit_loop": 3}, "loops.fit_loop"),
        ("loops", {"fit_loop": PROGRESS}, "loops.fit_loop.epoch_loop.batch_progress.total.ready"),
        ("callbacks", [1], "callbacks"),
        ("callbacks", {"x": {"best_k_models": [1]}}, "best_k_models"),
        ("optimizer_states", "x", "optimizer_states"),
        ("optimizer_states", [1], "optimizer_states"),
        ("lr_schedulers", [1], "lr_schedulers"),
        ("random_states", [3], "random_states"),
        ("pl_losses", 3, "pl_losses"),
        ("pl_losses", {"model": 3}, "pl_losses.model"),
        ("hyper_parameters", 3, "hyper_parameters"),
        ("training_metrics", 3, "training_metrics"),
        ("epoch", "x", "epoch"),
        ("global_step", -1, "global_step"),
        ("state_dict", None, "state_dict"),
        ("pytorch-lightning_version", 3, "pytorch-lightning_version"),
    ],
)
def test_fields_of_a_checkpoint_of_another_kind(folder, key, value, named):
    torch.save({"state_dict": {}, "epoch": 0, key: value}, folder / "x.ckpt")
    with pytest.raises(
        UsageError, match=rf"^`x.ckpt` \(--ckpt_path\) is damaged: expected its `{named}` to be"
    ):
        read_checkpoint("x.ckpt")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "optimizer_states",
            [],
            "damaged or of another model: expected its `optimizer_states` to be 1 but got 0",
        ),
        ("optimizer_states", [{}], "is damaged or of another model: KeyError: 'param_groups'"),
        ("loops", {}, "is damaged or of another model: KeyError: 'fit_loop'"),
        ("random_states", [{}], "damaged: expected `random_states` to hold the states of random numbers but"),
    ],
)
def test_fields_that_only_lightning_finds_wrong(trained, folder, capsys, key, value, message):
    torch.save({**read(trained), key: value}, folder / "x.ckpt")
    assert message in refused(
        capsys, "fit", *MODEL, *FAST[1:], "--trainer.max_epochs=2", "--ckpt_path=x.ckpt"
    )
