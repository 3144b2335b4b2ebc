"""Paszke et al. 2019, Listing 1: a full model, composed of layers."""

from __future__ import annotations

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from pl_losses.core.classifier import Classifier
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.validation import check_counts, check_init
from pl_losses.papers.gan.layers import LinearLayer


class FullBasicModel(Classifier):
    """A classifier of images: a convolution with 128 maps, a ReLU and a :class:`LinearLayer`.

    As printed, the listing does not run. These are the corrections:

    - the linear layer gets the output of the ReLU, not that of the convolution;
    - the maps [B, 128, H, W] are averaged over the image, so that the linear layer gets 128 features;
    - the initial weights of the linear layer are divided by the square root of 128;
    - the model returns logits, since the cross-entropy needs them. The softmax is in
      :meth:`~pl_losses.core.classifier.Classifier.class_probabilities`, over the classes.

    It logs what :class:`~pl_losses.core.classifier.Classifier` does.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of an image; the listing's are grey.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer, see :class:`~pl_losses.core.base.PaperModule`.

    Example:
        >>> import torch
        >>> FullBasicModel()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        *,
        optimizer: OptimizerCallable = Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        check_counts(num_classes=num_classes, in_channels=in_channels)
        super().__init__(optimizer, lr_scheduler)
        save_plain_hyperparameters(self)
        self.conv = nn.Conv2d(in_channels, 128, 3)
        self.fc = LinearLayer(128, num_classes)
        self.configure_metrics()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits: images [B, in_channels, H, W] -> [B, C].

        Raises:
            ValueError: If ``images`` is of another shape.
        """
        channels = self.conv.in_channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(
                f"Expected `images` of shape [B, {channels}, H, W] but got {list(images.shape)}:"
                f" `in_channels` is {channels}"
            )
        maps = F.relu(self.conv(images))
        logits: Tensor = self.fc(maps.mean(dim=(2, 3)))
        return logits
