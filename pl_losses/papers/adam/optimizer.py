"""Kingma and Ba 2015: Adam (Algorithm 1) with its bias correction as a switch, AdaMax (Algorithm 2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import ParamsT

from pl_losses.core.compat import of_torch
from pl_losses.core.validation import check_not_negative, typed

OPTIONS = (
    *("lr", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused"),
    "decoupled_weight_decay",
)
BiasCorrection = bool | Literal["denominator"]
Group = dict[str, Any]  # A parameter group, or what a kernel takes of it: values of many types by name.


class Adam(torch.optim.Adam):
    r"""``torch.optim.Adam`` with a switch for the bias correction of each moment.

    .. math:: \theta_t = \theta_{t-1} - \alpha \frac{m_t / c_1}{\sqrt{v_t / c_2} + \epsilon}

    Here :math:`c_1 = 1 - \beta_1^t` and :math:`c_2 = 1 - \beta_2^t` (section 3), or 1 if switched off. All
    options of ``torch.optim.Adam`` have the same meaning here. Its kernels (foreach, fused) do the work. Each
    of the two optimizers can load the other's ``state_dict``.

    Args:
        params: Parameters or parameter groups; a group may have a ``bias_correction`` of its own.
        lr: alpha.
        betas: Decay rates beta1 and beta2 of the moments.
        eps: Added to the denominator.
        weight_decay: Added to the gradient, or decoupled from it, times the weights.
        amsgrad: Whether to divide by the largest second moment so far.
        bias_correction: ``True`` for Algorithm 1; ``False`` for c_1 = c_2 = 1, the runs without correction
            of Fig. 4; "denominator" for c_1 = 1 only, which starts with steps that are smaller by 1 - beta1.
        kwargs: ``foreach``, ``fused``, ``maximize``, ``capturable``, ``differentiable`` and
            ``decoupled_weight_decay`` of ``torch.optim.Adam``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> weight.grad = torch.ones(1)
        >>> Adam([weight], lr=1.0, bias_correction=False).step()
        >>> round(weight.item(), 4)  # (1 - 0.9) / sqrt(1 - 0.999); with correction the first step is lr
        -3.1623
    """

    @typed
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        bias_correction: BiasCorrection = True,
        **kwargs: Any,
    ) -> None:
        _refuse(bias_correction)
        _check_settings(lr=lr, eps=eps, weight_decay=weight_decay)
        self._bias_correction = bias_correction
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **kwargs)
        self.defaults["bias_correction"] = bias_correction

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._bias_correction = self.defaults["bias_correction"]  # A copy has the defaults only.

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, whose ``bias_correction`` is that of the constructor unless it has one."""
        _refuse(param_group.setdefault("bias_correction", self._bias_correction))
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Load the state of this class or of ``torch.optim.Adam``; the latter leaves the switch as it is."""
        own = [group["bias_correction"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, correction in zip(self.param_groups, own, strict=True):
            group.setdefault("bias_correction", correction)

    def step(self, closure: Callable[[], object] | None = None) -> Any:
        """Take a step.

        Args:
            closure: Computes the loss and the gradients anew.

        Returns:
            The closure's loss; ``None`` without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for group in self.param_groups:
                self._step_group(group)
        return loss

    def _step_group(self, group: Group) -> None:
        tensors: list[list[Tensor]] = [[], [], [], [], [], []]
        has_complex = of_torch.init_group(self, group, *tensors)
        options = self._options(group) | {"has_complex": has_complex}
        steps = tensors[5]
        correction = group["bias_correction"]
        on_host = not group["capturable"] and all(step.is_cpu for step in steps)
        if correction is True or not steps:
            _call(tensors, options)
        elif correction is False and not on_host:
            # beta^t is 0 for t = infinity, for which all kernels do without the correction.
            never = {device: torch.tensor(torch.inf, device=device) for device in {s.device for s in steps}}
            _call([*tensors[:5], [never[step.device] for step in steps]], options)
            self._count(steps)
        else:
            if group["decoupled_weight_decay"]:
                # Here, as in the kernels it would go with the changed rate.
                self._decay(tensors[0], group["lr"] * group["weight_decay"])
                options["weight_decay"] = 0.0
            for part, scaled in _undone(group, tensors, on_host):
                _call(part, options | scaled)

    def _options(self, group: Group) -> Group:
        options = {name: group[name] for name in OPTIONS}
        options["beta1"], options["beta2"] = group["betas"]
        # What a gradient scaler hands to a fused optimizer.
        return options | {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}

    def _count(self, steps: list[Tensor]) -> None:
        of_torch.foreach_add_(steps, 1)
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None:  # a fused kernel has skipped a step that overflowed
            of_torch.foreach_sub_(steps, [found_inf.to(step.device) for step in steps])

    def _decay(self, params: list[Tensor], share: float | Tensor) -> None:
        found_inf = getattr(self, "found_inf", None)
        kept = 1 - share if found_inf is None else 1 - share * (1 - found_inf)
        for param in params:
            param.mul_(kept.to(param.device) if isinstance(kept, Tensor) else kept)


def _call(tensors: list[list[Tensor]], options: Group) -> None:
    params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps = tensors
    adam(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, **options)


def _undone(
    group: Group, tensors: list[list[Tensor]], on_host: bool
) -> Iterator[tuple[list[list[Tensor]], Group]]:
    """Yield parts of a group of equal t, with lr and eps that make a kernel's correction the wanted one."""
    rows: defaultdict[Any, list[int]] = defaultdict(list)
    for index, step in enumerate(tensors[5]):
        # On an accelerator a look at the step would wait for it: there, each parameter goes on its own.
        rows[step.item() if on_host else step].append(index)
    (beta1, beta2), lr, eps = group["betas"], group["lr"], group["eps"]
    for taken, chosen in rows.items():
        part = tensors
        if len(rows) > 1:
            part = [[column[index] for index in chosen] if column else [] for column in tensors]
        root = (1 - beta2 ** (taken + 1)) ** 0.5 if group["bias_correction"] is False else 1.0
        yield part, {"lr": lr * (1 - beta1 ** (taken + 1)) / root, "eps": eps / root}


def _refuse(correction: object) -> None:
    if not isinstance(correction, bool) and correction != "denominator":
        raise ValueError(
            f"Expected `bias_correction` to be True, False or 'denominator' but got {correction!r}"
        )


def _check_settings(**settings: float | Tensor) -> None:
    for name, value in settings.items():
        if not isinstance(value, Tensor):
            check_not_negative(**{name: value})


class AdaMax(torch.optim.Adamax):
    r"""Algorithm 2, the variant of Adam with the infinity norm.

    .. math:: u_t = \max(\beta_2 u_{t-1}, |g_t|), \qquad
        \theta_t = \theta_{t-1} - \frac{\alpha}{1 - \beta_1^t} \frac{m_t}{u_t}

    ``torch.optim.Adamax`` with the denominator of the algorithm: epsilon is so small that it only avoids 0 /
    0. Steps of parameters whose gradients have all been 0 are 0.

    Args:
        params: Parameters or parameter groups.
        lr: alpha.
        betas: Decay rates beta1 of the first moment, beta2 of the norm.
        eps: Added to the gradient's size in u.
        weight_decay: Added to the gradient, times the weights.
        kwargs: ``foreach``, ``maximize``, ``capturable`` and ``differentiable`` of ``torch.optim.Adamax``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([1e-12, 0.0])
        >>> AdaMax([weight]).step()
        >>> weight.tolist()  # the first step is lr, however small the gradient
        [-0.0020000000949949026, 0.0]
    """

    @typed
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = torch.finfo(torch.float32).tiny,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        _check_settings(lr=lr, eps=eps, weight_decay=weight_decay)
        super().__init__(params, lr, betas, eps, weight_decay, **kwargs)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters.

        Raises:
            ValueError: If its ``eps`` is 0 in the precision of its parameters, so that steps may be 0 / 0.
        """
        super().add_param_group(param_group)
        for param in param_group["params"]:
            if not torch.tensor(param_group["eps"], dtype=param.dtype).abs() > 0:
                raise ValueError(
                    f"Expected `eps` to be more than 0 in {param.dtype} but got {param_group['eps']}"
                )
