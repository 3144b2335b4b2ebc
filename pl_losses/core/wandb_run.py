"""What the suite tells W&B of a run where the user has not said it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pl_losses.core.compat import of_wandb
from pl_losses.core.manifests import reference
from pl_losses.recipes import HERE

# Arguments of ``wandb.init``, and the variables of the environment that say the same.
VARIABLES = {
    "name": "WANDB_NAME",
    "group": "WANDB_RUN_GROUP",
    "job_type": "WANDB_JOB_TYPE",
    "tags": "WANDB_TAGS",
    "notes": "WANDB_NOTES",
}
LONGEST = 128  # W&B takes no longer names and groups.


def about(name: str, group: str, job_type: str, papers: Sequence[str]) -> dict[str, Any]:
    """Return arguments of ``wandb.init`` that say what a run is, less those that the environment has.

    They include its :func:`settings`.

    Args:
        name: Of the run; the runs of a sweep are named by W&B.
        group: The recipe.
        job_type: The command.
        papers: Names of the papers that it takes classes of.
    """
    notes = "\n".join(map(reference, papers))
    told: dict[str, Any] = {"job_type": job_type, "tags": list(papers), "notes": notes}
    told |= {"group": group[:LONGEST], "name": "" if "WANDB_SWEEP_ID" in os.environ else name[:LONGEST]}
    told = {key: value for key, value in told.items() if value and not os.environ.get(VARIABLES[key])}
    return told | {"settings": settings()}


def finish(run: Any, exit_code: int | None = None) -> None:
    """End a run in a time that is known, and say how to send the rest if W&B has gone away.

    Args:
        run: Of wandb.
        exit_code: Of the run.
    """
    folder = os.path.relpath(Path(run.dir).parent)
    if not of_wandb.finish(run, exit_code):
        command = f"wandb sync --no-skip-online {shlex.quote(folder)}"
        print(f"W&B did not answer in time; to send the rest: {command}", file=sys.stderr)


def settings() -> Any:
    """Return wandb's settings of the suite, less those that the environment has.

    W&B keeps the commit and the changes since, as ``diff.patch``, of the checkout that the current folder
    lies in, else of the suite's own, if it is one. A run that begins waits half a minute at most for a server
    that answers with errors. A run that has ended waits ten minutes at most for a server that has gone away,
    where wandb would for hours; its record stays on the disk, for ``wandb sync``. The service writes it often
    enough for pages that follow a run.
    """
    import wandb

    limits = {"finish_timeout": 600, "init_timeout": 30, "x_transaction_log_flush_interval": of_wandb.FLUSH}
    found: dict[str, Any] = {
        key: seconds for key, seconds in limits.items() if f"WANDB_{key.upper()}" not in os.environ
    }
    here = Path.cwd()
    within = any((at / ".git").exists() for at in (here, *here.parents))
    if "WANDB_SAVE_CODE" not in os.environ and (within or (HERE.parent / ".git").exists()):
        found |= {"save_code": True, "git_root": None if within else str(HERE.parent)}
    return wandb.Settings(**found)
