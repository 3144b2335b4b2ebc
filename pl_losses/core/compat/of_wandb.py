"""What wandb and wandb-workspaces keep to themselves. Tried with 0.31, and with 0.4.4 to 0.4.13."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

FLUSH = 5  # Seconds between two writes of a run's file by wandb's service.
GRACE = 4 * FLUSH  # Seconds beyond ``finish_timeout`` after which the service is ended: all is in the file.


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


def finish(run: Any, exit_code: int | None = None) -> bool:
    """End a run, and its service if that has not ended it :data:`GRACE` seconds after its ``finish_timeout``.

    That timeout does not hold for what the service asks the server before it comes to the run's end: whether
    it takes artifacts, for example. The run's file has all of the run by then, for ``wandb sync``.
    Without the service's process: it waits as long as W&B does.

    Args:
        run: Of wandb, with the suite's :func:`~pl_losses.core.wandb_run.settings`.
        exit_code: Of the run.

    Returns:
        Whether the service has ended the run.
    """
    limit: float = run.settings.finish_timeout
    process: Any = None
    with suppress(AttributeError):  # Of a run that has no service, too.
        process = run._wl.ensure_service()._proc._process
    overdue = threading.Event()

    def end() -> None:
        overdue.set()
        process.kill()

    timer = threading.Timer(limit + GRACE, end)
    timer.daemon = True
    if limit and process is not None:  # No limit: the user wants to wait.
        timer.start()
    try:
        run.finish(exit_code=exit_code)
    except Exception:
        if not overdue.is_set():
            raise
    finally:
        timer.cancel()
    if overdue.is_set():
        import wandb

        with suppress(Exception, SystemExit):  # It would tell the service.
            wandb.teardown()
    return not overdue.is_set()


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
