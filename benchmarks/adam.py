"""Adam with the switch beside torch's, and Fig. 4's grid at once beside its runs one after the other.

Run with ``python -m benchmarks.adam``. Steps: on gradients that stay as they are, our optimizer and torch's
take turns, and ratios of processor time within a turn are compared. Grid: turns of a step of all 60
autoencoders of the paper's size, at once by ``BatchedVAE``, and one after the other by autograd and
``torch.optim.Adam`` in a bare loop, with its fused kernel and as it is by default.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product
from statistics import median
from time import process_time

import torch
from torch import Tensor, nn

from pl_losses.papers.adam import VAE, Adam
from pl_losses.papers.adam.fig4.batched_vae import BatchedVAE, Settings
from pl_losses.papers.adam.fig4.grid import Plan

MODELS: dict[str, Callable[[], list[Tensor]]] = {
    "50 tensors of 1,000": lambda: [torch.randn(1000) for _ in range(50)],
    "MLP, 6 tensors, 1.8M": lambda: shapes((1000, 784), (1000,), (1000, 1000), (1000,), (10, 1000), (10,)),
    "transformer, 98 tensors, 7.1M": lambda: (
        [
            tensor
            for _ in range(6)
            for tensor in shapes(
                *((936, 312), (936,), (312, 312), (312,), (1248, 312), (1248,), (312, 1248), (312,)),
                *((312,), (312,), (312,), (312,), (312,), (312,), (312,), (312,)),
            )
        ]
        + shapes((10, 312), (10,))
    ),
}
SWITCH = (True, False, "denominator")
KERNELS = {"foreach": {"foreach": True}, "fused": {"fused": True}}
TURNS, SECONDS = 15, 0.05


def shapes(*all_shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape) for shape in all_shapes]


def prepared(make: type[torch.optim.Adam], model: str, **options: object) -> Callable[[], object]:
    torch.manual_seed(0)
    parameters = [nn.Parameter(tensor) for tensor in MODELS[model]()]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = make(parameters, **options)  # type: ignore[arg-type]
    optimizer.step()
    return optimizer.step


def seconds(step: Callable[[], object], times: int) -> float:
    start = process_time()
    for _ in range(times):
        step()
    return (process_time() - start) / times


def ratios(ours: list[Callable[[], object]], theirs: Callable[[], object], turns: int) -> list[float]:
    """Of each of ours, the median over turns of its time over theirs, which goes before and after it."""
    times = max(1, round(SECONDS / seconds(theirs, 3)))
    found: list[list[float]] = [[] for _ in ours]
    for _ in range(turns):
        before = seconds(theirs, times)
        for values, step in zip(found, ours, strict=True):
            own, after = seconds(step, times), seconds(theirs, times)
            values.append(2 * own / (before + after))
            before = after
    return [median(values) for values in found]


def steps() -> None:
    first = "step time divided by torch.optim.Adam's (at most 1.03), for each `bias_correction`"
    print(f"| {first} | kernel | True | False | denominator |")
    print("| --- | --- | ---: | ---: | ---: |")
    for model, kernel in product(MODELS, KERNELS):
        ours = [prepared(Adam, model, bias_correction=switch, **KERNELS[kernel]) for switch in SWITCH]
        found = ratios(ours, prepared(torch.optim.Adam, model, **KERNELS[kernel]), TURNS)
        print(f"| {model} | {kernel} | " + " | ".join(f"{ratio:.2f}" for ratio in found) + " |", flush=True)


def paper_grid() -> list[Settings]:
    lists = {"beta1": [0.0, 0.9], "beta2": [0.99, 0.999, 0.9999], "log_alpha": [-5.0, -4.0, -3.0, -2.0, -1.0]}
    sizes = {"steps": 1, "at": [1], "batch_size": 100, "hidden_size": 500, "latent_size": 50, "seed": 0}
    return Plan(**lists, **sizes, dataset="random").settings()  # type: ignore[arg-type]


def single(run: Settings, fused: bool, images: Tensor, noise: Tensor) -> Callable[[], object]:
    """A step of an autoencoder of its own, by autograd."""
    torch.manual_seed(0)
    vae = VAE()
    betas = (run.beta1, run.beta2)
    optimizer = torch.optim.Adam(vae.parameters(), run.alpha, betas, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        reconstruction, divergence = vae.compute_loss(images, noise)
        (reconstruction.mean() + divergence.mean()).backward()
        optimizer.step()

    return step


def grid(turns: int = 5) -> None:
    """Time of a step of all 60, at rates at which all stay finite."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(100, 784, generator=generator) > 0.8).float()
    noise = torch.randn(100, 50, generator=generator)
    settings = [run._replace(alpha=1e-5) for run in paper_grid()]
    start = list(VAE().parameters())

    def stacked(together: int) -> Callable[[], object]:
        stacks = [
            BatchedVAE(start, settings[first : first + together])
            for first in range(0, len(settings), together)
        ]
        return lambda: [stack.step(images, noise) for stack in stacks]

    def one_by_one(fused: bool) -> Callable[[], object]:
        alone = [single(run, fused, images, noise) for run in settings]
        return lambda: [step() for step in alone]

    contestants = {
        "60 at once": stacked(60),
        "10 at once": stacked(10),
        "one after the other, torch.optim.Adam, fused": one_by_one(True),
        "one after the other, torch.optim.Adam": one_by_one(False),
    }
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, step in contestants.items():
            spent = seconds(step, 1)
            if turn:  # The first one warms up.
                found[name].append(spent)
    best = found["10 at once"]
    print("\n| a step of Fig. 4's 60 autoencoders | processor ms | divided by that of 10 at once |")
    print("| --- | ---: | ---: |")
    for name, values in found.items():
        ratio = median(other / own for own, other in zip(best, values, strict=True))
        print(f"| {name} | {1000 * median(values):.0f} | {ratio:.2f} |", flush=True)


def main() -> None:
    """Print both tables; ``steps`` or ``grid`` as an argument prints one."""
    torch.set_num_threads(1)
    for name, table in (("steps", steps), ("grid", grid)):
        if len(sys.argv) < 2 or name in sys.argv[1:]:
            table()


if __name__ == "__main__":
    main()
