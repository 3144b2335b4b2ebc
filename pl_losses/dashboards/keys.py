"""A recipe's classes, and what they log and how it is shown, as they say of themselves."""

from __future__ import annotations

import importlib

from pl_losses.core import declared, manifest
from pl_losses.core.declared import Keys, Part, Recipe
from pl_losses.core.panels import Kind, Sections
from pl_losses.core.trust import KINDS, bases_at, fault, own_packages
from pl_losses.recipes import Config, UsageError, resolve_value


def read_recipe(name: str) -> Recipe:
    """Resolve a recipe and import its classes, which takes torch.

    Raises:
        UsageError: If there is no such recipe, or it names no model.
    """
    config = resolve_value(name)
    if not config.get("model"):
        raise UsageError(f"`{name}` names no model: an overlay has no dashboard of its own")
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    data = part(config["data"], "data") if config.get("data") else Part(object)
    parts = tuple(part(one, "trainer.callbacks") for one in callbacks)
    return Recipe(name, part(config["model"], "model"), parts, data)


def part(node: str | Config, kind: str) -> Part:
    """Import the class of a config's node."""
    node = {"class_path": node} if isinstance(node, str) else node
    path, arguments = node["class_path"], node.get("init_args") or {}
    module, _, name = path.rpartition(".")
    if wrong := module and fault(path, bases_at(kind), own_packages([])):
        raise UsageError(f"`{kind}` names `{path}`{wrong}")
    for place in (module,) if module else KINDS[kind]:
        found = getattr(importlib.import_module(place), name, None)
        if isinstance(found, type):
            return Part(found, arguments)
    raise UsageError(f"No class `{path}` for `{kind}`")


def of_lightning() -> dict[type, tuple[Keys, Sections]]:
    """What Lightning's own classes log, and how it is shown."""
    from lightning.pytorch import LightningModule
    from lightning.pytorch.callbacks import LearningRateMonitor

    return {
        LightningModule: ({"epoch": "how many epochs were complete"}, manifest.HOW_FAR),
        LearningRateMonitor: ({"lr-<optimizer>": "learning rate"}, manifest.LEARNING_RATE),
    }


def keys_of(recipe: Recipe) -> Keys:
    """The keys that a recipe logs, or patterns of them, with what they tell."""
    known = of_lightning()
    found: Keys = {}
    for one in (recipe.model, *recipe.callbacks):
        for base in one.cls.__mro__:
            found |= known[base][0] if base in known else {}
        found |= declared.keys_of(one, recipe)
    return found


def panels_of(recipe: Recipe) -> Sections:
    """How a recipe's classes and their bases show what they log."""
    known = of_lightning()
    bases = (base for one in (recipe.model, *recipe.callbacks) for base in one.cls.__mro__)
    own = (known[base][1] if base in known else vars(base).get("panels", ()) for base in bases)
    return tuple(section for sections in own for section in sections)


def kind_of(about: str) -> Kind:
    """What is logged under a key, told from its description."""
    first = about.partition(":")[0].partition(",")[0].partition(" ")[0].lower()
    return {"picture": "pictures", "image": "pictures", "histogram": "histogram", "table": "table"}.get(
        first, "lines"
    )  # type: ignore[return-value]
