"""``pl-losses reproduce``: the tables and figures of the papers that take more than one training."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from pl_losses.core import signatures
from pl_losses.core.manifests import reproduced
from pl_losses.recipes import UsageError, nearest

USAGE = "usage: pl-losses reproduce NAME [--OPTION VALUE ...]\n"


def listing() -> str:
    """List what can be reproduced, with a line on each."""
    width = max(map(len, reproduced()))
    lines = [f"  {name:<{width}}  {help_for(name).splitlines()[0]}" for name in reproduced()]
    end = "\n`pl-losses reproduce NAME --help` shows the options."
    return "\n".join([USAGE, "tables and figures:", *lines, end])


def help_for(name: str) -> str:
    """Return the description and options of one of them."""
    function = signatures.locate_function(reproduced()[name].function)
    return signatures.describe_function(function) if function else name


def check(name: str, flags: list[tuple[str, str | None]]) -> None:
    """Refuse names that are surely wrong, before torch is loaded.

    Raises:
        UsageError: If there is no such table or figure, or it has no such option.
    """
    if name not in reproduced():
        hint = nearest(name, reproduced()) or f": expected one of {', '.join(reproduced())}"
        raise UsageError(f"Nothing named `{name}` to reproduce{hint}")
    function = signatures.locate_function(reproduced()[name].function)
    known = signatures.function_parameters(function) if function else {}
    for flag, _ in flags:
        if function and flag not in known:
            hint = nearest(flag, known, "`--{}`") or f"; `pl-losses reproduce {name} --help` shows them all"
            raise UsageError(f"Unknown option `--{flag}`{hint}")


def run(name: str, flags: list[tuple[str, str | None]]) -> int:
    """Parse the options, make the table or figure, and return the exit status.

    Raises:
        UsageError: If an option's value does not fit.
    """
    from pl_losses.cli.errors import in_a_line
    from pl_losses.cli.lightning_cli import status_of
    from pl_losses.cli.parser import Parser

    module, _, attribute = reproduced()[name].function.rpartition(".")
    function: Callable[..., object] = getattr(importlib.import_module(module), attribute)
    parser = Parser(prog=f"pl-losses reproduce {name}", allow_abbrev=False)
    parser.add_function_arguments(function, as_group=False)
    options = parser.parse_args([f"--{flag}={value}" for flag, value in flags])
    try:
        function(**parser.instantiate(options).as_dict())
    except (OSError, ValueError, TypeError, FloatingPointError) as error:
        raise in_a_line(error, None) from error
    except (KeyboardInterrupt, SystemExit) as leaving:
        # A Trainer makes an exit of a signal.
        goes_on = f": the same command goes on from what is in {options.folder}"
        again = goes_on if reproduced()[name].resumes else ""
        print(f"Interrupted{again}", file=sys.stderr)
        return status_of(leaving) if isinstance(leaving, SystemExit) else 130
    return 0
