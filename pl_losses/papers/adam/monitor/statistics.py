"""Kingma and Ba 2015, Algorithm 1: statistics of a step, from Adam's state after it.

:func:`squares` and :func:`~pl_losses.papers.adam.monitor.coordinates.coordinates` look at tensors and return
numbers that ranks can add up or take the maximum of: on the device, for which they never wait, or, if they
are computed on the CPU, in lists. :func:`describe` makes statistics of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pl_losses.core.compat import of_torch
from pl_losses.core.precision import at_least_float32, wide_type
from pl_losses.monitoring.monitor import Numbers, vector
from pl_losses.papers.adam.monitor.update_rule import Number, Rule, effective_step

Squares = dict[int, float]  # Sums of squares by the id of their tensors.

EXACT = (torch.float32, torch.float64)
SMALL = 2**13  # Elements up to which a CPU takes longer to be called than to work.
FEW = 32  # Tensors up to which a call for each takes less than to join them.
LONG = 2**16  # Elements that a CPU sums up in one go: float32 rounds off longer sums.


class Moments(NamedTuple):
    """A tensor, or this rank's shard of it, after a step; all fields have one shape.

    Attributes:
        step: t.
        mu_product: NAdam's product of the mu up to t.
        m: First moment.
        v: Second moment, or AdaMax' u.
        largest: AMSGrad's largest second moment so far, else ``v``.
        weight: Weight after the step.
        gradient: Gradient of the step; only NAdam needs it.
    """

    step: Number
    mu_product: Number
    m: Tensor
    v: Tensor
    largest: Tensor
    weight: Tensor
    gradient: Tensor | None = None


def squares(
    moments: Sequence[Moments | None], rule: Rule, device: torch.device, known: Squares | None = None
) -> Numbers:
    """Compute the sums of squares of m, of v and, for AMSGrad, of the largest v, one after the other.

    Args:
        moments: T tensors; None counts as 0.
        rule: The update rule.
        device: For the result, if it is a tensor.
        known: Sums of squares that the visit to the coordinates has computed already.

    Returns:
        Shape [2 T] or [3 T].
    """
    names = ("m", "v", "largest") if rule.amsgrad else ("m", "v")
    tensors: list[Any] = [None if one is None else getattr(one, name) for name in names for one in moments]
    sizes = [0 if one is None else one.numel() for one in tensors]
    if not known and sizes and min(sizes) > 0 and max(sizes) <= SMALL and tensors[0].is_cpu:
        return _squares_of_small(tensors, sizes)
    found: dict[int, Any] = {**(known or {})}
    pairs = zip(tensors, sizes, strict=True)
    unknown = {id(one): one for one, size in pairs if size and id(one) not in found}
    small = {key: one for key, one in unknown.items() if one.is_cpu and one.numel() <= SMALL}
    if small:
        some = [*small.values()]
        found |= zip(small, _squares_of_small(some, [*map(Tensor.numel, some)]), strict=True)
    large = [one for key, one in unknown.items() if key not in small] if len(small) < len(unknown) else []
    if large:
        norms = _norms(large)
        here = [norm if norm.device == device else norm.to(device, non_blocking=True) for norm in norms]
        whole = torch.stack(here).square_()
        if len(whole) == len(tensors):
            return whole
        found |= zip(map(id, large), whole.tolist() if whole.is_cpu else whole.unbind(), strict=True)
    numbers = [found.get(id(one), 0.0) for one in tensors]
    return vector(numbers, device) if large and device.type != "cpu" else numbers


def _squares_of_small(tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[float]:
    """Compute the sum of squares of each tensor on the CPU, none empty, many in one call."""
    if len(tensors) <= FEW:
        lines = [at_least_float32(one).numpy() for one in tensors]
        return [float(np.vdot(line, line)) for line in lines]
    ends = np.cumsum(sizes)
    cuts = np.flatnonzero(np.diff(ends // LONG)) + 1
    sums: list[float] = []
    for start, stop in pairwise([0, *cuts.tolist(), len(tensors)]):
        joined: Tensor = of_torch.flatten_dense(tensors[start:stop])  # type: ignore[no-untyped-call]
        line = at_least_float32(joined).numpy()
        begins = ends[start:stop] - sizes[start:stop]
        sums += np.add.reduceat(line * line, begins - begins[0]).tolist()
    return sums


def _norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    short = [one for one in tensors if one.numel() <= LONG or not one.is_cpu]
    dtype = wide_type(*{tensor.dtype for tensor in short})
    norms = list(of_torch.foreach_norm(short, 2, dtype)) if short else []
    if len(short) == len(tensors):
        return norms
    done = dict(zip(map(id, short), norms, strict=True))
    return [done[id(one)] if id(one) in done else _long_norm(one) for one in tensors]


def _long_norm(tensor: Tensor) -> Tensor:
    (line,) = in_lines([tensor])
    if line.dtype in EXACT:
        sums = [torch.dot(piece, piece) for piece in torch.split(line, LONG)]
    else:
        sums = [torch.dot(piece.float(), piece.float()) for piece in torch.split(line, LONG // 8)]
    return torch.stack(sums).sum().sqrt()


def in_lines(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Flatten tensors in the same order; copy them only if they are not dense in that order."""
    if all(one.is_contiguous() for one in tensors):
        return [one.view(-1) for one in tensors]
    order = sorted(range(tensors[0].ndim), key=tensors[0].stride, reverse=True)
    return [one.permute(order).reshape(-1) for one in tensors]


def describe(
    rule: Rule, steps: Sequence[Any], found: Sequence[Sequence[float]], sizes: Sequence[int]
) -> dict[str, float]:
    """Compute the statistics of the moments, by name; empty if no tensor has a state.

    Args:
        rule: The update rule, all its numbers on the CPU.
        steps: t of each of T tensors, -inf where it has no state.
        found: From :func:`squares`, [2 or 3, T].
        sizes: Coordinates of each tensor, 0 if this step left it alone.
    """
    lr, beta1, beta2 = float(rule.lr), float(rule.beta1), float(rule.beta2)
    most = max(steps, default=-math.inf)
    if most == -math.inf:
        return {}
    factor = effective_step(rule, most)
    statistics = {
        "lr": lr,
        "step_max": most,
        "step_min": min(step for step in steps if step > -math.inf),
        "bias_correction1": 1 - beta1**most,
        "bias_correction2": 1 - beta2**most,
        "effective_step": factor,
        "effective_lr": lr * factor,
    }
    stepped = [index for index, step in enumerate(steps) if sizes[index] and step > 0]
    m, v, m_hat, v_hat = (sum([row[i] for i in stepped]) for row in (found[0], found[1], found[0], found[-1]))
    # Mostly there is one: a power for each of a thousand tensors takes as long as their norms.
    corrections = {step: ((1 - beta1**step) ** 2, (1 - beta2**step) ** 2) for step in {*steps} if step > 0}
    if len(corrections) == 1:
        ((first, second),) = corrections.values()
        m_hat, v_hat = m_hat / first, v_hat / second
    else:
        m_hat = sum(found[0][i] / corrections[steps[i]][0] for i in stepped)
        v_hat = sum(found[-1][i] / corrections[steps[i]][1] for i in stepped)
    if stepped:
        statistics["coordinates"] = float(sum(sizes[index] for index in stepped))
        names = ("m_norm", "v_norm", "m_hat_norm", "v_hat_norm")
        statistics |= zip(names, map(math.sqrt, (m, v, m_hat, v_hat)), strict=True)
    if rule.kind == "adamax":
        del statistics["bias_correction2"]
        statistics.pop("v_hat_norm", None)
    return statistics


def describe_update(
    rule: Rule, sums: Sequence[float], largest: float, known: dict[str, float]
) -> dict[str, float]:
    """Compute the statistics of the coordinates, by name; empty if none was stepped.

    Args:
        rule: The update rule, all its numbers on the CPU.
        sums: From :func:`coordinates`, [6].
        largest: From :func:`coordinates`.
        known: From :func:`describe`.
    """
    count = known.get("coordinates", 0.0)
    if not count or largest == -math.inf:
        return {}
    weight, direction, cross, signal, trusted, small = sums
    lr, decay, bounds = float(rule.lr), rule.decay, rule.bounds
    # With decoupled decay the weight w before the step is now (1 - lr wd) w - lr d: solved for the step.
    square = direction + decay * (2 * cross + decay * weight)
    kept = abs(1 - lr * decay)  # 0 if the decay took all of w, which is then unknown.
    update = lr * math.sqrt(max(square, 0.0)) / kept if kept else math.nan
    statistics = {
        "update_norm": update,
        "update_rms": update / math.sqrt(count),
        "update_to_weight": update / math.sqrt(weight) if weight else math.inf,
        "max_update": largest,
        "trust_region_share": trusted / count,
    }
    if rule.kind != "adamax":
        statistics |= {"snr": math.sqrt(signal / count), "eps_share": small / count}
    if rule.kind == "adam" and signal:
        nominal = math.sqrt(known["bias_correction2"]) / known["bias_correction1"]
        statistics["measured_step"] = nominal * math.sqrt(direction / signal)
    if bounds:
        statistics["share_of_paper_bound"] = largest / bounds.paper
        statistics["share_of_tight_bound"] = largest / bounds.tight
    return statistics
