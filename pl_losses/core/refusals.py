"""W&B's refusals and its being out of reach, in a line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pl_losses.recipes import UsageError

SIGN_IN = "Not signed in to W&B: `wandb login` asks for an API key, or set WANDB_API_KEY"


def refusal(error: BaseException) -> str:
    """Say in a line what W&B refused, or that it cannot be reached; "" for an error of anything else.

    The errors of wandb have no base in common, so that they are known by where their classes come from.
    """
    if type(error).__module__.split(".")[0] not in ("wandb", "requests"):
        return ""
    lines = (line.strip() for line in str(error).splitlines())
    told = next(filter(None, lines), type(error).__name__).rstrip(".")[:300]
    return SIGN_IN if told.startswith("No API key") else f"W&B refused, or cannot be reached: {told}"


@contextmanager
def refusals_told() -> Iterator[None]:
    """Turn an error of wandb into one that is told in a line.

    Raises:
        UsageError: If wandb raised.
    """
    try:
        yield
    except Exception as error:
        if told := refusal(error):
            raise UsageError(told) from error
        raise


@contextmanager
def or_left_out(what: str) -> Iterator[None]:
    """Go on with a run whose server has gone away or refuses a table: wandb asks it before it keeps one.

    Args:
        what: Is left out of the run, which a warning says.
    """
    try:
        yield
    except Exception as error:
        if not (told := refusal(error)):
            raise
        warnings.warn(f"{told}; {what} is left out of the run", stacklevel=3)
