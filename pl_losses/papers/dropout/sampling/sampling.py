"""Gal and Ghahramani 2016, section 4: samples of a network's function, by dropout at test time (MC dropout).

A pass with fresh masks is the function of weights drawn from the approximate posterior, y_t = f(x; W_t); the
predictive mean and variance are the moments over T such passes. The part before the first dropout is the same
in all passes and is computed once; the rest is computed for many masks at a time.
"""

from __future__ import annotations

import re
import secrets
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pl_losses.core.compat import of_torch
from pl_losses.core.compat.of_torch import TreeSpec
from pl_losses.core.validation import check_counts, in_words, typed
from pl_losses.papers.dropout.sampling.calls import Batch
from pl_losses.papers.dropout.sampling.dropout_mode import DropoutMode
from pl_losses.papers.dropout.sampling.isolation import (
    Contents,
    call_module,
    contents_of,
    copied,
    isolated_eval,
    tensors_in,
)
from pl_losses.papers.dropout.sampling.mask_sampler import MaskSampler
from pl_losses.papers.dropout.sampling.random_parts import ModeReads, Parts, random_parts
from pl_losses.papers.dropout.sampling.rows import in_rows
from pl_losses.papers.dropout.sampling.vectorized import VectorizedSampler, why_not_many

Train = Sequence[type[nn.Module] | str]


@typed
def mc_samples(
    module: nn.Module,
    batch: Batch,
    samples: int,
    *,
    chunk: int | None = None,
    seed: int | None = None,
    masks: Literal["independent", "shared"] = "independent",
    forward: Callable[[Batch], object] | None = None,
    train: Train | Parts | None = None,
) -> Any:
    """Run T passes with dropout on, and all other parts as in evaluation.

    All parts that are random in training are random here. These are all kinds of dropout: ``nn.Dropout`` and
    its variants, functions such as ``F.dropout(x, p, self.training)``, and dropout in attention, Transformer
    and recurrent layers. ``nn.RReLU`` is one of them too. So are parts that draw random numbers, or choose a
    probability, ``if self.training``: drop path (StochasticDepth, DropBlock), skipped layers, and noise. Such
    parts are found by trials: a part that reads ``self.training`` is run in both modes, and switched on if it
    is more random in training. A part that returns something else in training, or fails without targets,
    stays as in evaluation, and a warning says so. Flags other than ``training`` are not found. All other
    parts run in eval mode, without gradients. There are no side effects, even after an exception: modes,
    running statistics, gradients and random streams are as before. The streams are the global ones of torch,
    NumPy and Python. They are also the generators that are attributes of the module or its parts, or in a
    list, tuple or dict that is an attribute. A generator that is kept elsewhere is not restored.

    The part before the first dropout is computed once. The rest is computed for many samples at a time, by
    ``torch.func.vmap``. With some modules this is not possible. They decide by values (``if x.sum() > 0``),
    write into a new tensor, draw random numbers beside their dropout, change their buffers or attributes, or
    are sharded over ranks. Then each sample takes a whole pass. A log message says so once for each class of
    modules, with the reason. Forward hooks see many samples at once. Calls from several threads take turns,
    unless the module is made of torch's own layers. While one thread samples, no other may train.

    Each dropout has its own random stream, seeded by ``seed`` and its position. One sample after the other
    draws from it. The same seed gives the same bits on the same kind of device. The first 50 of 100 samples
    have the masks of 50 samples. ``chunk`` changes no mask. Sums over other sizes may be rounded differently
    in the last bits. p is kept to 0.2 % of min(p, 1 - p), and means are exact. Masks may differ between kinds
    of devices and between releases.

    Args:
        module: The module. Compiled ones run uncompiled here. A scripted or traced one must not hold dropout.
        batch: What ``module`` is called with: a tuple or list as positional arguments, a mapping as keyword
            arguments, anything else, such as one tensor [B, ...], as it is. Each sample gets a copy.
        samples: T, the number of passes.
        chunk: Largest number of samples computed at once, which bounds memory; ``None`` for as many as take
            about 16 MB on a CPU, 256 MB elsewhere. Ranks whose module itself communicates in its forward need
            1.
        seed: Seed of the masks, at least 0. With ``None`` a new one is drawn from the operating system, never
            from a global stream.
        masks: "independent": a mask for each input. "shared": one draw of the function for all inputs of the
            batch, masks [1, ...] that depend neither on the batch's size nor on its content. Each input has
            the same distribution either way. Shared masks are for Dropout, Dropout1d, 2d and 3d on inputs
            with the batch first. The batch dimension is known by its size alone. If a first dimension has
            this size by chance (B time steps before B inputs), it is taken for the batch.
        forward: Called with the batch instead of the module, such as a method of it or a function that turns
            its outputs into probabilities.
        train: Classes, or their names, of parts whose own flag ``training``, not that of their children, is
            on during the passes. With ``None`` the parts that are random in training are found. If parts ask
            for their mode, this takes about five more passes, or ten if some of them are not random. With an
            empty list only dropout functions are on.

    Returns:
        [T, B, ...], or the structure (tuple, list, dict) that the module returns, of such tensors. ``None``
        in it stays ``None``; mappings that torch does not know become dicts.

    Raises:
        TypeError: If ``module`` is no module or its output holds anything but tensors and ``None``.
        ValueError: If an argument is out of range, a scripted part of the module holds dropout, or the module
            has a dropout that cannot be shared.

    Warns:
        UserWarning: If the samples do not differ, with the reason, or lack randomness of training.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Dropout(0.1), nn.Linear(50, 1))
        >>> samples = mc_samples(network, torch.zeros(8, 3), samples=100, seed=0)
        >>> samples.shape
        torch.Size([100, 8, 1])
        >>> torch.allclose(samples[:50], mc_samples(network, torch.zeros(8, 3), samples=50, seed=0))
        True
    """
    check_counts(samples=samples, chunk=chunk)
    check_counts(0, seed=seed)
    seed = secrets.randbits(63) if seed is None else int(seed)  # NumPy's integers are written otherwise.
    if forward is None and not train and masks == "independent":
        stack = in_rows(module, batch, seed=seed, samples=samples, chunk=chunk)
        if stack is not None:
            return stack
    known = contents_of(module)
    _refuse_scripted(module, known)
    parts = _named(module, train)
    call = forward or (lambda inputs: call_module(module, inputs))
    shared_over = _batch_size(batch) if masks == "shared" else None

    def sample(reason: str) -> tuple[list[Tensor | None], TreeSpec, VectorizedSampler[Batch]]:
        mode = DropoutMode(MaskSampler(seed), shared_over)
        with ExitStack() as stack:
            if not reason:
                # Tensors of inference mode do not count their changes.
                stack.enter_context(torch.inference_mode(False))
            contents = contents_of(module) if reason else known
            isolated = isolated_eval(module, batch, parts.found if parts else (), contents)
            streams = stack.enter_context(isolated)
            passes = VectorizedSampler(
                module, call, batch, mode=mode, seed=seed, streams=streams, contents=contents, parts=parts
            )
            return *passes.run(samples, chunk, reason), passes

    reason = why_not_many(known, batch)
    try:
        stacks, structure, passes = sample(reason)
    except RuntimeError as error:
        if reason or not torch.is_inference_mode_enabled() or "inference tensor" not in str(error).lower():
            raise
        stacks, structure, passes = sample("it changes tensors of inference mode")
    if passes.mode.reason and not _differ(stacks, passes.drew):
        name = type(module).__name__
        warnings.warn(f"The samples of {name} do not differ by dropout: {passes.mode.reason}", stacklevel=3)
    elif passes.lacking:
        warnings.warn(
            f"The samples of {type(module).__name__} are less random than training: {passes.lacking}",
            stacklevel=3,
        )
    return of_torch.tree_unflatten(stacks, structure)


def _differ(stacks: list[Tensor | None], drew: bool) -> bool:
    """Return whether samples differ; for a single one, whether random numbers were drawn for it."""
    tensors = [stack for stack in stacks if stack is not None and stack.device.type != "meta"]
    if any(len(stack) < 2 for stack in tensors):
        return drew
    return any(not torch.equal(stack[:-1], stack[1:]) for stack in tensors)


@dataclass
class Found:
    """What a pass without dropout shows of a module.

    Attributes:
        output: The pass's output.
        random: Whether random numbers were drawn nevertheless, so that the output cannot be used.
        calls: Number of dropouts that were called.
        active: How many of them had p > 0.
        parts: Parts that are random in training in other ways.
        reason: Why samples would not differ; empty if they would.
        hopeless: Whether they never will, even if probabilities change.
    """

    output: Any
    random: bool
    calls: int
    active: int
    parts: Parts
    reason: str
    hopeless: bool


def find_dropout(
    module: nn.Module,
    batch: Batch,
    *,
    forward: Callable[[Batch], object] | None = None,
    train: Train | Parts | None = None,
) -> Found:
    """Make one pass without dropout, and find what :func:`mc_samples` would do.

    It is one pass, unless parts ask for their mode and ``train`` is ``None``.

    Args:
        module: As for :func:`mc_samples`, like all arguments.
        batch: The batch that it is called with.
        forward: Called instead of the module.
        train: Parts that are on in the samples.

    Raises:
        ValueError: If a scripted or traced part holds dropout, which cannot be switched.
    """
    contents = contents_of(module)
    _refuse_scripted(module, contents)
    call = forward or (lambda inputs: call_module(module, inputs))
    parts = _named(module, train)
    mode = DropoutMode(MaskSampler(0), on=False)
    with isolated_eval(module, batch, contents=contents) as streams:
        reads = ModeReads(module, contents)  # Here, as another thread may be watching the same classes.
        streams.start(0)
        if parts is None:
            mode.watcher = reads
            with reads.watching(), mode:
                output = call(copied(batch))
        else:
            with mode:
                output = call(copied(batch))
        random = not streams.untouched(0)
        if parts is None:
            parts = Parts([], False)
            if reads.parts:
                parts = random_parts(reads, lambda: call(copied(batch)), streams)
    mode.parts, mode.left = parts.found, parts.left
    reason = "" if random else mode.reason
    return Found(output, random, mode.calls, mode.active, parts, reason, not mode.calls and not reads.parts)


def without_dropout(
    module: nn.Module, batch: Batch, forward: Callable[[Batch], object] | None = None
) -> tuple[Any, bool]:
    """Make one pass in evaluation with every dropout off, also with ``training=True``.

    Args:
        module: The module.
        batch: The batch that it is called with, see :func:`mc_samples`.
        forward: Called instead of the module.

    Returns:
        The output, and whether random numbers were drawn nevertheless, so that it is one of many possible.
    """
    found = find_dropout(module, batch, forward=forward, train=())
    return found.output, found.random


def _batch_size(batch: object) -> int:
    for tensor in tensors_in(batch):
        if tensor.ndim:
            return len(tensor)
    raise ValueError(
        f"Expected `batch` to hold a tensor [B, ...] for `masks='shared'` but got {in_words(batch)}"
    )


def _named(module: nn.Module, train: Train | Parts | None) -> Parts | None:
    """Return the parts that ``train`` names."""
    if train is None or isinstance(train, Parts):
        return train
    parts = list(module.modules())
    for wanted in train:
        if not any(wanted in (type(part), type(part).__name__) for part in parts):
            raise ValueError(f"Expected `train` to name classes of parts of `module` but {wanted!r} is none")
    found = [part for part in parts if type(part) in train or type(part).__name__ in train]
    return Parts(found, False, "`train` names no part")


def _refuse_scripted(module: nn.Module, contents: Contents) -> None:
    if not any(issubclass(kind, torch.jit.ScriptModule) for kind in contents.kinds):
        return
    for name, part in module.named_modules():
        graph = getattr(part, "inlined_graph", "") if isinstance(part, torch.jit.ScriptModule) else ""
        if re.search(r"aten::\w*(dropout|bernoulli)", str(graph)):
            raise ValueError(
                f"Expected `module` to hold no dropout in scripted or traced parts but {name or 'it'} does:"
                " pass the module from before `torch.jit.script` or `torch.jit.trace`"
            )
