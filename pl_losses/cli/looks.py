"""``pl-losses show`` and ``pl-losses dashboard``; wrong arguments are refused before heavy imports."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pl_losses.core.files import written_whole
from pl_losses.core.manifests import reproduced
from pl_losses.recipes import EXTRA, OVERLAYS, UsageError, names, nearest, visible

if TYPE_CHECKING:
    from pl_losses.dashboards.offline.runs import Run

SHOW_HELP = """usage: pl-losses show [RUN ...] [--out FILE] [--open BOOL] [--terminal BOOL] [--watch]

Write one HTML page of a run, which needs no network: curves, histograms over time, pictures, tables, config,
the machine and the terminal. Several runs are compared on one page.

  RUN                      a run's folder, its id, run-<id>.wandb or metrics.csv, or a folder of runs for the
                           latest in it (default: runs)
  --out FILE               where to write (default: show.html in the first run's folder)
  --open BOOL              open it in the browser (default: if this is a desktop)
  --terminal BOOL          show the runs in the terminal too, by `wandb leet` (default: false)
  --watch                  write the page again and again, and have it load itself, until the run ends or
                           Ctrl-C
"""

DASHBOARD_HELP = """usage: pl-losses dashboard json RECIPE
       pl-losses dashboard push RECIPE --entity NAME --project NAME

Print the W&B workspace of a recipe, or of what `pl-losses reproduce` makes, or save it to W&B: a new one, or
over the one that was pushed before. Takes the extra `dashboards`; json needs no account.

  --entity NAME            W&B's user or team
  --project NAME           W&B's project (default: pl_losses)
"""
ACTIONS = ("json", "push")
EVERY = 5  # seconds


def positional(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before the first option, and the rest."""
    first = next((place for place, arg in enumerate(args) if arg.startswith("-")), len(args))
    return list(args[:first]), list(args[first:])


def options(flags: Sequence[tuple[str, str | None]], known: Sequence[str]) -> dict[str, str]:
    """Return the options by name.

    Raises:
        UsageError: If there is no such option.
    """
    for name, _ in flags:
        if name not in known:
            hint = nearest(name, known, "`--{}`") or f": expected {', '.join(f'--{one}' for one in known)}"
            raise UsageError(f"Unknown option `--{name}`{hint}")
    return {name: value or "" for name, value in flags}


def show(args: Sequence[str]) -> int:
    """Write the page of the named runs, and return the exit status."""
    from pl_losses.cli.arguments import split

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

    runs = [load_run(name, watch) for name in given or [RUNS]]
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


def write_page(runs: Sequence[Run], out: Path, refresh: bool) -> None:
    """Write the page of runs.

    Raises:
        UsageError: If the file cannot be written.
    """
    from pl_losses.dashboards.page.page import build_page

    page = build_page(runs, EVERY if refresh else 0)
    try:
        with written_whole(out) as file:
            file.write(page.encode())
    except OSError as error:
        raise UsageError(f"`--out`: {error}") from None


def follow(runs: list[Run], out: Path) -> list[Run]:
    """Write the page anew whenever the runs' files grow, until all have ended or Ctrl-C; return them."""
    from pl_losses.dashboards.offline.runs import read_run

    print(visible(f"Page: {out}, written anew every {EVERY} s until the run ends or Ctrl-C"))
    seen, took = changed(runs), 0.0
    with contextlib.suppress(KeyboardInterrupt):
        while not all(run.ended for run in runs):
            time.sleep(max(EVERY, 2 * took))
            if (now := changed(runs)) != seen:
                seen, started = now, time.monotonic()
                # CSVLogger's file is empty while it is written.
                with contextlib.suppress(UsageError):
                    runs = [read_run(run.path) for run in runs]
                    write_page(runs, out, refresh=True)
                took = time.monotonic() - started
    write_page(runs, out, refresh=False)
    return runs


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


def dashboard(args: Sequence[str]) -> int:
    """Print or push a recipe's workspace, and return the exit status."""
    from pl_losses.cli.arguments import split

    given, rest = positional(args)
    if not args or rest[:1] in (["--help"], ["-h"]):
        print(DASHBOARD_HELP, end="")
        return 0
    chosen = options(split(rest), ("entity", "project"))
    name = check(given)
    project = chosen.get("project") or "pl_losses"
    if given[0] == "push":
        if not chosen.get("entity"):
            raise UsageError("`dashboard push` takes --entity: W&B's user or team")
        sign_in()
    from pl_losses.dashboards.workspace import build_workspace, push, spec

    if given[0] == "push":
        print(f"Saved: {push(name, chosen['entity'], project)}")
    else:
        print(json.dumps(spec(build_workspace(name, chosen.get("entity", ""), project)), indent=2))
    return 0


def sign_in() -> None:
    """Have wandb look for an API key and try it.

    Raises:
        UsageError: If there is none, or W&B does not take it or cannot be reached.
    """
    import wandb

    try:
        found = wandb.login(prompt=False)
    except wandb.Error as error:
        raise UsageError(f"Not signed in to W&B: {str(error).splitlines()[0]}") from None
    if not found:
        raise UsageError("Not signed in to W&B: `wandb login` asks for an API key, or set WANDB_API_KEY")


def check(given: Sequence[str]) -> str:
    """Return the recipe that is named after ``json`` or ``push``, if it exists.

    Raises:
        UsageError: If there is none (the message names the nearest), or wandb-workspaces is missing.
    """
    if not given or given[0] not in ACTIONS:
        what = f"`{given[0]}`" if given else "nothing"
        raise UsageError(f"Expected `dashboard` to be followed by {' or '.join(ACTIONS)} but got {what}")
    if len(given) != 2:
        raise UsageError(
            f"Expected `dashboard {given[0]}` to be followed by one recipe but got {len(given) - 1}"
        )
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UsageError(
            f"Dashboards on W&B need wandb-workspaces: {EXTRA.format('dashboards')}\n"
            "(`pl-losses show` works without it)"
        )
    name = given[1]
    known = [one for one in names() if not one.startswith(f"{OVERLAYS}/")]
    known += [one.name for one in reproduced().values() if one.panels]
    if name not in known and not Path(name).is_file():
        hint = nearest(name, known) or "; `pl-losses recipes` lists them"
        raise UsageError(f"No recipe named `{name}`{hint}")
    return name
