"""The record of a run: its config in its folder and its logger."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from pl_losses.core.compat import of_lightning
from pl_losses.core.files import checksum
from pl_losses.core.kinds import is_csv, is_tensorboard, is_wandb
from pl_losses.core.manifests import papers_of
from pl_losses.core.names import own_class
from pl_losses.core.refusals import fault
from pl_losses.core.run_folders import Run, exists, lineage, modified, named_by, write_record
from pl_losses.core.trust import always, class_paths
from pl_losses.core.version import __version__
from pl_losses.core.wandb_run import about, settings
from pl_losses.recipes import HERE, OVERLAYS, Config, dump

RECORDED = ("fit", "predict")  # These commands write into the run's folder.
TRAINED_BY = "pl_losses_run"  # Key in a checkpoint: the recipe, the seed, and W&B's id of the run.


def run_folder(trainer: Trainer) -> Path:
    """Return the folder in which ``ModelCheckpoint`` puts ``checkpoints/`` by default.

    For rank zero only: on other ranks a logger may not know its version.
    """
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    return folder_of(trainer.loggers[0], trainer)


def folder_of(logger: Logger, trainer: Trainer) -> Path:
    """Return the folder of a logger's run."""
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)


class RunRecord(Callback):
    """Keeps the origin of a run: the config in its folder, and the config and versions in its loggers.

    Beside the config it keeps the list of the run's checkpoints, so that commands find them again. A
    checkpoint names the run that made it, and W&B's config of a run that starts from it names both. A test is
    a run of its own. Under the id of the training it only adds its results: name and config stay.

    Args:
        config: The resolved config, plain data.
        recipe: Names of the recipes and files it came from, or inline configs.
        own: Packages of the user's own that are trusted, which commands for this run then name.
        origin: The checkpoint that the run goes on from, if any.
        command: "fit", "validate", "test" or "predict"; the first and last write into the run's folder.
        trained_by: What the checkpoint says of the run that made it.
        step: The checkpoint's step.
        jobs: Those that the run is of, see :class:`~pl_losses.core.run_folders.Run`.
        resumed: The run that goes on itself; then no other record is made.

    Attributes:
        folder: The run's folder, the same on all ranks, once the run is set up.
        saved: Where the config was saved (rank zero).
        run: The recipes and checkpoints of a fit (rank zero).
    """

    def __init__(
        self,
        config: Config,
        recipe: list[str] | None = None,
        *,
        own: frozenset[str] = frozenset(),
        origin: str | None = None,
        command: str = "fit",
        trained_by: Any = None,
        step: int = 0,
        jobs: Sequence[str] = (),
        resumed: Run | None = None,
    ) -> None:
        self.config = config
        self.origin = origin or ""
        self.command = command
        self.step = step
        known = trained_by if isinstance(trained_by, dict) else {}
        # A file may come from anyone: labels, and nothing else.
        self.trained_by = {key: str(known[key])[:200] for key in ("recipe", "seed", "id") if known.get(key)}
        self.jobs, self.resumed = jobs, resumed
        self.given = recipe or []
        self.names = self._names()
        used = sorted((own - always()) & {path.split(".")[0] for path in class_paths(config)})
        self.trust = ["--trust", ",".join(used)] if used else []
        self.folder: Path | None = None
        self.saved: Path | None = None
        self.run: Run | None = None
        self._step: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the config once, when the first stage begins."""
        if self.folder is not None or getattr(trainer, "fast_dev_run", False):
            return
        folder = run_folder(trainer) if trainer.is_global_zero else None
        self.folder = trainer.strategy.broadcast(folder)
        profiler: Any = trainer.profiler  # type: ignore[attr-defined]
        if str(profiler.dirpath) == str(trainer.log_dir):  # Lightning's choice: the folder of all runs.
            profiler.dirpath = self.folder
        if trainer.is_global_zero and self.folder is not None:
            if self.resumed is not None and self.resumed.folder.resolve() == self.folder.resolve():
                *recipes, config = self.resumed.recipes
                self.run = replace(self.resumed, recipes=recipes)
                self.saved = self.folder / Path(config).name
            elif self.command in RECORDED:
                self.saved = save_config(self.config, self.folder)
            if stage == "fit":
                known = self.run or Run(
                    self.folder, time.time(), lineage(self.given), self._model(), [], [], self.origin
                )
                versions = [str(logger.version) for logger in trainer.loggers]
                named = list(dict.fromkeys([*known.jobs, *self.jobs]))
                self.run = replace(known, jobs=named, versions=versions)
                self.keep(trainer)
            for logger in trainer.loggers:
                if is_wandb(logger):
                    if not self.adds_to(logger.version):
                        logger.log_hyperparams(self.facts() | self.checkpoint())
                elif self.command in RECORDED:
                    logger.log_hyperparams(self.facts())

    def _model(self) -> str:
        return str((self.config.get("model") or {}).get("class_path") or "")

    def _names(self) -> list[str]:
        # The config of a run is of that run's recipe.
        origin = lineage(self.given)
        named = self.given if len(origin) < 2 else origin[:1]
        return named or list(filter(None, self.trained_by.get("recipe", "").split(", ")))

    def _seed(self) -> str:
        seed = os.environ.get("PL_GLOBAL_SEED", "")  # Lightning keeps it there.
        own = f"seed {seed}" if seed else ""
        return own if self.command == "fit" else self.trained_by.get("seed", own)

    def adds_to(self, run: object) -> bool:
        """Return whether a command other than ``fit`` writes into the run that trained its checkpoint."""
        return self.command != "fit" and bool(run) and str(run) == self.trained_by.get("id")

    def about(self, run: str | None = None) -> Config:
        """Return what W&B is told of the run, unless the user tells it.

        A fit is named by what it is of. A test of it, and a fit that goes on from its checkpoint as another
        run, say so: W&B's table of runs has all of them.

        Args:
            run: W&B's id of the run, if it was given.
        """
        if self.adds_to(run):
            return {"settings": settings()}
        named = [name for name in self.names if "{" not in name and "\n" not in name]
        own = [name for name in named if not name.startswith(f"{OVERLAYS}/")]
        group = (own or [self._model().rpartition(".")[2]])[0]
        # A recipe's name alone would tell nothing of one's own class in it.
        parts = [own_class(self._model()), *named] if own else [group, *named]
        what = "" if self.command == "fit" else self.command
        if self.command == "fit" and self.origin and (run or "") != self.trained_by.get("id"):
            what = f"from step {self.step}" if self.step else "resumed"
        label = ", ".join(filter(None, [*parts, self._seed(), what]))
        return about(label, group, self.command, papers_of(class_paths(self.config)))

    def checkpoint(self) -> Config:
        """Return what W&B's config says of the checkpoint that the run starts from."""
        if not self.origin:
            return {}
        file = Path(self.origin)
        digits = {"sha256": checksum(file)} if file.is_file() else {}
        run = {"run": self.trained_by["id"]} if "id" in self.trained_by else {}
        return {"checkpoint": {"path": self.origin, **digits, **run}}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the config into the checkpoint."""
        checkpoint["pl_losses"] = {key: value for key, value in self.config.items() if value is not None}
        ids = [str(one.version) for one in trainer.loggers if is_wandb(one) and one.version]
        checkpoint[TRAINED_BY] = {
            "recipe": ", ".join(self.names),
            "seed": self._seed(),
            "id": (ids or [""])[0],
        }
        self._step = checkpoint["global_step"]
        self.keep(trainer)

    def keep(self, trainer: Trainer, *files: str) -> None:
        """Note the fit's current checkpoints, and others by name."""
        if self.run is None or self.saved is None:
            return
        known = list(files)
        best = []
        for callback in trainer.checkpoint_callbacks:
            path = getattr(callback, "best_model_path", "")
            known += [*getattr(callback, "best_k_models", ()), path, getattr(callback, "last_model_path", "")]
            known += [getattr(callback, "ckpt_path", "")]  # The path of OnExceptionCheckpoint.
            if path and getattr(callback, "monitor", None):
                score = getattr(callback, "best_model_score", None)
                best.append((callback.monitor, None if score is None else float(score), path))  # type: ignore[attr-defined]
        run = self.run
        # A missing file is about to be written; an older one belongs to the run that this one resumes.
        mine = [file for file in known if file and (not exists(file) or modified(file) >= run.started)]
        run.files = list(dict.fromkeys([*filter(exists, run.files), *mine]))
        run.best = [one for one in best if one[2] in run.files]
        with contextlib.suppress(OSError):  # The disk may be full; checkpoints are found without it.
            write_record(self.saved, run)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the checkpoints once more: Lightning saves weights alone without a call of this class."""
        self.keep(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Note the checkpoints, as the fit may have saved some."""
        self.keep(trainer)

    def facts(self) -> Config:
        """Return what is written to the loggers."""
        versions = {
            "pl_losses": __version__,
            "torch": str(torch.__version__),
            "lightning": lightning.__version__,
        }
        facts: Config = {"config": self.config, "recipe": ", ".join(self.names), **versions}
        if git := git_state(HERE.parent):
            facts["git"] = git
        return facts

    def summary(self, trainer: Trainer, testable: bool = False) -> str:
        """Say where the run is, how to look at it, and how to test a fit's checkpoint; for rank zero only."""
        folder = run_folder(trainer)
        lines = [f"Run: {folder}"] if folder.is_dir() else []  # A test makes no folder.
        if testable and self.run and any(map(exists, self.run.files)):
            self.run.files = list(filter(exists, self.run.files))
            steps = [of_lightning.saved_step(one, never=0) for one in trainer.checkpoint_callbacks]
            step, final = self._step or max(steps, default=0), trainer.global_step
            when = f"  (saved at step {step} of {final})" if step != final else ""
            # Without a logger, later runs share the folder.
            name = named_by(self.run) if trainer.loggers else self.run.newest()
            there = wandb_options(self.config.get("trainer"))
            command = shlex.join(["pl-losses", "test", "--ckpt_path", name, *there, *self.trust])
            lines.append(f"Test it:    {command}{when}")
        for logger in trainer.loggers:
            lines += how_to_look(logger)
        return "\n".join(lines)


def wandb_options(trainer: Any) -> list[str]:
    """Return the options by which another run goes to the same place on W&B, where it is not the usual one.

    >>> logger = {"class_path": "WandbLogger", "init_args": {"offline": False, "project": "pl_losses"}}
    >>> wandb_options({"logger": logger})
    ['--trainer.logger.offline', 'false']
    """
    logger = trainer.get("logger") if isinstance(trainer, dict) else None
    if not isinstance(logger, dict) or "WandbLogger" not in logger["class_path"]:
        return []
    usual = {"offline": True, "project": "pl_losses", "entity": None}
    arguments = logger.get("init_args") or {}
    given = {key: arguments.get(key, value) for key, value in usual.items()}
    if arguments.get("mode") in ("online", "shared"):
        given["offline"] = False
    elif os.environ.get("WANDB_MODE") == "disabled":
        given["offline"] = True
    changed = {key: value for key, value in given.items() if value != usual[key]}
    words = [(f"--trainer.logger.{key}", str(value or "false")) for key, value in changed.items()]
    return [word for pair in words for word in pair]


def how_to_look(logger: Logger) -> list[str]:
    """Return the commands that show a logger's run."""
    if is_wandb(logger):
        if logger.experiment.disabled:
            return []
        folder = shlex.quote(os.path.relpath(Path(logger.experiment.dir).parent))
        if of_lightning.is_offline(logger):
            page = f"As a page:  pl-losses show {folder}"
            return [f"Look at it: wandb leet {folder}", page, f"Upload it:  wandb sync {folder}"]
        if not fault(logger.experiment.settings.base_url):
            return [f"Look at it: {getattr(logger.experiment, 'url', None) or f'wandb leet {folder}'}"]
        upload = f"Upload it:  wandb sync --no-skip-online {folder}  (W&B does not answer now)"
        return [f"Look at it: wandb leet {folder}", f"As a page:  pl-losses show {folder}", upload]
    if is_tensorboard(logger):
        return [f"Look at it: tensorboard --logdir {shlex.quote(str(logger.save_dir))}"]
    if is_csv(logger):
        folder = shlex.quote(os.path.relpath(logger.log_dir))
        return [f"Look at it: {Path(logger.log_dir, 'metrics.csv')}", f"As a page:  pl-losses show {folder}"]
    return []


def save_config(config: Config, folder: Path) -> Path:
    """Write ``config.yaml``, or ``config-1.yaml`` and so on: no file is ever overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        path = folder / (f"config-{number}.yaml" if number else "config.yaml")
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(dump(config))
            return path
        except FileExistsError:
            number += 1


def git_state(folder: Path) -> str:
    """Return the commit of a checkout, marked if files were changed; "" if there is none."""
    if not (folder / ".git").exists():
        return ""

    def git(*args: str) -> str:
        command = ["git", "-C", str(folder), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""
