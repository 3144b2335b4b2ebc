"""Files that are written whole or not at all, and whose damage is seen."""

import os
import random

import pytest
import torch
from spoilt import spoilt

from pl_losses.core.files import damage, save_sealed, write_table, written_whole

CONTENT = {"weights": torch.arange(5000.0), "name": "x", "steps": [1, 2.5, float("nan")]}


def test_every_spoilt_file_is_seen(tmp_path):
    path, draw = tmp_path / "x.ckpt", random.Random(0)
    save_sealed(path, CONTENT)
    whole = path.read_bytes()
    assert damage(path) == ""
    found = torch.load(path, weights_only=True)
    assert torch.equal(found["weights"], CONTENT["weights"])
    for _ in range(300):
        broken = spoilt(whole, draw)
        path.write_bytes(broken)
        assert (damage(path) != "") == (broken != whole)


def test_files_of_torch_alone_are_compared_part_by_part(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(CONTENT, path)
    assert damage(path) == ""
    content = bytearray(path.read_bytes())
    content[content.index(torch.tensor([17.0]).numpy().tobytes()) + 1] ^= 1
    path.write_bytes(content)
    assert "data" in damage(path)
    path.write_bytes(b"PK")
    assert damage(path)


WRITERS = {"torch": (save_sealed, CONTENT), "table": (write_table, [{"a": 1}])}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_failed_write_leaves_the_file_of_before(tmp_path, writer, monkeypatch):
    write, content = WRITERS[writer]
    path = tmp_path / "folder" / "x"
    with written_whole(path) as file:
        file.write(b"before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"x` cannot be written \(No space left on device\); an older file"):
        write(path, content)
    assert path.read_bytes() == b"before"
    assert [one.name for one in path.parent.iterdir()] == ["x"]


def test_tables_are_read_as_they_were_written(tmp_path):
    path = write_table(tmp_path / "x.csv", [{"name": 'a, "b"', "value": 0.1}, {"name": "ä", "value": None}])
    assert path.read_text(encoding="utf-8") == 'name,value\n"a, ""b""",0.1\nä,\n'
