"""Which rectifier stands before or after each weight of a network, found from its data flow."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.fx import Node, Tracer
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.PReLU)
RELU = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_", F.relu6)
LEAKY_RELU = (F.leaky_relu, F.leaky_relu_)
CLAMP = (
    torch.clamp,
    torch.clamp_,
    torch.clip,
    "clamp",
    "clamp_",
    "clip",
    torch.clamp_min,
    "clamp_min",
    "clamp_min_",
)
PRELU = (F.prelu, torch.prelu, "prelu")
SIZES = ("size", "dim", len)
ABOUT = ("shape", "ndim", "dtype", "device")  # Attributes of a tensor that do not depend on its values.

# The end of a path through the network: a rectifier's slope, a weight, or the network's input or output.
End = float | Literal["weight", "outside"]


def feeding_slopes(module: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_in") -> dict[str, float]:
    """Find the slope in eq. 15 for each weight: of the rectifier before it, or with "fan_out" after it.

    The forward pass of ``module`` is traced (torch.fx), and the paths from each linear layer or convolution
    are followed through everything that is neither of these nor a rectifier. Rectifiers, as modules or
    functions, are ReLU, ReLU6, LeakyReLU, RReLU (by its mean slope), PReLU and ``clamp(min=0)``, and no other
    nonlinearity. If

    - a path leads to another weight, there is no rectifier between them: the slope is the identity's, 1; - a
      path of "fan_in" leads to the network's input, there is none, either, and the slope would be 1; as in
      the paper (below eq. 10), one layer more or less does not matter, and the formula with the slope of the
      rectifier that follows is used here, too; - a path of "fan_out" leads to the network's output, the slope
      is 1; - paths lead to several rectifiers, as by concatenation or to several channels of a PReLU, E[x^2]
      is the mean over them, and so is 1 + a^2.

    A network that cannot be traced is taken in the order in which its modules are registered, and so are
    layers that its forward pass does not call; a warning says so. Linear layers within
    ``nn.MultiheadAttention`` do not count: it has an initialisation of its own.

    Args:
        module: The network.
        mode: "fan_in" or "fan_out".

    Returns:
        Path of each weighted layer to its slope, at least 0: only the square counts.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.PReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> feeding_slopes(net), feeding_slopes(net, "fan_out")
        ({'0': 0.25, '2': 0.25, '4': 0.0}, {'0': 0.25, '2': 0.0, '4': 1.0})
    """
    try:
        nodes = _Tracer().trace(module).nodes
    except Exception as error:  # A forward pass may raise anything when it is run on placeholders.
        rank_zero_warn(
            f"{type(module).__name__} cannot be traced, so its rectifiers are taken in the order in which"
            f" modules are registered, and functional ones are not seen: {str(error).splitlines()[0]:.200}"
        )
        found = _registered(module, mode)
    else:
        found = _traced(module, list(nodes), mode)
        unused = {path: ends for path, ends in _registered(module, mode).items() if path not in found}
        if unused:
            rank_zero_warn(
                f"The forward pass of {type(module).__name__} does not call {', '.join(unused)}: their"
                " rectifiers are taken in the order in which modules are registered"
            )
        found |= unused
    return {path: _slope(ends) for path, ends in found.items()}


def weighted_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return linear layers and convolutions by their paths, except those within attention."""
    return {
        path: layer
        for path, layer in module.named_modules()
        if isinstance(layer, WEIGHTED) and not isinstance(layer, NonDynamicallyQuantizableLinear)
    }


def _slope(ends: list[End]) -> float:
    squares = [1.0 if isinstance(end, str) else end**2 for end in ends]
    return math.sqrt(sum(squares) / len(squares)) if squares else 1.0


class _Tracer(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Treat weights and rectifiers as leaves, also subclasses that other packages define."""
        known = isinstance(m, (*WEIGHTED, *RECTIFIERS))
        return known or super().is_leaf_module(m, module_qualified_name)


def _traced(module: nn.Module, nodes: list[Node], mode: str) -> dict[str, list[End]]:
    known = {id(layer): path for path, layer in weighted_layers(module).items()}
    ends = {node: _end(module, node) for node in nodes}
    found: dict[str, list[End]] = {}
    for node in nodes:
        if node.op != "call_module" or ends[node] != "weight":
            continue
        path = known[id(module.get_submodule(str(node.target)))]
        if mode == "fan_out":
            reached = _follow(node, lambda step: step.users, ends)
        else:
            reached = _follow(node, lambda step: step.all_input_nodes, ends)
            if set(reached) <= {"outside"}:
                reached = _follow(node, lambda step: step.users, ends)
        # A layer that is called several times has several rectifiers, too.
        found[path] = found.get(path, []) + reached
    return found


def _follow(start: Node, step: Callable[[Node], Iterable[Node]], ends: dict[Node, End | None]) -> list[End]:
    """Return all ends of the paths from a node; each node is visited once."""
    reached: list[End] = []
    seen = {start}
    waiting = list(step(start))
    while waiting:
        node = waiting.pop()
        if node in seen or _is_about(node):
            continue
        seen.add(node)
        end = ends[node]
        if end is None:
            waiting += step(node)
        else:
            reached.append(end)
    return reached


def _is_about(node: Node) -> bool:
    """Return whether a node's result is a tensor's size or kind, which carries no signal."""
    return node.target in SIZES or (node.target is getattr and node.args[1] in ABOUT)


def _end(module: nn.Module, node: Node) -> End | None:
    """Return the end of a path that comes to a node; ``None`` if the path goes on."""
    if node.op in ("placeholder", "output"):
        return "outside"
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return _rectifier_slope(layer) if isinstance(layer, RECTIFIERS) else _weight(layer)
    if node.target in RELU:
        return 0.0
    if node.target in CLAMP:
        least = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
        return 0.0 if least == 0 and not isinstance(least, Node) else None
    if node.target in LEAKY_RELU:
        slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
        return float(slope) if isinstance(slope, (int, float)) else None
    if node.target in PRELU:
        weight: object = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
        if isinstance(weight, Node) and weight.op == "get_attr":
            return _root_mean_square(operator.attrgetter(str(weight.target))(module))
    return None


def _weight(layer: nn.Module) -> End | None:
    return "weight" if isinstance(layer, WEIGHTED) else None


def _rectifier_slope(layer: nn.Module) -> float:
    if isinstance(layer, nn.PReLU):
        return _root_mean_square(layer.weight)
    if isinstance(layer, nn.RReLU):
        return (layer.lower + layer.upper) / 2
    return float(layer.negative_slope) if isinstance(layer, nn.LeakyReLU) else 0.0


def _root_mean_square(slopes: Tensor) -> float:
    if slopes.is_meta:
        return 0.0  # They have no values, and weights drawn beside them will have none either.
    return slopes.detach().double().square().mean().sqrt().item()


def _registered(module: nn.Module, mode: str) -> dict[str, list[End]]:
    """Do as :func:`_traced`, as if the modules were called in the order of their registration."""
    weighted = weighted_layers(module)
    layers = [
        (path, layer)
        for path, layer in module.named_modules()
        if path in weighted or isinstance(layer, RECTIFIERS)
    ]
    ends = ["outside", *(_weight(layer) or _rectifier_slope(layer) for _, layer in layers), "outside"]
    found: dict[str, list[End]] = {}
    for place, (path, _) in enumerate(layers, 1):
        if path in weighted:
            before, after = ends[place - 1], ends[place + 1]
            found[path] = [after if mode == "fan_out" or before == "outside" else before]
    return found
