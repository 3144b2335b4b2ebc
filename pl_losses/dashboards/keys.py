"""A recipe's classes, the keys that they log, and the panels that show them, as the classes declare them."""

from __future__ import annotations

import importlib

from pl_losses.core import declared, manifest
from pl_losses.core.declared import Keys, Part, Recipe
from pl_losses.core.panels import Kind, Sections
from pl_losses.core.trust import KINDS, bases_at, fault, is_class, own_packages
from pl_losses.recipes import Config, UsageError, resolve_value


def read_recipe(name: str) -> Recipe:
    """Resolve a recipe, or take a class by its module, and import the classes, which imports torch.

    Raises:
        UsageError: If there is no such recipe, or it names no model.
    """
    config: Config = {"model": name} if is_class(name) else resolve_value(name)
    if not config.get("model"):
        raise UsageError(f"`{name}` names no model: an overlay has no dashboard of its own")
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    data = part(config["data"], "data") if config.get("data") else Part(object)
    parts = tuple(part(one, "trainer.callbacks") for one in callbacks)
    return Recipe(name, part(config["model"], "model"), parts, data)


def part(node: str | Config, kind: str) -> Part:
    """Import the class that a part of a config names."""
    node = {"class_path": node} if isinstance(node, str) else node
    path, arguments = node["class_path"], node.get("init_args") or {}
    module, _, name = path.rpartition(".")
    if wrong := module and fault(path, bases_at(kind), own_packages([])):
        raise UsageError(f"`{kind}` names `{path}`{wrong}")
    for place in (module,) if module else KINDS[kind]:
        try:
            found = getattr(importlib.import_module(place), name, None)
        except Exception as error:  # One's own module may raise anything.
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"`{path}` for `{kind}` cannot be imported: {reason}") from error
        if isinstance(found, type):
            return Part(found, arguments)
    raise UsageError(f"No class `{path}` for `{kind}`")


def of_lightning() -> dict[type, tuple[Keys, Sections]]:
    """Return the keys of Lightning's own classes, and their panels."""
    from lightning.pytorch import LightningModule
    from lightning.pytorch.callbacks import LearningRateMonitor

    return {
        LightningModule: ({"epoch": "how many epochs were complete"}, manifest.HOW_FAR),
        LearningRateMonitor: ({"lr-<optimizer>": "learning rate"}, manifest.LEARNING_RATE),
    }


def keys_of(recipe: Recipe) -> Keys:
    """Return the keys that a recipe logs, or patterns of them, with their meaning."""
    known = of_lightning()
    found: Keys = {}
    for one in (recipe.model, *recipe.callbacks):
        for base in one.cls.__mro__:
            found |= known[base][0] if base in known else {}
        found |= declared.keys_of(one, recipe)
    return found


def panels_of(recipe: Recipe) -> Sections:
    """Return the panels of a recipe's classes and their bases."""
    known = of_lightning()
    bases = (base for one in (recipe.model, *recipe.callbacks) for base in one.cls.__mro__)
    own = (known[base][1] if base in known else vars(base).get("panels", ()) for base in bases)
    return tuple(section for sections in own for section in sections)


def kind_of(about: str) -> Kind:
    """Return what is logged under a key, as its description begins."""
    first = about.partition(":")[0].partition(",")[0].partition(" ")[0].lower()
    return {"picture": "pictures", "image": "pictures", "histogram": "histogram", "table": "table"}.get(
        first, "lines"
    )  # type: ignore[return-value]
