"""The record of a run: its config in its folder and its logger, and a checkpoint when it is interrupted."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pl_losses import __version__
from pl_losses.checks import class_paths
from pl_losses.recipes import HERE, Config, dump
from pl_losses.run_folders import Run, exists, lineage, modified, named_by, write_record
from pl_losses.trust import always


def run_folder(trainer: Trainer) -> Path:
    """The folder in which ``ModelCheckpoint`` puts ``checkpoints/`` unless told otherwise.

    For rank zero only: on other ranks a logger may not know its version.
    """
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)


class RunRecord(Callback):
    """Keeps what a run was made of: the config in its folder, and the config and versions in its loggers.

    Beside the config it keeps which checkpoints the run has, so that they are found again.

    Args:
        config: The resolved config, plain data.
        recipe: Names of the recipes and files it came from.
        own: Packages of the user's own that are trusted, which commands for this run then name.

    Attributes:
        folder: The run's folder, the same on all ranks, once the run is set up.
        saved: Where the config was saved (rank zero).
        run: The recipes and checkpoints of a fit (rank zero).
    """

    def __init__(
        self, config: Config, recipe: list[str] | None = None, own: frozenset[str] = frozenset()
    ) -> None:
        self.config = config
        self.recipe = recipe or []
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
        if trainer.is_global_zero and self.folder is not None:
            self.saved = save_config(self.config, self.folder)
            if stage == "fit":
                model = str((self.config.get("model") or {}).get("class_path") or "")
                self.run = Run(self.folder, time.time(), lineage(self.recipe), model, [], [])
                self.keep(trainer)
            for logger in trainer.loggers:
                logger.log_hyperparams(self.facts())

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write model and data of the config into the checkpoint."""
        checkpoint["pl_losses"] = {key: self.config[key] for key in ("model", "data") if self.config.get(key)}
        self._step = checkpoint["global_step"]
        self.keep(trainer)

    def keep(self, trainer: Trainer, *files: str) -> None:
        """Note the checkpoints that the fit has now, and others by name."""
        if self.run is None or self.saved is None:
            return
        known = list(files)
        best = []
        for callback in trainer.checkpoint_callbacks:
            path = getattr(callback, "best_model_path", "")
            known += [*getattr(callback, "best_k_models", ()), path, getattr(callback, "last_model_path", "")]
            known += [getattr(callback, "ckpt_path", "")]  # OnExceptionCheckpoint's.
            if path and getattr(callback, "monitor", None):
                score = getattr(callback, "best_model_score", None)
                best.append((callback.monitor, None if score is None else float(score), path))  # type: ignore[attr-defined]
        run = self.run
        # One that is not there yet is about to be written; an older one is of the run that this goes on from.
        mine = [file for file in known if file and (not exists(file) or modified(file) >= run.started)]
        run.files = list(dict.fromkeys([*filter(exists, run.files), *mine]))
        run.best = [one for one in best if one[2] in run.files]
        write_record(self.saved, run)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the checkpoints once more: those of weights alone come without a call."""
        self.keep(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self.keep(trainer)

    def facts(self) -> Config:
        """What the loggers are told."""
        versions = {
            "pl_losses": __version__,
            "torch": str(torch.__version__),
            "lightning": lightning.__version__,
        }
        facts: Config = {"config": self.config, "recipe": ", ".join(self.recipe), **versions}
        if git := git_state(HERE.parent):
            facts["git"] = git
        return facts

    def farewell(self, trainer: Trainer, testable: bool = False) -> str:
        """Where the run is, how to look at it, and how to test a fit's checkpoint; for rank zero only."""
        folder = run_folder(trainer)
        lines = [f"Run: {folder}"] if folder.is_dir() else []  # A test leaves none.
        if testable and self.run and any(map(exists, self.run.files)):
            self.run.files = list(filter(exists, self.run.files))
            steps = [getattr(one, "_last_global_step_saved", 0) for one in trainer.checkpoint_callbacks]
            step, final = self._step or max(steps, default=0), trainer.global_step
            when = f"  (saved at step {step} of {final})" if step != final else ""
            # Without a logger, later runs share the folder.
            name = named_by(self.run) if trainer.loggers else self.run.newest()
            command = shlex.join(["pl-losses", "test", "--ckpt_path", name, *self.trust])
            lines.append(f"Test it:    {command}{when}")
        for logger in trainer.loggers:
            lines += how_to_look(logger)
        return "\n".join(lines)


def how_to_look(logger: Logger) -> list[str]:
    """The commands that show a logger's run."""
    if isinstance(logger, WandbLogger):
        folder = shlex.quote(os.path.relpath(Path(logger.experiment.dir).parent))
        if logger._offline:
            page = f"As a page:  pl-losses show {folder}"
            return [f"Look at it: wandb leet {folder}", page, f"Upload it:  wandb sync {folder}"]
        return [f"Look at it: {getattr(logger.experiment, 'url', None) or f'wandb leet {folder}'}"]
    if isinstance(logger, TensorBoardLogger):
        return [f"Look at it: tensorboard --logdir {shlex.quote(str(logger.save_dir))}"]
    if isinstance(logger, CSVLogger):
        return [f"Look at it: {Path(logger.log_dir, 'metrics.csv')}"]
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
    """The commit of a checkout, marked if files were changed; empty where there is none."""
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


class InterruptionCheckpoint(Callback):
    """Saves a checkpoint when training is interrupted by Ctrl-C or SIGTERM, and tells how to go on from it.

    Args:
        record: The record of the same run, which knows its folder.
        show: Prints one message.

    Attributes:
        status: The exit status that shells expect after the signal; ``None`` without one.
    """

    def __init__(self, record: RunRecord, show: Callable[[str], None] = print) -> None:
        self.record = record
        self.show = show
        self.status: int | None = None
        self._training = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to save."""
        self._training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What comes after training is not to be resumed."""
        self._training = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save if the exception is an interruption of training."""
        if not isinstance(exception, (KeyboardInterrupt, SIGTERMException)):
            return
        self.status = 143 if isinstance(exception, SIGTERMException) else 130
        folder = self.record.folder
        if trainer.state.fn == TrainerFn.FITTING and not self._training and trainer.global_step == 0:
            self.show("Interrupted before the first step: there is nothing to go on from.")
        if not self._training or folder is None or trainer.state.fn != TrainerFn.FITTING:
            return
        path = folder / "checkpoints" / f"interrupted-step={trainer.global_step}.ckpt"
        if not save_alone_or_together(trainer, path, exception):
            self.show("Interrupted; this strategy saves on all ranks together, so no checkpoint was written.")
        elif trainer.is_global_zero:
            self.record.keep(trainer, str(path))
            command = ["pl-losses", "fit", "--config", str(self.record.saved), "--ckpt_path", str(path)]
            command += self.record.trust
            self.show(f"Interrupted at step {trainer.global_step}. Go on with:\n  {shlex.join(command)}")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a batch be taken again whose step was interrupted: the loader has handed it out already."""
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if self.status is None or progress.ready == progress.processed:
            return
        for state in checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", ()):
            if state.keys() == {"epoch", "batch", "order"}:  # A BatchLoader's.
                state["batch"] -= 1


def save_alone_or_together(trainer: Trainer, path: Path, exception: BaseException) -> bool:
    """Save a checkpoint after an interruption; false if that is not safe.

    Lightning brings all ranks to a SIGTERM at the same batch, and they save together. Ctrl-C meets every rank
    where it is, where a collective would hang: rank zero saves alone if it holds the whole state.
    """
    if trainer.world_size == 1 or isinstance(exception, SIGTERMException):
        trainer.save_checkpoint(path, weights_only=False)
        return True
    if not isinstance(trainer.strategy, DDPStrategy):
        return False
    if trainer.is_global_zero:
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        trainer.strategy.save_checkpoint(state, path)
    return True
