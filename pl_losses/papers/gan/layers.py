"""Paszke et al. 2019, Listing 1: a custom layer is a class with parameters and a ``forward``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pl_losses.core.validation import check_counts, typed


class LinearLayer(nn.Module):
    r"""An affine map, :math:`y = x\, w + b`: [..., in_features] -> [..., out_features].

    It is the layer of Listing 1 with other initial weights. With unit variance, as printed, outputs would be
    larger than inputs by the square root of ``in_features``. Here inputs and outputs have equal variance at
    the start.

    Args:
        in_features: Size of an input.
        out_features: Size of an output.

    Raises:
        ValueError: If a size is no positive integer.

    Example:
        >>> LinearLayer(128, 10)(torch.zeros(4, 128)).shape
        torch.Size([4, 10])
    """

    @typed
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        check_counts(in_features=in_features, out_features=out_features)
        # A Parameter as an attribute is found by `parameters()`, moved by `to`, and saved.
        self.w = nn.Parameter(torch.randn(in_features, out_features) / in_features**0.5)
        self.b = nn.Parameter(torch.zeros(out_features))

    def forward(self, activations: Tensor) -> Tensor:
        """Return ``activations @ w + b``.

        Raises:
            ValueError: If ``activations`` is of another width than ``in_features``.
        """
        if activations.shape[-1:] != self.w.shape[:1]:
            raise ValueError(
                f"Expected `activations` of shape [..., {len(self.w)}] but got {list(activations.shape)}"
            )
        return activations @ self.w + self.b

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the layer."""
        return f"in_features={self.w.shape[0]}, out_features={self.w.shape[1]}"
