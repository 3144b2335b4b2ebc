"""Paszke et al. 2019, Listing 2: the losses of a GAN (Goodfellow et al. 2014, section 3), from logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import check_share, typed


@typed
def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, *, smoothing: float = 0.0) -> Tensor:
    r"""Compute the listing's errD_real + errD_fake.

    .. math:: -\frac1N \sum_i \log D(x_i) - \frac1M \sum_j \log(1 - D(G(z_j)))

    One-sided label smoothing (Salimans et al. 2016) gives real samples the label 1 - s.

    Args:
        real_logits: Logits of N real samples, D = sigmoid of them; any shape.
        fake_logits: Logits of M generated samples; any shape.
        smoothing: s.

    Returns:
        Scalar, in nats.

    Raises:
        TypeError: If the logits are no tensors.
        ValueError: If there are no logits, or ``smoothing`` is not in [0, 1).

    Example:
        >>> import torch
        >>> discriminator_loss(torch.zeros(4), torch.zeros(4))  # 2 log 2: D cannot tell
        tensor(1.3863)
    """
    check_share("smoothing", smoothing)
    real, fake = _logits("real_logits", real_logits), _logits("fake_logits", fake_logits)
    # -(1 - s) log sigmoid(r) - s log(1 - sigmoid(r)), and log(1 - sigmoid(r)) = log sigmoid(r) - r.
    loss = F.softplus(-real).mean() + F.softplus(fake).mean()
    return loss + smoothing * real.mean() if smoothing else loss


@typed
def generator_loss(fake_logits: Tensor) -> Tensor:
    r"""Compute the listing's errG, the non-saturating loss: :math:`-\frac1M \sum_j \log D(G(z_j))`.

    Args:
        fake_logits: Logits of M generated samples, D = sigmoid of them; any shape.

    Returns:
        Scalar, in nats.

    Raises:
        TypeError: If the logits are no tensor.
        ValueError: If there are no logits.

    Example:
        >>> import torch
        >>> generator_loss(torch.zeros(4))
        tensor(0.6931)
    """
    return F.softplus(-_logits("fake_logits", fake_logits)).mean()


def _logits(name: str, logits: Tensor) -> Tensor:
    if not logits.numel():
        raise ValueError(f"Expected `{name}` of at least one sample but got {list(logits.shape)}")
    return at_least_float32(logits)
