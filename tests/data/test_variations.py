import os

import numpy as np
import pytest
import torch

from pl_losses.data import Amat, Variations
from pl_losses.data.amat import read_amat
from pl_losses.data.shapes import convex_regions, dents, other_regions
from pl_losses.data.variations import NAMES, SHAPES

SMALL = {"source": "digits", "train_size": 60, "val_size": 20, "test_size": 40}


def made(name, split="train", **options):
    data = Variations(name, **{**SMALL, **options})
    data.setup("test" if split == "test" else "fit")
    return data.tensors[split]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_bytes_28_by_28_and_always_the_same(name):
    images, labels = made(name)
    assert images.shape == (60, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert all(map(torch.equal, made(name), (images, labels)))
    assert not torch.equal(made(name, data_seed=1)[0], images)
    assert torch.equal(made(name, seed=1)[0], images)  # The order's seed is another.
    assert len(labels.unique()) == Variations(name, **SMALL).num_classes
    others = torch.cat([made(name, split)[0] for split in ("val", "test")]).flatten(1)
    assert not (images.flatten(1)[:, None] == others).all(dim=2).any()


def test_backgrounds_do_not_touch_full_ink_and_turns_keep_the_ink():
    basic, labels = made("basic-gen")
    for name in ("bg-rand-gen", "bg-img-gen"):
        images, same = made(name)
        assert torch.equal(labels, same)
        assert (images[basic == 255] == 255).all()
        assert (images >= basic).all()
    noise = made("bg-rand-gen")[0][basic == 0].double()
    assert noise.mean() == pytest.approx(127.5, abs=4 * 74 / len(noise) ** 0.5)
    turned, _ = made("rot-gen")
    ink = turned.double().sum(dim=(1, 2, 3)) / basic.double().sum(dim=(1, 2, 3))
    assert (ink - 1).abs().max() < 0.06
    assert (turned != basic).flatten(1).any(dim=1).all()


def test_rectangles_are_outlines_wide_or_tall():
    images, labels = made("rect-gen")
    for image, label in zip(images[:, 0] == 255, labels, strict=True):
        height, width = int(image.any(dim=1).sum()), int(image.any(dim=0).sum())
        assert label == int(width > height)
        assert abs(width - height) >= 3
        assert image.sum() == 2 * (height + width) - 4


def test_convex_regions_have_no_dents_and_the_others_have():
    generator = torch.Generator().manual_seed(0)
    assert dents(convex_regions(200, generator)).max() < 15
    assert dents(other_regions(200, generator)).min() >= 20


def test_sizes_default_to_the_originals():
    assert Variations("rect-gen").sizes == {"train": 1000, "val": 200, "test": 50_000}
    assert Variations("rot-gen").sizes == {"train": 10_000, "val": 2000, "test": 50_000}
    assert Variations("convex-gen").class_names == SHAPES["convex-gen"]


def test_mnist_digits_are_in_one_split_only(mnist_root):
    data = Variations("basic-gen", root=mnist_root, train_size=3000, val_size=500, test_size=2000)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    seen = {image.numpy().tobytes() for image in data.tensors["train"][0]}
    assert len(seen) == 3000
    assert not seen & {image.numpy().tobytes() for image in data.tensors["test"][0]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "rot"}, "`name`.*'rot'"),
        ({"source": "svhn"}, "`source`"),
        ({"train_size": 0}, "`train_size`"),
        ({"train_size": 2000}, "at most 1797 digits"),
        ({"data_seed": -1}, "`data_seed`"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Variations(**{**SMALL, **options})


def write(path, rows, columns=785, seed=0):
    table = np.random.default_rng(seed).random((rows, columns)).round(6).astype(np.float32)
    table[:, -1] = np.arange(rows) % 3
    path.write_text("\n".join(" ".join(f"{value:.6f}" for value in row) for row in table) + "\n")
    return table


@pytest.mark.parametrize(
    ("name", "sideways"),
    [("mnist_background_random_{}.amat", True), ("rectangles_{}.amat", False),
     ("mnist_all_background_images_rotation_normalized_{}.amat", False)],
)  # fmt: skip
def test_original_files(tmp_path, monkeypatch, name, sideways):
    paths = {part: tmp_path / name.format(part) for part in ("train_valid", "test")}
    tables = {part: write(path, rows) for (part, path), rows in zip(paths.items(), (12, 5), strict=True)}
    for _ in range(2):  # The second reads the copies.
        data = Amat(str(paths["train_valid"]), str(paths["test"]))
        data.prepare_data()
        data.setup()
        assert {split: len(rows[1]) for split, rows in data.tensors.items()} == {
            "train": 10,
            "val": 2,
            "test": 5,
        }
        assert data.num_classes == 3
        wanted = torch.from_numpy(tables["test"][:, :-1]).view(5, 1, 28, 28)
        wanted = wanted.transpose(2, 3) if sideways else wanted
        torch.testing.assert_close(data.tensors["test"][0], wanted)
        assert data.tensors["val"][1].tolist() == [1, 2]
        assert len(list(tmp_path.glob("*.npy"))) == 2
        monkeypatch.setattr(np, "fromstring", None)


def test_a_copy_is_of_the_file_that_is_there(tmp_path):
    """Neither an older date nor the same one, with the same size, makes it the same file."""
    path = tmp_path / "x.amat"
    old = write(path, 6)
    stamp, size = path.stat().st_mtime_ns, path.stat().st_size
    assert np.allclose(read_amat(path), old)
    for age in (-(10**12), 0, 10**12):
        new = write(path, 6, seed=age // 10**12 + 2)
        assert path.stat().st_size == size
        os.utime(path, ns=(stamp + age, stamp + age))
        assert not np.allclose(new[:, :-1], old[:, :-1])
        assert np.allclose(read_amat(path), new)
        old = new


def test_a_damaged_copy_is_made_anew(tmp_path, monkeypatch):
    path, copy = tmp_path / "x.amat", tmp_path / "x.amat.npy"
    table = write(path, 6)
    read_amat(path)
    whole = copy.read_bytes()
    for place in (0, 12, 70, 140, len(whole) // 2, len(whole) - 5):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        copy.write_bytes(damaged)
        assert np.allclose(read_amat(path), table)
        assert copy.read_bytes() == whole
    # One that another program wrote, and one that cannot be kept.
    np.save(copy, np.zeros((6, 785), dtype=np.float32))
    assert np.allclose(read_amat(path), table)
    copy.unlink()
    copy.mkdir()
    with pytest.warns(UserWarning, match="No copy of"):
        assert np.allclose(read_amat(path), table)


def test_files_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`train_file` to be for training .* they are interchanged"):
        Amat("convex_test.amat", "convex_train.amat")
    with pytest.raises(ValueError, match=r"of one set but .* lie on their side"):
        Amat("mnist_background_random_train.amat", "mnist_test.amat")
    path = tmp_path / "x.amat"
    table = write(path, 6)
    table[:, -1] += 1
    np.savetxt(path, table)
    with pytest.raises(ValueError, match=r"labels 0..K-1 in .*x\.amat, .* but got \[1, 2, 3\]"):
        Amat(str(path), str(path)).setup("fit")
    data = Amat(str(path), str(path), num_classes=4)
    data.setup("fit")
    assert data.num_classes == 4
    # The numbers of one row are in the next one.
    path.write_text(path.read_text().replace("\n", " ", 1).replace(" ", "\n", 1))
    with pytest.raises(ValueError, match=r"rows of 785 numbers but got 1 in line 1"):
        Amat(str(path), str(path), num_classes=4).setup("fit")


def test_damaged_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "x.amat"
    write(path, 3, 784)
    with pytest.raises(ValueError, match="rows of 785 numbers but got 784"):
        Amat(str(path), str(path)).setup("fit")
    path.write_text("hello world\n")
    with pytest.raises(ValueError, match=r"x\.amat to hold rows of 785 numbers but got"):
        Amat(str(path), str(path)).setup("fit")
    with pytest.raises(FileNotFoundError, match="`test_file`"):
        Amat(str(path), str(tmp_path / "none.amat")).prepare_data()


def test_blank_lines_and_damaged_copies_of_files_do_no_harm(tmp_path):
    path = tmp_path / "x.amat"
    table = write(path, 6)
    path.write_text(path.read_text() + "\n  \n")
    for _ in range(2):
        data = Amat(str(path), str(path))
        data.setup("fit")
        assert data.tensors["train"][1].tolist() == table[:5, -1].tolist()
        copy = tmp_path / "x.amat.npy"
        copy.write_bytes(copy.read_bytes()[:1000])  # As if writing it had been cut off.
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.amat", "x.amat.npy"]
