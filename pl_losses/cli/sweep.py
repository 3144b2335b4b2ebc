"""``pl-losses sweep``: the trials of a W&B sweep file one after another, without an account."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import shlex
import statistics
import subprocess
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pl_losses.cli.arguments import options, positional, split
from pl_losses.cli.bayes import check_optuna
from pl_losses.cli.show import opens, truth
from pl_losses.cli.sweep_file import Sweep, nested, read_sweep, words
from pl_losses.core.compat.names import STEP
from pl_losses.core.experiment import PlainExperiment
from pl_losses.core.files import written_whole
from pl_losses.core.locks import alone, sigterm_raises
from pl_losses.core.run_folders import RUNS
from pl_losses.recipes import SWEEPS, UsageError, find, nearest, sweeps, visible

HELP = """usage: pl-losses sweep FILE [--count N] [--OPTION VALUE ...] [-- --KEY VALUE ...]

Run the trials of a W&B sweep file one after another, without an account. `wandb sweep` takes the same file.
After an interruption the same command keeps the finished trials, and runs the interrupted one again.

  FILE                     a sweep file, or the name of one that `pl-losses recipes` lists
  --count N                number of trials (default: all of a grid, or the file's `run_cap`)
  --seed N                 seed of the drawn settings; the same seed draws the same settings (default: 0)
  --folder FOLDER          folder of trials.csv, the logs and the page (default: runs/sweeps/NAME)
  --failures N             stop after so many failed trials in a row (default: 3)
  --retry BOOL             run the failed trials again (default: false)
  --dry_run BOOL           print the commands of a grid or random sweep, and run nothing (default: false)
  --open BOOL              open the page of all trials in the browser (default: true on a desktop)
  -- --KEY VALUE ...       more options for the command of each trial

`method: bayes` needs Optuna: in a clone, `uv run --extra sweep` or `pip install '.[sweep]'` installs it.
"""
OPTIONS = ("count", "seed", "folder", "failures", "retry", "dry_run", "open")
GRACE = 60  # Seconds that an interrupted trial has to save its checkpoint.


def sweep(args: Sequence[str]) -> int:
    """Run a sweep, and return the exit status."""
    given, rest = positional(args)
    if not args or rest[:1] in (["--help"], ["-h"]):
        print(HELP, end="")
        return 0
    if len(given) != 1:
        raise UsageError(f"Expected `sweep` to be followed by one sweep file but got {len(given)}")
    cut = rest.index("--") if "--" in rest else len(rest)
    chosen = options(split(rest[:cut]), OPTIONS)
    asked = read_sweep(look_up(given[0]))
    if not asked.program:
        notice = f"{given[0]} has no `program`, which `wandb sweep` asks for; here its `command` is enough"
        print(visible(notice), file=sys.stderr)
    numbers = {"seed": 0, "failures": 3} | {
        key: integer(key, chosen[key], 0 if key == "seed" else 1)
        for key in ("count", "seed", "failures")
        if key in chosen
    }
    ends = asked.total()
    count = min((one for one in (ends, numbers.get("count")) if one is not None), default=None)
    if count is None:
        raise UsageError(f"`method: {asked.method}` has no end: set the number of trials by --count")
    retry, dry = (truth(key, chosen.get(key, "false")) for key in ("retry", "dry_run"))
    wanted = opens(chosen.get("open", "auto"))
    if asked.method == "bayes":
        check_optuna()
    folder = Path(chosen.get("folder") or Path(RUNS, SWEEPS, asked.name))
    runner = Runner(asked, folder, seed=numbers["seed"], more=rest[cut + 1 :], failures=numbers["failures"])
    runner.check_first()
    if dry:
        for number in range(1, count + 1 if asked.method != "bayes" else 2):
            values = asked.draw(number, runner.seed, [])[1]
            # Without `${args}`, the command does not tell them.
            beside = "" if asked.gives_arguments() else f"  # {json.dumps(nested(values))}"
            print(visible(shlex.join(runner.command(number, values)) + beside))
        return 0
    try:
        return runner.run(count, retry, wanted)
    except OSError as error:
        raise UsageError(f"`--folder`: {error}") from error


def look_up(name: str) -> Path:
    """Find a sweep file by its path, or by its name with or without ``sweeps/``.

    Raises:
        UsageError: If there is none; the message names the nearest.
    """
    for candidate in (name, f"{SWEEPS}/{name}"):
        with contextlib.suppress(UsageError):
            return find(candidate)
    hint = nearest(name.removeprefix(f"{SWEEPS}/"), sweeps()) or "; `pl-losses recipes` lists them"
    raise UsageError(f"No sweep file named `{name}`{hint}")


def integer(option: str, text: str, least: int) -> int:
    """Parse an option's integer.

    Raises:
        UsageError: If it is none, or too small.
    """
    if not text.isdecimal() or int(text) < least:
        raise UsageError(f"Expected `--{option}` to be an integer of at least {least} but got `{text}`")
    return int(text)


class Runner:
    """Runs a sweep's trials, and keeps what is known of them in a folder.

    Args:
        sweep: What is drawn and run.
        folder: For the table, the state, the logs and the page.
        seed: Of the draws.
        more: Further words of each trial's command.
        failures: Failed trials in a row after which it stops.
    """

    def __init__(self, sweep: Sweep, folder: Path, *, seed: int, more: Sequence[str], failures: int) -> None:
        self.sweep, self.folder, self.seed = sweep, folder, seed
        self.more, self.failures = list(more), failures

    def command(self, number: int, values: dict[str, Any]) -> list[str]:
        """Return the command of a trial, as a user would type it."""
        file = self.parameters_of(number).with_suffix(".json").resolve()
        return [*words(self.sweep, values, file), *self.more]

    def check_first(self) -> None:
        """Check the first trial's command as far as that is possible without torch.

        Raises:
            UsageError: If the command line would refuse it.
        """
        from pl_losses.cli.arguments import check, split

        drawn = self.sweep.draw(1, self.seed, [])[1]
        name, *rest = self.command(1, drawn)
        if name == "pl-losses" and rest[:1] == ["fit"]:
            check("fit", split(rest[1:]))

    def run(self, count: int, retry: bool, opened: bool) -> int:
        """Run what is missing of the first ``count`` trials, and return the exit status."""
        arguments = {name: getattr(self.sweep, name) for name in ("method", "metric", "goal", "command")}
        arguments["program"] = self.sweep.program if "${program}" in self.sweep.command else ""
        spaces = {
            name: {key: value for key, value in vars(one).items() if value}
            for name, one in self.sweep.parameters.items()
        }
        arguments |= {"parameters": spaces, "seed": self.seed, "more": self.more}
        with alone(self.folder, "sweep") as self.locks:
            try:
                self.kept = Trials("sweep", self.folder, plain(arguments))
            except ValueError as error:
                raise UsageError(str(error)) from None
            trials = self.kept.results
            if retry:
                trials[:] = [one for one in trials if one["state"] == "finished"]
            done = {one["trial"] for one in trials}
            missing = [number for number in range(1, count + 1) if number not in done]
            if done:
                print(f"{len(done)} trials are in {self.folder}; {len(missing)} are left")
            failed = 0
            with sigterm_raises():
                for place, number in enumerate(missing):
                    failed = 0 if self.trial(number, count, len(missing) - place - 1) else failed + 1
                    if failed == self.failures and place + 1 < len(missing):
                        print(f"Stopped after {failed} failed trials in a row; --failures sets the number")
                        break
        self.summarize(opened)
        return 1 if failed == self.failures or not any(one["state"] == "finished" for one in trials) else 0

    def trial(self, number: int, count: int, left: int) -> bool:
        """Run a trial, keep and print what came out, and return whether it finished."""
        places, values = self.sweep.draw(number, self.seed, self.kept.results)
        drawn = ", ".join(
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in values.items()
        )
        print(visible(f"Trial {number} of {count}: {drawn}"), end=" ", flush=True)
        run, log = secrets.token_hex(4), self.folder / "logs" / f"trial-{number:04}.log"
        self.write_parameters(number, values)
        began = time.monotonic()
        try:
            status = execute(self.command(number, values), log, self.environment(run, number), self.locks)
        except UsageError:
            print(flush=True)  # The trial's line ends here.
            raise
        except (KeyboardInterrupt, SystemExit):
            print("interrupted", flush=True)
            print(f"The same command resumes from what is in {self.folder}", file=sys.stderr)
            raise
        seconds = round(time.monotonic() - began, 1)
        file = run_file(run, (RUNS, str(self.folder), "wandb"))
        metric, error = (None, last_line(log, status)) if status else self.outcome(file, values)
        state = "failed" if error else "finished"
        entry = {"trial": number, "places": places, "parameters": values, "state": state, "metric": metric}
        entry |= {"seconds": seconds, "run": str(file.parent if file else ""), "error": error}
        trials = self.kept.results
        trials.append(entry)
        trials.sort(key=lambda one: one["trial"])
        self.kept.save()
        self.kept.table("trials.csv", self.rows())
        result = (
            f"failed: {error} ({log})"
            if error
            else f"{self.sweep.metric} {metric:.4g}"
            if metric is not None
            else "done"
        )
        eta = left * statistics.mean(one["seconds"] for one in trials)
        best = self.sweep.best(trials)
        rest = [f"{seconds:.0f} s"] + ([f"best: trial {best['trial']}"] if best else [])
        rest += [f"{duration(eta)} left"] if left else []
        print(visible(f"-> {result} ({'; '.join(rest)})"), flush=True)
        return not error

    def parameters_of(self, number: int) -> Path:
        """Return the file of a trial's parameters, which ``wandb.init`` puts into its config."""
        return self.folder / "parameters" / f"trial-{number:04}.yaml"

    def write_parameters(self, number: int, values: dict[str, Any]) -> None:
        """Write a trial's parameters as W&B's agent does."""
        import yaml

        path = self.parameters_of(number)
        given = {key: {"value": value} for key, value in nested(values).items()}
        with written_whole(path) as file:
            file.write(yaml.safe_dump({"wandb_version": 1, **given}, sort_keys=False).encode())
        if "${args_json_file}" in self.sweep.command:
            with written_whole(path.with_suffix(".json")) as file:
                file.write(json.dumps(nested(values)).encode())

    def outcome(self, file: Path | None, values: dict[str, Any]) -> tuple[float | None, str]:
        """Return the last value of a trial's metric, and what is wrong if there is none.

        Args:
            file: Of the trial's run.
            values: That were drawn, and that the run's config must have if it has them at all.
        """
        from pl_losses.dashboards.offline.runs import read_run

        if file is None:
            places = f"`{RUNS}`, `wandb` or `{self.folder}`"
            return None, f"it made no W&B run in {places}: the metric is read from the file of a run"
        try:
            run = read_run(file)
        except UsageError as error:
            return None, str(error)
        for key, value in nested(values).items():
            if key in run.config and not same(run.config[key], value):
                return None, f"its run has {key}={run.config[key]!r:.80}, and {value!r:.80} was drawn"
            if key not in run.config and not self.sweep.gives_arguments():
                return None, f"its `command` has no `${{args}}`, and its run takes no `wandb.config.{key}`"
        name = self.sweep.metric
        if not name:
            return None, ""
        points = run.columns.pairs(STEP, name)[1]
        if not len(points):
            return None, f"`{name}` was not logged{nearest(name, run.curves())}"
        return float(points[-1]), ""

    def environment(self, run: str, number: int) -> dict[str, str]:
        """Return the environment of a trial: W&B offline, and a run with this id."""
        own = {
            key: value for key, value in os.environ.items() if key not in ("WANDB_SERVICE", "WANDB_SWEEP_ID")
        }
        own |= {"WANDB_MODE": "offline", "WANDB_RUN_ID": run, "WANDB_RUN_GROUP": self.sweep.name}
        own |= {"WANDB_NAME": f"{self.sweep.name} {number}"}
        own |= {"WANDB_SWEEP_PARAM_PATH": str(self.parameters_of(number).resolve())}
        own.setdefault("WANDB_DIR", str(self.folder.resolve()))  # Of a program that does not choose one.
        return own

    def rows(self) -> list[dict[str, Any]]:
        """Return the table of the trials."""
        return [
            {
                "trial": one["trial"],
                **{name.replace("/", "."): value for name, value in one["parameters"].items()},
                self.sweep.metric or "metric": one["metric"],
                **{key: one[key] for key in ("state", "seconds", "run", "error")},
            }
            for one in self.kept.results
        ]

    def summarize(self, opened: bool) -> None:
        """Print the best trial and how to run it again, and write the page of all trials."""
        from pl_losses.dashboards.offline.runs import read_run
        from pl_losses.dashboards.page.page import build_page

        trials = self.kept.results
        if best := self.sweep.best(trials):
            print(f"Best: trial {best['trial']}, {self.sweep.metric} {best['metric']:.6g}")
            variables, command = "WANDB_MODE=offline", self.command(best["trial"], best["parameters"])
            if "pl-losses" not in command:  # A program of one's own may read W&B's config.
                path = self.parameters_of(best["trial"]).resolve()
                variables += f" WANDB_SWEEP_PARAM_PATH={shlex.quote(str(path))}"
            print(visible(f"Run it again: {variables} {shlex.join(command)}"))
        print(visible(f"Table: {self.folder / 'trials.csv'}"))
        files = {
            file: {name.replace("/", "."): value for name, value in one["parameters"].items()}
            for one in trials
            if one["state"] == "finished" and one["run"]
            for file in Path(one["run"]).glob("run-*.wandb")
        }
        if files:
            page = self.folder / "show.html"
            runs = [read_run(file) for file in files]
            text = build_page(
                runs, refresh=0, metric=self.sweep.metric, title=self.sweep.name, drawn=list(files.values())
            )
            with written_whole(page) as stream:
                stream.write(text.encode())
            print(visible(f"Page: {page}") + f" ({page.stat().st_size / 1e6:.1f} MB)")
            if opened:
                webbrowser.open(page.resolve().as_uri())


class Trials(PlainExperiment):
    """What is kept of a sweep's trials."""

    def differs(self, name: str, before: Any, now: Any) -> str:
        """Say how a sweep is another one than that of the trials in the folder."""
        if name == "parameters":
            words = {
                "changed": [key for key in now if key in before and now[key] != before[key]],
                "new": [key for key in now if key not in before],
                "gone": [key for key in before if key not in now],
            }
            changed = "; ".join(f"{word}: {', '.join(keys)}" for word, keys in words.items() if keys)
            what = f"other parameters ({changed})"
        elif name == "more":
            what = (
                f"other options after `--` ({shlex.join(before) or 'none'}, not {shlex.join(now) or 'none'})"
            )
        elif name == "command":
            what = "another `command`"
        else:
            what = f"another `{name}` ({before}, not {now})"
        return f"The trials in {self.folder} are of {what}: take another --folder, or delete that one"


def plain(value: Any) -> Any:
    """Return what JSON makes of a value."""
    return json.loads(json.dumps(value))


def execute(command: Sequence[str], log: Path, environment: dict[str, str], locks: Sequence[int] = ()) -> int:
    """Run a trial's command, its output in a file, and return its exit status.

    An interruption of this process is passed on, and the trial may save its checkpoint. The trial inherits
    the descriptors of locks, and holds them as long as it runs.

    Raises:
        UsageError: If there is no such program.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # The console script may not be on the path.
    own = [sys.executable, "-m", "pl_losses"] if command[0] == "pl-losses" else command[:1]
    with log.open("wb") as file:
        try:
            # In a group of its own, so that Ctrl-C reaches it once, from here.
            process = subprocess.Popen(
                [*own, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=locks,
            )
        except OSError as error:
            raise UsageError(f"The sweep's command cannot be run: {command[0]}: {error.strerror}") from None
        for lock in locks:
            os.pwrite(lock, f"{os.getpid()} {process.pid}\n".encode(), 0)
        try:
            return process.wait()
        except BaseException:
            try:
                process.terminate()  # A shell may have it ignore SIGINT.
                process.wait(GRACE)
            except BaseException:  # It took too long, or there was a second interruption.
                process.kill()
                process.wait()
            raise


def run_file(run: str, places: Sequence[str]) -> Path | None:
    """Find the W&B file of a trial's run."""
    found = (file for place in places for file in Path(place).glob(f"**/*run-*/run-{run}.wandb"))
    return next(found, None)


def same(found: Any, drawn: Any) -> bool:
    """Return whether a run's config has the value that was drawn; it may have read it from a command line.

    >>> same("0.1", 0.1), same([1, "a"], [1.0, "a"]), same(0.1, 0.2)
    (True, True, False)
    """
    if isinstance(drawn, dict) and isinstance(found, dict):
        return all(key in found and same(found[key], value) for key, value in drawn.items())
    if isinstance(drawn, list) and isinstance(found, list):
        return len(found) == len(drawn) and all(map(same, found, drawn))
    if str(found) == str(drawn):
        return True
    try:
        return math.isclose(float(found), float(drawn), rel_tol=1e-6)
    except (TypeError, ValueError):
        return str(found).lower() == str(drawn).lower()  # "true" and "none" of command lines.


def last_line(log: Path, status: int) -> str:
    """Return the line with which a failed trial ended, its usage error if there is one, without W&B's."""
    text = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", log.read_text(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("wandb:")] or lines
    errors = [line for line in lines if line.startswith("pl-losses: ")] or lines
    return errors[-1].removeprefix("pl-losses: ")[:300] if errors and status > 0 else f"exit status {status}"


def duration(seconds: float) -> str:
    """Write a time span.

    >>> duration(40), duration(3000), duration(20000)
    ('40 s', '50 min', '5.6 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
