"""Runs in processes of their own, forked from this one, which has imported torch and Lightning already."""

import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path


class Fork:
    """A function in a forked process; what it prints goes to files.

    Args:
        function: Its result is the exit status.
        args: What it is given.
        environment: Variables that are set in the process.
    """

    def __init__(self, function, *args, environment=None):
        self.folder = Path(tempfile.mkdtemp())
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(function, args, environment or {})

    def _run(self, function, args, environment):
        status = 1
        try:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(self.folder / name, os.O_CREAT | os.O_WRONLY), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            # Where a shell started the tests in the background, they ignore it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            os.environ.update(environment)
            status = function(*args)
        except SystemExit as leaving:
            status = leaving.code or 0  # As Python itself has it.
        except BaseException:
            traceback.print_exc()
        finally:
            if "wandb" in sys.modules:
                sys.modules["wandb"].teardown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    @property
    def printed(self):
        """What it has written to stdout and to stderr."""
        return tuple((self.folder / name).read_text() for name in ("out", "err"))

    def ended(self):
        """The exit status, if it has ended."""
        if self.pid:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == 0:
                return None
            self.pid, self.status = 0, os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, seconds=60):
        """The exit status; a process that takes longer is killed."""
        end = time.time() + seconds
        while self.ended() is None:
            if time.time() > end:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.02)
        return self.status


def on_ranks(ranks, function, *args):
    """Run a function on several ranks, started as torchrun starts them; none may fail."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "tests",
    }
    started = [
        Fork(function, *args, environment={**known, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]
    failed = [process for process in started if process.wait() != 0]
    assert not failed, "\n".join(process.printed[1] for process in failed)
