"""What MC dropout costs: T = 100 samples as a multiple of one deterministic pass, beside loops and libraries.

Run with ``python -m benchmarks.sampling [case ...]``, cases being ``lenet``, ``vgg`` and ``mlp``; libraries
that can be imported take part. Everything is computed on the CPU in one thread. The contestants take turns;
each is timed between two series of deterministic passes of the same network in eval mode without gradients,
and the ratio is taken to the median of both. Medians of the ratios over the turns are printed. Times are
those of the processor in this thread, which other jobs disturb least. Memory is the peak of what torch's
allocator gives out meanwhile.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

import torch
from torch import Tensor, nn

from pl_losses.papers.dropout.sampling.sampling import mc_samples

try:
    from baal.bayesian.caching_utils import MCCachingModule
    from baal.bayesian.dropout import MCDropoutModule
    from baal.modelwrapper import ModelWrapper, TrainingArgs
except ImportError:
    ModelWrapper = None
try:
    from torch_uncertainty.methods import mc_dropout
except ImportError:
    mc_dropout = None
try:
    from lightning_uq_box.uq_methods import MCDropoutRegression
except ImportError:
    MCDropoutRegression = None

SAMPLES = 100
Sampler = Callable[[], Any]


def lenet() -> nn.Module:
    convolutions = (nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*convolutions, nn.Linear(800, 500), nn.ReLU(), nn.Dropout(0.5), nn.Linear(500, 10))


def vgg() -> nn.Module:
    """VGG-11 for 32 pixels with half as many channels."""
    layers: list[nn.Module] = []
    pooled = (0, 1, 3, 5, 7)
    for number, (before, after) in enumerate(pairwise((3, 32, 64, 128, 128, 256, 256, 256, 256))):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if number in pooled else []
    head = [layer for _ in range(2) for layer in (nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5))]
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(256, 10))


def mlp() -> nn.Module:
    hidden = (nn.Linear(13, 50), nn.ReLU(), nn.Dropout(0.05))
    return nn.Sequential(nn.Dropout(0.05), *hidden, nn.Linear(50, 1))


@dataclass(frozen=True)
class Case:
    """A network, the shape of a batch, turns, how often what is timed is repeated, and what is to be reached.

    Attributes:
        targets: At most so many deterministic passes for independent and for shared masks, and at least so
            many times faster than the fastest library.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    turns: int
    repeats: int
    passes: int
    targets: tuple[float, float, float]


CASES = (
    Case("LeNet-like", lenet, (64, 1, 28, 28), 5, 5, 9, (2.0, 1.3, 30)),
    Case("half-wide VGG-11", vgg, (64, 3, 32, 32), 3, 3, 3, (1.7, 1.45, 25)),
    Case("MLP 13-50-1", mlp, (512, 13), 5, 5, 300, (30, 20, 3)),
)


def active(network: nn.Module) -> nn.Module:
    """A copy in which dropout is on, as peers do it."""
    network = copy.deepcopy(network)
    for part in network.modules():
        part.train(isinstance(part, nn.Dropout))
    return network


def loop(network: nn.Module, batch: Tensor) -> Sampler:
    network = active(network)
    return lambda: torch.stack([network(batch) for _ in range(SAMPLES)])


def repeated(network: nn.Module, batch: Tensor) -> Sampler:
    network = active(network)
    times = [SAMPLES, *[1] * (batch.ndim - 1)]
    return lambda: network(batch.repeat(times)).unflatten(0, (SAMPLES, -1))


def baal(network: nn.Module, batch: Tensor, caching: bool, replicate: bool) -> Sampler:
    network = MCDropoutModule(copy.deepcopy(network).eval())
    network = (MCCachingModule(network) if caching else network).eval()
    wrapper = ModelWrapper(network, TrainingArgs(use_cuda=False, replicate_in_memory=replicate))
    return lambda: wrapper.predict_on_batch(batch, iterations=SAMPLES)


def torch_uncertainty(network: nn.Module, batch: Tensor, on_batch: bool) -> Sampler:
    wrapper = mc_dropout(copy.deepcopy(network), SAMPLES, on_batch=on_batch).eval()
    return lambda: wrapper(batch)


def uq_box(network: nn.Module, batch: Tensor) -> Sampler:
    module = MCDropoutRegression(copy.deepcopy(network), SAMPLES, nn.MSELoss())
    return lambda: module.predict_step(batch)


def ours(network: nn.Module, batch: Tensor, **options: Any) -> Sampler:
    return lambda: mc_samples(network, batch, SAMPLES, seed=0, **options)


CONTESTANTS: dict[str, Callable[[nn.Module, Tensor], Sampler] | None] = {
    "independent": ours,
    "shared": lambda network, batch: ours(network, batch, masks="shared"),
    "one at a time": lambda network, batch: ours(network, batch, chunk=1),
    "loop": loop,
    "repeat": repeated,
    "baal": (lambda *both: baal(*both, caching=False, replicate=True)) if ModelWrapper else None,
    "baal caching": (lambda *both: baal(*both, caching=True, replicate=False)) if ModelWrapper else None,
    "torch-uncertainty": (lambda *both: torch_uncertainty(*both, on_batch=True)) if mc_dropout else None,
    "torch-uncertainty loop": (lambda *both: torch_uncertainty(*both, on_batch=False))
    if mc_dropout
    else None,
    "lightning-uq-box": uq_box if MCDropoutRegression else None,
}
LABELS = {
    "independent": "`mc_samples`, independent masks",
    "shared": "`mc_samples`, shared masks",
    "one at a time": "`mc_samples`, `chunk=1`",
    "loop": "loop over passes",
    "repeat": "batch repeated",
    "baal": "baal, batch repeated (its default)",
    "baal caching": "baal, `MCCachingModule`",
    "torch-uncertainty": "torch-uncertainty, batch repeated (its default)",
    "torch-uncertainty loop": "torch-uncertainty, loop",
    "lightning-uq-box": "lightning-uq-box",
}
LIBRARIES = list(CONTESTANTS)[5:]


def seconds(action: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = thread_time()
        with torch.no_grad():
            action()
        times.append(thread_time() - start)
    return times


def race(case: Case) -> dict[str, list[float]]:
    """For each contestant its time in deterministic passes, turn by turn, and the passes' in seconds."""
    torch.manual_seed(0)
    network, batch = case.build().eval(), torch.randn(case.shape)
    samplers = {name: make(network, batch) for name, make in CONTESTANTS.items() if make}
    for name, sampler in samplers.items():
        if name in ("independent", "shared"):
            sampler()
    found: dict[str, list[float]] = {name: [] for name in (*samplers, "pass")}
    for turn in range(case.turns):
        names = list(samplers)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            passes = seconds(lambda: network(batch), case.passes)
            times = seconds(samplers[name], case.repeats if name in ("independent", "shared") else 1)
            passes += seconds(lambda: network(batch), case.passes)
            found["pass"].append(median(passes))
            found[name].append(median(times) / median(passes))
        print(f"{case.name}: turn {turn + 1} of {case.turns}", file=sys.stderr)
    return found


def peak(action: Callable[[], Any]) -> float:
    """Megabytes, by the profiler's record of torch's allocations."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu, profile_memory=True) as profiler, torch.no_grad():
            action()
        profiler.export_chrome_trace(str(trace))
        events = [
            event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"
        ]
    live = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        live += event["args"]["Bytes"]
        most = max(most, live)
    return most / 1e6


def table(*rows: list[str]) -> None:
    for row in (rows[0], ["---"] + ["---:"] * (len(rows[0]) - 1), *rows[1:]):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def bold_if(missed: bool, text: str) -> str:
    return f"**{text}**" if missed else text


def table_of_costs(cases: list[Case], found: list[dict[str, list[float]]]) -> None:
    rows = [["deterministic pass, ms"] + [f"{1e3 * median(one['pass']):.3g}" for one in found]]
    for name, label in LABELS.items():
        cells = []
        for case, one in zip(cases, found, strict=True):
            if name not in one:
                cells.append("not installed")
                continue
            cost, times = median(one[name]), median(one[name]) / median(one["independent"])
            target = {"independent": case.targets[0], "shared": case.targets[1]}.get(name)
            cell = f"{cost:.3g}" if target is None else bold_if(cost > target, f"{cost:.3g}")
            cells.append(f"{cell} ({times:.2g}x)")
        if name in ("independent", "shared"):
            limits = ", ".join(f"{case.targets[name == 'shared']:g}" for case in cases)
            label += f" (at most {limits})"
        rows.append([label, *cells])
    cells = []
    for case, one in zip(cases, found, strict=True):
        costs = [median(one[name]) for name in LIBRARIES if name in one]
        if costs:
            times = min(costs) / median(one["independent"])
            cells.append(bold_if(times < case.targets[2], f"{times:.3g}x"))
        else:
            cells.append("none installed")
    limits = ", ".join(f"{case.targets[2]:g}" for case in cases)
    rows.append([f"faster than the fastest library (at least {limits})", *cells])
    table([f"deterministic passes for T = {SAMPLES} (times ours)", *(case.name for case in cases)], *rows)


def table_of_memory(cases: list[Case]) -> None:
    rows = []
    for label, make in (
        ("a deterministic pass", lambda network, batch: lambda: network(batch)),
        ("`mc_samples`, `chunk=5`", lambda network, batch: ours(network, batch, chunk=5)),
        ("`mc_samples`, `chunk=25`", lambda network, batch: ours(network, batch, chunk=25)),
        ("`mc_samples`, default", ours),
        ("batch repeated", repeated),
    ):
        cells = []
        for case in cases:
            torch.manual_seed(0)
            network = case.build().eval()
            cells.append(f"{peak(make(network, torch.randn(case.shape))):.3g}")
        rows.append([label, *cells])
    table(["peak of torch's memory, MB", *(case.name for case in cases)], *rows)


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chosen = [case for case in CASES if case.build.__name__ in (sys.argv[1:] or ("lenet", "vgg", "mlp"))]
    table_of_costs(chosen, [race(case) for case in chosen])
    table_of_memory(chosen)


if __name__ == "__main__":
    main()
