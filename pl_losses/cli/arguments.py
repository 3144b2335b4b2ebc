"""Arguments of the command line, split and checked before torch is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from pl_losses.recipes import Config, UsageError, is_inline, merge, nearest, resolve_value

Flags = list[tuple[str, "str | None"]]
TRACEBACK = "PL_LOSSES_TRACEBACK"
HOME = re.compile(r"""^~/|(?<=[\s"'\[,])~/(?=[^{}]*[}])""")


def split(args: Sequence[str]) -> Flags:
    """Split arguments into names without their dashes, and values.

    >>> split(["--model.width", "3", "--config=a", "--print_config"])
    [('model.width', '3'), ('config', 'a'), ('print_config', None)]
    """
    flags: Flags = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        if arg in ("-h", "-c"):
            arg = {"-h": "--help", "-c": "--config"}[arg]
        if not arg.startswith("--") or arg == "--":
            raise UsageError(f"Unexpected argument `{arg}`: options are given as --name value")
        name, equals, value = arg[2:].partition("=")
        optional = name in ("help", "print_config") or name.endswith(".help")
        if equals:
            flags.append((name, value))
        elif rest and not rest[0].startswith("--") and name not in ("help", "print_config"):
            flags.append((name, rest.pop(0)))
        elif optional:
            flags.append((name, None))
        else:
            hint = nearest(name, ("print_config", "help"), "`--{}`")
            raise UsageError(
                f"Unknown option `--{name}`{hint}" if hint else f"Option `--{name}` needs a value"
            )
    # Shells do not expand the ~ of --name=~/folder, nor one in a mapping.
    home = os.path.expanduser("~/")
    return [(name, value and re.sub(HOME, lambda _: home, value)) for name, value in flags]


def positional(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments that belong to no option, and the rest, in which each option takes one.

    >>> positional(["--out", "a.html", "run", "--open=false", "other", "--", "more"])
    (['run', 'other'], ['--out', 'a.html', '--open=false', '--', 'more'])
    """
    given, rest, left = [], [], list(args)
    while left and left[0] != "--":
        arg = left.pop(0)
        if not arg.startswith("-"):
            given.append(arg)
            continue
        rest.append(arg)
        if arg not in ("--help", "-h") and "=" not in arg and left and not left[0].startswith("-"):
            rest.append(left.pop(0))
    return given, [*rest, *left]


def options(flags: Sequence[tuple[str, str | None]], known: Sequence[str]) -> dict[str, str]:
    """Return the options by name.

    Raises:
        UsageError: If there is no such option.
    """
    for name, _ in flags:
        if name not in known:
            hint = nearest(name, known, "`--{}`") or f": expected {', '.join(f'--{one}' for one in known)}"
            raise UsageError(f"Unknown option `--{name}`{hint}")
    return {name: value or "" for name, value in flags}


def check(command: str, flags: Flags) -> Config:
    """Refuse what is surely wrong; return the merged config as far as it is known."""
    from pl_losses.cli.checks import Checker, check_flag, inline, is_file, is_foreign
    from pl_losses.core.trust import check_files, class_paths, own_packages

    checker = Checker(command, own=own_packages(flags))
    checker.foreign = any(is_foreign(path) for _, value in flags if value for path in class_paths(value))
    config: Config = {}
    for name, value in flags:
        if name == "config" and value is not None:
            given = resolve_value(value)
            config = merge(config, given)
            checker.source = value if len(value) < 60 else "the inline config"
            checker.config(config)
            check_files(given, flags, checker.where(), typed=is_inline(value))
    for name, value in flags:
        if name.split(".")[0] in ("model", "data", "trainer") and is_file(value):
            part = inline(value)
            for key in reversed(name.removesuffix("+").split(".")):
                part = {key: part}
            checker.source = str(value)
            checker.config(part)
            check_files(part, flags, checker.where())
    checker.source = ""
    for name, value in flags:
        if name not in ("config", "print_config", "trust"):
            check_flag(checker, config, name, value)
    # Check again, as options have now named the classes that the files left open.
    checker.config(config)
    return config


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
