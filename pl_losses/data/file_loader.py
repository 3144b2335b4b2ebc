"""Batches of image files, which worker processes read and crop."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any, TypeAlias
from weakref import WeakSet, finalize

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pl_losses.core.compat import of_torch
from pl_losses.core.rng import fold_in
from pl_losses.data.image_files import read_image
from pl_losses.data.loader import Batch, BatchLoader

Rows: TypeAlias = tuple[int, list[int]]  # An epoch, and the samples of a batch.
# Images as bytes [B, H, W, C], their labels [B], normal numbers [B, 3], a message for each damaged file, and
# whether the image is one of another batch.
Read: TypeAlias = tuple[Tensor, Tensor, Tensor, list[str], bool]
GRACE = 20  # Seconds that a worker works on after SIGTERM: the rank that it reads for may end its step.


@dataclass(frozen=True)
class Crop:
    """How an image becomes one of the model's size.

    Attributes:
        size: Height and width, or the shorter side of a ``whole`` image.
        scales: Range of the shorter side before a random crop; without it the central square is taken.
        flip: Whether to mirror half of the images.
        whole: Whether to keep all of the image.
        grey: Whether to have one channel.
    """

    size: int
    scales: tuple[int, int] | None = None
    flip: bool = False
    whole: bool = False
    grey: bool = False

    def __call__(self, file: Path | BytesIO, draw: Random, label: str = "") -> NDArray[np.uint8]:
        """Read a file, ``label`` in errors: bytes [H, W, C].

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged.
        """
        shorter = draw.randint(*self.scales) if self.scales else self.size
        image = read_image(file, label=label, least=shorter)
        if self.grey:
            image = image.convert("L")
        width, height = image.size
        least = min(width, height)
        if self.whole:
            image = image.resize(
                (round(width * shorter / least), round(height * shorter / least)), Image.Resampling.BILINEAR
            )
        else:
            # Cropped and scaled in one pass, over the pixels of the crop only.
            side = least * self.size / shorter
            right, down = (draw.random() if self.scales else 0.5 for _ in range(2))
            left, top = (width - side) * right, (height - side) * down
            box = (left, top, min(left + side, width), min(top + side, height))
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        return pixels[:, ::-1] if self.flip and draw.random() < 0.5 else pixels


class Reader(Dataset[Read]):
    """Whole batches of images, in the process that asks for them.

    If all files of a batch are damaged, the next whole image stands in for it: ranks need a batch each.

    Args:
        root: Folder of the files.
        tensors: Names of the files as bytes [N, L], and labels [N].
        crop: What makes an image of a file.
        seed: Seed of all that is drawn for an image, with the epoch and its place.
    """

    def __init__(self, root: Path, tensors: Batch, crop: Crop, seed: int) -> None:
        self.root, self.crop, self.seed = root, crop, seed
        self.names, self.labels = tensors

    def __getitem__(self, rows: Rows) -> Read:
        epoch, chosen = rows
        images, normals, messages = [], [], []
        kept: list[int] = []
        last, samples = chosen[-1], len(self.names)
        others = (row % samples for row in range(last + 1, last + samples))
        for place, row in enumerate(chain(chosen, others)):
            if place >= len(chosen) and kept:
                break
            draw = Random(fold_in(self.seed, epoch, row))
            try:
                file, label = self.file(row)
                images.append(self.crop(file, draw, label))
            except (FileNotFoundError, ValueError) as error:
                messages.append(str(error))
                continue
            kept.append(row)
            normals.append([draw.gauss(0, 1) for _ in range(3)])
        stands_in = set(kept).isdisjoint(chosen)
        pixels = torch.from_numpy(np.stack(images)) if images else torch.empty(0, dtype=torch.uint8)
        return pixels, self.labels[kept], torch.tensor(normals), messages, stands_in

    def file(self, row: int) -> tuple[Path | BytesIO, str]:
        """Return the file of an image, or what is in it, and its name for errors."""
        path = self.root / name_of(self.names[row])
        return path, str(path)


def letters(names: Sequence[str]) -> Tensor:
    """Return names as bytes [N, L], which zeros fill up; processes share them, as they cannot share texts."""
    rows = np.array([os.fsencode(name) for name in names])
    return torch.from_numpy(rows.view(np.uint8).reshape(len(names), -1))


def name_of(letters: Tensor) -> str:
    """Return the name that bytes spell: [L], which zeros fill up."""
    return os.fsdecode(letters.numpy().tobytes().rstrip(b"\0"))


class Plan:
    """The batches of the epoch that is under way, as the sampler of a DataLoader, and what reads them.

    It knows nothing of its :class:`FileLoader`, whose end is that of the workers.
    """

    def __init__(self) -> None:
        self.epoch, self.rows = 0, list[Tensor]()
        self.reading: Iterator[Read] = iter(())

    def __iter__(self) -> Iterator[Rows]:
        return ((self.epoch, chosen.tolist()) for chosen in self.rows)


class FileLoader(BatchLoader):
    """A :class:`BatchLoader` whose samples are image files: it hands out what workers have read ahead.

    Nothing of the workers needs to be kept in a checkpoint, as each batch follows from the epoch and its
    samples. A batch is images [B, C, H, W] as bytes, labels [B] and normal numbers [B, 3], on the device.

    Attributes:
        stand_ins: Which batches of the pass have an image of another batch, as all their files are damaged.

    Args:
        reader: Reads a batch.
        batch_size: Samples per batch and rank.
        device: Where batches go.
        damaged: Called with the messages of a batch's damaged files, and how many images it has.
        workers: ``num_workers``, ``prefetch_factor`` and ``persistent_workers`` of a DataLoader.
        options: Those of a :class:`BatchLoader`.
    """

    def __init__(
        self,
        reader: Reader,
        batch_size: int,
        *,
        device: torch.device,
        damaged: Callable[[list[str], int], None],
        workers: dict[str, Any],
        **options: Any,
    ) -> None:
        super().__init__((reader.names, reader.labels), batch_size, **options)
        self.device, self.damaged = device, damaged
        self._generator = torch.Generator(device)
        _loaders.add(self)
        self._plan = Plan()
        self.stand_ins: set[int] = set()
        self._workers = DataLoader(
            reader,
            batch_size=None,
            sampler=self._plan,
            pin_memory=device.type == "cuda",
            worker_init_fn=leave_signals,
            generator=torch.Generator(),  # The global one goes on as if there were no workers.
            **workers if workers["num_workers"] else {},
        )
        # Without it they wait for ten seconds each: queues are collected before the DataLoader ends them.
        finalize(self, end, self._workers, self._plan).atexit = False

    def fetched(self, epoch: int, rows: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield what the workers read."""
        self._plan.epoch, self._plan.rows = epoch, [*rows]
        self._plan.reading = iter(self._workers)
        self.stand_ins.clear()
        try:
            for index, (*batch, messages, stands_in) in enumerate(self._plan.reading):
                if messages:
                    self.damaged(messages, len(batch[1]))
                if stands_in:
                    self.stand_ins.add(index)
                images, labels, normals = (part.to(self.device, non_blocking=True) for part in batch)
                yield images.permute(0, 3, 1, 2), labels, normals
        except OSError as error:  # That of a worker has its traceback in its message.
            raise OSError(str(error).rpartition("OSError: ")[2]) from error

    def close(self) -> None:
        """End the workers; another iteration starts new ones."""
        end(self._workers, self._plan)


def end(workers: DataLoader[Read], plan: Plan) -> None:
    """End the workers of a loader."""
    of_torch.end_workers(workers, plan.reading)


_loaders: WeakSet[FileLoader] = WeakSet()


@atexit.register
def close_all() -> None:
    """End all workers before Python does, which would wait for them."""
    for loader in [*_loaders]:
        loader.close()


def forget_all() -> None:
    """Leave the workers to the process that this one is a fork of."""
    for loader in [*_loaders]:
        of_torch.forget_workers(loader._workers, loader._plan.reading)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_all)


def leave_signals(worker: int) -> None:
    """Leave signals to the main process: a terminal and SLURM send them to its workers, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
