"""W&B's refusals and its being out of reach, in a line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pl_losses.recipes import UsageError

KEY = "`wandb login --relogin` asks for another one, or set WANDB_API_KEY"
SIGN_IN = "Not signed in to W&B: `wandb login` asks for an API key, or set WANDB_API_KEY"
SECONDS = 10  # That a server has to answer at all.


def sign_in() -> None:
    """Try whether W&B answers and knows the API key, before any work: its client goes on trying for minutes.

    Nothing is tried where W&B's settings say that runs stay offline.

    Raises:
        wandb.Error: If not; :func:`refusals_told` puts it in a line.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    import wandb

    settings = wandb.setup().settings
    if settings.mode not in ("online", "shared"):
        return
    try:
        urlopen(Request(settings.base_url, method="HEAD"), timeout=SECONDS).close()
    except HTTPError:
        pass  # It answers.
    except (OSError, HTTPException) as error:
        # wandb has certificates of its own.
        if "CERTIFICATE" not in str(error):
            reason = getattr(error, "reason", error)
            fault = getattr(reason, "strerror", None) or reason
            raise wandb.errors.CommError(f"{settings.base_url}: {fault}") from error
    if not wandb.login(prompt=False):
        raise wandb.errors.UsageError("No API key")


def refusal(error: BaseException, instead: str = "") -> str:
    """Say in a line what W&B refused, or that it cannot be reached; "" for an error of anything else.

    The errors of wandb have no base in common, so that they are known by where their classes come from.

    Args:
        error: What was raised.
        instead: What can be done without W&B.
    """
    if type(error).__module__.split(".")[0] not in ("wandb", "requests"):
        return ""
    lines = (line.strip() for line in str(error).splitlines())
    told = next(filter(None, lines), type(error).__name__).rstrip(".")[:300]
    if found := re.search(r'"message": ?"([^"]+)"', told):
        told = found[1]
    if told.startswith("No API key"):
        told = SIGN_IN
    elif type(error).__name__ == "AuthenticationError" or "not logged in" in told or "API key" in told:
        told = f"W&B does not take the API key ({told}): {KEY}"
    else:
        told = f"W&B refused, or cannot be reached: {told}"
        if re.search("permission|denied|forbidden|not found", told, re.IGNORECASE):
            told += " (are entity and project right, and may you write there?)"
    return f"{told}; {instead}" if instead else told


@contextmanager
def refusals_told(instead: str = "") -> Iterator[None]:
    """Turn an error of wandb into one that is told in a line.

    Args:
        instead: What can be done without W&B.

    Raises:
        UsageError: If wandb raised.
    """
    try:
        yield
    except Exception as error:
        if told := refusal(error, instead):
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
