"""Passes of a module without side effects: modes, gradients and random streams stay as they are."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from itertools import islice
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pl_losses.core.compat import of_torch
from pl_losses.core.compat.of_torch import version as version
from pl_losses.core.rng import fold_in
from pl_losses.papers.dropout.sampling.calls import Batch

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random

_LOOKED_AT = 1000  # Elements of a collection: more are data, such as a vocabulary.
_ALONE = threading.RLock()
_EVERY_MODULE_HAS = nn.Module().__dict__.keys()


class Contents(NamedTuple):
    """What a module holds.

    Attributes:
        parts: The module and its parts.
        kinds: Their classes.
        registered: Their parameters and buffers.
        tensors: Tensors that are attributes.
        data: Attributes that are numbers, texts, lists, dicts and sets.
        drawing: Attributes that are random generators, or may have some in them.
    """

    parts: list[nn.Module]
    kinds: set[type[nn.Module]]
    registered: list[Tensor]
    tensors: list[Tensor]
    data: list[Any]
    drawing: list[Any]


class _Roles(dict[type, str]):
    """What values of a type are held for; several times as fast as to ask each value."""

    def __missing__(self, kind: type) -> str:
        self[kind] = role = self._of(kind)
        return role

    def _of(self, kind: type) -> str:
        if issubclass(kind, Tensor):
            return "tensor"
        if issubclass(kind, (int, float, str)):
            return "number"
        if issubclass(kind, (list, dict, set, tuple)):
            return "collection"
        generates = issubclass(kind, get_args(Generator)) and not issubclass(kind, random.SystemRandom)
        return "generator" if generates else ""


_roles = _Roles()


def contents_of(module: nn.Module) -> Contents:
    """List what a module holds, several times as fast as ``module.modules()`` does."""
    parts: dict[int, nn.Module] = {}
    registered: list[Tensor | None] = []
    attributes: dict[str, list[Any]] = {"tensor": [], "number": [], "collection": [], "generator": [], "": []}
    ahead = [module]
    while ahead:
        part = ahead.pop()
        if id(part) in parts:
            continue
        parts[id(part)] = part
        registered += of_torch.own_parameters(part).values()
        registered += of_torch.own_buffers(part).values()
        for name, value in part.__dict__.items():
            if name not in _EVERY_MODULE_HAS:
                attributes[_roles[type(value)]].append(value)
        if children := of_torch.own_children(part):
            ahead += [child for child in reversed(children.values()) if child is not None]
    collections = attributes["collection"]
    return Contents(
        list(parts.values()),
        set(map(type, parts.values())),
        [tensor for tensor in registered if tensor is not None],
        attributes["tensor"],
        attributes["number"] + [one for one in collections if not isinstance(one, tuple)],
        attributes["generator"] + collections,
    )


def state(contents: Contents) -> list[object]:
    """Return what passes may change of a module: numbers, tensors in place, what is in collections."""
    found: list[object] = []
    for tensor in (*contents.registered, *contents.tensors):
        found += (id(tensor), version(tensor))
    for value in contents.data:
        if _roles[type(value)] == "number":
            found.append(value)
            continue
        found += (id(value), len(value))
        for one in islice(value.values() if isinstance(value, dict) else value, _LOOKED_AT):
            role = _roles[type(one)]
            found.append(one if role == "number" else id(one))
            if role == "tensor":
                found.append(version(one))
    return found


def call_module(module: nn.Module, batch: object) -> object:
    """Call a module with positional arguments from a tuple or list, keyword arguments from a mapping."""
    if isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence):
        return module(*batch)
    return module(**batch) if isinstance(batch, Mapping) else module(batch)


def copied(batch: Batch) -> Batch:
    """Copy the tensors in a batch, for a pass that may work in place."""
    # For one tensor, tree_map takes ten times as long as the copy.
    found: Batch = (
        _copied_leaf(batch) if isinstance(batch, Tensor) else of_torch.tree_map(_copied_leaf, batch)
    )
    return found


def _copied_leaf(leaf: object) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.clone()
    if isinstance(leaf, MutableMapping):  # one of its own kind, such as a tokenizer's BatchEncoding
        found = copy(leaf)
        for key, value in leaf.items():
            found[key] = copied(value)
        return found
    return leaf


def as_dict(value: object) -> object:
    """Convert mappings of all kinds to dicts, also those within tuples, lists and mappings."""
    if isinstance(value, Mapping):
        return {key: as_dict(item) for key, item in value.items()}
    if type(value) is tuple:
        return tuple(as_dict(item) for item in value)
    if type(value) is list:
        return [as_dict(item) for item in value]
    return value


def tensors_in(batch: object) -> list[Tensor]:
    """List the tensors of a batch, in their order."""
    return [leaf for leaf in of_torch.tree_leaves(as_dict(batch)) if isinstance(leaf, Tensor)]


class Streams:
    """The random streams that a module may draw from: the global ones and those that it holds.

    The global ones are torch's, also on the accelerators of module and batch, NumPy's and Python's. A module
    holds generators of these three kinds as attributes of its parts, or in a list, tuple or dict that is an
    attribute.

    Args:
        contents: What the module holds that may draw.
        batch: The batch that it is called with.
    """

    def __init__(self, contents: Contents, batch: object) -> None:
        self.devices = _accelerators(contents, batch)
        self._held = list({id(one): one for one in _generators(contents.drawing)}.values())

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore all streams after this context to their state before it."""
        python, numpy = random.getstate(), np.random.get_state()
        held = [_state(one) for one in self._held]
        kind = self.devices[0].type if self.devices else "cuda"
        try:
            with torch.random.fork_rng(self.devices, device_type=kind):
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for one, before in zip(self._held, held, strict=True):
                _set_state(one, before)

    def start(self, seed: int) -> None:
        """Seed all of them; those that the module holds differently, so that they are independent."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        for device in self.devices:
            # `torch.manual_seed` would also touch devices whose streams are not restored.
            backend = torch.get_device_module(device)
            generators = getattr(backend, "default_generators", ())
            (generators[device.index or 0] if generators else backend).manual_seed(seed)
        for place, one in enumerate(self._held):
            _seed(one, fold_in(seed, 2, place))

    def untouched(self, seed: int) -> bool:
        """Return whether nothing was drawn since :meth:`start`, to which it resets them."""
        after = self.after()
        self.start(seed)
        return self.after() == after

    def after(self) -> list[float | bytes]:
        """Return numbers that show the streams' states; this draws from some of them."""
        states = [torch.get_rng_state()]
        states += [torch.get_device_module(one).get_rng_state(one) for one in self.devices]
        # A number is as good as the whole state, which NumPy takes long to return.
        numbers = [random.random(), np.random.random_sample(), *(_number(one) for one in self._held)]
        return [*numbers, *(state.numpy().tobytes() for state in states)]


def _generators(drawing: list[Any]) -> Iterator[Generator]:
    for value in drawing:
        inner: Iterable[object] = ()
        if isinstance(value, dict):
            inner = value.values()
        elif type(value) is list or type(value) is tuple:
            inner = value
        for one in (value, *inner):
            if _roles[type(one)] == "generator":
                yield one


def _state(generator: Generator) -> object:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _seed(generator: Generator, seed: int) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    elif isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    else:
        generator.seed(seed if isinstance(generator, random.Random) else seed % 2**32)


def _number(generator: Generator) -> float | bytes:
    """Return a value that shows a generator's state; it may be drawn."""
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    return generator.random()


@contextmanager
def isolated_eval(
    module: nn.Module, batch: object, train: Sequence[nn.Module] = (), contents: Contents | None = None
) -> Iterator[Streams]:
    """Evaluate a module here without side effects: eval mode, no gradients, own random streams.

    One thread at a time: modes and random streams are those of all.

    Args:
        module: The module to evaluate.
        batch: The batch that it is called with.
        train: Parts whose own flag is on nevertheless.
        contents: What the module holds, if that is known.

    Yields:
        The random streams, to be started.
    """
    contents = contents or contents_of(module)
    parts = contents.parts
    with ExitStack() as stack:
        stack.enter_context(_ALONE)
        flags = [part.training for part in parts]
        streams = Streams(contents, batch)
        # Not inference mode: parts may need gradients inside, and samples may be used in a loss.
        stack.enter_context(torch.no_grad())
        stack.enter_context(streams.restored())
        if of_torch.may_be_compiled():
            # Compiled code has no dropout any more.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            on = set(map(id, train))
            _set_modes(parts, [id(part) in on for part in parts])
            yield streams
        finally:
            _set_modes(parts, flags)


def _set_modes(parts: Iterable[nn.Module], flags: Iterable[bool]) -> None:
    for part, flag in zip(parts, flags, strict=True):
        if part.training is not flag:  # To set an attribute of a module takes far longer than to read it.
            part.training = flag


def _accelerators(contents: Contents, batch: object) -> list[torch.device]:
    if not torch.accelerator.is_available():
        return []
    tensors = (*contents.registered, *tensors_in(batch))
    found = {tensor.device for tensor in tensors}
    return sorted((device for device in found if device.type not in ("cpu", "meta")), key=str)
