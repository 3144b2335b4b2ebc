"""Kingma and Welling 2013, appendices B and C.1: the terms of the bound that Fig. 4's autoencoder maximises.

With a Gaussian posterior q(z|x) = N(mu, diag(sigma^2)), a standard normal prior and Bernoulli outputs p,

    log p(x) >= E_q[sum_d x_d log p_d + (1 - x_d) log(1 - p_d)] - KL(q(z|x) || p(z)).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import typed


@typed
def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Compute the KL divergence of :math:`N(\mu, \mathrm{diag}(\sigma^2))` from :math:`N(0, 1)`, in nats.

    .. math:: -\frac{1}{2} \sum_j \left(1 + \log \sigma_j^2 - \mu_j^2 - \sigma_j^2\right)

    Args:
        mean: :math:`\mu`, [B, J].
        log_variance: :math:`\log \sigma^2`, [B, J].

    Returns:
        [B].

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> kl_to_standard_normal(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2))
        tensor([2.])
    """
    if mean.shape != log_variance.shape:
        raise ValueError(
            f"Expected `log_variance` of shape {list(mean.shape)} but got {list(log_variance.shape)}"
        )
    mean, log_variance = at_least_float32(mean), at_least_float32(log_variance)
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(dim=1)


@typed
def bernoulli_error(logits: Tensor, target: Tensor) -> Tensor:
    r"""Compute minus the log-likelihood of binary data, in nats, :math:`\sum_d \log(1 + e^{l_d}) - x_d l_d`.

    Args:
        logits: l, log-odds of p(x|z), [B, D].
        target: x in [0, 1], [B, D].

    Returns:
        [B].

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> bernoulli_error(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 1.0]]))  # 3 log 2
        tensor([2.0794])
    """
    if logits.shape != target.shape:
        raise ValueError(f"Expected `target` of shape {list(logits.shape)} but got {list(target.shape)}")
    logits = at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none").sum(dim=1)
