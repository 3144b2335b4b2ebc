"""The file of an offline W&B run (``run-<id>.wandb``, what ``wandb sync`` uploads), read record by record.

Seven bytes of header, then the framing of LevelDB's log: blocks of 32 KiB, in which each piece of a record
has a header of its checksum, length and type; a record that does not fit into a block continues in the next.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from pl_losses.recipes import UsageError

MAGIC = b":W&B"
START = 7
BLOCK = 32768
PIECE = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_payloads(path: str | Path, notes: list[str]) -> Iterator[bytes]:
    """Yield the serialised records of a file in order, up to its damage if it is damaged.

    Args:
        path: A file ``run-<id>.wandb``.
        notes: At the end, what is wrong with the file is added, if anything is.

    Raises:
        UsageError: If there is no such file, it is not a run's, or no record of it can be read.
    """
    found, note = False, ""
    parts: list[bytes] | None = []
    for start, block in _blocks(path):
        at = 0 if start else START
        while at < len(block) and BLOCK - at >= PIECE.size:  # Less is filled with zeros.
            end = at + PIECE.size
            checksum, length, kind = PIECE.unpack_from(block, at) if end <= len(block) else (0, 1, 0)
            piece = block[end : end + length]
            if len(piece) < length <= BLOCK - end:
                note = f"the file ends within a record, at byte {start + at}"
                break
            if zlib.crc32(piece, zlib.crc32(block[end - 1 : end])) != checksum:
                # The next block shows where its first piece begins.
                note = note or f"the file is damaged at byte {start + at}: what cannot be read is left out"
                parts = None
                break
            if kind in (FULL, FIRST):
                parts = []
            if parts is not None:
                parts.append(piece)
                if kind in (FULL, LAST):
                    found = True
                    yield b"".join(parts)
                    parts = []
            at = end + length
    if note and not found:
        raise UsageError(f"Nothing of `{path}` can be read: {note.partition(':')[0]}")
    if parts:
        note = note or "the file ends within a record"
    elif not found:
        note = "the file has no record so far: wandb writes it every few seconds"
    if note:
        notes.append(note)


def _blocks(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of a file with their places, each shorter one being the last; never all at once."""
    start = 0
    try:
        with Path(path).open("rb", buffering=8 * BLOCK) as file:
            while block := file.read(BLOCK):
                if not start and not block.startswith(MAGIC):
                    raise UsageError(
                        f"`{path}` is not the file of a W&B run: it does not begin with {MAGIC.decode()}"
                    )
                yield start, block
                start += len(block)
                if len(block) < BLOCK:  # The file may grow meanwhile.
                    break
    except OSError as error:
        raise UsageError(f"Cannot read `{path}`: {error.strerror}") from None
    if not start:
        raise UsageError(f"`{path}` is empty: its run has written nothing yet, or was killed before it did")
