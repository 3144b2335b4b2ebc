"""The job that a process belongs to, which SLURM or torchrun may start again; found without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        name: The same each time that it is started, and that of no other job.
        again: Whether it was started before.
    """

    name: str
    again: bool


def jobs() -> list[Job]:
    """Return the jobs of this process: torchrun's and SLURM's, which may be around it."""
    found = []
    if identity := _torchrun():
        found.append(Job(f"torchrun {identity}", _count("TORCHELASTIC_RESTART_COUNT") > 0))
    if identity := os.environ.get("SLURM_JOB_ID", ""):
        found.append(Job(f"SLURM's job {identity}", _count("SLURM_RESTART_COUNT") > 0))
    return found


def _torchrun() -> str:
    identity = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if identity != "none":
        return identity
    # It was given no --rdzv-id. But it has made itself a folder: <folder>/attempt_0/<rank>/error.json.
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(file).parents[2].name if file else ""


def _count(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 0


def by_slurm() -> bool:
    """Return whether Lightning takes a process for one that SLURM's ``srun`` has started."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def has_peers() -> bool:
    """Return whether torchrun or SLURM has started more processes of the same command."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _count("WORLD_SIZE") > 1
    return by_slurm() and _count("SLURM_STEP_NUM_TASKS") > 1  # Which only `srun` sets.
