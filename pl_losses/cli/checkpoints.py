"""What a checkpoint says of the run that wrote it: the classes of model and data, and their arguments."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from pl_losses.core import random_state, schedule_length
from pl_losses.core.base import COUNTED
from pl_losses.core.compat.names import CLASS_PATH, INSTANTIATOR, STEPPED, without_wrappers
from pl_losses.core.files import damage, save_sealed
from pl_losses.core.signatures import canonical
from pl_losses.core.trust import leads_out
from pl_losses.recipes import Config, UsageError

SECTIONS = {"model": "hyper_parameters", "data": "datamodule_hyper_parameters"}
CALL = ("seed_everything", "test_after_fit", "compile")
SHOWN = 12
STATES = ("optimizer_states", "lr_schedulers", random_state.KEY)  # Lists of mappings.
# What the fields of Lightning's and the suite's are; any other is someone else's.
FIELDS: dict[str, type] = {
    **dict.fromkeys(("state_dict", "loops", "callbacks", "pl_losses", *SECTIONS.values(), COUNTED), dict),
    schedule_length.KEY: dict,
    **dict.fromkeys(STATES, list),
    **dict.fromkeys(("epoch", "global_step"), int),
    "pytorch-lightning_version": str,
}
COUNTS = ("ready", "started", "processed", "completed", STEPPED)
BEST = "best_k_models"  # Of a `ModelCheckpoint`.
# Files that a `ModelCheckpoint` had saved, and deletes when it replaces them.
REPLACED = ("best_model_path", "kth_best_model_path", "last_model_path")


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, with a checksum: an earlier file stays until then.

    Args:
        roots: Folders out of which no link leads what is written or deleted.
    """

    def __init__(self, roots: Iterable[str] = ()) -> None:
        self.roots = list(roots)

    def save_checkpoint(self, checkpoint: dict[str, object], path: Any, storage_options: Any = None) -> None:
        """Write to a file beside the path, then move it there.

        Raises:
            OSError: If it cannot be written, as on a full disk.
            UsageError: If a link on the way leads elsewhere.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            check_links([Path(path).parent], self.roots)
            save_sealed(Path(path), checkpoint)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a file or folder, unless a link on the way leads elsewhere."""
        if "://" in str(path) or not leads_out(path, self.roots):
            super().remove_checkpoint(path)


def check_links(paths: Iterable[Path], roots: Iterable[str]) -> None:
    """Refuse paths that stand below some folders, but that a link leads out of them.

    Raises:
        UsageError: If there is one.
    """
    roots = list(roots)
    for path in paths:
        if leads_out(path, roots):
            raise UsageError(
                f"`{path}` leads out of `{roots[0]}` by a link: give the place that it leads to as an option"
            )


def read_checkpoint(path: str | None, weights_only: bool = True) -> Config:
    """Read a checkpoint; its tensors stay on disk.

    Args:
        path: The checkpoint's file, or the folder of a sharded one, of which the shards are not read; for
            anything else, such as an address, the result is empty.
        weights_only: Whether the file must hold plain data; if not, it is left to Lightning to read.

    Raises:
        UsageError: If the file is damaged, holds more than plain data, or was not written by Lightning.
    """
    sharded = path is not None and Path(path).is_dir()
    path = os.path.join(str(path), "meta.pt") if sharded else path
    if path is None or not Path(path).is_file():
        return {}
    with open(path, "rb") as file:
        archive = file.read(1) != b"\x80"  # torch's format before 1.6 is not one.
    if archive and (fault := damage(Path(path))):
        raise UsageError(f"`{path}` (--ckpt_path) is damaged or no checkpoint ({fault[:160]})")
    if not weights_only:
        return {}
    checkpoint = load(path)
    if not isinstance(checkpoint, dict) or not (sharded or "state_dict" in checkpoint):
        raise UsageError(f"`{path}` (--ckpt_path) is not a checkpoint of Lightning: it has no `state_dict`")
    if fault := misfit(checkpoint):
        raise UsageError(f"`{path}` (--ckpt_path) is damaged: {fault}")
    return checkpoint


def misfit(checkpoint: Config) -> str:
    """Name the field of a checkpoint that is of another kind than its name says; empty if none is."""
    for key, kind in FIELDS.items():
        if key in checkpoint and (fault := unlike(checkpoint[key], kind, key)):
            return fault
    inner = [(state, key) for key in STATES for state in checkpoint.get(key, ())]
    written = checkpoint.get("pl_losses", {})
    inner += [(written[key], f"pl_losses.{key}") for key in (*SECTIONS, "trainer") if key in written]
    kept = [state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, dict)]
    inner += [(state[BEST], BEST) for state in kept if BEST in state]
    for value, name in inner:
        if fault := unlike(value, dict, name):
            return fault
    return misfit_of_loops(checkpoint.get("loops", {}), "loops")


def misfit_of_loops(node: Config, path: str) -> str:
    """Return what :func:`misfit` does, of the loops' states and the progress that they have made."""
    for key, value in node.items():
        last = str(key).rpartition(".")[2]
        if last in COUNTS:
            fault = unlike(value, int, f"{path}.{key}")
        elif last in ("total", "current") or last.endswith(("loop", "progress", "state_dict")):
            fault = unlike(value, dict, f"{path}.{key}") or misfit_of_loops(value, f"{path}.{key}")
        else:
            fault = ""
        if fault:
            return fault
    return ""


def unlike(value: object, kind: type, name: str) -> str:
    """Say of a value that it is not of a kind; a negative number is of none. Empty if it is."""
    negative = isinstance(value, int) and value < 0
    if isinstance(value, kind) and not isinstance(value, bool) and not negative:
        return ""
    words = {dict: "a mapping", list: "a list", int: "a number of at least 0", str: "text"}
    return f"expected its `{name}` to be {words[kind]} but got {value!r:.80}"


def sections(checkpoint: Config, whole: bool = False) -> Config:
    """Return the ``model`` and ``data`` sections of a checkpoint, or all its config, as plain data."""
    known = checkpoint["pl_losses"] if isinstance(checkpoint.get("pl_losses"), dict) else {}
    kept = (*SECTIONS, *((*CALL, "trainer") if whole else ()))
    known = {
        key: known[key] for key in kept if isinstance(known.get(key), dict) or (key in CALL and key in known)
    }
    for section, key in SECTIONS.items():
        if section not in known and checkpoint.get(key):
            known[section] = as_config(checkpoint[key])
    return known


def load(path: str) -> Any:
    """Read a checkpoint without its tensors, which stay on disk."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error:")[2].strip().split("\n")[0] or "not plain data"
        raise UsageError(
            f"`{path}` (--ckpt_path) holds more than plain data ({reason[:160]}); "
            "--weights_only false loads it if you trust it"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"`{path}` (--ckpt_path) is damaged or no checkpoint ({reason[:160]})") from None


def as_config(hparams: Any) -> Config:
    """Convert Lightning's hyper-parameters to ``class_path`` and ``init_args``."""
    arguments = {key: value for key, value in dict(hparams).items() if is_written(value)}
    class_path = arguments.pop(CLASS_PATH, None)
    arguments.pop(INSTANTIATOR, None)
    return {**({"class_path": class_path} if class_path else {}), "init_args": arguments}


def is_written(value: object) -> bool:
    """Return whether a value can be written in a config file."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_written(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_written, value))
    return value is None or type(value) in (bool, int, float, str)


def compare(known: Config, resolved: Config) -> list[str]:
    """List how a run differs from its checkpoint, line by line.

    Raises:
        UsageError: If the model is of another class than the checkpoint's.
    """
    before, now = (canonical((part.get("model") or {}).get("class_path")) for part in (known, resolved))
    if before and before != now:
        raise UsageError(
            f"The checkpoint is of a `{before}` but the model is a `{now}`: give it the same `--model`"
        )
    old, new = (flatten({key: part.get(key) for key in SECTIONS}) for part in (known, resolved))
    lines = [f"  {key}: {old[key]!r} -> {new.get(key)!r}" for key in old if differs(old[key], new.get(key))]
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return ["Different from the checkpoint:", *lines[:SHOWN], *more] if lines else []


def differs(one: object, other: object) -> bool:
    """Return whether two values differ; lists equal tuples, and a class equals its other names."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return list(one) != list(other)
    return bool(one != other) and (not isinstance(one, str) or canonical(one) != canonical(other))


def flatten(config: Config, prefix: str = "") -> Config:
    """Flatten a config to values by dotted names, without ``init_args`` in the names."""
    flat: Config = {}
    for key, value in config.items():
        name = prefix.rstrip(".") if key == "init_args" else f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return {key: value for key, value in flat.items() if value is not None}


class CheckpointCheck(Callback):
    """Checks that a run's weights are those of its checkpoint, the same on all ranks.

    Args:
        path: The checkpoint, if there is one.
        saved: The checkpoint's config, as far as it is known.
        show: Prints one message.
    """

    def __init__(self, path: str | None, saved: Config, show: Callable[[str], None] = print) -> None:
        self.path, self.show = path, show
        self.optimizers = len(saved["optimizer_states"]) if "optimizer_states" in saved else None
        self.names = set(saved.get("state_dict") or ())
        self.progress: Any = (saved.get("loops") or {}).get("fit_loop") or {}
        progress = self.progress.get("epoch_loop.batch_progress", {}).get("total", {})
        self.untrained = progress.get("ready") == 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse different checkpoints on different ranks, as each rank has looked it up by itself.

        A test, and the like, is logged at the checkpoint's step and epoch; Lightning restores them in a fit.

        Raises:
            UsageError: If they differ.
        """
        first = trainer.strategy.broadcast(self.path)
        if not trainer.strategy.reduce_boolean_decision(first == self.path):
            raise UsageError(f"Ranks found other checkpoints than {first}: name it by --ckpt_path")
        if self.untrained:
            self.show("The checkpoint was saved before the first batch: its weights are untrained.")
            self.untrained = False
        if stage != "fit" and self.progress:
            trainer.fit_loop.load_state_dict(self.progress)
        self.progress = {}

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which weights a model with ``strict_loading`` off keeps from its initialisation.

        Raises:
            UsageError: If it keeps all of them.
        """
        if pl_module.strict_loading or not self.names:
            return
        own = [without_wrappers(name) for name, _ in pl_module.named_parameters()]
        left = [name for name in own if name not in self.names]
        self.names = set()
        if left and len(left) == len(own):
            raise UsageError(
                f"`{self.path}` (--ckpt_path) has none of the model's weights, such as `{own[0]}`"
            )
        if left:
            self.show(f"{len(left)} of {len(own)} weights are not in the checkpoint, such as `{left[0]}`")

    on_validation_start = on_test_start = on_predict_start = check

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse the states of more or fewer optimizers, which Lightning would pass over.

        Raises:
            UsageError: If there are.
        """
        self.check(trainer, pl_module)
        if self.optimizers not in (None, len(trainer.optimizers)):
            raise UsageError(
                f"`{self.path}` (--ckpt_path) is damaged or of another model: expected its"
                f" `optimizer_states` to be {len(trainer.optimizers)} but got {self.optimizers}"
            )
        self.optimizers = None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See to it that no file outside of a checkpoint callback's folder is deleted.

        Lightning looks at the paths as they are written in the checkpoint, and at no address at all.
        """
        folders = [str(getattr(one, "dirpath", None)) for one in trainer.checkpoint_callbacks]
        for state in (checkpoint.get("callbacks") or {}).values():
            if isinstance(state, dict):
                state |= {key: plain_path(state[key], folders) for key in REPLACED if key in state}
                if isinstance(best := state.get(BEST), dict):
                    state[BEST] = {plain_path(key, folders): best[key] for key in best}


def plain_path(path: object, folders: Iterable[str]) -> str:
    """Return a path without detours; nothing if it leads out of these folders, as an address always does."""
    if not isinstance(path, str) or not path:
        return ""
    folders = list(folders)
    if "::" not in path and "://" not in path:
        return "" if leads_out(plain := os.path.normpath(path), folders) else plain
    below = any(path.startswith(f"{folder}/") for folder in folders) and ".." not in path.split("/")
    return path if below else ""
