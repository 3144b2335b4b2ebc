"""Names that are imported on first use (PEP 562), so that importing a face costs nothing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy(face: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return the ``__getattr__``, ``__dir__`` and ``__all__`` of a module that shows names of others.

    The names are those that its source imports under ``if TYPE_CHECKING:``, so that each stands there once,
    for people, type checkers and Python.

    Args:
        face: The module's ``__name__``.
    """
    loader: Any = sys.modules[face].__loader__
    guarded = [
        statement
        for node in ast.parse(loader.get_source(face)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
    ]
    sources = {
        one.name: node.module for node in guarded if isinstance(node, ast.ImportFrom) for one in node.names
    }

    def getattr_(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module {face!r} has no attribute {name!r}")
        return getattr(import_module(str(sources[name])), name)

    public = sorted(sources)
    return getattr_, lambda: public, public
