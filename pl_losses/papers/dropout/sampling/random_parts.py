"""Which parts of a module are random in training only, found by trying them in both modes.

Dropout functions are switched by their arguments, see :mod:`.dropout_mode`. Other parts draw random numbers
of their own, or choose a probability, ``if self.training``: drop path, skipped layers, noise. A pass shows
of which parts the mode is read. Each of them then runs, alone and on its own inputs, in both modes. If
that shows nothing, as for a part whose methods are called but not its forward, or which another part asks,
the whole module runs with the part in both modes.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from types import CodeType, FrameType
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function

from pl_losses.core.compat import of_torch
from pl_losses.papers.dropout.sampling.calls import Args, Function, Kwargs
from pl_losses.papers.dropout.sampling.dropout_mode import KNOWN, DropoutMode
from pl_losses.papers.dropout.sampling.isolation import Contents, Streams, contents_of, copied, version
from pl_losses.papers.dropout.sampling.mask_sampler import MaskSampler

P = ParamSpec("P")
R = TypeVar("R")

_GO_BETWEENS = {handle_torch_function.__code__}


class ModeReads:
    """Notes which parts of a module have their ``training`` read.

    A flag that goes straight to a function that :class:`.DropoutMode` switches by itself, as in
    ``F.dropout(x, p, self.training)``, does not count.

    Args:
        module: Its parts are watched, except torch's own, which leave dropout to such functions.
        contents: What it holds, if that is known.
    """

    def __init__(self, module: nn.Module, contents: Contents | None = None) -> None:
        contents = contents or contents_of(module)
        self.module = module
        # A part that has `training` itself, such as a scripted module, is left alone.
        self.kinds = [
            kind for kind in contents.kinds if not _is_torchs(kind) and not hasattr(kind, "training")
        ]
        self.parts: dict[int, nn.Module] = {}
        self._own = set(map(id, contents.parts)) if self.kinds else set()
        self._last: tuple[nn.Module, FrameType] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notice within this context when ``training`` is read."""
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
        """Note that the mode of a part is read."""
        self._settle()
        if id(part) not in self._own or part.__dict__["training"]:
            return
        # A flag on its way into a call may be a known dropout's, which the next torch function tells.
        if _is_passed_on(reader.f_code, reader.f_lasti):
            self._last = part, reader
        else:
            self.parts[id(part)] = part

    def called(self, func: Function, args: Args, kwargs: Kwargs) -> None:
        """Note that the caller of this method's caller calls a torch function."""
        if self._last is None:
            return
        # Whoever calls the function is whoever read the flag, except for torch's own frames between.
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
    """The attribute ``training`` of a class whose instances are watched."""

    def __init__(self, reads: ModeReads) -> None:
        self.reads = reads

    def __get__(self, part: nn.Module | None, kind: type[nn.Module]) -> bool:
        if part is None:
            raise AttributeError("training")
        self.reads.read(part, sys._getframe(1))
        flag: bool = part.__dict__["training"]
        return flag

    def __set__(self, part: nn.Module, value: bool) -> None:
        part.__dict__["training"] = value


def _is_torchs(kind: type) -> bool:
    """Return whether a class and all its bases are torch's own."""
    return all(base.__module__.startswith("torch.") for base in kind.__mro__[:-1])


@cache
def _is_passed_on(code: CodeType, position: int) -> bool:
    """Return whether an attribute that is loaded there becomes an argument of a call, and no condition."""
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
        found: These parts.
        draw: Whether they draw random numbers of their own, beside those of dropout functions.
        left: Why other parts that ask for their mode are left out, as the end of a sentence.
        lacking: Those of the others that make samples less random than training is, and why.
    """

    found: list[nn.Module]
    draw: bool
    left: str = "no part of it that asks for its mode is random in training"
    lacking: str = ""


class _Verdict(NamedTuple):
    """The result of a trial of parts: they are random in training, or stay as they are for a reason."""

    random: bool = False
    draw: bool = False
    left: str = ""
    lacking: bool = False


def random_parts(reads: ModeReads, call: Callable[[], object], streams: Streams) -> Parts:
    """Find the parts that are random in training, more than in evaluation, among those that read their mode.

    A part that returns something else in training, such as losses, is left out.

    Args:
        reads: The parts that read their mode.
        call: Makes a pass.
        streams: The streams that they may draw from.
    """
    verdicts: dict[int, _Verdict] = {}
    trying = False

    def through(part: nn.Module, forward: Callable[P, R]) -> Callable[P, R]:
        def tried(*args: P.args, **kwargs: P.kwargs) -> R:
            nonlocal trying
            if not trying and not verdicts.get(id(part), _Verdict()).random:
                trying = True
                try:
                    verdicts[id(part)] = _try(
                        [part], part, lambda: forward(*copied(args), **copied(kwargs)), streams
                    )
                finally:
                    trying = False
            return forward(*args, **kwargs)

        return tried

    with ExitStack() as stack:
        for part in reads.parts.values():
            # In the instance, where calls that bypass the hooks find it, too.
            stack.callback(_set_forward, part, part.__dict__.get("forward"))
            part.__dict__["forward"] = through(part, part.forward)
        call()
    # An empty verdict shows nothing: the part's own forward was not called, or another part asks it. These
    # are tried through the whole module, first together, which mostly ends the search.
    rest = [part for key, part in reads.parts.items() if verdicts.get(key, _Verdict()) == _Verdict()]
    if rest and _try(rest, reads.module, call, streams) != _Verdict():
        verdicts |= {id(part): _try([part], reads.module, call, streams) for part in rest}
    kept = [(reads.parts[key], verdict) for key, verdict in verdicts.items()]
    found = [part for part, verdict in kept if verdict.random]
    left = {
        f"{type(part).__name__} {verdict.left}": verdict.lacking for part, verdict in kept if verdict.left
    }
    parts = Parts(found, any(verdict.draw for _, verdict in kept))
    lacking = "; ".join(one for one, lacks in left.items() if lacks)
    return parts._replace(left="; ".join(left), lacking=lacking) if left else parts


def _set_forward(part: nn.Module, forward: object) -> None:
    del part.__dict__["forward"]
    if forward is not None:
        part.__dict__["forward"] = forward


def _try(parts: list[nn.Module], whole: nn.Module, call: Callable[[], object], streams: Streams) -> _Verdict:
    """Compare the module's results with these of its parts in training and in evaluation."""

    def run(training: bool, seed: int = 0, on: bool = True) -> tuple[object, int, list[float | bytes]]:
        """Return the result, the number of dropout functions called, and what else is drawn."""
        for part in parts:
            part.training = training
        with _as_it_is(whole), DropoutMode(MaskSampler(seed), on=on) as mode:
            streams.start(seed)
            return call(), mode.active, streams.after()

    try:
        streams.start(0)
        untouched = streams.after()
        output, dropped, drawn = run(False)
        first, dropped_on, drawn_on = run(True)
        # The same streams again: if results differ, a part has a generator of its own.
        own = drawn_on not in (untouched, drawn) or (
            _differ(first, run(True)[0]) and not _differ(output, run(False)[0])
        )
        if not own and dropped_on <= dropped:
            return _Verdict()
        if _alike(output, first):
            return _Verdict(random=True, draw=own)
        # It stays in evaluation. Samples lack something if results that evaluation has, too, are random in
        # training. Dropout is off, if there is some, as it is switched anyway.
        on = not dropped
        lacking = _common_differ(output, run(True, 0, on)[0], run(True, 1, on)[0])
        why = "is random in training but stays as in evaluation, as it returns something else in training"
        return _Verdict(left=why, lacking=lacking)
    except Exception as error:  # It cannot be called in training like this, such as without targets.
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        return _Verdict(left=f"stays as in evaluation, as it fails in training ({words:.120})")
    finally:
        for part in parts:
            part.training = False


@contextmanager
def _as_it_is(part: nn.Module) -> Iterator[None]:
    """Let a part change its buffers and attributes within this context, and restore them after it."""
    before = [
        (
            one,
            dict(one.__dict__),
            dict(of_torch.own_buffers(one)),
            {
                name: buffer.clone()
                for name, buffer in of_torch.own_buffers(one).items()
                if buffer is not None
            },
            _versions(one),
        )
        for one in part.modules()
    ]
    try:
        yield
    finally:
        for one, attributes, buffers, copies, versions in before:
            one.__dict__.clear()
            one.__dict__.update(attributes)
            of_torch.own_buffers(one).update(buffers)
            for name, now in _versions(one).items():
                if now != versions[name] and (buffer := buffers[name]) is not None:
                    buffer.copy_(copies[name])


def _versions(part: nn.Module) -> dict[str, int]:
    return {
        name: version(buffer) for name, buffer in of_torch.own_buffers(part).items() if buffer is not None
    }


def _alike(first: object, second: object) -> bool:
    """Return whether results have the same structure and shapes."""
    (leaves, structure), (others, other) = of_torch.tree_flatten(first), of_torch.tree_flatten(second)
    shapes = [[getattr(leaf, "shape", None) for leaf in each] for each in (leaves, others)]
    return bool(structure == other and shapes[0] == shapes[1])


def _differ(first: object, second: object) -> bool:
    pairs = zip(of_torch.tree_leaves(first), of_torch.tree_leaves(second), strict=True)
    return any(differ(one, other) for one, other in pairs if isinstance(one, Tensor))


def _common_differ(output: object, first: object, second: object) -> bool:
    """Return whether two results of training differ in what evaluation returns, too, by order and shapes."""
    pairs = zip(of_torch.tree_leaves(first), of_torch.tree_leaves(second), strict=True)
    for leaf in of_torch.tree_leaves(output):
        shape = getattr(leaf, "shape", None)
        for one, other in pairs:
            if isinstance(one, Tensor) and one.shape == shape:
                if differ(one, other):
                    return True
                break
    return False


def differ(first: Tensor, second: Tensor) -> bool:
    """Return whether two results differ by more than another order of summation can cause."""
    if first.shape != second.shape:
        return True
    if not first.is_floating_point():
        return not torch.equal(first, second)
    room = 100 * torch.finfo(first.dtype).eps
    size = first.abs().nan_to_num(0, 0, 0).amax() if first.numel() else 0
    return not torch.allclose(first, second, rtol=0, atol=float(size) * room, equal_nan=True)
