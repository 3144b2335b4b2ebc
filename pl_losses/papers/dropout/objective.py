"""Gal and Ghahramani 2016, eqs. 1 and 7: the objective, and its weight decay from prior and noise.

With L layers, drop probabilities p_l, N examples and E(y, y^) = 1/2 |y - y^|^2 (or -log of the right class'
probability), dropout training minimises

    L_dropout = 1/N sum_n E(y_n, y^_n) + sum_l (lambda_l |W_l|^2 + lambda'_l |b_l|^2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Literal

from torch import Tensor

from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import (
    check_counts,
    check_not_negative,
    check_positive,
    check_share,
    in_words,
    typed,
)

Convention = Literal["paper", "authors"]


@typed
def dropout_objective(
    errors: Tensor, parameters: Iterable[Tensor], weight_decay: float | Sequence[float]
) -> Tensor:
    r"""Compute the objective of dropout training, eq. 1.

    .. math:: L_\text{dropout} = \frac{1}{N} \sum_n E_n + \sum_l \lambda_l (|W_l|^2 + |b_l|^2)

    :math:`\lambda` is the weight decay of the paper. The ``weight_decay`` d of a torch optimizer is another
    number. It adds :math:`d W` to the gradient, and :math:`\lambda` adds :math:`2 \lambda W`. So
    :math:`d = 2 \lambda`.

    Args:
        errors: E of each example, such as half the squared error or the cross-entropy of a pass with dropout,
            [N]. For a batch, N is its size.
        parameters: Weights and biases, of any shapes.
        weight_decay: lambda of all parameters, or one for each in their order.

    Returns:
        Scalar, in float32 at least.

    Raises:
        TypeError: If ``parameters`` is a single tensor or a module, or ``weight_decay`` a tensor.
        ValueError: If ``errors`` is of another shape or empty, ``weight_decay`` is negative or not finite, or
            there are not as many as ``parameters``.

    Example:
        >>> import torch
        >>> weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])
        >>> dropout_objective(torch.tensor([0.5, 1.5]), [weight, bias], 0.1)  # 1 + 0.1 (5 + 9)
        tensor(2.4000)
        >>> dropout_objective(torch.tensor([0.5, 1.5]), [weight, bias], [0.1, 0.0])
        tensor(1.5000)
    """
    if errors.ndim != 1 or not len(errors):
        raise ValueError(f"Expected `errors` of shape [N] with N > 0 but got {list(errors.shape)}")
    tensors = list(parameters)
    if wrong := [tensor for tensor in tensors if not isinstance(tensor, Tensor)]:
        raise TypeError(f"Expected `parameters` to be tensors but got {in_words(wrong[0])}")
    one = isinstance(weight_decay, (int, float))
    decays = [float(weight_decay)] * len(tensors) if one else list(weight_decay)  # type: ignore[arg-type]
    if len(decays) != len(tensors):
        raise ValueError(
            f"Expected `weight_decay` to be a number, or one for each of {len(tensors)} `parameters`, but got"
            f" {len(decays)}"
        )
    for decay in decays:
        check_not_negative(weight_decay=decay)
    objective = at_least_float32(errors).mean()
    for tensor, decay in zip(tensors, decays, strict=True):
        if decay:
            objective = objective + decay * at_least_float32(tensor).square().sum()
    return objective


@typed
def weight_decay_of(
    precision: float,
    length_scale: float,
    size: int,
    *,
    p: float,
    convention: Convention = "paper",
    target_std: float = 1.0,
) -> float:
    r"""Compute lambda in :func:`dropout_objective` from the prior, where E is half the squared error.

    .. math:: \lambda = \frac{l^2 (1 - p)}{2 N \tau}

    This is eq. 7 for the weights of a layer. There the paper writes p for the probability of keeping. Biases
    are not dropped: for them, give ``p=0``.

    The derivation: a weight has the prior :math:`N(0, l^{-2})`, and the noise has the variance
    :math:`\tau^{-1}`. The paper approximates the posterior by a distribution q, which draws :math:`W =
    \mathrm{diag}(z) M`. A :math:`z_i` is 0 with probability p, and otherwise 1 (nearly: its variance goes to
    0). The biases :math:`b = m` are not dropped. This bound is made as large as possible:

    .. math:: \sum_n \mathrm{E}_q \log N(y_n; \hat y_n, \tau^{-1}) - \mathrm{KL}(q, \text{prior})

    Here :math:`-\log N` is :math:`\tau E` plus a constant. The KL divergence is, again up to a constant,

    .. math:: \frac{l^2}{2} \mathrm{E}_q \big( |W|^2 + |b|^2 \big)
        = \frac{l^2}{2} \big( (1 - p) |M|^2 + |m|^2 \big)

    Divide the bound by :math:`-N \tau`. This gives the loss of :func:`dropout_objective`, with the
    :math:`\lambda` above.

    There are two conventions:

    - "paper": as derived. If the targets of the training are divided by ``target_std``, called
      :math:`\sigma`, then their noise has the precision :math:`\tau \sigma^2`. It takes the place of
      :math:`\tau`.
    - "authors": what their published code does. It has the same :math:`\lambda`, but its error is the squared
      error without the factor 1/2. With this factor, the same loss has half of this :math:`\lambda`. The code
      does not use ``target_std``: its :math:`\tau` is in the units of the data, although the targets are
      standardised. Only weights decay there. So do not call this function for biases.

    PyTorch's dropout has masks of 0 and :math:`1 / (1 - p)`. So the stored weights are :math:`(1 - p) M` and
    not M. Neither convention takes this into account, nor does the authors' code. It is as if the
    length-scale were :math:`(1 - p) l`.

    Args:
        precision: :math:`\tau`, in the units of :math:`1 / y^2`; of a classification 1.
        length_scale: l, the inverse of the standard deviation of the weights' prior.
        size: N, the number of training examples.
        p: Probability of dropping an input of the layer.
        convention: "paper" or "authors".
        target_std: Divisor of the targets in training.

    Returns:
        lambda.

    Raises:
        TypeError: If ``size`` is no integer.
        ValueError: If an argument is out of range.

    Example:
        >>> weight_decay_of(precision=0.16, length_scale=0.01, size=455, p=0.05)
        6.524725274725275e-07
        >>> precision_of(_, length_scale=0.01, size=455, p=0.05)
        0.16
    """
    check_positive("precision", precision, none=True)
    return _finite(_numerator(length_scale, size, p, convention, target_std) / precision)


@typed
def precision_of(
    weight_decay: float,
    length_scale: float,
    size: int,
    *,
    p: float,
    convention: Convention = "paper",
    target_std: float = 1.0,
) -> float:
    r"""Compute tau from the weight decay, eq. 7: the inverse of :func:`weight_decay_of`.

    .. math:: \tau = \frac{l^2 (1 - p)}{2 N \lambda}

    Args:
        weight_decay: The lambda of :func:`dropout_objective`, with E half the squared error.
        length_scale: l, the inverse of the standard deviation of the weights' prior.
        size: N, the number of training examples.
        p: Probability of dropping an input of the layer.
        convention: "paper" or "authors", see :func:`weight_decay_of`.
        target_std: Divisor of the targets in training.

    Returns:
        tau, in the units of :math:`1 / y^2`.

    Raises:
        TypeError: If ``size`` is no integer.
        ValueError: If an argument is out of range.
    """
    check_positive("weight_decay", weight_decay)
    return _finite(_numerator(length_scale, size, p, convention, target_std) / weight_decay)


def _numerator(length_scale: float, size: int, p: float, convention: str, target_std: float) -> float:
    """Compute lambda tau, which is symmetric in both."""
    check_positive("length_scale", length_scale)
    check_positive("target_std", target_std)
    check_share("p", p)
    check_counts(size=size)
    # Not **, which raises an error on overflow instead of returning inf.
    derived = length_scale * length_scale * (1 - p) / (2 * size)
    return derived / target_std / target_std if convention == "paper" else derived / 2


def _finite(value: float) -> float:
    if not value < inf:
        raise ValueError(f"Expected arguments that give a finite number but they give {value}")
    return value
