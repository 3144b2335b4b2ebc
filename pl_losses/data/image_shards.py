"""Photographs in shards, files of many images each, on this machine or in an object store."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from contextlib import suppress
from functools import cache, cached_property
from importlib.util import find_spec
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from pl_losses.core.files import checksum, written_whole
from pl_losses.core.rng import keyed_generator
from pl_losses.core.validation import check_counts, check_init, check_positive, typed
from pl_losses.core.version import EXTRA
from pl_losses.data.file_loader import Crop, Read, Reader, Rows, letters, name_of
from pl_losses.data.image_folders import ImageFolders
from pl_losses.data.loader import Batch

WINDOW = 16  # Shards that are mixed at a time.
AHEAD = 4  # Shards that are copied before they are needed.
NAMES = "images.json"


class ImageShards(ImageFolders):
    """As :class:`~pl_losses.data.ImageFolders`, of images in shards that :func:`write_shards` wrote.

    Shards are files of about 64 MB, on this machine or in an object store. From a store, each is copied to
    this machine as a whole, some time before it is needed. It takes its credentials and settings from the
    environment, as its own tools do.

    An epoch's order follows from the seed and the epoch alone. The shards come in a random order, and an
    image comes at a random place among those of the 16 shards from its own on. So an epoch needs each shard
    once, and not many at a time. Images of a class are not together, since training shards are written in a
    random order. As the order does not depend on the number of ranks either, each machine copies all shards
    in an epoch that it no longer has. Its ranks and workers share them.

    Args:
        root: Folder of the shards, or its address: ``s3://bucket/folder``, or ``gs://bucket/folder``, which
            needs google-cloud-storage and is not tested.
        size: Height and width of an image as the model sees it, in pixels.
        copies: Folder for the copies. Default: ``~/.cache/pl_losses/shards``.
        copies_size: Gigabytes that all copies in it may take. The least recently used ones are deleted. Those
            of a data set that fits are copied once.
        options: Those of :class:`~pl_losses.data.ImageFolders`.

    Raises:
        ValueError: If an argument is out of range, or two do not go together. Batches raise one that names a
            damaged image and its shard.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        size: int = 224,
        *,
        copies: str | Path | None = None,
        copies_size: float = 20.0,
        **options: Any,
    ) -> None:
        check_init(locals())
        check_positive("copies_size", copies_size)
        address = None if root is None or is_local(str(root)) else str(root)
        if address and not address.startswith(("s3://", "gs://")):
            raise ValueError(f"Expected `root` to be a folder, s3://... or gs://... but got {root}")
        super().__init__(root, size, **options)
        self.address = address.rstrip("/") if address else str(self.root)
        self.copies = Path(copies or "~/.cache/pl_losses/shards").expanduser()
        self.copies_size = copies_size
        self.shards: dict[str, Shards] = {}

    def load(self, stage: str) -> dict[str, Batch]:
        """Return the names of the images as bytes [N, L], which zeros fill up, and the labels [N].

        Raises:
            ModuleNotFoundError: If LitData is not installed.
            FileNotFoundError: If there are no shards.
            OSError: If the store cannot be read.
            ValueError: If ``copies_size`` is too small, or the shards are not those of the list of names.
        """
        check_litdata("ImageShards")
        table = json.loads(read(self.address, NAMES))
        there = table["splits"]
        sources = {"val": "val"} if stage in ("fit", "validate") else {"test": "test"}
        if "test" in sources and "test" not in there:
            sources = {"test": "val"}
        if stage == "fit":
            sources["train"] = "train"
            if "val" not in there:
                del sources["val"]
                rank_zero_warn(f"Nothing is validated, since {self.address} has no val")
        found: dict[str, Batch] = {}
        for split, source in sources.items():
            if source not in there:
                raise FileNotFoundError(f"Expected `root` to hold {source} but {self.address} has {[*there]}")
            found[split] = letters(there[source]["names"]), torch.tensor(there[source]["labels"])
            address, size = f"{self.address}/{source}", int(self.copies_size * 1e9)
            shards = Shards(address, None if is_local(address) else self.copies, size)
            if (number := len(found[split][0])) != shards.starts[-1]:
                raise ValueError(f"Expected {number} images in {address} but got {shards.starts[-1]}")
            self.shards[split] = shards
        self.num_classes, self.class_names = len(table["classes"]), tuple(table["classes"])
        return found

    def train_order(self, generator: torch.Generator) -> Tensor:
        """Draw the order of an epoch, which needs few shards at a time: [N]."""
        shards = self.shards["train"]
        places = torch.empty(len(shards.files), dtype=torch.float64)
        places[shard_order(len(places), generator)] = torch.arange(len(places), dtype=torch.float64)
        keys = places.repeat_interleave(torch.tensor(shards.starts).diff())
        keys += WINDOW * torch.rand(len(keys), generator=generator, dtype=torch.float64)
        return keys.argsort(stable=True)

    def make_reader(self, split: str, crop: Crop) -> Reader:
        """Make what reads a batch of a split."""
        return ShardReader(
            self.shards[split], split == "train", self.root, self.tensors[split], crop, self.seed
        )


class Shards:
    """The shards of a split; from a store they are copied to this machine when they are needed.

    Args:
        address: Their folder.
        copies: Folder for copies, None to read them where they are.
        size: Bytes that all files in it may take.

    Attributes:
        files: Name and bytes of each shard.
        starts: The first image of each shard, and how many images there are.

    Raises:
        ValueError: If ``size`` is too small.
    """

    def __init__(self, address: str, copies: Path | None, size: int) -> None:
        self.address, self.size = address, size
        index = read(address, "index.json")
        # Other shards at the same address have other copies.
        self.folder = Path(address) if copies is None else copies / checksum(address.encode() + index)[:16]
        self.copied = copies is not None
        chunks = json.loads(index)["chunks"]
        self.files = [(one["filename"], one["chunk_bytes"]) for one in chunks]
        self.starts = [0, *accumulate(one["chunk_size"] for one in chunks)]
        self._under_way: set[int] = set()
        if self.copied:
            needed = sum(sorted(length for _, length in self.files)[-(WINDOW + AHEAD + 1) :])
            if size < needed:
                raise ValueError(
                    f"Expected `copies_size` of at least {needed / 1e9:.3g}, the gigabytes of the shards of"
                    f" {address} that are in use at a time, but got {size / 1e9:.3g}"
                )
            with written_whole(self.folder / "index.json") as file:
                file.write(index)

    @cached_property
    def _items(self) -> Any:
        from litdata.streaming import Cache
        from litdata.streaming.item_loader import PyTreeLoader

        loader = PyTreeLoader(batch_decode=0)
        # Other files it reads as a whole for each item.
        loader.set_mmap_allowed_chunks(set(range(len(self.files))))
        return Cache(str(self.folder), chunk_bytes=1, item_loader=loader)

    def holder(self, row: int) -> int:
        """Return the number of the shard that has an image."""
        return bisect_right(self.starts, row) - 1

    def image(self, row: int, name: str) -> bytes:
        """Return an image's file.

        Raises:
            FileNotFoundError: If there is no such shard.
            ValueError: If the shard is damaged, or has another image there.
            OSError: If the store cannot be read.
        """
        from litdata.streaming.sampler import ChunkedIndex

        shard = self.holder(row)
        self.fetch(shard)
        item = self._items[ChunkedIndex(row, shard)]
        if item["name"] != name:
            raise ValueError(
                f"Expected {name} in {self.address}/{self.files[shard][0]} but got {item['name']}"
            )
        return bytes(item["image"])

    def fetch(self, shard: int) -> None:
        """Have a shard on this machine."""
        from filelock import FileLock

        name, length = self.files[shard]
        path = self.folder / name
        if self.copied and not path.exists():
            with FileLock(self.folder / f"{name}.lock"):
                if not path.exists():
                    with written_whole(path) as file:
                        download(self.address, name, file)
                    make_room(self.folder.parent, self.size)
        if not path.exists():
            raise FileNotFoundError(f"Expected `root` to hold {name} but there is no {self.address}/{name}")
        if (found := path.stat().st_size) != length:
            raise ValueError(f"Expected {length} bytes in {self.address}/{name} but got {found}")
        if self.copied:
            os.utime(path)

    def prefetch(self, shard: int) -> None:
        """Start to copy a shard; what fails is tried again when it is needed."""

        def copy() -> None:
            with suppress(Exception):
                self.fetch(shard)
            self._under_way.discard(shard)

        if self.copied and shard not in self._under_way and not (self.folder / self.files[shard][0]).exists():
            self._under_way.add(shard)
            Thread(target=copy, daemon=True).start()


class ShardReader(Reader):
    """Whole batches of images from shards; it has those copied that come next in the epoch.

    Args:
        shards: Hold the images.
        shuffled: Whether the shards come in :func:`shard_order`.
        rest: Arguments of a :class:`~pl_losses.data.file_loader.Reader`.
    """

    def __init__(self, shards: Shards, shuffled: bool, *rest: Any) -> None:
        super().__init__(*rest)
        self.shards, self.shuffled = shards, shuffled

    def __getitem__(self, rows: Rows) -> Read:
        epoch, chosen = rows
        number = len(self.shards.files)
        order = list(range(number))
        if self.shuffled:
            order = shard_order(number, keyed_generator(self.seed, epoch)).tolist()
        needed = {self.shards.holder(row) for row in chosen}
        last = max(place for place, shard in enumerate(order) if shard in needed)
        for shard in order[last + 1 : last + 1 + AHEAD]:
            self.shards.prefetch(shard)
        return super().__getitem__(rows)

    def file(self, row: int) -> tuple[BytesIO, str]:
        """Return what is in an image's file, and where it is, for errors."""
        name, (shard, _) = name_of(self.names[row]), self.shards.files[self.shards.holder(row)]
        return BytesIO(self.shards.image(row, name)), f"{name} in {self.shards.address}/{shard}"


@typed
def write_shards(root: str | Path, output: str | Path, *, shard_bytes: int = 1 << 26, seed: int = 0) -> None:
    """Write the images of folders into shards, which :class:`ImageShards` reads.

    The files go in as they are. Training images are written in a random order. To have the shards in an
    object store, copy the folder there with the store's own tool.

    Args:
        root: Folder of the folders, see :class:`~pl_losses.data.ImageFolders`.
        output: Folder for the shards, a new one.
        shard_bytes: Largest size of a shard with more than one image.
        seed: Seed of the order.

    Raises:
        FileExistsError: If there is such a folder.
        FileNotFoundError: If there are no images.
        ModuleNotFoundError: If LitData is not installed.
    """
    check_counts(shard_bytes=shard_bytes)
    check_counts(0, seed=seed)
    check_litdata("write_shards")
    from litdata.streaming import Cache

    folders, place = ImageFolders(str(root)), Path(output)
    if place.exists():
        raise FileExistsError(f"Expected `output` to be a new folder but {place} is there")
    stages = {"train": "fit", "val": "validate", "test": "test"}
    there = [split for split in stages if (folders.root / split).is_dir()] or ["train"]
    table: dict[str, Any] = {}
    for split in there:
        folders.setup(stages[split])
        names, labels = folders.tensors[split]
        order = torch.arange(len(names))
        if split == "train":
            order = torch.randperm(len(names), generator=keyed_generator(seed))
        written = [name_of(names[row]) for row in order]
        cache = Cache(str(place / split), chunk_bytes=shard_bytes)
        for number, (name, label) in enumerate(zip(written, labels[order].tolist(), strict=True)):
            cache[number] = {"image": (folders.root / name).read_bytes(), "label": label, "name": name}
        cache.done()
        cache.merge()
        table[split] = {"names": written, "labels": labels[order].tolist()}
    with written_whole(place / NAMES) as file:
        file.write(json.dumps({"classes": folders.class_names, "splits": table}).encode())


def shard_order(number: int, generator: torch.Generator) -> Tensor:
    """Draw in which order the shards of an epoch come, first of all from its generator: [``number``]."""
    return torch.randperm(number, generator=generator)


def is_local(address: str) -> bool:
    """Return whether an address is a folder on this machine, not one such as ``s3://bucket/folder``."""
    return "://" not in address


def read(address: str, name: str) -> bytes:
    """Return what is in a small file.

    Raises:
        FileNotFoundError: If there is none on this machine.
        OSError: If the store does not give it.
    """
    if is_local(address):
        path = Path(address, name)
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected `root` to hold shards, which `write_shards` writes, but there is no {path}"
            )
        return path.read_bytes()
    file = BytesIO()
    download(address, name, file)
    return file.getvalue()


def download(address: str, name: str, file: BinaryIO) -> None:
    """Copy a file from a store into an open one.

    Raises:
        OSError: If the store does not give it.
    """
    try:
        store(address, os.getpid()).download_fileobj(f"{address}/{name}", file)
    except Exception as error:
        raise OSError(f"{address}/{name} cannot be read: {type(error).__name__}: {error}") from None


@cache
def store(address: str, process: int) -> Any:
    """Return a connection to a store, one for each process."""
    from litdata.streaming.downloader import get_downloader

    if address.startswith("gs://"):
        return get_downloader(address, "", [])
    from botocore.config import Config

    # As often as the environment says: LitData would try a thousand times.
    return get_downloader(address, "", [], {"config": Config()})


def make_room(copies: Path, size: int) -> None:
    """Delete the copies that were not used for longest, until they take ``size`` bytes."""
    files = []
    for path in copies.glob(f"{'[0-9a-f]' * 16}/*chunk-*.bin*"):
        with suppress(FileNotFoundError):
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    taken = sum(length for _, length, _ in files)
    for _, length, path in sorted(files):
        if taken <= size:
            break
        if length:  # Locks are empty.
            path.unlink(missing_ok=True)
            taken -= length


def check_litdata(user: str) -> None:
    """Raise a ModuleNotFoundError if LitData is not installed."""
    if find_spec("litdata") is None:
        raise ModuleNotFoundError(f"`{user}` needs LitData: {EXTRA.format('shards')}")
