"""Style transfer beside a floor, the way of PyTorch's tutorial, and pastiche.

    PL_LOSSES_DATA=... python -m benchmarks.style [closure|trainer|memory]

``closure``: forward and backward pass at 256 pixels; the floor is VGG-19 alone to conv5_1, frozen, average
pooling, nothing compared, channels last, which is its faster layout. ``trainer``: what the Trainer adds to
an evaluation, L-BFGS under it beside a loop by hand, with a loss that is free. ``memory``: peak over what
was taken before, at 512 pixels, each contestant in a process of its own (Linux). Contestants take turns,
processor time of one thread is counted, and medians of the turns' ratios shown. Pastiche takes part where it
is installed. ``pl-losses reproduce style/optimizers`` compares the losses.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F

from pl_losses import StyleTransfer
from pl_losses.callbacks import StyleReport
from pl_losses.data import Pictures
from pl_losses.papers.style import Objective
from pl_losses.papers.style.vgg import CONVOLUTIONS, find_oxford, load_weights

PAIR = ("content_astronaut.jpg", "style_shipwreck.jpg")
STYLE = ["conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"]
Closure = Callable[[], float]


def objective_of(pair: tuple[str, str], size: Any) -> tuple[StyleTransfer, Any, Tensor]:
    """The recipe's module, its objective and the content image."""
    model = StyleTransfer()
    shown = Pictures(*pair, size=size, style_size=size if isinstance(size, int) else max(size)).pictures()
    objective = model.configure_objective(model.configure_features(os.environ.get("PL_LOSSES_DATA")))
    objective.set_targets(shown.contents, shown.styles)
    return model, objective, shown.contents


def chain(weights: Any, inplace: bool) -> nn.Sequential:
    """VGG-19 to conv5_1 as modules, frozen, channels first."""
    layers: list[nn.Module] = []
    for name in CONVOLUTIONS[:13]:
        if name.endswith("_1") and layers:
            layers.append(nn.AvgPool2d(2))
        weight, bias = weights.kernels[name]
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        conv.weight, conv.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        layers += [conv, nn.ReLU(inplace)]
    return nn.Sequential(*layers)


def floor(pair: tuple[str, str], size: Any, layout: torch.memory_format = torch.channels_last) -> Closure:
    """The network alone."""
    weights = load_weights()
    network = chain(weights, inplace=True).to(memory_format=layout)
    image = Pictures(*pair, size=size).pictures().contents - weights.mean[:, None, None]
    image = image.to(memory_format=layout).requires_grad_()

    def closure() -> float:
        image.grad = None
        loss = network(image).sum()
        loss.backward()
        return float(loss.detach())

    return closure


def ours(pair: tuple[str, str], size: Any, bf16: bool = False) -> Closure:
    """The recipe's closure."""
    _, objective, content = objective_of(pair, size)
    image = content.clone().requires_grad_()

    def closure() -> float:
        image.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = objective(image)
        loss.backward()
        return float(loss.detach())

    return closure


def tutorial(pair: tuple[str, str], size: Any) -> Closure:
    """As PyTorch's tutorial does it: losses as transparent modules in the chain, channels first."""

    class Content(nn.Module):
        def __init__(self, target: Tensor) -> None:
            super().__init__()
            self.target = target.detach()

        def forward(self, x: Tensor) -> Tensor:
            self.loss = F.mse_loss(x, self.target)
            return x

    class Style(nn.Module):
        def __init__(self, target: Tensor) -> None:
            super().__init__()
            self.target = gram(target).detach()

        def forward(self, x: Tensor) -> Tensor:
            self.loss = F.mse_loss(gram(x), self.target)
            return x

    def gram(x: Tensor) -> Tensor:
        flat = x.view(x.shape[0] * x.shape[1], -1)
        return (flat @ flat.t()).div(x.numel())

    weights = load_weights()
    shown = Pictures(*pair, size=size).pictures()
    network, losses = nn.Sequential(), []
    mean = weights.mean[:, None, None]
    content, style = shown.contents - mean, shown.styles[0][0][None] - mean
    names = iter(CONVOLUTIONS)
    for index, layer in enumerate(chain(weights, inplace=False)):
        network.add_module(str(index), layer)
        with torch.no_grad():
            content, style = layer(content), layer(style)
        if isinstance(layer, nn.ReLU):
            name = next(names)
            extra = Style(style) if name in STYLE else Content(content) if name == "conv4_2" else None
            if extra is not None:
                network.add_module(f"{index} loss", extra)
                losses.append(extra)
    image = shown.contents.clone().requires_grad_()

    def closure() -> float:
        with torch.no_grad():
            image.clamp_(0, 1)
        image.grad = None
        network(image - mean)
        loss = torch.stack([extra.loss * (1e6 if isinstance(extra, Style) else 1) for extra in losses]).sum()
        loss.backward()
        return float(loss.detach())

    return closure


def pastiche(pair: tuple[str, str], size: Any) -> Closure:
    """The package's own loss, with average pooling."""
    from pastiche.pastiche import PasticheArtist

    data = Pictures(*pair)
    files = [str(data.find(name)) for name in pair]
    shape = list(Pictures(*pair, size=size).pictures().contents.shape[2:])
    # Without `style_size` its style image would be larger than the others', and so its work.
    artist = PasticheArtist(
        files[0], files[1:], pooling="avg", device="cpu", size=shape, style_size=max(shape)
    )

    def closure() -> float:
        artist.pastiche.grad = None
        loss = artist._calc_loss()
        loss.backward()
        return float(loss.detach())

    return closure


CONTESTANTS: dict[str, Callable[..., Closure]] = {
    "floor": floor,
    "floor, channels first": lambda pair, size: floor(pair, size, torch.contiguous_format),
    "ours": ours,
    "ours, bf16": lambda pair, size: ours(pair, size, bf16=True),
    "tutorial's way": tutorial,
    "pastiche": pastiche,
}


def turns(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each way, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            started = process_time()
            way()
            if turn:
                seconds[name].append(process_time() - started)
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the turns' ratios."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def closures(repeats: int = 15) -> None:
    """Table of the closures."""
    ways = {}
    for name, make in CONTESTANTS.items():
        try:
            ways[name] = make(PAIR, 256)
        except ImportError:
            print(f"({name} is not installed)")
    seconds = turns(ways, repeats)
    print(
        "| closure, 256 x 256 | ms | ratio to the floor | ours is faster by |\n| --- | ---: | ---: | ---: |"
    )
    for name, values in seconds.items():
        over = ratio(values, seconds["floor"]), ratio(values, seconds["ours"])
        print(f"| {name} | {1000 * median(values):.0f} | {over[0]:.3f} | {over[1]:.2f}x |")


class Clock(pl.Callback):
    """Processor time of the training itself."""

    seconds = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.started = process_time()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = process_time() - self.started


class Free(Objective):
    """A loss that costs next to nothing: what is left is what is around it."""

    def set_targets(self, *_: Any, **__: Any) -> None:
        """Need none."""

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (image - 0.3).pow(4).sum()
        names = [*self.content_layers, *self.style_layers, "content_loss", "style_loss"]
        return loss, dict.fromkeys(names, loss.detach())


class FreeTransfer(StyleTransfer):
    def configure_objective(self, features: Any) -> Objective:
        layers = self.content_layers, self.style_layers
        return Free(features, *layers, self.preset, self.alpha, self.beta)


def by_hand(data: Pictures, steps: int) -> tuple[float, int, Tensor]:
    """Seconds, evaluations and image of L-BFGS without a Trainer."""
    model = FreeTransfer()
    objective, model.pictures = model.configure_objective(nn.Identity()), data.pictures()
    height, width = model.pictures.contents.shape[2:]
    image, count = (255 * model.first_image((height, width))).requires_grad_(), 0
    optimizer = model._optimizer([image])

    def closure() -> Tensor:
        nonlocal count
        optimizer.zero_grad()
        loss: Tensor = objective(image / 255)[0]
        loss.backward()
        count += 1
        return loss

    started = process_time()
    for _ in range(steps):
        optimizer.step(closure)
    return process_time() - started, count, image.detach()


def trainer(repeats: int = 9, size: int = 256, steps: int = 5) -> None:
    """What the Trainer adds to a closure: with a loss that is free, as a share of one that is not."""
    data, full, spent = Pictures(*PAIR, size=size, steps=steps), ours(PAIR, size), list[float]()
    added: dict[str, list[float]] = {"Trainer": [], "Trainer, CSVLogger and StyleReport": []}
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    for _ in range(repeats):
        bare, count, image = by_hand(data, steps)
        for name, seconds in added.items():
            with tempfile.TemporaryDirectory() as folder:
                model, clock = FreeTransfer(), Clock()
                shown = {"logger": False, "callbacks": [clock]}
                if name != "Trainer":
                    shown = {"logger": CSVLogger(folder), "callbacks": [clock, StyleReport()]}
                run = pl.Trainer(max_epochs=1, accelerator="cpu", **shown, **dict.fromkeys(quiet, False))
                with contextlib.redirect_stdout(None):
                    run.fit(model, data)
            assert torch.equal(image, model.image)
            assert count == int(model.evaluations)
            seconds.append((clock.seconds - bare) / count)
        spent += turns({"closure": full}, 1)["closure"]
    print(f"| added to an evaluation, {size} x {size} | ms | share of a closure |\n| --- | ---: | ---: |")
    for name, seconds in added.items():
        print(f"| {name} | {1000 * median(seconds):.1f} | {100 * ratio(seconds, spent):.1f} % |")


def memory() -> None:
    """Table of the peaks, each measured in its own process."""
    print("| peak memory, minus that of the start, 512 x 512 | MiB | ratio to the floor |")
    print("| --- | ---: | ---: |")
    base = 0.0
    for name in CONTESTANTS:
        command = [sys.executable, "-m", "benchmarks.style", "one", name]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            print(f"({name}: {result.stderr.strip().splitlines()[-1]})")
            continue
        taken = float(result.stdout.split()[-1])
        base = base or taken
        print(f"| {name} | {taken:.0f} | {taken / base:.2f} |", flush=True)


def one(name: str) -> None:
    """Peak of one contestant, in MiB."""
    closure = CONTESTANTS[name](PAIR, [512, 512])
    # The targets' pass has left its own peak: what is asked for is what a closure takes beside what is held.
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status("VmRSS")
    for _ in range(2):
        closure()
    print((_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        found = next((line for line in file if line.startswith(key)), None)
    return int(found.split()[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(args: list[str]) -> None:
    """Run one part, or all."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if find_oxford() is None:
        raise SystemExit("Expected VGG-19's weights in the folder that PL_LOSSES_DATA names")
    if args[:1] == ["one"]:
        one(args[1])
        return
    parts = {"closure": closures, "trainer": trainer, "memory": memory}
    for name, part in parts.items():
        if not args or name in args:
            part()
            print(flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
