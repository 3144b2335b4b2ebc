"""``pl-losses dashboard``; wrong arguments are refused before heavy imports."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

from pl_losses.cli.arguments import options, positional, split
from pl_losses.core.manifests import reproduced
from pl_losses.core.refusals import refusals_told, sign_in
from pl_losses.core.trust import TRUST, is_class, own_packages, see_own_modules
from pl_losses.core.version import EXTRA
from pl_losses.recipes import OVERLAYS, UsageError, names, nearest

DASHBOARD_HELP = """usage: pl-losses dashboard json RECIPE
       pl-losses dashboard push RECIPE --entity NAME --project NAME

Make a W&B workspace for a recipe, for a class of your own (my_module.MyModel), or for a figure of
`pl-losses reproduce`. `json` prints it, and needs no account. `push` saves it to W&B, and replaces the one
that was pushed before. Both need the extra `dashboards`.

  --entity NAME            user or team on W&B (default: WANDB_ENTITY)
  --project NAME           project on W&B (default: WANDB_PROJECT, or pl_losses)
  --trust MODULES          modules of your own that the recipe names
"""
ACTIONS = ("json", "push")


def dashboard(args: Sequence[str]) -> int:
    """Print or push a recipe's workspace, and return the exit status."""
    given, rest = positional(args)
    if not args or rest[:1] in (["--help"], ["-h"]):
        print(DASHBOARD_HELP, end="")
        return 0
    flags = split(rest)
    chosen = options(flags, ("entity", "project", "trust"))
    name = check(given)
    if is_class(name):  # As for --model, who types the name of a class trusts it.
        flags.append(("model", name))
    os.environ[TRUST] = ",".join(sorted(own_packages(flags)))
    see_own_modules()
    entity = chosen.get("entity") or os.environ.get("WANDB_ENTITY", "")
    project = chosen.get("project") or os.environ.get("WANDB_PROJECT") or "pl_losses"
    if given[0] == "push":
        import wandb

        if not entity:
            raise UsageError("`dashboard push` takes --entity: W&B's user or team")
        with refusals_told():
            wandb.Settings(entity=entity, project=project)
        if not sign_in():
            raise UsageError(
                "`dashboard push` sends to W&B, and WANDB_MODE or `wandb offline` says that nothing is sent;"
                " `dashboard json` prints the workspace"
            )
    from pl_losses.dashboards.workspace import build_workspace, push, spec

    if given[0] == "push":
        print(f"Saved: {push(name, entity, project)}")
    else:
        print(json.dumps(spec(build_workspace(name, entity, project)), indent=2))
    return 0


def check(given: Sequence[str]) -> str:
    """Return the recipe that is named after ``json`` or ``push``, if it exists.

    Raises:
        UsageError: If there is none (the message names the nearest), or wandb-workspaces is missing.
    """
    if not given or given[0] not in ACTIONS:
        what = f"`{given[0]}`" if given else "nothing"
        raise UsageError(f"Expected `dashboard` to be followed by {' or '.join(ACTIONS)} but got {what}")
    if len(given) != 2:
        raise UsageError(
            f"Expected `dashboard {given[0]}` to be followed by one recipe but got {len(given) - 1}"
        )
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UsageError(
            f"Dashboards on W&B need wandb-workspaces: {EXTRA.format('dashboards')}\n"
            "(`pl-losses show` works without it)"
        )
    name = given[1]
    known = [one for one in names() if not one.startswith(f"{OVERLAYS}/")]
    known += [one.name for one in reproduced().values() if one.panels]
    if name not in known and not Path(name).is_file() and not is_class(name):
        hint = nearest(name, known) or "; `pl-losses recipes` lists them"
        raise UsageError(f"No recipe named `{name}`{hint}")
    return name
