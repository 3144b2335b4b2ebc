"""A LeNet-5 trained on MNIST and shipped with the package, whose features compare images of digits.

Its weights come from the recipe ``lenet/mnist`` with seed 0, when it still had AdamW with a weight decay of
0.1 and ``max_lr`` 0.003. This module writes them::

    pl-losses fit --config lenet/mnist
    python -m pl_losses.papers.lenet.features runs/pl_losses/<run>/checkpoints/<file>.ckpt
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_losses.core.validation import check_init
from pl_losses.papers.lenet.module import LeNet5

WEIGHTS = Path(__file__).with_name("mnist-features.pt")


class PretrainedLeNet5(nn.Module):
    """The 84 features of F6, and the classes, of a LeNet-5 trained on MNIST; its weights are frozen.

    You cannot compare distances of its features with those of other networks, such as Inception.

    Args:
        low: Value of the background in the input images.
        high: Value of full ink in the input images.

    Example:
        >>> features = PretrainedLeNet5()
        >>> found = features(-torch.ones(2, 1, 28, 28))
        >>> found.shape, features.scores(found).shape
        (torch.Size([2, 84]), torch.Size([2, 10]))
    """

    name: ClassVar[str] = "lenet"

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        check_init(locals())
        if not low < high:
            raise ValueError(f"Expected `low` to be less than `high` but got {low} and {high}")
        super().__init__()
        self.low, self.high = low, high
        model = LeNet5()
        model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
        self.network, self.output = model.network, model.output
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features: [B, 1, 28, 28] or [B, 1, 32, 32] -> [B, 84].

        Raises:
            ValueError: If ``images`` is of another shape.
        """
        if images.shape[1:] not in ((1, 28, 28), (1, 32, 32)):
            raise ValueError(
                "Expected `images` of LeNet-5's features to be of shape [B, 1, 28, 28] or [B, 1, 32, 32]"
                f" but got {list(images.shape)}"
            )
        if images.shape[-1] == 28:
            images = F.pad(images, (2, 2, 2, 2), value=self.low)
        ink = (images - self.low) / (self.high - self.low)
        features: Tensor = self.network(ink * 1.275 - 0.1)
        return features.flatten(1)

    def scores(self, features: Tensor) -> Tensor:
        """Score the digits, higher is better: features [B, 84] -> [B, 10]."""
        penalties: Tensor = self.output(features)
        return -penalties


def package(checkpoint: str, to: Path = WEIGHTS) -> None:
    """Write the weights of a checkpoint of ``lenet/mnist`` in half precision."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]
    kept = {
        key: value.half()
        for key, value in state.items()
        if key.startswith(("network.", "output.")) and value.is_floating_point()
    }
    torch.save(kept, to)


if __name__ == "__main__":
    package(sys.argv[1])
