"""FSDP2 for modules that know nothing of it: parameters are sharded between steps and whole within them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from pl_losses.core.compat import of_torch

Method = TypeVar("Method", bound=Callable[..., Any])


class Shards(nn.Module):
    """Shards the parameters of a module over the ranks; what is called through it meets them whole.

    FSDP2 gathers parameters before ``forward``, and looks for what to pass back through in tuples, lists and
    dicts of tensors: a method called beside ``forward`` meets shards, and a ``forward`` that returns an
    object of its own gets no gradients. Here the step is what FSDP2 takes for the forward pass, so that
    within it any method, layer and parameter may be used. Outside, a layer that is called gathers parameters
    for itself; everything else meets shards, as optimizers, callbacks and checkpoints do.

    Args:
        module: Whose parameters; it stays as it is, and does not become part of this one's names.
        mesh: The ranks to shard over, of one dimension.
    """

    def __init__(self, module: nn.Module, mesh: Any) -> None:
        super().__init__()
        self.module = module
        self._within = False
        self._layers: list[nn.Module] = []
        fully_shard(self, mesh=mesh)
        for part in module.modules():
            if part is not module and any(True for _ in part.parameters()):
                part.register_forward_pre_hook(self._enter_layer)
                part.register_forward_hook(self._leave_layer, always_call=True)

    def forward(self, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a method, within FSDP2's hooks."""
        return method(*args, **kwargs)

    def through(self, method: Method) -> Method:
        """A method that meets whole parameters; a backward pass of its result reduces the gradients."""

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
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
        """Within it parameters are whole; changes to them are lost."""
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

    def _enter_layer(self, layer: nn.Module, args: Any) -> None:
        if not self._within:
            self._within = True
            self._layers.append(layer)
            self.unshard()  # type: ignore[operator]

    def _leave_layer(self, layer: nn.Module, args: Any, outputs: Any) -> None:
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
    """A sharded tensor gathered from all ranks; any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, sharded as a parameter is."""
    if hasattr(parameter, "full_tensor") and not hasattr(tensor, "full_tensor"):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
    return tensor


def units(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The children of a module, by name; of a list or dict of modules its items."""
    for name, child in module.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from units(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child
