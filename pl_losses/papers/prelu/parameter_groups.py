"""He et al. 2015, section 2.1: no weight decay on the slopes, which would pull them to 0, a ReLU's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from pl_losses.core.compat import of_torch
from pl_losses.core.validation import check_not_negative, typed

NORMS: tuple[type[nn.Module], ...] = (of_torch.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@typed
def param_groups(
    module: nn.Module,
    weight_decay: float | None = None,
    *,
    lr: float | None = None,
    slope_lr: float | None = None,
    slope_lr_factor: float | None = None,
    slope_momentum: float | None = None,
    decay_biases: bool = True,
    decay_norms: bool = True,
) -> list[dict[str, Any]]:
    r"""Build parameter groups for any optimizer: the slopes of PReLUs have their own, without weight decay.

    A parameter is a slope if it belongs to an ``nn.PReLU``, to a subclass, or to a parametrisation of one
    (``torch.nn.utils.parametrize``). Its name and its shape do not matter. A shared slope is taken once. With
    SGD the slopes then follow the paper's update, :math:`\Delta a := \mu \Delta a + \epsilon\, \partial E /
    \partial a` (eq. 4), with their own mu and eps if these are given.

    Args:
        module: Whose parameters; frozen ones included.
        weight_decay: Of all but the slopes. ``None``: the optimizer's own.
        lr: Learning rate of all but the slopes. ``None``: the optimizer's own.
        slope_lr: Learning rate of the slopes. ``None``: that of the others.
        slope_lr_factor: The same as a multiple of ``lr``, which has to be given.
        slope_momentum: Momentum of the slopes, for optimizers that have a ``momentum``.
        decay_biases: Whether weight decay reaches biases.
        decay_norms: Whether it reaches the parameters of normalisation layers, by module type.

    Returns:
        Groups "weights", "undecayed" and "slopes", those without parameters left out. Each has its ``name``,
        which ``LearningRateMonitor`` and the monitors here show.

    Raises:
        ValueError: If an argument is negative or not finite, or ``slope_lr_factor`` has no ``lr`` or has a
            ``slope_lr``.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.PReLU(3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        >>> groups = param_groups(net, 5e-4, slope_momentum=0.5, decay_norms=False)
        >>> for group in groups:
        ...     print(group["name"], len(group.pop("params")), group)
        weights 4 {'name': 'weights', 'weight_decay': 0.0005}
        undecayed 2 {'name': 'undecayed', 'weight_decay': 0.0}
        slopes 1 {'name': 'slopes', 'weight_decay': 0.0, 'momentum': 0.5}
    """
    check_not_negative(weight_decay=weight_decay, lr=lr, slope_momentum=slope_momentum)
    check_not_negative(slope_lr=slope_lr, slope_lr_factor=slope_lr_factor)
    if slope_lr_factor is not None:
        if lr is None or slope_lr is not None:
            raise ValueError("Expected `slope_lr_factor` with an `lr` to multiply and without `slope_lr`")
        slope_lr = slope_lr_factor * lr
    options: dict[str, dict[str, float | None]] = {
        "weights": {"weight_decay": weight_decay, "lr": lr},
        "undecayed": {"weight_decay": 0.0, "lr": lr},
        "slopes": {
            "weight_decay": 0.0,
            "lr": lr if slope_lr is None else slope_lr,
            "momentum": slope_momentum,
        },
    }
    kinds = _kinds(module, decay_biases, decay_norms)
    groups = []
    for kind, given in options.items():
        parameters = [parameter for parameter, of in kinds.items() if of == kind]
        if parameters:
            known = {key: value for key, value in given.items() if value is not None}
            groups.append({"params": parameters, "name": kind, **known})
    return groups


def slope_parameters(layer: nn.PReLU) -> list[nn.Parameter]:
    """Return the parameters of a PReLU's slopes: themselves, or those of a parametrisation.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.PReLU(3))
        >>> [tuple(parameter.shape) for parameter in slope_parameters(layer)]
        [(3,), (3,)]
    """
    return [*dict.fromkeys(parameter for _, parameter in _own(layer))]


def _own(layer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield a layer's own parameters, those of a parametrisation under the name of its result."""
    yield from layer.named_parameters(recurse=False)  # Torch's old weight norm and pruning leave them here.
    if is_parametrized(layer):
        for name, made in layer.get_submodule("parametrizations").named_children():
            yield from ((name, parameter) for parameter in made.parameters())


def _kinds(module: nn.Module, decay_biases: bool, decay_norms: bool) -> dict[nn.Parameter, str]:
    kinds: dict[nn.Parameter, str] = {}
    for layer in module.modules():
        if isinstance(layer, nn.PReLU):
            kinds |= dict.fromkeys(slope_parameters(layer), "slopes")
            continue
        for name, parameter in _own(layer):
            # Also bias_ih_l0 of an LSTM, bias_k of an attention, bias_orig of a pruned layer.
            bias = any(part.endswith("bias") for part in name.split("_"))
            decays = decay_norms if isinstance(layer, NORMS) else decay_biases or not bias
            kinds.setdefault(parameter, "weights" if decays else "undecayed")
    return kinds
