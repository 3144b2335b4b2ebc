import hashlib
import pickle
import tarfile

import numpy as np
import pytest
import torch
import torchvision
from torchvision.transforms.functional import to_pil_image

from pl_losses.data import CIFAR10
from pl_losses.data.cifar10 import JPEGCopy, random_crops

Published = torchvision.datasets.CIFAR10


def pixels(rows, seed):
    return np.random.default_rng(seed).integers(0, 256, (rows, 3072), dtype=np.uint8)


@pytest.fixture
def small(monkeypatch):
    """A set of 50 and 10 images, ten a file, with checksums of its own."""
    names = [f"data_batch_{part}" for part in range(1, 6)] + ["test_batch"]
    contents = {
        name: {"data": pixels(10, seed), "labels": [(3 * row + seed) % 10 for row in range(10)]}
        for seed, name in enumerate(names)
    }
    files = {name: pickle.dumps(content) for name, content in contents.items()}
    published = [[name, hashlib.md5(data).hexdigest()] for name, data in files.items()]
    monkeypatch.setattr(Published, "train_list", published[:5])
    monkeypatch.setattr(Published, "test_list", published[5:])
    return contents, files


def write_python(folder, files):
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def load(root, **options):
    data = CIFAR10(str(root), download=False, **{"val_size": 5, **options})
    data.prepare_data()
    data.setup()
    return data


def test_the_python_version_in_a_folder_and_in_its_archive(tmp_path, small):
    contents, files = small
    write_python(tmp_path / "a" / "cifar10" / "cifar-10-batches-py", files)
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a" / "cifar10" / "cifar-10-batches-py", "cifar-10-batches-py")
    for root in ("a", "b"):
        data = load(tmp_path / root, val_size=0)
        images, labels = data.tensors["train"]
        wanted = np.concatenate([contents[f"data_batch_{part}"]["data"] for part in range(1, 6)])
        assert np.array_equal(images.numpy(), wanted.reshape(50, 3, 32, 32))
        assert labels[10:13].tolist() == [1, 4, 7]
        assert np.array_equal(data.tensors["test"][0].numpy().reshape(10, -1), contents["test_batch"]["data"])


def test_a_damaged_file_is_refused_before_it_is_opened(tmp_path, small):
    _, files = small
    write_python(tmp_path / "cifar-10-batches-py", files | {"data_batch_2": b"cos\nsystem\n(S'false'\ntR."})
    with pytest.raises(ValueError, match=r"data_batch_2 .*published MD5 .*delete it"):
        load(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py to hold data_batch_2"):
        load(tmp_path)


def test_splits_follow_the_seed_and_the_limit(tmp_path, small):
    write_python(tmp_path / "cifar-10-batches-py", small[1])
    first, again, other = (
        load(tmp_path, seed=seed, limit=limit) for seed, limit in ((0, None), (0, 7), (1, 7))
    )
    assert len(first.tensors["train"][0]) == 45
    assert torch.equal(first.tensors["val"][0], again.tensors["val"][0])
    assert torch.equal(first.tensors["train"][0][:7], again.tensors["train"][0])
    assert not torch.equal(first.tensors["val"][0], other.tensors["val"][0])
    held_out, trained = (first.tensors[split][0].flatten(1) for split in ("val", "train"))
    assert not (held_out[:, None] == trained[None]).all(dim=2).any()


def test_what_the_model_sees(tmp_path, small):
    write_python(tmp_path / "cifar-10-batches-py", small[1])
    data = load(tmp_path, crop=28, pad=0, batch_size=9)
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (9, *data.input_shape) == (9, 3, 28, 28)
    images, _ = next(iter(data.test_dataloader()))
    raw = data.tensors["test"][0].double() / 255
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    wanted = (raw - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(images, wanted.float(), rtol=1e-4, atol=1e-5)


def test_crops_are_windows_of_their_image_and_half_are_mirrored():
    images = torch.arange(400 * 2 * 6 * 7).view(400, 2, 6, 7)
    crops = random_crops(images, 5, torch.Generator().manual_seed(0))
    seen = {}
    for image, crop in zip(images, crops, strict=True):
        places = [
            (top, left, mirror)
            for top in range(2)
            for left in range(3)
            for mirror in (False, True)
            if torch.equal(crop, _flipped(image[:, top : top + 5, left : left + 5], mirror))
        ]
        assert len(places) == 1
        seen[places[0]] = seen.get(places[0], 0) + 1
    assert len(seen) == 12
    assert min(seen.values()) > 15


def _flipped(image, mirror):
    return image.flip(-1) if mirror else image


def test_missing_files_are_named_and_downloaded_only_if_allowed(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=rf"`root` to hold CIFAR-10 but {tmp_path}.*PL_LOSSES_DATA"):
        CIFAR10(str(tmp_path), download=False).prepare_data()
    monkeypatch.setattr(Published, "url", (tmp_path / "cifar-10-python.tar.gz").as_uri())
    with pytest.raises(OSError, match="Could not download CIFAR-10 into"):
        CIFAR10(str(tmp_path / "new")).prepare_data()


@pytest.mark.parametrize("options", [{"val_size": 50_000}, {"pad": -1}, {"crop": 41}, {"limit": 0}])
def test_bad_arguments_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}`"):
        CIFAR10(**options)


def test_a_copy_of_jpeg_files_is_read_by_class_and_says_what_it_needs(tmp_path):
    generator = torch.Generator().manual_seed(0)
    colours = {}
    for split, count in (("train", 3), ("test", 1)):
        for name in ("airplane", "bird"):
            folder = tmp_path / "cifar10-jpeg" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                colour = torch.randint(256, (3, 1, 1), generator=generator, dtype=torch.uint8)
                colours.setdefault((split, name), []).append(colour)
                file = folder / f"{number:04}.jpg"
                to_pil_image(colour.expand(3, 32, 32)).save(file, quality=100, subsampling=0)
    data = JPEGCopy(str(tmp_path), val_size=0, augment=False, batch_size=6)
    data.setup()
    for split, labels in (("train", [0, 0, 0, 1, 1, 1]), ("test", [0, 1])):
        images, found = data.tensors[split]
        assert found.tolist() == labels
        wanted = torch.stack([*colours[split, "airplane"], *colours[split, "bird"]]).expand(-1, 3, 32, 32)
        assert (images.int() - wanted.int()).abs().max() <= 2  # JPEG rounds.
    with pytest.raises(FileNotFoundError, match="`root` to hold cifar10-jpeg/train and cifar10-jpeg/test"):
        JPEGCopy(str(tmp_path / "train"), download=False).prepare_data()
