"""What torch keeps to itself. Tried with 2.10 to 2.15."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._utils import _flatten_dense_tensors as flatten_dense  # Without it: torch.cat of views.
from torch.autograd import forward_ad
from torch.autograd.graph import Node
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset as local_shape_and_offset
from torch.nn.modules.batchnorm import _NormBase as BatchNorm  # Without it: a list of its subclasses.
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.data import DataLoader

__all__ = ["BatchNorm", "flatten_dense", "local_shape_and_offset"]
__all__ += ["TreeSpec", "tree_flatten", "tree_leaves", "tree_map", "tree_unflatten"]

# vmap by hand, for passes of which only a part is vectorised. Without these: torch.func.vmap, slower.
add_batch_dim = _functorch._add_batch_dim
remove_batch_dim = _functorch._remove_batch_dim
enter_vmap = _functorch._vmap_increment_nesting
leave_vmap = _functorch._vmap_decrement_nesting
current_level = _functorch.current_level
maybe_current_level = _functorch.maybe_current_level
is_batched = _functorch.is_batchedtensor
batch_dim = _functorch.maybe_get_bdim
unwrapped = _functorch.get_unwrapped

# What a dispatch mode and a trace see. Without them they would take these calls for others.
set_grad_enabled = torch._C._set_grad_enabled
assert_ = torch._assert

# Many tensors in one call: torch.optim's own way. Without them: loops over the tensors.
foreach_add = torch._foreach_add
foreach_add_ = torch._foreach_add_
foreach_addcmul_ = torch._foreach_addcmul_
foreach_copy_ = torch._foreach_copy_
foreach_mul_ = torch._foreach_mul_
foreach_norm = torch._foreach_norm
foreach_sub = torch._foreach_sub
foreach_sub_ = torch._foreach_sub_


def vmap_randomness() -> list[str]:
    """Return the `randomness` of the torch.vmaps that are under way: "error", "same" or "different".

    Without the names: an error in dropout under ``torch.func``.
    """
    stack = _functorch.get_interpreter_stack() or []
    vmaps = [one for one in stack if one.key() == _functorch.TransformType.Vmap]
    return [_functorch.CVmapInterpreterPtr(one).randomness().name.lower() for one in vmaps]


def is_transformed() -> bool:
    """Return whether a transform of torch.func or forward-mode differentiation is under way.

    Without the names: an error in what runs compiled kernels, and in PReLU.
    """
    return forward_ad._current_level >= 0 or _functorch.peek_interpreter_stack() is not None


def in_backward() -> bool:
    """Return whether a backward pass of autograd is under way in this thread.

    Without the name: an error in layers under FSDP2.
    """
    return torch._C._current_graph_task_id() != -1


def version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; -1 in inference mode, where nobody counts.

    Without the name: an error when a network is sampled.
    """
    return -1 if tensor.is_inference() else tensor._version


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return what a module has registered as parameters, without its children's: the dict itself.

    Without the name: an error; ``dict(module.named_parameters(recurse=False))`` is the same to read.
    """
    return module._parameters


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return what a module has registered as buffers, without its children's: the dict itself.

    Without the name: an error; ``dict(module.named_buffers(recurse=False))`` is the same to read.
    """
    return module._buffers


def own_children(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return a module's children by name: the dict itself.

    Without the name: an error; ``dict(module.named_children())`` leaves out repetitions, and is slower.
    """
    return module._modules


def forward_pre_hooks(module: nn.Module) -> dict[int, Callable[..., object]]:
    """Return what runs before a module's forward pass. Without it: an error if slopes are pruned."""
    return module._forward_pre_hooks


def has_hooks(module: nn.Module | None = None) -> bool:
    """Return whether anything runs before or after a module's forward pass; ``None``: after that of any.

    Without the names: an error; with true each layer runs as it is, more slowly.
    """
    if module is None:
        return bool(torch.nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def may_be_compiled() -> bool:
    """Return whether torch's compiler is loaded. Without the name: compiled modules keep dropout off."""
    return "torch._dynamo" in sys.modules


def pruned_name(hook: Any) -> str:
    """Return the parameter's name of a hook of torch.nn.utils.prune. Without it: an error if there is one."""
    return str(hook._tensor_name)


def counts_steps(optimizer: object) -> bool:
    """Return whether hooks run after an optimizer's steps. Without it: none do, and steps go uncounted."""
    return hasattr(optimizer, "_optimizer_step_post_hooks")


def init_group(optimizer: torch.optim.Optimizer, group: dict[str, object], *lists: list[Tensor]) -> Any:
    """Fill lists with what Adam's kernels take, as its ``step`` does. Without it: an error in a step."""
    return optimizer._init_group(group, *lists)  # type: ignore[attr-defined]


def forget_size(optimizer: torch.optim.LBFGS) -> None:
    """Have L-BFGS count its parameters again. Without it: an error if their shape has changed."""
    optimizer._numel_cache = None


def input_shapes(node: Node) -> list[torch.Size]:
    """Return the shapes of an autograd node's results. Without it: an error in Appendix C's curvature."""
    return [one.shape for one in node._input_metadata]


class Saved:
    """An autograd node, and what it has saved as attributes: ``other`` of ``_saved_other``.

    Without them Appendix C's curvature would have to be told of each layer by its own forward hook.
    """

    def __init__(self, node: Any) -> None:
        self.node = node

    def __call__(self, *gradients: Tensor | None) -> Any:
        """Pass gradients through."""
        return self.node(*gradients)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node, f"_saved_{name}")


def end_workers(loader: DataLoader[Any], iterator: Any) -> None:
    """End the workers of a DataLoader's iterator. Without the names: they stay until the process ends."""
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
    loader._iterator = None


def forget_workers(loader: DataLoader[Any], iterator: Any) -> None:
    """Leave the workers of a DataLoader's iterator to another process, of which this one is a fork.

    Without the names: "can only test a child process" where this one ends, or a wait for batches.
    """
    if hasattr(iterator, "_shutdown"):
        iterator._shutdown = True
    loader._iterator = None
