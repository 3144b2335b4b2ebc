"""Gatys, Ecker and Bethge 2016, section 2, equations 1 to 6: content loss, Gram matrices, style loss.

The gradients, equations 2 and 6, are zero where F is not positive: F are activations after the ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pl_losses.core.autograd import Context
from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import check_least, typed


@typed
def content_loss(features: Tensor, target: Tensor) -> Tensor:
    r"""Compute the content loss, eq. 1, over all images.

    .. math:: \frac{1}{2} \sum_{ij} (F_{ij} - P_{ij})^2

    Its gradient (eq. 2) is F - P.

    Args:
        features: F, of the generated image: [N, M], [N, H, W] or [B, N, H, W].
        target: P, of the content image, of the same shape. All images of a batch may share one target.

    Returns:
        Scalar, in float32 at least.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> content_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]))
        tensor(2.5000)
    """
    _check_shape("features", features)
    broadcast = features.ndim == 4 == target.ndim and target.shape[0] == 1
    if target.shape[broadcast:] != features.shape[broadcast:]:
        raise ValueError(f"Expected `target` of shape {list(features.shape)} but got {list(target.shape)}")
    return (at_least_float32(features) - at_least_float32(target)).square().sum() / 2


@typed
def gram_matrix(features: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Compute the Gram matrix, eq. 3, over the M positions; a mask gives each position a weight m_k.

    .. math:: G_{ij} = \sum_k m_k F_{ik} F_{jk}

    G is symmetric. So the backward pass needs only one matrix product: with S the gradient of G, this is
    :math:`F^T (S + S^T)`. Autograd would need two.

    Args:
        features: F: N channels at M = H W positions, [N, M], [N, H, W] or [B, N, H, W].
        mask: Weights m of the positions, at least 0, of the shape of ``features`` without N, or with B = 1.

    Returns:
        [N, N], or [B, N, N]; in float32 at least.

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> gram_matrix(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[ 5., 11.],
                [11., 25.]])
    """
    _check_shape("features", features)
    flat = at_least_float32(features) if features.ndim == 4 else at_least_float32(features)[None]
    flat = flat.flatten(2)
    if mask is not None:
        wanted = features.shape[:-3] + features.shape[-2:] if features.ndim > 2 else features.shape[1:]
        if mask.shape not in (wanted, (1, *wanted[1:])):
            raise ValueError(f"Expected `mask` of shape {list(wanted)} but got {list(mask.shape)}")
        check_least("mask", mask, 0)
        weights = mask.to(flat.dtype).sqrt()
        flat = flat * weights.reshape(mask.shape[0] if features.ndim == 4 else 1, 1, -1)
    gram: Tensor = _Gram.apply(flat)
    return gram if features.ndim == 4 else gram[0]


@typed
def style_loss(
    features: Tensor | Sequence[Tensor],
    target: Tensor | Sequence[Tensor],
    weights: Sequence[float] | None = None,
) -> Tensor:
    r"""Compute the style loss of one layer, E in eq. 4, or of several layers, eq. 5.

    .. math:: E_l = \frac{1}{4 N_l^2 M_l^2} \sum_{ij} (G_{ij} - A_{ij})^2, \qquad
        L_\text{style} = \sum_l w_l E_l

    A is the Gram matrix of the style image. G and A are each divided by the number of positions of their own
    image. So you can compare images of different sizes. If both have M positions, this is eq. 4 as printed.

    Args:
        features: F of the generated image, [N, M], [N, H, W] or [B, N, H, W], or a sequence of such, by
            layer.
        target: The same of the style image. It may have more or fewer positions, and B may be 1.
        weights: w_l of the layers. Default: 1 over their number.

    Returns:
        Scalar, summed over the batch, in float32 at least. For one layer it is E.

    Raises:
        ValueError: If shapes or numbers of layers do not fit.

    Example:
        >>> style_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 4.0]]))
        tensor(14.0625)
    """
    if isinstance(features, Tensor) or isinstance(target, Tensor):
        if not (isinstance(features, Tensor) and isinstance(target, Tensor)) or weights is not None:
            raise ValueError("Expected `features` and `target` as sequences, one tensor for each layer")
        for name, each in (("features", features), ("target", target)):
            _check_shape(name, each)
            if not each.numel():
                raise ValueError(f"Expected `{name}` to have values but got the shape {list(each.shape)}")
        batched = target.ndim == 4 and len(target) not in (1, len(features) if features.ndim == 4 else 1)
        if batched or target.shape[_channels(target)] != features.shape[_channels(features)]:
            raise ValueError(
                f"Expected `target` with the channels of `features`, {list(features.shape)}, and one image or"
                f" as many but got {list(target.shape)}"
            )
        return gram_loss(*(gram_matrix(each) / _positions(each) for each in (features, target)))
    if not features:
        raise ValueError("Expected `features` of at least one layer but got none")
    weights = [1 / len(features)] * len(features) if weights is None else weights
    if not len(features) == len(target) == len(weights):
        raise ValueError(
            f"Expected `target` and `weights` for {len(features)} layers but got {len(target)} and"
            f" {len(weights)}"
        )
    layers = zip(weights, features, target, strict=True)
    return torch.stack([weight * style_loss(own, other) for weight, own, other in layers]).sum()


def gram_loss(gram: Tensor, target: Tensor) -> Tensor:
    r"""Compute eq. 4 from Gram matrices per position.

    .. math:: \frac{1}{4 N^2} \sum_{ij} \Big( \frac{G_{ij}}{M} - \frac{A_{ij}}{M} \Big)^2

    Args:
        gram: G / M, [N, N] or [B, N, N].
        target: A / M, the same; B may be 1.

    Returns:
        Scalar.
    """
    return (gram - target).square().sum() / (4 * gram.shape[-1] ** 2)


@typed
def total_variation(images: Tensor) -> Tensor:
    """Compute the sum of the squared differences of neighbouring pixels: [..., H, W] -> scalar.

    >>> total_variation(torch.tensor([[0.0, 1.0], [0.0, 3.0]]))
    tensor(14.)
    """
    if images.ndim < 2:
        raise ValueError(f"Expected `images` of shape [..., H, W] but got {list(images.shape)}")
    images = at_least_float32(images)
    return images.diff(dim=-1).square().sum() + images.diff(dim=-2).square().sum()


class _Gram(torch.autograd.Function):
    """[B, N, M] -> [B, N, N], with the symmetric backward pass."""

    @staticmethod
    def forward(ctx: Context, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        with torch.autocast(features.device.type, enabled=False):
            return features @ features.transpose(1, 2)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        both = grads[0] + grads[0].transpose(1, 2)
        with torch.autocast(features.device.type, enabled=False):
            if features.stride(1) == 1:
                # Channels last, as the gradient should be, too.
                slope: Tensor = (features.transpose(1, 2) @ both).transpose(1, 2)
            else:
                slope = both @ features
            return slope


def gram_on_the_way(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features for the next layer, and their :func:`gram_matrix`: [B, N, H, W] -> same, [B, N, N].

    The Gram matrix's gradient is added in place to the one from later layers, which nothing else may hold:
    convolutions and pooling layers return such gradients. This saves the memory of a layer.
    """
    if features.requires_grad and features.dtype in (torch.float32, torch.float64):
        passed, gram = _GramOnTheWay.apply(features)
        return passed, gram
    return features, gram_matrix(features)


class _GramOnTheWay(torch.autograd.Function):
    """[B, N, H, W] -> itself and [B, N, N]."""

    @staticmethod
    def forward(ctx: Context, features: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(features)
        ctx.set_materialize_grads(False)
        flat = features.flatten(2)
        return features.view_as(features), flat @ flat.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Context, *grads: Tensor | None) -> Tensor | None:
        behind, slope = grads
        if slope is None:
            return behind
        (features,) = ctx.saved_tensors
        positions = features.flatten(2).transpose(1, 2)
        both = slope + slope.transpose(1, 2)
        if behind is None:
            behind = torch.zeros_like(features)
        same = behind.stride() == features.stride()
        behind = behind if same else behind.contiguous(memory_format=torch.channels_last)
        behind.flatten(2).transpose(1, 2).baddbmm_(positions, both)
        return behind


def _channels(features: Tensor) -> int:
    """Return the dimension of the channels."""
    return 1 if features.ndim == 4 else 0


def _positions(features: Tensor) -> int:
    return features.shape[_channels(features) + 1 :].numel()


def _check_shape(name: str, features: Tensor) -> None:
    if features.ndim not in (2, 3, 4) or not features.is_floating_point():
        raise ValueError(
            f"Expected `{name}` of shape [N, M], [N, H, W] or [B, N, H, W] in floating"
            f" point but got {list(features.shape)} in {features.dtype}"
        )
