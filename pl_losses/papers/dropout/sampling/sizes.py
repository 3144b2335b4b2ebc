"""How many samples are computed at a time."""

from __future__ import annotations

from functools import cache

import torch

# Bytes of masks and results that are worked on at a time: enough to make the overhead of a round small,
# and on a CPU no more than its caches hold.
_AT_A_TIME = {"cpu": 1 << 24}
_AT_A_TIME_ELSEWHERE = 1 << 28


def at_a_time(left: int, chunk: int | None, each: int, device: torch.device) -> int:
    """Return how many samples to compute at a time: as many rounds as needed, all of about one size.

    A small last round would be slow.

    Args:
        left: Number of samples to make.
        chunk: At most so many; ``None`` for as many as fit.
        each: Bytes of one sample: its masks, and a few results that exist at a time.
        device: Where they are computed.
    """
    chunk = chunk or max(1, _AT_A_TIME.get(device.type, _AT_A_TIME_ELSEWHERE) // max(1, each))
    rounds = -(-left // chunk)
    return -(-left // rounds) if rounds else 0


@cache
def prepare() -> None:
    """Load the rules of vmap, and let the C library reuse memory instead of giving back each tensor's, once.

    Clearing new pages again and again takes longer than the sums. After a single large block, which is never
    touched, was freed, glibc raises its thresholds for giving back: to 31 MB at a time and 62 MB in all.
    """
    torch.func.vmap(torch.neg)(torch.zeros(1))
    torch.empty(31 << 20, dtype=torch.uint8)
