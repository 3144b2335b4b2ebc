"""The command line's parser, whose errors are one or two lines."""

from __future__ import annotations

import re
import sys
from itertools import takewhile
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from pl_losses.core.signatures import locate, public, signature
from pl_losses.core.trust import KINDS
from pl_losses.recipes import UsageError, nearest


class Parser(LightningArgumentParser):
    """A parser whose errors are one or two lines."""

    def dump(self, cfg: Any, **kwargs: Any) -> str:
        """Write a config, without `ckpt_path` if none was named: null would mean that there shall be none."""
        if cfg.get("ckpt_path", "") is None:
            cfg = cfg.clone()
            del cfg["ckpt_path"]
        return str(super().dump(cfg, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a usage error; within jsonargparse's own attempts, the error that it expects."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageError(shorten(message)) from None


NOISE = (
    *("Does not validate", "Subtypes:", "Errors:", "Given value", "Parser key", "Problem with"),
    *(
        "Expected a <class 'NoneType'>",
        "Expected a path but",
        "Not a valid subclass",
        "Subclass types expect",
    ),
    *("a class path (str)", "a dict w"),
)


def shorten(message: str) -> str:
    """Shorten a parser's message to the part that names the fault, with the nearest valid name.

    >>> shorten("Parser key \'model\':\\n  Errors:\\n    - Expected a <class \'int\'>".replace("'", '"', 2))
    '`model`: Expected int'
    """
    if required := re.search(r"^the following arguments are required: (.*)", message):
        names = ", ".join(f"`{key.split('.', 1)[-1]}`" for key in required[1].split(", "))
        return f"Missing {names}: name a recipe (--config), a class (--model), or a checkpoint (--ckpt_path)"
    lines = [re.sub(r"^Type .* callable class: ", "", line.strip(" -\t")) for line in message.splitlines()]
    telling = [line for line in lines if line and not line.startswith(NOISE)]
    classes: list[str] = re.findall(r"Problem with given class_path '([\w.]+)'", message)
    keys = [key for key in re.findall(r'Parser key "([\w.]+)"', message) if key != "config"]
    depth = 1 + message.count("Problem with given") + message.count("callable class: Parser key")
    path = ".".join(keys[:depth] if classes else keys[:2])
    # What may be a class among other things was meant to be one, if it is the trainer's.
    named = [line for line in telling if line.startswith("Expected a dot import")]
    other = [line for line in telling if line not in named]
    telling = named[:1] if named and path.startswith("trainer.") else other or named[:1] or lines or [message]
    text = telling[0]
    if "does not correspond to a subclass" in text and (name := of_the_other_package(message)):
        return f"`{path}`: `{name}` is of `pytorch_lightning`, not of `lightning`: use `lightning.pytorch`"
    # Further types that the argument may have are in the following lines.
    for line in takewhile(lambda line: line.startswith("Expected a "), telling[1:]):
        text += line.replace("Expected a", " or a", 1) if text.startswith("Expected a ") else ""
    text = re.sub(r", denied by the .*|[.] Got value: (?:Namespace|Nested).*", "", text)
    text = re.sub(r"[.] Got value: ", " but got ", text)
    text = re.sub(r"^the following arguments are required: (.*)", r"Missing `\1`", text)
    text = re.sub(
        r"Expected a dot import path string: (.*)", r"No class `\1`; your own need their module's name", text
    )
    text = re.sub(r" or a dot import path string: [^ ]+", "", text)
    text = re.sub(r"(?:a )?<class '([\w.]+)'>", r"\1", text)
    text = re.sub(r"(?:a )?typing[.]Literal\[(.*?)\]", r"one of \1", text)
    if (
        "got" not in text.lower()
        and text.startswith("Expected")
        and (given := re.search(r"Given value: (.*?)(?:[.] Got value: .*)?$", message, re.MULTILINE))
    ):
        text += f" but got {given[1]}"
    text = re.sub(r"Namespace\(class_path='([\w.]+)', init_args=Namespace\((.{,80}).*", r"`\1` with \2", text)
    listed = r"collections[.]abc[.]Sequence\b.* but got (\w+)$"
    text = re.sub(listed, r"a list, such as [\1], but got \1", text)
    return (f"`{path}`: " if path else "") + text[:300] + hint(text, path, classes)


def of_the_other_package(message: str) -> str:
    """Return the first class that a message names, of those that derive from one of `pytorch_lightning`."""
    for name in re.findall(r"[A-Za-z_]\w*(?:\.\w+)+", message):
        module, _, short = name.rpartition(".")
        found = getattr(sys.modules.get(module), short, None)
        bases = found.__mro__ if isinstance(found, type) else ()
        if any(one.__module__.startswith("pytorch_lightning.") for one in bases):
            return str(name)
    return ""


def hint(text: str, path: str, classes: list[str]) -> str:
    """Suggest the nearest argument of the class at fault, or the nearest class."""
    option, unknown = re.search(r"Option '(\w+)'", text), re.search(r"No class `(\w+)`", text)
    if unknown:
        kind = path if path in KINDS else path.rpartition("lr_" if path.endswith("lr_scheduler") else ".")[2]
        return nearest(unknown[1], [name for module in KINDS.get(kind, ()) for name in public(module)])
    located = locate(classes[-1]) if option and classes else None
    return nearest(option[1], signature(located).parameters) if option and located else ""
