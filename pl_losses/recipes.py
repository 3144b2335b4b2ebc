"""Recipes: YAML files that are found by name, may extend one another, and are listed without torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

Config = dict[str, Any]
HERE = Path(__file__).resolve().parent
OVERLAYS = "trainers"
SWEEPS = "sweeps"
LIMIT = 100_000  # Values in a recipe.


class UsageError(Exception):
    """The user asked for something that cannot be done; the message is shown as it is."""


def visible(text: str) -> str:
    """Return text for a terminal, which no stranger's text shall steer: control characters by their codes.

    >>> print(visible("a\\x1b[31mb"))
    a\\x1b[31mb
    """
    return "".join(one if one.isprintable() or one in "\n\t" else repr(one)[1:-1] for one in text)


def nearest(name: str, valid: Iterable[str], form: str = "`{}`") -> str:
    """Return ``": did you mean `x`?"`` for the valid name closest to ``name``, or nothing.

    >>> nearest("max_epoch", ["max_epochs", "min_epochs"])
    ': did you mean `max_epochs`?'
    """
    matcher = difflib.SequenceMatcher(b=name.lower())
    best, ratio = "", 0.6
    for one in valid:  # Of equally close ones the first.
        matcher.set_seq1(one.lower())
        if matcher.real_quick_ratio() > ratio and matcher.ratio() > ratio:
            best, ratio = one, matcher.ratio()
    return f": did you mean {form.format(best)}?" if best else ""


def roots() -> list[Path]:
    """Return the folders that recipes' names are relative to: the clone's, then the installed wheel's."""
    # In site-packages, a folder named recipes would belong to another package.
    clone = [HERE.parent / "recipes"] if (HERE.parent / "pyproject.toml").is_file() else []
    return [root for root in (*clone, HERE / "_recipes") if root.is_dir()]


def names() -> list[str]:
    """List all recipes and overlays by name, sorted, a clone's before the wheel's."""
    return sorted({name for root in roots() for name in _under(root)})


def _under(root: Path) -> Iterator[str]:
    for path in root.rglob("*.yaml"):
        name = path.relative_to(root).with_suffix("").as_posix()
        if name.split("/")[0] != SWEEPS:
            yield name


def description(path: Path) -> str:
    """Return the first line of a recipe if it is a comment."""
    with path.open(encoding="utf-8") as file:
        line = file.readline().strip()
    return line.lstrip("# ") if line.startswith("#") else ""


def listing() -> str:
    """List all recipes, grouped by paper, with their descriptions."""
    found = names()
    if not found:
        return "No recipes found."
    width = max(map(len, found))
    groups: dict[str, list[str]] = {}
    for name in found:
        groups.setdefault(name.rpartition("/")[0], []).append(name)
    lines = []
    for group, members in sorted(groups.items(), key=lambda item: (item[0] == OVERLAYS, item[0])):
        overlay = " (overlays: add one with a second --config)" if group == OVERLAYS else ""
        lines.append(f"{group or 'others'}{overlay}")
        lines += [f"  {name:<{width}}  {description(find(name))}".rstrip() for name in members]
    known = sweeps()
    lines += (
        [f"{SWEEPS} (pl-losses sweep NAME; by W&B's agent: wandb sweep recipes/{SWEEPS}/NAME.yaml)"]
        if known
        else []
    )
    lines += [f"  {name:<{width}}  {description(path)}".rstrip() for name, path in known.items()]
    return "\n".join(lines)


def sweeps() -> dict[str, Path]:
    """Find all sweep files: name to path, sorted, a clone's before the wheel's."""
    found = {path.stem: path for root in reversed(roots()) for path in root.glob(f"{SWEEPS}/*.yaml")}
    return dict(sorted(found.items()))


def shown(name: str) -> str:
    """Show a recipe merged over those that it extends."""
    path = find(name)
    return visible(f"# {description(path) or name}\n# {path}\n{dump(resolve(name))}".rstrip())


def find(name: str, folder: Path | None = None) -> Path:
    """Find a recipe: a path, a name beside the recipe that extends it, or a name in a recipes folder.

    Args:
        name: A path, or ``paper/experiment`` with or without ``.yaml``.
        folder: Folder of the recipe that extends it, if one does.

    Raises:
        UsageError: If there is none; the message names the nearest recipe.
    """
    bases = [folder] if folder else [Path()]
    for base in [*bases, *roots()]:
        for candidate in (base / name, base / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    hint = nearest(name, names()) or "; `pl-losses recipes` lists them"
    raise UsageError(f"No recipe or file named `{name}`{hint}")


def resolve(name: str) -> Config:
    """Read a recipe by name or path and merge it over the recipes that it extends."""
    return _flatten(find(name), ())


def resolve_value(value: str) -> Config:
    """Resolve a recipe by :func:`resolve`, or parse an inline mapping."""
    if is_inline(value):
        return _mapping(parse(value, "the inline config"), "the inline config")
    return resolve(value)


def is_inline(value: str) -> bool:
    """Return whether a value is an inline mapping, not the name of a recipe."""
    return "{" in value or "\n" in value


def _flatten(path: Path, above: tuple[Path, ...]) -> Config:
    path = path.resolve()
    if path in above:
        chain = " -> ".join(step.stem for step in (*above[above.index(path) :], path))
        raise UsageError(f"Recipes extend one another in a circle: {chain}")
    config = load(path)
    if "extend" in config:
        raise UsageError(f"Unknown key `extend` in {path.name}: did you mean `extends`?")
    parents = config.pop("extends", None)
    parents = [] if parents is None else [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(
        isinstance(parent, str) and parent.isprintable() for parent in parents
    ):
        raise UsageError(
            f"Expected `extends` in {path.name} to be a name or a list of names but got {parents!r}"
        )
    merged: Config = {}
    for parent in parents:
        try:
            found = find(parent, path.parent)
        except UsageError as error:
            raise UsageError(f"`extends` in {path.name}: {error}") from None
        merged = merge(merged, _flatten(found, (*above, path)))
    merged = merge(merged, config)
    return merged


def load(path: Path) -> Config:
    """Read one YAML file, which must hold a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"Cannot read {path}: {reason}") from None
    return _mapping(parse(text, str(path)), str(path))


def _mapping(value: object, source: str) -> Config:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"Expected {source} to hold a mapping of names but got {type(value).__name__}")
    return dict(value)


def parse(text: str, source: str) -> Any:
    """Parse YAML text; ``source`` names it in errors."""
    import yaml

    try:
        value = yaml.load(text, _yaml()[0])
        _measure(value, {})
        return value
    except RecursionError:
        raise UsageError(f"Cannot read {source}: it is nested too deeply, or in itself") from None
    except ValueError as error:  # Of an invalid date, too.
        raise UsageError(f"Cannot read {source}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "not valid YAML"
        raise UsageError(f"Cannot read {source}{where}: {reason}") from None


def _measure(value: object, known: dict[int, int]) -> int:
    """Count the values in parsed YAML, aliases wherever they occur.

    Raises:
        RecursionError: If a value contains itself.
        ValueError: If there are too many, or a key is not text.
    """
    if not isinstance(value, (dict, list)):
        if not isinstance(value, (str, bool, int, float, type(None))):
            raise ValueError(f"expected text or a number but got a {type(value).__name__}: put it in quotes")
        return 1
    if id(value) not in known:
        if isinstance(value, dict) and (odd := [key for key in value if not isinstance(key, str)]):
            raise ValueError(f"expected the key `{odd[0]!r:.80}` to be text: put it in quotes")
        known[id(value)] = LIMIT  # Until it is known: too many if it contains itself.
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_measure(item, known) for item in items)
    if known[id(value)] >= LIMIT:
        raise ValueError(f"its aliases stand for more than {LIMIT} values, or for themselves")
    return known[id(value)]


def dump(config: Config) -> str:
    """Write a config as YAML that :func:`parse` and jsonargparse read back to the same values."""
    import yaml

    return yaml.dump(config, Dumper=_yaml()[1], sort_keys=False, width=10**6)


@lru_cache(maxsize=1)
def _yaml() -> tuple[Any, Any]:
    """Return a YAML loader and dumper for which 1e-3 is a number, as in jsonargparse, and not text."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (
                ValueError,
                KeyError,
                AttributeError,
            ) as error:  # PyYAML's own on what a tag does not fit.
                problem = f"`{node.value!s:.40}` is no {node.tag.rpartition(':')[2]} ({error})"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if isinstance(key.value, str) and key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"`{key.value}` is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value if isinstance(key.value, str) else None)
            return super().construct_mapping(node, deep)

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    number = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$")
    for kind in (Loader, Dumper):
        kind.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return Loader, Dumper


def merge(base: object, over: object) -> Any:
    """Merge ``over`` into ``base``: mappings key by key, anything else replaced.

    Where ``class_path`` changes, the earlier class's arguments are dropped.

    >>> merge({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}})
    {'a': {'b': 1, 'c': [2]}}
    >>> merge({"class_path": "A", "init_args": {"x": 1}}, {"class_path": "B"})
    {'class_path': 'B'}
    """
    if isinstance(base, str) and isinstance(over, dict) and "init_args" in over and "class_path" not in over:
        base = {"class_path": base}
    if isinstance(base, dict) and {"class_path", "init_args"} & set(base) and isinstance(over, str):
        over = {"class_path": over}
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    if {"class_path"} <= set(over) & set(base) and not same_class(base["class_path"], over["class_path"]):
        base = {key: value for key, value in base.items() if key not in ("init_args", "dict_kwargs")}
    merged = dict(base)
    for key, value in over.items():
        merged[key] = merge(base[key], value) if key in base else value
    return merged


def same_class(one: object, other: object) -> bool:
    """Return whether two class paths can name one class; either may be its short name."""
    if not isinstance(one, str) or not isinstance(other, str):
        return bool(one == other)
    if "." in one and "." in other:
        return one == other
    return one.rpartition(".")[2] == other.rpartition(".")[2]
