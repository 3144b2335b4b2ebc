"""Which classes a config may name, and where it may write, found in sources before anything is imported."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from pl_losses.core.compat.names import ANNOTATIONS
from pl_losses.core.run_folders import RUNS
from pl_losses.core.signatures import (
    OWN,
    READ,
    Class,
    defining,
    installed,
    is_a,
    locate,
    locate_function,
    public,
    signature,
)
from pl_losses.recipes import Config, UsageError, is_inline, resolve_value

# Places in a config where a class goes by its short name, and the modules that show such names.
KINDS = {
    "model": (OWN, "lightning.pytorch"),
    "data": (f"{OWN}.data", "lightning.pytorch"),
    "trainer.callbacks": (f"{OWN}.callbacks", "lightning.pytorch.callbacks", "lightning.pytorch.cli"),
    "trainer.logger": ("lightning.pytorch.loggers",),
    "optimizer": ("torch.optim",),
    # Lightning's ReduceLROnPlateau comes first: it takes a `monitor`.
    "scheduler": ("lightning.pytorch.cli", "torch.optim.lr_scheduler"),
}
BASES = {
    "model": "LightningModule",
    "data": "LightningDataModule",
    "trainer.callbacks": "Callback",
    "trainer.logger": "Logger",
}
# Base classes, and the modules whose subclasses of them a config may name.
ACCEPTED = {
    "LightningModule": (OWN,),
    "LightningDataModule": (OWN,),
    "Callback": (OWN, "lightning.pytorch.callbacks"),
    "Logger": tuple(f"lightning.pytorch.loggers.{name}" for name in ("csv_logs", "tensorboard", "wandb")),
    "Strategy": (OWN, "lightning.pytorch.strategies"),
    "Accelerator": ("lightning.pytorch.accelerators",),
    "Profiler": ("lightning.pytorch.profilers",),
    "Precision": ("lightning.pytorch.plugins",),
    "ClusterEnvironment": ("lightning.pytorch.plugins", "lightning.fabric.plugins"),
    "CheckpointIO": ("lightning.pytorch.plugins", "lightning.fabric.plugins"),
    "LayerSync": ("lightning.pytorch.plugins",),
    "Optimizer": (OWN, "torch.optim"),
    "LRScheduler": (OWN, "torch.optim.lr_scheduler"),
    "ReduceLROnPlateau": ("lightning.pytorch.cli",),
    "Module": (OWN, "torch.nn"),
}
# Arguments of the trainer for a class.
TRAINER_CLASSES = ("accelerator", "callbacks", "logger", "plugins", "profiler", "strategy")
# Where they are imported from.
IMPORTED = (OWN, "lightning.pytorch", "lightning.fabric", "torch.nn", "torch.optim")
# What annotations call them.
ALIASES = {
    "OptimizerCallable": ("Optimizer",),
    "LRSchedulerCallable": ("LRScheduler", "ReduceLROnPlateau"),
    **ANNOTATIONS,
}
# Never to be trusted as a whole: they start processes, reach files and the network, or call what they get.
DENIED = frozenset(sys.stdlib_module_names) | {
    *("__main__", "cloudpickle", "dill", "fsspec", "joblib", "jsonargparse", "yaml")
}
TRUST = "PL_LOSSES_TRUST"
# Arguments that name a folder or file to write, and those that name a part of its path.
FOLDERS = (
    *("default_root_dir", "save_dir", "dirpath", "dir", "root_dir", "log_dir", "nvme_path"),
    *("exclude_batches_path", "output"),
)
PARTS = (
    "name",
    "version",
    "project",
    "sub_dir",
    "filename",
    "filename_suffix",
    "prefix",
    "id",
    "checkpoint_name",
)
# A metric's name within the braces of a checkpoint's name, and the format of its number: without characters
# of a number's own (`c` makes 46 a dot) or to fill up with.
FIELD = re.compile(r"\{(\w[\w.-]*(?:/\w[\w.-]*)*)(?::0?\d*(?:\.\d+)?[bdeEfFgGoxX%]?)?\}")
# What W&B is told by more than the logger's own arguments; others make it read and write elsewhere.
WANDB = ("entity", "group", "job_type", "tags", "notes")


def bases_of(annotation: str) -> tuple[str, ...]:
    """Return the bases of the classes that a parameter takes, as far as its annotation tells.

    >>> bases_of("Optional[Callable[[], nn.Module]]")
    ('Module',)
    """
    words = re.findall(r"\w+", annotation)
    found = [base for word in words for base in ALIASES.get(word, (word,) if word in ACCEPTED else ())]
    return tuple(dict.fromkeys(found))


def see_own_modules() -> None:
    """Let modules of the current folder be imported, which a console script cannot do by itself."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def is_class(name: str) -> bool:
    """Return whether a name is that of a class with its module.

    >>> is_class("my_module.MyModel"), is_class("mine.yaml"), is_class("lenet/digits")
    (True, False, False)
    """
    parts = name.split(".")
    return len(parts) > 1 and all(map(str.isidentifier, parts)) and parts[-1][0].isupper()


def own_packages(flags: Iterable[tuple[str, str | None]]) -> frozenset[str]:
    """Return the user's own packages that a config may name.

    They are named by ``--trust``, by ``PL_LOSSES_TRUST``, or by an option that names a class of theirs.

    Raises:
        UsageError: If ``--trust`` names what cannot be trusted as a whole.
    """
    found = always()
    for given in (value for name, value in flags if name == "trust" and value):
        found |= packages(given)
    for name in found:
        if name in DENIED or name in READ or not name.isidentifier():
            raise UsageError(f"Expected `--trust` to name a module of your own but got `{name}`")
    flags = list(flags)
    classes = [value for name, value in flags if value and name.split(".")[-1] in (*BASES, "class_path")]
    typed = {
        top
        for name, value in flags
        for path in (named_in(value) if value else [])
        if (top := foreign(path)) and takes_class(name, classes)
    }
    return frozenset(found | typed)


def takes_class(option: str, given: Iterable[str] = ()) -> bool:
    """Return whether an option names a class; others hold a file or folder, which says nothing of trust.

    Args:
        option: Its name.
        given: Classes that other options name, whose arguments it may be of.

    Example:
        >>> [takes_class(name) for name in ("model", "trainer.callbacks+", "model.optimizer", "data.content")]
        [True, True, True, False]
    """
    section, *rest = (part for part in option.removesuffix("+").split(".") if part != "init_args")
    if section not in ("model", "data", "trainer") or not rest:
        return section in ("model", "data")
    if rest[-1] == "class_path":
        return True
    if section == "trainer" and len(rest) == 1:
        return bool(rest[0] in TRAINER_CLASSES)
    paths = [path for value in given for path in named_in(value) if "." in path]
    own = [argument for cls in map(locate, paths) if cls for argument in arguments_for_classes((cls,))]
    place = section if section in BASES else f"trainer.{rest[0]}"
    return rest[-1] in {*own, *arguments_at(place)}


def arguments_for_classes(classes: Iterable[Class]) -> set[str]:
    """Return the names of the parameters that take classes or functions."""
    return {
        name
        for cls in classes
        for name, annotation in signature(cls).parameters.items()
        if bases_of(annotation) or "Callable" in annotation
    }


@cache
def arguments_at(place: str) -> set[str]:
    """Return the arguments of all classes that may stand at a place of a config."""
    modules = KINDS.get(place, (f"{OWN}.strategies", "lightning.pytorch.strategies"))
    found = [locate(f"{module}.{name}") for module in modules for name in public(module)]
    return arguments_for_classes(cls for cls in found if cls)


def packages(text: str) -> set[str]:
    """Return the packages in a comma-separated list of modules."""
    return {name.strip().split(".")[0] for name in text.split(",") if name.strip()}


def always() -> set[str]:
    """Return the packages that are trusted for all runs."""
    return packages(os.environ.get(TRUST, ""))


def named_in(value: str) -> list[str]:
    """Find the dotted names in an option's value; not those in a file that it names."""
    if value.startswith(("{", "[")):
        return re.findall(r"class_path[\"']?\s*:\s*[\"']?([\w.]+)", value)
    return [] if value.endswith((".yaml", ".yml", ".json")) else [value]


def foreign(path: str) -> str:
    """Return the package of a dotted path if it may be the user's own, else ""."""
    top, dot, _ = path.partition(".")
    dotted = bool(dot) and all(part.isidentifier() for part in path.split("."))
    return top if dotted and top not in DENIED and top not in READ else ""


def fault(path: str, bases: tuple[str, ...], own: frozenset[str]) -> str:
    """Say why a config may not name this class at a place for subclasses of ``bases``; "" if it may.

    Args:
        path: Its dotted path.
        bases: One of :data:`ACCEPTED` if empty.
        own: Packages of the user's own that are trusted.
    """
    top = path.split(".")[0]
    if top in DENIED:
        return f": classes from {top} are not allowed"
    wanted = bases or tuple(ACCEPTED)
    located = locate(path)
    if top not in READ:
        if installed(top) and not (located and any(is_a(located, base, unknown=False) for base in wanted)):
            return unfit(bases)
        return "" if top in own else f": `{top}` is not trusted; if its code is yours, add --trust {top}"
    if located is not None:
        fits = any(is_a(located, base) and lies_in(located.module, ACCEPTED[base]) for base in wanted)
    else:
        made = returned(path)
        fits = any(base in made for base in wanted)
    return "" if fits else unfit(bases)


def unfit(bases: tuple[str, ...]) -> str:
    """Say of a class or function that it does not belong at a place."""
    return f", which is no {' or '.join(bases) or 'class for a config'}"


def lies_in(module: str, places: Iterable[str]) -> bool:
    """Return whether a module is one of these or below one."""
    return any(module == place or module.startswith(place + ".") for place in places)


def returned(path: str) -> list[str]:
    """Return the bases of what a function of the suite makes; none for any other function."""
    path = defining(path)
    function = locate_function(path) if lies_in(path, (OWN,)) else None
    named = ast.unparse(function.returns) if function and function.returns else ""
    made = locate(f"{path.rpartition('.')[0]}.{named}")
    bases = ("Optimizer", "LRScheduler")
    return [base for base in bases if made and is_a(made, base) and lies_in(made.module, ACCEPTED[base])]


def check_files(
    config: Config, flags: Iterable[tuple[str, str | None]], where: str, typed: bool = False
) -> None:
    """Refuse a config that unpickles, or that writes outside of the runs' folders.

    Args:
        config: What files say, without the options.
        flags: The options, which may do both.
        where: Names the files, for the errors.
        typed: Whether the config itself stands on the command line, so that its folders may be anywhere.
    """
    if config.get("weights_only") not in (None, True):
        raise UsageError(f"`weights_only: false`{where} would run code: only --weights_only false allows it")
    flags = list(flags)
    given = {name.replace(".init_args", ""): value for name, value in flags if value}
    roots = roots_of(flags)
    trainer = config.get("trainer")
    for path, key, value in leaves(trainer, "trainer"):
        overridden = path in given and (path == "trainer.default_root_dir" or not has_list(trainer, path))
        if key in FOLDERS and value is not None and not (overridden or typed):
            if not lies_below(str(value), roots):
                raise UsageError(
                    f"`{path}`{where} is outside of `{RUNS}`: {value!r} can be given on the command line only"
                )
        elif key in PARTS and isinstance(value, str) and not is_part(value):
            raise UsageError(f"`{path}`{where} may lead out of the run's folder: {value!r}")
        elif path == "trainer.profiler.filename" and "/" in str(value):
            # It is put behind a prefix: `../x` and a link may be hidden by it.
            raise UsageError(f"`{path}`{where} may lead out of the run's folder: {value!r}")


def roots_of(flags: Iterable[tuple[str, str | None]]) -> list[str]:
    """Return the folders that a config may write to: the runs', and those that options name."""
    folders = [RUNS]
    for name, value in flags:
        if value and name == "config" and is_inline(value):
            typed = leaves(resolve_value(value).get("trainer"), "trainer")
            folders += [str(folder) for _, key, folder in typed if key in FOLDERS and folder]
        elif value and name.split(".")[-1] in FOLDERS:
            folders.append(value)
    return [os.path.expanduser(folder) for folder in folders]


def lies_below(folder: str, roots: Iterable[str]) -> bool:
    """Return whether a folder is one of these or in one, whatever the environment and the links."""
    inside = any(Path(folder).resolve().is_relative_to(Path(root).resolve()) for root in roots)
    return inside and folder.isprintable() and not re.search(r"^~|\$|:", folder)


def leads_out(path: str | Path, roots: Iterable[str]) -> bool:
    """Return whether a path below one of these folders leads out of all of them, as by a link."""
    roots = list(roots)
    named = any(Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)) for root in roots)
    return named and not any(Path(path).resolve().is_relative_to(Path(root).resolve()) for root in roots)


def folder_options(trainer: object) -> list[str]:
    """Return the options that let a saved config write where its run did, outside of the runs' folders."""
    places = ((path, value) for path, key, value in leaves(trainer, "trainer") if key in FOLDERS and value)
    outside = [(path, str(value)) for path, value in places if not lies_below(str(value), [RUNS])]
    # An argument of an item of a list has no option of its own.
    return [f"--{path}={value}" for path, value in outside if not has_list(trainer, path)]


def has_list(trainer: object, path: str) -> bool:
    """Return whether what an argument belongs to is one of several, which an option cannot tell apart."""
    found = trainer.get(path.split(".")[1]) if isinstance(trainer, dict) else None
    return isinstance(found, list) and len(found) > 1


def is_part(value: str) -> bool:
    """Return whether a text can be a part of a path that stays below what it is joined to.

    Names of checkpoints are formats, in which Lightning puts a metric's name beside its value too.

    >>> [is_part(text) for text in ("{epoch}-{val/loss:.2f}", "{../x}", "{/x}", "{step:c}", "../x")]
    [True, False, False, False, False]
    """
    plain = FIELD.sub(r"\1", value)
    leads = re.search(r"^[/~]|^\w:|[\\{}$]|::|://", plain) or not value.isprintable()
    return not leads and ".." not in plain.split("/")


def leaves(node: object, path: str) -> Iterator[tuple[str, str, object]]:
    """Yield all arguments in a section: dotted path, name and value."""
    if isinstance(node, list):
        for item in node:
            yield from leaves(item, path)
    elif isinstance(node, dict):
        for key, value in node.items():
            below = path if key == "init_args" else f"{path}.{key}"
            # Some arguments take a value or a list of values.
            yield from ((below, str(key), item) for item in (value if isinstance(value, list) else [value]))
            yield from leaves(value, below)


def class_paths(value: object) -> list[str]:
    """Collect all class names in a config."""
    if isinstance(value, list):
        return [path for item in value for path in class_paths(item)]
    if not isinstance(value, dict):
        return [value] if isinstance(value, str) and value.replace(".", "").isidentifier() else []
    return [path for item in value.values() for path in class_paths(item)]


def bases_at(kind: str) -> tuple[str, ...]:
    """Return the bases of the classes of a kind; none if it is unknown."""
    if kind in BASES:
        return (BASES[kind],)
    callables = {"optimizer": "OptimizerCallable", "scheduler": "LRSchedulerCallable"}
    return bases_of(callables.get(kind, kind))
