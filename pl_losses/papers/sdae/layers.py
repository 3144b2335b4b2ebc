"""Vincent et al. 2010, section 2.2: one layer of an autoencoder, its encoder and its decoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_losses.core.kernels import is_plain
from pl_losses.core.validation import check_counts, typed
from pl_losses.papers.sdae.losses import Kind


class AutoencoderLayer(nn.Module):
    """Base of the layers that can be stacked.

    Override :meth:`encode`, :meth:`decode` and, if the decoder has parameters of its own,
    :meth:`encoder_parameters`.

    Attributes:
        kind: What :meth:`decode` returns: logits ("cross_entropy") or values ("squared").
    """

    kind: Kind = "cross_entropy"

    def encode(self, inputs: Tensor) -> Tensor:
        """Encode inputs: [B, ...] -> [B, ...]; in [0, 1] if a layer is stacked on top."""
        raise NotImplementedError(f"Expected `{type(self).__name__}` to override `encode`")

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes to logits or values of the reconstruction: [B, ...] -> the inputs' shape."""
        raise NotImplementedError(f"Expected `{type(self).__name__}` to override `decode`")

    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters that :meth:`encode` uses, which fine-tuning trains."""
        return self.parameters()

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode and decode inputs: the result has their shape."""
        return self.decode(self.encode(inputs))

    def mean(self, codes: Tensor) -> Tensor:
        """Compute the mean of p(x|z): probabilities or values, of the inputs' shape."""
        decoded = self.decode(codes)
        return decoded.sigmoid() if self.kind == "cross_entropy" else decoded


class DenseLayer(AutoencoderLayer):
    r"""A dense layer of an autoencoder, with s the logistic sigmoid.

    .. math:: y = s(W x + b), \qquad \textrm{decoded to} \quad W' y + b'

    Weights start uniform in :math:`\pm 4 \sqrt{6 / (D + H)}` (Glorot and Bengio 2010, for the sigmoid),
    biases at 0.

    Args:
        in_features: D.
        hidden_size: H.
        tied: Whether W' is W transposed: one parameter, whose gradient is the sum of both uses'.
        kind: What :meth:`decode` returns: "cross_entropy" (logits) or "squared" (values).

    Example:
        >>> layer = DenseLayer(6, 4)
        >>> layer(torch.rand(2, 6)).shape, sorted(layer.state_dict())
        (torch.Size([2, 6]), ['hidden_bias', 'visible_bias', 'weight'])
    """

    @typed
    def __init__(
        self, in_features: int, hidden_size: int, *, tied: bool = True, kind: Kind = "cross_entropy"
    ) -> None:
        check_counts(in_features=in_features, hidden_size=hidden_size)
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.empty(hidden_size, in_features))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden_size))
        self.visible_bias = nn.Parameter(torch.zeros(in_features))
        self.decoder_weight = None if tied else nn.Parameter(torch.empty(in_features, hidden_size))
        for weight in (self.weight, self.decoder_weight):
            if weight is not None:
                nn.init.xavier_uniform_(weight, gain=4.0)

    def encode(self, inputs: Tensor) -> Tensor:
        """Encode inputs: [B, D] -> [B, H], in (0, 1)."""
        return F.linear(inputs, self.weight, self.hidden_bias).sigmoid_()

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes: [B, H] -> [B, D]."""
        weight = self.weight.t() if self.decoder_weight is None else self.decoder_weight
        return F.linear(codes, weight, self.visible_bias)

    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        """Return W and b."""
        return self.weight, self.hidden_bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode and decode inputs: [B, D] -> [B, D]."""
        own = type(self)
        if (
            self.decoder_weight is None
            and inputs.ndim == 2
            and (own.encode, own.decode) == (DenseLayer.encode, DenseLayer.decode)
            and is_plain(inputs)
            and is_plain(self.weight)
            and not torch.is_autocast_enabled("cpu")
        ):
            decoded: Tensor = _Tied.apply(inputs, self.weight, self.hidden_bias, self.visible_bias)
            return decoded
        return super().forward(inputs)


class _Tied(torch.autograd.Function):
    """A tied layer, with one sum for both uses of W: autograd transposes a gradient, and adds it."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, hidden_bias: Tensor, visible_bias: Tensor
    ) -> Tensor:
        codes = F.linear(inputs, weight, hidden_bias).sigmoid_()
        ctx.save_for_backward(inputs, weight, hidden_bias, codes)
        return F.linear(codes, weight.t(), visible_bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (decoded,) = gradients
        inputs, weight, hidden_bias, codes = ctx.saved_tensors
        if torch.is_grad_enabled():  # For a second derivative, the codes depend on the weights.
            codes = F.linear(inputs, weight, hidden_bias).sigmoid()
        encoded = decoded @ weight.t() * (codes * (1 - codes))
        found: list[Tensor | None] = [None] * 4
        if ctx.needs_input_grad[0]:
            found[0] = encoded @ weight
        if ctx.needs_input_grad[1]:
            found[1] = (codes.t() @ decoded).addmm_(encoded.t(), inputs)
        if ctx.needs_input_grad[2]:
            found[2] = encoded.sum(0)
        if ctx.needs_input_grad[3]:
            found[3] = decoded.sum(0)
        return tuple(found)
