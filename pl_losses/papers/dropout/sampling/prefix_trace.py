"""The part of a pass before its first dropout: recorded in one pass, replayed in later ones."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pl_losses.core.compat import of_torch
from pl_losses.core.compat.of_torch import TreeSpec
from pl_losses.papers.dropout.sampling.calls import Args, Function, Kwargs
from pl_losses.papers.dropout.sampling.isolation import version

PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_VALUES = (
    *(type(None), bool, int, float, complex, str),
    *(torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format),
)
_WITHOUT_RESULT = (torch.Tensor.__setitem__, of_torch.assert_)
# These give access to memory in a way that no version counter tells of.
_UNTRACKED = (torch.Tensor.data.__get__, torch.Tensor.set_, torch.Tensor.data_ptr)  # type: ignore[attr-defined]


class PrefixDiffersError(Exception):
    """A later pass does not begin like the recorded one, or a recorded result has been changed."""


class _Slot(NamedTuple):
    """A placeholder for a tensor that is an input or was computed in the prefix."""

    number: int


class _Step(NamedTuple):
    func: Function
    arguments: object
    results: list[object]
    structure: TreeSpec | None  # None for a single result


class PrefixTrace:
    """The torch functions that a pass calls before its first dropout, with their results.

    In the recording pass tensors are held by weak references. At the first dropout, those that are still in
    use are kept; the others are never needed again, and stand-ins without memory replace them. In later
    passes each function returns its recorded result, provided that the calls are the same, arguments
    included.

    Args:
        inputs: The tensors that the module is called with.
        changing: Numbers of tensors that the rest of the pass changes in place. Later passes get copies of
            them.

    Attributes:
        usable: Whether later passes may use this pass's results.
        over: Whether the recording has reached the first dropout.
    """

    def __init__(self, inputs: Iterable[Tensor], changing: frozenset[int] = frozenset()) -> None:
        self.changing = changing
        self.usable, self.over = True, False
        self._steps: list[_Step] = []  # The recorded calls, in their order.
        self._at = 0  # How many of them the current replay has answered.
        # Each input, and each tensor that is computed before the first dropout, has a number.
        self._numbers: dict[int, int] = {}  # by id, which a dead tensor may have passed on to another one
        # By number: weak references while recording, and the tensors that are alive at the first dropout.
        self._references: list[weakref.ref[Tensor]] = []
        self._alive: dict[int, Tensor] = {}
        # By number: shape, type and device, of which a dead tensor's stand-in is made.
        self._likes: list[tuple[torch.Size, torch.dtype, torch.device]] = []
        # By id: parameters and the like. They are held, so that no other tensor takes their id.
        self._outside: dict[int, Tensor] = {}
        self._inputs = list(inputs)
        for tensor in self._inputs:
            self._slot(tensor)
        # By number: versions at the first dropout, copies of what the rest changes, tensors of this replay.
        self._versions: dict[int, int] = {}
        self._copies: dict[int, Tensor] = {}
        self._now: list[Tensor | None] = []

    # Recording.

    def record(self, func: Function, args: Args, kwargs: Kwargs) -> object:
        """Call a function and remember its result, but hold no tensor."""
        if not self.usable:
            return func(*args, **kwargs)
        # Described before the call, which may change a list or free a tensor among them.
        arguments = self._described((args, kwargs))
        output = func(*args, **kwargs)
        if type(output) in PLAIN or type(output) in _VALUES:  # torch.Size would come back as a tuple
            results, structure = [output], None
        else:
            results, structure = of_torch.tree_flatten(output)
        if self._fits(func, kwargs, results):
            results = [self._slot(one) if isinstance(one, Tensor) else one for one in results]
            self._steps.append(_Step(func, arguments, results, structure))
        else:
            self.usable = False
        return output

    def freeze(self) -> None:
        """Keep at the first dropout the tensors that are in use."""
        self.over = True
        if not self.usable:
            return
        self._numbers = {}
        for number, reference in enumerate(self._references):
            tensor = reference()
            if tensor is not None:
                self._alive[number] = tensor
                self._versions[number] = version(tensor)
                if number in self.changing:
                    self._copies[number] = tensor.clone()
        self._versions_outside = [(tensor, version(tensor)) for tensor in self._outside.values()]

    def changed(self) -> frozenset[int] | None:
        """Return numbers of further kept tensors that changed; ``None`` if others changed, or shared ones."""
        if any(version(tensor) != before for tensor, before in self._versions_outside):
            return None
        found = {
            number
            for number, before in self._versions.items()
            if number not in self.changing and version(self._alive[number]) != before
        }
        if not found:
            return frozenset()
        # Only a tensor with memory of its own can be copied: what shares it has to see the change, too.
        memory: dict[int, int] = {}
        for tensor in (*(self._alive[number] for number in self._versions), *self._outside.values()):
            address = tensor.untyped_storage().data_ptr()
            memory[address] = memory.get(address, 0) + 1
        addresses = {self._alive[number].untyped_storage().data_ptr() for number in found}
        alone = all(address and memory[address] == 1 for address in addresses)
        return frozenset(found) if alone else None

    # Later passes.

    def begin(self, copies: dict[int, Tensor] | None = None) -> list[Tensor]:
        """Prepare for a later pass, and return its inputs.

        Args:
            copies: Copies of the tensors in ``changing``; default: new copies.

        Returns:
            The inputs.
        """
        self._at = 0
        self._now = [self._alive.get(number) for number in range(len(self._references))]
        for number, tensor in self._copies.items():
            self._now[number] = copies[number] if copies else tensor.clone()
        return [self._current(number) for number in range(len(self._inputs))]

    def copies(self, samples: int) -> dict[int, Tensor]:
        """Copy each of the tensors that are changed in place, to [K, ...]."""
        return {
            number: tensor.expand(samples, *tensor.shape).clone() for number, tensor in self._copies.items()
        }

    def replay(self, func: Function, args: Args, kwargs: Kwargs) -> object:
        """Return the function's result of the recorded pass."""
        step = self._steps[self._at] if self._at < len(self._steps) else None
        if step is None or step.func != func or not self._same(step.arguments, (args, kwargs)):
            raise PrefixDiffersError(f"it does not always call the same functions, such as {func}, at first")
        self._at += 1
        results = [self._current(one.number) if type(one) is _Slot else one for one in step.results]
        return results[0] if step.structure is None else of_torch.tree_unflatten(results, step.structure)

    def finish(self) -> None:
        """Check at a later pass's first dropout that the whole prefix was replayed."""
        if self._at != len(self._steps):
            raise PrefixDiffersError("it does not always call the same functions before its first dropout")

    # Both.

    def _fits(self, func: Function, kwargs: Kwargs, results: list[object]) -> bool:
        if func in _UNTRACKED or kwargs.get("generator") is not None:
            return False
        if len(results) == 1 and results[0] is None:
            # Else None may mean an effect elsewhere, which replay would leave out.
            return func in _WITHOUT_RESULT or getattr(func, "__name__", "") == "__get__"
        return all(
            one.layout is torch.strided and not one.requires_grad and not one.is_inference()
            if isinstance(one, Tensor) and type(one) in PLAIN
            else type(one) in _VALUES
            for one in results
        )

    def _slot(self, tensor: Tensor) -> Tensor | _Slot:
        if id(tensor) in self._outside:
            return tensor
        number = self._number(tensor)
        if number is None:
            number = len(self._references)
            self._numbers[id(tensor)] = number
            self._references.append(weakref.ref(tensor))
            self._likes.append((tensor.shape, tensor.dtype, tensor.device))
        return _Slot(number)

    def _number(self, tensor: Tensor) -> int | None:
        number = self._numbers.get(id(tensor))
        return number if number is not None and self._references[number]() is tensor else None

    def _described(self, value: object) -> object:
        """Describe arguments, with slots for tensors of the prefix."""
        if isinstance(value, Tensor):
            number = self._number(value)
            if number is not None:
                return _Slot(number)
            return self._outside.setdefault(id(value), value)
        if isinstance(value, (tuple, list)) and type(value) is not torch.Size:
            return type(value), [self._described(one) for one in value]
        if isinstance(value, dict):
            return dict, {key: self._described(one) for key, one in value.items()}
        if isinstance(value, slice):
            return slice, [self._described(one) for one in (value.start, value.stop, value.step)]
        return value

    def _same(self, known: object, value: Any) -> bool:
        # Tensors are compared by identity: those of a replay are the very ones that it gave back.
        if type(known) is _Slot:
            return value is self._current(known.number)
        if type(known) is tuple:
            kind, inner = known
            if kind is dict:
                return (
                    isinstance(value, dict)
                    and inner.keys() == value.keys()
                    and all(self._same(one, value[key]) for key, one in inner.items())
                )
            if type(value) is not kind:
                return False
            values = (value.start, value.stop, value.step) if kind is slice else value
            return len(inner) == len(values) and all(map(self._same, inner, values))
        if known is value:
            return True
        return type(known) is type(value) and isinstance(known, _VALUES) and bool(known == value)

    def _current(self, number: int) -> Tensor:
        tensor = self._now[number]
        if tensor is None:
            # It died before the first dropout, so only recorded calls take it, and they read no values.
            shape, dtype, device = self._likes[number]
            tensor = self._now[number] = torch.empty((), dtype=dtype, device=device).expand(shape)
        return tensor
