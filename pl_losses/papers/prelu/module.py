"""He et al. 2015: plain convolutional networks with learned or fixed rectifiers."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from pl_losses.hparams import save_plain_hyperparameters
from pl_losses.papers.classifier import Classifier

RECTIFIERS = ("prelu", "prelu_shared", "leaky_relu", "relu")


class RectifierNet(Classifier):
    """A plain network in the shape of the paper's Table 1, for images of about 32 pixels.

    Stages of 3x3 convolutions, each followed by a rectifier, with 2x2 max-pooling after each stage; spatial
    pyramid pooling; two fully connected layers with rectifier and dropout; a linear classifier. Weights are
    drawn from the zero-mean normal distribution of standard deviation :math:`\\sqrt{2 / ((1 + a^2) n)}`
    (eqs. 10 and 15, n the fan-in, a the initial slope), the classifier's with 0.01; biases start at 0.
    Logs what :class:`~pl_losses.papers.classifier.Classifier` does.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of an image.
        stages: For each stage its channels, once per convolution.
        pyramid: Bins per side of each level of the spatial pyramid.
        hidden: Units of each fully connected layer.
        rectifier: "prelu" (a slope per channel), "prelu_shared" (one per layer), "leaky_relu" or "relu".
        slope: The initial slope of a PReLU, as in the paper 0.25; the fixed one of a leaky ReLU.
        dropout: Probability of dropping a unit of the fully connected layers.
        optimizer: Parameters to optimizer. Beware of weight decay: it must not reach the slopes.
        lr_scheduler: Optimizer to scheduler, see :class:`~pl_losses.papers.base.PaperModule`.

    Raises:
        ValueError: If an argument is out of range or none of its choices.

    Example:
        >>> net = RectifierNet(stages=[[8], [16, 16]], hidden=32)
        >>> net(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
        >>> sum(isinstance(module, torch.nn.PReLU) for module in net.modules())
        5
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        stages: list[list[int]] | None = None,
        pyramid: list[int] | None = None,
        hidden: int = 128,
        rectifier: Literal["prelu", "prelu_shared", "leaky_relu", "relu"] = "prelu",
        slope: float = 0.25,
        dropout: float = 0.5,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        stages = [[32, 32], [64, 64], [96, 96]] if stages is None else stages
        pyramid = [4, 2, 1] if pyramid is None else pyramid
        if rectifier not in RECTIFIERS:
            raise ValueError(
                f"Expected `rectifier` to be one of {', '.join(RECTIFIERS)} but got {rectifier!r}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"Expected `dropout` in [0, 1) but got {dropout}")
        if not stages or not all(stages):
            raise ValueError(f"Expected `stages` to hold channels for each stage but got {stages}")
        super().__init__(optimizer, lr_scheduler)
        save_plain_hyperparameters(self)
        self.rectifier, self.slope = rectifier, slope
        layers: list[nn.Module] = []
        channels = in_channels
        for stage in stages:
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), self.configure_rectifier(width)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, SpatialPyramidPooling(pyramid))
        size = channels * sum(bins**2 for bins in pyramid)
        layers = []
        for _ in range(2):
            layers += [nn.Linear(size, hidden), self.configure_rectifier(hidden), nn.Dropout(dropout)]
            size = hidden
        self.head = nn.Sequential(*layers, nn.Linear(size, num_classes))
        self.configure_metrics()
        self._initialise()

    def configure_rectifier(self, channels: int) -> nn.Module:
        """Build the rectifier that follows a layer of so many channels."""
        if self.rectifier == "relu":
            return nn.ReLU()
        if self.rectifier == "leaky_relu":
            return nn.LeakyReLU(self.slope)
        return nn.PReLU(channels if self.rectifier == "prelu" else 1, init=self.slope)

    def _initialise(self) -> None:
        weighted = [module for module in self.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        slope = 0.0 if self.rectifier == "relu" else self.slope
        for module in weighted:
            nn.init.kaiming_normal_(module.weight, a=slope, nonlinearity="leaky_relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(weighted[-1].weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        """Logits.

        Args:
            images: [B, C, H, W].

        Returns:
            [B, num_classes].
        """
        logits: Tensor = self.head(self.features(images))
        return logits


class SpatialPyramidPooling(nn.Module):
    """Max-pooling over grids of several sizes: [B, C, H, W] -> [B, C * sum of bins^2], whatever H and W.

    Args:
        bins: Bins per side of each level.

    Example:
        >>> SpatialPyramidPooling([2, 1])(torch.zeros(3, 8, 5, 7)).shape
        torch.Size([3, 40])
    """

    def __init__(self, bins: list[int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C * sum of bins^2]."""
        return torch.cat([F.adaptive_max_pool2d(features, bins).flatten(1) for bins in self.bins], dim=1)
