"""W&B's refusals and its being out of reach, in a line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pl_losses.recipes import UsageError

KEY = "`wandb login --relogin` asks for another one, or set WANDB_API_KEY"
SIGN_IN = "Not signed in to W&B: `wandb login` asks for an API key, or set WANDB_API_KEY"
WITHOUT = "`pl-losses dashboard json` and `pl-losses show` do without it"
SECONDS = 10  # That a server has to answer at all.


def sign_in() -> bool:
    """Try whether W&B answers and knows the API key, before any work: its client goes on trying for minutes.

    Returns:
        False where W&B's settings say that nothing is sent; nothing is tried then.

    Raises:
        wandb.Error: If W&B does not answer, or not with the key; :func:`refusals_told` puts it in a line.
    """
    import wandb

    settings = wandb.setup().settings
    if settings.mode not in ("online", "shared"):
        return False
    if reason := fault(settings.base_url):
        raise wandb.errors.CommError(reason)
    if not wandb.login(prompt=False):
        raise wandb.errors.UsageError("No API key")
    return True


def fault(url: str) -> str:
    """Ask a W&B server for nothing, and say what is wrong with its answer; "" if it is W&B's."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    asked = Request(f"{url}/graphql", b'{"query": "query {serverInfo {__typename}}"}')
    asked.add_header("Content-Type", "application/json")
    asked.add_header("User-Agent", "pl-losses")
    try:
        with urlopen(asked, timeout=SECONDS) as answer:
            status, kind = answer.status, answer.headers.get_content_type()
    except HTTPError as error:
        status, kind = error.code, ""  # Without a key, a refusal is as good as an answer.
        error.close()
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        # wandb has certificates of its own.
        return "" if "CERTIFICATE" in str(error) else f"{url}: {getattr(reason, 'strerror', None) or reason}"
    if status >= 500:
        return f"W&B at {url} answers with an error (HTTP {status})"
    if "html" in kind:
        return f"W&B at {url} answers with a web page (HTTP {status}): is the address right?"
    return ""


def refusal(error: BaseException, instead: str = "") -> str:
    """Say in a line what W&B refused, or that it cannot be reached; "" for an error of anything else.

    The errors of wandb have no base in common, so that they are known by where their classes come from.

    Args:
        error: What was raised.
        instead: What can be done without W&B.
    """
    package, found = type(error).__module__.split(".")[0], getattr(error, "errors", None)
    if package == "pydantic_core" and getattr(error, "title", "") == "Settings" and found:
        first = found()[0]
        name = "".join(f"WANDB_{part}".upper() for part in first["loc"][:1])
        return f"W&B does not take its setting `{name}`: {first['msg']}, but got {first['input']!r:.80}"
    if package not in ("wandb", "requests"):
        return ""
    lines = (line.strip() for line in str(error).splitlines())
    reason = next(filter(None, lines), type(error).__name__).rstrip(".")[:300]
    if message := re.search(r'"message": ?"([^"]+)"', reason):
        reason = message[1]
    if reason.startswith("No API key"):
        reason = SIGN_IN
    elif re.search(r"API key|not logged in|error 40[13]\b", reason):
        reason = f"W&B does not take the API key ({reason}): {KEY}"
    elif "service process is busy" in reason:
        reason = f"W&B does not answer, or with errors such as a rate limit ({reason})"
    elif not reason.startswith("W&B at "):
        reason = f"W&B refused, or cannot be reached: {reason}"
        if re.search("permission|denied|forbidden|not found", reason, re.IGNORECASE):
            reason += " (are entity and project right, and may you write there?)"
    return f"{reason}; {instead}" if instead else reason


@contextmanager
def refusals_told(instead: str = "") -> Iterator[None]:
    """Turn an error of wandb into one told in a line.

    Args:
        instead: What can be done without W&B.

    Raises:
        UsageError: If wandb raised.
    """
    try:
        yield
    except Exception as error:
        if reason := refusal(error, instead):
            raise UsageError(reason) from error
        raise
