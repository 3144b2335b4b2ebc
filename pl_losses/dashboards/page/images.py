"""Pictures in a page: as they were logged if there is room, else smaller."""

from __future__ import annotations

import base64
from collections.abc import Hashable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from pl_losses.dashboards.offline.runs import Item, Run

Name = TypeVar("Name", bound=Hashable)
KINDS = {".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}
SIDES = (1200, 800, 500, 300)  # pixels, tried one after the other
THUMBNAILS = (128, 64, 32)
THUMBNAIL = 1500  # bytes that the smallest take at most


def files(run: Run, item: Item) -> list[Path]:
    """Return the files of logged pictures that exist within the run's folder."""
    names = item.value.get("filenames") or [item.value.get("path", "")]
    return [file for name in names if (file := run.file(name)) is not None]


def size(file: Path) -> float:
    """Return the bytes that a file takes as base64."""
    return file.stat().st_size * 4 / 3


def fair(sizes: Mapping[Name, float], room: float) -> dict[Name, float]:
    """Share the room fairly: each gets all that it needs, or as much as the others that need more.

    Example:
        >>> fair({"a": 10, "b": 60, "c": 90}, room=100)
        {'a': 10, 'b': 45.0, 'c': 45.0}
    """
    shares: dict[Name, float] = {}
    for number, name in enumerate(sorted(sizes, key=sizes.__getitem__)):
        shares[name] = min(sizes[name], room / (len(sizes) - number))
        room -= shares[name]
    return shares


def embedded(file: Path, room: float, sides: Sequence[int] = SIDES) -> str:
    """Encode a picture as a data URL: unchanged if it fits into ``room`` bytes, else as a smaller JPEG."""
    kind, data = KINDS.get(file.suffix.lower(), "png"), file.read_bytes()
    if size(file) > room:
        kind, data = "jpeg", shrunk(file, room * 3 / 4, sides)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def shrunk(file: Path, room: float, sides: Sequence[int]) -> bytes:
    """Shrink a picture to a JPEG that fits, or to the smallest side; empty if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return b""
    for side in sides:
        picture.thumbnail((side, side))
        stream = BytesIO()
        picture.save(stream, "JPEG", quality=80)
        if stream.tell() <= room:
            break
    return stream.getvalue()
