"""The commands: answers and refuses what it can before torch is loaded, and passes on the rest."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from pl_losses.cli.arguments import TRACEBACK, Flags, check, first_line, split
from pl_losses.core.refusals import WITHOUT, refusal, refusals_told, sign_in
from pl_losses.core.trust import see_own_modules
from pl_losses.core.version import __version__
from pl_losses.recipes import (
    UsageError,
    listing,
    names,
    nearest,
    shown,
    sweeps,
    visible,
)

TRAINER_COMMANDS = {
    "fit": "train, then test with the final weights",
    "validate": "compute the loss and the scores of the validation set",
    "test": "compute the loss and the scores of the test set",
    "predict": "write predictions for the predict set, or for the test set if there is none",
}
COMMANDS = {
    **TRAINER_COMMANDS,
    "reproduce": "make a table or figure of a paper that takes more than one training",
    "sweep": "run the trials of a W&B sweep file, without an account",
    "show": "write a page of one run, or of several runs to compare",
    "dashboard": "print a recipe's W&B workspace, or save it to W&B",
    "recipes": "list all recipes, or print the recipes that are named",
    "completion": "print a completion script for bash, zsh or fish",
}
# What does without W&B where it refuses.
INSTEAD = dict.fromkeys(TRAINER_COMMANDS, "`--trainer.logger.offline true` keeps the run on this machine")
INSTEAD |= {
    "reproduce": "`--wandb offline` keeps the run on this machine",
    "dashboard": WITHOUT,
}
SHELLS = ("bash", "zsh", "fish")
# Commands without options, and what follows them.
PLAIN = {"recipes": "[RECIPE ...]", "completion": "|".join(SHELLS)}

HELP = """usage: pl-losses COMMAND [--config RECIPE] [--KEY VALUE ...]

commands:
{commands}

examples:
  pl-losses fit --config lenet/digits
  pl-losses fit --config lenet/mnist --config trainers/ddp --trainer.max_epochs 3
  pl-losses test --config lenet/digits --ckpt_path last

`pl-losses fit --help` shows the options of `fit`, and so for each command. `--version` shows the version.
"""

COMMAND_HELP = """usage: pl-losses {command} [--config RECIPE] [--KEY VALUE ...]

{about}.

  --config RECIPE          name of a recipe, or a YAML file; of two, the second overrides the first
  --ckpt_path WHICH        start from a checkpoint, with its settings of the model and the data;
                           `fit` without a recipe takes those of the trainer too
                           last   the newest checkpoint of the recipe's newest run
                           best   the best of this run, by the `monitor` of a ModelCheckpoint
                           none   {untrained}
                           or the folder or id of a run (its newest checkpoint), or a file
  --model CLASS            {models}, or a class of your own: my_module.MyModel
  --model.NAME VALUE       an argument of the model; --model.help CLASS lists them
  --data CLASS             {data}, or a class of your own
  --data.NAME VALUE        an argument of the data; --data.help CLASS lists them
  --trainer.NAME VALUE     an argument of the trainer; --trainer.help lists them
  --trainer.logger CLASS   WandbLogger (offline by default), TensorBoardLogger, CSVLogger, or false
  --trainer.callbacks+ CLASS   add a callback; --trainer.callbacks.NAME VALUE sets its arguments
  --trust MODULE           let recipes and checkpoints name classes of your own module
  --seed_everything N      seed of all random numbers
  --test_after_fit BOOL    after `fit`, test with the final weights (default true)
  --compile BOOL           compile the model's networks by torch.compile (default false)
  --print_config           print the whole config instead of running
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with refusals_told(INSTEAD.get("".join(args[:1]), "")):
            status = dispatch(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # As by `pl-losses recipes | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest at its end.
        return 141
    except UsageError as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        if error.__cause__ and refusal(error.__cause__):
            import wandb

            wandb.teardown(exit_code=2)  # It writes a last line of its own.
        print(visible(f"pl-losses: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        return 130


def dispatch(args: list[str]) -> int:
    """Answer a command, or check it and pass it on."""
    command = args[0] if args else "--help"
    if command in ("--help", "-h", "help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()]
        print(HELP.format(commands="\n".join(lines)), end="")
    elif command in ("--version", "-V"):
        print(f"pl-losses {__version__}")
    elif command in PLAIN and args[1:2] in (["--help"], ["-h"]):
        print(f"usage: pl-losses {command} {PLAIN[command]}\n\n{COMMANDS[command].capitalize()}.")
    elif command == "recipes":
        print("\n".join(map(shown, args[1:])) or listing())
    elif command == "completion":
        print(completion(args[1] if len(args) > 1 else ""))
    elif command in TRAINER_COMMANDS:
        return run(command, args[1:])
    elif command == "reproduce":
        return reproduce(args[1:])
    elif command == "sweep":
        from pl_losses.cli.sweep import sweep

        return sweep(args[1:])
    elif command == "show":
        from pl_losses.cli.show import show

        return show(args[1:])
    elif command == "dashboard":
        from pl_losses.cli.dashboard import dashboard

        return dashboard(args[1:])
    else:
        hint = nearest(command, [*COMMANDS, "--help", "--version"])
        hint = hint or f": expected one of {', '.join(COMMANDS)}"
        raise UsageError(f"Unknown command `{command}`{hint}")
    return 0


def run(command: str, args: list[str]) -> int:
    """Check the arguments of a trainer command, then load torch and run it."""
    from pl_losses.cli.loggers import online_asked
    from pl_losses.core.jobs import by_slurm, has_peers, jobs
    from pl_losses.core.run_folders import choose

    see_own_modules()
    flags = split(args)
    if answer := help_for(command, flags):
        print(answer, end="")
        return 0
    if not has_peers():  # They have to wait for one another, or one would wait for another that is refused.
        effective = check(command, flags)
        choose(command, flags, effective, jobs())
        if online_asked(effective, flags):
            sign_in()
    if command == "fit" and by_slurm():
        # It waits until a Trainer can save and queue the job again.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    load_torch()
    from pl_losses.cli.lightning_cli import run as run_cli

    return run_cli([command, *args])


def reproduce(args: list[str]) -> int:
    """List what can be reproduced, or check the options, then load torch and make one of them, or all."""
    from pl_losses.cli import reproduce as known

    if not args or args[0] in ("--help", "-h", "--list"):
        print(known.listing())
        return 0
    if args[0] == "--results":
        known.write_results(args[1:])
        return 0
    quick = "--quick" in args
    name, flags = args[0], split([arg for arg in args[1:] if arg != "--quick"])
    if name == "all":
        if not quick:
            raise UsageError("`reproduce all` would take most of a day: `--quick` makes a small form of each")
        load_torch()
        return known.run_all(flags)
    asked = [flag for flag in flags if flag[0] == "help"]
    known.check(name, [flag for flag in flags if flag not in asked])
    if asked:
        print(known.help_for(name))
        return 0
    if dict(flags).get("wandb") == "online":
        sign_in()
    load_torch()
    return known.run(name, known.small(name, flags, known.quick_folder()) if quick else flags)


def help_for(command: str, flags: Flags) -> str:
    """Return the answer to ``--help`` or ``--model.help``, if it was asked and the source has it."""
    from pl_losses.cli import checks
    from pl_losses.core import signatures

    for name, value in flags:
        if name == "help":
            models, data = (", ".join(checks.candidates(kind, own=True)) for kind in ("model", "data"))
            return COMMAND_HELP.format(
                command=command,
                about=TRAINER_COMMANDS[command].capitalize(),
                models=models,
                data=data,
                untrained="a new start" if command == "fit" else "untrained weights, on purpose",
            )
        kind = name.removesuffix(".help")
        if name in ("model.help", "data.help") and not value:
            # The class that the recipe names.
            config = check(command, [flag for flag in flags if not flag[0].endswith("help")])
            node = config.get(kind)
            value = node.get("class_path") if isinstance(node, dict) else node
            if not value:
                raise UsageError(f"`--{name}` needs a class, or a recipe: --{name} CLASS")
        if name == "trainer.help" or (name.endswith(".help") and value):
            trainer = signatures.locate("lightning.pytorch.Trainer")  # No class that a config may name.
            located = checks.Checker(command).cls(value, kind, kind) if value else trainer
            return signatures.describe(located) + "\n" if located else ""
    return ""


def load_torch() -> None:
    """Import torch and torchvision, and say plainly if they are missing or do not fit together."""
    if sys.stderr.isatty():
        print("Loading PyTorch ...", file=sys.stderr)
    try:
        import torch
    except ImportError as error:
        raise_from(
            f"PyTorch cannot be imported ({first_line(error)}); install it: pip install torch torchvision"
        )
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        version = getattr(torch, "__version__", "")
        raise_from(
            f"torch {version} and torchvision do not fit together ({first_line(error)});\n"
            "install matching builds from one place: pip install --force-reinstall torch torchvision"
        )


def raise_from(message: str) -> NoReturn:
    """Raise a usage error that hides the import's traceback."""
    raise UsageError(message) from None


def completion(shell: str) -> str:
    """Return a completion script of commands, recipes and the usual options."""
    if shell not in SHELLS:
        raise UsageError(f"Expected `completion` to be followed by {', '.join(SHELLS)} but got `{shell}`")
    commands = " ".join(COMMANDS)
    options = (
        "--config --ckpt_path --model --data --trainer.max_epochs --trainer.devices --trainer.logger --help"
    )
    recipes, files = " ".join(names()), " ".join(sweeps())
    if shell == "fish":
        return "\n".join(
            [
                f"complete -c pl-losses -f -n __fish_use_subcommand -a '{commands}'",
                f"complete -c pl-losses -l config -x -a '{recipes}'",
                f"complete -c pl-losses -n '__fish_seen_subcommand_from sweep' -a '{files}'",
                *(f"complete -c pl-losses -l {option[2:]} -r" for option in options.split()[1:-1]),
            ]
        )
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return head + BASH.format(commands=commands, options=options, recipes=recipes, sweeps=files)


BASH = """_pl_losses() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  case "$before" in
    --config|-c) COMPREPLY=($(compgen -W "{recipes}" -- "$word") $(compgen -f -X '!*.yaml' -- "$word")) ;;
    sweep) COMPREPLY=($(compgen -W "{sweeps}" -- "$word") $(compgen -f -X '!*.yaml' -- "$word")) ;;
    --ckpt_path) COMPREPLY=($(compgen -W "last best none" -- "$word") $(compgen -f -- "$word")) ;;
    *) if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W "{commands}" -- "$word"))
       else COMPREPLY=($(compgen -W "{options}" -- "$word")); fi ;;
  esac
}}
complete -o filenames -F _pl_losses pl-losses"""
