"""Images per second from a folder of photographs and from shards: ours, and the usual ways of loading.

Run with ``python -m benchmarks.image_folders``. The folder has 500 JPEG files of about 400x300 pixels, crops
of packaged photographs. Both give batches of 64 random crops of 224 pixels, mirrored and normalised, in
float32. torchvision's way is that of its ``references/classification``: ImageFolder, the presets' transforms
and a DataLoader. ImageFolders draws crops as He et al. do, and shifts colours, too. Both are also timed on
the central square of each image, where they do the same. ImageShards has the same images in shards of a
megabyte. So has LitData's way, a StreamingDataset and a StreamingDataLoader with torchvision's presets. All
take turns, and medians are compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from io import BytesIO
from itertools import chain
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from pl_losses.data import ImageFolders, ImageShards, write_shards
from pl_losses.data.image_files import read_image
from pl_losses.data.pictures import PACKAGED, packaged

IMAGES, BATCH, SIZE, REPEATS = 500, 64, 224, 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_folder(root: Path) -> None:
    draw = Random(0)
    for label, name in enumerate(PACKAGED):
        picture = read_image(packaged(name))
        share = max(450 / picture.width, 350 / picture.height)
        picture = picture.resize((round(picture.width * share), round(picture.height * share)))
        (folder := root / "train" / f"{label}").mkdir(parents=True)
        for number in range(IMAGES // len(PACKAGED)):
            wide, high = draw.randint(350, 450), draw.randint(250, 350)
            x, y = draw.randint(0, picture.width - wide), draw.randint(0, picture.height - high)
            picture.crop((x, y, x + wide, y + high)).save(folder / f"{number}.jpg", quality=90)


def preset(*crop: Any) -> v2.Compose:
    """As in references/classification, with their defaults."""
    steps = [*crop, v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, STD)]
    return v2.Compose([*steps, v2.ToPureTensor()])


class Decoded:
    """Images of shards, by a preset."""

    def __init__(self, *crop: Any) -> None:
        self.steps = preset(*crop)

    def __call__(self, item: dict[str, Any]) -> tuple[torch.Tensor, int]:
        return self.steps(Image.open(BytesIO(item["image"])).convert("RGB")), item["label"]


def torchvisions(root: Path, workers: int, *crop: Any) -> Iterable[Any]:
    images = ImageFolder(str(root / "train"), preset(*crop))
    return DataLoader(images, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def litdatas(root: Path, workers: int, *crop: Any) -> Iterable[Any]:
    images = StreamingDataset(str(root / "shards/train"), shuffle=True, transform=Decoded(*crop))
    return StreamingDataLoader(images, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)


def ours(kind: type[ImageFolders], root: Path, workers: int, **options: Any) -> Iterable[Any]:
    data = kind(str(root), SIZE, mean=list(MEAN), high=4.4, batch_size=BATCH, num_workers=workers, **options)
    data.setup("fit")
    return data.train_dataloader()


def images_per_second(batches: Iterable[Any], clock: Callable[[], float] = perf_counter) -> float:
    start = clock()
    seen = sum(len(batch[1]) for batch in batches)
    return seen / (clock() - start)


def decoded(paths: list[Path]) -> Iterable[tuple[None, str]]:
    """Decode as the readers do, and nothing else."""
    for path in paths:
        read_image(path, least=256)
        yield None, "1"


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_folder(root)
        paths = sorted(root.glob("train/*/*.jpg"))
        write_shards(root, root / "shards", shard_bytes=1 << 20)
        jittered = {"scales": [256, 512], "flip": True, "colour": 0.1}
        resized = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip(0.5)]
        central = [v2.Resize(SIZE, antialias=True), v2.CenterCrop(SIZE)]
        ways = {"random crops": (jittered, resized), "central squares": ({}, central)}
        rows = {
            f"{name}, {workers} worker{'s' * (workers > 1)}": (
                ours(ImageFolders, root, workers, **options),
                torchvisions(root, workers, *crop),
                ours(ImageShards, root / "shards", workers, **options),
                litdatas(root, workers, *crop),
            )
            for name, (options, crop) in ways.items()
            for workers in (1, 2)
        }
        for one in chain.from_iterable(rows.values()):
            images_per_second(one)  # Starts the workers.
        speeds: dict[str, list[list[float]]] = {name: [] for name in rows}
        alone, shares = ours(ImageFolders, root, 0, **jittered), []
        for turn in range(REPEATS):
            whole = images_per_second(alone, process_time)
            shares.append(whole / images_per_second(decoded(paths), process_time))
            for name, loaders in rows.items():
                step = 1 if turn % 2 else -1
                speeds[name].append([images_per_second(one) for one in loaders[::step]][::step])
    print("| images | ImageFolders | torchvision's | faster by | ImageShards | LitData's | faster by |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, turns in speeds.items():
        folders, files, shards, streamed = (median(values) for values in zip(*turns, strict=True))
        first, second = (median(one[i] / one[i + 1] for one in turns) for i in (0, 2))
        print(
            f"| {name} | {folders:,.0f} | {files:,.0f} | {first:.2f}x"
            f" | {shards:,.0f} | {streamed:,.0f} | {second:.2f}x |"
        )
    of_folders = median(one[2] / one[0] for turns in speeds.values() for one in turns)
    print(f"\nImageShards reads {of_folders:.2f} times as many images per second as ImageFolders.", end="")
    print(f" Decoding takes {100 * median(shares):.0f} % of the processor time of ImageFolders.")


if __name__ == "__main__":
    main()
