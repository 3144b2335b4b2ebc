"""Kingma and Ba 2015, section 2.1 and 7.1: how far Adam and AdaMax can move a weight in one step."""

from __future__ import annotations

import math
from typing import NamedTuple

from pl_losses.core.validation import typed


class StepBounds(NamedTuple):
    """Two bounds of one step of one coordinate, in units of the learning rate alpha.

    Attributes:
        paper: As printed. Real steps may exceed it.
        tight: The smallest that holds for every sequence of gradients; infinite if there is none.
    """

    paper: float
    tight: float


@typed
def step_bounds(betas: tuple[float, float]) -> StepBounds:
    r"""Compute the bounds of Adam's step :math:`|\Delta_t| / \alpha`, without weight decay.

    Section 2.1 prints :math:`(1-\beta_1)/\sqrt{1-\beta_2}` if :math:`1-\beta_1 > \sqrt{1-\beta_2}`, and 1
    otherwise. The paper is wrong here: a late step has this length if all gradients before it were 0, but
    some other steps are longer. By the Cauchy-Schwarz inequality

    .. math:: |m_t| &= (1-\beta_1) \Big|\sum_k \beta_1^k g_{t-k}\Big| \\
        &\le (1-\beta_1) \sqrt{\sum_k \frac{\beta_1^{2k}}{\beta_2^k}} \sqrt{\sum_k \beta_2^k g_{t-k}^2}

    The last root is :math:`\sqrt{v_t / (1-\beta_2)}`. So the tight bound is

    .. math:: \frac{|m_t|}{\sqrt{v_t}} \le \frac{1-\beta_1}{\sqrt{(1-\beta_2)(1-\beta_1^2/\beta_2)}}

    If t is large, the gradients :math:`g_{t-k} = (\beta_1/\beta_2)^k g_t` reach it. With bias correction,
    AMSGrad or eps, no step is longer than this either. If :math:`\beta_1^2 \ge \beta_2`, a step can be of any
    length. If :math:`\beta_1 = 0`, both bounds are equal.

    Args:
        betas: Decay rates of both moments, each in [0, 1).

    Raises:
        ValueError: If a beta is outside of [0, 1).

    Example:
        >>> paper, tight = step_bounds((0.9, 0.999))
        >>> round(paper, 4), round(tight, 4)
        (3.1623, 7.2703)
        >>> m = v = 0.0
        >>> for k in reversed(range(300)):  # The gradients of the tight bound, the oldest first.
        ...     g = (0.9 / 0.999) ** k
        ...     m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        >>> round(m / v**0.5, 4)  # 3.1623 is no bound.
        7.2703
    """
    beta1, beta2 = _checked(betas)
    paper = max((1 - beta1) / math.sqrt(1 - beta2), 1.0)
    if beta1 == 0:
        return StepBounds(paper, paper)
    if beta1**2 >= beta2:
        return StepBounds(paper, math.inf)
    return StepBounds(paper, (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2)))


@typed
def adamax_step_bounds(betas: tuple[float, float]) -> StepBounds:
    r"""Compute the bounds of AdaMax' step :math:`|\Delta_t| / \alpha`, without weight decay.

    Section 7.1 prints 1. As :math:`|g_{t-k}| \le \beta_2^{-k} u_t`, the tight bound is the sum over k of
    :math:`(1-\beta_1) (\beta_1/\beta_2)^k`, which is :math:`(1-\beta_1)/(1-\beta_1/\beta_2)`. Gradients that
    shrink by :math:`\beta_2` each step reach it when t is large. If :math:`\beta_2 \le \beta_1 > 0`, nothing
    bounds the step.

    Args:
        betas: Decay rates of the first moment and of the infinity norm, each in [0, 1).

    Raises:
        ValueError: If a beta is outside of [0, 1).

    Example:
        >>> paper, tight = adamax_step_bounds((0.9, 0.999))
        >>> paper, round(tight, 4)
        (1.0, 1.0091)
    """
    beta1, beta2 = _checked(betas)
    if beta1 == 0:
        return StepBounds(1.0, 1.0)
    return StepBounds(1.0, (1 - beta1) / (1 - beta1 / beta2) if beta1 < beta2 else math.inf)


def _checked(betas: tuple[float, float]) -> tuple[float, float]:
    first, second = (float(beta) for beta in betas)
    if not (0 <= first < 1 and 0 <= second < 1):
        raise ValueError(f"Expected `betas` in [0, 1) but got {(first, second)}")
    return first, second
