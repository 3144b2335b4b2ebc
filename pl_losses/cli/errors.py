"""What stopped a run, in one line, where the message tells enough."""

from __future__ import annotations

import errno
import linecache
import re
from collections.abc import Iterable
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Any

from pl_losses.cli.arguments import TRACEBACK, first_line
from pl_losses.cli.parser import shorten
from pl_losses.core import expected
from pl_losses.core.compat import of_lightning
from pl_losses.core.files import causes
from pl_losses.core.signatures import OWN
from pl_losses.recipes import UsageError

# Memory that cannot be had, and numbers that a type does not hold.
TOO_LARGE = re.compile(r"can't allocate memory|CUDA out of memory|without overflow|[Oo]verflow when")


def in_a_line(error: Exception, checkpoint: str | None) -> Exception:
    """Return a usage error if the message suffices; else the error itself, with its traceback.

    Args:
        error: What stopped the run.
        checkpoint: The checkpoint that it was to resume, if any.
    """
    message, passed = str(error), frames(error)
    at = passed[-1] if passed else None
    module = at.tb_frame.f_globals.get("__name__", "") if at else ""
    if checkpoint and ("in loading state_dict" in message or "loaded state dict" in message):
        fault = re.sub(r"\s+", " ", message.partition(":\n")[2] or message)
        return UsageError(
            f"`{checkpoint}` (--ckpt_path) does not fit the model or its optimizer: {fault[:300]}"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UsageError(f"{error.strerror}: {error.filename or 'the run stopped'}; checkpoints are whole")
    if isinstance(error, IsADirectoryError) and checkpoint:
        return UsageError(
            f"`{checkpoint}` (--ckpt_path) is a folder that this strategy reads no checkpoint from: if it is"
            " sharded, add --config trainers/fsdp2-shards"
        )
    if isinstance(error, MemoryError) or TOO_LARGE.search(message):
        fault = first_line(error)[:200]
        return UsageError(f"A size or number is too large: {fault} ({TRACEBACK}=1 shows where)")
    if "InvalidCxxCompiler" in message:
        return UsageError("Expected a working C++ compiler with `compile` but found none: leave it out")
    if isinstance(error, TypeError) and at and (text := expected.arguments(message, at.tb_frame.f_locals)):
        return UsageError(text)
    if isinstance(error, RuntimeError) and (text := expected.types(message)):
        return UsageError(f"{text} ({TRACEBACK}=1 shows where)")
    # Raised by code of the suite, Lightning or an optimizer itself, not by something that it called.
    refused = at is not None and is_raised(at)
    if refused and module.split(".")[0] == OWN and not isinstance(error, RuntimeError):
        return UsageError(message)
    if refused and module.startswith("jsonargparse."):
        return UsageError(shorten(message))
    if refused and module.startswith(("lightning.", "torch.optim")) and not isinstance(error, OSError):
        message = re.sub(r"\s+", " ", message)[:300]
        return UsageError(f"{message} ({TRACEBACK}=1 shows where)")
    if isinstance(error, TypeError) and (made := being_made(error)):
        return UsageError(f"The arguments of {made} do not fit: {message} ({TRACEBACK}=1 shows where)")
    if checkpoint and any(map(of_lightning.restores, passed)):
        fault = re.sub(r"\s+", " ", f"{type(error).__name__}: {message}")[:300]
        return UsageError(
            f"`{checkpoint}` (--ckpt_path) is damaged or of another model: {fault}"
            f" ({TRACEBACK}=1 shows where)"
        )
    return error


def being_made(error: Exception) -> str:
    """Return the name of the optimizer or scheduler whose constructor raised an error, if one did."""
    for frame, _ in walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        if frame.f_code.co_name == "__init__" and module.startswith("torch.optim."):
            return type(frame.f_locals["self"]).__name__
    return ""


def frames(error: BaseException) -> list[TracebackType]:
    """List where an exception went through, the innermost last."""
    found, at = [], error.__traceback__
    while at is not None:
        found.append(at)
        at = at.tb_next
    return found


def own_place(error: Exception, own: Iterable[str]) -> str:
    """Say where the user's own code failed, in brackets; empty if it did not take part.

    Args:
        error: What building model or data ended with.
        own: Packages of the user's own.
    """
    for one in causes(error):
        for at in reversed(frames(one)):
            code = at.tb_frame.f_code
            if at.tb_frame.f_globals.get("__name__", "").split(".")[0] in own:
                kind, file = type(one).__name__, Path(code.co_filename).name
                return f" ({kind} in {code.co_qualname}, {file} line {at.tb_lineno})"
    return ""


def hardware(error: Exception, trainer: Any) -> str:
    """Say in brackets what the trainer was given, if Lightning finds no such devices."""
    module = frames(error)[-1].tb_frame.f_globals.get("__name__", "")
    if "accelerator" not in module and "device" not in module:
        return ""
    given = {name: trainer[name] for name in ("accelerator", "devices", "num_nodes", "strategy")}
    options = [f"`trainer.{name}` {value!r:.80}" for name, value in given.items() if value not in ("auto", 1)]
    return f" (got {', '.join(options)})" if options else ""


def is_raised(at: TracebackType) -> bool:
    """Return whether the code there raised an exception itself; any other is a mistake in the code."""
    line = linecache.getline(at.tb_frame.f_code.co_filename, at.tb_lineno)
    return line.lstrip().startswith("raise")
