"""The command line: recipes, records, resumed runs, interruptions."""

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import FAST, MODEL, checkpoint_of, read, refused, succeeds
from PIL import Image
from processes import Fork
from torch.utils.data import DataLoader, TensorDataset

from pl_losses import LeNet5
from pl_losses.cli.main import main
from pl_losses.recipes import UsageError, load

cli_modules = pytest.importorskip("cli_modules")

pytestmark = pytest.mark.usefixtures("folder")


def test_a_run_keeps_its_record(folder, capsys):
    (folder / "mine.yaml").write_text(
        "model: {class_path: cli_modules.Line, init_args: {scale: 1e-1}}\ndata: LocalPoints\n"
    )
    succeeds("fit", "--config", "mine", *FAST)
    output = capsys.readouterr()
    run = folder / "runs" / "pl_losses" / "version_0"
    assert "test_loss" in output.out
    assert f"Run: {run.relative_to(folder)}" in output.out
    assert "metrics.csv\nAs a page:  pl-losses show runs/pl_losses/version_0\n" in output.out
    assert "Tip:" not in output.err
    assert "LeafSpec" not in output.err
    config = load(run / "config.yaml")
    assert config["model"]["init_args"]["scale"] == 0.1
    assert config["trainer"]["max_epochs"] == 1
    assert not {"ckpt_path", "config"} & set(config)
    assert {"config", "recipe", "pl_losses", "torch"} <= set(load(run / "hparams.yaml"))
    assert list((run / "checkpoints").glob("*.ckpt"))
    assert sorted(path.name for path in folder.iterdir()) == ["mine.yaml", "runs"]


def test_the_saved_config_runs_again_and_never_collides(folder):
    succeeds("fit", *MODEL, *FAST, "--model.optimizer=SGD", "--trainer.callbacks+=LearningRateMonitor")
    first = folder / "runs" / "pl_losses" / "version_0" / "config.yaml"
    succeeds("fit", "--config", str(first))
    second = folder / "runs" / "pl_losses" / "version_1" / "config.yaml"
    assert first.read_text() == second.read_text()
    succeeds("fit", "--config", str(first), "--trainer.logger.version=0", "--test_after_fit=false")
    assert load(first.with_name("config-1.yaml"))["test_after_fit"] is False
    assert first.read_text() == second.read_text()


def test_no_test_after_fit_when_told(capsys):
    succeeds("fit", *MODEL, *FAST, "--test_after_fit", "false")
    assert "test_loss" not in capsys.readouterr().out


def test_fast_dev_run_leaves_nothing(folder):
    succeeds("fit", *MODEL, *FAST, "--trainer.fast_dev_run=true")
    assert not list(folder.rglob("*.*"))


def test_without_a_logger(folder):
    succeeds("fit", *MODEL, *FAST[:-1], "--trainer.logger=false")
    assert (folder / "runs" / "config.yaml").exists()
    assert list((folder / "runs" / "checkpoints").glob("*.ckpt"))


def test_tensorboard_takes_the_record(folder, capsys):
    pytest.importorskip("tensorboard")
    succeeds("fit", *MODEL, *FAST[:-1], "--trainer.logger=TensorBoardLogger")
    assert "tensorboard --logdir runs" in capsys.readouterr().out
    assert (folder / "runs" / "pl_losses" / "version_0" / "config.yaml").exists()


def test_wandb_is_the_default_and_offline(folder, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    succeeds("fit", *MODEL, *FAST[:-1])
    output = capfd.readouterr()
    ways = r"Look at it: wandb leet (\S+)\nAs a page:  pl-losses show \1\nUpload it:  wandb sync runs/wandb"
    assert re.search(ways, output.out)
    assert "wandb:" not in output.err
    assert "anonymous" not in output.err
    [run] = (folder / "runs" / "wandb").glob("offline-run-*/*.wandb")
    [config] = (folder / "runs" / "pl_losses").glob("*/config.yaml")
    assert config.parent.name in run.name
    script = Path(sys.executable).with_name("wandb")
    command = [str(script), "leet", "inspect", "--json", str(run)]
    records = subprocess.run(command, capture_output=True, text=True).stdout
    assert "test_after_fit" in records
    assert "test_loss" in records


def test_an_unknown_wandb_mode_is_refused(folder, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    assert main(["fit", *MODEL, *FAST[:-1]]) == 2
    assert "dryrun but got 'ofline'" in capfd.readouterr().err
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.widht=3"], "Unknown option `--model.widht`: did you mean `--model.width`?"),
        (["--model.width=x"], "`model.width`: Expected int but got x"),
        (["--trainer.max_epochs=x"], "`trainer.max_epochs`: Expected int but got x"),
        (["--trainer.callbacks+=EarlyStopping"], "`trainer.callbacks`: Missing `monitor`"),
        *(
            (
                [f"--trainer.callbacks{way}"],
                "No class `EarlyStop`; your own need their module's name: did you",
            )
            for way in ("+=EarlyStop", "=EarlyStop", "=[EarlyStop]", "+={class_path: EarlyStop}")
        ),
        (
            ["--trainer.logger=CSVLoger"],
            "No class `CSVLoger`; your own need their module's name: did you mean",
        ),
        (["--trainer.plugins=x"], "`trainer.plugins`: No class `x`; your own need their module's name"),
        (["--model.optimizer.lr=x"], "`model.optimizer.lr`: Expected float"),
        (
            ["--model.optimizer=Adm"],
            "No class `Adm`; your own need their module's name: did you mean `Adam`?",
        ),
        (
            ["--config={model: {init_args: {optimizer: {class_path: SGD, init_args: {lr: null}}}}}"],
            "The arguments of SGD do not fit: '<' not supported between",
        ),
        (["--model=cli_modules.Nope"], "`model`: module 'cli_modules' has no attribute 'Nope'"),
        (["--model=Lin"], "`model`: No class `Lin`; your own need their module's name"),
        (
            ["--config={trainer: {devices: -3}}"],
            "`devices` selected with `CPUAccelerator` should be an int > 0",
        ),
        (["--model.optimizer.lr=-1"], "Invalid learning rate: -1.0"),
        (
            [
                "--config={trainer: {callbacks: [PReLUSlopeMonitor, PReLUSlopeMonitor]}}",
                "--test_after_fit=false",
            ],
            "Found more than one stateful callback of type `PReLUSlopeMonitor`",
        ),
        (
            ["--model.width=-1"],
            "Expected `width` to be positive but got -1 (ValueError in Line.__init__, cli_modules.py line ",
        ),
        (["--model.optimizer.lr=abc"], "`model.optimizer.lr`: Expected float but got abc"),
        (["--data.count=0"], "Expected `train_dataloader` of LocalPoints to have batches but got none"),
        (["--ckpt_path=folder.ckpt"], "`folder.ckpt` (--ckpt_path) is a folder that this strategy reads no"),
        (
            ["--trainer.accelerator=cpu", "--trainer.devices=[5]"],
            "should be an int > 0. (got `trainer.accelerator` 'cpu', `trainer.devices` [5])",
        ),
        (["--trainer.max_steps=-2"], "max_steps"),
        (["--data=Digitz"], "did you mean `Digits`?"),
        (["--model=no_modules.Nope"], "`model`: No module named 'no_modules'"),
        (["--config={model: {init_args: {optimizer: {class_path: shutil.rmtree}}}}"], "from shutil are not"),
        (["--config={model: {init_args: {widht: 1}}}"], "did you mean `model.init_args.width`?"),
        (["--trainer.logger.save_dir=file/runs"], "The run's folder `file/runs` cannot be made"),
    ],
)
def test_parser_errors_are_short(folder, capsys, args, message):
    (folder / "file").write_text("")
    (folder / "folder.ckpt").mkdir()
    assert message in refused(capsys, "fit", *MODEL, *FAST, *args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config={trainer: {logger: {init_args: 3}}}"], "Expected `trainer.logger.init_args` in {trainer"),
        (
            ["--config={trainer: {callbacks: {class_path: Timer, init_args: {duration: x}}}}"],
            "duration='x'",
        ),
    ],
)
def test_broken_sections_are_refused(folder, capsys, args, message):
    assert message in refused(capsys, "fit", *MODEL, *FAST, *args)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_no_batches(folder, capsys, command):
    message = refused(capsys, command, *MODEL, *FAST, "--ckpt_path=none", "--data.count=0")
    stage = {"validate": "val"}.get(command, command)
    assert message.startswith(f"Expected `{stage}_dataloader` of LocalPoints to have batches but got none")
    succeeds(command, *MODEL, *FAST, "--ckpt_path=none", f"--trainer.limit_{stage}_batches=0")


@pytest.mark.parametrize("wrong", ["arguments", "type"])
def test_what_does_not_fit_a_class_of_the_suite(folder, capsys, monkeypatch, wrong):
    class Own(LeNet5):
        def compute_loss(self, *parts):
            return super().compute_loss(*parts)

    if wrong == "arguments":
        Own.compute_loss = lambda self, penalties: penalties.mean()
        Own.compute_loss.__qualname__ = "Own.compute_loss"
    Own.__module__, Own.__qualname__ = "cli_modules", "Own"
    monkeypatch.setattr(cli_modules, "Own", Own, raising=False)
    kind = torch.float64 if wrong == "type" else torch.float32
    images = TensorDataset(torch.zeros(4, 1, 32, 32, dtype=kind), torch.arange(4))
    for stage in ("train", "val"):
        monkeypatch.setattr(cli_modules.LocalPoints, f"{stage}_dataloader", lambda self: DataLoader(images))
    expected = {
        "arguments": "Expected `compute_loss` of Own to take (self, penalties, target): it takes 2",
        "type": "Expected inputs in batches of the type of the model's weights but got others: Input",
    }
    message = refused(capsys, "fit", "--model=cli_modules.Own", "--data=cli_modules.LocalPoints", *FAST)
    assert message.startswith(expected[wrong])


def test_an_accelerator_without_its_package(folder, capsys):
    assert main(["fit", "--model=LeNet5", "--data=Digits", "--trainer.accelerator=tpu"]) == 2
    assert "torch_xla" in capsys.readouterr().err


def test_an_empty_section_is_none():
    from pl_losses.cli.loggers import fill_logger

    config = {"trainer": None}
    fill_logger(config, {"trainer": None})
    assert config["trainer"]["logger"]["init_args"]["offline"]


def test_a_mistake_in_the_code_keeps_its_traceback(folder, capsys, monkeypatch):
    """What no line refused is a bug, wherever it shows; what was refused can be traced on demand."""
    with pytest.raises(TypeError, match="unsupported operand"):
        main(["fit", "--model=cli_modules.Mistaken", *MODEL[2:], *FAST])
    monkeypatch.setenv("PL_LOSSES_TRACEBACK", "1")
    assert main(["fit", *MODEL, *FAST, "--model.optimizer.lr=-1"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert errors.strip().endswith("Invalid learning rate: -1.0 (PL_LOSSES_TRACEBACK=1 shows where)")


def test_a_value_may_begin_with_a_brace(folder):
    options = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename={epoch}-{val_loss:.2f}"]
    succeeds("fit", *MODEL, *FAST, *options, "--trainer.callbacks.monitor=val_loss", "--test_after_fit=false")
    assert checkpoint_of(folder).name.startswith("epoch=0-val_loss=")


def test_home_in_a_mapping(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "home"))
    logger = "--config={trainer: {logger: {class_path: CSVLogger, init_args: {save_dir: ~/r}}}}"
    succeeds("fit", *MODEL, *FAST, logger, "--trainer.logger=CSVLogger", "--test_after_fit=false")
    assert (folder / "home" / "r").is_dir()


def test_a_plateau_goes_by_what_is_logged(folder, capsys):
    fit = ["fit", "--model=LeNet5", "--data=Digits", "--trainer.limit_train_batches=1", *FAST]
    fit += ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1", "--test_after_fit=false"]
    succeeds(*fit, "--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.monitor=val/loss")
    torch_own = "--model.lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau"
    assert "with a `monitor` such as 'val/loss'" in refused(capsys, *fit, torch_own)


def test_a_model_is_required(capsys):
    assert "Missing `model`: name a recipe (--config)" in refused(capsys, "fit")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.max_epoch=1", "unrecognized arguments: --trainer.max_epoch=1"),
        ("--model.widht=3", "`model`: Option 'widht' is not accepted: did you mean `width`?"),
        ("--model.optimizer.lrr=1", "`model.optimizer`: Option 'lrr' is not accepted"),
        ("--model.optimizer=os.system", "Importing 'os.system' is not allowed"),
        ("--trainer.callbacks+=os.system", "Importing 'os.system' is not allowed"),
    ],
)
def test_the_parser_refuses_what_the_front_door_let_pass(option, message):
    from pl_losses.cli.lightning_cli import PLLossesCLI, prepare_imports

    prepare_imports()
    with pytest.raises(UsageError) as error:
        PLLossesCLI(["fit", *MODEL, option], {})
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_a_file_gives_arguments_to_a_class_that_an_option_names(folder):
    succeeds("fit", *MODEL, *FAST, "--config={model: {init_args: {scale: 0.25}}}", "--test_after_fit=false")
    assert read(checkpoint_of(folder))["hyper_parameters"]["scale"] == 0.25


def test_print_config(capsys):
    assert main(["fit", *MODEL, *FAST, "--print_config"]) == 0
    assert "class_path: cli_modules.Line" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_goes_on(folder, number, status):
    args = [*MODEL, *FAST, "--trainer.max_epochs=200", "--model.pause=0.05", "--test_after_fit=false"]
    process = Fork(main, ["fit", *args])
    wait_for(lambda: list(folder.rglob("*.ckpt")), process)
    os.kill(process.pid, number)
    assert process.wait() == status, process.printed
    _, errors = process.printed
    assert "Traceback" not in errors
    shown = re.search(r"Interrupted at step (\d+)\. Resume with:\n  pl-losses (fit .*)", errors)
    assert shown, errors
    path = checkpoint_of(folder)
    assert read(path)["global_step"] == int(shown[1])
    resume = [*shown[2].split(), "--trainer.max_steps", str(int(shown[1]) + 3), "--model.pause=0"]
    succeeds(*resume)
    assert read(checkpoint_of(folder))["global_step"] == int(shown[1]) + 3


def test_predictions_are_written(folder, capsys):
    fit = ["fit", "--model=LeNet5", "--data=Digits", "--data.batch_size=300", *FAST]
    succeeds(*fit)
    checkpoint = f"--ckpt_path={checkpoint_of(folder)}"
    succeeds("predict", checkpoint, "--data.eval_batch_size=150", *FAST)
    run = folder / "runs" / "pl_losses" / "version_1"
    assert f"Answers: {run.relative_to(folder) / 'predictions.csv'}" in capsys.readouterr().out
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    answers = read(run / "predictions.pt")
    assert [int(row["sample"]) for row in rows] == list(range(len(answers["predicted"])))
    outputs = torch.tensor([[float(row[f"outputs_{c}"]) for c in range(10)] for row in rows])
    torch.testing.assert_close(outputs, answers["outputs"])
    assert [int(row["predicted"]) for row in rows] == outputs.argmin(dim=1).tolist()


def test_answers_that_are_not_returned_are_told(trained, capsys):
    succeeds("predict", f"--ckpt_path={trained}", "--return_predictions=false", *FAST)
    assert "No answers are written: `return_predictions` is false" in capsys.readouterr().err


def test_data_without_a_test_part_are_trained_on(folder, capsys):
    """And `test` says that there is none."""
    Image.fromarray(np.pad(np.full((20, 10), 255, np.uint8), 10)).save(folder / "0.png")
    (folder / "labels.csv").write_text("file,label,split\n0.png,1,train\n")
    succeeds("fit", "--model=LatticeReader", "--data=LineImages", f"--data.root={folder}", *FAST)
    output = capsys.readouterr()
    assert "Not tested: the data have no samples for it." in output.err
    assert "Run: runs" in output.out
    message = refused(capsys, "test", f"--ckpt_path={checkpoint_of(folder)}", *FAST)
    assert message == "Expected data with samples of the 'test' split but there is train"


def wait_for(condition, process, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert process.ended() is None, process.printed
        assert time.time() < end
        time.sleep(0.1)
    time.sleep(0.2)


def test_an_interruption_before_the_first_step_is_told(capsys, monkeypatch):
    def interrupted(self, trainer, pl_module):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_modules.Line, "on_fit_start", lambda self: interrupted(self, None, None))
    with contextlib.suppress(SystemExit):
        assert main(["fit", *MODEL, *FAST]) == 130
    assert "Interrupted before the first step" in capsys.readouterr().err
