"""Gal and Ghahramani 2016, section 4: samples of a network's function, by dropout at test time (MC dropout).

A pass with fresh masks is the function of weights drawn from the approximate posterior, y_t = f(x; W_t); the
predictive mean and variance are the moments over T such passes.
"""

from __future__ import annotations

import random
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from inspect import unwrap
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

Place = tuple[int, str]

# Where each function has its drop probability, and where the flag that turns dropout on.
_SITES: dict[Any, tuple[Place, Place]] = {
    **dict.fromkeys(
        (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
        ((1, "p"), (2, "training")),
    ),
    **dict.fromkeys(
        (
            *(torch.dropout, torch.dropout_, torch.native_dropout),
            *(torch.feature_dropout, torch.feature_dropout_),
            *(torch.alpha_dropout, torch.alpha_dropout_),
            *(torch.feature_alpha_dropout, torch.feature_alpha_dropout_),
        ),
        ((1, "p"), (2, "train")),
    ),
    F.multi_head_attention_forward: ((10, "dropout_p"), (13, "training")),
}
_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_SHAREABLE = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


class ActiveDropout(TorchFunctionMode):
    """While it is entered, every dropout is on, whatever ``training`` says; nothing else changes its mode.

    Modules and functions both end in a few torch functions that take p and a training flag. Switching that
    flag on there reaches all of them and leaves the modules in eval: BatchNorm never sees training mode, and
    the fused inference kernels of attention and Transformer layers, which have no dropout, step aside.

    Args:
        shared_over: The batch size B, to draw each mask once for all inputs; ``None`` for a mask per input.

    Attributes:
        calls: How many dropouts were called.
        active: How many of them had p > 0.
    """

    def __init__(self, shared_over: int | None = None) -> None:
        super().__init__()
        self.shared_over = shared_over
        self.calls = self.active = 0

    @property
    def reason(self) -> str:
        """Why the passes do not differ; empty if they do."""
        if self.active:
            return ""
        if self.calls:
            return "every dropout that it calls has p = 0"
        return (
            "it calls no dropout, or asks `self.training` before it calls one (then name the class of that"
            " part in `train`)"
        )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, with its dropout switched on if it has one."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            # It has no flag, only a probability: 0 is what those pass who are not to drop anything.
            if p := _get((4, "dropout_p"), args, kwargs, 0.0):
                self._count(func, p)
        elif func in _RECURRENT:
            packed = not isinstance(args[3], bool)
            p = args[5 + packed] if args[4 + packed] > 1 else 0.0  # between layers
            self._count(func, p)
            if p:
                args, kwargs = _switched_on((6 + packed, "train"), args, kwargs)
                # cuDNN's masks come from a state of its own, which cannot be seeded, saved or restored.
                with torch.backends.cudnn.flags(enabled=False):
                    return func(*args, **kwargs)
        elif places := _SITES.get(func):
            p = _get(places[0], args, kwargs, 0.5)
            self._count(func, p)
            args, kwargs = _switched_on(places[1], args, kwargs)
            if self.shared_over is not None and p:
                return self._share(func, args[0], kwargs | {"p": p})
        return func(*args, **kwargs)

    def _count(self, func: Any, p: float) -> None:
        self.calls += 1
        self.active += p > 0
        if p and self.shared_over is not None and func not in _SHAREABLE:
            raise ValueError(
                "Expected `masks` to be 'independent' for a module that drops within"
                f" `{func.__name__}` but got 'shared', which is there for Dropout and Dropout1d, 2d and 3d"
            )

    def _share(self, func: Any, inputs: Tensor, options: dict[str, Any]) -> Tensor:
        if inputs.ndim == 0 or len(inputs) != self.shared_over:
            raise ValueError(
                "Expected every dropout's input to have the batch first for `masks='shared'`, a shape of"
                f" [{self.shared_over}, ...], but got {list(inputs.shape)}"
            )
        inplace = options.pop("inplace", False)
        mask = func(torch.ones_like(inputs[:1]), **options)
        return inputs.mul_(mask) if inplace else inputs * mask


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

    Sample t has a random stream of its own, made of ``seed`` and t: the same seed gives the same bits on the
    same kind of device, 100 samples begin with the 50 that 50 would give, and ``chunk`` changes nothing.
    Masks are not promised to be equal on different kinds of devices or in different releases.

    Args:
        module: Any module. Compiled ones run uncompiled here. A scripted or traced one may not hold dropout.
        batch: What ``module`` is called with: a tuple or list as positional arguments, a dict as keyword
            arguments, anything else, such as one tensor [B, ...], as it is. Each sample gets a copy.
        samples: T, the number of passes.
        chunk: At most this many samples are computed in one go, which bounds memory; ``None`` for the
            default. This release always computes one at a time.
        seed: Seed of the masks, at least 0. With ``None`` a new one is drawn from the operating system, never
            from a global stream.
        masks: "independent": a mask for each input. "shared": one draw of the function for all inputs of the
            batch, masks [1, ...] that depend neither on the batch's size nor on its content. Each input has
            the same law either way. Shared masks are for Dropout, Dropout1d, 2d and 3d on inputs with the
            batch first.
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
        >>> torch.equal(samples[:50], mc_samples(network, torch.zeros(8, 3), samples=50, seed=0))
        True
    """
    _refuse(module, samples, chunk, seed, masks)
    _refuse_unknown(module, train)
    call = forward or (lambda inputs: call_module(module, inputs))
    mode = ActiveDropout(_batch_size(batch) if masks == "shared" else None)
    seed = secrets.randbits(63) if seed is None else seed
    stacks: list[Tensor | None] = []
    with undisturbed(module, batch, train) as devices:
        for index in range(samples):
            _start_streams(stream_seed(seed, index), devices)
            with mode:
                output = call(copied(batch))
            leaves, structure = tree_flatten(output)
            stacks = stacks or [_room(leaf, samples) for leaf in leaves]
            for stack, leaf in zip(stacks, leaves, strict=True):
                if stack is not None:
                    stack[index] = leaf
    _warn(module, mode, train)
    return tree_unflatten(stacks, structure)


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
    mode = ActiveDropout()
    with undisturbed(module, batch, train), mode:
        (forward or (lambda inputs: call_module(module, inputs)))(copied(batch))
    return mode


def call_module(module: nn.Module, batch: Any) -> Any:
    """Call a module with positional arguments from a tuple or list, keyword arguments from a dict."""
    if isinstance(batch, (tuple, list)):
        return module(*batch)
    return module(**batch) if isinstance(batch, dict) else module(batch)


def copied(batch: Any) -> Any:
    """A copy of the tensors in a batch, for a pass that may work in place."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)


def stream_seed(seed: int, *key: int) -> int:
    """The seed of one of the streams that belong to ``seed``.

    >>> stream_seed(0, 1) == stream_seed(0, 1), stream_seed(0, 1) == stream_seed(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


@contextmanager
def undisturbed(
    module: nn.Module, batch: Any, train: Sequence[type[nn.Module] | str] = ()
) -> Iterator[list[torch.device]]:
    """Evaluate a module here and leave no trace: eval mode, no gradients, random streams of its own.

    Yields:
        The accelerators that module and batch are on.
    """
    parts = list(module.modules())
    flags = [part.training for part in parts]
    devices = _accelerators(module, batch)
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        # Not inference mode: parts may want gradients within, and the samples be used in a loss.
        stack.enter_context(torch.no_grad())
        kind = devices[0].type if devices else "cuda"
        stack.enter_context(torch.random.fork_rng(devices, device_type=kind))
        if "torch._dynamo" in sys.modules:
            # Compiled code has dropout compiled out.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for part in parts:
                part.training = type(part) in train or type(part).__name__ in train
            yield devices
        finally:
            for part, flag in zip(parts, flags, strict=True):
                part.training = flag
            random.setstate(python)
            np.random.set_state(numpy)


def _accelerators(module: nn.Module, batch: Any) -> list[torch.device]:
    if not torch.accelerator.is_available():
        return []
    tensors = (*module.parameters(), *module.buffers(), *tree_leaves(batch))
    found = {tensor.device for tensor in tensors if isinstance(tensor, Tensor)}
    return sorted((device for device in found if device.type not in ("cpu", "meta")), key=str)


def _start_streams(seed: int, devices: list[torch.device]) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    for device in devices:
        # `torch.manual_seed` would also touch devices whose streams are not restored.
        backend = torch.get_device_module(device)
        generators = getattr(backend, "default_generators", ())
        (generators[device.index or 0] if generators else backend).manual_seed(seed)


def _get(place: Place, args: tuple[Any, ...], kwargs: dict[str, Any], default: float) -> Any:
    position, name = place
    return args[position] if len(args) > position else kwargs.get(name, default)


def _switched_on(
    place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    position, name = place
    if len(args) > position:
        return (*args[:position], True, *args[position + 1 :]), kwargs
    return args, kwargs | {name: True}


def _room(leaf: Any, samples: int) -> Tensor | None:
    if leaf is None or isinstance(leaf, Tensor):
        return None if leaf is None else leaf.new_empty((samples, *leaf.shape))
    raise TypeError(
        "Expected the module's output to be a tensor, or a tuple, list or dict of tensors, but got a"
        f" {type(leaf).__name__} in it: pass a `forward` that returns tensors"
    )


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
