"""Kingma and Ba 2015, Algorithm 1: what Adam's state after a step tells of that step.

:func:`squares` and :func:`coordinates` look at tensors and return device tensors that ranks can add up or
take the maximum of; they never wait for the device. :func:`describe` makes statistics of them on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from pl_losses.papers.adam.closed_form import Number, Rule, coefficients, effective_step

SUMS = ("weight", "direction", "cross", "signal", "trusted", "small")
Norms = dict[int, Tensor]  # Norms by the id of their tensors.

BLOCK = 2**18  # Bytes of a buffer: few enough for the processor's cache and for a megabyte in all.
LONG = 2**18  # Elements that a CPU sums up in one go: float32 rounds off longer sums.


class Moments(NamedTuple):
    """One tensor, or this rank's shard of it, after a step: all of one shape.

    Attributes:
        step: t.
        mu_product: NAdam's.
        m: First moment.
        v: Second moment, or AdaMax' u.
        largest: AMSGrad's largest second moment so far, else ``v``.
        weight: After the step.
        gradient: Of the step; only NAdam needs it.
    """

    step: Number
    mu_product: Number
    m: Tensor
    v: Tensor
    largest: Tensor
    weight: Tensor
    gradient: Tensor | None = None


def squares(
    moments: Sequence[Moments | None], rule: Rule, device: torch.device, known: Norms | None = None
) -> Tensor:
    """Sums of squares of m, of v and, for AMSGrad, of the largest v, one after the other.

    Args:
        moments: T tensors; None counts as 0.
        rule: How they are stepped.
        device: For the result.
        known: What :func:`coordinates` found on its way.

    Returns:
        Shape [2 T] or [3 T].
    """
    tensors = [None if one is None else one.m for one in moments]
    tensors += [None if one is None else one.v for one in moments]
    if rule.amsgrad:
        tensors += [None if one is None else one.largest for one in moments]
    return (
        torch.stack(_norms(tensors, device, known or {})).square_()
        if tensors
        else torch.zeros(0, device=device)
    )


def _norms(tensors: Sequence[Tensor | None], device: torch.device, known: Norms) -> list[Tensor]:
    short = [one for one in tensors if one is not None and id(one) not in known and _is_short(one)]
    norms: list[Tensor] = []
    if short:
        dtype = reduce(torch.promote_types, {tensor.dtype for tensor in short}, torch.float32)
        norms = list(torch._foreach_norm(short, 2, dtype))
    if len(short) < len(tensors):
        done, nothing = iter(norms), torch.zeros((), device=device)
        norms = []
        for one in tensors:
            if one is None or not one.numel():
                norms.append(nothing)
            elif id(one) in known:
                norms.append(known[id(one)])
            else:
                norms.append(next(done) if _is_short(one) else _long_norm(one))
    return [norm if norm.device == device else norm.to(device, non_blocking=True) for norm in norms]


def _is_short(tensor: Tensor) -> bool:
    size = tensor.numel()
    return 0 < size <= LONG or (size > LONG and not tensor.is_cpu)


def _long_norm(tensor: Tensor) -> Tensor:
    (line,) = _lines([tensor])
    if line.dtype in (torch.float32, torch.float64):
        sums = [torch.dot(piece, piece) for piece in torch.split(line, LONG)]
    else:
        sums = [torch.dot(piece.float(), piece.float()) for piece in torch.split(line, LONG // 8)]
    return torch.stack(sums).sum().sqrt()


def _lines(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each in one dimension, all in the same order: copied only if they are not dense in that order."""
    if all(one.is_contiguous() for one in tensors):
        return [one.view(-1) for one in tensors]
    order = sorted(range(tensors[0].ndim), key=tensors[0].stride, reverse=True)
    return [one.permute(order).reshape(-1) for one in tensors]


def coordinates(moments: Sequence[Moments], rule: Rule, device: torch.device) -> tuple[Tensor, Tensor, Norms]:
    """What takes a visit to every coordinate, block by block.

    It needs next to no memory: two small buffers, which on an accelerator grow with large models, to 1/512
    of their size.

    Args:
        moments: Tensors that this rank answers for; may be none.
        rule: How they are stepped.
        device: For the results.

    Returns:
        With the weight w after the step, and d, the step of a coordinate without decoupled decay in units of
        -alpha: the sums of w^2, d^2, d w and (m^/sqrt(v^))^2, and the numbers of coordinates with d beyond
        0.9 and with sqrt(v^) < 10 eps, shape [6]; the largest d, signs aside, shape [1]; and norms of moments
        that were in the processor's cache anyway.
    """
    norms: Norms = {}
    runs: dict[Any, list[Moments]] = {}
    for one in moments:
        if one.m.numel():  # A shard may be empty.
            known = None if isinstance(one.step, Tensor) else (one.step, one.mu_product)
            runs.setdefault((known, one.m.dtype, one.m.device), []).append(one)
    rows = [_visit_run(run, rule, norms).to(device, non_blocking=True) for run in runs.values()]
    if not rows:
        return torch.zeros(len(SUMS), device=device), torch.full((1,), -math.inf, device=device), {}
    row = _together(rows)
    return row[1:], row[:1], norms


def _together(rows: list[Tensor]) -> Tensor:
    """The maximum of the first elements and the sums of the others."""
    if len(rows) == 1:
        return rows[0]
    table = torch.stack(rows)
    return torch.cat([table[:, :1].amax(0), table[:, 1:].sum(0)])


def _visit_run(run: list[Moments], rule: Rule, norms: Norms) -> Tensor:
    """The largest direction and the sums, shape [7]; the steps are equal or on a device."""
    total = sum(one.m.numel() for one in run)
    dtype = torch.promote_types(run[0].m.dtype, torch.float32)
    block = BLOCK // dtype.itemsize
    if not run[0].m.is_cpu:
        block = max(block, total // 512)  # Launches would take longer than the work.
    buffers = [run[0].m.new_empty(min(block, total), dtype=dtype) for _ in range(2)]
    if not isinstance(run[0].step, Tensor):
        terms = coefficients(rule, run[0].step, run[0].mu_product)
        return _visit_alike(run, rule, terms, buffers, norms)
    step, product = (
        torch.stack([getattr(one, name).reshape(()) for one in run])
        if isinstance(getattr(run[0], name), Tensor)
        else 1.0
        for name in ("step", "mu_product")
    )
    terms = coefficients(rule, step, product)
    vectors = {key: term.unbind() for key, term in terms.items() if isinstance(term, Tensor) and term.ndim}
    return _together(
        [
            _visit_alike([one], rule, terms | {key: own[i] for key, own in vectors.items()}, buffers, norms)
            for i, one in enumerate(run)
        ]
    )


def _visit_alike(
    run: list[Moments], rule: Rule, terms: dict[str, Any], buffers: list[Tensor], norms: Norms
) -> Tensor:
    """As _visit_run, where all tensors have the same coefficients."""
    ratio, signal = terms["ratio"], terms.get("signal", 1.0)
    scale = [ratio, 1.0, ratio**2, ratio, signal**2, 1.0, 1.0]
    device, dtype = buffers[0].device, buffers[0].dtype
    # Tiny is added to v: it makes 0/0 a 0.
    terms = {"zero": 0.0, "one": 1.0, "tiny": torch.finfo(dtype).tiny, "level": 0.9 / ratio} | {
        key: term for key, term in terms.items() if key not in ("ratio", "signal")
    }
    if buffers[0].is_cpu and not isinstance(ratio, Tensor):  # Every call would convert Python's numbers.
        numbers = torch.tensor([*terms.values(), *scale], dtype=dtype)
        terms = dict(zip(terms, numbers[: len(terms)].unbind(), strict=True))
        scales = numbers[len(terms) :]
    else:
        for key in ("zero", "x", "y", "rectified"):
            if isinstance(terms.get(key), float):
                terms[key] = torch.full((), terms[key], device=device, dtype=dtype)
        scales = vector(scale, device, dtype)
    rows: list[Tensor] = []
    own: dict[int, tuple[Moments, list[Tensor]]] = {}
    for one, parts in _blocks(run, buffers[0]):
        rows.append(_visit(rule, terms, parts, *buffers))
        if one is not None and one.m.is_cpu:
            squares = torch.stack([torch.dot(parts[0], parts[0]), torch.dot(parts[1], parts[1])])
            own.setdefault(id(one.m), (one, []))[1].append(squares)
    for one, parts in own.values():
        both = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        norms[id(one.m)], norms[id(one.largest)] = both.sqrt_().unbind()
    return _together(rows) * scales


def vector(values: Sequence[Number], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers brought to a device without waiting for it."""
    if not any(isinstance(value, Tensor) for value in values):
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
    return torch.stack(
        [
            value.reshape(()).to(device, dtype, non_blocking=True)
            if isinstance(value, Tensor)
            else torch.full((), value, device=device, dtype=dtype)
            for value in values
        ]
    )


def _blocks(run: list[Moments], buffer: Tensor) -> Iterator[tuple[Moments | None, list[Tensor]]]:
    """Parts of m, v, weight and gradient in one dimension: of a large tensor, or of small ones joined."""
    dtype = buffer.dtype
    joined: list[list[Tensor]] = []
    room = most = BLOCK // dtype.itemsize // 8
    for one in run:
        tensors = [one.m, one.largest, one.weight]
        if one.gradient is not None:
            tensors.append(one.gradient)
        size = one.m.numel()
        if size > most or len(run) == 1:
            for parts in zip(*(torch.split(line, len(buffer)) for line in _lines(tensors)), strict=True):
                yield one, [part.to(dtype) for part in parts]
            continue
        if size > room:
            yield None, _join(joined, dtype)
            joined, room = [], most
        joined.append(tensors)
        room -= size
    if joined:
        yield None, _join(joined, dtype)


def _join(tensors: list[list[Tensor]], dtype: torch.dtype) -> list[Tensor]:
    return [_flatten_dense_tensors(column).to(dtype) for column in zip(*tensors, strict=True)]  # type: ignore[no-untyped-call]


def _visit(
    rule: Rule, terms: dict[str, Any], parts: list[Tensor], inverse: Tensor, direction: Tensor
) -> Tensor:
    """The largest direction and the sums in one block, shape [7], but for their scale."""
    m, v, weight = parts[:3]
    if len(m) < len(direction):
        inverse, direction = inverse[: len(m)], direction[: len(m)]
    signal = small = cross = terms["zero"]
    if rule.kind == "adamax":
        torch.div(m, v, out=direction)
    else:
        torch.add(v, terms["tiny"], out=inverse).rsqrt_()
        small = torch.gt(inverse, terms["small"], out=direction).sum()
        torch.mul(m, inverse, out=direction)
        signal = torch.dot(direction, direction)
        if rule.kind == "nadam":
            _nadam_top(rule, terms, parts, direction).mul_(inverse)
        direction.div_(inverse.mul_(terms["shift"]).add_(terms["one"]))
        if rule.kind == "radam":
            torch.lerp(m, direction, terms["rectified"], out=direction)
    square = torch.dot(direction, direction)
    if rule.decay:
        cross = torch.dot(direction, weight)
    largest = direction.abs_().amax()
    trusted = torch.gt(direction, terms["level"], out=inverse).sum()
    return torch.stack([largest, torch.dot(weight, weight), square, cross, signal, trusted, small])


def _nadam_top(rule: Rule, terms: dict[str, Any], parts: list[Tensor], out: Tensor) -> Tensor:
    """n = y m + x g, with the L2 decay of the weight before the step."""
    m, _, weight, gradient = parts
    torch.mul(m, terms["y"], out=out)
    out.addcmul_(gradient, terms["x"], value=-1 if rule.maximize else 1)
    if rule.weight_decay and not rule.decoupled:
        out.addcmul_(weight, terms["x"], value=rule.weight_decay)
    return out


def describe(
    rule: Rule, steps: Sequence[Any], found: Sequence[Sequence[float]], sizes: Sequence[int]
) -> dict[str, float]:
    """What the moments tell, by name; empty if no tensor has a state.

    Args:
        rule: How the group is stepped, all its numbers on the CPU.
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
    m = v = m_hat = v_hat = 0.0
    stepped = [index for index, step in enumerate(steps) if sizes[index] and step > 0]
    for index in stepped:
        step = steps[index]
        m, v = m + found[0][index], v + found[1][index]
        m_hat += found[0][index] / (1 - beta1**step) ** 2
        v_hat += found[-1][index] / (1 - beta2**step) ** 2
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
    """What the coordinates tell, by name; empty if none was stepped.

    Args:
        rule: How the group is stepped, all its numbers on the CPU.
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
    update = lr * math.sqrt(max(square, 0.0)) / abs(1 - lr * decay)
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
