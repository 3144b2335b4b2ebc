"""What wandb-workspaces keeps to itself. Tried with 0.3."""

from __future__ import annotations

from typing import Any


def as_view(workspace: Any) -> Any:
    """Return what W&B is sent, a model of pydantic, without a connection."""
    return workspace._to_model()


def name_view(workspace: Any, name: str) -> None:
    """Give a workspace the name of a view that is there, which saving then updates. Without it: a new one."""
    workspace._internal_name = name
