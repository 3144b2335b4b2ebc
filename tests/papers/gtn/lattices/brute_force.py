"""Small lattices and what is true of them, by listing all paths in Python floats."""

import math
from collections import defaultdict
from itertools import product

import torch
from torch import Tensor


def random_penalties(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.rand(*shape, dtype=torch.float64, generator=generator)


def all_paths(
    penalties: Tensor, pieces: int | None = None
) -> list[tuple[float, tuple[int, ...], tuple[int, ...]]]:
    """(penalty, labels, cuts) of all paths through penalties [N, K, C] of one sample."""
    most, longest, classes = penalties.shape
    pieces = most if pieces is None else pieces
    values = penalties.tolist()
    found = []
    for chosen in product((False, True), repeat=max(pieces - 1, 0)):
        cuts = (0, *(i + 1 for i, cut in enumerate(chosen) if cut), pieces) if pieces else (0,)
        spans = [(cuts[i], cuts[i + 1]) for i in range(len(cuts) - 1)]
        if any(end - begin > longest for begin, end in spans):
            continue
        for labels in product(range(classes), repeat=len(spans)):
            penalty = sum(
                values[end - 1][end - begin - 1][label]
                for (begin, end), label in zip(spans, labels, strict=True)
            )
            found.append((penalty, labels, cuts))
    return found


def logadd(penalties: list[float]) -> float:
    least = min(penalties, default=math.inf)
    if math.isinf(least):
        return least
    return least - math.log(math.fsum(math.exp(least - penalty) for penalty in penalties))


def expected(paths: list, shape: tuple[int, ...]) -> dict[str, object]:
    """Every quantity of a lattice from the list of its paths."""
    total = logadd([path[0] for path in paths])
    segments = torch.zeros(shape, dtype=torch.float64)
    cuts = torch.zeros(shape[0] + 1, dtype=torch.float64)
    strings: dict[tuple[int, ...], float] = defaultdict(float)
    entropy = 0.0
    for penalty, labels, positions in paths:
        probability = math.exp(total - penalty)
        entropy += probability * (penalty - total)
        strings[labels] += probability
        cuts[list(positions)] += probability
        for i, label in enumerate(labels):
            end = positions[i + 1]
            segments[end - 1, end - positions[i] - 1, label] += probability
    return {
        "forward": total,
        "viterbi": min((path[0] for path in paths), default=math.inf),
        "entropy": entropy,
        "segments": segments,
        "cuts": cuts,
        "strings": strings,
        "sorted": sorted(paths),
    }
