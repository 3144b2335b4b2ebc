"""He et al. 2015, section 2.2: initial weights that keep the scale of a rectifier network's signals.

A layer y = W x with x = f(y') and f(y) = max(0, y) + a min(0, y) has Var[y] = n Var[w] E[x^2], where each
output is a sum of n products and E[x^2] = (1 + a^2)/2 Var[y'] as y' is symmetric. So Var[w] = 2/((1 + a^2) n)
keeps the variance (eqs. 10 and 15). Going back, n is the number of outputs that each input has a part in and
a the slope of the rectifier after the layer (eq. 14).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from pl_losses.core.compat import of_torch
from pl_losses.core.sharding import shard_like
from pl_losses.core.validation import check_number, check_positive, check_real, typed
from pl_losses.papers.prelu.dataflow import TRANSPOSED, WEIGHTED, feeding_slopes, weighted_layers

Mode = Literal["fan_in", "fan_out"]


@typed
def fan(
    tensor: Tensor,
    mode: Mode = "fan_in",
    *,
    groups: int = 1,
    stride: int | Sequence[int] = 1,
    transposed: bool = False,
) -> float:
    r"""Count the products that add up to an output ("fan_in") or to an input's gradient ("fan_out").

    Let K be the product of the kernel's sizes, and S that of the strides. A convolution has the weight
    [out, in / groups, \*kernel]. Each output is a sum over in / groups channels and K positions. Each input
    goes to out / groups channels. There are S times fewer outputs than inputs, so it goes to K / S positions
    on average:

    .. math:: n_\text{in} = K \frac{\text{in}}{\text{groups}}, \qquad
        n_\text{out} = \frac{K}{S} \frac{\text{out}}{\text{groups}}

    A transposed convolution is the backward pass of a convolution. Its weight is
    [in, out / groups, \*kernel], and S changes its place:

    .. math:: n_\text{in} = \frac{K}{S} \frac{\text{in}}{\text{groups}}, \qquad
        n_\text{out} = K \frac{\text{out}}{\text{groups}}

    Borders are left out, as in the paper.

    Args:
        tensor: The weight, at least two dimensions.
        mode: "fan_in" or "fan_out".
        groups: The convolution's number of groups.
        stride: Its stride, one number or one per dimension of the kernel.
        transposed: Whether it is a transposed one.

    Raises:
        ValueError: If an argument is out of range, or ``stride`` or ``groups`` do not fit the weight.

    Example:
        >>> fan(torch.empty(64, 32, 3, 3)), fan(torch.empty(64, 32, 3, 3), "fan_out", stride=2)
        (288.0, 144.0)
        >>> fan(torch.empty(64, 1, 3, 3), "fan_out", groups=64)
        9.0
    """
    if tensor.ndim < 2 or not tensor.numel():
        raise ValueError(
            "Expected `tensor` with at least two dimensions, none of size 0, but got shape"
            f" {list(tensor.shape)}"
        )
    check_real("tensor", tensor)
    if groups < 1 or tensor.shape[0] % groups:
        raise ValueError(
            f"Expected `groups` to divide the first dimension of shape {list(tensor.shape)} but got {groups}"
        )
    strides = [stride] * (tensor.ndim - 2) if isinstance(stride, int) else list(stride)
    if len(strides) != tensor.ndim - 2 or any(step < 1 for step in strides):
        raise ValueError(
            f"Expected `stride` to be positive, one number or {tensor.ndim - 2}, but got {stride!r}"
        )
    kernel = tensor[0, 0].numel()
    # Of the side that the first dimension counts, an average over positions; of the other one, exact.
    if (mode == "fan_out") != transposed:
        return tensor.shape[0] // groups * kernel / math.prod(strides)
    return float(tensor.shape[1] * kernel)


@typed
def he_std(slope: float, fan: float) -> float:
    r"""Compute the standard deviation of the weights, eqs. 10, 14 and 15: :math:`\sqrt{2 / ((1 + a^2)\, n)}`.

    Args:
        slope: a, 0 for a ReLU and 1 for no rectifier at all.
        fan: n, see :func:`fan`.

    Raises:
        ValueError: If ``slope`` is not finite.

    Example:
        >>> [round(he_std(0.0, 9 * maps), 3) for maps in (64, 128, 256, 512)]
        [0.059, 0.042, 0.029, 0.021]
    """
    check_number("slope", slope)
    check_positive("fan", fan)
    return math.sqrt(2 / ((1 + slope**2) * fan))


@typed
def he_normal_(
    tensor: Tensor,
    slope: float = 0.0,
    mode: Mode = "fan_in",
    *,
    groups: int = 1,
    stride: int | Sequence[int] = 1,
    transposed: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Fill a weight from the normal distribution of mean 0 and the variance of eq. 15.

    .. math:: \mathrm{Var}[w] = \frac{2}{(1 + a^2)\, n}

    ``torch.nn.init.kaiming_normal_`` is different for some convolutions. For a grouped convolution its
    fan-out is ``groups`` times too large, and for a strided one ``stride`` squared times. For a transposed
    convolution it exchanges fan-in and fan-out, and ignores groups and stride. With ``nonlinearity="relu"``
    it ignores ``a``.

    Args:
        tensor: The weight of a linear layer or a convolution.
        slope: a of the rectifier, 0 for a ReLU, 1 for none: with "fan_in" of the one before the layer, with
            "fan_out" of the one after it.
        mode: "fan_in" keeps the scale of the signals, "fan_out" that of the gradients; either is enough.
        groups: The convolution's number of groups.
        stride: Its stride.
        transposed: Whether it is a transposed one.
        generator: Source of the random numbers.

    Returns:
        ``tensor``.

    Raises:
        ValueError: If an argument is out of range, see :func:`fan`.

    Example:
        >>> weight = he_normal_(torch.empty(512, 256, 3, 3), slope=0.25)
        >>> round(weight.std().item(), 3)  # sqrt(2 / (1.0625 * 9 * 256))
        0.029
    """
    std = he_std(slope, fan(tensor, mode, groups=groups, stride=stride, transposed=transposed))
    return _drawn(tensor, lambda whole: whole.normal_(0, std, generator=generator))


@typed
def he_uniform_(
    tensor: Tensor,
    slope: float = 0.0,
    mode: Mode = "fan_in",
    *,
    groups: int = 1,
    stride: int | Sequence[int] = 1,
    transposed: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Fill a weight from the uniform distribution with the variance of :func:`he_normal_`.

    Example:
        >>> bool(he_uniform_(torch.empty(10, 6)).abs().max() <= 1)  # sqrt(3) * sqrt(2 / 6)
        True
    """
    std = he_std(slope, fan(tensor, mode, groups=groups, stride=stride, transposed=transposed))
    bound = math.sqrt(3) * std
    return _drawn(tensor, lambda whole: whole.uniform_(-bound, bound, generator=generator))


@torch.no_grad()
def _drawn(tensor: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
    if not isinstance(tensor, DTensor):
        return draw(tensor)
    # Draw the whole: each rank by itself would draw the same numbers for its shard as the others.
    whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return tensor.copy_(shard_like(draw(whole), tensor))


@typed
def he_init_(
    module: nn.Module,
    mode: Mode = "fan_in",
    distribution: Literal["normal", "uniform"] = "normal",
    *,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Draw all weights of a network by eq. 15, with the slope of their rectifier, and set biases to 0.

    Weights are those of linear layers and of convolutions, transposed ones too, frozen or not. All other
    parameters stay as they are. Parametrised weights (``torch.nn.utils.parametrizations``) are set too. Which
    rectifier counts, and how it is found: :func:`~pl_losses.papers.prelu.dataflow.feeding_slopes`.

    Args:
        module: The network.
        mode: "fan_in" keeps the scale of the signals, "fan_out" that of the gradients.
        distribution: "normal" or "uniform".
        generator: Source of the random numbers.

    Returns:
        ``module``.

    Raises:
        ValueError: If an argument is none of its choices, a layer is lazy and has no size yet, or its weight
            is no parameter; or if ``module`` is a single layer, since nothing tells its rectifier.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.PReLU(), nn.ConvTranspose2d(64, 8, 2, stride=2))
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = he_init_(net, generator=generator)[2].weight
        >>> round(weight.std().item(), 2)  # sqrt(2 / (1.0625 * 64 * 4 / 4))
        0.17
    """
    if isinstance(module, WEIGHTED):
        raise ValueError(
            f"Expected `module` to be a network but got a single {type(module).__name__}, whose rectifier is"
            " unknown: give the whole network at once, or use `he_normal_(layer.weight, slope)`"
        )
    layers: dict[str, Any] = weighted_layers(module)
    if lazy := [path for path, layer in layers.items() if is_lazy(layer.weight)]:
        raise ValueError(f"Expected `module` with all sizes known but {', '.join(lazy)} have seen no input")
    if computed := [path for path, layer in layers.items() if not _settable(layer)]:
        raise ValueError(
            f"Expected `module` with weights that are parameters but those of {', '.join(computed)} are"
            " computed from others"
        )
    draw = he_normal_ if distribution == "normal" else he_uniform_
    for path, slope in feeding_slopes(module, mode).items():
        layer = layers[path]
        options: dict[str, Any] = {}
        if not isinstance(layer, nn.Linear):
            transposed = isinstance(layer, TRANSPOSED)
            options = {"groups": layer.groups, "stride": layer.stride, "transposed": transposed}
        weight = draw(layer.weight, slope, mode, **options, generator=generator)
        if parametrize.is_parametrized(layer, "weight"):
            layer.weight = weight  # The tensor drawn into is computed from the parameters.
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return module


def _settable(layer: Any) -> bool:
    return "weight" in of_torch.own_parameters(layer) or parametrize.is_parametrized(layer, "weight")
