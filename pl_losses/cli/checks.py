"""Configs and options checked against the sources before torch is loaded.

A name is refused only if it surely is wrong; the rest is left to the parser.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_losses.core.signatures import (
    OWN,
    READ,
    Class,
    Signature,
    defined_here,
    is_a,
    locate,
    method,
    missing,
    module_file,
    public,
    signature,
)
from pl_losses.core.trust import BASES, KINDS, WANDB, bases_at, bases_of, class_paths, fault, leaves
from pl_losses.recipes import Config, UsageError, load, merge, nearest, parse

# All but tabs and the ends of lines.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
# Numbers of the trainer that Lightning does not check.
LEAST = {"log_every_n_steps": 0, "check_val_every_n_epoch": 1, "accumulate_grad_batches": 1, "num_nodes": 1}
LEAST |= {"reload_dataloaders_every_n_epochs": 0, "patience": 0, "gradient_clip_val": 0, "lr": 0}
LEAST |= {"max_epochs": -1, "min_epochs": 0, "max_steps": -1, "min_steps": 0, "num_sanity_val_steps": -1}
MOST = 2**16  # Devices and nodes: Lightning makes a list of them.
ALWAYS = ["config", "seed_everything", "trainer", "model", "data", "test_after_fit", "compile"]
WORDS = {"true": True, "false": False, "null": None, "none": None}
# Arguments that LightningCLI itself passes to the trainer's methods.
HANDED = {"self", "model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}


def trainer() -> Signature:
    """Return the parameters of ``Trainer``; open if lightning is not installed."""
    located = locate("lightning.pytorch.Trainer")
    return signature(located) if located else Signature({}, open=True)


def method_arguments(command: str) -> list[str]:
    """List the arguments that ``trainer.fit`` and its like take from the command line."""
    located = locate("lightning.pytorch.Trainer")
    function = method(located, command) if located else None
    if function is None:
        return ["ckpt_path", "weights_only", "verbose", "return_predictions"]
    return [arg.arg for arg in (*function.args.args, *function.args.kwonlyargs) if arg.arg not in HANDED]


def kind_of(annotation: str) -> str:
    """Return which classes a parameter with this annotation takes, as far as short names are concerned."""
    if "Optimizer" in annotation:
        return "optimizer"
    if "LRScheduler" in annotation:
        return "scheduler"
    return "|".join(bases_of(annotation)) or ("Callable" if re.search(r"Callable|_FN\b", annotation) else "")


def trainer_kind(name: str) -> str:
    """Return which classes an argument of the trainer takes."""
    kind = f"trainer.{name}"
    return kind if kind in KINDS else kind_of(trainer().parameters.get(name, ""))


def candidates(kind: str, own: bool = False) -> list[str]:
    """List the short names of the classes of a kind; with ``own`` those of the suite only."""
    found = []
    for module in KINDS.get(kind, ())[: 1 if own else None]:
        for name in public(module):
            located = locate(f"{module}.{name}") if name[0].isupper() else None
            if located and is_a(located, BASES.get(kind, name)):
                found.append(name)
    return found


@dataclass
class Checker:
    """Refuses keys and class names that are surely wrong.

    Attributes:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        source: Name of the checked file or option, for the errors.
        foreign: Whether the user's own modules take part, whose classes may have short names, too.
        own: Packages of the user's own that are trusted.
    """

    command: str
    source: str = ""
    foreign: bool = False
    own: frozenset[str] = frozenset()

    def config(self, config: Config) -> None:
        """Check a flattened config."""
        self.foreign = self.foreign or any(map(is_foreign, class_paths(config)))
        top = ALWAYS + method_arguments(self.command)
        for _, key, value in leaves(config, ""):
            if not key.isprintable():
                raise UsageError(f"Unknown key {key!r:.80}{self.where()}")
            if isinstance(value, str) and CONTROL.search(value):
                got = f"to have no control characters but got {value!r:.80}"
                raise UsageError(f"Expected `{key}`{self.where()} {got}")
        for key, value in config.items():
            if key not in top:
                raise UsageError(f"Unknown key `{key}`{self.where()}{nearest(key, top)}")
            if key == "trainer" and isinstance(value, dict):
                self.keys(value, trainer(), "trainer", "Trainer")
                for name, part in value.items():
                    self.number(part, name, f"trainer.{name}")
                    self.node(part, trainer_kind(name), f"trainer.{name}")
            elif key == "trainer" and value is not None:
                raise UsageError(f"Expected `trainer`{self.where()} to be a mapping but got {value!r:.80}")
            elif key == "seed_everything" and type(value) is int and not 0 <= value < 2**32:
                raise UsageError(f"Expected `{key}`{self.where()} to be from 0 to 2^32 - 1 but got {value}")
            elif key in ("model", "data"):
                self.node(value, key, key)

    def number(self, value: Any, name: str, path: str) -> None:
        """Check the size of a number, where Lightning does not."""
        if type(value) not in (int, float):
            return
        if value != value:
            raise UsageError(f"Expected `{path}`{self.where()} to be a number but got nan")
        if name in LEAST and not value >= LEAST[name]:
            raise UsageError(f"Expected `{path}`{self.where()} to be at least {LEAST[name]} but got {value}")
        if path == "trainer.val_check_interval" and not value > 0:
            raise UsageError(f"Expected `{path}`{self.where()} to be positive but got {value}")
        if path in ("trainer.devices", "trainer.num_nodes") and value > MOST:
            raise UsageError(f"Expected `{path}`{self.where()} to be at most {MOST} but got {value}")

    def keys(self, given: Config, known: Signature, path: str, owner: str) -> None:
        """Check the names of a mapping of arguments."""
        for key in given:
            if key not in known.parameters and not known.open:
                hint = (
                    nearest(key, known.parameters, "`" + path + ".{}`") or f"; {owner} has no such argument"
                )
                raise UsageError(f"Unknown key `{path}.{key}`{self.where()}{hint}")

    def node(self, value: Any, kind: str, path: str) -> None:
        """Check a value that may be a class with its arguments, or a list of such."""
        for part in ("init_args", "dict_kwargs") if isinstance(value, dict) else ():
            if not isinstance(given := value.get(part) or {}, dict):
                wanted = f"Expected `{path}.{part}`{self.where()} to be a mapping"
                raise UsageError(f"{wanted} but got {given!r:.80}")
        if isinstance(value, list):
            for item in value:
                if kind in KINDS and isinstance(item, dict) and "class_path" not in item:
                    raise UsageError(f"Expected `{path}`{self.where()} to name a class but got {item!r:.80}")
                self.node(item, kind, path)
        elif isinstance(value, str) and kind in KINDS and value.endswith(".py"):
            name = value.removesuffix(".py").strip("./").replace("/", ".")
            wanted = f"Expected `{path}`{self.where()} to name a class but got the file `{value}`"
            raise UsageError(f"{wanted}: write `{name}.CLASS`")
        elif isinstance(value, str) and (kind in KINDS or bases_at(kind) or kind == "Callable"):
            if re.fullmatch(r"[\w.]+", value) and (kind in KINDS or "." in value):
                self.cls(value, kind, path)
            elif kind in KINDS or not re.fullmatch(r"[\w-]+", value):
                raise UsageError(f"Expected `{path}`{self.where()} to name a class but got {value!r:.80}")
        elif kind in KINDS and type(value) in (int, float):
            raise UsageError(f"Expected `{path}`{self.where()} to name a class but got {value}")
        elif isinstance(value, dict) and isinstance(value.get("class_path"), str):
            for key in value:
                if key not in CLASS_KEYS:
                    known = f": expected {', '.join(CLASS_KEYS)}; arguments of the class go under init_args"
                    raise UsageError(f"Unknown key `{path}.{key}`{self.where()}{known}")
            self.arguments(value, self.cls(value["class_path"], kind, path), path)
        elif isinstance(value, dict):
            for key, part in value.items():
                self.node(part, "", f"{path}.{key}")

    def arguments(self, value: Config, cls: Class | None, path: str) -> None:
        """Check the arguments of a class."""
        arguments, more = value.get("init_args") or {}, value.get("dict_kwargs") or {}
        known = signature(cls) if cls else Signature({}, open=True)
        for part, given in (("init_args", arguments), ("dict_kwargs", more)):
            self.keys(given, known, f"{path}.{part}", cls.name if cls else "")
        self.node(more, "", f"{path}.dict_kwargs")
        if cls and cls.name == "WandbLogger" and self.source:
            for key, argument in (arguments | more).items():
                # The config of a run names all that wandb takes, nearly all without a value.
                if argument is not None and key not in known.parameters and key not in WANDB:
                    raise UsageError(f"`{path}.{key}`{self.where()} is allowed on the command line only")
        for name, argument in arguments.items():
            if cls or argument == argument:  # To a class of the user's own NaN may mean something.
                self.number(argument, name, f"{path}.init_args.{name}")
            self.node(argument, kind_of(known.parameters.get(name, "")), f"{path}.init_args.{name}")

    def cls(self, name: str, kind: str, path: str) -> Class | None:
        """Find the class of a name, and refuse a wrong name; ``None`` if that is left to the parser."""
        if "." in name:
            if missing(name):
                module, _, short = name.rpartition(".")
                raise UsageError(
                    f"No class `{name}` for `{path}`{self.where()}{nearest(short, public(module))}"
                )
            if wrong := fault(name, bases_at(kind), self.own):
                raise UsageError(f"`{path}`{self.where()} names `{name}`{wrong}")
            return locate(name)
        modules = KINDS.get(kind, ())
        base = BASES.get(kind, name)
        for module in modules:
            if located := locate(f"{module}.{name}"):
                if is_a(located, base):
                    return located
                hint = nearest(name, candidates(kind))
                raise UsageError(f"`{path}`{self.where()} names `{name}`, which is no {base}{hint}")
        known = candidates(kind)
        surely = known and name not in known and not self.foreign and not defined_here(name)
        if surely and module_file(modules[-1]) is not None:
            hint = nearest(name, known) or f"; a class of your own is named with its module: my_module.{name}"
            raise UsageError(f"No class `{name}` for `{path}`{self.where()}{hint}")
        return None

    def where(self) -> str:
        """Return the source in words, if there is one to name."""
        return f" in {self.source}" if self.source else ""


def is_foreign(path: str) -> bool:
    """Return whether a class path leads into a package that is not read here."""
    return "." in path and path.split(".")[0] not in READ


def check_flag(checker: Checker, config: Config, name: str, value: str | None) -> None:
    """Check an option's name, and note the class that it sets for later options."""
    path = name.removesuffix("+").split(".")
    top = [key for key in ALWAYS + method_arguments(checker.command) if key != "config"]
    known = trainer()
    if path[0] not in (*top, "config", "print_config", "help"):
        longer = [f"trainer.{key}" for key in known.parameters] + top
        limit = f"max_{name}"  # Epochs are the run's, before those of a schedule.
        hint = f": did you mean `--trainer.{limit}`?" if limit in known.parameters else ""
        hint = hint or elsewhere(checker, config, name)
        hint = hint or nearest(path[0], [*top, "config", "print_config"], "`--{}`")
        raise UsageError(
            f"Unknown option `--{name}`{hint or nearest(f'trainer.{path[0]}', longer, '`--{}`')}"
        )
    if path[0] == "trainer" and len(path) > 1:
        if path[1] not in known.parameters and not known.open and path[1] != "help":
            hint = nearest(path[1], known.parameters, "`--trainer.{}`") or "; --trainer.help lists them"
            raise UsageError(f"Unknown option `--{name}`{hint}")
        node = config.setdefault("trainer", {})
        if isinstance(node, dict):
            if path[1] in (*LEAST, "devices", "val_check_interval"):
                node[path[1]] = inline_number(value)
            flag = trainer_kind(path[1]), name, value
            walk(checker, node, path[1], rest=path[2:], at=f"trainer.{path[1]}", flag=flag)
    elif path[0] == "seed_everything":
        config["seed_everything"] = inline_number(value)
    elif path[0] in ("model", "data"):
        walk(checker, config, path[0], rest=path[1:], at=path[0], flag=(path[0], name, value))


def elsewhere(
    checker: Checker, config: Config, name: str, sections: Sequence[str] = ("model", "data")
) -> str:
    """Return ``": did you mean `--model.optimizer.lr`?"`` for an argument of model, data or a part.

    If no model is known, any of the suite's models with the usual optimizer is assumed.
    """
    found: dict[str, str] = {}
    parts: dict[str, str] = {}
    for section in sections:
        cls, given = class_of(checker, config.get(section), section, f"{OWN}.core.base.PaperModule")
        for one, annotation in signature(cls).parameters.items() if cls else ():
            found.setdefault(one, f"{section}.{one}")
            kind = kind_of(annotation)
            usual = "torch.optim.Adam" if kind == "optimizer" else ""
            part, _ = class_of(checker, given.get(one), kind, usual) if kind else (None, {})
            if part:
                parts.update({f"{section}.{one}.{key}": part.name for key in signature(part).parameters})
    for path in parts:
        found.setdefault(path.rpartition(".")[2], path)
    if name not in found:
        return ""
    cycle = next((path for path in parts if path.endswith(".max_lr") and parts[path] == "OneCycleLR"), "")
    more = (
        f" It is without effect here: OneCycleLR sets the rate by `--{cycle}`"
        if cycle and name == "lr"
        else ""
    )
    return f": did you mean `--{found[name]}`?{more}"


def class_of(checker: Checker, node: object, kind: str, usual: str) -> tuple[Class | None, Config]:
    """Return the class that a config names, or the usual one, and its arguments."""
    node = node if isinstance(node, dict) else {"class_path": node}
    path = node.get("class_path")
    cls = (
        checker.cls(path, kind, kind) if isinstance(path, str) else locate(usual) if kind != "data" else None
    )
    given = node.get("init_args")
    return cls, given if isinstance(given, dict) else {}


def walk(
    checker: Checker, parent: Config, key: str, *, rest: list[str], at: str, flag: tuple[str, str, str | None]
) -> None:
    """Follow the parts of an option's name through the classes that the config names."""
    kind, name, value = flag
    if not rest or rest == ["class_path"]:
        given = inline(value, strict=kind in KINDS, name=f"the value of `--{name}`")
        checker.number(inline_number(value), key, at)
        checker.node(given, kind, at)
        if kind in KINDS or isinstance(given, dict):
            parent[key] = (
                merge(parent.get(key), given) if rest == [] else merge(parent.get(key), {"class_path": given})
            )
        return
    node = parent.get(key)
    node = node[-1] if isinstance(node, list) and node else node
    if isinstance(node, str):
        node = parent[key] = {"class_path": node}
    if not isinstance(node, dict) or not isinstance(node.get("class_path"), str):
        return
    cls = checker.cls(node["class_path"], kind, at)
    if rest[0] == "init_args" and len(rest) > 1:
        rest = rest[1:]
    if cls is None or rest[0] in (*CLASS_KEYS, "help"):
        return
    known = signature(cls)
    if rest[0] not in known.parameters and not known.open:
        prefix = name.removesuffix(".".join(rest))
        hint = nearest(rest[0], known.parameters, "`--" + prefix + "{}`")
        if at == "model":
            hint = elsewhere(checker, parent, rest[0], ("model",)) or hint
        raise UsageError(f"Unknown option `--{name}`{hint or f'; {cls.name} has no such argument'}")
    inner = node.setdefault("init_args", {})
    if isinstance(inner, dict):
        kind = kind_of(known.parameters.get(rest[0], ""))
        walk(checker, inner, rest[0], rest=rest[1:], at=f"{at}.{rest[0]}", flag=(kind, name, value))


def inline(value: str | None, strict: bool = True, name: str = "the value") -> Any:
    """Parse an option's value if it is a mapping or a file of one; else return its text.

    Args:
        value: As it was typed.
        strict: Whether a text that begins like a mapping or a list must be one; a file name need not.
        name: Names it in errors.
    """
    if value is None or value.lower() in WORDS:
        return WORDS[value.lower()] if value else None
    if value.startswith(("{", "[")):
        try:
            return parse(value, name)
        except UsageError:
            if strict:
                raise
            return value
    return load(Path(value)) if is_file(value) else value


def inline_number(value: str | None) -> Any:
    """Convert an option's value to a number, if it is one."""
    try:
        return int(value or "")
    except ValueError:
        with suppress(ValueError):
            return float(value or "")
    return value


def is_file(value: str | None) -> bool:
    """Return whether an option's value names a file of a class and its arguments."""
    return value is not None and value.endswith((".yaml", ".yml", ".json")) and Path(value).is_file()
