"""The file of an offline W&B run (``run-<id>.wandb``, what ``wandb sync`` uploads), read record by record.

Seven bytes of header, then the framing of LevelDB's log: blocks of 32 KiB, in which each piece of a record
has a header of its checksum, length and type; a record that does not fit into a block continues in the next.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from pl_losses.recipes import UsageError

MAGIC = b":W&B"
START = 7
BLOCK = 32768
PIECE = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_payloads(path: str | Path) -> tuple[list[bytes], str]:
    """Read the serialised records of a file, up to its damage if it is damaged.

    Args:
        path: A file ``run-<id>.wandb``.

    Returns:
        The records in order, and what is wrong with the file; "" if nothing is.

    Raises:
        UsageError: If there is no such file, it is not a run's, or no record of it can be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read `{path}`: {error.strerror}") from None
    if not data:
        raise UsageError(f"`{path}` is empty: its run has written nothing yet, or was killed before it did")
    if not data.startswith(MAGIC):
        raise UsageError(f"`{path}` is not the file of a W&B run: it does not begin with {MAGIC.decode()}")
    found: list[bytes] = []
    parts: list[bytes] | None = []
    note, at = "", START
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < PIECE.size:  # Too little for a header: filled with zeros.
            at += left
            continue
        end = at + PIECE.size
        checksum, length, kind = PIECE.unpack_from(data, at) if end <= len(data) else (0, 1, 0)
        piece = data[end : end + length]
        if len(piece) < length and length <= left - PIECE.size:
            note = f"the file ends within a record, at byte {at}"
            break
        if zlib.crc32(piece, zlib.crc32(data[end - 1 : end])) != checksum:
            # The next block shows where its first piece begins.
            note = note or f"the file is damaged at byte {at}: what cannot be read is left out"
            parts = None
            at += left
            continue
        if kind in (FULL, FIRST):
            parts = []
        if parts is not None:
            parts.append(piece)
            if kind in (FULL, LAST):
                found.append(b"".join(parts))
                parts = []
        at = end + length
    if not found:
        raise UsageError(f"Nothing of `{path}` can be read: {note.partition(':')[0] or 'it has no record'}")
    return found, note or ("the file ends within a record" if parts else "")
