"""Finding a run's file by what people have at hand: its folder, its id, or nothing."""

from __future__ import annotations

import sys
from pathlib import Path

from pl_losses.core.run_folders import RUNS
from pl_losses.dashboards.offline.runs import Run, read_run
from pl_losses.recipes import UsageError, nearest, visible

PATTERNS = ("**/*run-*/run-*.wandb", "**/metrics.csv")


def find_run(given: str = RUNS) -> Path:
    """Find the file of a run, or of the latest run if there are several.

    Args:
        given: The file itself; the run's folder, W&B's or that of its config and checkpoints; a folder of
            runs; or the run's id, looked for under ``runs``.

    Raises:
        UsageError: If there is none; the message names the nearest.
    """
    found = _find(given)
    return found.path if isinstance(found, Run) else found


def load_run(given: str = RUNS, watch: bool = False) -> Run:
    """Find a run as :func:`find_run` does, and read it.

    Args:
        given: As there.
        watch: Whether the latest run may be one that has not ended and has logged nothing so far.

    Raises:
        UsageError: If there is none, or it cannot be read.
    """
    found = _find(given, watch)
    return found if isinstance(found, Run) else read_run(found)


def _find(given: str, watch: bool = False) -> Path | Run:
    """Find a run's file; the run if it was read for that, which may take seconds."""
    path = Path(given)
    if path.is_file():
        return path
    if given == RUNS and not path.is_dir():
        raise UsageError(
            f"No folder `{RUNS}` here: name a run, or `pl-losses fit --config lenet/digits` makes one"
        )
    if not path.is_dir():
        return by_id(given)
    own = sorted([*path.glob("run-*.wandb"), *path.glob("metrics.csv")])
    if own:
        return own[0]
    if (path / "config.yaml").is_file() or (path / "checkpoints").is_dir():
        # RunRecord's folder is <save_dir>/<project>/<id>: W&B's file lies beside the project.
        beside = sorted(path.resolve().parents[1].glob(f"wandb/*run-*/run-{path.resolve().name}.wandb"))
        if beside:
            return _latest(beside, watch)
    found = [file for pattern in PATTERNS for file in path.glob(pattern)]
    if not found:
        raise UsageError(f"No run in `{given}`: neither a file run-<id>.wandb nor a metrics.csv")
    return _latest(found, watch)


def by_id(name: str) -> Path:
    """Find the run under ``runs`` with this id, or this version of ``CSVLogger``."""
    found = {}
    for pattern in PATTERNS:
        for file in Path(RUNS).glob(pattern):
            found[file.parent.name if file.suffix == ".csv" else file.stem.removeprefix("run-")] = file
    if name not in found:
        hint = nearest(name, found) or f"; runs are looked for in `{RUNS}`"
        raise UsageError(f"No run, file or folder named `{name}`{hint}")
    return found[name]


def _latest(files: list[Path], watch: bool) -> Path | Run:
    """Choose the newest run that did not fail and has logged something; else the newest of all."""
    newest = sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)
    for file in newest:
        try:
            run = read_run(file)
        except UsageError as error:
            fault = str(error)
        else:
            fault = f"it {run.stage}" if run.stage.startswith("failed") else ""
            if not fault and (run.keys() or (watch and not run.ended)):
                return run
        print(visible(f"Passed over `{file.parent}`: {fault or 'it has logged nothing'}"), file=sys.stderr)
    return newest[0]
