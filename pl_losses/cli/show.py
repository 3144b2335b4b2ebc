"""``pl-losses show``; wrong arguments are refused before heavy imports."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pl_losses.cli.arguments import options, positional, split
from pl_losses.core.files import written_whole
from pl_losses.recipes import UsageError, visible

if TYPE_CHECKING:
    from pl_losses.dashboards.offline.runs import Run

SHOW_HELP = """usage: pl-losses show [RUN ...] [--out FILE] [--open BOOL] [--terminal BOOL] [--watch]

Write a run as one HTML page: curves, histograms over time, pictures, tables, settings, the load of the
machine and the text of the terminal. With several runs, the page compares them. The page needs no network.

  RUN                      the folder or id of a run, its run-<id>.wandb or metrics.csv, or a folder of
                           runs: then the latest run in it (default: runs)
  --out FILE               file of the page (default: show.html in the folder of the first run)
  --open BOOL              open the page in the browser (default: true on a desktop)
  --terminal BOOL          show the runs in the terminal too, by `wandb leet` (default: false)
  --watch                  update the page while the run goes on; stops when the run ends, is killed, or
                           writes nothing for half an hour, or at Ctrl-C
"""

BESIDE = ("debug.log", "debug-internal.log", "latest-run")  # What W&B has beside the folders of runs.
EVERY = 5  # seconds
IDLE = 1800  # seconds after which a run without a new row is over: of CSVLogger, or of another machine
SETTLED = 20  # seconds after which nothing more comes of a run whose process is gone: wandb writes more often


def show(args: Sequence[str]) -> int:
    """Write the page of the named runs, and return the exit status."""
    watch = "--watch" in args
    given, rest = positional([arg for arg in args if arg != "--watch"])
    if rest[:1] in (["--help"], ["-h"]):
        print(SHOW_HELP, end="")
        return 0
    chosen = options(split(rest), ("out", "open", "terminal"))
    wanted = opens(chosen.get("open", "auto"))
    terminal = truth("terminal", chosen.get("terminal", "false"))
    from pl_losses.core.run_folders import RUNS
    from pl_losses.dashboards.offline.find import load_run
    from pl_losses.dashboards.page.page import leet_commands

    # `runs/wandb/*` names these, too.
    given = [one for one in given if Path(one).name not in BESIDE] or given
    for name in given:
        if Path(name, "trials.csv").is_file() and (page := Path(name, "show.html")).is_file():
            print(visible(f"All trials of this sweep: {page}"))
    runs = whole_runs([load_run(name, watch) for name in given or [RUNS]])
    out = Path(chosen["out"]) if chosen.get("out") else runs[0].path.parent / "show.html"
    write_page(runs, out, watch)
    if wanted:
        webbrowser.open(out.resolve().as_uri())
    if watch:
        runs = follow(runs, out)
    for run in runs:
        print(visible(f"Run {run.name}: {run.stage}; {run.columns.count} rows, {len(run.keys())} keys"))
        for note in run.notes:
            print(visible(f"  {note}"))
    for command in leet_commands(runs):
        print(visible(f"In the terminal: {command}"))
    print(visible(f"Page: {out}") + f" ({out.stat().st_size / 1e6:.1f} MB)")
    if terminal:
        for command in leet_commands(runs):
            subprocess.run([sys.executable, "-m", *shlex.split(command)], check=False)
    return 0


def whole_runs(runs: Sequence[Run]) -> list[Run]:
    """Leave out runs that are earlier parts of another one."""
    parts = {folder.resolve() for run in runs for folder in run.folders[1:]}
    return [run for run in runs if run.folders[0].resolve() not in parts]


def write_page(runs: Sequence[Run], out: Path, refresh: bool) -> None:
    """Write the page of runs.

    Raises:
        UsageError: If the file cannot be written.
    """
    from pl_losses.dashboards.page.page import build_page

    page = build_page(runs, refresh=EVERY if refresh else 0)
    try:
        with written_whole(out) as file:
            file.write(page.encode())
    except OSError as error:
        raise UsageError(f"`--out`: {error}") from None


def follow(runs: list[Run], out: Path) -> list[Run]:
    """Write the page anew whenever the runs' files grow, until all are over or Ctrl-C; return them."""
    from pl_losses.dashboards.offline.runs import read_run, was_killed

    notice = f"Page: {out}, written anew every {EVERY} s until the run ends or Ctrl-C"
    if all(run.ended for run in runs):
        notice = "This run has ended; of one that is starting, give the command again once it has begun"
    print(visible(notice))
    seen, took = changed(runs), 0.0
    with contextlib.suppress(KeyboardInterrupt):
        while not all(map(is_over, runs)):
            time.sleep(max(EVERY, 2 * took))
            if (now := changed(runs)) != seen:
                seen, started = now, time.monotonic()
                # CSVLogger's file is empty while it is written.
                with contextlib.suppress(UsageError):
                    runs = [read_run(run.path) for run in runs]
                    write_page(runs, out, refresh=True)
                took = time.monotonic() - started
    runs = [read_run(run.path) if was_killed(run) else run for run in runs]
    write_page(runs, out, refresh=False)
    return runs


def is_over(run: Run) -> bool:
    """Return whether nothing more is to be expected of a run."""
    from pl_losses.dashboards.offline.runs import was_killed

    still = time.time() - run.path.stat().st_mtime
    return run.ended or still > IDLE or (still > SETTLED and was_killed(run))


def changed(runs: Sequence[Run]) -> list[float]:
    """Return when the runs' files were written."""
    return [run.path.stat().st_mtime for run in runs]


def truth(option: str, answer: str) -> bool:
    """Parse an option's "true" or "false".

    Raises:
        UsageError: If it is neither true nor false.
    """
    if answer.lower() not in ("true", "false"):
        raise UsageError(f"Expected `--{option}` to be true or false but got `{answer}`")
    return answer.lower() == "true"


def opens(answer: str) -> bool:
    """Return whether to open the browser: as asked, else if there is a desktop to open it on."""
    if answer != "auto":
        return truth("open", answer)
    desktop = (
        sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    )
    return desktop and sys.stdout.isatty()
