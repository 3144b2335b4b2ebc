"""FSDP2 for modules that know nothing of it: parameters are sharded between steps and whole within them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TypeVar

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from pl_losses.core.compat import of_torch

R = TypeVar("R")
Method = TypeVar("Method", bound=Callable[..., object])


class Shards(nn.Module):
    """Shards the parameters of a module over the ranks; methods called through it see whole parameters.

    FSDP2 gathers parameters before ``forward``, and finds what to pass gradients through only in tuples,
    lists and dicts of tensors. A method other than ``forward`` therefore sees shards, and a ``forward`` that
    returns an object of its own gets no gradients. Here FSDP2 takes each step for its forward pass, so that a
    step may use any method, layer and parameter. Outside of a step, a layer that is called gathers its
    parameters itself; everything else sees shards, as optimizers, callbacks and checkpoints do.

    Args:
        module: The module to shard. It does not become a child of this one, so that names stay.
        mesh: The ranks to shard over, of one dimension.
    """

    def __init__(self, module: nn.Module, mesh: DeviceMesh) -> None:
        super().__init__()
        self.module = module
        self._within = False
        self._layers: list[nn.Module] = []
        fully_shard(self, mesh=mesh)
        for part in module.modules():
            if part is not module and any(True for _ in part.parameters()):
                part.register_forward_pre_hook(self._enter_layer)
                part.register_forward_hook(self._leave_layer, always_call=True)

    def forward(self, method: Callable[..., R], args: tuple[object, ...], kwargs: dict[str, object]) -> R:
        """Call a method, within FSDP2's hooks."""
        return method(*args, **kwargs)

    def through(self, method: Method) -> Method:
        """Wrap a method to see whole parameters; a backward pass of its result reduces the gradients."""

        @wraps(method)
        def call(*args: object, **kwargs: object) -> object:
            if self._within:
                return method(*args, **kwargs)
            self._within, found = True, None
            try:
                found = self(method, args, kwargs)
            finally:
                self._within = False
                # The backward pass shards them again, if there is going to be one.
                if not any(
                    isinstance(leaf, Tensor) and leaf.requires_grad for leaf in of_torch.tree_leaves(found)
                ):
                    self.reshard()  # type: ignore[operator]
            return found

        return call  # type: ignore[return-value]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Keep parameters whole within this context; changes to them are lost."""
        if self._within:
            yield
            return
        self._within = True
        self.unshard()  # type: ignore[operator]
        try:
            yield
        finally:
            self._within = False
            self.reshard()  # type: ignore[operator]

    def _enter_layer(self, layer: nn.Module, args: object) -> None:
        # A layer that is computed again in a backward pass: FSDP2 has gathered the parameters until its end.
        if not self._within and not of_torch.in_backward():
            self._within = True
            self._layers.append(layer)
            self.unshard()  # type: ignore[operator]

    def _leave_layer(self, layer: nn.Module, args: object, outputs: object) -> None:
        if self._layers and self._layers[-1] is layer:
            self._layers.pop()
            self._within = False
            self.reshard()  # type: ignore[operator]


def load_whole(module: nn.Module, weights: dict[str, Tensor], strict: bool = True) -> None:
    """Load whole tensors, the same on all ranks, into a module that may be sharded."""
    own = module.state_dict()
    placed = {name: shard_like(tensor, own.get(name, tensor)) for name, tensor in weights.items()}
    module.load_state_dict(placed, strict=strict)


def whole_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor from all ranks; return any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Shard a whole tensor, the same on all ranks, as a parameter is."""
    if hasattr(parameter, "full_tensor") and not hasattr(tensor, "full_tensor"):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
    return tensor


def units(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the children of a module by name; for a list or dict of modules its items."""
    for name, child in module.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from units(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child
