"""Modules made of torch's own layers: the samples are further rows of the batch.

In these layers no row depends on another, nothing is drawn but masks, and nothing is kept. So such a module
needs no vmap, no record, no mode and no streams put aside, all of which take longer than a small pass. Its
parts are looked at anew in each call, so that nothing can be out of date.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_losses.core.compat import of_torch
from pl_losses.core.kernels import kernels_for_often
from pl_losses.papers.dropout.sampling.mask_sampler import (
    FEW,
    DropoutCall,
    MaskSampler,
    is_rare,
    seed_of,
    word_of,
)
from pl_losses.papers.dropout.sampling.prefix_trace import PLAIN
from pl_losses.papers.dropout.sampling.sizes import at_a_time, prepare

_ELEMENTWISE = {nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU}
_ELEMENTWISE |= {nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Mish, nn.Hardtanh, nn.Hardswish}
_DROPOUT = {nn.Dropout: False, nn.Dropout1d: True, nn.Dropout2d: True, nn.Dropout3d: True}
# The dimensions of their inputs: with one less there is no batch.
_DIMENSIONS: dict[type[nn.Module], int] = {
    **{nn.Conv1d: 3, nn.MaxPool1d: 3, nn.AvgPool1d: 3, nn.AdaptiveAvgPool1d: 3, nn.Dropout1d: 3},
    **{nn.Conv2d: 4, nn.MaxPool2d: 4, nn.AvgPool2d: 4, nn.AdaptiveAvgPool2d: 4, nn.Dropout2d: 4},
    nn.BatchNorm2d: 4,
    **{nn.Conv3d: 5, nn.MaxPool3d: 5, nn.AvgPool3d: 5, nn.AdaptiveAvgPool3d: 5, nn.Dropout3d: 5},
    nn.TransformerEncoderLayer: 3,
}
_IN_ENCODER = (nn.MultiheadAttention, nn.Linear, nn.Dropout, nn.LayerNorm)
# Further ones are taken if they are set up so that rows are independent.
_IF: dict[type[nn.Module], Callable[[Any], bool]] = {
    **{kind: lambda part: part.running_mean is not None for kind in (nn.BatchNorm1d, nn.BatchNorm2d)},
    **{kind: lambda part: not part.return_indices for kind in (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)},
    nn.Flatten: lambda part: (part.start_dim, part.end_dim) == (1, -1),
    nn.TransformerEncoderLayer: lambda part: (
        _attends_plainly(part.self_attn)
        and part.activation in (F.relu, F.gelu)
        and all(type(child) in _IN_ENCODER for child in part.children())
        and all(map(_is_plain, part.modules()))
    ),
}
_AS_WIDE = {*_ELEMENTWISE, *_DROPOUT, nn.LayerNorm}  # As their inputs.
_KINDS = {*_ELEMENTWISE, *_DROPOUT, *_DIMENSIONS, *_IF, nn.Linear, nn.LayerNorm}
KERNELS = "pl_losses.papers.dropout.sampling.compiled"
_AHEAD = 1 << 16  # Bytes of a site's masks that are drawn in one call, if they are for many samples.


def in_rows(module: nn.Module, batch: Any, *, seed: int, samples: int, chunk: int | None) -> Tensor | None:
    """Make T passes of a module that is made of such layers, with the masks that all ways have.

    Args:
        module: The module.
        batch: What it is called with.
        seed: Seed of the masks.
        samples: T.
        chunk: Largest number of samples at a time; ``None`` for the default.

    Returns:
        The samples [T, B, ...]; ``None`` if the module or the batch is of another kind, or a layer fails.
    """
    # By the shape: to ask a tensor for its length takes ten times as long.
    if type(batch) not in PLAIN or batch.ndim < 2 or not batch.shape[0]:
        return None
    steps = layers(module) or []
    for first, step in enumerate(steps):  # noqa: B007
        if _drops(step):
            break
    else:
        return None
    if torch.is_inference_mode_enabled():  # Samples may go into a loss.
        with torch.inference_mode(False):
            return in_rows(module, batch, seed=seed, samples=samples, chunk=chunk)
    gradients = torch.is_grad_enabled()
    of_torch.set_grad_enabled(False)
    try:
        return _Passes(MaskSampler(seed), samples, chunk).run(steps[:first], steps[first:], batch)
    except Exception:  # What fails here, fails in the module's own passes, too, and is told there.
        return None
    finally:
        of_torch.set_grad_enabled(gradients)


def layers(module: nn.Module) -> list[nn.Module] | None:
    """Return a module's layers in their order, if each row is treated by itself; else ``None``."""
    if of_torch.has_hooks() or of_torch.is_transformed():
        return None
    found: list[nn.Module] = []
    ahead: list[Any] = [module]
    while ahead:
        part = ahead.pop()
        kind = type(part)
        if part is None or not _is_plain(part):
            return None
        if kind is nn.Sequential:
            ahead += reversed(of_torch.own_children(part).values())
        elif kind is nn.TransformerEncoder and _is_plain(part.layers):
            ahead += [*([] if part.norm is None else [part.norm]), *reversed(part.layers)]
        elif kind in _KINDS and (kind not in _IF or _IF[kind](part)):
            found.append(part)
        else:
            return None
    return found


def _is_plain(part: nn.Module) -> bool:
    """Return whether a part runs its class's forward and nothing else, on tensors of torch's own."""
    if of_torch.has_hooks(part) or "forward" in part.__dict__:
        return False
    for held in (of_torch.own_parameters(part), of_torch.own_buffers(part)):
        for tensor in held.values() if held else ():
            if tensor is not None and (
                type(tensor) not in PLAIN or tensor.is_inference() or hasattr(tensor, "ds_id")
            ):
                return False
    return True


def _attends_plainly(part: Any) -> bool:
    usual = part.batch_first and part.in_proj_weight is not None and part.bias_k is None
    return bool(usual and not part.add_zero_attn)


def _drops(step: Any) -> bool:
    if type(step) is nn.TransformerEncoderLayer:
        return any((step.self_attn.dropout, step.dropout.p, step.dropout1.p, step.dropout2.p))
    return type(step) in _DROPOUT and step.p > 0


def _bytes(steps: list[Any], x: Tensor) -> int:
    """Return how many bytes one sample takes in some layers; 0 if this is unknown."""
    width: int = x.shape[-1]  # The largest number of values that one computes for each last dimension.
    for step in steps:
        kind = type(step)
        if kind is nn.Linear:
            width = max(width, step.out_features)
        elif kind is nn.TransformerEncoderLayer:
            attention = step.self_attn
            inner = max(3 * attention.embed_dim, attention.num_heads * x.shape[1])
            width = max(width, inner, step.linear1.out_features)
        elif kind not in _AS_WIDE:
            return 0
    return x.nbytes // x.shape[-1] * width * (3 + len(steps))


class _Passes:
    """T passes: what comes before the first dropout once, the rest for K samples of B rows, as [K B, ...].

    Args:
        masks: Source of the masks.
        samples: T.
        chunk: K at most; ``None`` for the default.
    """

    def __init__(self, masks: MaskSampler, samples: int, chunk: int | None) -> None:
        self.masks, self.samples, self.chunk = masks, samples, chunk
        self.done = self.count = self.site = self.bytes = self.largest = 0
        # For each site, masks [K, ...] of the next passes, the last first.
        self.ready: dict[int, list[Tensor]] = {}

    def run(self, before: list[nn.Module], after: list[nn.Module], x: Tensor) -> Tensor:
        """Return the samples of a batch, whose layers are split at the first dropout."""
        prepare()
        self.inputs = x.shape[0]
        if before and any(step.__dict__.get("inplace") for step in before):
            x = x.clone()
        for step in before:
            x = self._step(step, x)
        # If some width is unknown, the first pass is for one sample and shows what one takes.
        each = 0 if self.chunk else _bytes(after, x)
        known = bool(each or self.chunk)
        size = at_a_time(self.samples, self.chunk, each, x.device) if known else 1
        stack: Tensor | None = None
        while self.done < self.samples:
            self.count, self.site, y = min(size, self.samples - self.done), 0, x
            self.ahead = _AHEAD if known else 0
            for step in after:
                y = self._step(step, y)
                if not known:
                    self.largest = max(self.largest, y.nbytes)
            y = y.view(self.count, self.inputs, *y.shape[1:])
            if self.count == self.samples:
                return y
            stack = y.new_empty((self.samples, *y.shape[1:])) if stack is None else stack
            stack[self.done : self.done + self.count] = y
            self.done += self.count
            if not known:
                size = at_a_time(self.samples - self.done, None, 3 * self.largest + self.bytes, x.device)
                known = True
        assert stack is not None
        return stack

    def _step(self, step: Any, x: Tensor) -> Tensor:
        kind = type(step)
        if kind is nn.Linear:  # Its parameters are found several times as fast as by its attributes.
            held = of_torch.own_parameters(step)
            return F.linear(x, held["weight"], held["bias"])  # type: ignore[arg-type]
        if kind is nn.ReLU:
            return torch.relu(x)
        if kind is nn.Dropout:
            return self._drop(x, step.p)
        if (
            x.ndim != _DIMENSIONS.get(kind, x.ndim)
            or (kind is nn.LayerNorm and x.ndim <= len(step.normalized_shape))
            or (kind is nn.BatchNorm1d and x.ndim > 3)
        ):
            raise ValueError(f"A {kind.__name__} takes {list(x.shape)} as something else than rows")
        if kind in _DROPOUT:
            return self._drop(x, step.p, _DROPOUT[kind])
        if kind is nn.TransformerEncoderLayer:
            return self._encoder_layer(step, x)
        if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
            statistics = step.running_mean, step.running_var
            return F.batch_norm(x, *statistics, step.weight, step.bias, False, 0.0, step.eps)
        return step.forward(x)  # type: ignore[no-any-return]

    def _drop(self, x: Tensor, p: float, features: bool = False) -> Tensor:
        if not p:
            return x
        if (
            self.count == self.samples
            and x.dtype is torch.float32
            and (done := self._at_once(x, p, features)) is not None
        ):
            return done
        shape = (self.inputs, *x.shape[1:2], *[1] * (x.ndim - 2)) if features else (self.inputs, *x.shape[1:])
        # As in `DropoutMode`: the first one scales its inputs, which all samples share, unless they are few.
        first = not self.site
        scaled = not first or self.count * x.numel() in FEW
        site = DropoutCall(shape, p, scaled, x.dtype, x.device)
        mask = self._masks(site)
        if first:
            x = x if scaled else x * (1 / site.kept)
            return (x * mask if features else mask.mul_(x)).flatten(0, 1)
        return x * mask.flatten(0, 1) if features else mask.view_as(x).mul_(x)

    def _at_once(self, x: Tensor, p: float, features: bool) -> Tensor | None:
        """Return the same by a kernel, if one is loaded and is for this case."""
        kernels = kernels_for_often(KERNELS)
        if kernels is None or type(x) is not Tensor or not (x.is_cpu and x.is_contiguous()) or x.is_neg():
            return None
        inner = prod(x.shape[2:]) if features else 1
        size, word = x.numel() // inner // (self.samples if self.site else 1), word_of(p)
        if not size or word[0] > 16 or is_rare(p, size):
            return None
        seed = seed_of(self.masks.seed, 1, self.site)
        self.site += 1
        return kernels.drop(x, seed, word, (self.samples, size, inner))  # type: ignore[no-any-return]

    def _masks(self, site: DropoutCall) -> Tensor:
        ready = self.ready.setdefault(self.site, [])
        if not ready:
            each = self.count * site.dtype.itemsize * prod(site.shape)
            count = min(self.samples - self.done, self.count * max(1, self.ahead // max(1, each)))
            masks = self.masks.draw(self.site, site, count)
            self.bytes += masks.nbytes
            ready += [masks] if count == self.count else reversed(torch.split(masks, self.count))
        self.site += 1
        return ready.pop()

    def _plus(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the inputs of a residual branch, which may be the same for all samples."""
        return x + y if len(x) == len(y) else (x + y.view(-1, self.inputs, *y.shape[1:])).flatten(0, 1)

    def _encoder_layer(self, layer: Any, x: Tensor) -> Tensor:
        if layer.norm_first:
            x = self._plus(x, self._attend(layer, layer.norm1.forward(x)))
            return self._plus(x, self._feed(layer, layer.norm2.forward(x)))
        x = layer.norm1.forward(self._plus(x, self._attend(layer, x)))
        x = layer.norm2.forward(self._plus(x, self._feed(layer, x)))
        return x

    def _attend(self, layer: Any, x: Tensor) -> Tensor:
        attention = layer.self_attn
        joint = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = joint.view(*x.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT * attention.head_dim**-0.5).softmax(-1)
        weights = self._drop(weights, attention.dropout)
        if len(weights) == len(value):
            x = weights @ value
        else:
            x = (weights.view(-1, self.inputs, *weights.shape[1:]) @ value).flatten(0, 1)
        x = F.linear(x.transpose(1, 2).flatten(2), attention.out_proj.weight, attention.out_proj.bias)
        return self._drop(x, layer.dropout1.p)

    def _feed(self, layer: Any, x: Tensor) -> Tensor:
        x = self._drop(layer.activation(layer.linear1.forward(x)), layer.dropout.p)
        return self._drop(layer.linear2.forward(x), layer.dropout2.p)
