"""Random planar affine maps of image batches (LeCun et al. 1998, section III: distortions)."""

from __future__ import annotations

from math import radians

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from pl_losses.core.validation import check_not_negative, typed


class RandomAffine:
    """Draws one affine map per image and applies all of them with one bilinear resampling.

    A map scales, squeezes, shears, rotates about the image's centre and then translates. Each of its
    parameters is uniform in plus or minus its range; a range of 0 switches it off. The paper names
    translation, scaling, squeezing and horizontal shear but not their ranges: the defaults suit 28x28 digits.

    Args:
        translate: Range of the shift along each axis, in pixels.
        scale: Range of the logarithm of the common scale factor.
        squeeze: Range of the logarithm of the factor that widens an image and flattens it as much.
        shear: Range of the horizontal shear, in pixels per row.
        rotate: Range of the rotation, in degrees.
        background: Value that moves in from outside.

    Raises:
        ValueError: If a range is negative or not finite.

    Example:
        >>> images = torch.rand(4, 1, 32, 32)
        >>> RandomAffine()(images, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 1, 32, 32])
    """

    @typed
    def __init__(
        self,
        translate: float = 2.0,
        *,
        scale: float = 0.1,
        squeeze: float = 0.1,
        shear: float = 0.15,
        rotate: float = 0.0,
        background: float = 0.0,
    ) -> None:
        check_not_negative(translate=translate, scale=scale, squeeze=squeeze, shear=shear, rotate=rotate)
        self.ranges = (translate, translate, scale, squeeze, shear, radians(rotate))
        self.background = background

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the distorted images.

        Args:
            images: Floating point, [B, C, H, W].
            generator: Source of the parameters, on the images' device. Default: PyTorch's own.

        Returns:
            [B, C, H, W]; ``images`` itself when all ranges are 0.

        Raises:
            ValueError: If ``images`` has another shape or is not floating point.
        """
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(
                f"Expected `images` of shape [B, C, H, W] in floating point but got {list(images.shape)} in"
                f" {images.dtype}"
            )
        if not any(self.ranges):
            return images
        draws = torch.rand(len(images), len(self.ranges), generator=generator, device=images.device)
        parameters = (draws * 2 - 1) * torch.tensor(self.ranges).to(images.device, non_blocking=True)
        return warp(images, parameters, background=self.background)


def warp(
    images: Tensor, parameters: Tensor, *, background: float = 0.0, displacement: Tensor | None = None
) -> Tensor:
    """Apply one affine map per image, bilinearly.

    A point (x, y) seen from the centre, y downwards, goes to ``R(angle) [[1, shear], [0, 1]]
    diag(exp(scale + squeeze), exp(scale - squeeze)) (x, y) + (right, down)``. Shifts by whole pixels are
    exact where the width and height are powers of two.

    Args:
        images: Floating point, [B, C, H, W].
        parameters: The columns right and down in pixels, scale and squeeze as logarithms, shear in pixels per
            row, angle in radians from the x towards the y axis: [B, 6].
        background: Value of everything outside of the images.
        displacement: Offset from the map's place to the one where each output pixel is sampled, right and
            down, in
            pixels: [B, 2, H, W].

    Returns:
        [B, C, H, W].
    """
    height, width = images.shape[-2:]
    right, down, scale, squeeze, shear, angle = parameters.unbind(1)
    cos, sin = angle.cos(), angle.sin()
    narrow, flat = (-scale - squeeze).exp(), (squeeze - scale).exp()
    # Resampling needs the place that each output pixel comes from, hence the inverse map; x and y are in
    # half widths and heights.
    xx, xy = narrow * (cos + shear * sin), narrow * (sin - shear * cos)
    yx, yy = -flat * sin, flat * cos
    x = _centres(width, images)
    y = _centres(height, images)[:, None]
    by_x = torch.stack([xx, yx * (width / height)], dim=1)
    by_y = torch.stack([xy * (height / width), yy], dim=1)
    shift = -torch.stack(
        [(xx * right + xy * down) * (2 / width), (yx * right + yy * down) * (2 / height)], dim=1
    )
    by_x, by_y, shift = (entry.to(images.dtype)[..., None, None] for entry in (by_x, by_y, shift))
    # One outer sum costs a fraction of `affine_grid`'s products of many small matrices: [B, 2, H, W].
    grid = by_x * x + (by_y * y + shift)
    if displacement is not None:
        grid += displacement * (2 / torch.tensor([width, height], device=grid.device)[:, None, None])
    grid = grid.permute(0, 2, 3, 1)
    warped = grid_sample(images - background if background else images, grid, align_corners=False)
    return warped.add_(background) if background else warped


def turned(images: Tensor, angles: Tensor) -> Tensor:
    """Turn images about their centres, bilinearly; what lies outside is 0.

    Args:
        images: Floating point, [N, C, H, W], H = W.
        angles: In radians, counter-clockwise, [N].

    Returns:
        [N, C, H, W].

    Example:
        >>> turned(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([torch.pi / 2])).round()
        tensor([[[[2., 4.],
                  [1., 3.]]]])
    """
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # Where each pixel comes from; y points downwards.
    maps = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    return grid_sample(
        images, affine_grid(maps, list(images.shape), align_corners=False), align_corners=False
    )


def smooth_field(nodes: Tensor, height: int, width: int) -> Tensor:
    """Interpolate values cubically on a coarse grid whose outer nodes lie on the outer pixels.

    The result is that of ``torch.nn.functional.interpolate(mode="bicubic", align_corners=True)``, computed by
    two matrix products in a fraction of its time.

    Args:
        nodes: Floating point, [..., h, w].
        height: H.
        width: W.

    Returns:
        [..., H, W].
    """
    return _weights(height, nodes.shape[-2], nodes) @ nodes @ _weights(width, nodes.shape[-1], nodes).T


def _weights(size: int, nodes: int, like: Tensor) -> Tensor:
    """Compute the contribution of each node to each place, [size, nodes]."""
    unit = torch.eye(nodes, dtype=like.dtype, device=like.device)[None, None]
    return interpolate(unit, (size, nodes), mode="bicubic", align_corners=True)[0, 0]


def _centres(size: int, like: Tensor) -> Tensor:
    """Return the centres of ``size`` pixels between -1 and 1: [size]."""
    return (torch.arange(size, device=like.device, dtype=like.dtype) * 2 + 1) / size - 1
