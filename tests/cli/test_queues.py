"""Fits in a queue: preempted, queued again, ended or killed on one rank, started again by torchrun."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import Fork
from resumed import OPTIONS, command, losses, newest, outcome, same
from shooter import Shooter

cli_modules = pytest.importorskip("cli_modules")

from lightning.pytorch import Callback  # noqa: E402

from pl_losses.cli import lightning_cli  # noqa: E402
from pl_losses.core.run_folders import runs  # noqa: E402

pytestmark = [pytest.mark.usefixtures("folder", "scontrol"), pytest.mark.timeout(120)]
DIGITS = ["fit", "--config=lenet/digits", "--data.batch_size=50", *OPTIONS, "--trainer.limit_test_batches=2"]
TWO = ["--config=trainers/ddp", "--trainer.devices=2"]
BY_WANDB = [word for word in DIGITS if "CSV" not in word]


@pytest.fixture
def scontrol(folder, monkeypatch):
    """SLURM's command, which writes down what it was called with."""
    (folder / "bin").mkdir()
    program = folder / "bin/scontrol"
    program.write_text(f"#!/bin/sh\necho $@ >> {folder}/called\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")


def called():
    return Path("called").read_text().splitlines() if Path("called").exists() else []


class Early(Callback):
    """Sends a signal to its own process before there is anything to save."""

    def __init__(self, place, number):
        self.place, self.number = place, number

    def shoot(self, place):
        if place == self.place:
            self.place = ""
            os.kill(os.getpid(), self.number)

    def setup(self, *_, **__):
        self.shoot("setup")

    def on_sanity_check_start(self, *_):
        self.shoot("sanity")


class Failing(Callback):
    def on_train_batch_start(self, *_):
        raise OSError(5, "Input/output error", "data")


def job(args, place="", step=4, number=signal.SIGUSR1, mine=True, where="."):
    """A command on one rank, which may shoot itself."""
    os.chdir(where)
    early = Early(place, number)
    if place == "load":
        build = lightning_cli.PLLossesCLI.instantiate_classes
        lightning_cli.PLLossesCLI.instantiate_classes = lambda cli: (early.shoot("load"), build(cli))[1]
    shooter = early if place in ("setup", "sanity") else Shooter(place, step, [number])
    shooter = Failing() if place == "failing" else shooter
    return command(args, shooter if place and mine else None)


def by_slurm(rank=0, size=1, again=0, number="7", port=1):
    return {
        "SLURM_JOB_ID": number,
        "SLURM_JOB_NAME": "train",
        "SLURM_RESTART_COUNT": str(again),
        "SLURM_NTASKS": str(size),
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_NTASKS_PER_NODE": str(size),
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def by_torchrun(rank=0, size=1, again=0, number="x", port=1):
    return {
        "TORCHELASTIC_RUN_ID": number,
        "TORCHELASTIC_RESTART_COUNT": str(again),
        "GROUP_RANK": "0",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def one(args, *shot, status=0, launch=by_slurm, **known):
    process = Fork(job, args, *shot, environment=launch(**known))
    assert process.wait() == status, process.printed[1]
    assert "Traceback" not in process.printed[1]
    return process.printed


def two(args, *shot, whom=(0, 1), launch=by_torchrun, places=(".", "."), seconds=30, kill=True, **known):
    """Exit statuses of two ranks and what they printed; as torchrun, it ends the rest if one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place, step, number = (*shot, *("", 4, signal.SIGUSR1)[len(shot) :])
    started = [
        Fork(
            *(job, [*args, *TWO], place, step, number, rank in whom, places[rank]),
            environment=launch(rank, 2, port=port, **known),
        )
        for rank in range(2)
    ]
    end = None
    while any(process.ended() is None for process in started):
        if end is None and any(process.ended() for process in started):
            end = time.time() + seconds
            for process in started:
                if kill and process.ended() is None:
                    os.kill(process.pid, signal.SIGTERM)
        if end and time.time() > end:
            break
        time.sleep(0.02)
    statuses = [process.ended() for process in started]
    for process in started:
        process.wait(0)
    assert None not in statuses, "\n".join(process.printed[1] for process in started)
    return statuses, [process.printed[1] for process in started]


def folders():
    return sorted(path.name for path in Path("runs/pl_losses").iterdir())


@pytest.mark.parametrize(
    ("place", "step"), [("step", 4), pytest.param("validation", 2, marks=pytest.mark.slow)]
)
def test_a_job_that_is_queued_again_goes_on_in_its_run(place, step):
    output, _ = one([*DIGITS, "--trainer.logger.save_dir=whole"], number="1")
    _, errors = one(DIGITS, place, step, status=138)
    assert called() == ["requeue 7"]
    assert "SLURM's job 7 is queued again" in errors
    assert not list(Path("runs").glob("*.ckpt"))
    again, errors = one(DIGITS, again=1)
    assert "(the run runs/pl_losses/version_0 goes on, as SLURM's job 7 was started again)" in errors
    assert folders() == ["version_0"]
    assert losses("runs") == losses("whole")
    steps = [row["step"] for row in csv.DictReader(newest("runs").parents[1].joinpath("metrics.csv").open())]
    assert sorted(map(int, steps)) == list(map(int, steps))
    for found, whole in zip(outcome("runs", again), outcome("whole", output), strict=True):
        assert same(found, whole)
    (run,) = runs(["runs"])
    assert run.jobs == [f"SLURM's job 7: {' '.join(DIGITS).replace('=', ' ')}"]


@pytest.mark.slow
def test_nothing_else_goes_on_from_what_a_job_left():
    for name in ("runs", "runs/pl_losses"):
        Path(name).mkdir(exist_ok=True)
        (Path(name) / "hpc_ckpt_1.ckpt").write_bytes(b"of another program")
    one(DIGITS, "step", 4, status=138)
    for number, other in enumerate((("8", 1, []), ("7", 0, []), ("7", 1, ["--seed_everything=1"])), 1):
        name, again, options = other
        _, errors = one([*DIGITS, *options], number=name, again=again)
        assert "Checkpoint:" not in errors
        assert f"Run: runs/pl_losses/version_{number}" in errors
        assert torch.load(newest("runs"), weights_only=True)["global_step"] == 6


@pytest.mark.slow
def test_a_job_goes_on_in_its_wandb_run():
    one(BY_WANDB, "step", 4, status=138)
    one(BY_WANDB, again=1)
    (name,) = folders()
    assert len(list(Path("runs/wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))) == 2
    assert torch.load(newest("runs"), weights_only=True)["global_step"] == 6


@pytest.mark.slow
def test_a_job_that_had_saved_nothing_goes_on_from_where_it_began():
    one([*DIGITS, "--trainer.max_epochs=1"], number="1")
    (begun,) = Path().rglob("*.ckpt")
    args = [*DIGITS, f"--ckpt_path={begun}"]
    one(args, "sanity", status=138)
    _, errors = one(args, again=1)
    assert f"/{begun} (the run runs/pl_losses/version_1 goes on" in errors
    assert folders() == ["version_0", "version_1"]


@pytest.mark.slow
def test_a_job_that_is_queued_again_after_its_fit_tests():
    one(DIGITS, "test", status=138)
    assert called() == ["requeue 7"]
    output, _ = one(DIGITS, again=1)
    assert "Test error" in output
    assert folders() == ["version_0"]


@pytest.mark.parametrize(
    "place", ["load", *(pytest.param(p, marks=pytest.mark.slow) for p in ("setup", "sanity", "after"))]
)
def test_the_signal_of_slurm_is_heeded_anywhere(place):
    one(DIGITS, place, status=138)
    assert called() == ["requeue 7"]


def test_a_failing_scontrol_is_told():
    Path("bin/scontrol").write_text("#!/bin/sh\nexit 1\n")
    _, errors = one(DIGITS, "step", 4, status=138)
    assert "The job is not queued again: Command '['scontrol', 'requeue', '7']' returned" in errors
    assert "Interrupted at step 5. Resume with:" in errors


@pytest.mark.slow
def test_an_array_task_is_queued_again_by_its_own_name(monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    one(DIGITS, "step", 4, status=138)
    assert called() == ["requeue 40_2"]


@pytest.mark.parametrize(
    ("place", "whom"),
    [("validation", (1,)), *(pytest.param(p, (0, 1), marks=pytest.mark.slow) for p in
     ("load", "setup", "sanity", "step", "forward", "backward", "validation", "epoch", "after", "test"))],
)  # fmt: skip
def test_two_ranks_are_queued_again(place, whom):
    step = 2 if place == "validation" else 4
    statuses, _ = two(DIGITS, place, step, whom=whom, launch=by_slurm)
    assert called() == ["requeue 7"]
    assert statuses[0] == 138
    assert two(DIGITS, launch=by_slurm, again=1)[0] == [0, 0]
    assert folders() == ["version_0"]
    assert torch.load(newest("runs"), weights_only=True)["global_step"] == 6


@pytest.mark.parametrize("place", ["forward", pytest.param("test", marks=pytest.mark.slow)])
def test_sigterm_to_one_rank_ends_both(place):
    statuses, errors = two(DIGITS, place, 4, signal.SIGTERM, whom=(1,))
    assert statuses in ([143, 143], [-15, -15])
    assert ("Interrupted at step 5. Resume with:" in errors[0]) == (place == "forward")


@pytest.mark.parametrize(
    ("rank", "launch"),
    [(0, by_slurm), *(pytest.param(*known, marks=pytest.mark.slow) for known in
     ((0, by_torchrun), (1, by_torchrun), (1, by_slurm)))],
)  # fmt: skip
def test_a_rank_that_dies_is_named(rank, launch):
    statuses, errors = two(DIGITS, "backward", 4, signal.SIGKILL, whom=(rank,), launch=launch, kill=False)
    assert statuses[rank] == -signal.SIGKILL
    assert statuses[1 - rank] == 2
    (line,) = re.findall("pl-losses: .*", errors[1 - rank])
    assert line.startswith(f"pl-losses: rank {rank} of 2 (on {socket.gethostname()}) is gone without a word")
    assert "Traceback" not in errors[1 - rank]


def test_an_error_on_one_rank_is_told_by_the_other():
    statuses, errors = two(DIGITS, "failing", whom=(1,), kill=False)
    assert 0 not in statuses
    (line,) = re.findall("pl-losses: .*", errors[0])
    assert re.search(r"rank 1 of 2 \(on .*\) has ended: OSError: .*Input/output error", line)


def test_a_folder_that_cannot_be_written_to_ends_both():
    Path("runs").write_text("")
    statuses, errors = two(DIGITS, kill=False)
    assert statuses == [2, 2]
    assert len(re.findall("pl-losses: .*The run's folder `runs` cannot be made", errors[0])) == 1
    assert "pl-losses: " not in errors[1]


def nodes():
    """Folders of two nodes that share no disk."""
    for name in ("a", "b"):
        Path(name).mkdir()
    return ("a", "b")


@pytest.mark.slow
def test_a_checkpoint_that_one_node_lacks_is_told_before_training():
    Path("a/runs").mkdir(parents=True)
    one([*DIGITS, "--trainer.max_epochs=1"], number="1")
    newest("runs").rename("a/x.ckpt")
    Path("b").mkdir()
    statuses, errors = two([*DIGITS, "--ckpt_path=x.ckpt"], places=("a", "b"), kill=False)
    assert statuses == [2, 2]
    (line,) = re.findall("pl-losses: .*", "".join(errors))
    assert line.startswith("pl-losses: rank 1 of 2 (on ")
    assert "No checkpoint `x.ckpt` (--ckpt_path): no such file" in line


@pytest.mark.slow
def test_ranks_that_find_other_checkpoints_are_told():
    for name in nodes():
        one([*DIGITS, "--trainer.max_epochs=1"], "", 4, signal.SIGTERM, True, name, number="1")
    Path("b/runs/pl_losses/version_0").rename("b/runs/pl_losses/other")
    _, errors = two([*DIGITS, "--ckpt_path=last"], places=("a", "b"), kill=False)
    lines = re.findall("pl-losses: .*", "".join(errors))
    assert len(lines) == 1, lines
    assert "rank 1 of 2" in lines[0]
    assert "expected the checkpoint `runs/pl_losses/version_0/checkpoints/" in lines[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_refusal_on_one_node_is_told_by_rank_zero(rank):
    places = nodes()
    Path(places[1 - rank], "own.yaml").write_text("extends: lenet/digits\n")
    args = ["fit", "--config=own.yaml", *OPTIONS]
    statuses, errors = two(args, places=places, kill=False)
    assert statuses == [2, 2]
    (line,) = re.findall("pl-losses: .*", "".join(errors))
    assert line.startswith(f"pl-losses: rank {rank} of 2 (on ")
    assert "own.yaml" in line


@pytest.mark.slow
def test_only_the_first_node_has_a_folder_of_runs():
    assert two(BY_WANDB, places=nodes())[0] == [0, 0]
    assert Path("a/runs").is_dir()
    assert not list(Path("b").iterdir())


@pytest.mark.slow
def test_a_group_that_torchrun_starts_again_goes_on(monkeypatch):
    args = [*DIGITS, "--trainer.max_epochs=3"]
    two(args, "start", 4, signal.SIGKILL, whom=(1,))
    statuses, errors = two(args, again=1)
    assert statuses == [0, 0]
    assert "(the run runs/pl_losses/version_0 goes on, as torchrun x was started again)" in errors[0]
    assert "epoch=0-step=3.ckpt" in errors[0]
    assert folders() == ["version_0"]
    assert torch.load(newest("runs"), weights_only=True)["global_step"] == 9


@pytest.mark.slow
def test_torchrun_starts_a_killed_group_again(folder):
    (folder / "killer.py").write_text(
        "import os, signal\nfrom lightning.pytorch import Callback\n\n\nclass Killer(Callback):\n"
        "    def on_train_batch_start(self, trainer, module, batch, index):\n"
        "        first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "        if first and trainer.global_step == 4 and trainer.global_rank == 1:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"]
    args = [*DIGITS, *TWO, "--trainer.callbacks+=killer.Killer", "--trust=killer"]
    with Path("printed").open("w") as printed:
        process = subprocess.Popen(
            [*torchrun, "-m", "pl_losses", *args], stderr=printed, start_new_session=True
        )
        try:
            status = process.wait(300)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    text = Path("printed").read_text()
    assert status == 0, text
    assert len(re.findall("pl-losses: rank 1 of 2 .* is gone without a word", text)) == 1
    assert "was started again" in text
    assert folders() == ["version_0"]
    assert torch.load(newest("runs"), weights_only=True)["global_step"] == 6
