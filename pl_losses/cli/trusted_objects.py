"""A second check of a parsed config, when the classes themselves are known."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment, Precision as FabricPrecision
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pl_losses.core.signatures import OWN, installed
from pl_losses.core.trust import ACCEPTED, fault, lies_in
from pl_losses.recipes import UsageError

CLASSES: dict[str, type] = {
    **{base.__name__: base for base in (LightningModule, LightningDataModule, Callback, Logger, Strategy)},
    **{base.__name__: base for base in (Accelerator, Profiler, FabricPrecision, ClusterEnvironment)},
    **{base.__name__: base for base in (CheckpointIO, LayerSync, Optimizer, LRScheduler, ReduceLROnPlateau)},
    "Module": nn.Module,
}


def check_objects(value: object, own: frozenset[str], path: str) -> None:
    """Refuse classes and functions that a config may not name.

    Args:
        value: A section of the config, parsed and not yet instantiated.
        own: Packages of the user's own that are trusted.
        path: The section's dotted name.

    Raises:
        UsageError: If a class or function may not be named.
    """
    if isinstance(value, (list, tuple, set)):
        for item in value:
            check_objects(item, own, path)
    elif isinstance(value, (Namespace, Mapping)):
        items = dict(vars(value) if isinstance(value, Namespace) else value)
        named = items.get("class_path")
        cls = None
        if isinstance(named, str) and "." in named:
            if wrong := fault(named, (), own):
                raise UsageError(f"`{path}` names `{named}`{wrong}")
            cls = imported(named)
            check_object(cls, own, path)
        defaults = defaults_of(cls)
        for key, item in items.items():
            if key == "init_args" and isinstance(item, (Namespace, Mapping)):
                arguments = dict(vars(item) if isinstance(item, Namespace) else item)
                # A class's default arguments need no permission.
                item = {name: part for name, part in arguments.items() if part is not defaults.get(name)}
            check_objects(item, own, path if key == "init_args" else f"{path}.{key}")
    elif inspect.isclass(value) or callable(value):
        check_object(value, own, path)


def check_object(found: object, own: frozenset[str], path: str) -> None:
    """Refuse one class or function."""
    module = getattr(found, "__module__", None) or ""
    trusted = module.split(".")[0] in own
    belongs = trusted and not installed(module.split(".")[0])
    if inspect.isclass(found):
        belongs = belongs or any(
            issubclass(found, CLASSES[base]) and (trusted or lies_in(module, places))
            for base, places in ACCEPTED.items()
        )
    elif inspect.isfunction(found) and module.split(".")[0] == OWN:
        made = typing.get_type_hints(found).get("return")
        belongs = inspect.isclass(made) and issubclass(made, (Optimizer, LRScheduler))
    if not belongs:
        name = f"{module}.{getattr(found, '__qualname__', type(found).__qualname__)}"
        raise UsageError(f"`{path}` names `{name}`, which is no class for a config")


def imported(path: str) -> Any:
    """Return what a dotted path names; the parser has imported it already."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise UsageError(f"No class `{path}`") from None


def defaults_of(cls: object) -> dict[str, Any]:
    """Return the default arguments of a class, with those of its bases."""
    found: dict[str, object] = {}
    for base in reversed(getattr(cls, "__mro__", ())):
        init = vars(base).get("__init__")
        parameters = inspect.signature(init).parameters.values() if inspect.isfunction(init) else ()
        found |= {one.name: one.default for one in parameters if one.default is not one.empty}
    return found
