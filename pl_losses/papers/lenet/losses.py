"""LeCun et al. 1998, sections II.C and III: RBF penalties (eq. 7), the MLE and the MAP criterion (eqs. 8, 9).

"Gradient-based learning applied to document recognition", Proc. IEEE 86(11). A penalty is a squared
Euclidean distance: the lower, the better the class fits. Everything is computed in float32 at least, also
under autocast.
"""

import torch
from torch import Tensor

from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import check_classes, check_positive, check_shape, typed


@typed
def rbf_penalties(features: Tensor, centres: Tensor) -> Tensor:
    r"""Compute the penalties of Euclidean RBF units, eq. 7: :math:`y_i = \sum_j (x_j - w_{ij})^2`.

    Args:
        features: Output of the last hidden layer, shape [B, F].
        centres: Parameter vector of each class, shape [C, F].

    Returns:
        Penalties, shape [B, C], at least 0.

    Raises:
        ValueError: If the shapes do not fit together.

    Example:
        >>> rbf_penalties(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]]))
        tensor([[0., 4.]])
    """
    check_shape("centres", centres, "C", "F")
    if features.ndim != 2 or features.shape[1] != centres.shape[1]:
        raise ValueError(
            f"Expected `features` of shape [B, F] with F = {centres.shape[1]} but got {list(features.shape)}"
        )
    # Sum squared differences: near a centre, the expanded square cancels in float32.
    difference = at_least_float32(features)[:, None, :] - at_least_float32(centres)[None, :, :]
    return difference.square().sum(dim=-1)


@typed
def mle_loss(penalties: Tensor, target: Tensor) -> Tensor:
    r"""Compute the maximum likelihood criterion, eq. 8: :math:`E = \frac{1}{P} \sum_p y_{D_p}`.

    It only lowers the penalty of the right class. With adaptable centres it can collapse: all centres and
    features become equal. Then the loss is 0, and the network can only guess. So use :func:`map_loss` unless
    the centres are fixed.

    Args:
        penalties: Penalty of each class, shape [B, C], lower is better.
        target: Index of the right class, shape [B], integers in [0, C).

    Returns:
        Scalar, mean over the batch.

    Raises:
        TypeError: If ``target`` is not of an integer type.
        ValueError: If shapes do not fit together or a label is out of range.

    Example:
        >>> mle_loss(torch.tensor([[1.0, 3.0], [5.0, 2.0]]), torch.tensor([0, 1]))
        tensor(1.5000)
    """
    _check(penalties, target)
    return at_least_float32(penalties).gather(1, target.long()[:, None]).mean()


@typed
def map_loss(penalties: Tensor, target: Tensor, rubbish_penalty: float = 1.0) -> Tensor:
    r"""Compute the discriminative maximum a posteriori criterion, eq. 9.

    .. math:: E = \frac{1}{P} \sum_p \left( y_{D_p} + \log(e^{-j} + \sum_i e^{-y_i}) \right)

    The bracket is minus the log-posterior of the right class. Besides the classes there is a "rubbish" class
    with the constant penalty j. So E >= 0. The gradient is :math:`[i = D] - e^{-y_i} / (e^{-j} + \sum_k
    e^{-y_k})`. It raises the penalties of wrong classes, so that adaptable centres do not collapse.

    Args:
        penalties: Penalty of each class, shape [B, C], lower is better.
        target: Index of the right class, shape [B], integers in [0, C).
        rubbish_penalty: The paper's j > 0. Classes with a far higher penalty are not pushed further away.

    Returns:
        Scalar, mean over the batch.

    Raises:
        TypeError: If ``target`` is not of an integer type.
        ValueError: If shapes do not fit together, a label is out of range, or ``rubbish_penalty`` is not
            positive.

    Example:
        >>> map_loss(torch.tensor([[1.0, 620.0]]), torch.tensor([0]), rubbish_penalty=1.0)
        tensor(0.6931)
    """
    _check(penalties, target)
    # A log-softmax, since penalties reach 84 * 2.7159^2 ~ 620 and exp(-620) is 0.
    scores = _with_rubbish(at_least_float32(penalties), rubbish_penalty)
    return torch.nn.functional.cross_entropy(scores, target.long())


@typed
def rubbish_posterior(penalties: Tensor, rubbish_penalty: float = 1.0) -> Tensor:
    r"""Compute the posterior of "none of the classes" under eq. 9, by which the paper rejects patterns.

    :math:`e^{-j} / (e^{-j} + \sum_i e^{-y_i})`

    Args:
        penalties: Penalty of each class, shape [B, C], lower is better.
        rubbish_penalty: The paper's j > 0.

    Returns:
        Probabilities, shape [B].

    Raises:
        ValueError: If ``penalties`` is not [B, C] or ``rubbish_penalty`` is not positive.

    Example:
        >>> rubbish_posterior(torch.tensor([[0.0, 50.0], [1.0, 50.0], [40.0, 50.0]]), rubbish_penalty=1.0)
        tensor([0.2689, 0.5000, 1.0000])
    """
    check_shape("penalties", penalties, "B", "C")
    return _with_rubbish(at_least_float32(penalties), rubbish_penalty).softmax(dim=1)[:, -1]


def _with_rubbish(penalties: Tensor, rubbish_penalty: float) -> Tensor:
    """Negate the penalties and append the rubbish class as the last column, shape [B, C + 1]."""
    check_positive("rubbish_penalty", rubbish_penalty)
    return torch.nn.functional.pad(-penalties, (0, 1), value=-rubbish_penalty)


def _check(penalties: Tensor, target: Tensor) -> None:
    check_shape("penalties", penalties, "B", "C")
    check_classes("target", target, *penalties.shape)
    if not len(target):
        raise ValueError("Expected `target` of at least one pattern but got an empty batch")
