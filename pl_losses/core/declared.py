"""What classes say of themselves: the keys that they log, as far as a recipe's arguments tell.

A module or callback says by ``KEYS`` what it logs, key to what it tells, and by ``panels`` how to show it.
One that does not always log all of it overrides ``logged_keys``.
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
    arguments: dict[str, Any] = field(default_factory=dict)

    def argument(self, name: str, unknown: Any = None) -> Any:
        """The argument as it is given, else its default, or ``unknown`` if the class takes no such one."""
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
    """The ``KEYS`` of a class and its bases."""
    return {key: told for base in reversed(cls.__mro__) for key, told in vars(base).get("KEYS", {}).items()}


def keys_of(part: Part, recipe: Recipe) -> Keys:
    """The keys that a part of a recipe logs, or patterns of them, with what they tell."""
    own: Callable[[Part, Recipe], Keys] | None = getattr(part.cls, "logged_keys", None)
    return own(part, recipe) if own else declared_keys(part.cls)


def without(keys: Keys, left_out: Iterable[str]) -> Keys:
    """Keys without some of them.

    >>> without({"test/error": "share", "test/rejected": "share"}, ["test/rejected"])
    {'test/error': 'share'}
    """
    return {key: told for key, told in keys.items() if key not in set(left_out)}
