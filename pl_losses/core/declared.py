"""What classes declare of themselves: the keys that they log, as far as a recipe's arguments tell.

A module or callback declares in ``KEYS`` what it logs, key to meaning, and in ``panels`` how to show it.
A class that does not always log all of its keys overrides ``logged_keys``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Keys = dict[str, str]


@dataclass(frozen=True)
class Part:
    """A class of a recipe with its arguments."""

    cls: type
    arguments: dict[str, object] = field(default_factory=dict)

    def argument(self, name: str, unknown: object = None) -> Any:
        """Return the argument as given, else its default, or ``unknown`` if the class does not take it."""
        found = (inspect.signature(base).parameters.get(name) for base in self.cls.__mro__[:-1])
        default = next((one.default for one in found if one is not None), unknown)
        return self.arguments.get(name, default)


@dataclass(frozen=True)
class Recipe:
    """A recipe's classes.

    Attributes:
        name: As it was asked for.
        model: The model.
        callbacks: The callbacks.
        data: The data; ``object`` if the recipe names none.
    """

    name: str
    model: Part
    callbacks: tuple[Part, ...] = ()
    data: Part = Part(object)

    @property
    def validates(self) -> bool:
        """Whether there is a validation set, as far as the data's arguments tell."""
        return all(self.data.argument(name, unknown=True) for name in ("val_size", "val_share"))


def declared_keys(cls: type) -> Keys:
    """Collect the ``KEYS`` of a class and its bases."""
    return {key: best for base in reversed(cls.__mro__) for key, best in vars(base).get("KEYS", {}).items()}


def keys_of(part: Part, recipe: Recipe) -> Keys:
    """Return the keys, or patterns of them, that a part of a recipe logs, with their meaning."""
    own: Callable[[Part, Recipe], Keys] | None = getattr(part.cls, "logged_keys", None)
    return own(part, recipe) if own else declared_keys(part.cls)


def without(keys: Keys, left_out: Iterable[str]) -> Keys:
    """Return keys without some of them.

    >>> without({"test/error": "share", "test/rejected": "share"}, ["test/rejected"])
    {'test/error': 'share'}
    """
    return {key: best for key, best in keys.items() if key not in set(left_out)}
