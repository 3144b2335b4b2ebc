"""The part of protobuf's wire format that a run's file uses, so that a page of it needs no import of wandb.

That import takes over a second. The numbers of the fields are those of wandb's ``Record``; a test compares.
"""

from __future__ import annotations

from collections.abc import Iterator

# Message to the numbers of its fields.
RECORD = {
    "history": 2,
    "config": 5,
    "stats": 7,
    "artifact": 8,
    "metric": 12,
    "output_raw": 13,
    "run": 17,
    "exit": 18,
    "environment": 26,
}
CONFIG = {"update": 1}
RUN = {"run_id": 1, "job_type": 7, "display_name": 8, "config": 4, "start_time": 17}
EXIT = {"exit_code": 1, "runtime": 2}
METRIC = {"name": 1, "glob_name": 2, "step_metric": 4}
ENVIRONMENT = {"python": 2, "args": 5, "host": 12}
STATS = {"timestamp": 2, "item": 3}
OUTPUT = {"line": 3}
ARTIFACT = {"manifest": 12}
MANIFEST = {"contents": 4}
ENTRY = {"path": 1, "local_path": 6}
ITEM = {"key": 1, "nested_key": 2, "value_json": 16}
HISTORY = {"item": 1}
TIMESTAMP = {"seconds": 1}


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a message: number and value, an integer or bytes.

    Example:
        >>> list(fields(bytes([0x08, 0x96, 0x01, 0x12, 0x02, 0x68, 0x69])))
        [(1, 150), (2, b'hi')]

    Raises:
        ValueError: If the bytes are no message.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"Expected a protobuf message but got wire type {kind}")
        yield number, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("Expected a protobuf message but it ends within a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def select(message: bytes, numbers: dict[str, int]) -> dict[str, list[int | bytes]]:
    """Return the values of the named fields of a message, by name."""
    names = {number: name for name, number in numbers.items()}
    found: dict[str, list[int | bytes]] = {}
    for number, value in fields(message):
        if number in names:
            found.setdefault(names[number], []).append(value)
    return found


def messages(message: bytes, numbers: dict[str, int], name: str) -> list[bytes]:
    """Return the messages within a field of a message."""
    return [value for value in select(message, numbers).get(name, []) if isinstance(value, bytes)]


def text(values: list[int | bytes] | None) -> str:
    """Return the last value as text; "" if there is none."""
    last = values[-1] if values else b""
    return last.decode("utf-8", "replace") if isinstance(last, bytes) else str(last)


def seconds(values: list[int | bytes] | None) -> int:
    """Return the last timestamp's seconds since 1970; 0 if there is none."""
    last = values[-1] if values else b""
    found = select(last, TIMESTAMP).get("seconds", [0])[-1] if isinstance(last, bytes) else 0
    return found if isinstance(found, int) else 0


def item(message: bytes) -> tuple[list[str], bytes]:
    """Read a history or config item: its key, in parts if it was nested, and its JSON value."""
    found = select(message, ITEM)
    nested = [text([part]) for part in found.get("nested_key", [])]
    value = found.get("value_json", [b"null"])[-1]
    return nested or [text(found.get("key"))], value if isinstance(value, bytes) else b"null"
