"""Which parts of a module are random in training only, found out by what they do when they are told so.

Dropout functions are switched by their arguments, see :mod:`~pl_losses.papers.dropout.active`. What is left
are parts that draw random numbers of their own, or choose a probability, ``if self.training``: drop path,
layers that are skipped, noise. A pass shows which parts are asked for their mode; each of these then runs,
alone and on the inputs that it gets, in both modes.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function
from torch.utils._pytree import tree_flatten, tree_leaves

from pl_losses.papers.dropout.active import KNOWN, ActiveDropout
from pl_losses.papers.dropout.evaluation import after_streams, copied, start_streams, version
from pl_losses.papers.dropout.masks import Masks

_GO_BETWEENS = {handle_torch_function.__code__}


class Asked:
    """Watches which parts of a module are asked for ``training``.

    A flag that goes straight to a function that :class:`~pl_losses.papers.dropout.active.ActiveDropout`
    switches by itself, as in ``F.dropout(x, p, self.training)``, is none of them.

    Args:
        module: Whose parts, but for those of torch's own, which leave dropout to such functions.
    """

    def __init__(self, module: nn.Module) -> None:
        kinds = {type(part) for part in module.modules()}
        # One that has `training` itself, such as a scripted module, is left alone.
        self.kinds = [kind for kind in kinds if not _is_torchs(kind) and not hasattr(kind, "training")]
        self.parts: dict[int, nn.Module] = {}
        self._own = {id(part) for part in module.modules()} if self.kinds else set()
        self._last: tuple[nn.Module, FrameType] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within, reading ``training`` is noticed."""
        flag = _Flag(self)
        try:
            for kind in self.kinds:
                kind.training = flag  # type: ignore[assignment]
            yield
        finally:
            for kind in self.kinds:
                with suppress(AttributeError):
                    del kind.training
            self._settle()

    def read(self, part: nn.Module, reader: FrameType) -> None:
        """A part is asked."""
        self._settle()
        if id(part) not in self._own or part.__dict__["training"]:
            return
        if _is_passed_on(reader.f_code, reader.f_lasti):
            self._last = part, reader
        else:
            self.parts[id(part)] = part

    def called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A torch function is called, by the caller of the caller of this method."""
        if self._last is None:
            return
        frame: FrameType | None = sys._getframe(2)
        between = {*_GO_BETWEENS, getattr(func, "__code__", None)}
        while frame is not None and frame.f_code in between:
            frame = frame.f_back
        flag = kwargs.get("training", kwargs.get("train"))
        off = any(one is False for one in args) if flag is None else flag is False
        if off and func in KNOWN and frame is self._last[1]:
            self._last = None
        self._settle()

    def _settle(self) -> None:
        if self._last is not None:
            self.parts[id(self._last[0])] = self._last[0]
            self._last = None


class _Flag:
    """``training`` of a class whose instances are watched."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def __get__(self, part: nn.Module | None, kind: type[nn.Module]) -> Any:
        if part is None:
            raise AttributeError("training")
        self.asked.read(part, sys._getframe(1))
        return part.__dict__["training"]

    def __set__(self, part: nn.Module, value: Any) -> None:
        part.__dict__["training"] = value


def _is_torchs(kind: type) -> bool:
    """Whether a class and all that it inherits from are torch's own."""
    return all(base.__module__.startswith("torch.") for base in kind.__mro__[:-1])


@cache
def _is_passed_on(code: CodeType, position: int) -> bool:
    """Whether an attribute that is loaded there becomes an argument of a call, not a condition or a name."""
    after = (step.opname for step in dis.get_instructions(code) if step.offset > position)
    for name in after:
        if name.startswith(("CALL", "PRECALL")):
            return True
        if not name.startswith(("CACHE", "LOAD", "KW_NAMES", "PUSH_NULL")):
            return False
    return False


class Parts(NamedTuple):
    """Parts that are random in training.

    Attributes:
        found: They.
        draw: Whether they draw random numbers of their own, beside those of dropout functions.
    """

    found: list[nn.Module]
    draw: bool


def random_parts(asked: Asked, call: Callable[[], Any], devices: list[torch.device]) -> Parts:
    """Which of the parts that were asked are random in training, more than they are in evaluation.

    One that returns something else in training, such as losses, is none of them.

    Args:
        asked: Which were.
        call: Makes a pass.
        devices: Accelerators whose random streams are to be looked at.
    """
    found: dict[int, nn.Module] = {}
    trying = draw = False

    def run(part: nn.Module, training: bool, args: Any, kwargs: Any) -> tuple[Any, int, Any]:
        """What a part returns, how many dropout functions it calls, and what it draws otherwise."""
        part.training = training
        with _as_it_is(part), ActiveDropout(Masks(0)) as mode:
            start_streams(0, devices)
            output = part.forward(*copied(args), **copied(kwargs))
            return output, mode.active, after_streams(devices)

    def try_out(part: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal trying, draw
        if trying or id(part) in found:
            return
        trying = True
        try:
            start_streams(0, devices)
            untouched = after_streams(devices)
            output, *without = run(part, False, args, kwargs)
            first, *drawn = run(part, True, args, kwargs)
            # The same streams once more: what differs has a generator of its own.
            second, *_ = run(part, True, args, kwargs)
            own = drawn[1] not in (untouched, without[1]) or _differ(first, second)
            if _alike(output, first) and (own or drawn[0] > without[0]):
                found[id(part)], draw = part, draw or own
        except Exception:  # It cannot be called in training like this, for instance without targets.
            pass
        finally:
            part.training = False
            trying = False

    with ExitStack() as stack:
        for part in asked.parts.values():
            stack.callback(part.register_forward_pre_hook(try_out, with_kwargs=True).remove)
        call()
    return Parts(list(found.values()), draw)


@contextmanager
def _as_it_is(part: nn.Module) -> Iterator[None]:
    """Within, a part may change its buffers and attributes; afterwards they are as before."""
    before = [
        (one, dict(one.__dict__), dict(one._buffers), copied(dict(one._buffers)), _versions(one))
        for one in part.modules()
    ]
    try:
        yield
    finally:
        for one, attributes, buffers, copies, versions in before:
            one.__dict__.clear()
            one.__dict__.update(attributes)
            one._buffers.update(buffers)
            for name, now in _versions(one).items():
                if now != versions[name] and (buffer := buffers[name]) is not None:
                    buffer.copy_(copies[name])


def _versions(part: nn.Module) -> dict[str, int]:
    return {name: version(buffer) for name, buffer in part._buffers.items() if buffer is not None}


def _alike(first: Any, second: Any) -> bool:
    """Whether results have the same structure and shapes."""
    (leaves, structure), (others, other) = tree_flatten(first), tree_flatten(second)
    shapes = [[getattr(leaf, "shape", None) for leaf in each] for each in (leaves, others)]
    return bool(structure == other and shapes[0] == shapes[1])


def _differ(first: Any, second: Any) -> bool:
    pairs = zip(tree_leaves(first), tree_leaves(second), strict=True)
    return any(differ(one, other) for one, other in pairs if isinstance(one, Tensor))


def differ(first: Tensor, second: Tensor) -> bool:
    """Whether two results differ by more than another order of their sums would make."""
    if first.shape != second.shape:
        return True
    if not first.is_floating_point():
        return not torch.equal(first, second)
    room = 100 * torch.finfo(first.dtype).eps
    size = first.abs().nan_to_num(0, 0, 0).amax() if first.numel() else 0
    return not torch.allclose(first, second, rtol=0, atol=float(size) * room, equal_nan=True)
