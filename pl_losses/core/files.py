"""Files: told apart by what is in them, never by their dates, and written whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

START, END = b"PK\5\6", 22  # How the end of a zip archive begins, and how long it is without a comment.
SEAL, DIGITS = b"pl_losses sha256 ", 64


def checksum(source: Path | bytes | memoryview, algorithm: str = "sha256") -> str:
    """Compute the checksum of a file or of bytes, in hexadecimal digits.

    Code that keeps something made from a file keeps the file's checksum beside it. Dates and sizes do not
    tell whether it is still the same file: copying and unpacking restore old dates.

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
    """Write a file that appears only when it is complete on the disk; its folder is made.

    Raises:
        OSError: If it cannot be written, as on a full disk; an earlier file stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp lets nobody else read the file; a folder may be shared.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch's writer hides the system's error.
        reason = next((one.strerror for one in causes(error) if isinstance(one, OSError)), None)
        if reason is None:
            raise
        raise OSError(
            f"`{path}` cannot be written ({reason}); an older file of this name is unchanged"
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows of equal keys, at least one, as a CSV file."""
    with written_whole(path) as file:
        text = TextIOWrapper(file, "utf-8", newline="", write_through=True)
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text.detach()
    return path


def save_sealed(path: Path, value: object) -> None:
    """Write what ``torch.load`` reads, with a checksum as the comment of its zip archive.

    Raises:
        OSError: See :func:`written_whole`.
    """
    import torch  # Others here are used without it.

    with written_whole(path) as file:
        torch.save(value, file)
        end = file.seek(-2, os.SEEK_END)
        file.write((len(SEAL) + DIGITS).to_bytes(2, "little") + SEAL + _digest(file, end))


def damage(path: Path) -> str:
    """Describe what is wrong with a zip archive, such as a checkpoint; return "" if nothing is.

    A file of :func:`save_sealed` is compared with its checksum, another archive with those of its parts.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(-(END + len(SEAL) + DIGITS), os.SEEK_END) + END - 2
            tail = file.read()
            if tail[-END:].startswith(START) and tail[-2:] == bytes(2):
                with zipfile.ZipFile(path) as archive:
                    broken = archive.testzip()
                return f"the checksum of its part {broken} is wrong" if broken else ""
            sealed = tail[END:] == SEAL + _digest(file, end)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        return str(error) or type(error).__name__
    return "" if sealed else "its checksum is wrong"


def _digest(file: BinaryIO, end: int) -> bytes:
    """Compute the SHA-256 of the first ``end`` bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while end:
        digest.update(block := file.read(min(end, 1 << 20)))
        end -= len(block)
    return digest.hexdigest().encode()
