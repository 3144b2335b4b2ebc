"""Images per second of a shuffled MNIST pass: BatchLoader, torchvision with DataLoader, and the floor.

Run with ``python -m benchmarks.loader``. Every contestant delivers what LeNet-5 sees: batches of 128 images,
padded to 32x32 and scaled to -0.1..1.175. The contestants take turns, so that a busy machine slows all of
them; medians are compared. The DataLoaders, which call Python once per sample, go over the first images only;
their workers are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Subset
from torchvision import datasets, transforms

from pl_losses.data import MNIST, BatchLoader

BATCH = 128
REPEATS = 5
SAMPLES_PER_SAMPLE_LOADER = 12_800
LOW, HIGH = -0.1, 1.175


def images() -> tuple[Tensor, Tensor, str]:
    """Return 60 000 images, [N, 28, 28] in bytes, their labels, and which they are."""
    data = MNIST(download=False, val_size=0, pad=0)
    if data.complete():
        data.setup("fit")
        pixels, labels = data.tensors["train"]
        return pixels[:, 0], labels, "MNIST"
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (60_000, 28, 28), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, 10, (60_000,), generator=generator), "random bytes"


class PerSample(datasets.MNIST):
    """Torchvision's data set on tensors that are already there."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.data, self.targets, self.target_transform = pixels, labels, None
        # Pixel 0 becomes LOW and pixel 255 becomes HIGH.
        scale = transforms.Normalize(-LOW / (HIGH - LOW), 1 / (HIGH - LOW))
        self.transform = transforms.Compose([transforms.ToTensor(), scale, transforms.Pad(2, fill=LOW)])


def per_sample(
    pixels: Tensor, labels: Tensor, workers: int, batch: int = BATCH, samples: int = SAMPLES_PER_SAMPLE_LOADER
) -> Iterable[tuple[Tensor, Tensor]]:
    part = Subset(PerSample(pixels, labels), range(samples))
    return DataLoader(part, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def ours(padded: Tensor, labels: Tensor, **kwargs: bool) -> BatchLoader:
    data = MNIST(batch_size=BATCH, **kwargs)
    data.tensors["train"] = (padded, labels)
    return data.train_dataloader()


def chosen_of(padded: Tensor, labels: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    batch = padded.index_select(0, chosen).float().mul_((HIGH - LOW) / 255).add_(LOW)
    return batch, labels.index_select(0, chosen)


class WholeBatches(Dataset[tuple[Tensor, Tensor]]):
    """What an expert gives to a DataLoader: tensors that are asked for whole batches."""

    def __init__(self, padded: Tensor, labels: Tensor) -> None:
        self.padded, self.labels = padded, labels

    def __len__(self) -> int:
        return len(self.padded)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return chosen_of(self.padded, self.labels, torch.tensor(indices))


def by_batch(padded: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    whole = WholeBatches(padded, labels)
    sampler = BatchSampler(RandomSampler(whole), BATCH, drop_last=False)
    return DataLoader(whole, batch_size=None, sampler=sampler)


def floor(padded: Tensor, labels: Tensor) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(padded)).split(BATCH):
            yield chosen_of(padded, labels, chosen)

    return batches


def images_per_second(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    start = perf_counter()
    seen = sum(len(batch[1]) for batch in batches)
    return seen / (perf_counter() - start)


def check(contestants: dict[str, Callable[[], Iterable[tuple[Tensor, Tensor]]]]) -> None:
    """Compare what is delivered before how fast it is."""
    for name, batches in contestants.items():
        for batch, labels in islice(batches(), 1):
            assert batch.shape == (BATCH, 1, 32, 32), name
            assert labels.shape == (BATCH,), name
            if "distort" not in name:
                torch.testing.assert_close(torch.stack(batch.aminmax()), torch.tensor([LOW, HIGH]))


def rows() -> list[tuple[str, float, float]]:
    """Return each contestant's name, images per second, and how many times faster BatchLoader is."""
    pixels, labels, which = images()
    # One copy for all: where its pages lie changes the speed of a gather.
    padded = pad(pixels[:, None], (2, 2, 2, 2))
    loader, distorting = ours(padded, labels), ours(padded, labels, distort=True)
    alone, workers = (per_sample(pixels, labels, count) for count in (0, 2))
    batched = by_batch(padded, labels)
    contestants: dict[str, Callable[[], Iterable[tuple[Tensor, Tensor]]]] = {
        f"BatchLoader ({which})": lambda: loader,
        "bare randperm, index_select and conversion (floor)": floor(padded, labels),
        "BatchLoader with distort=True": lambda: distorting,
        "DataLoader, tensors by a BatchSampler": lambda: batched,
        "torchvision + DataLoader(num_workers=0)": lambda: alone,
        "torchvision + DataLoader(num_workers=2)": lambda: workers,
    }
    check(contestants)
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(REPEATS):
        # Another one goes first each time: nobody always follows the same neighbour.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            speeds[name].append(images_per_second(contestants[name]()))
    medians = {name: median(values) for name, values in speeds.items()}
    best = next(iter(medians.values()))
    return [(name, speed, best / speed) for name, speed in medians.items()]


def main() -> None:
    print("| loader, batch 128, shuffled | images/s | BatchLoader is faster by |\n| --- | ---: | ---: |")
    for name, speed, ratio in rows():
        print(f"| {name} | {speed:,.0f} | {ratio:.2f}x |")


if __name__ == "__main__":
    main()
