"""``pl-losses show``; wrong arguments are refused before heavy imports."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from pl_losses.cli.arguments import options, positional, split
from pl_losses.core.files import written_whole
from pl_losses.recipes import UsageError, visible

SHOW_HELP = """usage: pl-losses show [RUN ...] [--out FILE] [--open BOOL] [--terminal BOOL]

Write one HTML page of a run, which needs no network: curves, histograms over time, pictures, tables, config.
Several runs are compared on one page.

  RUN                      a run's folder, its id, run-<id>.wandb or metrics.csv, or a folder of runs for the
                           latest in it (default: runs)
  --out FILE               where to write (default: show.html in the first run's folder)
  --open BOOL              open it in the browser (default: if this is a desktop)
  --terminal BOOL          show the runs in the terminal too, by `wandb leet` (default: false)
"""


def show(args: Sequence[str]) -> int:
    """Write the page of the named runs, and return the exit status."""
    given, rest = positional(args)
    if rest[:1] in (["--help"], ["-h"]):
        print(SHOW_HELP, end="")
        return 0
    chosen = options(split(rest), ("out", "open", "terminal"))
    wanted = opens(chosen.get("open", "auto"))
    terminal = truth("terminal", chosen.get("terminal", "false"))
    from pl_losses.core.run_folders import RUNS
    from pl_losses.dashboards.offline.find import find_run

    paths = [find_run(name) for name in given or [RUNS]]
    out = Path(chosen["out"]) if chosen.get("out") else paths[0].parent / "show.html"
    from pl_losses.dashboards.offline.runs import read_run
    from pl_losses.dashboards.page.page import build_page, leet_commands

    runs = [read_run(path) for path in paths]
    page = build_page(runs)
    try:
        with written_whole(out) as file:
            file.write(page.encode())
    except OSError as error:
        raise UsageError(f"`--out`: {error}") from None
    for run in runs:
        print(visible(f"Run {run.name}: {run.stage}; {run.columns.count} rows, {len(run.keys())} keys"))
        for note in run.notes:
            print(visible(f"  {note}"))
    for command in leet_commands(runs):
        print(visible(f"In the terminal: {command}"))
    print(visible(f"Page: {out}") + f" ({out.stat().st_size / 1e6:.1f} MB)")
    if wanted:
        webbrowser.open(out.resolve().as_uri())
    if terminal:
        for command in leet_commands(runs):
            subprocess.run([sys.executable, "-m", *shlex.split(command)], check=False)
    return 0


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
