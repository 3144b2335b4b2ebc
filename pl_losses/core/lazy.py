"""Names that are imported on first use (PEP 562), so that importing a face costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy(module: str, names: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and ``__dir__`` of a module whose public ``names`` live elsewhere.

    Args:
        module: Name of the module that shows the names, for error messages.
        names: Public name to the module that defines it.
    """

    def getattr_(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(import_module(names[name]), name)

    return getattr_, lambda: sorted(names)
