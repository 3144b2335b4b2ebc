"""W&B artifacts of a run, on request: the data it used, by name and checksum, and its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from pl_losses.core.compat import of_wandb
from pl_losses.core.experiment import kept_by
from pl_losses.core.kinds import is_wandb
from pl_losses.core.validation import typed


class ArtifactRecord(Callback):
    """Records the data and the checkpoints of a run as W&B artifacts, also offline.

    Each split of the data becomes an input of the run. This is an artifact ``<class>-<split>`` of type
    "dataset". It has the :meth:`~pl_losses.data.TensorDataModule.identity` of the data, and not the data
    themselves. So runs on the same samples have the same version. When a fit ends or is interrupted, its
    checkpoints become outputs of the run. They are versions of ``model-<run id>``, of type "model". The
    newest is called "last". The one that the first ``ModelCheckpoint`` with a ``monitor`` chose is called
    "best". The folder of the run has copies.

    Args:
        data: Whether to record the data.
        checkpoints: Whether to record checkpoints; W&B's ``log_model`` does so for runs online only.
    """

    @typed
    def __init__(self, data: bool = True, checkpoints: bool = True) -> None:
        self.data, self.checkpoints = data, checkpoints
        self._recorded: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Record the splits that a stage has loaded, each once."""
        if getattr(trainer, "fast_dev_run", False):
            return
        if not any(map(is_wandb, trainer.loggers)):
            rank_zero_warn(f"{type(self).__name__} records nothing: the trainer has no W&B logger")
            return
        if not self.data or not trainer.is_global_zero:
            return
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "identity"):
            rank_zero_warn(
                f"{type(self).__name__} records no data: {type(data).__name__} has no method `identity`"
                if data
                else f"{type(self).__name__} records no data: the Trainer was given loaders, no DataModule"
            )
            return
        for split, identity in data.identity().items():
            if identity["checksum"] not in self._recorded:
                self._recorded.add(identity["checksum"])
                _record(trainer, f"{identity['name']}-{split}", "dataset", identity)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the best and the last checkpoint."""
        if not self.checkpoints or not trainer.is_global_zero:
            return
        for path, aliases in checkpoints_of(trainer).items():
            facts = {"file": path.name, **scores(trainer, path)}
            _record(trainer, "model-{id}", "model", facts, aliases, path)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record what there is of a fit that was interrupted, or failed."""
        if trainer.state.fn == TrainerFn.FITTING and any(map(is_wandb, trainer.loggers)):
            self.on_fit_end(trainer, pl_module)


def checkpoints_of(trainer: Trainer) -> dict[Path, list[str]]:
    """Return the best and the last checkpoint of a fit with these words; one file may be both."""
    files: list[Path] = []
    best: list[Path] = []
    known: Any = trainer
    for callback in known.callbacks:
        found: Any = callback
        own = [getattr(found, name, "") for name in ("best_model_path", "last_model_path")]
        paths = [Path(path).resolve() for path in (*own, *getattr(found, "best_k_models", ())) if path]
        files += [path for path in paths if path.exists()]
        if own[0] and getattr(found, "monitor", None):
            best += [path for path in paths[:1] if path.exists()]
    words = {path: ["best"] for path in best[:1]}
    if files:
        words.setdefault(max(files, key=lambda path: path.stat().st_mtime), []).append("last")
    return words


def scores(trainer: Trainer, path: Path) -> dict[str, float]:
    """Return the values of what checkpoints monitor, by key, for one of them."""
    found = {}
    for callback in trainer.checkpoint_callbacks:
        for name, score in getattr(callback, "best_k_models", {}).items():
            if Path(name).resolve() == path and (key := getattr(callback, "monitor", None)):
                found[key] = float(score)
    return found


def _record(
    trainer: Trainer,
    name: str,
    kind: str,
    facts: dict[str, Any],
    aliases: list[str] | None = None,
    path: Path | None = None,
) -> None:
    """Give each W&B logger an artifact: an output with a file or folder, or an input with its facts only."""
    for logger in filter(is_wandb, trainer.loggers):
        import wandb

        run = logger.experiment
        with kept_by(run):
            artifact = wandb.Artifact(name.format(id=run.id), kind, metadata=facts)
            if path is None:
                with artifact.new_file("identity.json", encoding="utf-8") as file:
                    json.dump(facts, file, indent=1, sort_keys=True)
                of_wandb.use_artifact(run, artifact)
                continue
            add: Callable[..., Any] = artifact.add_dir if path.is_dir() else artifact.add_file
            add(str(path), name="checkpoint" if path.is_dir() else "model.ckpt")
            run.log_artifact(artifact, aliases=aliases)
