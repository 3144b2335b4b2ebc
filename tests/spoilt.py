"""Damage to a file, as disks, copies and interruptions make it."""


def spoilt(content, random):
    """The content with one of four kinds of damage."""
    broken, at = bytearray(content), random.randrange(len(content))
    kind = random.choice(("bit", "zeros", "noise", "end"))
    if kind == "bit":
        broken[at] ^= 1 << random.randrange(8)
    elif kind == "zeros":
        broken[at : at + 512] = bytes(len(broken[at : at + 512]))
    elif kind == "noise":
        broken[at : at + 64] = random.randbytes(len(broken[at : at + 64]))
    else:
        del broken[at:]
    return bytes(broken)
