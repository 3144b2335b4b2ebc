import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pl_losses.data import UCI, uci

NAMES = list(uci.SETS)


def real_root():
    candidates = [os.environ.get("PL_LOSSES_DATA"), Path(__file__).parents[3] / "shared" / "data"]
    return next((str(root) for root in filter(None, candidates) if uci.find("yacht", str(root))), None)


REAL = real_root()
real = pytest.mark.skipif(REAL is None, reason="no UCI sets: set PL_LOSSES_DATA")


@pytest.fixture
def mine(tmp_path):
    """The folder of a set of one's own: 20 rows, three features and the target."""
    folder = tmp_path / "uci" / "mine"
    folder.mkdir(parents=True)
    np.savetxt(folder / "data.txt", np.arange(80.0).reshape(20, 4))
    return folder


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small set, published as "small" at an address of its own."""
    source = tmp_path / "source" / "Small"
    source.mkdir(parents=True)
    np.savetxt(source / "data.txt", np.random.RandomState(0).randn(30, 3))
    sha256 = hashlib.sha256((source / "data.txt").read_bytes()).hexdigest()
    monkeypatch.setitem(uci.SETS, "small", uci.UCISet("Small", 30, 2, 20, sha256))
    monkeypatch.setattr(uci, "_SOURCE", (tmp_path / "source").as_uri() + "/{folder}/data.txt")
    return source / "data.txt"


@real
@pytest.mark.parametrize("name", NAMES)
def test_the_splits_are_the_published_ones(name):
    known = uci.SETS[name]
    folder = uci.find(name, REAL)
    if not (folder / "index_train_0.txt").is_file():
        pytest.skip("no UCI index files: set PL_LOSSES_DATA")
    for split in {0, 1, known.splits - 1}:
        drawn, stored = (uci.split_rows(known.samples, split, where) for where in (None, folder))
        for ours, theirs, part in zip(drawn, stored, ("train", "test"), strict=True):
            assert np.array_equal(ours, np.loadtxt(folder / f"index_{part}_{split}.txt"))
            assert np.array_equal(ours, theirs)


@real
@pytest.mark.parametrize("name", [name for name in NAMES if name != "protein"])
def test_published_sets(name):
    known = uci.SETS[name]
    data = UCI(name, split=3, root=REAL, download=False)
    data.prepare_data()
    data.setup()
    (x, y), (x_test, y_test) = data.tensors["train"], data.tensors["test"]
    assert x.dtype == y.dtype == torch.float32
    assert x.shape == (round(0.9 * known.samples), known.features)
    assert y.shape == (len(x), 1)
    assert len(x) + len(x_test) == known.samples == data.samples
    assert data.input_shape == (known.features,)
    assert "val" not in data.tensors
    rows = np.loadtxt(uci.find(name, REAL) / "data.txt")
    column = 16 if name == "naval" else -1
    expected = np.sort(rows[:, column].astype(np.float32))
    assert np.array_equal(np.sort(torch.cat([y, y_test])[:, 0].numpy()), expected)


@real
def test_the_columns_of_the_published_files():
    for name, known in uci.SETS.items():
        folder = uci.find(name, REAL)
        if not (folder / "index_features.txt").is_file():
            pytest.skip("no UCI index files: set PL_LOSSES_DATA")
        assert np.array_equal(np.loadtxt(folder / "index_features.txt"), np.arange(known.features))
        assert int(np.loadtxt(folder / "index_target.txt")) == known.features


def test_a_split_is_nine_in_ten_and_the_rest_without_overlap():
    parts = [uci.split_rows(506, split) for split in range(3)]
    for train, test in parts:
        assert len(train) == 455
        assert sorted([*train, *test]) == list(range(506))
    assert not np.array_equal(parts[0][0], parts[1][0])


def test_validation_is_the_last_part_of_train(mine, tmp_path):
    data = UCI("mine", val_share=0.25, root=str(tmp_path))
    assert data.sizes == {"train": 13, "val": 5, "test": 2}
    data.setup("fit")
    train, _ = uci.split_rows(20, 0)
    found = torch.cat([data.tensors[part][0] for part in ("train", "val")])[:, 0]
    assert torch.equal(found, torch.from_numpy(4.0 * train).float())
    assert len(data.val_dataloader()) == 1
    assert sum(len(y) for _, y in data.train_dataloader()) == 13


def test_a_folder_of_ones_own(mine, tmp_path):
    data = UCI("mine", split=1, root=str(tmp_path))
    data.prepare_data()
    data.setup("test")
    assert (data.samples, data.features, data.splits) == (20, 3, 20)
    x, y = data.tensors["test"]
    assert torch.equal(y[:, 0], x[:, 0] + 3)


def test_index_files_of_ones_own(mine, tmp_path):
    (mine / "index_features.txt").write_text("3\n1\n")
    (mine / "index_target.txt").write_text("0\n")
    for split, test in enumerate(([4, 5], [6])):
        np.savetxt(mine / f"index_train_{split}.txt", [0, 9, 3], fmt="%d")
        np.savetxt(mine / f"index_test_{split}.txt", test, fmt="%d")
    data = UCI("mine", split=1, root=str(tmp_path))
    data.setup("fit")
    assert (data.features, data.splits) == (2, 2)
    assert data.sizes == {"train": 3, "val": 0, "test": 1}
    assert data.tensors["train"][0].tolist() == [[3, 1], [39, 37], [15, 13]]
    assert data.tensors["train"][1].tolist() == [[0], [36], [12]]
    assert data.tensors["test"][1].tolist() == [[24]]


@pytest.mark.parametrize(
    ("features", "target", "wanted"),
    [
        (None, [1], ([0, 2, 3], 1)),
        ([2, 0], None, ([2, 0], 3)),
        ([0, 1], [2], ([0, 1], 2)),
        (None, None, ([0, 1, 2], 3)),
    ],
)
def test_either_index_file_may_be_missing(mine, tmp_path, features, target, wanted):
    for name, columns in (("features", features), ("target", target)):
        if columns is not None:
            np.savetxt(mine / f"index_{name}.txt", columns, fmt="%d")
    x, y = uci.read("mine", str(tmp_path))
    table = np.arange(80.0).reshape(20, 4)
    assert np.array_equal(x, table[:, wanted[0]])
    assert np.array_equal(y, table[:, wanted[1]])
    assert UCI("mine", root=str(tmp_path)).features == len(wanted[0])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"target": "3\n2\n"}, r"index_target\.txt to name one column but it names \[3, 2\]"),
        ({"target": "1\n", "features": "0\n1\n"}, r"index_features\.txt without the target but .* column, 1"),
        ({"features": "0\n3\n"}, r"index_features\.txt without the target but .* column, 3"),
        ({"features": "0\n0\n"}, r"index_features\.txt to name none of its columns twice"),
        ({"features": ""}, r"index_features\.txt to hold columns in 0\.\.3 but it does not"),
        ({"features": "0\nnan\n"}, r"index_features\.txt to hold columns in 0\.\.3 but it does not"),
        ({"features": "-1\n"}, r"index_features\.txt to hold columns in 0\.\.3 but it does not"),
        ({"features": "0 1\n2 3\n"}, r"index_features\.txt to hold columns in 0\.\.3 but it does not"),
        ({"train_0": "0\n"}, r"k = 0, 1, 2 and so on but one of them is missing: see k = 0"),
        ({"test_0": "0\n"}, r"one of them is missing: see k = 0"),
        ({"train_1": "0\n", "test_1": "1\n"}, r"one of them is missing: see k = 1"),
        (
            {f"{part}_{k}": "01"[part == "test"] for part in ("train", "test") for k in (0, 2)},
            r"see k = 0, 2",
        ),
    ],
)
def test_index_files_that_do_not_say_what_is_meant_are_refused(mine, tmp_path, files, message):
    for name, text in files.items():
        (mine / f"index_{name}.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        UCI("mine", root=str(tmp_path)).setup()


def test_other_columns_of_a_published_set_are_refused(published, tmp_path):
    UCI("small", root=str(tmp_path)).prepare_data()
    folder = tmp_path / "uci" / "Small"
    (folder / "index_features.txt").write_text("0\n1\n")
    (folder / "index_target.txt").write_text("2\n")
    UCI("small", root=str(tmp_path)).setup()
    (folder / "index_train_4.txt").write_text("0\n")
    UCI("small", root=str(tmp_path)).setup()
    with pytest.raises(FileNotFoundError, match=r"index_test_4\.txt"):
        UCI("small", 4, root=str(tmp_path)).setup()
    (folder / "index_features.txt").write_text("1\n0\n")
    with pytest.raises(ValueError, match=r"to name the published columns, 0\.\.1 and 2: delete them"):
        UCI("small", root=str(tmp_path)).setup()


def test_columns_that_float32_cannot_tell_apart_are_refused(mine, tmp_path):
    table = np.arange(80.0).reshape(20, 4)
    table[:, 1] = 1.7e9 + np.arange(20)  # Seconds since 1970.
    np.savetxt(mine / "data.txt", table, fmt="%.17g")
    with pytest.raises(ValueError, match=r"feature 1 has a standard deviation of only 5\.7"):
        UCI("mine", root=str(tmp_path)).setup()
    (mine / "index_target.txt").write_text("1\n")
    with pytest.raises(ValueError, match="target 0 has a standard deviation"):
        UCI("mine", root=str(tmp_path)).setup()
    table[:, 1] = 0.998
    np.savetxt(mine / "data.txt", table, fmt="%.17g")
    UCI("mine", root=str(tmp_path)).setup()


def test_a_missing_set_is_downloaded_once(published, tmp_path):
    root = tmp_path / "root"
    UCI("small", root=str(root)).prepare_data()
    (file,) = (root / "uci" / "Small").iterdir()
    assert file.read_bytes() == published.read_bytes()
    published.unlink()
    data = UCI("small", root=str(root), download=False)
    data.prepare_data()
    data.setup()
    assert data.tensors["train"][0].shape == (27, 2)


def test_a_damaged_download_leaves_nothing(published, tmp_path):
    published.write_text("<html>")
    with pytest.raises(OSError, match=r"download data\.txt \(file:.* sha256 .* instead of .*PL_LOSSES_DATA"):
        UCI("small", root=str(tmp_path / "root")).prepare_data()
    assert not (tmp_path / "root").exists()


def test_a_failed_download_and_a_folder_that_cannot_be_written(published, tmp_path):
    published.unlink()
    with pytest.raises(OSError, match=r"download data\.txt \(file:.*copy it to .*Small.*PL_LOSSES_DATA"):
        UCI("small", root=str(tmp_path / "root")).prepare_data()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file cannot be written: .*PL_LOSSES_DATA"):
        UCI("small", root=str(tmp_path / "file")).prepare_data()


def test_a_missing_file_is_named(published, tmp_path):
    data = UCI("small", root=str(tmp_path), download=False)
    for act in (data.prepare_data, data.setup):
        with pytest.raises(
            FileNotFoundError, match=r"uci/Small/data\.txt but .* lacks it: set .*PL_LOSSES_DATA"
        ):
            act()


def test_a_damaged_file_is_refused(published, tmp_path):
    UCI("small", root=str(tmp_path)).prepare_data()
    path = tmp_path / "uci" / "Small" / "data.txt"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"data\.txt with the SHA-256 .* but got .*: delete it"):
        UCI("small", root=str(tmp_path)).setup()


def test_a_file_of_another_shape_is_refused(published, tmp_path, monkeypatch):
    monkeypatch.setitem(uci.SETS, "small", uci.UCISet("Small", 31, 2, 20, uci.SETS["small"].sha256))
    UCI("small", root=str(tmp_path)).prepare_data()
    with pytest.raises(ValueError, match=r"of 31 rows and 3 columns but got \[30, 3\]"):
        UCI("small", root=str(tmp_path)).setup()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data.txt", "1 2\n3\n" * 10, "to hold numbers, equally many a line, but got"),
        ("data.txt", "1 two\n" * 10, "to hold numbers, equally many a line, but got"),
        ("data.txt", "1 2\n" * 3, r"at least 10 rows and 2 columns but got \[3, 2\]"),
        ("data.txt", "1 nan\n" * 12, "to hold finite numbers but 12 are not"),
        ("index_target.txt", "4\n", r"index_target.txt to hold columns in 0\.\.3 but it does not"),
        ("index_train_0.txt", "1\n20\n", r"index_train_0.txt to hold rows in 0\.\.19 but it does not"),
        ("index_train_0.txt", "1\n2.5\n", r"index_train_0.txt to hold rows in 0\.\.19 but it does not"),
        ("index_train_0.txt", "1\n1\n", "index_train_0.txt to name none of its rows twice but it does"),
        ("index_train_0.txt", "x\n", "index_train_0.txt to hold one number per line but got"),
        ("index_train_0.txt", "1\n2\n", "to share no row but they do"),
    ],
)
def test_damaged_files_of_ones_own_are_refused(mine, tmp_path, file, content, message):
    (mine / "index_features.txt").write_text("0\n1\n")
    (mine / "index_target.txt").write_text("3\n")
    (mine / "index_test_0.txt").write_text("2\n")
    (mine / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        UCI("mine", root=str(tmp_path)).setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "bosten"},
            "`name` to be one of boston, .* or a folder with a data.txt in .* but got 'bosten'",
        ),
        ({"name": ""}, "`name` to be one of boston"),
        ({"split": 20}, r"`split` to be in 0\.\.19 but got 20"),
        ({"name": "protein", "split": 5}, r"`split` to be in 0\.\.4 but got 5"),
        ({"val_share": 1.0}, r"`val_share` in \[0, 1\) but got 1\.0"),
        ({"batch_size": 0}, "`batch_size` to be at least 1"),
    ],
)
def test_refused_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        UCI(**{"root": str(tmp_path)} | arguments)
