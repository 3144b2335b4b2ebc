"""MC dropout along sizes: ``mc_samples`` against the best that is written by hand with torch alone.

Run with ``python -m benchmarks.sampling_grid [network ...]``, networks being ``mlp``, ``lenet``, ``resnet``,
``unet`` and ``transformer``. Batches B and samples T are those of the grid for which the loop takes
no more than ``--seconds``, so that all ends in minutes. The ways by hand are a loop over passes, the batch
repeated, and a split: the layers before the first dropout once, the others on repeated features. All is on
the CPU in one thread, after the kernels of ``mc_samples`` are loaded. The ways take turns; times are those
of the processor, medians of the ratios are shown.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Callable
from statistics import median
from time import sleep, thread_time

import torch
from torch import Tensor, nn

from benchmarks.sampling import bold_if, lenet, mlp, table
from pl_losses.core.kernels import OFTEN, kernels_for_often
from pl_losses.papers.dropout.sampling.rows import KERNELS
from pl_losses.papers.dropout.sampling.sampling import mc_samples

BATCHES, SAMPLES = (1, 16, 512, 4096), (10, 100, 1000)
TURNS = 5
Way = Callable[[], Tensor]


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(after), nn.BatchNorm2d(after)])
        self.relu = nn.ReLU(inplace=True)
        self.short = (
            nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norms[0](self.first(x)))
        return self.relu(self.norms[1](self.second(y)) + self.short(x))


class ResNet18(nn.Module):
    """For 32 pixels, with a dropout before its last layer."""

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
        blocks = []
        for before, after, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
            blocks += [Residual(before, after, stride), Residual(after, after, 1)]
        self.features = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 10))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(x))
        return found


class UNet(nn.Module):
    """Three levels for 64 pixels, with Dropout2d twice in each block."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        one, two, four = width, 2 * width, 4 * width
        self.down = nn.ModuleList([block(1, one), block(one, two), block(two, four)])
        self.wider = nn.ModuleList([nn.ConvTranspose2d(four, two, 2, 2), nn.ConvTranspose2d(two, one, 2, 2)])
        self.up = nn.ModuleList([block(four, two), block(two, one)])
        self.pool, self.last = nn.MaxPool2d(2), nn.Conv2d(one, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down[0](x)
        second = self.down[1](self.pool(first))
        x = self.wider[0](self.down[2](self.pool(second)))
        x = self.wider[1](self.up[0](torch.cat([second, x], 1)))
        found: Tensor = self.last(self.up[1](torch.cat([first, x], 1)))
        return found


def block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [nn.Conv2d(width, after, 3, padding=1), nn.BatchNorm2d(after)]
        layers += [nn.ReLU(inplace=True), nn.Dropout2d(0.1)]
    return nn.Sequential(*layers)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (13,)),
    "lenet": (lenet, (1, 28, 28)),
    "resnet": (ResNet18, (3, 32, 32)),
    "unet": (UNet, (1, 64, 64)),
    "transformer": (transformer, (32, 64)),
}


def active(network: nn.Module) -> nn.Module:
    """Return a copy whose dropout is on, also that of attention, which is no module of its own."""
    network = copy.deepcopy(network)
    for part in network.modules():
        attends = isinstance(part, (nn.MultiheadAttention, nn.TransformerEncoderLayer))
        part.training = attends or "Dropout" in type(part).__name__
    return network


def repeated(network: nn.Module, batch: Tensor, samples: int) -> Tensor:
    found: Tensor = network(batch.repeat(samples, *[1] * (batch.ndim - 1)))
    return found.unflatten(0, (samples, -1))


def by_hand(network: nn.Module, batch: Tensor, samples: int) -> dict[str, Way]:
    network = active(network)
    ways: dict[str, Way] = {
        "loop": lambda: torch.stack([network(batch) for _ in range(samples)]),
        "repeated": lambda: repeated(network, batch, samples),
    }
    if isinstance(network, nn.Sequential):
        first = next(at for at, part in enumerate(network) if isinstance(part, nn.Dropout))
        ways["split"] = lambda: repeated(network[first:], network[:first](batch), samples)
    elif isinstance(network, ResNet18):
        ways["split"] = lambda: repeated(network.head, network.features(batch), samples)
    return ways


def seconds(way: Way) -> float:
    start = thread_time()
    with torch.no_grad():
        way()
    return thread_time() - start


def race(network: nn.Module, batch: Tensor, samples: int) -> list[str]:
    """Return a row: our time, the best other's name, its time over ours, ``chunk=1`` over the loop."""
    ways = by_hand(network, batch, samples)
    ways["ours"] = lambda: mc_samples(network, batch, samples, seed=0)
    ways["one"] = lambda: mc_samples(network, batch, samples, seed=0, chunk=1)
    for way in ways.values():
        seconds(way)
    turns = [{name: seconds(way) for name, way in ways.items()} for _ in range(TURNS)]
    others = {name: median(turn[name] / turn["ours"] for turn in turns) for name in ways}
    del others["ours"], others["one"]
    best = min(others, key=lambda name: others[name])
    one = median(turn["one"] / turn["loop"] for turn in turns)
    own = 1e3 * median(turn["ours"] for turn in turns)
    return [
        f"{own:.3g}",
        best,
        bold_if(others[best] < 0.9, f"{others[best]:.2f}"),
        bold_if(one > 1.1, f"{one:.2f}"),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("networks", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a loop over all passes at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    network = mlp().eval()
    for _ in range(OFTEN):  # As in a long run: kernels are loaded.
        mc_samples(network, torch.zeros(1, 13), 10)
    while kernels_for_often(KERNELS) is None:
        sleep(0.1)
    rows = [["network, B, T", "ours, ms", "best by hand", "its time over ours (at least 0.9)"]]
    rows[0].append("`chunk=1` over the loop (at most 1.1)")
    for name in options.networks or NETWORKS:
        build, shape = NETWORKS[name]
        torch.manual_seed(0)
        network = build().eval()
        for size in BATCHES:
            batch = torch.randn(size, *shape)
            one = active(network)
            each = min(seconds(lambda one=one, batch=batch: one(batch)) for _ in range(3))  # type: ignore[misc]
            if SAMPLES[0] * each > options.seconds:
                break  # Even one pass of a larger batch would take minutes.
            for samples in SAMPLES:
                if samples * each <= options.seconds:
                    rows.append([f"{name}, {size}, {samples}", *race(network, batch, samples)])
                    print(*rows[-1], file=sys.stderr, flush=True)
    table(*rows)


if __name__ == "__main__":
    main()
