"""Names that must not collide: of parameter groups, layers and files."""

from __future__ import annotations

import re
from collections.abc import Sequence


def distinct(names: Sequence[str], start: int = 2) -> list[str]:
    """The names in their order, with a number where one comes again, which no other name has.

    Args:
        names: Any, equal ones among them.
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
    """A file's name for a logged key, another one for each key.

    Example:
        >>> file_stem("test/errors"), file_stem("test-errors")
        ('test-errors', 'test%2Derrors')
    """
    return "-".join(re.sub(r"[^\w. ]", lambda c: f"%{ord(c[0]):02X}", part) for part in key.split("/"))
