"""The manifests of the suite: what a room says of itself in ``manifest.py``, to be read without torch.

A manifest has the panels of the room's classes, each a tuple of sections; a :class:`Reproduced` for each
table or figure that ``pl-losses reproduce`` makes; and, unless that is the error or the loss, a ``HEADLINE``:
the name of the metric that a run ends with.
"""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from pl_losses.core.panels import Section, Sections, reproduction
from pl_losses.core.signatures import canonical, locate_function
from pl_losses.recipes import HERE


@dataclass(frozen=True)
class Reproduced:
    """A table or figure that takes more than one training.

    Attributes:
        name: What ``pl-losses reproduce`` calls it.
        function: Dotted path of the function that makes it: its parameters are the options, its docstring
            is the help.
        panels: Those of the W&B run that it makes, if it makes one.
        minutes: Of one core, about.
        needs: Data that it reads.
        quick: Options of a small form, which takes seconds.
        preset: Arguments of the function, where it makes several figures.
        shows: What of the paper it is. Default: what the function's docstring begins with.
    """

    name: str
    function: str
    panels: Sections = ()
    minutes: float = 1.0
    needs: str = "nothing"
    quick: str = ""
    preset: tuple[tuple[str, str], ...] = ()
    shows: str = ""

    def preset_values(self) -> dict[str, Any]:
        """Return the arguments of the function as the options set them: text, or what JSON it is."""
        values: dict[str, Any] = dict(self.preset)
        for key, value in self.preset:
            with suppress(ValueError):
                values[key] = json.loads(value)
        return values

    def title(self) -> str:
        """Return what of the paper it is."""
        if self.shows:
            return self.shows
        function = locate_function(self.function)
        return (ast.get_docstring(function) or "").partition("\n")[0] if function else self.name


def recipe_scores(
    paper: str,
    recipes: Sequence[str],
    metrics: Sequence[str],
    *,
    grids: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
    choice: Mapping[str, Mapping[str, object]] | None = None,
    published: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
    small: str = "",
    seeds: int = 5,
    minutes: float,
    needs: str = "nothing",
) -> Reproduced:
    """Return the test scores of a paper's recipes over seeds: see :mod:`pl_losses.cli.recipe_scores`.

    ``small`` is the recipe of the small form. Default: the first one.
    """
    name = f"{paper}/recipes"
    short = json.dumps(
        {"trainer.max_epochs": 1, "trainer.limit_train_batches": 2, "trainer.limit_val_batches": 1}
    )
    lists: dict[str, object] = {"recipes": recipes, "metrics": metrics, "grids": grids, "choice": choice}
    lists |= {"published": published, "notes": notes}
    preset = {"paper": paper, "folder": f"runs/{name}", "seeds": str(seeds)}
    preset |= {key: json.dumps(value) for key, value in lists.items() if value}
    return Reproduced(
        name,
        "pl_losses.cli.recipe_scores.reproduce",
        panels=reproduction("Recipes over seeds", name),
        minutes=minutes,
        needs=needs,
        quick=f"--recipes [{small or recipes[0]}] --seeds 1 --grids null --more '{short}'",
        preset=tuple(preset.items()),
        shows=f"Test scores of {', '.join(recipes)}, means over seeds.",
    )


def rates(option: str, *values: float) -> list[dict[str, float]]:
    """Return a grid of one option of ``fit``, for :func:`recipe_scores`.

    >>> rates("model.optimizer.lr", 0.1, 0.3)
    [{'model.optimizer.lr': 0.1}, {'model.optimizer.lr': 0.3}]
    """
    return [{option: value} for value in values]


@cache
def manifests() -> dict[str, dict[str, object]]:
    """Import all manifests: room, such as "pl_losses.papers.lenet", to the names of its manifest."""
    found = {}
    for path in sorted(HERE.rglob("manifest.py")):
        room = ".".join((HERE.name, *path.relative_to(HERE).parent.parts))
        found[room] = vars(importlib.import_module(f"{room}.manifest"))
    return found


def reproduced() -> dict[str, Reproduced]:
    """Collect what ``pl-losses reproduce`` makes, by name."""
    values = (value for names in manifests().values() for value in names.values())
    return {value.name: value for value in values if isinstance(value, Reproduced)}


def headlines(rooms: Iterable[str]) -> list[str]:
    """List the metrics that runs end with: those of these rooms first, then all others and the loss."""
    known = manifests()
    found = (known[room].get("HEADLINE") for room in (*rooms, f"{HERE.name}.core"))
    return [*dict.fromkeys(str(name) for name in found if name), "loss"]


def papers_of(classes: Iterable[str]) -> list[str]:
    """List the papers whose rooms define these classes (dotted paths), in their order.

    Example:
        >>> papers_of(["pl_losses.LeNet5", "torch.optim.Adam", "pl_losses.papers.adam.Adam"])
        ['lenet', 'adam']
    """
    papers = (room.split(".")[2] for room in rooms_of(classes) if room.startswith(f"{HERE.name}.papers."))
    return list(dict.fromkeys(papers))


@cache
def reference(paper: str) -> str:
    """Return the reference of a paper: the first line of its package's docstring, read without an import.

    Example:
        >>> reference("adam")
        'Kingma and Ba 2015, Adam: a method for stochastic optimization.'
    """
    source = (HERE / "papers" / paper / "__init__.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def panels_in(room: str) -> list[Sections]:
    """Return the panels of a room: those of each class, and of each thing to reproduce."""
    found = [value.panels if isinstance(value, Reproduced) else value for value in manifests()[room].values()]
    return [one for one in found if isinstance(one, tuple) and one and isinstance(one[0], Section)]


def rooms_of(classes: Iterable[str]) -> list[str]:
    """Find the rooms with a manifest that define these classes (dotted paths), in their order.

    Example:
        >>> rooms_of(["pl_losses.LeNet5", "torch.optim.Adam", "pl_losses.callbacks.ClassifierReport"])
        ['pl_losses.papers.lenet', 'pl_losses.monitoring']
    """
    found: dict[str, None] = {}
    for path in classes:
        if path.startswith(f"{HERE.name}.") and path.replace(".", "").isidentifier():
            module = f"{canonical(path)}."
            inside = [room for room in manifests() if module.startswith(f"{room}.")]
            found |= dict.fromkeys(sorted(inside, key=len)[-1:])
    return list(found)
