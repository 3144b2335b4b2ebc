"""What a PReLU costs in training: forward and backward beside a ReLU and torch's own PReLU.

Run with ``python -m benchmarks.prelu``. The input has shape [64, 64, 56, 56], one slope per channel or one
for all, on the CPU with one thread, or with ``--device cuda`` on a GPU. The floor is the ReLU. Along size
there is another one: a weight and a ``torch.autograd.Function`` that only calls the ReLU's kernels.
Contestants take turns; ratios are taken within a turn, and their medians are printed. On the CPU the times
are those of the processor in this thread, which other jobs disturb least.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter, thread_time

import torch
from torch import Tensor, nn

from pl_losses.core.autograd import Context
from pl_losses.papers.prelu import PReLU

SHAPE, TURNS = (64, 64, 56, 56), 15
CASES = {
    "float32": (torch.float32, torch.contiguous_format),
    "float32, channels_last": (torch.float32, torch.channels_last),
    "bfloat16": (torch.bfloat16, torch.contiguous_format),
}


class _Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return input.relu()

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor, Tensor]:
        input, weight = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, input, 0), weight


class Bare(nn.PReLU):
    """A ReLU as a function written in Python, with a weight that gets a gradient without any work."""

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _Rectified.apply(input, self.weight)
        return output


def seconds(work: Callable[[], object], device: str) -> float:
    """Of the processor, or of the GPU with all its work done."""
    if device == "cpu":
        start = thread_time()
        work()
        return thread_time() - start
    torch.cuda.synchronize()
    start = perf_counter()
    work()
    torch.cuda.synchronize()
    return perf_counter() - start


SIZES = [(256, 64), (1024, 64), (16, 64, 8, 8), (16, 64, 32, 32), (64, 64, 16, 16), (64, 64, 56, 56)]


def contestants(dtype: torch.dtype) -> dict[str, nn.Module]:
    return {
        "nn.ReLU (floor)": nn.ReLU(),
        "PReLU here": PReLU(64, dtype=dtype),
        "PReLU here, shared slope": PReLU(1, dtype=dtype),
        "nn.PReLU": nn.PReLU(64, dtype=dtype),
        "nn.PReLU, shared slope": nn.PReLU(1, dtype=dtype),
    }


def ratios(
    case: str, device: str, shape: tuple[int, ...] = SHAPE, compiled: bool = False
) -> tuple[dict[str, float], float]:
    """Of each contestant's time to the ReLU's, and the ReLU's time in seconds."""
    dtype, memory = CASES[case]
    memory = memory if len(shape) == 4 else torch.contiguous_format
    inputs, gradient = (
        torch.randn(shape, device=device).to(dtype).contiguous(memory_format=memory) for _ in range(2)
    )
    layers = {name: layer.to(device) for name, layer in contestants(dtype).items()}
    if compiled:
        layers["a bare function"] = Bare(64, dtype=dtype).to(device)
        layers["torch.compile(nn.PReLU)"] = torch.compile(nn.PReLU(64, dtype=dtype).to(device))

    def work(layer: nn.Module) -> Callable[[], None]:
        def run() -> None:
            leaf: Tensor = inputs.detach().requires_grad_()
            layer(leaf).backward(gradient)
            layer.zero_grad()

        return run

    works = {name: work(layer) for name, layer in layers.items()}
    for warm in works.values():
        warm()
        warm()
    repeats = max(1, 2_000_000 // inputs.numel())
    turns = [
        {name: median(seconds(run, device) for _ in range(repeats)) for name, run in works.items()}
        for _ in range(TURNS)
    ]
    floor = next(iter(works))
    return (
        {name: median(turn[name] / turn[floor] for turn in turns) for name in works},
        median(turn[floor] for turn in turns),
    )


def compile_seconds(device: str) -> float:
    """Until the first large layer has gone forward in a process that has compiled nothing before."""
    leaf = torch.randn(SHAPE, device=device, requires_grad=True)
    layer = PReLU(64).to(device)
    start = perf_counter()
    layer(leaf)
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = parser.parse_args().device
    torch.set_num_threads(1)
    waited = compile_seconds(device)
    columns = {case: ratios(case, device) for case in CASES}
    print(f"| forward and backward, {list(SHAPE)}, {device} | {' | '.join(columns)} |")
    print("| --- |" + " ---: |" * len(columns))
    for name in contestants(torch.float32):
        cells = (f"{column[name]:.2f}x" for column, _ in columns.values())
        print(f"| {name} | {' | '.join(cells)} |")
    floors = (f"{1e3 * floor:.1f}" for _, floor in columns.values())
    print(f"| the ReLU's time, ms | {' | '.join(floors)} |")
    names = ("PReLU here", "nn.PReLU", "torch.compile(nn.PReLU)", "a bare function")
    print(f"\n| float32, time divided by the ReLU's | {' | '.join(names)} |")
    print("| --- |" + " ---: |" * len(names))
    for shape in SIZES:
        found, _ = ratios("float32", device, shape, compiled=True)
        print(f"| {list(shape)} | {' | '.join(f'{found[name]:.2f}x' for name in names)} |")
    print(f"\nThe first large layer waited {waited:.1f} s for its loop, from the compiler or its cache.")


if __name__ == "__main__":
    main()
