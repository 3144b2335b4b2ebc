"""Every recipe runs end to end, in small, as a user would start it."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from processes import on_ranks
from workspaces import patterns_of

from pl_losses import recipes
from pl_losses.cli.lightning_cli import run
from pl_losses.cli.main import main
from pl_losses.cli.sweep_file import read_sweep, words
from pl_losses.dashboards import build_workspace, find_run, read_run
from pl_losses.data.photographs import write_crops
from pl_losses.papers.style.vgg import find_oxford

EXPERIMENTS = [name for name in recipes.names() if not name.startswith("trainers/")]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
CPU = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]


# Packaged photographs in place of ImageNet, and networks of their size.
PHOTOGRAPHS = ["--data.size=32", "--data.scales=[32,40]", "--data.test_scale=40", "--data.batch_size=4"]
PHOTOGRAPHS += ["--data.num_workers=1", "--model.num_classes=8", "--model.stem=small", "--model.width=0.02"]
PHOTOGRAPHS += ["--model.test_crop=32"]
pytestmark = pytest.mark.usefixtures("folder")


TESTS = Path(__file__).parents[1]


def small(name, *more):
    parts = [TESTS / "recipes/small.yaml", TESTS / "papers" / name.split("/")[0] / "small.yaml"]
    own = [word for path in parts if path.is_file() for word in ("--config", str(path))]
    return ["fit", "--config", name, *own, *more]


@cache
def kind(name):
    """The model and the data of a recipe."""
    config = recipes.resolve(name)
    parts = (config["model"], config.get("data", ""))
    return [part if isinstance(part, str) else part["class_path"] for part in parts]


def quick(name):
    """Whether a recipe is its model's first on its data, and needs none to be there."""
    model, data = kind(name)
    return data not in LARGE and name == next(one for one in EXPERIMENTS if kind(one) == [model, data])


# The others, which differ from one of them in data or numbers, are slow.
LARGE = ("MNIST", "CIFAR10", "Variations")
MARKED = [name if quick(name) else pytest.param(name, marks=pytest.mark.slow) for name in EXPERIMENTS]


@pytest.mark.parametrize("name", MARKED)
def test_recipe(name, request, tmp_path, capfd):
    data = recipes.resolve(name).get("data", {})
    source = str(data.get("init_args", {}).get("source", data.get("class_path"))).lower()
    if name.startswith("style/") and find_oxford() is None:
        pytest.skip("no VGG-19 weights: set PL_LOSSES_DATA")
    if source == "variations" and "rect" not in name:
        source = "mnist"
    if source in ("cifar10", "mnist", "uci"):
        request.getfixturevalue(f"{source}_root")
    photographs = []
    if data.get("class_path") == "ImageFolders":
        write_crops(tmp_path / "photographs")
        photographs = [f"--data.root={tmp_path / 'photographs'}", *PHOTOGRAPHS]
        dense = recipes.resolve(name)["model"]["init_args"]["test_scales"]
        photographs += ["--model.test_scales=[32,40]"] if dense else []
    assert run(small(name, *photographs)) == 0
    printed = capfd.readouterr().out
    assert re.search(r"^Test \w+: \S", printed, re.M)
    assert "wandb leet runs/wandb/offline-run-" in printed
    (folder,) = (tmp_path / "runs" / "pl_losses").iterdir()
    assert list((folder / "checkpoints").glob("*.ckpt"))
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["class_path"].startswith("pl_losses.")
    assert "extends" not in saved
    check_dashboard(name)


def check_dashboard(name):
    """Every key that was logged is on a panel of the recipe's dashboard, and no panel is without one."""
    wandb.teardown()  # Until then the file may lack the last rows.
    logged = read_run(find_run()).keys()
    shown = patterns_of(build_workspace(name))
    assert not {key for key in logged if not any(re.search(pattern, key) for pattern in shown)}
    assert not {pattern for pattern in shown if not any(re.search(pattern, key) for key in logged)}


SWEEPS = recipes.sweeps().values()
LIGHT = {"lenet-learning-rate", "dropout-uci"}


@pytest.mark.parametrize(
    "path",
    [pytest.param(one, id=one.stem, marks=[] if one.stem in LIGHT else pytest.mark.slow) for one in SWEEPS],
)
def test_sweep(path, request):
    """What W&B's agent would start takes its parameters and logs what it seeks."""
    sweep = read_sweep(path)
    name = sweep.command[sweep.command.index("--config") + 1]
    if name == "dropout/uci" or name.endswith("mnist"):
        request.getfixturevalue(f"{name.split('/')[1].split('-')[-1]}_root")
    if name.startswith("style/") and find_oxford() is None:
        pytest.skip("no VGG-19 weights: set PL_LOSSES_DATA")
    drawn = sweep.draw(1, 0, [])[1]
    _, *command = words(sweep, drawn)
    assert main([*command, "--trainer.logger.offline", "true", *small(name)[3:]]) == 0
    wandb.teardown()
    run_made = read_run(find_run())
    assert not sweep.metric or sweep.metric in run_made.curves()
    for key, value in drawn.items():
        owner, _, argument = key.rpartition(".")
        node = run_made.config
        for part in owner.split("."):
            node = node.get("init_args", node)[part]
        assert node["init_args"][argument] == value, key


def test_saved_checkpoint_alone_knows_its_model_and_data(tmp_path, capfd):
    assert run(small("lenet/digits")) == 0
    first = capfd.readouterr().out
    (checkpoint,) = tmp_path.glob("runs/pl_losses/*/checkpoints/*.ckpt")
    torch.load(checkpoint, weights_only=True)
    assert run(["test", "--ckpt_path", str(checkpoint), "--trainer.logger", "false", *QUIET]) == 0
    again = capfd.readouterr().out
    assert "Test error: " in again

    def error(text):
        return next(line.split()[-1] for line in text.splitlines() if line.split()[:1] == ["test/error"])

    assert error(first) == error(again)


@pytest.mark.parametrize(
    "overlays",
    [
        ["ddp", "bf16", "accumulate", "profile"],
        ["fsdp2"],
        pytest.param(["multi-node"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_overlays_on_two_ranks(overlays, tmp_path):
    named = [word for one in overlays for word in ("--config", f"trainers/{one}")]
    precision = [] if "bf16" in overlays else CPU[2:]
    on_ranks(2, run, [*small("lenet/digits"), *named, *CPU[:2], *precision, "--trainer.devices", "2"])
    check_one_run(tmp_path)
    traces = list(tmp_path.glob("runs/pl_losses/*/*.pt.trace.json"))
    assert len([one for one in traces if "training_step" in one.name]) == 2 * ("profile" in overlays)
    assert list(tmp_path.rglob("*.pt.trace.json")) == traces
    assert not [one for one in traces if "test_step" in one.name]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
def test_shards_go_on_with_another_number_of_ranks(ranks, tmp_path, capfd):
    overlay = ["--config", "trainers/fsdp2-shards", *CPU]
    on_ranks(2, run, [*small("lenet/digits"), *overlay, "--trainer.devices", "2"])
    (shards,) = tmp_path.glob("runs/pl_losses/*/checkpoints/*.ckpt")
    assert (shards / ".metadata").is_file()
    again = [*small("lenet/digits"), *overlay, "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    on_ranks(ranks, run, [*again, "--trainer.devices", str(ranks)])
    assert "epoch=1" in "".join(one.name for one in tmp_path.glob("runs/pl_losses/*/checkpoints/*.ckpt"))


def test_a_sharded_checkpoint_alone_is_enough(tmp_path):
    shards = ["--config", "trainers/fsdp2-shards", *CPU, "--trainer.devices", "1"]
    on_ranks(1, run, [*small("lenet/digits"), *shards, "--test_after_fit", "false"])
    (folder,) = tmp_path.glob("runs/pl_losses/*")
    on_ranks(1, run, ["test", "--ckpt_path", str(folder), *QUIET])
    on_ranks(1, run, ["fit", "--ckpt_path", str(folder), "--trainer.max_epochs", "2", *QUIET])
    assert list(tmp_path.glob("runs/pl_losses/*/checkpoints/*step=6.ckpt/meta.pt"))


def test_sync_batchnorm_without_a_gpu_is_refused_in_a_line(capfd):
    (line,) = refused(capfd, *small("gan/digits"), "--config", "trainers/sync-batchnorm", *CPU)
    assert "Expected GPUs with `trainer.sync_batchnorm` but got a CPU" in line


@pytest.mark.slow
def test_compiling_without_a_compiler_is_refused_in_a_line(tmp_path):
    known = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "empty")}
    command = [
        sys.executable,
        "-m",
        "pl_losses",
        *small("lenet/digits"),
        "--config",
        "trainers/compile",
        *CPU,
    ]
    done = subprocess.run(command, env=os.environ | known, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 2
    assert "pl-losses: Expected a working C++ compiler with `compile`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]])
def test_launchers(launcher, tmp_path):
    """Lightning's own and torchrun, with interpreters that import everything anew."""
    # torch.compile starts threads, and a forked process does not survive that.
    overlays = ["trainers/multi-node"] if launcher else ["trainers/ddp", "trainers/compile"]
    named = [word for overlay in overlays for word in ("--config", overlay)]
    options = [*small("lenet/digits"), *named, *CPU, "--trainer.devices", "2"]
    command = [sys.executable, *(word for part in (*launcher[:1], "pl_losses") for word in ("-m", part))]
    command[3:3] = launcher[1:]
    # The W&B service of this process would write the run into this process's folder.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    subprocess.run([*command, *options], check=True, timeout=800, env=inherited)
    check_one_run(tmp_path)


def check_one_run(folder):
    """One run, one config, one W&B file, whatever the number of ranks."""
    assert len(list(folder.glob("runs/pl_losses/*/config.yaml"))) == 1
    assert len(list(folder.glob("runs/wandb/offline-run-*/*.wandb"))) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_overlay():
    assert run([*small("lenet/digits"), "--config", "trainers/gpu"]) == 0


def test_a_callback_of_ones_own_beside_the_recipes(tmp_path, monkeypatch, capfd):
    (tmp_path / "own_callback.py").write_text(
        "import lightning.pytorch as pl\n\n\nclass Hello(pl.Callback):\n"
        "    def on_fit_start(self, trainer, pl_module):\n        print('hello from the callback')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert run(small("lenet/digits", "--trainer.callbacks+=own_callback.Hello")) == 0
    assert "hello from the callback" in capfd.readouterr().out
    assert list(tmp_path.glob("runs/wandb/*/files/media/images/test/confusion_matrix*"))


def refused(capfd, *args):
    assert main([*args, *QUIET]) == 2
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("pl-losses: ")]


def test_a_checkpoint_of_another_shape_is_refused_in_a_line(tmp_path, capfd):
    assert run(small("lenet/digits", "--test_after_fit", "false")) == 0
    (checkpoint,) = tmp_path.glob("runs/pl_losses/*/checkpoints/*.ckpt")
    (line,) = refused(capfd, "fit", "--config", "lenet/mle-collapse", "--ckpt_path", str(checkpoint))
    assert f"`{checkpoint.relative_to(tmp_path)}`" in line.replace(f"{tmp_path}/", "")
    assert "does not fit the model" in line


def test_missing_and_damaged_data_are_refused_in_a_line(tmp_path, capfd):
    mnist = ["fit", "--config", "lenet/mnist", "--data.download", "false", "--data.root"]
    (line,) = refused(capfd, *mnist, "nowhere")
    assert "nowhere" in line
    assert not (tmp_path / "nowhere").exists()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").write_bytes(b"\0\0\x08\x03")
    (line,) = refused(capfd, *mnist, ".")
    assert "Expected train-images-idx3-ubyte with the published MD5" in line


def test_ctrl_c_while_loading_is_quiet(monkeypatch, capfd):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("pl_losses.cli.main.load_torch", interrupted)
    assert main(small("lenet/digits")) == 130
    assert capfd.readouterr().err.splitlines()[-1] == "Interrupted"
