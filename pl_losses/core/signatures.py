"""Constructors read from source with ``ast``, so that nothing has to be imported.

What the source alone does not tell is left open: a name is called wrong only if it surely is.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Union

from pl_losses.recipes import HERE

OWN = HERE.name
# Packages in which a name that is not found is wrong; others may make names dynamically.
READ = {OWN, "lightning", "torch"}


@dataclass(frozen=True)
class Class:
    """A class found in source, and the module that defines it."""

    module: str
    node: ast.ClassDef = field(compare=False)
    name: str = ""


@dataclass(frozen=True)
class Signature:
    """Parameters by name with the text of their annotations; ``open`` if there may be more."""

    parameters: dict[str, str]
    open: bool = False


Binding = Union[ast.ClassDef, "tuple[str, str]", None]


@dataclass
class _Module:
    names: dict[str, Binding] = field(default_factory=dict)
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    dynamic: bool = False


@cache
def module_file(module: str) -> Path | None:
    """Find the source file of a module without importing it or its parents."""
    top, *rest = module.split(".")
    try:
        # Of a top-level name only: find_spec of a submodule imports its parent.
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest and spec.origin:
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or []:
        path = Path(folder, *rest)
        for candidate in (path / "__init__.py", path.with_suffix(".py")):
            if candidate.is_file():
                return candidate
    return None


@cache
def installed(package: str) -> bool:
    """Return whether a package lies where pip installs others' code, not in a folder of the user's own."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    places = [spec.origin or "", *(spec.submodule_search_locations or [])] if spec else []
    known = {"site-packages", "dist-packages"}
    libraries = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    return any(
        known & set(Path(place).parts) or any(map(Path(place).is_relative_to, libraries)) for place in places
    )


@cache
def _read(module: str) -> _Module | None:
    path = module_file(module)
    if path is None or path.suffix != ".py":
        return None
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = _Module()
    _bind(tree.body, package, found)
    found.dynamic = "__getattr__" in found.names and module.split(".")[0] != OWN
    return found


def _bind(body: list[ast.stmt], package: str, found: _Module) -> None:
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            found.names[statement.name] = statement
        elif isinstance(statement, ast.FunctionDef):
            found.functions[statement.name] = statement
            found.names.setdefault(statement.name, None)
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                found.names.setdefault(alias.asname or alias.name.split(".")[0], (alias.name, ""))
        elif isinstance(statement, ast.ImportFrom):
            _bind_from(statement, package, found)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for name in (
                node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)
            ):
                found.names.setdefault(name, None)
        elif isinstance(statement, (ast.If, ast.Try, ast.With)):
            for part in ("body", "orelse", "finalbody"):
                _bind(getattr(statement, part, []), package, found)
            for handler in getattr(statement, "handlers", []):
                _bind(handler.body, package, found)


def _bind_from(statement: ast.ImportFrom, package: str, found: _Module) -> None:
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - statement.level + 1]) if statement.level else ""
    source = ".".join(filter(None, (base, statement.module)))
    for alias in statement.names:
        if alias.name == "*":
            found.stars.append(source)
        else:
            found.names[alias.asname or alias.name] = (source, alias.name)


def locate(path: str) -> Class | None:
    """Find the class that a dotted path names, following imports; ``None`` if the source does not tell."""
    module, _, name = path.rpartition(".")
    return _locate(module, name, frozenset()) if module else None


def _locate(module: str, name: str, seen: frozenset[tuple[str, str]]) -> Class | None:
    found = _read(module)
    if found is None or (module, name) in seen:
        return None
    seen |= {(module, name)}
    binding = found.names.get(name)
    if isinstance(binding, ast.ClassDef):
        return Class(module, binding, binding.name)
    if isinstance(binding, tuple) and binding[1]:
        return _locate(*binding, seen)
    if name not in found.names:
        for star in found.stars:
            if located := _locate(star, name, seen):
                return located
    return None


def canonical(path: object) -> Any:
    """Return the path of a class where it is defined, if the source tells; anything else as it is."""
    located = locate(path) if isinstance(path, str) and "." in path else None
    return f"{located.module}.{located.name}" if located else path


def public(module: str) -> list[str]:
    """List the public names that a module surely binds."""
    found = _read(module)
    if found is None:
        return []
    stars = [name for star in found.stars for name in public(star)]
    return sorted({name for name in (*found.names, *stars) if not name.startswith("_")})


def missing(path: str) -> bool:
    """Return whether a dotted path surely names nothing."""
    module, _, name = path.rpartition(".")
    if module.split(".")[0] not in READ or module_file(module.split(".")[0]) is None:
        return False
    found = _read(module)
    if found is None:
        return module_file(module) is None and _no_such_module(module)
    if found.dynamic or any(_read(star) is None for star in found.stars):
        return False
    return name not in public(module) and not name.startswith("_") and module_file(path) is None


def _no_such_module(module: str) -> bool:
    parent, _, name = module.rpartition(".")
    folder = module_file(parent) if parent else None
    if folder is None or folder.name != "__init__.py":
        return False
    # The source does not show extension modules, nor names that the parent binds.
    return not list(folder.parent.glob(f"{name}*")) and name not in public(parent)


def signature(cls: Class) -> Signature:
    """Read the parameters of a class's constructor, with those that it passes on to its bases."""
    return _signature(cls, frozenset())


def _signature(cls: Class, seen: frozenset[Class]) -> Signature:
    if cls in seen or cls.node.decorator_list or cls.node.keywords:
        return Signature({}, open=True)
    seen |= {cls}
    init = method(cls, "__init__")
    if init is None:
        return _inherited(cls, seen)
    arguments = init.args
    parameters = _annotations([*arguments.posonlyargs, *arguments.args][1:] + arguments.kwonlyargs)
    if arguments.kwarg is None:
        return Signature(parameters)
    if not _passes_on(init, arguments.kwarg.arg):
        return Signature(parameters, open=True)
    parent = _inherited(cls, seen)
    return Signature({**parent.parameters, **parameters}, parent.open)


def _inherited(cls: Class, seen: frozenset[Class]) -> Signature:
    """Read the only base's parameters; with several bases the order of calls is not ours to guess."""
    bases = [base for base in cls.node.bases if not isinstance(base, ast.Subscript)]
    located = base_class(cls, bases[0]) if len(bases) == 1 else None
    return _signature(located, seen) if located else Signature({}, open=True)


def base_class(cls: Class, base: ast.expr) -> Class | None:
    """Find the class that an expression in a class's list of bases names."""
    path = ast.unparse(base)
    head, _, rest = path.partition(".")
    if not rest:
        return _locate(cls.module, path, frozenset())
    found = _read(cls.module)
    binding = found.names.get(head) if found else None
    if not isinstance(binding, tuple):
        return None
    module = ".".join(filter(None, binding)) if binding[1] else binding[0]
    return locate(f"{module}.{rest}") if module.split(".")[-1] == head or binding[1] else None


def is_a(cls: Class, ancestor: str, unknown: bool = True) -> bool:
    """Return whether a class derives from one of this name; ``unknown`` if the source does not tell."""
    if cls.name == ancestor:
        return True
    for base in cls.node.bases:
        located = base_class(cls, base)
        known = located is not None and READ & {located.module.split(".")[0]}
        if ast.unparse(base).rpartition(".")[2] == ancestor or (located and is_a(located, ancestor, unknown)):
            return True
        if unknown and not known and ast.unparse(base) not in ("ABC", "object"):
            return True
    return False


def _passes_on(init: ast.FunctionDef, kwargs: str) -> bool:
    """Return whether ``**kwargs`` goes to ``super().__init__`` and is used nowhere else."""
    uses = [node for node in ast.walk(init) if isinstance(node, ast.Name) and node.id == kwargs]
    passed = [
        keyword
        for node in ast.walk(init)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__"
        for keyword in node.keywords
        if keyword.arg is None and ast.unparse(keyword.value) == kwargs
    ]
    return len(uses) == len(passed) == 1


def method(cls: Class, name: str) -> ast.FunctionDef | None:
    """Find a method that the class itself defines."""
    defined = [node for node in cls.node.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return defined[-1] if defined else None


@cache
def defined_here(name: str) -> bool:
    """Return whether any file of this package defines a class of this name, exported or not."""
    pattern = re.compile(rf"^class {re.escape(name)}\b", re.MULTILINE)
    return any(pattern.search(path.read_text(encoding="utf-8")) for path in HERE.rglob("*.py"))


def describe(cls: Class) -> str:
    """Describe the parameters of a class: annotations, defaults and their part of the docstring."""
    init = method(cls, "__init__")
    docs = [ast.get_docstring(cls.node), ast.get_docstring(init) if init else None]
    return _described(cls.name, docs, signature(cls).parameters, init)


def defining(path: str) -> str:
    """Return the path of a function where it is defined, following imports as far as the source tells."""
    for _ in range(8):
        module, _, name = path.rpartition(".")
        found = _read(module) if module else None
        binding = found.names.get(name) if found else None
        if not (isinstance(binding, tuple) and binding[1]):
            break
        path = ".".join(binding)
    return path


def locate_function(path: str) -> ast.FunctionDef | None:
    """Find the function that a dotted path names, in the module that defines it."""
    module, _, name = path.rpartition(".")
    found = _read(module)
    return found.functions.get(name) if found else None


def function_parameters(function: ast.FunctionDef) -> dict[str, str]:
    """Return parameters by name with the text of their annotations."""
    return _annotations([*function.args.args, *function.args.kwonlyargs])


def describe_function(
    function: ast.FunctionDef, given: Mapping[str, str] | None = None, hidden: Collection[str] = ()
) -> str:
    """Describe the parameters of a function as :func:`describe` does those of a class.

    ``given`` are values that replace the defaults; ``hidden`` parameters are left out.
    """
    docs = [ast.get_docstring(function)]
    shown = {name: kind for name, kind in function_parameters(function).items() if name not in hidden}
    return _described(function.name, docs, shown, function, given or {})


def _annotations(arguments: list[ast.arg]) -> dict[str, str]:
    return {arg.arg: ast.unparse(arg.annotation) if arg.annotation else "" for arg in arguments}


def _described(
    name: str,
    docstrings: list[str | None],
    parameters: dict[str, str],
    function: ast.FunctionDef | None,
    given: Mapping[str, str] = MappingProxyType({}),
) -> str:
    docs = _argument_docs(*docstrings)
    defaults = (_defaults(function) if function else {}) | dict(given)
    lines = [(docstrings[0] or name).splitlines()[0], ""]
    for parameter, annotation in parameters.items():
        default = f" = {defaults[parameter]}" if parameter in defaults else ""
        lines.append(f"  {parameter}{': ' + annotation if annotation else ''}{default}")
        lines += [f"      {docs[parameter]}"] if parameter in docs else []
    return "\n".join(lines)


def _defaults(init: ast.FunctionDef) -> dict[str, str]:
    arguments = init.args
    positional = [*arguments.posonlyargs, *arguments.args]
    tail = positional[len(positional) - len(arguments.defaults) :]
    pairs = [
        *zip(tail, arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return {arg.arg: ast.unparse(value) for arg, value in pairs if value is not None}


def _argument_docs(*docstrings: str | None) -> dict[str, str]:
    """Collect the first paragraph of each entry under ``Args:``."""
    docs: dict[str, str] = {}
    for docstring in filter(None, docstrings):
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
        entries = (
            re.findall(r"^ {4}(\w+)[^:\n]*:\s*(.*(?:\n {5,}\S.*)*)", section[1], re.MULTILINE)
            if section
            else []
        )
        docs.update({name: re.sub(r"\s+", " ", text).strip() for name, text in entries})
    return docs
