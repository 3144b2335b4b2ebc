"""Gatys et al. 2016, section 2: features of VGG-19, after the ReLU, with average or max pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_losses.core.precision import in_float64
from pl_losses.core.validation import typed
from pl_losses.papers.style.vgg import CONVOLUTIONS, Weights

Pooling = Literal["avg", "max"]


class VGG19Features(nn.Module):
    """Features of VGG-19: the outputs of its convolutions after the ReLU, in one pass.

    Nothing is trained: weights are buffers without gradients. They are not saved with a module that holds
    this one. Inside, channels lie side by side (channels_last), with which convolutions are faster. Under
    autocast the weights are cast once, not in every pass.

    Args:
        layers: Layers to return, such as ``["conv1_1", "conv4_2"]``; layers after the last of them are not
            computed.
        weights: See :func:`~pl_losses.papers.style.vgg.load_weights`.
        pooling: "avg", as in the paper, or "max", as VGG was trained.

    Raises:
        ValueError: If a layer is unknown or not among the weights, or ``pooling`` is unknown.
    """

    mean: Tensor

    @typed
    def __init__(self, layers: Sequence[str], weights: Weights, pooling: Pooling = "avg") -> None:
        check_layers("layers", layers)
        super().__init__()
        self.layers, self.pooling = tuple(layers), pooling
        self.needed = CONVOLUTIONS[: max(map(CONVOLUTIONS.index, layers)) + 1]
        if absent := [name for name in self.needed if name not in weights.kernels]:
            raise ValueError(f"Expected `weights` with {self.needed[-1]} but they lack {absent}")
        self.register_buffer("mean", weights.mean[:, None, None].clone(), persistent=False)
        for name in self.needed:
            weight, bias = weights.kernels[name]
            weight = weight.contiguous(memory_format=torch.channels_last)
            self.register_buffer(f"{name}_weight", weight, persistent=False)
            self.register_buffer(f"{name}_bias", bias.clone(), persistent=False)
        self._cast: tuple[torch.dtype, torch.device, dict[str, Tensor]] | None = None

    def forward(
        self, images: Tensor, visit: Callable[[str, Tensor], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Compute features of images.

        Args:
            images: Red, green, blue in [0, 1], [B, 3, H, W].
            visit: Called with the name and the features of each layer once they are computed; it returns the
                features, with which the pass continues. Autograd takes the layers in reverse order: what a
                visit computes sends its gradient back at its layer's turn. If it were computed after the
                pass, the gradients of all layers would be held at once.

        Returns:
            Layer to features [B, N, H', W'], in the order of the network; empty if they are visited.

        Raises:
            ValueError: If the shape is another, or the images are too small for the deepest layer.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < self.stride:
            raise ValueError(
                f"Expected `images` of shape [B, 3, H, W] with H and W at least {self.stride} for"
                f" {self.needed[-1]} but got {list(images.shape)}"
            )
        kernels = self._kernels(images)
        x = (images - self.mean).contiguous(memory_format=torch.channels_last)
        found = {}
        for name in self.needed:
            if name.endswith("_1") and name != "conv1_1":
                x = F.avg_pool2d(x, 2) if self.pooling == "avg" else F.max_pool2d(x, 2)
            x = F.conv2d(x, kernels[f"{name}_weight"], kernels[f"{name}_bias"], padding=1).relu_()
            if name in self.layers:
                if visit is None:
                    found[name] = x
                else:
                    x = visit(name, x)
        return found

    def _kernels(self, images: Tensor) -> dict[str, Tensor]:
        """Return the weights in the type in which convolutions are computed."""
        kind, device = images.device.type, images.device
        own = dict(self.named_buffers())
        if not torch.is_autocast_enabled(kind):
            return own
        dtype = torch.get_autocast_dtype(kind)
        if self._cast is None or self._cast[:2] != (dtype, device):
            self._cast = (dtype, device, {name: value.to(dtype) for name, value in own.items()})
        return self._cast[2]

    @property
    def reach(self) -> int:
        """How many pixels beyond its own a position of the deepest layer sees; a multiple of its stride."""
        reach, block = 0, self.needed[-1][4]
        for name in reversed(self.needed):
            # A pooling layer doubles the width of what is seen through it.
            reach, block = reach * (1 if name[4] == block else 2) + 1, name[4]
        return -(-reach // self.stride) * self.stride

    @property
    def stride(self) -> int:
        """Pixels between the positions of the deepest layer."""
        return 1 << (int(self.needed[-1][4]) - 1)

    @torch.no_grad()
    def normalize_(self, images: Sequence[Tensor]) -> VGG19Features:
        """Rescale the weights until each filter's mean activation over images and positions is 1 (section 2).

        Pooling and ReLU commute with the scales, so features are the former ones divided by their means. The
        paper takes the means over ImageNet's validation images; here they are over ``images``.

        Args:
            images: Each [B, 3, H, W].

        Returns:
            The module itself.
        """
        sums: dict[str, Tensor] = {}
        counts = dict.fromkeys(self.needed, 0)
        wanted, self.layers = self.layers, self.needed

        def visit(name: str, features: Tensor) -> Tensor:
            sums[name] = sums.get(name, 0) + in_float64(features).sum(dim=(0, 2, 3))
            counts[name] += features.numel() // features.shape[1]
            return features

        for image in images:
            self(image, visit)
        self.layers, before = wanted, torch.ones(3, device=self.mean.device)
        for name in self.needed:
            weight: Tensor = getattr(self, f"{name}_weight")
            mean = (sums[name] / counts[name]).to(weight)
            # A filter that is never active stays as it is.
            mean = torch.where(mean > 0, mean, 1)
            bias: Tensor = getattr(self, f"{name}_bias")
            weight.mul_(before[:, None, None]).div_(mean[:, None, None, None])
            bias.div_(mean)
            before = mean
        self._cast = None
        return self


def check_layers(name: str, layers: Sequence[str]) -> None:
    """Refuse an empty or unknown selection of layers.

    Raises:
        ValueError: If there is none, one twice, or one that VGG-19 does not have.
    """
    unknown = [layer for layer in layers if layer not in CONVOLUTIONS]
    if unknown or not layers or len(set(layers)) < len(layers):
        raise ValueError(
            f"Expected `{name}` to be different ones of {CONVOLUTIONS[0]} to {CONVOLUTIONS[-1]} but got"
            f" {list(layers)}"
        )
