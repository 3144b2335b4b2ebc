"""Kingma and Ba 2015, Algorithm 1: sums over every coordinate, from Adam's state after a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pl_losses.core.compat import of_torch
from pl_losses.core.precision import wide_type
from pl_losses.monitoring.monitor import Numbers, vector
from pl_losses.papers.adam.monitor.statistics import SMALL, Moments, Squares, in_lines
from pl_losses.papers.adam.monitor.update_rule import Rule, coefficients

NOTHING: list[float] = [-math.inf] + [0.0] * 6  # A row of no coordinates.
BLOCK = 2**18  # Bytes of a buffer: few enough for the processor's cache and for a megabyte in all.
PACK = BLOCK // 8  # Bytes of small tensors that are joined: calls cost more than the work, NumPy's least.


def coordinates(
    moments: Sequence[Moments | None], rule: Rule, device: torch.device, selected: Sequence[int] = ()
) -> tuple[list[Numbers], Squares]:
    """Visit every coordinate, block by block, and add up.

    It needs next to no memory: two small buffers, which on an accelerator grow with large models, to 1/512
    of their size.

    Args:
        moments: Tensors that this rank answers for, else None; may be none.
        rule: How they are stepped.
        device: For the results, if they are tensors.
        selected: Which of them get a row of their own.

    Returns:
        A row of all and of each selected tensor, shape [7]. With the weight w after the step, and d, the step
        of a coordinate without decoupled decay in units of -alpha: the largest d, signs aside; the sums of
        w^2, d^2, d w and (m^/sqrt(v^))^2, and the numbers of coordinates with d beyond 0.9 and with
        sqrt(v^) < 10 eps. And, if none is selected, sums of squares of moments that were in the processor's
        cache anyway, those of small tensors with equal steps as if they were all the first one's.
    """
    known: Squares = {}
    own: dict[int, Numbers] = dict.fromkeys(selected, NOTHING)
    runs: dict[Any, list[int]] = {}
    for index, one in enumerate(moments):
        if one is not None and one.m.numel():  # A shard may be empty.
            alike = None if isinstance(one.step, Tensor) else (one.step, one.mu_product)
            runs.setdefault((alike, one.m.dtype, one.m.device, index in own), []).append(index)
    rows: list[Numbers] = []
    for (*_, apart), indices in runs.items():
        found = _visit_run([moments[index] for index in indices], rule, known, apart)  # type: ignore[misc]
        rows += found
        if apart:
            own |= zip(indices, found, strict=True)
    everything = _together(rows, device) if rows else NOTHING
    return [everything, *own.values()], {} if selected else known


def _together(rows: list[Any], device: torch.device) -> Numbers:
    """Combine rows: the maximum of the first numbers and the sums of the others."""
    if len(rows) == 1:
        return rows[0] if isinstance(rows[0], list) else rows[0].to(device, non_blocking=True)
    if all(isinstance(row, list) for row in rows):
        table = np.array(rows)
        numbers: list[float] = [*table[:, 0].max(keepdims=True).tolist(), *table[:, 1:].sum(0).tolist()]
        return numbers
    both = torch.stack([vector(row, device) for row in rows])
    return torch.cat([both[:, :1].amax(0), both[:, 1:].sum(0)])


def _visit_run(run: list[Moments], rule: Rule, known: Squares, apart: bool) -> list[Numbers]:
    """Return one row of tensors whose steps are equal or on a device; if ``apart``, a row of each."""
    if not isinstance(run[0].step, Tensor):
        return _visit_alike(run, rule, coefficients(rule, run[0].step, run[0].mu_product), known, apart)
    step, product = (
        torch.stack([getattr(one, name).reshape(()) for one in run])
        if isinstance(getattr(run[0], name), Tensor)
        else 1.0
        for name in ("step", "mu_product")
    )
    terms = coefficients(rule, step, product)
    vectors = {key: term.unbind() for key, term in terms.items() if isinstance(term, Tensor) and term.ndim}
    rows = [
        row
        for i, one in enumerate(run)
        for row in _visit_alike(
            [one], rule, terms | {key: own[i] for key, own in vectors.items()}, known, apart
        )
    ]
    return rows if apart else [_together(rows, run[0].m.device)]


def _visit_alike(
    run: list[Moments], rule: Rule, terms: dict[str, Any], known: Squares, apart: bool
) -> list[Numbers]:
    """Do as :func:`_visit_run` if all tensors have the same coefficients."""
    ratio, signal = terms["ratio"], terms.get("signal", 1.0)
    scales = [ratio, 1.0, ratio**2, ratio, signal**2, 1.0, 1.0]
    device, dtype = run[0].m.device, wide_type(run[0].m.dtype)
    # Tiny is added to v, so that 0/0 is 0.
    terms = {"zero": 0.0, "one": 1.0, "tiny": torch.finfo(dtype).tiny, "level": 0.9 / ratio, **terms}
    if device.type != "cpu" or isinstance(ratio, Tensor):
        scale = vector(scales, device, dtype)
        return [
            _together(_visit_blocks(*_packed(part, PACK // dtype.itemsize), rule, terms, dtype), device)
            * scale
            for part in ([[one] for one in run] if apart else [run])
        ]
    packs, large = _packed(run, PACK // dtype.itemsize)
    with np.errstate(all="ignore"):
        rows: list[Any] = []
        for pack in packs:
            rows += _visit_pack(pack, rule, terms, dtype, known, apart)
        size = min(BLOCK // dtype.itemsize, max((one.m.numel() for one in large), default=0))
        buffers = torch.empty(2, size, dtype=dtype).numpy()
        for one in large:
            found = _visit_large(one, rule, terms, dtype, known, buffers)
            rows += [_together(found, device)] if apart else found
    if not apart:
        row = _together(rows, device)
        return [[number * scale for number, scale in zip(row, scales, strict=True)]]
    order = dict(zip(map(id, [*chain(*packs), *large]), (np.array(rows) * scales).tolist(), strict=True))
    return [order[id(one)] for one in run]


def _packed(run: list[Moments], most: int) -> tuple[list[list[Moments]], list[Moments]]:
    """Split tensors into packs of small ones, of at most ``most`` elements each, and large ones."""
    packs: list[list[Moments]] = []
    large, room = [], 0
    for one in run:
        size = one.m.numel()
        if size > most:
            large.append(one)
            continue
        if size > room:
            packs.append([])
            room = most
        packs[-1].append(one)
        room -= size
    return packs, large


def _columns(run: list[Moments]) -> list[list[Tensor]]:
    """List m, v, weight and, for NAdam, gradient."""
    columns = [[one.m for one in run], [one.largest for one in run], [one.weight for one in run]]
    gradients = [one.gradient for one in run if one.gradient is not None]
    return [*columns, gradients] if gradients else columns


def _joined(pack: list[Moments], dtype: torch.dtype) -> Tensor:
    """Join a pack in one call, to shape [3 or 4, N]."""
    columns = _columns(pack)
    tensors = [tensor for column in columns for tensor in column]
    joined: Tensor = of_torch.flatten_dense(tensors)  # type: ignore[no-untyped-call]
    return joined.to(dtype).view(len(columns), -1)


def _visit_pack(
    pack: list[Moments],
    rule: Rule,
    terms: dict[str, object],
    dtype: torch.dtype,
    known: Squares,
    apart: bool,
) -> list[list[float]]:
    """Do as :func:`_visit` for small tensors on the CPU: one row, or a row of each."""
    parts = _joined(pack, dtype).numpy()
    buffers = np.empty_like(parts[:2])
    if apart:
        starts = [0, *accumulate(one.m.numel() for one in pack[:-1])]
        rows: list[list[float]] = np.stack(_visit(each(starts), rule, terms, parts, *buffers), 1).tolist()
        return rows
    for part, tensor in zip(parts, (pack[0].m, pack[0].largest), strict=False):
        known[id(tensor)] = float(np.dot(part, part))
    for one in pack[1:]:
        known[id(one.m)] = known[id(one.largest)] = 0.0
    return [[*map(float, _visit(WHOLE, rule, terms, parts, *buffers))]]


def _visit_large(
    one: Moments, rule: Rule, terms: dict[str, object], dtype: torch.dtype, known: Squares, buffers: Any
) -> list[list[float]]:
    """Do as :func:`_visit` for a large tensor on the CPU, cut into blocks."""
    block = BLOCK // dtype.itemsize
    rows: list[list[float]] = []
    m_square = v_square = 0.0
    lines = in_lines([tensor for column in _columns([one]) for tensor in column])
    for parts in zip(*(_pieces(line, block, dtype) for line in lines), strict=True):
        # First, so that the visit finds them in the processor's cache.
        v_square += float(np.dot(parts[1], parts[1]))
        m_square += float(np.dot(parts[0], parts[0]))
        rows.append([*map(float, _visit(WHOLE, rule, terms, parts, *buffers))])
    known[id(one.m)], known[id(one.largest)] = m_square, v_square
    return rows


def _pieces(line: Tensor, length: int, dtype: torch.dtype) -> Iterator[Any]:
    """Cut a line into arrays of a length, the last one shorter; copy only to change the dtype."""
    if line.dtype != dtype:
        yield from (piece.to(dtype).numpy() for piece in torch.split(line, length))
        return
    whole = line.numpy()
    for start in range(0, len(whole), length):
        yield whole[start : start + length]


def _visit_blocks(
    packs: list[list[Moments]],
    large: list[Moments],
    rule: Rule,
    terms: dict[str, Any],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Do as :func:`_visit` for small tensors, joined, and large ones, cut into blocks."""
    device, sizes = (large or packs[0])[0].m.device, [one.m.numel() for one in large]
    block = max(BLOCK // dtype.itemsize, sum(sizes) // 512)  # Launches would take longer than the work.
    for key in ("zero", "x", "y", "rectified"):
        if isinstance(terms.get(key), float):
            terms[key] = torch.full((), terms[key], device=device, dtype=dtype)
    size = min(block, max([PACK // dtype.itemsize, *sizes]))
    buffers = torch.empty(2, size, device=device, dtype=dtype)
    rows = [torch.stack(_visit(DEVICE, rule, terms, _joined(pack, dtype), *buffers)) for pack in packs]
    for one in large:
        lines = in_lines([tensor for column in _columns([one]) for tensor in column])
        for pieces in zip(*(torch.split(line, block) for line in lines), strict=True):
            parts = [piece.to(dtype) for piece in pieces]
            rows.append(torch.stack(_visit(DEVICE, rule, terms, parts, *buffers)))
    return rows


class Sums(NamedTuple):
    """How blocks are summed up.

    Attributes:
        xp: NumPy or torch, whichever the blocks are of.
        dot: The sum of the products of two blocks.
        most: The largest number of a block, signs aside.
        above: How many numbers of a block are above a level, signs aside; with a buffer, and the largest one.
    """

    xp: Any
    dot: Callable[[Any, Any], Any]
    most: Callable[[Any], Any]
    above: Callable[[Any, Any, Any, Any], Any]


def _most(numbers: Any) -> Any:
    return max(numbers.max(), -numbers.min())


def _count(numbers: Any, level: Any, buffer: Any, largest: Any) -> Any:
    # Mostly none is: this takes less than to count.
    return np.count_nonzero(np.abs(numbers, out=buffer) > level) if largest > level else 0


WHOLE = Sums(np, np.dot, _most, _count)
DEVICE = Sums(
    torch,
    torch.dot,
    lambda numbers: numbers.abs_().max(),
    # Faster than torch's count_nonzero.
    lambda numbers, level, buffer, _: torch.gt(numbers, level, out=buffer).sum(),
)


def each(starts: list[int]) -> Sums:
    """Return sums of each tensor of joined ones, by where they begin."""
    return Sums(
        np,
        lambda one, other: np.add.reduceat(one * other, starts),
        lambda numbers: np.maximum.reduceat(np.abs(numbers), starts),
        lambda numbers, level, buffer, _: np.add.reduceat(
            (np.abs(numbers) > level).astype(buffer.dtype), starts
        ),
    )


def _visit(
    sums: Sums, rule: Rule, terms: dict[str, object], parts: Any, inverse: Any, direction: Any
) -> list[Any]:
    """Return the largest direction and the sums of a block, seven numbers, except for their scale.

    Args:
        sums: How to sum up.
        rule: The update rule.
        terms: Terms of the closed form.
        parts: m, v, weight and, for NAdam, gradient, shape [N] each.
        inverse: A buffer, at least [N].
        direction: Another buffer.
    """
    xp, dot, most, above = sums
    m, v, weight = parts[:3]
    if len(m) < len(direction):
        inverse, direction = inverse[: len(m)], direction[: len(m)]
    square = dot(weight, weight)
    signal = small = cross = terms["zero"] if xp is torch else 0.0 * square
    if rule.kind == "adamax":
        xp.divide(m, v, out=direction)
    else:
        xp.add(v, terms["tiny"], out=inverse)
        if xp is torch:
            inverse.rsqrt_()
        elif len(inverse) > SMALL:
            torch.from_numpy(inverse).rsqrt_()  # NumPy has none.
        else:
            np.divide(1.0, np.sqrt(inverse, out=inverse), out=inverse)
        small = above(inverse, terms["small"], direction, None if xp is torch else inverse.max())
        xp.multiply(m, inverse, out=direction)
        signal = dot(direction, direction)
        if rule.kind == "nadam":
            _nadam_top(rule, terms, parts, direction)
            xp.multiply(direction, inverse, out=direction)
        xp.multiply(inverse, terms["shift"], out=inverse)
        xp.add(inverse, terms["one"], out=inverse)
        xp.divide(direction, inverse, out=direction)
        if rule.kind == "radam":
            _rectify(terms["rectified"], m, direction)
    step = dot(direction, direction)
    if rule.decay:
        cross = dot(direction, weight)
    largest = most(direction)
    return [largest, square, step, cross, signal, above(direction, terms["level"], inverse, largest), small]


def _nadam_top(rule: Rule, terms: dict[str, Any], parts: Any, out: Any) -> None:
    """Compute NAdam's n = y m + x g, with the L2 decay of the weight before the step."""
    m, _, weight, gradient = parts
    out[:] = m * terms["y"]
    out += gradient * (-terms["x"] if rule.maximize else terms["x"])
    if rule.weight_decay and not rule.decoupled:
        out += weight * (terms["x"] * rule.weight_decay)


def _rectify(rectified: object, m: Any, out: Any) -> None:
    """Replace the direction by m in RAdam's first steps, in which ``rectified`` is 0 and not 1."""
    if isinstance(rectified, Tensor):
        torch.lerp(m, out, rectified, out=out)
    elif not rectified:
        out[:] = m
