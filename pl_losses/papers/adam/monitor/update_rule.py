"""Kingma and Ba 2015, Algorithm 1 and its relatives: the last step in closed form, given the state after it.

The step of one coordinate is alpha times a direction that follows from its moments; with
c1 = 1 - beta1^t and c2 = 1 - beta2^t it is

    Adam, AMSGrad           sqrt(c2)/c1 * m / (sqrt(v) + eps sqrt(c2))
    AdaMax (section 7.1)    1/c1 * m / u
    RAdam (Liu 2020)        rect sqrt(c2)/c1 * m / (sqrt(v) + eps), in the first steps m/c1
    NAdam (Dozat 2016)      sqrt(c2) * n / (sqrt(v) + eps sqrt(c2)) with n = y m + x g

and so always ``ratio`` times n / (sqrt(v) + ``shift``), n / u or n. Decoupled weight decay comes beside it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam, Adamax, AdamW, NAdam, Optimizer, RAdam

from pl_losses.papers.adam.bounds import StepBounds, adamax_step_bounds, step_bounds

Kind = Literal["adam", "adamax", "nadam", "radam"]
Number = float | Tensor  # A Tensor is on a device that must not be waited for.


class Rule(NamedTuple):
    """The update rule of a parameter group.

    Attributes:
        kind: The closed form.
        lr: alpha.
        beta1: Decay rate of the first moment.
        beta2: Decay rate of the second moment or of the infinity norm.
        eps: Added to the denominator.
        weight_decay: Its coefficient.
        decoupled: Whether weights decay beside the gradient (AdamW) and not through it.
        amsgrad: Whether the largest second moment so far divides.
        bias_correction: Of both moments, of none, or of the denominator's only.
        momentum_decay: NAdam's psi.
        maximize: Whether it goes up the gradient.
    """

    kind: Kind
    lr: Number
    beta1: Number
    beta2: Number
    eps: float
    weight_decay: float = 0.0
    decoupled: bool = False
    amsgrad: bool = False
    bias_correction: bool | Literal["denominator"] = True
    momentum_decay: float = 0.0
    maximize: bool = False

    @staticmethod
    def of(group: dict[str, Any], kind: Kind, decoupled: bool = False) -> Rule:
        """Read the rule of a parameter group, whose own ``decoupled_weight_decay`` has precedence."""
        beta1, beta2 = group["betas"]
        return Rule(
            kind,
            number(group["lr"]),
            number(beta1),
            number(beta2),
            float(group["eps"]),
            float(group.get("weight_decay", 0.0)),
            bool(group.get("decoupled_weight_decay", decoupled)),
            bool(group.get("amsgrad", False)),
            group.get("bias_correction", True),
            float(group.get("momentum_decay", 0.0)),
            bool(group.get("maximize", False)),
        )

    @property
    def decay(self) -> float:
        """The coefficient of decoupled weight decay."""
        return self.weight_decay if self.decoupled else 0.0

    @property
    def unknown(self) -> list[str]:
        """Which of the numbers are on a device."""
        return [name for name in ("lr", "beta1", "beta2") if isinstance(getattr(self, name), Tensor)]

    @property
    def bounds(self) -> StepBounds | None:
        """The bounds of a step; none for RAdam and NAdam."""
        return _bounds(self.kind, float(self.beta1), float(self.beta2))


@lru_cache  # They are the same at each step.
def _bounds(kind: Kind, beta1: float, beta2: float) -> StepBounds | None:
    if kind in ("nadam", "radam"):
        return None
    return (adamax_step_bounds if kind == "adamax" else step_bounds)((beta1, beta2))


def kind_of(optimizer: Optimizer) -> tuple[Kind, bool] | None:
    """Return an optimizer's closed form, and whether its weight decay is decoupled by default.

    It knows torch's optimizers and their subclasses, this suite's own among them; those whose groups have
    ``bias_correction``, such as DeepSpeed's (with ``adam_w_mode``), if they keep torch's states; and
    ZeroRedundancyOptimizer around one of them. For others it returns ``None``.
    """
    optimizer = getattr(optimizer, "optim", optimizer)
    classes: dict[Kind, type] = {"nadam": NAdam, "radam": RAdam, "adamax": Adamax, "adam": Adam}
    for kind, known in classes.items():
        if isinstance(optimizer, known):
            return kind, isinstance(optimizer, AdamW)
    if any("bias_correction" in group and "betas" in group for group in optimizer.param_groups):
        return "adam", bool(getattr(optimizer, "adam_w_mode", False))
    return None


def number(value: Any) -> Number:
    """Convert to a float, or return a tensor that is on another device."""
    if isinstance(value, Tensor):
        if not value.is_cpu:
            return value
        value = value.tolist()  # Unlike what float() would call, it never waits for a device.
    return float(value[0] if isinstance(value, list) else value)


def bias_correction(beta: Number, step: Number) -> Number:
    """Compute 1 - beta^t; on a device without float32's cancellation.

    Example:
        >>> round(bias_correction(0.999, 10), 6)
        0.009955
    """
    if not isinstance(beta, Tensor) and not isinstance(step, Tensor):
        return 1.0 - math.pow(beta, step)
    log: Any = beta.log() if isinstance(beta, Tensor) else (math.log(beta) if beta else -math.inf)
    return -torch.expm1(step * log)


def coefficients(rule: Rule, step: Any, mu_product: Any = 1.0) -> dict[str, Any]:
    """Compute the numbers of the closed form: floats, or tensors of the shape of the given steps.

    Beside ``ratio`` and ``shift``: ``signal`` times m/sqrt(v) is m^/sqrt(v^), and where 1/sqrt(v) is above
    ``small``, sqrt(v^) < 10 eps. NAdam alone has ``x`` and ``y``; RAdam's ``rectified`` is 1 or 0.

    Args:
        rule: How the group is stepped.
        step: t; 0, when the first steps were skipped, counts as 1.
        mu_product: NAdam's product of the mu up to t.

    Example:
        >>> rule = Rule("adam", 1e-3, 0.9, 0.999, 1e-8)
        >>> [round(coefficients(rule, t)["ratio"], 3) for t in (1, 2, 5, 10, 30, 100, 1000, 5000)]
        [0.316, 0.235, 0.172, 0.153, 0.18, 0.309, 0.795, 0.997]
    """
    step = step.clamp(min=1) if isinstance(step, Tensor) else max(step, 1.0)
    c1: Any = bias_correction(rule.beta1, step)
    if rule.kind == "adamax":
        return {"ratio": 1 / c1}
    c2: Any = bias_correction(rule.beta2, step)
    root = c2**0.5
    eps = rule.eps or 1e-300
    found = {"signal": root / c1}
    if rule.kind == "radam":
        return found | {"shift": rule.eps, "small": 0.1 / eps} | _rectified(rule, step, c1, c2)
    if rule.kind == "nadam":
        mu, following = (rule.beta1 * (1 - 0.5 * 0.96 ** (t * rule.momentum_decay)) for t in (step, step + 1))
        x, y = (1 - mu) / (1 - mu_product), following / (1 - mu_product * following)
        # L2 decay adds x wd w to n for the weight w before the step: solved for the weight after it.
        own = 0.0 if rule.decoupled else rule.lr * x * rule.weight_decay
        return found | {
            "x": x,
            "y": y,
            "ratio": root,
            "shift": (rule.eps - own) * root,
            "small": 0.1 / (eps * root),
        }
    if rule.bias_correction is not True:
        c1 = 1.0
        root = root if rule.bias_correction == "denominator" else 1.0
    return found | {"ratio": root / c1, "shift": rule.eps * root, "small": 0.1 / (eps * root)}


def _rectified(rule: Rule, step: Any, c1: Any, c2: Any) -> dict[str, Any]:
    longest = 2 / (1 - rule.beta2) - 1
    length = longest - 2 * step * (1 - c2) / c2

    def square() -> Any:
        return (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length) * c2

    if isinstance(length, Tensor):
        on = length > 5
        return {"ratio": torch.where(on, square(), 1.0).sqrt() / c1, "rectified": on.to(length.dtype)}
    if length > 5:
        return {"ratio": math.sqrt(square()) / c1, "rectified": 1.0}
    return {"ratio": 1 / c1, "rectified": 0.0}


def effective_step(rule: Rule, step: float) -> float:
    r"""Compute the factor of alpha m / sqrt(v) by bias correction, all numbers on the CPU.

    For Adam :math:`\sqrt{1-\beta_2^t}/(1-\beta_1^t)`, or less of it as ``bias_correction`` says; for AdaMax
    :math:`1/(1-\beta_1^t)`; for RAdam with the rectification, before which it multiplies m alone; for NAdam
    that of m without the gradient's share.

    Example:
        >>> round(effective_step(Rule("adam", 1e-3, 0.9, 0.999, 1e-8), 10), 3)
        0.153
    """
    product = 1.0
    if rule.kind == "nadam":
        steps = np.arange(1, min(step, 10_000) + 1)  # The product is 0 long before.
        product = float(np.prod(rule.beta1 * (1 - 0.5 * 0.96 ** (steps * rule.momentum_decay))))
    terms = coefficients(rule, step, product)
    return float(terms["ratio"] * terms.get("y", 1.0))
