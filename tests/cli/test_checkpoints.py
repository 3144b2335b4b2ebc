"""Which checkpoint `--ckpt_path` means: found, named or refused before torch is loaded."""

import json
import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pl_losses.cli.arguments import check, split
from pl_losses.cli.main import main
from pl_losses.core.jobs import Job
from pl_losses.core.run_folders import Run, choose, lineage, named_command, runs, write_record
from pl_losses.recipes import UsageError

PICKLED = b"\x80\x02}."  # torch's format before 1.6 begins so.
LENET, GAN = "pl_losses.papers.lenet.module.LeNet5", "pl_losses.GAN"
pytestmark = pytest.mark.usefixtures("folder")
clock = iter(range(10**6))


def file(path, content=PICKLED):
    """A file newer than all before it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    moment = 1e9 + next(clock)
    os.utime(path, (moment, moment))
    return str(path)


def made(folder, recipe="lenet/digits", model=LENET, names=("a.ckpt",), best=None, number=0, own=None):
    """What a fit leaves: the config, its record and checkpoints."""
    folder = Path(folder)
    config = folder / (f"config-{number}.yaml" if number else "config.yaml")
    file(config, b"")
    started = 1e9 + next(clock)
    files = [file((own or folder / "checkpoints") / name) for name in names]
    run = Run(folder, started, lineage([recipe] if recipe else []), model, files, [])
    run.best = [("val/error", 0.125, str((own or folder / "checkpoints") / best))] if best else []
    write_record(config, run)
    return files


def chosen(command, line):
    flags = split(shlex.split(line))
    return choose(command, flags, check(command, flags))


def taken(line, command="test"):
    return chosen(command, line).path


def refused(line, command="test"):
    with pytest.raises(UsageError) as error:
        chosen(command, line)
    assert len(str(error.value).splitlines()) <= 2
    return str(error.value)


DIGITS = "--config lenet/digits"


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_untrained_weights_are_only_used_on_purpose(command, capsys):
    assert main([command, "--config", "lenet/digits"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"pl-losses: `{command}` needs --ckpt_path")
    assert "--ckpt_path none" in first
    assert second == (
        "No run of lenet/digits in `runs` has a checkpoint; this makes one:"
        " pl-losses fit --config lenet/digits"
    )
    for none in ("--ckpt_path none", "--ckpt_path null", "--config '{ckpt_path: null}'"):
        found = chosen(command, f"{DIGITS} {none}")
        assert found.path is None
        assert found.message == "Checkpoint: none, the weights are untrained"
    assert taken(f"{DIGITS} --ckpt_path none", "fit") is None
    assert taken(DIGITS, "fit") is None
    assert taken(f"{DIGITS} --print_config", command) is None


def test_the_newest_run_is_offered_with_its_command():
    made("runs/pl_losses/old")
    made("runs/pl_losses/new")
    made("runs/pl_losses/other", "gan/digits", GAN)
    line = refused(f"{DIGITS} --trainer.devices 1").splitlines()[1]
    offer = "pl-losses test --config lenet/digits --trainer.devices 1 --ckpt_path runs/pl_losses/new"
    assert line == f"The newest run of lenet/digits: {offer}"
    assert refused("").endswith("The newest run: pl-losses test --ckpt_path runs/pl_losses/other")


def test_refused_without_torch():
    from test_front_door import WITHOUT_TORCH, outside

    for args in (["--config", "lenet/digits"], ["--ckpt_path", "last"], ["--ckpt_path", "no_such_id"]):
        done = outside(sys.executable, "-c", WITHOUT_TORCH, "test", *args, limit=1.0)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) <= 2


def test_last_is_the_newest_of_the_recipe():
    made("runs/pl_losses/a", names=("x.ckpt",))
    first = made("runs/pl_losses/b", names=("epoch=0.ckpt", "interrupted-step=7.ckpt"))
    other = made("runs/pl_losses/c", "gan/digits", GAN)
    Path("runs/pl_losses/tested/checkpoints").mkdir(parents=True)
    made("runs/pl_losses/predicted", names=())
    assert taken(f"{DIGITS} --ckpt_path last") == first[1]
    assert taken(f"{DIGITS} --config trainers/ddp --ckpt_path last") == first[1]
    assert taken("--config lenet/digits.yaml --config '{trainer: {}}' --ckpt_path last") == first[1]
    assert taken("--config gan/digits --ckpt_path last") == other[0]
    assert taken("--ckpt_path last") == other[0]
    assert taken("--model LeNet5 --ckpt_path last") == first[1]
    assert taken("--model pl_losses.LeNet5 --ckpt_path last", "fit") == first[1]
    assert taken("--config trainers/ddp --ckpt_path last") == other[0]
    message = chosen("test", f"{DIGITS} --ckpt_path last").message
    assert message == f"Checkpoint: {first[1]} (the last of lenet/digits)"
    message = "No checkpoint for `--ckpt_path last`: no run of sdae/digits in `runs` has one"
    assert refused("--config sdae/digits --ckpt_path last", "fit") == message


def test_a_recipe_of_ones_own_and_last_within_it():
    Path("mine.yaml").write_text("extends: lenet/digits\nckpt_path: last\n")
    Path("more.yaml").write_text("trainer: {max_epochs: 3}\n")
    made("runs/pl_losses/a")
    message = "No checkpoint for `--ckpt_path last`: no run of mine.yaml in `runs` has one"
    assert refused("--config mine") == message
    (path,) = made("runs/pl_losses/b", "mine")
    made("runs/pl_losses/c")
    assert taken("--config mine") == path
    assert taken("--config mine --config more") == path
    assert taken("--config mine --ckpt_path none") is None


def test_a_run_that_goes_on_is_of_the_same_recipe():
    (first,) = made("runs/pl_losses/a")
    (second,) = made("runs/pl_losses/b", "runs/pl_losses/a/config.yaml")
    (third,) = made("runs/pl_losses/c", "runs/pl_losses/b/config.yaml")
    made("runs/pl_losses/d", "gan/digits", GAN)
    assert taken(f"{DIGITS} --ckpt_path last") == third
    made("runs/pl_losses/e")
    assert taken("--config runs/pl_losses/a/config.yaml --ckpt_path last") == third
    os.remove(third)
    assert taken("--config runs/pl_losses/b/config.yaml --ckpt_path last") == second
    os.remove(second)
    assert taken("--config runs/pl_losses/a/config.yaml --ckpt_path last") == first


def test_best_is_that_of_the_monitored_quantity():
    made("runs/pl_losses/a", names=("x.ckpt", "y.ckpt"), best="x.ckpt")
    found = chosen("test", f"{DIGITS} --ckpt_path best")
    path = "runs/pl_losses/a/checkpoints/x.ckpt"
    assert found.path == path
    assert found.message == f"Checkpoint: {path} (the best by `val/error`, 0.125 of lenet/digits)"
    os.remove(path)
    assert f"is gone: {path}" in refused(f"{DIGITS} --ckpt_path best")
    made("runs/pl_losses/b")
    assert "runs/pl_losses/b: it had no ModelCheckpoint with a `monitor`" in refused(
        f"{DIGITS} --ckpt_path best"
    )


def test_a_run_by_its_folder_or_id(monkeypatch, folder):
    files = made("runs/pl_losses/ab12", names=("x.ckpt", "y.ckpt"))
    made("runs/pl_losses/version_3", "gan/digits", GAN)
    file("runs/wandb/offline-run-20260101_000000-ab12/run-ab12.wandb")
    monkeypatch.setenv("HOME", str(folder))
    for given in (
        *("ab12", "runs/pl_losses/ab12", "runs/pl_losses/ab12/", "pl_losses/ab12", "./runs/pl_losses/ab12"),
        *("runs/pl_losses/ab12/checkpoints", files[1]),
        *("~/runs/pl_losses/ab12", str(folder / "runs" / "pl_losses" / "ab12") + "/"),
        "runs/wandb/offline-run-20260101_000000-ab12/",
    ):
        assert os.path.samefile(taken(f"--ckpt_path {given}"), files[1]), given
    assert taken("--ckpt_path version_3") == "runs/pl_losses/version_3/checkpoints/a.ckpt"
    assert taken("--ckpt_path runs") == "runs/pl_losses/version_3/checkpoints/a.ckpt"
    assert taken(f"{DIGITS} --ckpt_path runs/pl_losses") == files[1]
    assert refused("--ckpt_path ab13") == "No checkpoint `ab13` (--ckpt_path): did you mean `ab12`?"
    assert "did you mean `runs/pl_losses/ab12`?" in refused("--ckpt_path runs/pl_losses/ab13/")
    assert "nor a run of that id in runs" in refused("--ckpt_path zzzzzzzz")
    made("runs/elsewhere/version_3")
    assert "Several runs are named `version_3`" in refused("--ckpt_path version_3")
    assert taken(f"{DIGITS} --ckpt_path version_3") == "runs/elsewhere/version_3/checkpoints/a.ckpt"
    Path("empty").mkdir()
    assert "No checkpoint in the folder `empty`" in refused("--ckpt_path empty")
    (folder / "empty/config.yaml").write_text("")
    message = refused("--ckpt_path empty")
    assert message.endswith("it begins anew by pl-losses fit --config empty/config.yaml")


def test_a_run_that_was_ended_before_its_first_checkpoint():
    """A fit of its own config starts anew, or where the run itself went on from; all else is refused."""
    made("runs/pl_losses/cd34", names=())
    for which in ("runs/pl_losses/cd34", "cd34", "last"):
        found = chosen("fit", f"--config runs/pl_losses/cd34/config.yaml --ckpt_path {which}")
        assert found.path is None
        assert found.message == "No checkpoint yet in runs/pl_losses/cd34: the fit starts anew"
    for line, command in (("", "fit"), ("", "test"), (DIGITS, "predict")):
        assert refused(f"{line} --ckpt_path cd34", command) == (
            "No checkpoint yet in the run `cd34` (--ckpt_path); this starts it anew:"
            " pl-losses fit --config runs/pl_losses/cd34/config.yaml"
        )
    assert "No checkpoint `cd34`" in refused("--config gan/digits --ckpt_path cd34")
    (path,) = made("runs/pl_losses/ab12")
    write_record(Path("runs/on/config.yaml"), Run(Path("runs/on"), 2e9, [], LENET, [], [], origin=path))
    found = chosen("fit", "--ckpt_path runs/on")
    assert os.path.samefile(found.path, path)
    assert "`runs/on` went on from it and has none of its own yet" in found.message
    os.remove(path)
    assert "this starts it anew" in refused("--ckpt_path runs/on", "fit")


def test_other_files_and_folders():
    Path("sharded/step=1.ckpt").mkdir(parents=True)
    Path("dcp").mkdir()
    file("dcp/.metadata")
    for path in ("sharded/step=1.ckpt", "dcp", file("odd.bin"), "s3://bucket/last"):
        assert taken(f"--ckpt_path {path}") == path
    # Lightning must not take a name for one of its words.
    assert taken(f"--ckpt_path ./{file('last')}") == "./last"
    python_made = file("lightning_logs/version_0/checkpoints/a.ckpt")
    assert taken("--ckpt_path lightning_logs") == python_made
    assert taken("--ckpt_path last --trainer.logger.save_dir .") == python_made
    assert "is not a checkpoint, or is damaged" in refused(f"--ckpt_path {file('text.ckpt', b'no')}")
    assert "registry" in refused("--ckpt_path registry:me/model")
    assert "Expected `ckpt_path` to name a checkpoint but got an empty text" in refused("--ckpt_path=", "fit")


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("out/pl_losses/version_0", "--trainer.logger CSVLogger --trainer.logger.save_dir out"),
        ("out/pl_losses/x", "--trainer.logger.save_dir out"),
        ("out/pl_losses/x", "--trainer.logger.init_args.save_dir=out"),
        (
            "out/pl_losses/x",
            "--config '{trainer: {logger: {class_path: WandbLogger, init_args: {save_dir: out}}}}'",
        ),
        ("out/logs/version_0", "--trainer.logger TensorBoardLogger --trainer.logger.save_dir=out"),
        ("out", "--trainer.logger false --trainer.default_root_dir out"),
        ("out", "--trainer.default_root_dir out"),
        ("runs/pl_losses/x", "--trainer.default_root_dir out"),
        ("runs", "--trainer.logger false"),
    ],
)
def test_where_runs_are_looked_for(place, options):
    (path,) = made(place)
    made("elsewhere/pl_losses/x")
    assert taken(f"{DIGITS} {options} --ckpt_path last") == path


def test_runs_that_share_a_folder_keep_apart():
    """Without a logger all runs are in one."""
    (first,) = made("runs", names=("a.ckpt",))
    (second,) = made("runs", "gan/digits", GAN, ("a-v1.ckpt",), number=1)
    unnoted = file("runs/checkpoints/b.ckpt")
    made("runs", "sdae/digits", "pl_losses.StackedDenoisingAutoencoder", ("c.ckpt",), number=2)
    assert taken(f"{DIGITS} --ckpt_path last") == first
    assert taken("--config gan/digits --ckpt_path last") == unnoted
    os.remove(unnoted)
    assert taken("--config gan/digits --ckpt_path last") == second
    assert f"--ckpt_path {first}" in refused(DIGITS)


def test_a_folder_for_checkpoints_alone_and_a_folder_that_was_moved():
    (own,) = made("runs/pl_losses/a", own=Path("kept").absolute())
    assert taken(f"{DIGITS} --ckpt_path last") == own == str(Path("kept/a.ckpt").absolute())
    made("runs/pl_losses/b", best="a.ckpt")
    os.rename("runs/pl_losses/b", "moved")
    assert taken("--ckpt_path moved") == "moved/checkpoints/a.ckpt"
    assert taken(f"{DIGITS} --ckpt_path best --trainer.logger.save_dir moved") == "moved/checkpoints/a.ckpt"


def test_what_is_no_record_is_passed_over():
    made("runs/pl_losses/a")
    for name, text in {"b": "{}", "c": "no", "d": "[1]", "e": json.dumps({"started": 1})}.items():
        file(f"runs/pl_losses/{name}/record.json", text.encode())
    assert [run.folder.name for run in runs(["runs"])] == ["a"]


def test_many_runs_are_searched_quickly():
    for number in range(100):
        made(f"runs/pl_losses/{number}")
    begun = time.process_time()
    assert taken(f"{DIGITS} --ckpt_path last") == "runs/pl_losses/99/checkpoints/a.ckpt"
    assert time.process_time() - begun < 1


def test_what_lightning_left_for_slurm_is_taken_by_name_only(monkeypatch):
    path = file("runs/hpc_ckpt_2.ckpt")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    assert taken(DIGITS, "fit") is None
    assert taken(f"{DIGITS} --ckpt_path none") is None
    assert taken(f"{DIGITS} --ckpt_path {path}", "fit") == path


def test_a_job_goes_on_only_if_it_was_started_again_by_the_same_command():
    (path,) = made("runs/pl_losses/a")
    job = Job("SLURM's job 7", True)
    (run,) = runs(["runs"])
    mine = named_command(job, "fit", split(shlex.split(DIGITS)))
    run = replace(run, recipes=run.recipes[:-1], jobs=[mine], versions=["a"])
    write_record(Path("runs/pl_losses/a/config.yaml"), run)
    made("runs/pl_losses/b")

    def found(line, job):
        flags = split(shlex.split(line))
        return choose("fit", flags, check("fit", flags), [job])

    assert found(DIGITS, job).path == path
    assert found(DIGITS, job).run.versions == ["a"]
    others = [(DIGITS, replace(job, again=False)), (DIGITS, Job("SLURM's job 77", True))]
    for line, other in [*others, (f"{DIGITS} --seed_everything 1", job)]:
        assert found(line, other).path is None
        assert found(line, other).run is None
