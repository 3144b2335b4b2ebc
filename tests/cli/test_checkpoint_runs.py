"""Runs are tested with the weights that they ended with, whatever keeps their record."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch

cli_modules = pytest.importorskip("cli_modules")

from lightning.pytorch import Trainer  # noqa: E402

from pl_losses.cli.checkpoints import CheckpointCheck  # noqa: E402
from pl_losses.cli.lightning_cli import callbacks_of  # noqa: E402
from pl_losses.cli.main import main  # noqa: E402
from pl_losses.recipes import UsageError, load  # noqa: E402

pytestmark = pytest.mark.usefixtures("folder")
MODEL = ["--model=cli_modules.Line", "--data=cli_modules.LocalPoints"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
QUIET += ["--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
CSV = "--trainer.logger=CSVLogger"
LR = ["--model.optimizer=SGD", "--model.optimizer.lr=0.1"]


def succeeds(capsys, *args):
    capsys.readouterr()
    assert main([*args, *QUIET]) == 0
    return capsys.readouterr()


def refused(capsys, *args):
    capsys.readouterr()
    assert main([*args, *QUIET]) == 2
    return capsys.readouterr().err


def loss(output):
    return re.search(r"test_loss\s+(\S+)", output.out)[1]


def outputs(path):
    """What a checkpoint's weights answer to the points."""
    state = torch.load(path, weights_only=True)["state_dict"]
    (points,) = cli_modules.LocalPoints().loader().dataset.tensors
    return points @ state["layer.weight"].T + state["layer.bias"]


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger", "WandbLogger", "false"])
def test_fit_test_predict(logger, capsys):
    if logger == "TensorBoardLogger":
        pytest.importorskip("tensorboard")
    option = f"--trainer.logger={logger}"
    fitted = succeeds(capsys, "fit", *MODEL, *LR, option, "--trainer.max_epochs=2")
    (path,) = Path("runs").rglob("*.ckpt")
    assert len(list(Path("runs").rglob("record.json"))) == 1
    offered = re.search(r"^Test it: +pl-losses test --ckpt_path (\S+)$", fitted.out, re.M)[1]
    run = path.parents[1]
    assert offered == str(path if logger == "false" else run)
    tested = succeeds(capsys, "test", option, "--ckpt_path=last")
    assert f"Checkpoint: {path}" in tested.err
    assert loss(tested) == loss(fitted)
    assert all(Path(folder).is_dir() for folder in re.findall(r"^Run: (\S+)$", tested.out, re.M))
    if logger == "false":
        assert loss(succeeds(capsys, "test", *MODEL, option, "--ckpt_path=none")) != loss(fitted)
    which = offered if logger == "false" else run.name
    answered = succeeds(capsys, "predict", option, "--ckpt_path", which)
    answers = torch.load(re.search(r"(\S+\.pt)", answered.out)[1], weights_only=True)
    torch.testing.assert_close(answers["output"], outputs(path))
    if logger == "WandbLogger":
        newest = max(Path("runs").rglob("offline-run-*"), key=lambda place: place.stat().st_mtime_ns)
        (file,) = newest.glob("files/media/table/predict/answers*.table.json")
        assert [row[1:] for row in json.loads(file.read_text())["data"]] == answers["output"].tolist()
    assert "had no ModelCheckpoint with a `monitor`" in refused(capsys, "test", option, "--ckpt_path=best")
    # By the command that was told at the start, and by the checkpoint alone, which has the config too.
    printed = re.search(r"resume with:\n  pl-losses (fit .*)", fitted.err)[1].split()
    for times, again in enumerate((printed, ["fit", "--ckpt_path", str(path), "--trust=cli_modules"]), 1):
        succeeds(capsys, *again, "--trainer.max_epochs=3")
        assert len(list(Path("runs").rglob("epoch=2-step=6*.ckpt"))) == times


BEST = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val_loss"]


@pytest.mark.parametrize("light", ["false", "true"])
def test_best_is_by_the_monitor_and_in_its_own_folder(light, capsys):
    kept = [*BEST, "--trainer.callbacks.dirpath=kept", f"--trainer.callbacks.save_weights_only={light}"]
    fit = ["fit", *MODEL, *LR, CSV, *kept, "--trainer.callbacks.mode=max", "--trainer.max_epochs=3"]
    fitted = succeeds(capsys, *fit)
    (path,) = Path("kept").iterdir()
    assert path.name == "epoch=0-step=2.ckpt"  # The loss falls.
    assert (
        "Test it:    pl-losses test --ckpt_path runs/pl_losses/version_0  (saved at step 2 of 6)"
        in fitted.out
    )
    tested = succeeds(capsys, "test", *MODEL, CSV, "--ckpt_path=best")
    assert re.search(r"epoch=0-step=2\.ckpt \(the best by `val_loss`, [\d.]+", tested.err)
    assert loss(tested) != loss(fitted)
    assert float(loss(tested)) == pytest.approx(float(outputs(path).square().mean()), rel=1e-5)


def test_an_interrupted_fit_goes_on_from_last(capsys, monkeypatch):
    fit = ["fit", *MODEL, *LR, CSV, "--trainer.max_epochs=3"]
    original = cli_modules.Line.training_step

    def interrupted(self, batch, index):
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, index)

    with monkeypatch.context() as patched:
        patched.setattr(cli_modules.Line, "training_step", interrupted)
        assert main([*fit, *QUIET]) == 130
    printed = capsys.readouterr().err
    assert re.search(r"Run: (\S+)\nIf .*:\n  pl-losses fit --config \1/config.yaml --ckpt_path \1\n", printed)
    went_on = succeeds(capsys, *fit, "--ckpt_path=last")
    assert "interrupted-step=3.ckpt (the last of cli_modules.Line)" in went_on.err
    assert "version_1/" in succeeds(capsys, "test", CSV, "--ckpt_path=last").err


def test_a_checkpoint_alone_goes_on_with_its_own_trainer(capsys):
    data = ["--data=cli_modules.LocalPoints", "--model=cli_modules.Stepped", CSV, "--trainer.accelerator=cpu"]
    succeeds(capsys, "fit", *data, "--trainer.max_epochs=2", "--trainer.callbacks+=LearningRateMonitor")
    (path,) = Path("runs").rglob("*.ckpt")
    assert main(["fit", f"--ckpt_path={path}"]) == 0
    config = load(Path("runs/pl_losses/version_1/config.yaml"))
    first = load(Path("runs/pl_losses/version_0/config.yaml"))
    assert config == first
    assert config["trainer"]["max_epochs"] == 2
    # A recipe's trainer is its own.
    Path("mine.yaml").write_text("model: cli_modules.Stepped")
    succeeds(capsys, "fit", "--config=mine", f"--ckpt_path={path}", CSV, "--trainer.max_steps=4")
    assert load(Path("runs/pl_losses/version_2/config.yaml"))["trainer"]["callbacks"] is None


def test_a_test_takes_the_callbacks_of_the_run(capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(cli_modules.Told, "on_test_start", lambda *args: seen.append(args[0].name))
    own = ["--trainer.callbacks+=cli_modules.Told", "--trainer.callbacks.name=fit"]
    fit = [*MODEL, CSV, "--test_after_fit=false", "--trainer.max_epochs=2", *own]
    succeeds(capsys, "fit", *fit, *BEST, "--trainer.callbacks.dirpath=kept")
    assert not seen
    tested = succeeds(capsys, "test", CSV, "--ckpt_path=best", "--trust=cli_modules")
    assert "Without" not in tested.err  # What saves checkpoints has nothing to do.
    succeeds(capsys, "validate", CSV, "--ckpt_path=best", "--trust=cli_modules")
    assert seen == ["fit"]
    succeeds(capsys, "test", CSV, "--ckpt_path=best", *own[:1], "--trainer.callbacks.name=test", *MODEL)
    succeeds(capsys, "test", CSV, "--ckpt_path=best", "--trainer.callbacks=null", *MODEL)
    assert seen == ["fit", "fit", "test"]
    # At the checkpoint's epoch and step, as its name has them.
    assert Path("runs/pl_losses/version_1/metrics.csv").read_text().splitlines()[1].startswith("1,4,")


def test_a_callback_that_is_not_trusted_is_left_out_and_told(capsys):
    def check(config):
        if "Told" in str(config):
            raise UsageError("`Told` is not trusted")

    callbacks = [{"class_path": name} for name in ("cli_modules.Told", "ClassifierReport", "ModelCheckpoint")]
    saved = {"pl_losses": {"trainer": {"callbacks": callbacks}}}
    assert callbacks_of(saved, check) == callbacks[1:2]
    assert capsys.readouterr().err == "Without the run's Told: `Told` is not trusted\n"


def test_a_fit_without_a_batch_is_not_tested(capsys):
    output = succeeds(capsys, "fit", *MODEL, CSV, "--trainer.max_epochs=0")
    assert "Not tested: the fit saw no batch" in output.err
    assert "test_loss" not in output.out
    assert "Test it" not in output.out
    succeeds(capsys, "fit", *MODEL, CSV, "--trainer.max_epochs=1")
    again = succeeds(capsys, "fit", *MODEL, CSV, "--trainer.max_epochs=1", "--ckpt_path=last")
    assert "test_loss" in again.out


def test_a_printed_config_names_no_checkpoint(capsys):
    assert "ckpt_path" not in succeeds_printing(capsys, "test", *MODEL, CSV)
    Path("mine.yaml").write_text(succeeds_printing(capsys, "fit", *MODEL, CSV))
    assert "needs --ckpt_path" in refused(capsys, "test", "--config=mine")


def succeeds_printing(capsys, *args):
    return succeeds(capsys, *args, "--print_config").out


class Loose(cli_modules.Line):
    strict_loading = False


def checked(saved):
    printed = []
    check = CheckpointCheck("x.ckpt", saved, printed.append)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[check])
    trainer.validate(Loose(), cli_modules.LocalPoints(), verbose=False)
    return printed


def test_weights_that_are_left_out_are_told(monkeypatch):
    own = Loose().state_dict()
    assert checked({"state_dict": own}) == []
    assert checked({}) == []
    left = {"layer.weight": own["layer.weight"]}
    assert checked({"state_dict": left}) == ["1 of 2 weights are not in the checkpoint, such as `layer.bias`"]
    with pytest.raises(UsageError, match="has none of the model's weights"):
        checked({"state_dict": {"other": torch.ones(1)}})


def test_a_checkpoint_from_before_the_training_is_told(capsys):
    trainer = Trainer(accelerator="cpu", logger=False, max_epochs=0)
    model = cli_modules.Line()
    trainer.fit(model, cli_modules.LocalPoints())
    trainer.save_checkpoint("start.ckpt")
    output = succeeds(capsys, "test", *MODEL, CSV, "--ckpt_path=start.ckpt")
    assert "saved before the first batch: its weights are untrained" in output.err
