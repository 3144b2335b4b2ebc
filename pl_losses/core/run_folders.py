"""Runs' folders: what they keep, and the checkpoint that ``--ckpt_path`` means; found without torch."""

from __future__ import annotations

import json
import os
import re
import shlex
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pl_losses.core.files import written_whole
from pl_losses.core.jobs import Job
from pl_losses.core.signatures import canonical
from pl_losses.recipes import OVERLAYS, Config, UsageError, find, nearest, resolve, roots

RUNS = "runs"
LOGGERS = ("WandbLogger", "TensorBoardLogger", "CSVLogger")  # They save under RUNS unless told otherwise.
RECORD = re.compile(r"record(-\d+)?\.json")
DEPTH = 4  # How deep a run's folder lies within that of all runs: <project>/<id>, and some more.
UNTRAINED = ("none", "null")
WORDS = ("last", "best", "none")


@dataclass
class Run:
    """A run that left checkpoints.

    Attributes:
        folder: Its folder.
        started: When, in seconds since 1970.
        recipes: The recipe that named its model; if that is another run's config, the recipes of that run;
            and its own config.
        model: Class of its model; empty if it is not known.
        files: Its checkpoints, oldest first as far as it is known.
        best: Monitored quantity, its value and the checkpoint, for each ``ModelCheckpoint`` that monitors.
        origin: The checkpoint that it went on from itself; empty if it began anew.
        jobs: The jobs that it is of, each with the command, as :func:`named_command` writes them.
        versions: Of its loggers, as text; by them a run goes on where it was.
    """

    folder: Path
    started: float
    recipes: Sequence[str]
    model: str
    files: list[str]
    best: list[tuple[str, float | None, str]]
    origin: str = ""
    jobs: Sequence[str] = ()
    versions: Sequence[str] = ()

    def newest(self) -> str:
        """Return the checkpoint that was written last."""
        return max(enumerate(self.files), key=lambda item: (modified(item[1]), item[0]))[1]


@dataclass(frozen=True)
class Wanted:
    """The recipe and model of the runs that a command may mean.

    Attributes:
        recipe: See :func:`recipe_of`; ``None`` for any.
        model: Class of the model; empty for any.
    """

    recipe: str | None = None
    model: str = ""

    def is_met(self, run: Run) -> bool:
        """Return whether a run is of this recipe and model."""
        one, other = canonical(self.model) or "", canonical(run.model) or ""
        short = "." not in one or "." not in other
        same = one.rpartition(".")[2] == other.rpartition(".")[2] if short else one == other
        return (self.recipe is None or self.recipe in run.recipes) and (not one or not other or same)

    def __str__(self) -> str:
        name = self.recipe or self.model
        return f" of {os.path.relpath(name) if os.path.isabs(name) else name}" if name else ""


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint that a command starts from.

    Attributes:
        path: A file or folder that exists, or an address; ``None`` to start without one.
        message: Which one was taken, in a line; empty where the user named it.
        run: The run that goes on itself, as its job was started again; ``None`` for a new run.
    """

    path: str | None
    message: str = ""
    run: Run | None = None


def recipe_of(values: Iterable[str]) -> str | None:
    """Choose one of several recipes: the last that names a model, else the last.

    Args:
        values: As given to ``--config``. Overlays and inline configs do not count.

    Returns:
        Its name, or the whole path of a file of the user's own; ``None`` if there is none.
    """
    given = [value for value in values if "{" not in value and "\n" not in value]
    named = {value: name for value in given if not (name := _name(value)).startswith(f"{OVERLAYS}/")}
    with_model = [value for value in named if resolve(value).get("model")]
    last = [*named, *with_model][-1:]
    return named[last[0]] if last else None


def _name(value: str) -> str:
    path = find(value).resolve()
    for root in roots():
        if path.is_relative_to(root.resolve()):
            return path.relative_to(root.resolve()).with_suffix("").as_posix()
    return str(path)


def lineage(values: Iterable[str]) -> list[str]:
    """Return the recipe of a command; if it is a run's config, after the recipes of that run."""
    recipe = recipe_of(values)
    if recipe is None:
        return []
    beside = _read(Path(recipe).parent) if os.path.isabs(recipe) else iter(())
    return next((list(run.recipes) for run in beside if recipe in run.recipes), [recipe])


def write_record(config: Path, run: Run) -> None:
    """Write what is known of a run beside its config, ``record-1.json`` for ``config-1.yaml``.

    Files in its folder are written with relative paths.
    """
    folder = os.path.realpath(run.folder)

    def kept(file: str) -> str:
        real = file if "://" in file else os.path.realpath(file)
        return os.path.relpath(real, folder) if real.startswith(folder + os.sep) else real

    record = {"started": run.started, "recipes": list(run.recipes), "model": run.model}
    record |= {"checkpoints": [kept(file) for file in run.files]}
    record |= {"origin": kept(run.origin) if run.origin else ""}
    record |= {"jobs": list(run.jobs), "versions": list(run.versions)}
    record |= {"best": [(monitor, score, kept(file)) for monitor, score, file in run.best]}
    path = config.with_name(re.sub("^config", "record", config.stem) + ".json")
    with written_whole(path) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())


def runs(places: Iterable[str | Path]) -> list[Run]:
    """Find the runs in some folders that have a checkpoint left, the newest first."""
    return [run for run in _all_runs(places) if run.files]


def _all_runs(places: Iterable[str | Path]) -> list[Run]:
    """Find the runs in some folders, with the checkpoints that are left of each."""
    folders = {path.resolve(): path for place in places for path in _folders(Path(place))}
    found = [run for folder in folders.values() for run in _read(folder)]
    found.sort(key=lambda run: run.started, reverse=True)
    recorded = {file for run in found for file in run.files}
    taken: set[str] = set()
    for run in found:
        # Runs may share a folder: a file belongs to the newest run that can have written it.
        beside = [
            file
            for file in _checkpoints(run.folder / "checkpoints")
            if file not in recorded and modified(file) >= run.started
        ]
        run.files = [file for file in (*run.files, *beside) if file not in taken and exists(file)]
        taken.update(run.files)
    return found


def _folders(root: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(root):
        path = Path(place)
        if "checkpoints" in folders or any(map(RECORD.fullmatch, files)):
            yield path
        deep = len(path.relative_to(root).parts) >= DEPTH
        within = [name for name in folders if name not in ("checkpoints", "wandb") and name[0] != "."]
        folders[:] = [] if deep else within


def _read(folder: Path) -> Iterator[Run]:
    """Read the runs of a folder from their records; without records, a run known by checkpoints only."""
    known = False
    for path in folder.glob("record*.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            files = [str(folder / file) if "://" not in file else file for file in record["checkpoints"]]
            best = [
                (name, score, file if "://" in file else str(folder / file))
                for name, score, file in record["best"]
            ]
            config = str((folder / (re.sub("^record", "config", path.stem) + ".yaml")).resolve())
            recipes, origin = [*record["recipes"], config], str(record.get("origin") or "")
            origin = str(folder / origin) if origin and "://" not in origin else origin
            kept = [list(map(str, record.get(key, ()))) for key in ("jobs", "versions")]
            yield Run(folder, record["started"], recipes, record["model"], files, best, origin, *kept)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # Not a record of this suite.
        known = True
    files = [] if known else _checkpoints(folder / "checkpoints")
    if files:
        yield Run(folder, max(map(modified, files)), [], "", files, [])


def _checkpoints(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.ckpt")))


def modified(file: str) -> float:
    """Return when a checkpoint was written; infinity for a remote one, of which it is unknown."""
    return float("inf") if "://" in file else os.stat(file).st_mtime if os.path.exists(file) else 0.0


def exists(file: str) -> bool:
    """Return whether a checkpoint exists; a remote one is taken to."""
    return "://" in file or os.path.exists(file)


def places_of(config: Config, given: dict[str, str | None]) -> list[str]:
    """Return the folders in which a command's trainer keeps its runs.

    Args:
        config: The merged config.
        given: Value of each option.
    """
    trainer: Config = config["trainer"] if isinstance(config.get("trainer"), dict) else {}
    options = {name.replace(".init_args", ""): value for name, value in given.items()}
    root = options.get("trainer.default_root_dir") or trainer.get("default_root_dir")
    named = trainer.get("logger")
    found = []
    for logger in named if isinstance(named, list) else [named]:
        whole = logger if isinstance(logger, dict) else {"class_path": logger}
        name = str(whole.get("class_path")).rpartition(".")[2]
        own = RUNS if logger in (None, True) or name in LOGGERS else root or RUNS
        place = options.get("trainer.logger.save_dir") if logger is not False else None
        found.append(place or (whole.get("init_args") or {}).get("save_dir") or own)
    places = dict.fromkeys(str(place) for place in (*found, root) if place and "://" not in str(place))
    return list(places)


def named_command(job: Job, command: str, flags: Iterable[tuple[str, str | None]]) -> str:
    """Name a command of a job: one job may run several."""
    return f"{job.name}: {shlex.join([command, *words(flags)])}"


def choose(
    command: str, flags: Sequence[tuple[str, str | None]], config: Config, jobs: Iterable[Job] = ()
) -> Checkpoint:
    """Look up the checkpoint that a command starts from.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        flags: The options.
        config: What the files and options say, as :func:`pl_losses.cli.arguments.check` returns it.
        jobs: Those that the command is of. If one was started again, its fit goes on, whatever
            ``ckpt_path`` says: there it began.

    Raises:
        UsageError: If there is none, or none is named although the command makes no sense without.
    """
    given = dict(flags)
    named = "ckpt_path" in given or "ckpt_path" in config
    path = given["ckpt_path"] if "ckpt_path" in given else config.get("ckpt_path")
    if path == "":
        raise UsageError("Expected `ckpt_path` to name a checkpoint but got an empty text")
    places = places_of(config, given)
    model = config.get("model")
    model = str(model.get("class_path") or "") if isinstance(model, dict) else str(model or "")
    wanted = Wanted(recipe_of(value for name, value in flags if name == "config" and value), model)
    for job in jobs if command == "fit" else ():
        name = named_command(job, command, flags)
        mine = [run for run in _all_runs(places) if name in run.jobs] if job.again else []
        if mine:
            return started_again(mine[0], job)
    if not named:
        if command == "fit":
            return Checkpoint(None)
        if "print_config" in given:
            return Checkpoint(None)
        raise UsageError(missing(command, flags, wanted, places))
    if path is None or str(path).lower() in UNTRAINED:
        return Checkpoint(None, "" if command == "fit" else "Checkpoint: none, the weights are untrained")
    try:
        return look_up(str(path), wanted, places)
    except UsageError:
        if run := without_checkpoint(str(path), wanted, places):
            return before_the_first(run, str(path), wanted, command)
        raise


def started_again(run: Run, job: Job) -> Checkpoint:
    """Choose what the run of a job goes on from: its newest checkpoint, or what it began with."""
    path = run.newest() if run.files else run.origin if run.origin and exists(run.origin) else None
    what = f"Checkpoint: {path}" if path else "No checkpoint yet: the fit starts anew"
    return Checkpoint(path, f"{what} (the run {run.folder} goes on, as {job.name} was started again)", run)


def without_checkpoint(given: str, wanted: Wanted, places: list[str]) -> Run | None:
    """Find the newest run that a name means, if none that it may mean has a checkpoint."""
    path = os.path.expanduser(given)
    if given == "last":
        folder = Path(wanted.recipe or "").parent
        found = [run for run in _read(folder) if run.recipes[-1:] == [wanted.recipe]]
    elif folders := [joined for place in ("", *places) if os.path.isdir(joined := os.path.join(place, path))]:
        found = _all_runs(folders[:1])
    else:
        found = [run for run in _all_runs(places) if run.folder.name == given]
    met = list(filter(wanted.is_met, found))
    return met[0] if met and not any(run.files for run in found) else None


def before_the_first(run: Run, given: str, wanted: Wanted, command: str) -> Checkpoint:
    """Choose what a run without a checkpoint goes on from: the one that it began with, or nothing.

    Raises:
        UsageError: If it has to be fitted first, or its own config is not the one that is named.
    """
    if run.origin and exists(run.origin):
        message = f"Checkpoint: {run.origin} (`{given}` went on from it and has none of its own yet)"
        return Checkpoint(run.origin, message)
    config = run.recipes[-1]
    if command == "fit" and wanted.recipe == config and not run.origin:
        return Checkpoint(None, f"No checkpoint yet in {os.path.relpath(run.folder)}: the fit starts anew")
    again = shlex.join(["pl-losses", "fit", "--config", os.path.relpath(config)])
    raise UsageError(f"No checkpoint yet in the run `{given}` (--ckpt_path); this starts it anew: {again}")


def missing(command: str, flags: Sequence[tuple[str, str | None]], wanted: Wanted, places: list[str]) -> str:
    """Write the error of a command that needs a checkpoint and names none."""
    found = [run for run in runs(places) if wanted.is_met(run)]
    if found:
        again = ["pl-losses", command, *words(flags), "--ckpt_path", named_by(found[0])]
        which = f"The newest run{wanted}: {shlex.join(again)}"
    else:
        where = " or ".join(f"`{place}`" for place in places)
        named = [flag for flag in flags if flag[0].split(".")[0] in ("config", "model", "data")]
        named = named or [("config", "lenet/digits")]
        fit = shlex.join(["pl-losses", "fit", *words(named)])
        which = f"No run{wanted} in {where} has a checkpoint; this makes one: {fit}"
    why = "or the model is untrained: `--ckpt_path none` if that is meant"
    return f"`{command}` needs --ckpt_path, {why}\n{which}"


def words(flags: Iterable[tuple[str, str | None]]) -> list[str]:
    """Write options as they are typed."""
    return [word for name, value in flags for word in (f"--{name}", value) if word is not None]


def named_by(run: Run) -> str:
    """Return the shortest name of a run's newest checkpoint: its folder, if no other run shares it."""
    return str(run.folder) if len(runs([run.folder])) == 1 else run.newest()


def look_up(given: str, wanted: Wanted, places: list[str]) -> Checkpoint:
    """Find the checkpoint of a name: a file, a folder, a run's id, or one of ``WORDS``; see the help.

    Raises:
        UsageError: If there is none.
    """
    if given.lower().split(":")[0] == "registry":
        raise UsageError("`registry` (--ckpt_path) is not looked up: get the checkpoint and name its file")
    if "://" in given:
        return Checkpoint(given)
    if given in ("last", "best"):
        found = [run for run in runs(places) if wanted.is_met(run)]
        if not found:
            where = " or ".join(f"`{place}`" for place in places)
            raise UsageError(f"No checkpoint for `--ckpt_path {given}`: no run{wanted} in {where} has one")
        return best(found[0], wanted) if given == "best" else last(found[0], f"the last{wanted}")
    path = os.path.expanduser(given)
    for place in ("", *places):
        if os.path.exists(joined := os.path.join(place, path)):
            return of_path(joined, given, wanted)
    return of_id(given, wanted, places)


def last(run: Run, why: str) -> Checkpoint:
    """Return a run's newest checkpoint."""
    return Checkpoint(path := run.newest(), f"Checkpoint: {path} ({why})")


def best(run: Run, wanted: Wanted) -> Checkpoint:
    """Return a run's checkpoint with the best monitored value."""
    if not run.best:
        raise UsageError(
            f"No best checkpoint (--ckpt_path) of {run.folder}: it had no ModelCheckpoint with a `monitor`;"
            " --ckpt_path last takes the newest"
        )
    monitor, score, path = run.best[0]
    if path not in run.files:
        raise UsageError(f"The best checkpoint (--ckpt_path) of {run.folder} is gone: {path}")
    value = "" if score is None else f", {score:.4g}"
    return Checkpoint(path, f"Checkpoint: {path} (the best by `{monitor}`{value}{wanted})")


def of_path(path: str, given: str, wanted: Wanted) -> Checkpoint:
    """Return the checkpoint that a path leads to."""
    if os.path.isfile(path):
        # A file without the zip's mark may still be torch's format before 1.6.
        with open(path, "rb") as stream:
            if not zipfile.is_zipfile(path) and stream.read(1) != b"\x80":
                raise UsageError(f"`{given}` (--ckpt_path) is not a checkpoint, or is damaged")
        return Checkpoint(path)
    folder = Path(path)
    if folder.suffix == ".ckpt" or (folder / ".metadata").exists() or (folder / "meta.pt").exists():
        return Checkpoint(path)  # A sharded one.
    found = runs([folder])
    if len(found) > 1:
        # A folder of several runs: take those of the recipe, if one is named.
        found = [run for run in found if wanted.is_met(run)]
    if found:
        return last(found[0], "its newest" if found[0].folder == folder else f"the last{wanted}")
    if files := _checkpoints(folder):
        return last(Run(folder, 0.0, [], "", files, []), "its newest")
    for file in folder.glob("run-*.wandb"):
        # W&B's folder, in wandb/ beside the project's.
        return of_id(file.stem.removeprefix("run-"), wanted, [str(folder.resolve().parents[1])])
    if (folder / "config.yaml").is_file():
        raise UsageError(
            f"The run in `{given}` (--ckpt_path) ended before it saved a checkpoint: it begins anew by"
            f" pl-losses fit --config {folder / 'config.yaml'}"
        )
    raise UsageError(f"No checkpoint in the folder `{given}` (--ckpt_path), nor a run{wanted} with one")


def of_id(given: str, wanted: Wanted, places: list[str]) -> Checkpoint:
    """Find the newest checkpoint of the run whose folder has this name."""
    known = runs(places)
    found = {run.folder: run for run in reversed(known) if run.folder.name == given}
    if len(found) > 1:
        found = {folder: run for folder, run in found.items() if wanted.is_met(run)} or found
    if len(found) > 1:
        raise UsageError(
            f"Several runs are named `{given}` (--ckpt_path): {', '.join(map(str, sorted(found)))}"
        )
    for run in found.values():
        return last(run, f"of run {given}")
    beside = Path(given).expanduser().parent
    near = [*WORDS, *_checkpoints(beside), *(run.folder.name for run in known)]
    near += [str(run.folder) for run in known]
    hint = nearest(given, near) or f": no such file, nor a run of that id in {', '.join(places)}"
    raise UsageError(f"No checkpoint `{given}` (--ckpt_path){hint}")
