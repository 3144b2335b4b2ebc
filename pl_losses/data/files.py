"""Files: told apart by what is in them, never by their dates, and written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def checksum(source: Path | bytes | memoryview, algorithm: str = "sha256") -> str:
    """Checksum of a file or of bytes, in hexadecimal digits.

    Whatever keeps something made from a file keeps the file's checksum beside it. Dates and sizes do not tell
    whether it is still the same file: copying and unpacking bring back old dates.

    Args:
        source: Path of the file, or what is in it.
        algorithm: "sha256", which takes 0.6 s for a gigabyte, or the one that a checksum is published for.

    Example:
        >>> checksum(b"abc", "md5")
        '900150983cd24fb0d6963f7d28e17f72'
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return hashlib.file_digest(
                file, lambda: hashlib.new(algorithm, usedforsecurity=False)
            ).hexdigest()
    return hashlib.new(algorithm, source, usedforsecurity=False).hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears when all of it is written; its folder is made.

    Raises:
        OSError: If the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        # mkstemp lets nobody else read the file; a folder may be shared.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
