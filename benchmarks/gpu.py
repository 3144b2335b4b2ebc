"""All that a GPU is to do, checked and measured beside one thread of the CPU, in at most eight minutes.

Run with ``python -m benchmarks.gpu``. Without a GPU the same work is done in a small form on the CPU, so that
it is known to run; its times then say nothing about a GPU. A row is the median time of a few repetitions,
with the GPU's work done. Rows that would begin after the eighth minute are left out, and named.

Checked are: one copy from the device per logged step of all three monitors, and no other wait for it; the
same results as on the CPU; and, with a GPU, that ``sdae/mnist`` takes at most three minutes. The rows of
style and ``sdae/mnist`` need the data that ``PL_LOSSES_DATA`` names.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from benchmarks.monitors import CASES, Case, Net, everything
from benchmarks.sampling import lenet, mlp
from pl_losses import GAN, DropoutClassifier, LeNet5, StackedDenoisingAutoencoder
from pl_losses.data import BatchLoader
from pl_losses.data.module import TensorDataModule
from pl_losses.papers.dropout import mc_samples
from pl_losses.papers.gtn import SegmentLattice
from pl_losses.papers.prelu import PReLU

LIMIT, SDAE_LIMIT = 480, 180
SMALL = not torch.cuda.is_available()
DEVICES = ["cpu"] if SMALL else ["cpu", "cuda"]
Work = Callable[[], Any]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Work, device: str, at_most: float = 4.0) -> float:
    """Median of up to twenty repetitions, the first left out."""
    found, began = [], perf_counter()
    while len(found) < 2 or (len(found) < 20 and perf_counter() - began < at_most):
        wait(device)
        start = perf_counter()
        work()
        wait(device)
        found.append(perf_counter() - start)
    return median(found[1:])


class Steps(pl.Callback):
    """Seconds of each training step, with the device's work done."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        wait(self.device)
        self.times.append(perf_counter())


def fit(module: pl.LightningModule, data: Any, device: str, callbacks: list[Any], **options: Any) -> float:
    """Median seconds of a step."""
    clock = Steps(device)
    quiet = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        limit_val_batches=0,
        callbacks=[*callbacks, clock],
        **{**dict.fromkeys(quiet, False), "logger": False, "max_epochs": 40, "max_steps": 6 if SMALL else 40}
        | options,
    )
    trainer.fit(module, data)
    return median(after - before for before, after in pairwise(clock.times[2:]))


class Images(TensorDataModule):
    """Random images, kept on the device by the loader."""

    def __init__(self, batch_size: int, *shape: int) -> None:
        super().__init__(batch_size)
        self.shape = shape

    def load(self, stage: str) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        count = self.batch_size * (8 if SMALL else 48)
        labels = torch.randint(10, (count,), generator=generator)
        return {"train": (torch.rand(count, *self.shape, generator=generator), labels)}


def training(make: Callable[[], pl.LightningModule], batch: int, *shape: int) -> Callable[[str], float]:
    """Measure a step of a module of the suite."""

    def run(device: str) -> float:
        torch.manual_seed(0)
        return fit(make(), Images(16 if SMALL else batch, *shape), device, [])

    return run


def sampling(make: Callable[[], nn.Module], *shape: int) -> Callable[[str], float]:
    def run(device: str) -> float:
        network, inputs = make().to(device), torch.rand(*shape, device=device)
        return seconds(partial(mc_samples, network, inputs, 10 if SMALL else 100), device)

    return run


def lattice(device: str, target: bool = False, kind: str = "forward_penalty") -> float:
    torch.manual_seed(0)
    batch = 64 if SMALL else 4096
    penalties = torch.rand(batch, 10, 4, 10, device=device).requires_grad_()
    targets = torch.randint(10, (batch, 5), device=device)

    def work() -> None:
        own = SegmentLattice(penalties)
        own = own.constrain(targets) if target else own
        penalties.grad = None
        getattr(own, kind)().sum().backward()

    return seconds(work, device)


def prelu(layer: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> Callable[[str], float]:
    def run(device: str) -> float:
        shape = (4, 64, 8, 8) if SMALL else (64, 64, 56, 56)
        own = layer().to(device, dtype)
        inputs, gradient = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
        inputs.requires_grad_()
        return seconds(lambda: own(inputs).backward(gradient), device)

    return run


def style(device: str, bf16: bool = False) -> float:
    from benchmarks.style import PAIRS, objective_of

    _, objective, content = objective_of(PAIRS[0], 64 if SMALL else 256)
    objective, image = objective.to(device), content.to(device).clone().requires_grad_()

    def closure() -> None:
        image.grad = None
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss, _ = objective(image)
        loss.backward()

    return seconds(closure, device, 10)


def loading(device: str) -> float:
    """A shuffled pass over images that are on the device."""
    count = 6_000 if SMALL else 60_000
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, device=device)
    loader = BatchLoader((images, torch.zeros(count, dtype=torch.long, device=device)), 128, shuffle=True)
    return seconds(lambda: list(loader), device)


def monitors(case: Case, watched: bool) -> Callable[[str], float]:
    """A step that is logged, with all three monitors or without."""

    def run(device: str) -> float:
        torch.manual_seed(0)
        options = {"logger": DummyLogger(), "log_every_n_steps": 1}
        return fit(Net(case.build()), case.batches(60), device, everything() if watched else [], **options)

    return run


@contextmanager
def counted_copies(device: str) -> Iterator[list[str]]:
    """Collect torch's warnings of what makes the CPU wait for a GPU; there are none without one."""
    waits: list[str] = []
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield waits
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    waits += [str(one.message) for one in found if "synchroniz" in str(one.message)]


def copies(device: str) -> str:
    """Count the copies of the monitors' hooks in each of some logged steps."""
    from benchmarks.monitors import fenced

    found, context = [], None

    def enter() -> None:
        nonlocal context
        context = counted_copies(device)
        found.append(context.__enter__())

    def leave() -> None:
        assert context is not None
        context.__exit__(None, None, None)

    options = {"logger": DummyLogger(), "log_every_n_steps": 1, "max_steps": 4}
    fit(Net(CASES[0].build()), CASES[0].batches(8), device, fenced(everything(), enter, leave), **options)
    count, expected = sum(map(len, found)) / 4, int(device == "cuda")
    return f"{count:g} in a logged step ({expected} expected){'' if count == expected else ': **failed**'}"


def agreement(device: str) -> str:
    """Compare losses and gradients of the networks on the device with float64 on the CPU."""
    worst = 0.0
    for make, shape in ((LeNet5, (8, 1, 32, 32)), (lenet, (8, 1, 28, 28))):
        torch.manual_seed(0)
        network, inputs = make().eval(), torch.rand(*shape)
        found = []
        for place, dtype in (("cpu", torch.float64), (device, torch.float32)):
            network = network.to(place, dtype).zero_grad() or network.to(place, dtype)
            outputs = network(inputs.to(place, dtype))
            outputs.sum().backward()
            gradients = [one.grad.flatten() for one in network.parameters() if one.grad is not None]
            found.append(torch.cat([outputs.detach().flatten(), *gradients]).double().cpu())
            network.zero_grad()
        worst = max(worst, float((found[0] - found[1]).norm() / found[0].norm()))
    return f"relative difference {worst:.1e} (at most 1e-3){'' if worst <= 1e-3 else ': **failed**'}"


def sdae_mnist() -> str:
    """Time the recipe as it is, from the command line."""
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        words = ["fit", "--config", "sdae/mnist", "--trainer.accelerator", "gpu", "--trainer.devices", "1"]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pl_losses", *words],
                cwd=folder,
                timeout=SDAE_LIMIT,
                capture_output=True,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"not over after {SDAE_LIMIT} s: **failed**"
        return f"{perf_counter() - start:.0f} s, exit status {done} (at most {SDAE_LIMIT} s)"


def rows() -> dict[str, Callable[[str], float]]:
    optimizer = partial(torch.optim.Adam, lr=1e-3)
    found: dict[str, Callable[[str], float]] = {
        "LeNet-5, a step, batch 128": training(LeNet5, 128, 1, 32, 32),
        "GAN (DCGAN), a step, batch 128": training(
            lambda: GAN(100, channels=1, image_size=32), 128, 1, 32, 32
        ),
        "SDAE-3, a step of layer 1, batch 128": training(
            partial(StackedDenoisingAutoencoder, 784, [1000] * 3, pretrain_epochs=9), 128, 1, 28, 28
        ),
        "dropout classifier, a step, batch 128": training(
            lambda: DropoutClassifier(optimizer=optimizer), 128, 1, 32, 32
        ),
        "mc_samples, LeNet, T = 100, B = 512": sampling(lenet, 16 if SMALL else 512, 1, 28, 28),
        "mc_samples, MLP, T = 100, B = 4096": sampling(mlp, 64 if SMALL else 4096, 13),
        "SegmentLattice, forward, B = 4096": lattice,
        "SegmentLattice, Viterbi, B = 4096": partial(lattice, kind="viterbi_penalty"),
        "SegmentLattice, forward to targets, B = 4096": partial(lattice, target=True),
        "PReLU, forward and backward, 13M elements": prelu(lambda: PReLU(64)),
        "PReLU, bfloat16": prelu(lambda: PReLU(64), torch.bfloat16),
        "nn.PReLU": prelu(lambda: nn.PReLU(64)),
        "nn.ReLU": prelu(nn.ReLU),
        "loader, a pass of 60 000 images on the device": loading,
    }
    found |= {"style, a closure, 256 pixels": style, "style, bfloat16": partial(style, bf16=True)}
    for case in CASES[:1] if SMALL else CASES:
        found[f"{case.name}, a step"] = monitors(case, watched=False)
        found[f"{case.name}, a logged step with all three monitors"] = monitors(case, watched=True)
    return found


def main() -> None:
    """Print the table and the checks."""
    began = perf_counter()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ["WANDB_SILENT"] = "true"
    name = "no GPU" if SMALL else torch.cuda.get_device_name()
    print(f"{name}; torch {torch.__version__}\n")
    if SMALL:
        print("Small forms on the CPU: sizes are smaller than the rows say, and times mean nothing.\n")
    print("| ms | CPU, one thread | GPU | CPU / GPU |\n| --- | ---: | ---: | ---: |", flush=True)
    left_out, failed, device = [], [], DEVICES[-1]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for label, measure in rows().items():
            if label.startswith("style") and not os.environ.get("PL_LOSSES_DATA"):
                left_out.append(f"PL_LOSSES_DATA names no folder: {label}")
                continue
            if perf_counter() - began > LIMIT - (0 if SMALL else SDAE_LIMIT):
                left_out.append(f"time is over: {label}")
                continue
            try:
                times = [1e3 * measure(one) for one in DEVICES]
            except Exception as error:  # The other rows are worth having.
                failed.append(f"{label}: {type(error).__name__}: {error}")
                continue
            gpu = ["", ""] if SMALL else [f"{times[1]:.3g}", f"{times[0] / times[1]:.3g}"]
            print(f"| {label} | {times[0]:.3g} | {' | '.join(gpu)} |", flush=True)
        print()
        for label, check in {
            "Copies from the device": partial(copies, device),
            "Losses and gradients": partial(agreement, device),
            **({} if SMALL else {"sdae/mnist": sdae_mnist}),
        }.items():
            try:
                print(f"- {label}: {check()}", flush=True)
            except Exception as error:
                failed.append(f"{label}: {type(error).__name__}: {error}")
        os.chdir(Path(folder).parent)
    print(f"- Took {perf_counter() - began:.0f} s (at most {LIMIT})")
    for label in left_out:
        print(f"- Left out, {label}")
    for line in failed:
        print(f"- **Failed**: {line}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
