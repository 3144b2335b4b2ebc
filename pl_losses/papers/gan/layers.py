"""Paszke et al. 2019, Listing 1: a custom layer is a class with parameters and a ``forward``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinearLayer(nn.Module):
    """An affine map: [..., in_features] -> [..., out_features].

    The listing's layer, but for the start of its weights: unit variance, as printed, would make the outputs
    larger by the square root of ``in_features``; here they start with the variance of the inputs.

    Args:
        in_features: Size of an input.
        out_features: Size of an output.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> LinearLayer(128, 10)(torch.zeros(4, 128)).shape
        torch.Size([4, 10])
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise ValueError(f"Expected `{name}` to be at least 1 but got {size}")
        # An attribute that is a Parameter is found by `parameters()`, moved by `to`, and saved.
        self.w = nn.Parameter(torch.randn(in_features, out_features) / in_features**0.5)
        self.b = nn.Parameter(torch.zeros(out_features))

    def forward(self, activations: Tensor) -> Tensor:
        """Return ``activations @ w + b``."""
        return activations @ self.w + self.b
