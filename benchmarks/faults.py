"""Faults, and what is lost by them: ``python -m benchmarks.faults [--kinds kill disk ...] [--trials N]``.

Each kind has trials of its own, drawn from ``--seed``. What is printed is how many held, and what was lost:

- kill: a fit of each wing is killed (kill -9) at random moments; the command that it printed goes on from
  there, and ends as the uninterrupted fit, bit for bit. Likewise ``reproduce``, by the same command again.
- interrupt: likewise by Ctrl-C and SIGTERM.
- ranks: one of two ranks is killed, or ended by SIGTERM, at random moments under each strategy; both start
  again as torchrun starts them, and log the same losses as the uninterrupted fit.
- disk: the disk is full at random sizes of a checkpoint; that of before stays whole, and alone.
- spoilt: bit flips, zeros, noise and cut ends in checkpoints and states of ``reproduce``: accepted ones are
  lost.
- hostile: recipes that run code, write elsewhere (by names of files and metrics, and by links) or steer the
  terminal: one that leaves a mark is lost.
- mutations: recipes with a mistake: a traceback, a hang, or nonsense that is accepted is lost.

The trials' code is that of the tests, in ``tests/``, which have a short form of each kind.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import os
import random
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))
for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import hostile  # noqa: E402
import mutations as recipes  # noqa: E402
import resumed  # noqa: E402
import torch  # noqa: E402
from processes import Fork  # noqa: E402
from spoilt import spoilt as damaged  # noqa: E402

from pl_losses.cli.arguments import check, split  # noqa: E402
from pl_losses.cli.checkpoints import WholeCheckpointIO, read_checkpoint  # noqa: E402
from pl_losses.cli.main import main  # noqa: E402
from pl_losses.core.experiment import Experiment  # noqa: E402
from pl_losses.monitoring import interruption  # noqa: E402
from pl_losses.papers.dropout.table1 import columns  # noqa: E402
from pl_losses.recipes import UsageError, dump  # noqa: E402

LIMIT = 120  # Seconds of one run.
Trials = Iterator[tuple[str, str]]  # What was done, and what was lost by it; empty if nothing was.


REPRODUCED = {
    "adam/fig4": "--dataset=digits --steps=12 --beta1=[0.9] --beta2=[0.99] --log_alpha=[-3,-2]"
    " --hidden_size=8 --latent_size=2 --together=2 --save_every=0 --wandb=disabled",
    "dropout/table1": "--sets=mine --columns=grid --splits=2 --samples=9 --repeats=1 --epochs_scale=0.01"
    " --root=. --wandb=disabled",
    "sdae/variations": "--variations=rot-gen --source=digits --seeds=2 --train_size=512 --val_size=64"
    " --test_size=200 --hidden_size=16 --pretrain_epochs=1 --finetune_epochs=2 --finetune_lr=0.02",
}


def often(args: list[str]) -> int:
    """A command that saves a checkpoint at every step, and that chooses among few settings."""
    interruption.SHARE = 0
    interruption.InterruptionCheckpoint.__init__.__defaults__ = (print, 0.0)
    columns.Choice.__new__.__defaults__ = ((0.0, 0.1), (1e-4,), (1e-3, 1e-2), (0.5, 2.0), 10)
    columns.COLUMNS["grid"] = columns.COLUMNS["grid"]._replace(steps=0)
    return resumed.command(args)


def command(name: str, folder: str) -> list[str]:
    """The small form of a recipe, or of what takes many trainings, with its results in a folder."""
    if name in REPRODUCED:
        return ["reproduce", name, *REPRODUCED[name].split(), f"--folder={folder}"]
    args = ["fit", "--config", name, *resumed.OPTIONS, *resumed.WINGS[name]]
    return [*args, f"--trainer.logger.save_dir={folder}"]


def made(name: str, folder: str, output: str) -> tuple[object, object]:
    """What a command that is over is compared by: the weights and test results, or the tables."""
    if name not in REPRODUCED:
        return resumed.outcome(folder, output)
    rows = {path.name: list(csv.DictReader(path.open())) for path in Path(folder).glob("*.csv")}
    for row in itertools.chain(*rows.values()):
        for key in row.keys() & {"seconds", "cpu_seconds"}:
            del row[key]
    return rows, sorted(rows)


def ended_anywhere(count: int, draw: random.Random, numbers: list[int]) -> Trials:
    """Commands of all wings in turn that get a signal at a random moment, and go on."""
    resumed.plant(Path())
    names, whole = [*resumed.WINGS, *REPRODUCED], {}
    for trial in range(count):
        name = names[trial % len(names)]
        if name not in whole:
            began = time.monotonic()
            process = Fork(often, command(name, f"whole/{name}"))
            assert process.wait(LIMIT) == 0, process.printed[1]
            seconds = time.monotonic() - began
            whole[name] = made(name, f"whole/{name}", process.printed[0]), seconds
        expected, seconds = whole[name]
        number, moment = draw.choice(numbers), draw.uniform(0, seconds)
        yield (
            f"{name}, signal {number} after {moment:.2f} of {seconds:.2f} s",
            one_ended(name, f"trial-{trial}", number, moment, expected),
        )


def one_ended(name: str, folder: str, number: int, moment: float, expected: tuple[object, object]) -> str:
    args = command(name, folder)
    process = Fork(often, args)
    time.sleep(moment)
    if process.ended() is None:
        os.kill(process.pid, number)
    status = process.wait(LIMIT)
    output, errors = process.printed
    if "Traceback" in errors and status != -signal.SIGKILL:
        return f"a traceback: {errors[-200:]}"
    commands = re.findall(r"[Rr]esume with:\n  pl-losses (fit .*)", errors)
    again = args if name in REPRODUCED else commands[-1].split() if commands else []
    kept = name in REPRODUCED or bool(list(Path(folder).rglob("*.ckpt")))
    if status != 0 and not kept:
        return ""  # Nothing had been trained.
    if status != 0 and not again:
        return f"no command was printed: {errors[-200:]}"
    if status != 0:
        process = Fork(often, again)
        if process.wait(LIMIT) != 0:
            return f"does not go on: {process.printed[1][-200:]}"
        output = process.printed[0]
    found = made(name, folder, output)
    if not found[1]:  # It was ended behind its test, or in it: then the weights are compared alone.
        found, expected = (found[0], None), (expected[0], None)
    return "" if resumed.same(found, expected) else "other weights or results"


def kill(count: int, draw: random.Random) -> Trials:
    return ended_anywhere(count, draw, [signal.SIGKILL])


def interrupt(count: int, draw: random.Random) -> Trials:
    return ended_anywhere(count, draw, [signal.SIGINT, signal.SIGTERM])


STRATEGIES = {
    "ddp": "lenet/digits",
    "ddp-per-module": "gan/digits",
    "fsdp2": "lenet/digits",
    "fsdp2-shards": "lenet/digits",
}


def two_ranks(name: str, folder: str, again: int = 0, shot: tuple[int, int, float] | None = None) -> str:
    """Run a small fit on two ranks; send a signal to one of them after some seconds. What went wrong."""
    args = ["--config", f"trainers/{name}", "--trainer.devices=2"]
    args = [*command(STRATEGIES[name], folder)[:3], *args, *command(STRATEGIES[name], folder)[3:]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        known = {"RUN_ID": folder, "RESTART_COUNT": again}
        elastic = {f"TORCHELASTIC_{key}": str(value) for key, value in known.items()}
        place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        elastic |= {key: str(value) for key, value in place.items()}
        elastic |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started.append(Fork(often, args, environment=elastic))
    whole = shot is None
    if shot is not None:
        rank, number, moment = shot
        time.sleep(moment)
        if started[rank].ended() is None:
            os.kill(started[rank].pid, number)
    end = time.monotonic() + LIMIT
    while any(process.ended() is None for process in started) and time.monotonic() < end:
        time.sleep(0.02)
        if shot is not None and any(process.ended() for process in started):
            end, shot = time.monotonic() + 30, None
            for process in started:  # As torchrun does.
                if process.ended() is None:
                    os.kill(process.pid, signal.SIGTERM)
    hung = [rank for rank, process in enumerate(started) if process.ended() is None]
    statuses = [process.wait(0) for process in started]
    if hung:
        return f"rank {hung[0]} has not ended"
    if whole and any(statuses):
        return f"exit statuses {statuses}: {started[0].printed[1][-300:]}"
    return ""


def ranks(count: int, draw: random.Random) -> Trials:
    """Fits of all strategies in turn."""
    whole: dict[str, tuple[dict[Any, str], float]] = {}
    for trial in range(count):
        name = list(STRATEGIES)[trial % len(STRATEGIES)]
        if name not in whole:
            began = time.monotonic()
            fault = two_ranks(name, f"whole-{name}")
            assert not fault, fault
            whole[name] = resumed.losses(f"whole-{name}"), time.monotonic() - began
        expected, seconds = whole[name]
        shot = draw.randrange(2), draw.choice([signal.SIGKILL, signal.SIGTERM]), draw.uniform(0, seconds)
        folder = f"ranks-{trial}"
        fault = two_ranks(name, folder, shot=shot) or two_ranks(name, folder, again=1)
        if not fault and resumed.losses(folder) != expected:
            fault = "other losses"
        yield f"{name}, signal {shot[1]} to rank {shot[0]} after {shot[2]:.2f} of {seconds:.2f} s", fault


def disk(count: int, draw: random.Random) -> Trials:
    """Saving a checkpoint over one of before, where the disk has room for a part of it."""
    folder, before, after = Path("disk"), {"a": torch.zeros(1000)}, {"a": torch.ones(100_000)}
    path = folder / "x.ckpt"

    def save(room: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        WholeCheckpointIO().save_checkpoint(after, path)

    for _ in range(count):
        WholeCheckpointIO().save_checkpoint(before, path)
        room = draw.randrange(400_000)
        process = Fork(save, room)
        process.wait(LIMIT)
        kept = torch.equal(torch.load(path, weights_only=True)["a"], before["a"])
        alone = [one.name for one in folder.iterdir()] == ["x.ckpt"]
        said = "cannot be written (File too large)" in process.printed[1]
        yield (
            f"room for {room} bytes",
            "" if kept and alone and said else "the checkpoint of before, or a part",
        )


def spoilt(count: int, draw: random.Random) -> Trials:
    """A checkpoint, and a state of ``reproduce``, with one damage each, in turn."""
    path, content = Path("spoilt/x.ckpt"), {"state_dict": {"a": torch.randn(20_000)}, "epoch": 3}
    WholeCheckpointIO().save_checkpoint(content, path)
    Experiment("spoilt", "spoilt", {"seed": 0}).add({"error": torch.randn(20_000)})
    state = Path("spoilt/state.pt")
    whole = {path: path.read_bytes(), state: state.read_bytes()}
    for trial in range(count):
        file = (path, state)[trial % 2]
        broken = damaged(whole[file], draw)
        while broken == whole[file]:  # Zeros over zeros.
            broken = damaged(whole[file], draw)
        file.write_bytes(broken)
        yield f"{file.name} of {len(broken)} bytes", accepted(file)
        for aside in Path("spoilt").glob("damaged-*"):
            aside.unlink()


def accepted(file: Path) -> str:
    """Whether a damaged file is taken."""
    if file.name == "state.pt":
        with contextlib.redirect_stderr(None):
            return "accepted" if Experiment("spoilt", file.parent, {"seed": 0}).results else ""
    try:
        read_checkpoint(str(file))
    except UsageError:
        return ""
    return "accepted"


def hostile_recipes(count: int, draw: random.Random) -> Trials:
    """Recipes that run code or write elsewhere: the front door and, where it lets them pass, a fit.

    They are sent as a file, over another recipe, as one that is extended, and every tenth in a checkpoint.
    """
    hostile.plant(Path())
    hostile.link(Path())
    Path("extending.yaml").write_text("extends: ./sent\n")
    ways = [
        ["--config=sent.yaml"],
        ["--config=lenet/digits", "--config=sent.yaml"],
        ["--config=extending.yaml"],
    ]
    known = [*hostile.RECIPES, *hostile.links()]
    for trial, (name, config) in enumerate(draw.sample(known, min(count, len(known)))):
        Path("sent.yaml").write_text(dump(config))
        model = {"_class_path": "pl_losses.LeNet5"}
        torch.save({"state_dict": {}, "pl_losses": config, "hyper_parameters": model}, "sent.ckpt")
        before = sorted(os.listdir())
        way = ways[trial % len(ways)]
        if trial % 10 == 9:
            command = ("fit", "validate", "test", "predict")[trial // 10 % 4]
            Fork(main, [command, "--ckpt_path=sent.ckpt"]).wait(LIMIT)
        try:
            check("fit", split(way))
        except UsageError:
            pass
        else:
            Fork(main, ["fit", *way]).wait(LIMIT)
        left = (set(os.listdir()) ^ set(before)) | set(os.listdir("away"))
        yield name, f"left {', '.join(left)}" if left - {"runs"} else ""
        for mark in left & set(os.listdir()):
            shutil.rmtree(mark) if Path(mark).is_dir() else Path(mark).unlink()


def mutated(count: int, draw: random.Random) -> Trials:
    """Recipes with a mistake, two at a time."""
    running = []
    for mutation in recipes.mutations(count, draw.randrange(2**32)):
        running.append((mutation, recipes.start(mutation)))
        if len(running) > 1:
            first, process = running.pop(0)
            yield first.name, recipes.fault(first, process)
    for mutation, process in running:
        yield mutation.name, recipes.fault(mutation, process)


KINDS: dict[str, tuple[Callable[[int, random.Random], Trials], int]] = {
    "kill": (kill, 120),
    "interrupt": (interrupt, 120),
    "ranks": (ranks, 40),
    "disk": (disk, 30),
    "spoilt": (spoilt, 300),
    "hostile": (hostile_recipes, 1500),
    "mutations": (mutated, 400),
}


def run(kind: str, count: int | None = None, seed: int = 0, minutes: float = 10) -> tuple[int, list[str]]:
    """Trials of a kind in an empty folder: how many there were, and what was lost."""
    trials, usual = KINDS[kind]
    end, done, lost, before = time.monotonic() + 60 * minutes, 0, [], os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name, fault in trials(usual if count is None else count, random.Random(seed)):
                done += 1
                lost += [f"{name}: {fault}"] if fault else []
                if time.monotonic() > end:
                    break
        finally:
            os.chdir(before)
    return done, lost


def command_line() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--trials", type=int, help="of each kind; default: as many as are usual")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10, help="at most, of each kind")
    given = parser.parse_args()
    print("| fault | trials | held | lost |\n| --- | ---: | ---: | ---: |", flush=True)
    failures = []
    for kind in given.kinds:
        done, lost = run(kind, given.trials, given.seed, given.minutes)
        print(f"| {kind} | {done} | {done - len(lost)} | {len(lost)} |", flush=True)
        failures += [f"{kind}: {one}" for one in lost]
    print("\n".join(["", *failures]))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(command_line())
