"""Images in shards: the same as in folders, from a folder and from an object store."""

import json
import os
import random
import re
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from data.test_image_folders import JITTERED, fit, smooth
from processes import Fork

from pl_losses.cli.main import main
from pl_losses.core.rng import keyed_generator
from pl_losses.data import ImageFolders, ImageShards, image_shards, write_shards
from pl_losses.data.file_loader import name_of
from pl_losses.data.image_shards import WINDOW, shard_order

pytest.importorskip("litdata", reason="no LitData: install the extra `shards`")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("folders"), random.Random(0)
    for split, count in (("train", 11), ("val", 7)):
        for label, name in enumerate("ab"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = smooth(draw.randint(40, 90), draw.randint(40, 90), 100 * label + number + len(split))
                image.save(root / split / name / f"{number}.jpg")
    return root


@pytest.fixture(scope="module")
def root(folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("shards") / "images"
    write_shards(folders, output, shard_bytes=8000)
    assert len(list(output.glob("train/*.bin"))) > 3
    return output


def data(root, kind=ImageShards, **options):
    made = kind(str(root), **{"size": 32, "num_workers": 0, "batch_size": 4, **options})
    made.setup("fit")
    return made


def passes(made, epochs=2):
    loader = made.train_dataloader()
    seen = [
        (images.double().sum().item(), labels.tolist()) for _ in range(epochs) for images, labels in loader
    ]
    made.teardown("fit")
    return seen


class Store(BaseHTTPRequestHandler):
    """As much of S3 as it takes to read files: a bucket for each folder in ``server.folder``."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = Path(self.server.folder, self.path.strip("/"))
        whole = path.read_bytes() if path.is_file() else b""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        first, last = map(int, asked.groups()) if asked else (0, len(whole) - 1)
        self.send_response(206 if asked else 200 if path.is_file() else 404)
        self.send_header("Content-Length", str(len(whole[first : last + 1])))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(whole[first : last + 1])
            self.server.got.append(self.path)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def store(root, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.folder, server.got = root.parent, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    image_shards.store.cache_clear()  # It knows the server of another test.
    yield server
    server.shutdown()
    server.server_close()


def test_pixels_are_those_of_the_folders(folders, root):
    shards, plain = data(root), data(folders, ImageFolders)
    for mine, other in zip(shards.val_dataloader(), plain.val_dataloader(), strict=True):
        assert torch.equal(mine[0], other[0])
        assert torch.equal(mine[1], other[1])
    assert shards.identity()["val"]["checksum"] == plain.identity()["val"]["checksum"]
    assert (shards.class_names, shards.num_classes) == (plain.class_names, plain.num_classes)

    def by_name(made):
        ((images, labels),) = made.make_loader("train", batch_size=22, transform=made.train_transform)
        names = map(name_of, made.tensors["train"][0])
        return {name: (image, label) for name, image, label in zip(names, images, labels, strict=True)}

    mine, others = by_name(shards), by_name(plain)
    assert [*mine] != [*others]  # A shard has images of several classes.
    assert mine.keys() == others.keys()
    assert all(torch.equal(image, others[name][0]) for name, (image, _) in mine.items())
    assert all(label == others[name][1] for name, (_, label) in mine.items())
    shards.setup("predict")
    assert shards.predict_names() == [f"val/{label}/{number}.jpg" for label in "ab" for number in range(7)]


def test_batches_do_not_depend_on_workers_and_change_with_the_epoch(root):
    alone, helped = (passes(data(root, num_workers=workers, **JITTERED)) for workers in (0, 2))
    assert alone == helped
    assert sum(len(labels) for _, labels in alone) == 44
    assert alone[0] != alone[len(alone) // 2]


def test_an_epoch_needs_few_shards_at_a_time(root):
    made, sizes = ImageShards(str(root)), torch.arange(1, 101)
    starts = [0, *sizes.cumsum(0).tolist()]
    made.shards["train"] = SimpleNamespace(files=[None] * 100, starts=starts)
    order = made.train_order(keyed_generator(0, 1))
    assert torch.equal(order.sort().values, torch.arange(starts[-1]))
    places = torch.empty(100, dtype=torch.long)
    places[shard_order(100, keyed_generator(0, 1))] = torch.arange(100)
    seen = places.repeat_interleave(sizes)[order]
    open_at_a_time = seen.cummax(0).values - seen.flip(0).cummin(0).values.flip(0)
    assert WINDOW // 2 < open_at_a_time.max() <= WINDOW
    assert not torch.equal(order, made.train_order(keyed_generator(0, 2)))


@pytest.mark.parametrize(("first", "then"), [(2, 0), (0, 2)])
def test_killed_and_resumed_fits_see_the_same_batches(root, tmp_path, first, then):
    killed = Fork(lambda: fit(tmp_path, root, first, 10, kind=ImageShards))
    assert killed.wait() == -signal.SIGKILL
    whole = fit(tmp_path / "whole", root, 0, kind=ImageShards)
    rest = fit(tmp_path / "rest", root, then, resumed=tmp_path / "step=10.ckpt", kind=ImageShards)
    assert rest == {step: whole[step] for step in range(10, 18)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_gives_each_shard_once(root, store, tmp_path, workers):
    expected = passes(data(root))
    copies = {"copies": str(tmp_path / "copies"), "num_workers": workers}
    assert passes(data("s3://images/", **copies)) == expected
    shards = [path for path in store.got if path.endswith(".bin")]
    assert sorted(shards) == sorted(f"/images/train/{path.name}" for path in root.glob("train/*.bin"))
    assert passes(data("s3://images", **copies)) == expected
    assert [path for path in store.got if path.endswith(".bin")] == shards


def test_copies_take_no_more_room_than_they_may(root, store, tmp_path, monkeypatch):
    monkeypatch.setattr(image_shards, "WINDOW", 1)
    monkeypatch.setattr(image_shards, "AHEAD", 1)
    expected, copies = passes(data(root)), {"copies": str(tmp_path)}
    with pytest.raises(
        ValueError, match=r"`copies_size` of at least \d\.\d+e-05, the gigabytes .* but got 1e-05"
    ):
        data("s3://images", copies_size=1e-5, **copies)
    mine = tmp_path / "train"
    mine.mkdir()
    (mine / "chunk-0-0.bin").write_bytes(bytes(30_000))
    assert passes(data("s3://images", copies_size=25e-6, **copies)) == expected
    assert sum(path.stat().st_size for path in tmp_path.glob("*/chunk*.bin")) - 30_000 < 25_000
    assert len([path for path in store.got if path.endswith(".bin")]) > len([*root.glob("train/*.bin")])


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_store_does_not_give_is_told(root, store, tmp_path, workers):
    with pytest.raises(OSError, match=r"^s3://nothing/images\.json cannot be read: ClientError: .*404.*$"):
        data("s3://nothing")
    made = data("s3://images", copies=str(tmp_path / "copies"), num_workers=workers)
    store.folder = tmp_path
    with pytest.raises(OSError, match=r"^s3://images/train/chunk-0-\d\.bin cannot be read: Client.*404.*$"):
        passes(made)


def test_shards_of_another_list_are_refused(root, tmp_path):
    table = json.loads((root / "images.json").read_text())
    names = table["splits"]["train"]["names"]
    names[3], names[5] = names[5], names[3]
    for split in ("train", "val"):
        os.symlink(root / split, tmp_path / split)
    (tmp_path / "images.json").write_text(json.dumps(table))
    one, other = re.escape(names[3]), re.escape(names[5])
    with pytest.raises(ValueError, match=rf"({one} in .* but got {other}|{other} in .* but got {one})"):
        passes(data(tmp_path))
    names.pop()
    table["splits"]["train"]["labels"].pop()
    (tmp_path / "images.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"Expected 21 images in .*train but got 22"):
        data(tmp_path)


def left_out(root):
    """What is wrong with the images that are skipped."""
    made = data(root, on_error="skip", batch_size=12)
    passes(made, epochs=1)
    return made.damaged


def test_damaged_images_and_shards_are_refused_by_name_or_left_out(tmp_path):
    for label, name in enumerate("ab"):
        (tmp_path / "images/train" / name).mkdir(parents=True)
        for number in range(6):
            smooth(40, 40, label).save(tmp_path / f"images/train/{name}/{number}.jpg")
    whole = (tmp_path / "images/train/b/3.jpg").read_bytes()
    (tmp_path / "images/train/b/3.jpg").write_bytes(whole[: len(whole) // 2])
    write_shards(tmp_path / "images", tmp_path / "shards", shard_bytes=4 * len(whole))
    with pytest.raises(
        ValueError, match=r"image file but train/b/3\.jpg in .*shards/train/chunk-0-\d\.bin: Trunc"
    ):
        passes(data(tmp_path / "shards"))
    with pytest.warns(UserWarning, match=r"train/b/3\.jpg in .*: such files are left out"):
        seen = passes(data(tmp_path / "shards", on_error="skip", batch_size=6), epochs=1)
    assert sum(len(labels) for _, labels in seen) == 11
    shard = tmp_path / "shards/train/chunk-0-0.bin"
    os.truncate(shard, length := shard.stat().st_size - 1)
    assert f"Expected {length + 1} bytes in {shard} but got {length}" in left_out(tmp_path / "shards")
    shard.unlink()
    assert f"Expected `root` to hold chunk-0-0.bin but there is no {shard}" in left_out(tmp_path / "shards")


def test_arguments_are_checked(folders, root, tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=r"`root` to hold shards, .* there is no .*folders.*images\.json"
    ):
        data(folders)
    with pytest.raises(FileExistsError, match=r"`output` to be a new folder but .* is there"):
        write_shards(folders, root)
    with pytest.raises(FileNotFoundError, match="`root` to hold train"):
        write_shards(tmp_path, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    with pytest.raises(
        ValueError, match=r"`root` to be a folder, s3://\.\.\. or gs://\.\.\. but got http://host/images"
    ):
        ImageShards("http://host/images")
    with pytest.raises(ValueError, match="`copies_size` to be positive"):
        ImageShards(str(root), copies_size=0)
    os.symlink(folders / "train", (tmp_path / "train"))
    with pytest.warns(UserWarning, match="Nothing is validated"):
        write_shards(tmp_path, tmp_path / "shards")
    with pytest.warns(UserWarning, match=r"Nothing is validated, since .*shards has no val"):
        made = data(tmp_path / "shards")
    with pytest.raises(FileNotFoundError, match=r"`root` to hold val but .*shards has \['train'\]"):
        made.setup("test")
    monkeypatch.setattr(image_shards, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^`ImageShards` needs LitData: in a clone, .*'\.\[shards\]'`$"
    ):
        data(root)
    with pytest.raises(ModuleNotFoundError, match=r"^`write_shards` needs LitData: in a clone"):
        write_shards(folders, tmp_path / "others")


def test_a_recipe_takes_shards_for_folders(capsys):
    args = [
        "--config=prelu/imagenet",
        "--data=pl_losses.data.ImageShards",
        "--data.root=s3://bucket/imagenet",
    ]
    assert main(["fit", *args, "--data.copies_size=150", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "class_path: pl_losses.data.ImageShards" in printed
    assert re.search(
        r"root: s3://bucket/imagenet\n(.*\n)*? +scales:\n +- 256\n(.*\n)*? +test_scale: 480\n", printed
    )
