"""What Python keeps to itself. Tried with 3.11 to 3.14."""


def is_protocol(kind: object) -> bool:
    """Return whether a class is a protocol. Without the name: none is, and its instances are not checked."""
    return bool(getattr(kind, "_is_protocol", False))
