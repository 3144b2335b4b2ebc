"""``pl-losses reproduce``: the tables and figures of the papers that take more than one training."""

from __future__ import annotations

import importlib
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from time import perf_counter

from pl_losses.cli.arguments import Flags, first_line, split
from pl_losses.core import signatures
from pl_losses.core.experiment import refuse_unwritable
from pl_losses.core.locks import alone, sigterm_raises
from pl_losses.core.manifests import Reproduced, reproduced
from pl_losses.core.results import filled, page
from pl_losses.recipes import UsageError, nearest

USAGE = """usage: pl-losses reproduce NAME [--quick] [--OPTION VALUE ...]
       pl-losses reproduce all --quick
       pl-losses reproduce --list
       pl-losses reproduce --results [PAGE ...]
"""
END = """
`NAME --help` shows the options. A list is written a,b,c. `--quick` makes a small form in seconds, to see that
all works: its numbers mean nothing. `--results` prints the page with all results of the suite.
`--results PAGE` fills the blocks of a page that begin with `<!-- results NAME -->`."""


FIXED = {"figure", "paper"}  # Options that the name decides.


def listing() -> str:
    """List what can be reproduced: the figure of the paper, the cost and what it needs."""
    width = max(map(len, reproduced()))
    lines = []
    for name, made in reproduced().items():
        lines += [f"  {name:<{width}}  {made.title()}", f"  {'':<{width}}  {cost(made)}; needs {made.needs}"]
    return "\n".join([USAGE, "tables and figures:", *lines, END])


def write_results(pages: Sequence[str]) -> None:
    """Print the page of all results, or fill the blocks of pages of one's own.

    Raises:
        UsageError: If a page is no file.
    """
    if not pages:
        print(page(), end="")
    for name in pages:
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"Expected `--results` to be followed by pages but there is no file {name}")
        try:
            # Its line ends stay as they are.
            lines = path.read_bytes().decode()
        except UnicodeDecodeError:
            raise UsageError(
                f"Expected `--results` to be followed by pages in UTF-8 but {name} is none"
            ) from None
        end = "\r\n" if "\r\n" in lines else "\n"
        path.write_text(filled(lines.replace("\r\n", "\n")), encoding="utf-8", newline=end)


def cost(made: Reproduced) -> str:
    """Write the time that a table or figure takes.

    >>> cost(Reproduced("a", "b", minutes=1)), cost(Reproduced("a", "b", minutes=150))
    ('1 minute of one core', '2.5 hours of one core')
    """
    hours = made.minutes >= 100
    amount = f"{made.minutes / 60 if hours else made.minutes:.2g}"
    return f"{amount} {'hour' if hours else 'minute'}{'' if amount == '1' else 's'} of one core"


def quick_folder() -> str:
    """Return the folder of the small forms that are made now: each time a new one."""
    return f"runs/quick/{datetime.now():%Y-%m-%d-%H%M%S}"


def small(name: str, flags: Flags, folder: str) -> Flags:
    """Return the options of the small form; those that were given override them."""
    given = {flag for flag, _ in flags}
    own: Flags = [("folder", f"{folder}/{name}"), *split(shlex.split(reproduced()[name].quick))]
    return [*(flag for flag in own if flag[0] not in given), *flags]


def run_all(flags: Flags) -> int:
    """Make a small form of everything, say how long each took, and return 1 if one failed.

    Args:
        flags: Options for those that have them; ``folder`` is that of all.

    Raises:
        UsageError: If nothing has an option.
    """
    folder = dict(flags).get("folder") or quick_folder()
    known = {name: set(options(name)) for name in reproduced()}
    for flag, _ in flags:
        if not any(flag in own for own in known.values()):
            raise UsageError(f"Unknown option `--{flag}`: nothing to reproduce has it")
    lines, failed = [], False
    for name in reproduced():
        print(f"== {name}", flush=True)
        started, fault = perf_counter(), ""
        given = [flag for flag in flags if flag[0] in known[name] - {"folder"}]
        try:
            if run(name, small(name, given, folder), folder):
                return 130  # It was interrupted.
        except UsageError as error:
            fault, failed = f": {error}", True
        except Exception as error:  # The others are made all the same.
            traceback.print_exc()
            fault, failed = f": {type(error).__name__}: {first_line(error)}", True
        word = "FAILED" if fault else "made"
        lines.append(f"{name}: {word} in {perf_counter() - started:.0f} s{fault}")
    print("\n".join(["", *lines, f"Results: {folder}"]))
    return int(failed)


def options(name: str) -> dict[str, str]:
    """Return the options of one of them, with their types."""
    function = signatures.locate_function(reproduced()[name].function)
    return signatures.function_parameters(function) if function else {}


def listed(name: str, flag: str, value: str | None) -> str | None:
    """Return the value of an option; a list between commas gets its brackets.

    >>> [listed("gtn/cuts", *flag) for flag in (("radius", "1,2"), ("radius", "[1]"), ("seeds", "2"))]
    ['[1,2]', '[1]', '2']
    """
    plain = value and value != "null" and not value.startswith("[")
    return f"[{value}]" if plain and options(name)[flag].startswith("list[") else value


def help_for(name: str) -> str:
    """Return the description and options of one of them."""
    made = reproduced()[name]
    function = signatures.locate_function(made.function)
    given = dict(made.preset)
    return signatures.describe_function(function, given, FIXED & given.keys()) if function else name


def check(name: str, flags: Flags) -> None:
    """Refuse names that are surely wrong, before torch is loaded.

    Raises:
        UsageError: If there is no such table or figure, or it has no such option.
    """
    if name.startswith("-"):
        raise UsageError(f"Expected the name of a table or figure, or `all`, before `{name}`")
    if own := [one for one in reproduced() if one.startswith(f"{name}/")]:
        raise UsageError(f"Expected one of {', '.join(own)} but got `{name}`")
    if name not in reproduced():
        hint = nearest(name, reproduced()) or f": expected one of {', '.join(reproduced())}"
        raise UsageError(f"Nothing named `{name}` to reproduce{hint}")
    known = options(name)
    for flag, _ in flags:
        if flag in FIXED and flag in dict(reproduced()[name].preset):
            raise UsageError(f"Expected no `--{flag}`: it follows from the name {name}")
        if known and flag not in known:
            hint = nearest(flag, known, "`--{}`") or f"; `pl-losses reproduce {name} --help` shows them all"
            raise UsageError(f"Unknown option `--{flag}`{hint}")


def run(name: str, flags: Flags, root: str = "") -> int:
    """Parse the options, make the table or figure, and return the exit status.

    Args:
        name: Of the table or figure.
        flags: Its options.
        root: Folder of several of them, if it is made with others.

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
    given = [*reproduced()[name].preset, *((flag, listed(name, flag, value)) for flag, value in flags)]
    options = parser.parse_args([f"--{flag}={value}" for flag, value in given])
    try:
        refuse_unwritable(Path(options.folder))
        with sigterm_raises(), alone(Path(options.folder), "`reproduce`"):
            function(**parser.instantiate(options).as_dict())
    except Exception as error:
        raise in_a_line(error, None) from error
    except (KeyboardInterrupt, SystemExit) as leaving:
        # A signal, of which a Trainer makes an exit, too.
        print(
            f"Interrupted: the same command with --folder {root or options.folder} resumes", file=sys.stderr
        )
        return status_of(leaving) if isinstance(leaving, SystemExit) else 130
    return 0
