"""What wandb and wandb-workspaces keep to themselves. Tried with 0.31, and with 0.3 and 0.4."""

from __future__ import annotations

from typing import Any


def use_artifact(run: Any, artifact: Any) -> None:
    """Make a new artifact an input of a run, offline or not; the public method refuses offline runs."""
    run._log_artifact(artifact, is_user_created=True, use_after_commit=True)


def as_view(workspace: Any) -> Any:
    """Return what W&B is sent, a model of pydantic, without a connection."""
    return workspace._to_model()


def name_view(workspace: Any, name: str) -> None:
    """Give a workspace the name of a view that is there, which saving then updates. Without it: a new one."""
    workspace._internal_name = name
