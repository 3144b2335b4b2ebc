"""Paszke et al. 2019, Table 1: training throughput of four networks, in a plain loop and under a Trainer.

``pl-losses reproduce gan/table1`` measures both on this machine and sets them beside the published figures.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter, process_time
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torchvision
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import ParamsT

from pl_losses.core.classifier import Classifier
from pl_losses.core.experiment import Experiment, Recording, names_of, progress_bar, quiet
from pl_losses.core.figures import Figure, new_axes
from pl_losses.core.protocol import plain_trainer, report
from pl_losses.core.results import Row
from pl_losses.core.validation import check_counts, check_device, typed
from pl_losses.data.loader import Batch
from pl_losses.data.module import TensorDataModule

# The paper's name to torchvision's, and images per second with PyTorch on a GP100 and two Xeons.
MODELS: dict[str, tuple[str, float]] = {
    "AlexNet": ("alexnet", 1547),
    "VGG-19": ("vgg19", 119),
    "ResNet-50": ("resnet50", 212),
    "MobileNet": ("mobilenet_v2", 463),
}
CLASSES, WARM_UP = 1000, 2


def sgd(parameters: ParamsT) -> torch.optim.SGD:
    """Build the optimizer of both ways."""
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)


class NetworkClassifier(Classifier):
    """A network of torchvision as the suite's classifier: it logs, checks and counts as any other.

    Args:
        network: Images [B, 3, S, S] -> logits [B, C].
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(sgd)
        self.network = network
        self.configure_metrics()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits: [B, 3, S, S] -> [B, C]."""
        logits: Tensor = self.network(images)
        return logits


class RandomImages(TensorDataModule):
    """Two batches of noise as images, which are repeated.

    Args:
        size: Height and width.
        batch_size: Images per step.
    """

    num_classes = CLASSES

    def __init__(self, size: int, batch_size: int) -> None:
        super().__init__(batch_size)
        self.size = size

    def load(self, stage: str) -> dict[str, Batch]:
        """Draw two batches of images and labels."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2 * self.batch_size, 3, self.size, self.size, generator=generator)
        return {"train": (images, torch.randint(CLASSES, (len(images),), generator=generator))}


class Clock(pl.Callback):
    """Times the steps after the warm-up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started = self.seconds = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Start the clock at the first step after the warm-up."""
        if trainer.global_step == WARM_UP:
            self.started = now(self.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock after the last step."""
        self.seconds = now(self.device) - self.started


@typed
def reproduce(
    models: str = "all",
    *,
    batch_size: int | None = None,
    image_size: int = 224,
    steps: int = 5,
    repeats: int = 3,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    folder: str = "runs/gan/table1",
    wandb: Recording = "offline",
) -> None:
    """Table 1: images per second of four networks of torchvision, in a plain loop and under a Trainer.

    Both train on the same random images with SGD in float32 and take turns, so that what else the machine
    does slows both. The folder gets ``table1.csv``, ``results.csv``, ``speeds.png`` and a W&B run, and the
    same command resumes after an interruption. torchvision's MobileNet is the second version, the paper's is
    not told. The published numbers are those of a GP100 with two Xeons.

    Args:
        models: Of "AlexNet", "VGG-19", "ResNet-50" and "MobileNet", between commas; "all" are the four.
        batch_size: Images per step. Default: 64 on an accelerator, 8 on the CPU.
        image_size: Height and width; AlexNet needs 63 at least.
        steps: Steps of each turn, after two that warm up.
        repeats: Turns of each way; medians are shown.
        device: "auto", "cpu" or "cuda".
        folder: For the results. A folder with a part of them is resumed.
        wandb: Whether W&B records the tables and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, or the folder has the results of other arguments.
    """
    names = names_of("models", models, list(MODELS))
    real = check_device(device)
    size = batch_size if batch_size is not None else (64 if real == "cuda" else 8)
    check_counts(2, batch_size=size)
    check_counts(63 if "AlexNet" in names else 32, image_size=image_size)
    check_counts(steps=steps, repeats=repeats)
    arguments = {"batch_size": batch_size, "image_size": image_size, "steps": steps, "repeats": repeats}
    kept = Experiment("gan/table1", folder, arguments | {"device": device, "hardware": hardware(real)})
    kept.also["models"] = models
    with progress_bar(len(names)) as bar:
        for name in names:
            if name not in {row["model"] for row in kept.results}:
                data = RandomImages(image_size, size)
                row = measure(name, data, steps=steps, repeats=repeats, device=torch.device(real))
                kept.add(row)
            bar.update()
            bar.set_description(name)
    rows = sorted(
        (row for row in kept.results if row["model"] in names), key=lambda row: names.index(row["model"])
    )
    results = [
        Row(
            row["model"],
            "images per second under a Trainer",
            row["trainer"],
            seconds=row["seconds"],
            published=row["published"],
            note=(
                f"The paper has a GP100 and two Xeons. We have {hardware(real)}, with {size} images per step."
            ),
            peer="plain loop",
            peer_measured=row["plain"],
            lower_is_better=None,
        )
        for row in rows
    ]
    report(kept, wandb, results, pictures={"speeds": draw(rows)}, tables={"table1": rows})
    print(f"\n{hardware(real)}, batch size {size}, {image_size}x{image_size} pixels\n\n{table(rows)}")


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw images per second of both ways beside the published number, and write the ratio above them."""
    figure, axes = new_axes(6.4, 3.6)
    shown = {"plain": "plain loop", "trainer": "Trainer", "published": "published, on a GP100"}
    for place, (way, label) in enumerate(shown.items()):
        heights = [row[way] for row in rows]
        axes.bar([n + (place - 1) * 0.27 for n in range(len(rows))], heights, 0.25, label=label)
    for n, row in enumerate(rows):
        axes.annotate(f"{row['ratio']:.2f}", (n, row["trainer"]), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(rows)), [row["model"] for row in rows])
    axes.set_yscale("log")
    axes.set_ylabel("images per second")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def measure(
    name: str, data: RandomImages, *, steps: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Measure images per second both ways, medians of turns, and the median ratio, turn by turn."""
    started = process_time()
    torch.manual_seed(0)
    network = getattr(torchvision.models, MODELS[name][0])(weights=None, num_classes=CLASSES)
    data.setup("fit")
    ways: dict[str, Callable[[], float]] = {
        "plain": lambda: plain(network, data, steps=steps, device=device),
        "trainer": lambda: under_trainer(network, data, steps=steps, device=device),
    }
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            speeds[way].append(steps * data.batch_size / run())
    ratios = [ours / bare for ours, bare in zip(speeds["trainer"], speeds["plain"], strict=True)]
    return {
        "model": name,
        "plain": median(speeds["plain"]),
        "trainer": median(speeds["trainer"]),
        "ratio": round(median(ratios), 3),
        "published": MODELS[name][1],
        "seconds": round(process_time() - started, 1),
    }


def plain(network: nn.Module, data: RandomImages, *, steps: int, device: torch.device) -> float:
    """Time the steps of a loop written by hand, in seconds."""
    images, labels = (tensor.to(device) for tensor in data.tensors["train"])
    network.to(device).train()
    optimizer = sgd(network.parameters())
    started = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            started = now(device)
        batch = slice(step % 2 * data.batch_size, (step % 2 + 1) * data.batch_size)
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return now(device) - started


def under_trainer(network: nn.Module, data: RandomImages, *, steps: int, device: torch.device) -> float:
    """Time the same steps under a Trainer that logs every tenth, in seconds."""
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = plain_trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            max_steps=WARM_UP + steps,
            logger=CSVLogger(folder),
            log_every_n_steps=10,
            callbacks=[clock],
        )
        trainer.fit(NetworkClassifier(network), data)
    return clock.seconds


def now(device: torch.device) -> float:
    """Return the time in seconds, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter()


def hardware(device: str) -> str:
    """Name the hardware of the measurement."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"a CPU ({platform.machine()}, threads: {torch.get_num_threads()})"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the rows as text.

    >>> print(table([{"model": "AlexNet", "plain": 10.0, "trainer": 9.9, "ratio": 0.99, "published": 1547}]))
    model        plain loop   Trainer   ratio   published (GP100)
    AlexNet            10.0       9.9   0.990                1547
    """
    lines = ["model        plain loop   Trainer   ratio   published (GP100)"]
    for row in rows:
        speeds = f"{row['plain']:>10.1f} {row['trainer']:>9.1f} {row['ratio']:>7.3f}"
        lines.append(f"{row['model']:<12} {speeds} {row['published']:>19.0f}")
    return "\n".join(lines)
