"""Gal and Ghahramani 2016, section 4: samples of a network's function, by dropout at test time (MC dropout).

A pass with fresh masks is the function of weights drawn from the approximate posterior, y_t = f(x; W_t); the
predictive mean and variance are the moments over T such passes. What comes before the first dropout is the
same in all of them and is computed once; what follows is computed for many masks at a time.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from inspect import unwrap
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from pl_losses.papers.dropout.active import ActiveDropout
from pl_losses.papers.dropout.evaluation import call_module, copied, undisturbed
from pl_losses.papers.dropout.masks import Masks
from pl_losses.papers.dropout.masks import stream_seed as stream_seed
from pl_losses.papers.dropout.passes import Passes, why_not_many


def mc_samples(
    module: nn.Module,
    batch: Any,
    samples: int,
    chunk: int | None = None,
    seed: int | None = None,
    masks: Literal["independent", "shared"] = "independent",
    forward: Callable[[Any], Any] | None = None,
    train: Sequence[type[nn.Module] | str] = (),
) -> Any:
    """T stochastic passes with dropout on and everything else as in evaluation.

    Every kind of dropout is on: ``nn.Dropout`` and its relatives, dropout in attention, Transformer and
    recurrent layers, ``F.dropout(x, p, self.training)`` and its like. All else runs in eval, without
    gradients, and nothing is left behind: modes, running statistics, gradients and the global random streams
    (torch's, NumPy's, Python's) are afterwards as before, also after an exception.

    What comes before the first dropout is computed once. What follows is computed for many samples at a
    time, by ``torch.func.vmap``, where that is possible. It is not, and passes are made one by one, for a
    module that decides by values (``if x.sum() > 0``), writes into a new tensor, draws random numbers besides
    its dropout, changes what it holds (buffers, attributes), or is sharded over ranks. A message to the log
    says so once for each class of modules, with the reason. Forward hooks see many samples at once.

    Each dropout has a random stream of its own, made of ``seed`` and its place, from which sample after
    sample draws: the same seed gives the same bits on the same kind of device, 100 samples have the masks of
    the 50 that 50 would give, and ``chunk`` changes no mask. Sums over other sizes may be rounded differently
    in the last bits. p is kept to 0.2 % of min(p, 1 - p), and means are exact. Masks are not promised to be
    equal on different kinds of devices or in different releases.

    Args:
        module: Any module. Compiled ones run uncompiled here. A scripted or traced one may not hold dropout.
        batch: What ``module`` is called with: a tuple or list as positional arguments, a dict as keyword
            arguments, anything else, such as one tensor [B, ...], as it is. Each sample gets a copy.
        samples: T, the number of passes.
        chunk: At most this many samples are computed in one go, which bounds memory; ``None`` for as many as
            take about 16 MB on a CPU, 256 MB elsewhere. Ranks whose module itself communicates in its forward
            need 1.
        seed: Seed of the masks, at least 0. With ``None`` a new one is drawn from the operating system, never
            from a global stream.
        masks: "independent": a mask for each input. "shared": one draw of the function for all inputs of the
            batch, masks [1, ...] that depend neither on the batch's size nor on its content. Each input has
            the same law either way. Shared masks are for Dropout, Dropout1d, 2d and 3d on inputs with the
            batch first, which is recognised by its size alone: a first dimension that is as long by chance
            (B time steps before B inputs) is taken for the batch.
        forward: Called with the batch in place of the module, such as a method of it or what turns its
            outputs into probabilities.
        train: Classes, or their names, of parts that ask ``self.training`` before they drop anything
            (``dropout_p=self.p if self.training else 0.0``). Their own flag, not that of their children, is
            on during the passes.

    Returns:
        [T, B, ...], or the structure (tuple, list, dict) that the module returns, of such tensors. What is
        ``None`` in it stays so.

    Raises:
        TypeError: If ``module`` is no module or its output holds anything but tensors and ``None``.
        ValueError: If an argument is out of range, a scripted part of the module holds dropout, or the module
            has a dropout that cannot be shared.

    Warns:
        UserWarning: If no dropout with p > 0 was called, or a part seems to need ``train``.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Dropout(0.1), nn.Linear(50, 1))
        >>> samples = mc_samples(network, torch.zeros(8, 3), samples=100, seed=0)
        >>> samples.shape
        torch.Size([100, 8, 1])
        >>> torch.allclose(samples[:50], mc_samples(network, torch.zeros(8, 3), samples=50, seed=0))
        True
    """
    _refuse(module, samples, chunk, seed, masks)
    _refuse_unknown(module, train)
    seed = secrets.randbits(63) if seed is None else seed
    call = forward or (lambda inputs: call_module(module, inputs))
    shared_over = _batch_size(batch) if masks == "shared" else None

    def sample(reason: str) -> tuple[Any, ActiveDropout]:
        mode = ActiveDropout(Masks(seed), shared_over)
        with ExitStack() as stack:
            if not reason:
                # Tensors of inference mode do not count their changes.
                stack.enter_context(torch.inference_mode(False))
            devices = stack.enter_context(undisturbed(module, batch, train))
            stacks, structure = Passes(module, call, batch, mode, seed, devices).run(samples, chunk, reason)
        return tree_unflatten(stacks, structure), mode

    reason = why_not_many(module, batch)
    try:
        found, mode = sample(reason)
    except RuntimeError as error:
        if reason or not torch.is_inference_mode_enabled() or "inference tensor" not in str(error).lower():
            raise
        found, mode = sample("it changes tensors of inference mode")
    _warn(module, mode, train)
    return found


def find_dropout(
    module: nn.Module,
    batch: Any,
    forward: Callable[[Any], Any] | None = None,
    train: Sequence[type[nn.Module] | str] = (),
) -> ActiveDropout:
    """Make one pass to see whether :func:`mc_samples`, given the same arguments, would drop anything.

    Returns:
        What counted the dropouts, and has the ``reason`` if there are none.
    """
    mode = ActiveDropout(Masks(0))
    with undisturbed(module, batch, train), mode:
        (forward or (lambda inputs: call_module(module, inputs)))(copied(batch))
    return mode


def _batch_size(batch: Any) -> int:
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise ValueError(f"Expected `batch` to hold a tensor [B, ...] for `masks='shared'` but got {batch!r}")


def _refuse_unknown(module: nn.Module, train: Sequence[type[nn.Module] | str]) -> None:
    kinds = {type(part) for part in module.modules()}
    for wanted in train:
        if wanted not in kinds and wanted not in {kind.__name__ for kind in kinds}:
            raise ValueError(f"Expected `train` to name classes of parts of `module` but {wanted!r} is none")


def _refuse(module: nn.Module, samples: int, chunk: int | None, seed: int | None, masks: str) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"Expected `module` to be a torch.nn.Module but got {type(module).__name__}")
    for name, value, least in (("samples", samples, 1), ("chunk", chunk, 1), ("seed", seed, 0)):
        if value is None and name != "samples":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"Expected `{name}` to be an integer of at least {least} but got {value!r}")
    if masks not in ("independent", "shared"):
        raise ValueError(f"Expected `masks` to be 'independent' or 'shared' but got {masks!r}")
    for name, part in module.named_modules():
        graph = getattr(part, "inlined_graph", "") if isinstance(part, torch.jit.ScriptModule) else ""
        if "dropout" in str(graph):
            raise ValueError(
                f"Expected `module` to hold no dropout in scripted or traced parts but {name or 'it'} does:"
                " pass the module from before `torch.jit.script` or `torch.jit.trace`"
            )


def _warn(module: nn.Module, mode: ActiveDropout, train: Sequence[type[nn.Module] | str]) -> None:
    if mode.reason:
        warnings.warn(
            f"The samples of {type(module).__name__} do not differ by dropout: {mode.reason}", stacklevel=3
        )
        return
    for kind in {type(part) for part in module.modules()}:
        if kind not in train and kind.__name__ not in train and _asks_for_itself(kind):
            warnings.warn(
                f"{kind.__name__} seems to choose a dropout probability by `self.training`, which stays off:"
                f" pass `train=['{kind.__name__}']` to have that dropout too",
                stacklevel=3,
            )


def _asks_for_itself(kind: type[nn.Module]) -> bool:
    """Whether a forward reads ``training`` and passes on a probability, as to fused attention."""
    forward = getattr(kind, "forward", None)  # a scripted module's class has none
    code = getattr(unwrap(forward), "__code__", None) if forward else None
    if code is None or kind.__module__.startswith("torch.nn") or "training" not in code.co_names:
        return False
    keywords = {word for const in code.co_consts if isinstance(const, tuple) for word in const}
    return bool(keywords & {"dropout_p", "dropout"})
