"""What wandb and wandb-workspaces keep to themselves. Tried with 0.31, and with 0.4.4 to 0.4.13."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handed_over(run: Any) -> Iterator[None]:
    """Have a run hand artifacts and tables to wandb's service as offline runs do: without a server's answer.

    Online, ``log`` asks the server first, and raises after a while where it has gone away. The service goes
    on trying, and keeps what it could not send for ``wandb sync``. Without the names: an error where the
    first table is logged.
    """
    log = run._log_artifact

    def hand_over(*args: Any, **kwargs: Any) -> Any:
        settings = run._settings
        run._settings = settings.model_copy(update={"mode": "offline"})
        try:
            return log(*args, **kwargs)
        finally:
            run._settings = settings

    if run.disabled:
        yield
        return
    run._log_artifact = hand_over
    try:
        yield
    finally:
        del run._log_artifact


def use_artifact(run: Any, artifact: Any) -> None:
    """Make a new artifact an input of a run, offline or not; the public method refuses offline runs.

    Without it: an error where a run notes its data.
    """
    run._log_artifact(artifact, is_user_created=True, use_after_commit=True)


def as_view(workspace: Any) -> Any:
    """Return what W&B is sent, a model of pydantic, without a connection.

    Without it: an error of ``pl-losses dashboard``.
    """
    return workspace._to_model()


def name_view(workspace: Any, name: str) -> None:
    """Give a workspace the name of a view that is there, which saving then updates. Without it: a new one."""
    workspace._internal_name = name
