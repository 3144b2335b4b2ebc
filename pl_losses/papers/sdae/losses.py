"""Vincent et al. 2010, sections 2.2 and 3.4: the reconstruction error, emphasised where corrupted."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import check_not_negative, check_positive, typed

Kind = Literal["squared", "cross_entropy"]
ROUNDING = 1e-3  # Rounding errors of pixels that were interpolated or scaled.


@typed
def reconstruction_loss(
    decoded: Tensor,
    clean: Tensor,
    touched: Tensor | None = None,
    *,
    kind: Kind = "squared",
    sigma: float = 1.0,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Tensor:
    r"""Compute minus the log-likelihood of clean inputs x, given their reconstruction z, up to a constant.

    Gaussian p(x|z), ``kind="squared"``: :math:`L = C(\sigma^2) \|x - z\|^2` with
    :math:`C(\sigma^2) = 1 / (2 \sigma^2)`. Bernoulli p(x|z), ``kind="cross_entropy"``:
    :math:`L = -\sum_j [x_j \log z_j + (1 - x_j) \log(1 - z_j)]` with :math:`z` the sigmoid of ``decoded``.
    For emphasis, the terms of touched elements are multiplied by alpha, and the others by beta.

    The loss is a sum over the elements of an example, and a mean over examples, as in the paper. A mean over
    all d elements would be d times smaller. Then the published learning rates would not fit.

    Args:
        decoded: The reconstruction, [B, ...]: z itself, or its logits for the cross-entropy.
        clean: The uncorrupted inputs, [B, ...]; in [0, 1] for the cross-entropy.
        touched: Which elements were corrupted, bool [B, ...]; needed for emphasis.
        kind: "squared" or "cross_entropy".
        sigma: Standard deviation of the Gaussian.
        alpha: Weight of touched elements.
        beta: Weight of the others; (1, 0.5) is the paper's "double" emphasis, (1, 0) the full one.

    Returns:
        Scalar, nats per example.

    Raises:
        ValueError: If shapes do not fit together, an argument is out of range or none of its choices, or
            ``clean`` is outside of [0, 1] for the cross-entropy.

    Example:
        >>> clean, decoded = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> reconstruction_loss(decoded, clean)
        tensor(2.5000)
        >>> reconstruction_loss(decoded, clean, torch.tensor([[True, False]]), beta=0.5)
        tensor(1.5000)
        >>> reconstruction_loss(decoded, clean, kind="cross_entropy")  # log 2 + log(1 + e^2)
        tensor(2.8201)
    """
    _check(decoded, clean, touched, kind=kind, sigma=sigma, alpha=alpha, beta=beta)
    decoded, clean = at_least_float32(decoded), at_least_float32(clean)
    weight = None
    if (alpha, beta) != (1.0, 1.0):
        assert touched is not None
        weight = torch.full_like(decoded, beta).masked_fill(touched, alpha)
    if kind == "cross_entropy":
        total = F.binary_cross_entropy_with_logits(decoded, clean, weight, reduction="sum")
    else:
        squares = (decoded - clean).square()
        total = (squares if weight is None else squares * weight).sum() / (2 * sigma**2)
    return total / len(clean)


def _check(
    decoded: Tensor,
    clean: Tensor,
    touched: Tensor | None,
    *,
    kind: str,
    sigma: float,
    alpha: float,
    beta: float,
) -> None:
    check_positive("sigma", sigma)
    check_not_negative(alpha=alpha, beta=beta)
    if decoded.ndim < 2 or not len(decoded):
        raise ValueError(
            f"Expected `decoded` of shape [B, ...] with B of at least 1 but got {list(decoded.shape)}"
        )
    for name, tensor in (("clean", clean), ("touched", touched)):
        if tensor is not None and tensor.shape != decoded.shape:
            raise ValueError(
                f"Expected `{name}` of the shape of `decoded`, {list(decoded.shape)}, but got"
                f" {list(tensor.shape)}"
            )
    if touched is None and (alpha, beta) != (1.0, 1.0):
        raise ValueError(f"Expected `touched` for the emphasis {alpha}, {beta} but got none")
    if touched is not None and touched.dtype != torch.bool:
        raise ValueError(f"Expected `touched` of type torch.bool but got {touched.dtype}")
    # On an accelerator this would wait for the device.
    if kind == "cross_entropy" and clean.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (float(extreme) for extreme in clean.detach().aminmax())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise ValueError(
                f"Expected `clean` in [0, 1] for the cross-entropy but got {low:.3g} to {high:.3g}: set `low`"
                ' to 0 and `high` to 1 in the data, or use "squared"'
            )
