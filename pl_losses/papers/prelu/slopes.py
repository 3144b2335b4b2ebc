"""He et al. 2015, section 2.1: where a network's slopes are and what trains them."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim import Optimizer

from pl_losses.core.compat import of_torch
from pl_losses.core.compat.names import WRAPPERS
from pl_losses.core.names import distinct
from pl_losses.monitoring.monitor import Numbers, own_shard, vector
from pl_losses.papers.prelu.parameter_groups import slope_parameters

Trained = dict[str, list[Tensor]]  # By the layer's path.


def find_slopes(module: nn.Module, pattern: str = "*") -> dict[str, Tensor]:
    """Find the slopes of every PReLU by its path, in order of definition, but no lazy ones without size.

    Args:
        module: Where to look, at any depth.
        pattern: Pattern of the wanted paths.

    Example:
        >>> list(find_slopes(nn.Sequential(nn.Linear(2, 3), nn.PReLU(3), nn.Sequential(nn.PReLU()))))
        ['1', '2.0']
    """
    found = find_layers(module, pattern)
    return {path: slopes_of(layer) for path, layer in found.items()}


def find_layers(module: nn.Module, pattern: str = "*") -> dict[str, nn.PReLU]:
    """Find the layers of :func:`find_slopes`, each under a name of its own."""
    found: list[tuple[str, nn.PReLU]] = []
    seen: set[int] = set()

    def look(layer: nn.Module, path: str) -> None:
        if isinstance(layer, nn.PReLU) and (pattern == "*" or fnmatchcase(path, pattern)):
            slopes = of_torch.own_parameters(layer).get("weight")
            key = id(layer if slopes is None else slopes)
            if key not in seen and (slopes is None or not is_lazy(slopes)):
                found.append((path, layer))
                seen.add(key)
        for name, child in of_torch.own_children(layer).items():
            # As named_modules, but faster: most layers are leaves of no interest.
            if child is not None and (of_torch.own_children(child) or isinstance(child, nn.PReLU)):
                look(child, path if name in WRAPPERS else f"{path}.{name}" if path else name)

    look(module, "")
    names = distinct([path for path, _ in found], start=1)  # Paths may be equal without the wrappers.
    return dict(zip(names, (layer for _, layer in found), strict=True))


def slopes_of(layer: nn.PReLU) -> Tensor:
    """Return a PReLU's current slopes; under a parametrisation they are computed, without side effects."""
    slopes = of_torch.own_parameters(layer).get("weight")
    if slopes is not None:
        return slopes
    for hook in of_torch.forward_pre_hooks(
        layer
    ).values():  # They would set the weight in the next forward pass.
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            computed: Tensor = hook.compute_weight(layer)
            return computed
        if isinstance(hook, BasePruningMethod) and of_torch.pruned_name(hook) == "weight":
            computed = hook.apply_mask(layer)  # type: ignore[no-untyped-call]
            return computed
    modules = [*layer.get_submodule("parametrizations").modules()] if is_parametrized(layer) else []
    training = [one.training for one in modules]
    devices = {p.device for p in slope_parameters(layer) if p.device.type != "cpu"}
    kind = next(iter(devices)).type if devices else "cuda"
    with torch.random.fork_rng(devices, device_type=kind):
        try:
            for one in modules:
                one.training = False
            computed = layer.weight
        finally:
            for one, mode in zip(modules, training, strict=True):
                one.training = mode
    return computed


def parameters_of(layers: dict[str, Tensor], module: nn.Module, pattern: str) -> Trained:
    """Return the parameters that train the slopes of :func:`find_slopes`: mostly the slopes themselves."""
    if all(isinstance(slopes, nn.Parameter) for slopes in layers.values()):
        return {path: [slopes] for path, slopes in layers.items()}
    found = find_layers(module, pattern)
    return {path: [*slope_parameters(found[path])] for path in layers}


def members(group: Mapping[str, Any], trained: Trained) -> list[str]:
    """List the paths of the layers whose slopes a parameter group trains."""
    inside = set(map(id, group["params"]))
    return [
        path
        for path, parameters in trained.items()
        if any(id(one) in inside and one.requires_grad for one in parameters)
    ]


def gather(
    layers: dict[str, Tensor],
    optimizer: Optimizer | None,
    *,
    sharded: bool,
    rank: int,
    trained: Trained | None = None,
) -> Numbers:
    """Gather all slopes, gradients and momenta: this rank's shard in its place, zeros elsewhere.

    The sum of all ranks' vectors, which are equally long, is the whole.

    Args:
        layers: Slopes by path, N in total in L layers.
        optimizer: The one that has just made its step, for gradients and momenta. ``None``: without them.
        sharded: Whether the ranks' vectors will be summed.
        rank: This process's global rank.
        trained: The parameters by which slopes are trained, P elements in total; themselves if ``None``.

    Returns:
        Shape [N + 2 P + 2 L]: slopes, gradients, momenta, then for each layer whether there is a gradient
        (> 0), and whether there is a momentum. An array if it is known on the CPU.
    """
    trained = {path: [slopes] for path, slopes in layers.items()} if trained is None else trained
    device = next(iter(layers.values())).device
    groups = [] if optimizer is None else optimizer.param_groups
    owned = {id(tensor) for group in groups for tensor in group["params"]}
    flat = [in_line(own_part(slopes, sharded, rank), slopes, device) for slopes in layers.values()]
    held: list[float] = []
    for read in (own_gradient, own_momentum):
        for path in layers:
            parts = [
                read(optimizer, one, sharded=sharded, rank=rank)
                if optimizer is not None and id(one) in owned
                else None
                for one in trained[path]
            ]
            flat += [in_line(part, one, device) for part, one in zip(parts, trained[path], strict=True)]
            held.append(float(any(part is not None for part in parts)))
    if device.type == "cpu" and not sharded:
        joined = torch.cat(flat)
        whole = np.empty(len(joined) + len(held))
        whole[: len(joined)] = joined.double().numpy()
        whole[len(joined) :] = held
        return whole
    return torch.cat([*flat, vector(held, device)])


def in_line(part: Tensor | None, whole: Tensor, device: torch.device) -> Tensor:
    """Flatten a part on a device; without one return zeros, as many as the whole has elements."""
    return torch.zeros(whole.numel(), device=device) if part is None else part.to(device).reshape(-1)


def own_part(tensor: Tensor | None, sharded: bool, rank: int) -> Tensor | None:
    """Return the full shape with this rank's shard in its place and zeros elsewhere; ``None`` without one."""
    own = None if tensor is None else own_shard(tensor.detach(), sharded, rank)
    if own is None or not isinstance(tensor, DTensor):
        return own
    _, start = of_torch.local_shape_and_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    whole = own.new_zeros(tensor.shape)
    whole[tuple(slice(s, s + length) for s, length in zip(start, own.shape, strict=True))] = own
    return whole


def own_gradient(optimizer: Optimizer, slopes: Tensor, *, sharded: bool, rank: int) -> Tensor | None:
    """Return this rank's part of the gradient of ``slopes``, without the loss scale.

    A fused optimizer removes the scale in its step, unless it skips the step.
    """
    gradient = own_part(slopes.grad, sharded, rank)
    scale, overflow = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    if gradient is None or scale is None or overflow is None:
        return gradient
    scale, overflow = scale.to(gradient.device), overflow.to(gradient.device)
    return gradient / torch.where(overflow > 0, scale, torch.ones_like(scale))


def own_momentum(optimizer: Optimizer, slopes: Tensor, *, sharded: bool, rank: int) -> Tensor | None:
    """Return this rank's part of the running mean of the gradients of ``slopes``, if it is kept."""
    holder = getattr(optimizer, "optim", optimizer)  # ZeRO: each parameter's state is on one rank, whole.
    state = holder.state.get(slopes, {})
    for key in ("momentum_buffer", "exp_avg"):
        momentum = state.get(key)
        if isinstance(momentum, Tensor) and momentum.shape == slopes.shape:
            return own_part(momentum, sharded and holder is optimizer, rank)
    return None
