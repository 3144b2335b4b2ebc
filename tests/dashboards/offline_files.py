"""What tests of offline runs share: files of records, and what is on their pages."""

import json
import re
import struct
import zlib
from base64 import b64decode

import numpy as np
from wandb.proto import wandb_internal_pb2 as proto

from pl_losses.dashboards import build_page, read_run


def framed(payloads):
    """Payloads as LevelDB's log has them, behind wandb's header."""
    data = bytearray(b":W&B\xe1\xbe\0")
    for payload in payloads:
        first = True
        while payload or first:
            if (left := 32768 - len(data) % 32768) < 7:
                data += bytes(left)
                left = 32768
            piece, payload = payload[: left - 7], payload[left - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[
                first, not payload
            ]
            checksum = zlib.crc32(piece, zlib.crc32(bytes([kind])))
            data += struct.pack("<IHB", checksum, len(piece), kind) + piece
            first = False
    return data


def history(**values):
    record = proto.Record()
    for key, value in values.items():
        record.history.item.add(nested_key=[key], value_json=json.dumps(value))
    return record.SerializeToString()


def summary(**values):
    record = proto.Record()
    for key, value in values.items():
        record.summary.update.add(nested_key=[key], value_json=json.dumps(value))
    return record.SerializeToString()


def page_of(folder, *payloads):
    """The page of a run that somebody made."""
    file = folder / "offline-run-x" / "run-x.wandb"
    (file.parent / "files").mkdir(parents=True, exist_ok=True)
    file.write_bytes(framed([history(_step=0, loss=0.5), *payloads]))
    return build_page([read_run(file)])


def ended(code):
    record = proto.Record()
    record.exit.exit_code = code
    return record.SerializeToString()


def data_of(page):
    return json.loads(re.search(r'id="page">(.*?)</script>', page, re.S)[1])


def values(text):
    return np.frombuffer(b64decode(text), dtype="<f8")


def panels_of(page):
    return panels_of_data(data_of(page))


def panels_of_data(data):
    """The panels of what was logged."""
    sections = data["sections"]
    return [panel for section in sections if section["name"] != "System" for panel in section["panels"]]
