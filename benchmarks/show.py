"""What the page of a long run takes: ``pl-losses show`` of 100 000 rows with 50 keys, framed as wandb does.

Run with ``python -m benchmarks.show``. The command is a process of its own, imports included; the ratio is
that to only parsing the same file with wandb's own protobuf classes and JSON. Medians over the turns.
"""

from __future__ import annotations

import json
import math
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from wandb.proto import wandb_internal_pb2 as proto

ROWS, KEYS, TURNS = 100_000, 50, 3
BLOCK, HEADER = 32768, 7


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file, page = Path(folder, "run-long.wandb"), Path(folder, "page.html")
        extremes = write(file)
        print(f"{ROWS} rows, {KEYS} keys: {file.stat().st_size / 1e6:.0f} MB")
        wall, ratios, seconds = [], [], []
        for _ in range(TURNS):
            started = perf_counter()
            shown = run("-m", "pl_losses", "show", str(file), "--out", str(page), "--open", "false")
            wall.append(perf_counter() - started)
            seconds.append(shown)
            ratios.append(run("-c", PARSE, str(file)) / shown)
        print(f"pl-losses show: {median(wall):.1f} s, {median(seconds):.1f} s of the processor (at most 5)")
        print(f"page: {page.stat().st_size / 1e6:.1f} MB (at most 5)")
        print(f"faster than parsing with wandb's classes alone: {median(ratios):.2f}x")
        kept = {line["key"]: line for line in lines(page)}
        lost = [key for key, ends in extremes.items() if ends != ends_of(kept[key]["y"])]
        print(f"curves whose smallest or largest value is lost: {len(lost)} of {len(extremes)} (none)")


PARSE = """
import json, sys
from pathlib import Path
from pl_losses.dashboards.offline.records import read_payloads
from wandb.proto import wandb_internal_pb2 as proto
rows = []
for payload in read_payloads(sys.argv[1], []):
    record = proto.Record.FromString(payload)
    if record.HasField("history"):
        rows.append({item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
"""


def run(*args: str) -> float:
    """Processor seconds of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write(path: Path) -> dict[str, tuple[float, float]]:
    """Write a run's file; the smallest and largest value of each key are returned."""
    source = random.Random(0)
    draw, shuffle = source.random, source.shuffle
    values = {f"train/metric_{k:02d}": [] for k in range(KEYS - 1)}
    with path.open("wb") as file:
        file.write(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
        for row in range(ROWS):
            now = {name: math.sin(row * k / 1e4) + 0.3 * draw() for k, name in enumerate(values)}
            for name, value in now.items():
                values[name].append(value)
            more = {
                "trainer/global_step": row,
                "_step": row,
                "_timestamp": 1.7e9 + row,
                "_runtime": 0.1 * row,
            }
            items = [(name, json.dumps(value)) for name, value in {**now, **more}.items()]
            # wandb writes the keys in a random order, and with each row what it changes in the summary.
            shuffle(items)
            records = proto.Record(num=2 * row), proto.Record(num=2 * row + 1)
            for name, text in items:
                records[0].summary.update.add(nested_key=[name], value_json=text)
                records[1].history.item.add(nested_key=[name], value_json=text)
            for record in records:
                for piece in framed(record.SerializeToString(), file.tell()):
                    file.write(piece)
    return {name: (min(found), max(found)) for name, found in values.items()}


def framed(data: bytes, at: int) -> Iterator[bytes]:
    """The pieces of a record from a position of the file on."""
    first = True
    while data or first:
        left = BLOCK - at % BLOCK
        if left < HEADER:
            yield bytes(left)
            at, left = at + left, BLOCK
        piece, data = data[: left - HEADER], data[left - HEADER :]
        kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not data]
        checksum = zlib.crc32(piece, zlib.crc32(bytes([kind])))
        yield struct.pack("<IHB", checksum, len(piece), kind) + piece
        at, first = at + HEADER + len(piece), False


def lines(page: Path) -> list[dict[str, str]]:
    """The curves on a page."""
    data = re.search(r'<script type="application/json" id="page">(.*?)</script>', page.read_text(), re.S)
    assert data is not None
    panels = [panel for section in json.loads(data[1])["sections"] for panel in section["panels"]]
    return [line for panel in panels if panel["kind"] == "lines" for line in panel["lines"]]


def ends_of(text: str) -> tuple[float, float]:
    values = np.frombuffer(b64decode(text), dtype="<f8")
    return float(values.min()), float(values.max())


if __name__ == "__main__":
    main()
