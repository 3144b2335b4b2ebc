"""A folder of results: one process at a time, which leaves it by an exception."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pl_losses.recipes import UsageError

LOCK = ".lock"


@contextmanager
def alone(folder: Path, what: str) -> Iterator[list[int]]:
    """Lock a folder against other processes, and trials that a killed one left behind, and yield the locks.

    A folder that gets no file is removed again, if it was not there before.

    Args:
        folder: Of results.
        what: The work in words, such as "sweep".

    Raises:
        UsageError: If it is locked.
    """
    try:
        import fcntl
    except ImportError:  # Windows.
        yield []
        return
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK
    lock.touch()
    with lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(holder(file.read(), folder, what)) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield [file.fileno()]
        finally:
            with suppress(OSError):
                if [*folder.iterdir()] == [lock]:
                    lock.unlink()
                    for part in made:
                        part.rmdir()


def holder(text: str, folder: Path, what: str) -> str:
    """Say who holds the lock of a folder, and what to do.

    Args:
        text: Of the lock's file: the process, then that of a sweep's trial.
        folder: The locked one.
        what: The work in words, such as "sweep".
    """
    process, trial = [*text.split(), "", ""][:2]
    if trial and not is_running(int(process)):
        todo = f"wait for it, or end it by `kill {trial}`, then give the same command again"
        return f"A trial (process {trial}) of a {what} that was killed is running on in {folder}: {todo}"
    return f"Another {what} (process {process}) is running in {folder}: wait for it, or take another --folder"


def is_running(process: int) -> bool:
    """Return whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It is another user's.
    return True


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Have SIGTERM and a closed terminal leave by an exception, so that what was done is kept and told."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = [(number, signal.signal(number, leave)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
