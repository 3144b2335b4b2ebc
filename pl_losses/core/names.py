"""Names of classes, and names that must not collide: of parameter groups, layers and files."""

from __future__ import annotations

import re
from collections.abc import Sequence


def own_class(path: str) -> str:
    """Return the name of a class of the user's own; "" for one of the suite.

    Example:
        >>> own_class("my_module.Net"), own_class("pl_losses.LeNet5"), own_class("LeNet5")
        ('Net', '', '')
    """
    top, _, rest = path.partition(".")
    return rest.rpartition(".")[2] if top != "pl_losses" else ""


def distinct(names: Sequence[str], start: int = 2) -> list[str]:
    """Make names distinct, in their order: one that came before gets a number that no other name has.

    Args:
        names: Names, some of them equal.
        start: The first number.

    Example:
        >>> distinct(["a", "b", "a"]), distinct(["a", "a-2", "a"])
        (['a', 'b', 'a-2'], ['a', 'a-2', 'a-3'])
    """
    taken = set(names)
    found: dict[str, None] = {}
    for name in names:
        own, number = name, start
        if name in found:
            while (own := f"{name}-{number}") in taken:
                number += 1
        taken.add(own)
        found[own] = None
    return list(found)


def file_stem(key: str) -> str:
    """Make a file name from a logged key, a different one for each key.

    Example:
        >>> file_stem("test/errors"), file_stem("test-errors")
        ('test-errors', 'test%2Derrors')
    """
    return "-".join(re.sub(r"[^\w. ]", lambda c: f"%{ord(c[0]):02X}", part) for part in key.split("/"))
