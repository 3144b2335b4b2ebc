"""Downloads: a published file appears at its place complete and checked, or not at all."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from pl_losses.core.files import checksum as checksum_of, written_whole


def data_root(root: str | Path | None) -> Path:
    """Return the folder with the data: ``root``, else PL_LOSSES_DATA, else ``~/.cache/pl_losses``."""
    return Path(root or os.environ.get("PL_LOSSES_DATA") or "~/.cache/pl_losses").expanduser()


def download(addresses: Sequence[str], path: Path, *, algorithm: str, checksum: str, contents: str) -> None:
    """Download a file from the first address that gives it undamaged.

    Args:
        addresses: URLs of the file, tried in turn.
        path: Where to save the file; its folder is made when the download is complete.
        algorithm: Algorithm of the checksum: "md5" or "sha256".
        checksum: In hexadecimal digits.
        contents: What the user can put into the folder instead, for the error's advice.

    Raises:
        OSError: If no address gives a file with the right checksum, or the folder cannot be written.
    """
    _check_writable(path.parent)
    data = _fetched(addresses, path, algorithm, checksum, contents)
    with written_whole(path) as file:
        file.write(data)


def _check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, without making it before there is something to save."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OSError(
            f"Expected a folder to download into but {nearest} cannot be written: set `root` or the"
            " environment variable PL_LOSSES_DATA to another one"
        )


def _fetched(addresses: Sequence[str], path: Path, algorithm: str, checksum: str, contents: str) -> bytes:
    failures = []
    for address in addresses:
        try:
            with urllib.request.urlopen(address, timeout=30) as response:
                data: bytes = response.read()
        except (OSError, HTTPException) as error:
            failures.append(f"{address}: {error}")
            continue
        found = checksum_of(data, algorithm)
        if found == checksum:
            return data
        failures.append(f"{address}: {algorithm} {found} instead of {checksum}")
    raise OSError(
        f"Could not download {path.name} ({'; '.join(failures)}): copy it to {path.parent}, or set `root` or"
        f" the environment variable PL_LOSSES_DATA to a folder that has {contents}"
    )
