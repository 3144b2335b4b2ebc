"""A mode in which all dropout is on, whatever ``training`` says, with masks from streams of its own."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pl_losses.core.compat import of_torch
from pl_losses.papers.dropout.sampling.calls import Args, Function, Kwargs
from pl_losses.papers.dropout.sampling.linear_fusion import LinearFusion
from pl_losses.papers.dropout.sampling.mask_sampler import DropoutCall, MaskSampler
from pl_losses.papers.dropout.sampling.prefix_trace import PLAIN, PrefixDiffersError, PrefixTrace
from pl_losses.papers.dropout.sampling.rnn import (
    RECURRENT,
    between_layers,
    in_evaluation,
    in_one_call,
    layered,
)


class _Kind(NamedTuple):
    flag: str
    features: bool = False
    alpha: bool = False
    inplace: bool = False
    with_mask: bool = False  # Whether it returns its mask, too.


_KINDS: dict[Function, _Kind] = {
    F.dropout: _Kind("training"),
    F.dropout1d: _Kind("training", features=True),
    F.dropout2d: _Kind("training", features=True),
    F.dropout3d: _Kind("training", features=True),
    F.alpha_dropout: _Kind("training", alpha=True),
    F.feature_alpha_dropout: _Kind("training", features=True, alpha=True),
    torch.dropout: _Kind("train"),
    torch.dropout_: _Kind("train", inplace=True),
    torch.native_dropout: _Kind("train", with_mask=True),
    torch.feature_dropout: _Kind("train", features=True),
    torch.feature_dropout_: _Kind("train", features=True, inplace=True),
    torch.alpha_dropout: _Kind("train", alpha=True),
    torch.alpha_dropout_: _Kind("train", alpha=True, inplace=True),
    torch.feature_alpha_dropout: _Kind("train", features=True, alpha=True),
    torch.feature_alpha_dropout_: _Kind("train", features=True, alpha=True, inplace=True),
}
# Functions as called from `torch.ops`, with an overload or without.
for _func, _kind in [one for one in _KINDS.items() if one[1].flag == "train"]:
    _packet = getattr(torch.ops.aten, _func.__name__)
    _KINDS |= {_packet: _kind, _packet.default: _kind}
# Functions with noise by their argument, like dropout, but from the global random streams.
_NOISE = (F.rrelu, torch.rrelu, torch.rrelu_)
# Functions whose training flag is set here, whatever their caller passes.
KNOWN = {*_KINDS, *_NOISE, F.multi_head_attention_forward, F.batch_norm, *RECURRENT}
_SEEN = {*KNOWN, F.scaled_dot_product_attention, of_torch.set_grad_enabled}
_SHAREABLE = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
# Functions for which an input with one dimension less is one without a batch.
_BATCHED_DIMENSIONS = {F.dropout1d: 3, F.dropout3d: 5}
_ALPHA = -1.7580993408473766  # what SELU tends to, Klambauer et al. 2017


class Watcher(Protocol):
    """Gets notice of every call of a torch function."""

    def called(self, func: Function, args: Args, kwargs: Kwargs) -> None:
        """Note that a function is about to be called."""


class DropoutMode(TorchFunctionMode):
    """Switches every dropout on, or off, within its context, whatever ``training`` says, and nothing else.

    Modules and functions both end in a few torch functions that take p and a training flag. Overriding these
    functions reaches all dropout and leaves the modules in eval mode. BatchNorm never sees training mode, and
    attention and Transformer layers do not use their fused inference kernels, which have no dropout.

    Args:
        masks: Source of the masks.
        shared_over: The batch size B, to draw each mask once for all inputs; ``None`` for a mask per input.
        on: Whether dropout is on or, instead, off.

    Attributes:
        calls: Number of dropouts that were called in the last pass.
        active: How many of them had p > 0.
        sites: What the dropouts draw whose masks came from ``masks``.
        watcher: Gets notice of each call, to tell which parts read their mode.
        parts: Parts that are on, because they are random in training in another way.
        left: Why other parts are not on, as the end of a sentence.
        largest: Bytes of the largest result since the first dropout.
    """

    def __init__(self, masks: MaskSampler, shared_over: int | None = None, on: bool = True) -> None:
        super().__init__()
        self.masks, self.shared_over, self.on = masks, shared_over, on
        self.watcher: Watcher | None = None
        self.parts: list[nn.Module] = []
        self.left = ""
        self.folding = LinearFusion()
        self.begin()

    def begin(
        self, prefix: PrefixTrace | None = None, drawn: Sequence[tuple[DropoutCall, Tensor]] | None = None
    ) -> None:
        """Prepare for a pass.

        Args:
            prefix: Records the pass up to its first dropout, or replays an earlier one.
            drawn: Where each site drops, if this pass is for many samples under ``torch.func.vmap``. The
                masks may be overwritten.
        """
        self.calls = self.active = self.largest = 0
        self.sites: list[DropoutCall] = []
        self.prefix, self.drawn = prefix, drawn
        # Until the first dropout all samples are the same: nothing else is to be seen if nothing is recorded.
        self.plain = self.watcher is None and prefix is None and drawn is not None
        self.folding.begin()

    @property
    def reason(self) -> str:
        """Why the passes do not differ by dropout; empty if they do."""
        if self.active or self.parts:
            return ""
        called = "every dropout that it calls has p = 0" if self.calls else "it calls no dropout"
        return f"{called}, and {self.left}" if self.left else called

    def __torch_function__(
        self, func: Function, types: Sequence[type], args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        """Call the function, with its dropout switched on if it has one."""
        kwargs = kwargs or {}
        if self.plain and func not in _SEEN:
            return func(*args, **kwargs)
        if self.watcher is not None:
            self.watcher.called(func, args, kwargs)
        if self.shared_over is not None and self.drawn is None:
            self.folding.on_call(func, args, kwargs)
        # p is the probability to drop. A function that is no dropout, or is called as none, leaves here.
        if func in _KINDS:
            p = _get(1, "p", args, kwargs, 0.5)
        elif func is F.scaled_dot_product_attention:
            # It has no flag, only a probability: callers that do not want dropout pass 0.
            p = _get(4, "dropout_p", args, kwargs, 0.0) or None
        elif func is F.multi_head_attention_forward:
            p = _get(10, "dropout_p", args, kwargs, 0.0)
        elif func in RECURRENT:
            p = between_layers(args)
        elif func in _NOISE:
            p = 1.0
        else:
            return self._undropped(func, args, kwargs)
        if p is None:
            return self._undropped(func, args, kwargs)
        if not p:  # Its result is the same in all passes: it belongs to the prefix.
            self.calls += 1
            return self._undropped(func, args, kwargs)
        vmapped = self.drawn is None and within_vmap(func)
        if not self.on:
            self.calls, self.active = self.calls + 1, self.active + 1
            return _off(func, args, kwargs)
        if self.shared_over is not None and (vmapped or func not in _SHAREABLE):
            place = "torch.vmap" if vmapped else func.__name__
            raise ValueError(
                f"Expected `masks` to be 'independent' for a module that drops within `{place}` but got"
                " 'shared', which is there for Dropout and Dropout1d, 2d and 3d"
            )
        if func in _KINDS:
            return self._drop(func, args, kwargs, p, vmapped)
        if func in _NOISE:
            self._first_reached()
            args, kwargs = _switched(3, "training", True, args, kwargs)
            return func(*args, **kwargs)
        # The others call functions that come here again.
        with self:
            if func is F.scaled_dot_product_attention:
                return attention(*args, **kwargs)
            if func is F.multi_head_attention_forward:
                args, kwargs = _switched(13, "training", True, args, kwargs)
                return _multi_head_attention(*args, **kwargs)
            return layered(func, args)

    def _undropped(self, func: Function, args: Args, kwargs: Kwargs) -> object:
        if func is of_torch.set_grad_enabled:
            return func(*args, **kwargs)
        if func is F.batch_norm and _get(1, "running_mean", args, kwargs, None) is not None:
            # It uses its running statistics, also in a part whose own flag is on.
            args, kwargs = _switched(5, "training", False, args, kwargs)
        if self.prefix is not None and not self.active:  # Before the first dropout.
            return (self.prefix.replay if self.prefix.over else self.prefix.record)(func, args, kwargs)
        if self.drawn is not None and self.active:  # For many samples at a time; vmap does the rest.
            if func in RECURRENT:
                return in_one_call(func, args)
            folded = self.folding.linear(func, args, kwargs)
            return func(*args, **kwargs) if folded is None else folded
        output = func(*args, **kwargs)
        if self.active:
            self._measure(output)
        return output

    def _measure(self, output: object) -> None:
        for leaf in [output] if isinstance(output, Tensor) else of_torch.tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.numel() * leaf.element_size())

    def _drop(self, func: Function, args: Args, kwargs: Kwargs, p: float, vmapped: bool) -> object:
        kind = _KINDS[func]
        self._first_reached()
        inputs = args[0] if args else kwargs["input"]
        if self.shared_over is not None and (inputs.ndim == 0 or len(inputs) != self.shared_over):
            raise ValueError(
                "Expected every dropout's input to have the batch first for `masks='shared'`, a shape of"
                f" [{self.shared_over}, ...], but got {list(inputs.shape)}"
            )
        floating = type(inputs) in PLAIN and inputs.is_floating_point()
        if vmapped or not (floating and 0.0 <= p <= 1.0 and inputs.ndim > kind.features):
            # The function itself refuses this; or vmap or a tensor subclass handles it, with global masks.
            args, kwargs = _switched(2, kind.flag, True, args, kwargs)
            return func(*args, **kwargs)
        if kind.features and self.drawn is None:
            args, kwargs = _switched(2, kind.flag, False, args, kwargs)
            func(*args, **kwargs)  # for what it says about shapes
        index, site = len(self.sites), self._site(func, kind, inputs, float(p))
        mask = self._mask(index, site)
        inplace = kind.inplace or bool(_get(3, "inplace", args, kwargs, False) and kind.flag == "training")
        if not site.scaled and not kind.alpha and site.kept:
            inputs = inputs.mul_(1 / site.kept) if inplace else inputs * (1 / site.kept)
        if kind.with_mask:
            return inputs * mask, mask != 0
        # A mask that all inputs share may be left to the linear layer that follows, see `LinearFusion`.
        folds = func is F.dropout and self.shared_over is not None and inputs.ndim == 2 and not inplace
        if self.drawn is not None:
            if folds and index in self.folding.found:
                return self.folding.placeholder(index, inputs, mask)
            return _masked(inputs, mask, site, kind.alpha, inplace)
        output = _masked(inputs, mask, site, kind.alpha, inplace)
        if folds:
            self.folding.watch(index, output)
        else:
            self._measure(output)
        return output

    def _first_reached(self) -> None:
        """Count a dropout; the first one ends the part that all passes have in common."""
        self.calls += 1
        self.plain = False
        if not self.active and self.prefix is not None:
            (self.prefix.finish if self.prefix.over else self.prefix.freeze)()
        self.active += 1

    def _site(self, func: Function, kind: _Kind, inputs: Tensor, p: float) -> DropoutCall:
        shape = list(inputs.shape)
        if kind.features:
            leading = 1 if _BATCHED_DIMENSIONS.get(func) == inputs.ndim + 1 else 2
            shape[leading:] = [1] * (inputs.ndim - leading)
        if self.shared_over is not None:
            shape[0] = 1
        # The first dropout has the same inputs for all samples: scaling them is less work than scaling masks.
        scaled = bool(self.sites) and not kind.alpha
        return DropoutCall(tuple(shape), p, scaled, inputs.dtype, inputs.device)

    def _mask(self, index: int, site: DropoutCall) -> Tensor:
        self.sites.append(site)
        if self.drawn is None:
            return self.masks.draw(index, site, 1)[0]
        if index >= len(self.drawn) or site != self.drawn[index][0]:
            raise PrefixDiffersError("it does not always call the same dropouts")
        return self.drawn[index][1]


def within_vmap(func: Function) -> bool:
    """Return whether a function that drops is called within a ``torch.vmap`` of the module's own.

    Raises:
        ValueError: If that vmap refuses random numbers: the module could not be trained, either.
    """
    vmaps = of_torch.vmap_randomness()
    if "error" in vmaps:
        raise ValueError(
            f"Expected `randomness` of the torch.vmap around `{func.__name__}` to be 'different' or 'same'"
            " but got 'error', with which the module fails in training, too"
        )
    return bool(vmaps)


def _off(func: Function, args: Args, kwargs: Kwargs) -> object:
    """Return the result in evaluation of a function that drops."""
    if func is F.scaled_dot_product_attention:
        args, kwargs = _switched(4, "dropout_p", 0.0, args, kwargs)
    elif func is F.multi_head_attention_forward:
        args, kwargs = _switched(13, "training", False, args, kwargs)
    elif func in RECURRENT:
        args, kwargs = in_evaluation(args), kwargs
    elif func in _NOISE:
        args, kwargs = _switched(3, "training", False, args, kwargs)
    else:
        args, kwargs = _switched(2, _KINDS[func].flag, False, args, kwargs)
    return func(*args, **kwargs)


def _masked(inputs: Tensor, mask: Tensor, site: DropoutCall, alpha: bool, inplace: bool) -> Tensor:
    if not alpha:
        if inplace:
            return inputs.mul_(mask)
        return mask.mul_(inputs) if mask.shape == inputs.shape else inputs * mask
    if not site.kept:
        output = inputs * 0
    else:
        # Dropped units become alpha; a and b give back mean and variance.
        a = 1 / sqrt((_ALPHA**2 * (1 - site.kept) + 1) * site.kept)
        b = -a * _ALPHA * (1 - site.kept)
        output = torch.addcmul(mask * (-a * _ALPHA) + (a * _ALPHA + b), inputs, mask, value=a)
    return inputs.copy_(output) if inplace else output


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute ``F.scaled_dot_product_attention`` step by step, with ``F.dropout`` on the weights."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, dim=-3), value.repeat_interleave(groups, dim=-3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(dim=-1)
    if attn_mask is not None:
        # A query that may attend to nothing gets 0.
        weights = weights.masked_fill((scores == -torch.inf).all(dim=-1, keepdim=True), 0.0)
    return F.dropout(weights, dropout_p) @ value


# The function itself, without its first lines, which would hand it to the mode again as a whole.
_multi_head_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda tensors: False},
    "multi_head_attention_forward",
    F.multi_head_attention_forward.__defaults__,
)


def _get(position: int, name: str, args: Args, kwargs: Kwargs, default: float | None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _switched(position: int, name: str, flag: float, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    if len(args) > position:
        return (*args[:position], flag, *args[position + 1 :]), kwargs
    return args, kwargs | {name: flag}
