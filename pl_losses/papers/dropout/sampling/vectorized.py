"""The T passes of MC dropout: the deterministic part once, the rest for many samples at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pl_losses.core.compat import of_torch
from pl_losses.core.compat.of_torch import TreeSpec
from pl_losses.core.rng import fold_in
from pl_losses.papers.dropout.sampling.calls import Batch
from pl_losses.papers.dropout.sampling.dropout_mode import DropoutMode
from pl_losses.papers.dropout.sampling.isolation import (
    Contents,
    Streams,
    as_dict,
    contents_of,
    copied,
    state,
    tensors_in,
)
from pl_losses.papers.dropout.sampling.mask_sampler import DropoutCall
from pl_losses.papers.dropout.sampling.prefix_trace import PLAIN, PrefixDiffersError, PrefixTrace
from pl_losses.papers.dropout.sampling.random_parts import ModeReads, Parts, random_parts
from pl_losses.papers.dropout.sampling.sizes import at_a_time, prepare

Found = TypeVar("Found")
_log = logging.getLogger(__name__)
_logged: set[type[nn.Module]] = set()


class _Plan(NamedTuple):
    """What a pass showed of a module, so that the next call needs no pass for one sample: see `_planned`."""

    sites: list[DropoutCall]
    largest: int
    folded: frozenset[int]


# By the kind of call. A pass checks all that it takes from here: no plan is out of date in silence.
_plans: WeakKeyDictionary[nn.Module, dict[object, _Plan]] = WeakKeyDictionary()
_KEPT = 8  # Plans of one module.


def why_not_many(contents: Contents, batch: object) -> str:
    """Say why each sample needs a whole pass of its own; empty if there is no reason yet."""
    tensors = (*contents.registered, *contents.tensors, *tensors_in(batch))
    if odd := set(map(type, tensors)).difference(PLAIN):
        return f"it holds a {min(kind.__name__ for kind in odd)} that is not plain"
    # Sharded parameters, which all ranks gather together, equally often.
    if sharded := [type(tensor).__name__ for tensor in tensors if hasattr(tensor, "ds_id")]:
        return f"it holds a {sharded[0]} that is not plain"
    if any(tensor.is_inference() for tensor in contents.registered):
        return "it was made in inference mode"
    for name in {kind.__name__ for kind in contents.kinds}:
        if name in ("DistributedDataParallel", "FullyShardedDataParallel"):
            return f"its ranks work together in {name}"
    return ""


def _log_once(kind: type[nn.Module], reason: str) -> None:
    """Say once for each class of modules, on the first rank, that they take longer."""
    if kind in _logged or (torch.distributed.is_initialized() and torch.distributed.get_rank()):
        return
    _logged.add(kind)
    _log.warning(
        "The samples of %s are computed one at a time, which takes longer: %s", kind.__name__, reason
    )


def _plans_of(module: nn.Module) -> dict[object, _Plan]:
    # A module that compares by value may be the key of another one.
    return _plans.setdefault(module, {}) if type(module).__hash__ is object.__hash__ else {}


class VectorizedSampler(Generic[Batch]):
    """T passes of a module under :class:`DropoutMode`.

    Args:
        module: The module that is finally called.
        call: Called with the batch.
        batch: The batch, whose tensors are copied before they are passed on.
        mode: The mode that switches dropout on.
        seed: Seed of the random streams in each pass.
        streams: The random streams.
        contents: What the module holds before the first pass.
        parts: Parts that are on as they are random in training in other ways; ``None`` to look for them.
    """

    def __init__(
        self,
        module: nn.Module,
        call: Callable[[Batch], object],
        batch: Batch,
        *,
        mode: DropoutMode,
        seed: int,
        streams: Streams,
        contents: Contents,
        parts: Parts | None,
    ) -> None:
        self.search, self._draw = parts is None, parts is not None and parts.draw
        parts = parts or Parts([], False)
        mode.parts, mode.left = parts.found, parts.left
        self.module, self.call, self.batch, self.mode = module, call, batch, mode
        self.seed, self.streams = seed, streams
        self._contents: Contents | None = contents
        self.stacks: list[Tensor | None] = []
        self.drew, self.lacking = False, ""

    def run(self, samples: int, chunk: int | None, reason: str) -> tuple[list[Tensor | None], TreeSpec]:
        """Make the passes.

        Args:
            samples: T.
            chunk: Largest number of them at a time.
            reason: Why only T whole passes are possible, if that is known.

        Returns:
            The leaves [T, ...] of the output, and its structure.
        """
        self.samples, self.done = samples, 0
        prefix, start = None, self.mode.masks.state()
        if reason:
            self._searched(lambda: self._one(None))
        else:
            self.plan, self.chunk = _plans_of(self.module).get(self._kind()), chunk
            prefix, reason = self._searched(self._planned if self.plan else self._first)
        # The ways to make the other samples, the fastest first. If one fails, the next one starts again from
        # the same sample and the same masks; T whole passes come last.
        ways: list[Callable[[], None]] = []
        found: _Plan | None = None
        if not reason and self.done < samples:
            sites, largest = list(self.mode.sites), self.mode.largest
            if chunk != 1:
                # In one pass without a record, nothing copies what the rest changes in place.
                if not (prefix and prefix.changing):
                    found = _Plan(sites, largest, self.mode.folding.found)
                ways.append(lambda: self._many(prefix, chunk, sites, largest))
            if prefix:
                ways.append(lambda: self._one_by_one(prefix))
            if found and self._size(chunk, sites, largest, self.samples) >= self.samples:
                # From the start, as `_planned` does it: so that the first call gives the same bits as others.
                self.mode.masks.rewind(start)
                self.done = 0
        masks, done = self.mode.masks.state(), self.done
        for way in ways:
            try:
                way()
                break
            except Exception as error:  # An error of the module itself occurs again below.
                # The first sentence: the rest may ask to report an issue to torch.
                reason = reason or f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0]
                self.mode.masks.rewind(masks)
                self.done = done
        else:
            self._one_by_one(None)
        if found and not reason and not self.mode.parts:
            plans = _plans_of(self.module)
            if len(plans) == _KEPT:
                plans.clear()
            plans[self._kind()] = found
        if reason and (self.mode.active or self.mode.parts) and samples > 1:
            _log_once(type(self.module), reason)
        return self.stacks, self.structure

    def _searched(self, make: Callable[[], Found]) -> Found:
        """Make the first pass, and repeat it if it shows parts that are random in training in other ways."""
        if not self.search or not (reads := ModeReads(self.module, self._contents)).kinds:
            return make()
        masks = self.mode.masks.state()
        self.mode.watcher = reads
        with reads.watching():
            result = make()
        self.mode.watcher = None
        parts = None
        if reads.parts:
            parts = random_parts(reads, lambda: self.call(copied(self.batch)), self.streams)
            self.mode.left, self.lacking = parts.left, parts.lacking
        if not parts or not parts.found:
            return result
        if self.mode.shared_over is not None:
            raise ValueError(
                f"Expected `masks` to be 'independent' for a module with a {type(parts.found[0]).__name__},"
                " which is random in training, but got 'shared', which is there for Dropout and Dropout1d, 2d"
                " and 3d"
            )
        self.mode.parts, self._draw = parts.found, parts.draw
        for part in parts.found:
            part.training = True
        self.mode.masks.rewind(masks)
        self.done, self.stacks = 0, []
        return make()

    def _kind(self) -> object:
        """Return what calls with the same plan have in common."""
        tensors = tensors_in(self.batch)
        return self.mode.shared_over, *((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)

    def _planned(self) -> tuple[PrefixTrace | None, str]:
        """Make all passes at a time, if an earlier call with this module shows how; else as `_first` does.

        Nothing is taken on trust: the dropouts are compared with those of the plan, a folded mask with the
        layer that takes it, the random streams and what the module holds with before.
        """
        assert self.plan is not None
        sites, largest, folded = self.plan
        if self._size(self.chunk, sites, largest, self.samples) < self.samples:
            return self._first()
        masks, before = self.mode.masks.state(), self._state()
        self.mode.folding.found = folded
        try:
            self._many(None, self.chunk, sites, largest)
            if self._draw or self._state() != before:
                raise PrefixDiffersError("it changes what it holds")
            return None, ""
        except Exception:  # Whatever it is, the first pass shows it.
            _plans_of(self.module).clear()
            self.mode.masks.rewind(masks)
            self.mode.folding.found = frozenset()
            self.done, self.stacks = 0, []
            return self._first()

    def _state(self) -> list[object]:
        contents, self._contents = self._contents or contents_of(self.module), None
        return state(contents)

    def _size(self, chunk: int | None, sites: list[DropoutCall], largest: int, left: int) -> int:
        each = 3 * largest + sum(site.dtype.itemsize * torch.Size(site.shape).numel() for site in sites)
        return at_a_time(left, chunk, each, sites[0].device)

    def _first(self) -> tuple[PrefixTrace | None, str]:
        """Make one or two passes that record the part before the first dropout.

        Returns:
            The record, if later passes can use it, and why all of them must be whole and one by one.
        """
        before = self._state()
        seed = fold_in(self.seed, self.done)
        self.streams.start(seed)
        prefix = self._record(frozenset())
        if not self.streams.untouched(seed) or self._draw:
            self.drew = True
            return None, "it draws random numbers besides its dropout"
        if not self.mode.active:
            return None, "it drops nothing"  # A warning says so.
        if self._state() != before:
            return None, "it changes what it holds"
        # What the rest of a pass changes in place, it would find changed in the next: record once more, with
        # copies of these tensors. That pass is the second sample.
        changing = prefix.changed() if prefix.usable else None
        if changing and self.done < self.samples:
            prefix = self._record(changing)
            changing = prefix.changed() if prefix.usable else None
        return (None if changing or changing is None else prefix), ""

    def _record(self, changing: frozenset[int]) -> PrefixTrace:
        leaves, structure = of_torch.tree_flatten(copied(self.batch))
        prefix = PrefixTrace([leaf for leaf in leaves if isinstance(leaf, Tensor)], changing)
        self.mode.begin(prefix)
        with self.mode:
            output = self.call(of_torch.tree_unflatten(leaves, structure))
        self.mode.largest = max(self.mode.largest, self.mode.folding.finalize())
        self._store(output)
        return prefix

    def _inputs(self, prefix: PrefixTrace | None, copies: dict[int, Tensor] | None = None) -> Batch:
        if prefix is None:
            return copied(self.batch)
        leaves, structure = of_torch.tree_flatten(self.batch)
        tensors = iter(prefix.begin(copies))
        given = [next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        inputs: Batch = of_torch.tree_unflatten(given, structure)
        return inputs

    def _store(self, output: object) -> None:
        leaves, self.structure = _flat(output)
        if not self.stacks:
            _refuse_packed(output)
        self.stacks = self.stacks or [_room(leaf, self.samples) for leaf in leaves]
        for stack, leaf in zip(self.stacks, leaves, strict=True):
            if stack is not None:
                stack[self.done] = leaf
        self.done += 1

    def _one(self, prefix: PrefixTrace | None) -> None:
        self.streams.start(fold_in(self.seed, self.done))
        inputs = self._inputs(prefix)
        self.mode.begin(prefix)
        with self.mode:
            output = self.call(inputs)
        if prefix and prefix.changed() != frozenset():
            raise PrefixDiffersError("it changes what it has computed before its first dropout")
        self._store(output)

    def _one_by_one(self, prefix: PrefixTrace | None) -> None:
        while self.done < self.samples:
            self._one(prefix)

    def _many(
        self, prefix: PrefixTrace | None, chunk: int | None, sites: list[DropoutCall], largest: int
    ) -> None:
        """Make the remaining passes, many at a time."""
        size = self._size(chunk, sites, largest, self.samples - self.done)
        room: list[Tensor | None] = [None] * len(sites)
        if size < self.samples - self.done:  # Several rounds use it.
            room = [torch.empty((size, *one.shape), dtype=one.dtype, device=one.device) for one in sites]
        prepare()
        seed = fold_in(self.seed, self.done)
        self.streams.start(seed)
        while self.done < self.samples:
            count = min(size, self.samples - self.done)
            drawn = [
                (site, self.mode.masks.draw(index, site, count, out if out is None else out[:count]))
                for index, (site, out) in enumerate(zip(sites, room, strict=True))
            ]
            self._chunk(prefix, drawn, count)
            if prefix and prefix.changed() != frozenset():
                raise PrefixDiffersError("it changes what it has computed before its first dropout")
            self.done += count
        if not self.streams.untouched(seed):
            raise PrefixDiffersError("it draws random numbers besides its dropout")

    def _chunk(self, prefix: PrefixTrace | None, drawn: list[tuple[DropoutCall, Tensor]], count: int) -> None:
        """Make ``count`` passes at a time, as ``torch.func.vmap`` does, whose checks take longer."""
        copies = prefix.copies(count) if prefix else {}
        with _samples(count) as level:
            inputs = self._inputs(prefix, {number: _each(copy, level) for number, copy in copies.items()})
            # The module sees masks [...]; their K samples are a hidden dimension, which vmap carries along.
            self.mode.begin(prefix, [(site, _each(mask, level)) for site, mask in drawn])
            with self.mode:
                output = self.call(inputs)
            self.mode.folding.finish()
            leaves, structure = _flat(output)
            if not self.stacks:
                self.structure = structure
                _refuse_packed(output)
                for leaf in leaves:
                    _refuse_others(leaf)
            if structure != self.structure:
                raise PrefixDiffersError("its output has not always the same structure")
            leaves = [
                None if leaf is None else of_torch.remove_batch_dim(leaf, level, count, 0) for leaf in leaves
            ]
            self.stacks = self.stacks or [
                None if leaf is None else leaf.new_empty((self.samples, *leaf.shape[1:])) for leaf in leaves
            ]
            for stack, leaf in zip(self.stacks, leaves, strict=True):
                if stack is not None:
                    stack[self.done : self.done + count] = leaf


@contextmanager
def _samples(count: int) -> Iterator[int]:
    """Let tensors have a hidden dimension for the samples within this context; yield its level."""
    level = of_torch.enter_vmap(count, "error")
    try:
        yield level
    finally:
        of_torch.leave_vmap()


def _each(tensor: Tensor, level: int) -> Tensor:
    return of_torch.add_batch_dim(tensor, 0, level)


def _flat(output: object) -> tuple[list[Any], TreeSpec]:
    """Return the leaves and the structure of an output; mappings that torch does not know become dicts."""
    leaves, structure = of_torch.tree_flatten(output)
    if any(isinstance(leaf, Mapping) for leaf in leaves):
        leaves, structure = of_torch.tree_flatten(as_dict(output))
    return leaves, structure


def _refuse_packed(output: object) -> None:
    """Refuse packed sequences, whose sizes are not a result that differs between samples."""
    for leaf in of_torch.tree_leaves(output, is_leaf=lambda part: isinstance(part, PackedSequence)):
        if isinstance(leaf, PackedSequence):
            _refuse_others(leaf)


def _refuse_others(leaf: object) -> None:
    if leaf is not None and not isinstance(leaf, Tensor):
        raise TypeError(
            "Expected the module's output to be a tensor, or a tuple, list or dict of tensors, but got a"
            f" {type(leaf).__name__} in it: pass a `forward` that returns tensors"
        )


def _room(leaf: Any, samples: int) -> Tensor | None:
    _refuse_others(leaf)
    return None if leaf is None else leaf.new_empty((samples, *leaf.shape))
