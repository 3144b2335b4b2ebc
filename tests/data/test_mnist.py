import gzip
import hashlib
import os
from pathlib import Path

import pytest
import torch
import torchvision

from pl_losses.data import MNIST
from pl_losses.data.mnist import read_idx

NAMES = [name for name, _ in torchvision.datasets.MNIST.resources]


def real_root():
    candidates = [os.environ.get("PL_LOSSES_DATA"), Path(__file__).parents[3] / "shared" / "data"]
    return next((root for root in map(Path, filter(None, candidates)) if MNIST(str(root)).complete()), None)


REAL = real_root()
real = pytest.mark.skipif(REAL is None, reason="no MNIST files: set PL_LOSSES_DATA")


def idx(*shape):
    data = torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)).expand(shape) % 10
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    return header + data.byte().numpy().tobytes()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror of four small files of the right names, published with their checksums."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for name in NAMES:
        data = gzip.compress(idx(10, 28, 28) if "images" in name else idx(10))
        (folder / name).write_bytes(data)
        resources.append((name, hashlib.md5(data).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["file:///nowhere/", f"{folder.as_uri()}/"])
    return folder


def test_idx_files_are_read_packed_and_unpacked(tmp_path):
    raw, packed = tmp_path / "a", tmp_path / "a.gz"
    raw.write_bytes(idx(12, 2, 3))
    packed.write_bytes(gzip.compress(idx(12, 2, 3)))
    for path in (raw, packed):
        data = read_idx(path, (12, 2, 3))
        assert data.dtype == torch.uint8
        assert data[:, 1, 2].tolist() == [*range(10), 0, 1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-3], "of 88 bytes but got 85"),
        (lambda data: data + b"x", "of 88 bytes but got 89"),
        (lambda data: b"\x00\x00\x0d" + data[3:], r"shape \[12, 2, 3\], header .* is 00000d"),
        (lambda data: data[:4], "its header is 00000803:"),
        (lambda data: idx(13, 2, 3), "its header is 000008030000000d"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, damage, message):
    path = tmp_path / "a"
    path.write_bytes(damage(idx(12, 2, 3)))
    with pytest.raises(ValueError, match=message):
        read_idx(path, (12, 2, 3))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data[2:], lambda data: data[:20] + b"\xff" * 20]
)
def test_damaged_gzip_files_are_refused(tmp_path, damage):
    path = tmp_path / "a.gz"
    path.write_bytes(damage(gzip.compress(idx(12, 2, 3))))
    with pytest.raises(ValueError, match="complete gzip file but got"):
        read_idx(path, (12, 2, 3))


def test_a_wrong_checksum_is_refused(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx(12, 2, 3)))
    with pytest.raises(ValueError, match=r"published MD5 0123 but got .*delete it"):
        read_idx(path, (12, 2, 3), "0123")


@pytest.fixture
def others(tmp_path):
    """Another set in MNIST's files, unpacked: of its shape, its labels and images alike."""
    for name in NAMES:
        count = 60_000 if name.startswith("train") else 10_000
        data = idx(count, 28, 28) if "images" in name else idx(count)
        (tmp_path / name.removesuffix(".gz")).write_bytes(data)
    return tmp_path


def test_unpacked_files_of_another_set_are_not_taken_for_mnist(others):
    for stage, name in (("fit", "train-images"), ("test", "t10k-images")):
        with pytest.raises(
            ValueError, match=rf"{name}-idx3-ubyte with the published MD5 .*`source` to \"any\""
        ):
            MNIST(str(others), download=False).setup(stage)
    data = MNIST(str(others), source="any", pad=0)
    data.prepare_data()
    data.setup("test")
    images, labels = data.tensors["test"]
    assert torch.equal(images[:, 0, 5, 5].long(), labels)


def test_sets_of_another_size_are_read_and_refused_where_they_do_not_fit(tmp_path):
    for name, count in zip(NAMES, (30, 30, 20, 20), strict=True):
        (tmp_path / name).write_bytes(gzip.compress(idx(count, 28, 28) if "images" in name else idx(count)))
    data = MNIST(str(tmp_path), source="any", val_size=10)
    data.setup()
    assert {split: len(labels) for split, (_, labels) in data.tensors.items()} == {
        "train": 20,
        "val": 10,
        "test": 20,
    }
    with pytest.raises(ValueError, match="`val_size` below the 30 images but got 30"):
        MNIST(str(tmp_path), source="any", val_size=30).setup("fit")
    (tmp_path / NAMES[3]).write_bytes(gzip.compress(idx(19)))
    with pytest.raises(ValueError, match=r"label for each image but .*has 20 and .*t10k-labels.* has 19"):
        MNIST(str(tmp_path), source="any").setup("test")
    (tmp_path / NAMES[3]).unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels"):
        MNIST(str(tmp_path), source="any").prepare_data()


def test_another_set_is_of_one_folder_and_the_same_packed_and_unpacked(tmp_path):
    def write(name, shape, shift=0):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = idx(*shape)
        data = data[: 4 + 4 * len(shape)] + bytes(
            (value + shift) % 10 for value in data[4 + 4 * len(shape) :]
        )
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)

    packed, unpacked = NAMES[3], NAMES[3].removesuffix(".gz")
    write(NAMES[2], (20, 28, 28))
    write(f"MNIST/raw/{packed}", (20,), shift=1)
    data = MNIST(str(tmp_path), source="any")
    with pytest.raises(FileNotFoundError, match=packed):
        data.setup("test")
    write(packed, (20,), shift=2)
    write(unpacked, (20,))
    with pytest.raises(ValueError, match=rf"{packed} and .*{unpacked} to hold the same but they differ"):
        data.setup("test")
    write(packed, (20,))
    data.setup("test")
    assert data.tensors["test"][1].tolist() == [*range(10), *range(10)]


@real
def test_the_unpacked_files_are_those_that_were_packed(tmp_path):
    for path in Path(REAL).glob("**/*ubyte.gz"):
        if path.name in NAMES:
            (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    packed, unpacked = MNIST(str(REAL)), MNIST(str(tmp_path), download=False)
    for data in (packed, unpacked):
        data.setup("test")
    assert torch.equal(packed.tensors["test"][0], unpacked.tensors["test"][0])
    file = tmp_path / "t10k-images-idx3-ubyte"
    damaged = bytearray(file.read_bytes())
    damaged[5000] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match="published MD5 2646ac647ad5339dbf082846283269ea but got"):
        MNIST(str(tmp_path)).setup("test")


def test_missing_files_are_downloaded_whole_from_the_first_mirror_that_works(tmp_path, mirror):
    root = tmp_path / "root"
    MNIST(str(root)).prepare_data()
    folder = root / "MNIST" / "raw"
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    assert all((folder / name).read_bytes() == (mirror / name).read_bytes() for name in NAMES)
    for path in mirror.iterdir():
        path.unlink()
    MNIST(str(root)).prepare_data()


def test_a_download_with_a_wrong_checksum_leaves_nothing(tmp_path, mirror):
    (mirror / NAMES[0]).write_bytes(b"<html>")
    with pytest.raises(OSError, match=f"Could not download {NAMES[0]} .*md5 .* instead of .*PL_LOSSES_DATA"):
        MNIST(str(tmp_path / "root")).prepare_data()
    assert not (tmp_path / "root").exists()


def test_an_unwritable_folder_is_named(tmp_path, mirror):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file cannot be written: .*PL_LOSSES_DATA"):
        MNIST(str(tmp_path / "file")).prepare_data()


def test_missing_files_are_named_when_they_may_not_be_downloaded(tmp_path):
    data = MNIST(str(tmp_path), download=False)
    with pytest.raises(FileNotFoundError, match=f"{NAMES[0]}.*{tmp_path}.*PL_LOSSES_DATA"):
        data.prepare_data()
    with pytest.raises(FileNotFoundError, match=r"t10k-images.*t10k-labels"):
        data.setup("test")


def test_the_folder_is_the_argument_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_LOSSES_DATA", str(tmp_path))
    assert MNIST("here").root == Path("here")
    assert MNIST().root == tmp_path
    monkeypatch.delenv("PL_LOSSES_DATA")
    assert MNIST().root == Path.home() / ".cache" / "pl_losses"


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"`val_size` to be in 0..59999 but got 60000"):
        MNIST(val_size=60_000)
    with pytest.raises(ValueError, match="`pad` to be at least 0 but got -1"):
        MNIST(pad=-1)
    with pytest.raises(ValueError, match="`source` to be"):
        MNIST(source="fashion")


@real
def test_the_real_files_give_the_published_sets():
    data = MNIST(str(REAL), limit=500)
    data.prepare_data()
    data.setup()
    (train, labels), (val, _), (test, truth) = (data.tensors[split] for split in ("train", "val", "test"))
    assert [tuple(images.shape) for images in (train, val, test)] == [
        (500, 1, 32, 32),
        (5000, 1, 32, 32),
        (10_000, 1, 32, 32),
    ]
    assert truth.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert labels[:3].tolist() in ([5, 0, 4], [0, 4, 1], [5, 4, 1], [5, 0, 1])
    images, targets = next(iter(data.test_dataloader()))
    assert torch.equal(targets, truth[:1000])
    torch.testing.assert_close(images, -0.1 + 1.275 * test[:1000].float() / 255)
    assert (images[..., :2, :] == images.min()).all()


@real
def test_the_validation_images_follow_the_seed_and_are_not_trained_on():
    splits = []
    for seed in (0, 0, 1):
        data = MNIST(str(REAL), seed=seed, pad=0)
        data.setup("fit")
        splits.append(data.tensors)
    first, again, other = splits
    assert len(first["train"][0]) == 55_000
    assert torch.equal(first["val"][0], again["val"][0])
    assert not torch.equal(first["val"][0], other["val"][0])
    total = torch.cat([first["train"][1], first["val"][1]]).bincount()
    assert total.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    everything = MNIST(str(REAL), val_size=0)
    everything.setup("fit")
    assert len(everything.train_dataloader().tensors[0]) == 60_000
    assert everything.val_dataloader() == []
