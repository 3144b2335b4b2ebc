"""Recurrent layers with dropout between them, one layer at a time, and for many samples in one call."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_losses.papers.dropout.sampling.calls import Args, Function

RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


def between_layers(args: Args) -> float:
    """Return the probability with which one of ``RECURRENT``, called with these arguments, drops."""
    packed = _is_packed(args)
    return float(args[5 + packed]) if args[4 + packed] > 1 else 0.0


def in_evaluation(args: Args) -> Args:
    """Return these arguments with the flag of training off."""
    flag = 6 + _is_packed(args)
    return *args[:flag], False, *args[flag + 1 :]


def _is_packed(args: Args) -> bool:
    # (data, sizes, states, weights, biases, layers, ...) instead of (data, states, weights, biases, ...)
    return not isinstance(args[3], bool)


def layered(func: Function, args: Args) -> tuple[Tensor, ...]:
    """Compute the function in training mode layer by layer, with ``F.dropout`` between layers."""
    packed = _is_packed(args)
    data, sizes = args[0], args[1 : 1 + packed]
    states, weights, biases, layers, p, _, both_ways, *rest = args[1 + packed :]
    width, several = 1 + both_ways, func is torch.lstm
    own, found = len(weights) // layers, []
    for layer in range(layers):
        if layer:
            data = F.dropout(data, p)
        here = slice(layer * width, (layer + 1) * width)
        state = [one[here] for one in states] if several else states[here]
        part = weights[layer * own : (layer + 1) * own]
        data, *last = func(data, *sizes, state, part, biases, 1, 0.0, False, both_ways, *rest)
        found.append(last)
    return data, *(torch.cat(last) for last in zip(*found, strict=True))


def in_one_call(func: Function, args: Args) -> object:
    """Compute the function under ``torch.func.vmap``, without a rule for it: fold samples into the batch."""
    packed = _is_packed(args)
    states = args[1 + packed]
    states = [states] if isinstance(states, Tensor) else list(states)
    return _Folded.apply(
        func, packed, len(states), args[3 + packed :], *args[: 1 + packed], *states, *args[2 + packed]
    )


class _VmapInfo(Protocol):
    batch_size: int  # Of the vmap: how many samples.


class _Folded(torch.autograd.Function):
    """A recurrent function whose samples are folded into its batch: [B, ...] and [K] become [B K, ...]."""

    @staticmethod
    def forward(
        func: Function, packed: bool, count: int, options: Args, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        data, states = tensors[: 1 + packed], list(tensors[1 + packed : 1 + packed + count])
        weights = list(tensors[1 + packed + count :])
        results: tuple[Tensor, ...]
        results = func(*data, states if func is torch.lstm else states[0], weights, *options)
        return results

    @staticmethod
    def setup_context(ctx: object, inputs: Args, output: object) -> None:
        """Keep nothing, as there are no gradients."""

    @staticmethod
    def vmap(
        info: _VmapInfo,
        dims: tuple[int | None, ...],
        func: Function,
        packed: bool,
        count: int,
        options: Args,
        *tensors: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        # `dims` has an entry for each argument; those of the tensors begin with the fifth.
        first = 1 + packed + count
        if any(dim is not None for dim in (*dims[4 + first :], *dims[5 : 5 + packed])):
            raise RuntimeError(f"`{func.__name__}` with weights that differ between samples")
        batch_first = not packed and options[-1]
        along = 0 if packed or batch_first else 1  # The batch, or the rows of a packed sequence.
        places = [along, *[1] * count]
        moved = [tensors[0], *tensors[1 + packed : first]]
        folded = [
            _fold(tensor, dim, place, info.batch_size)
            for tensor, dim, place in zip(
                moved, (dims[4], *dims[5 + packed : 4 + first]), places, strict=True
            )
        ]
        sizes = [tensors[1] * info.batch_size] if packed else []
        outputs = _Folded.apply(
            func, packed, count, options, folded[0], *sizes, *folded[1:], *tensors[first:]
        )
        return (
            tuple(
                output.unflatten(place, (-1, info.batch_size))
                for output, place in zip(outputs, places, strict=True)
            ),
            tuple(place + 1 for place in places),
        )


def _fold(tensor: Tensor, dim: int | None, place: int, samples: int) -> Tensor:
    """Move samples right behind the batch, and join both to one dimension."""
    if dim is None:
        shape = list(tensor.shape)
        shape.insert(place + 1, samples)
        tensor = tensor.unsqueeze(place + 1).expand(shape)
    else:
        tensor = tensor.movedim(dim, place + 1)
    return tensor.flatten(place, place + 1)
