"""Gal and Ghahramani 2016, section 5: the networks of the paper's experiments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from pl_losses.core.validation import check_counts, check_shape, typed

Activation = Literal["relu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
DROPOUTS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)


class DropoutMLP(nn.Sequential):
    """Fully connected layers, each with dropout on its inputs (section 5.3); Glorot's uniform weights.

    Args:
        sizes: Number of inputs, of units of each hidden layer, and of outputs.
        p: Probability of dropping an input of each of the ``len(sizes) - 1`` layers.
        activation: "relu" or "tanh", after all layers but the last.

    Example:
        >>> DropoutMLP([13, 50, 1], [0.05, 0.05])
        DropoutMLP(
          (0): Dropout(p=0.05, inplace=False)
          (1): Linear(in_features=13, out_features=50, bias=True)
          (2): ReLU()
          (3): Dropout(p=0.05, inplace=False)
          (4): Linear(in_features=50, out_features=1, bias=True)
        )
    """

    def __init__(self, sizes: Sequence[int], p: Sequence[float], activation: Activation = "relu") -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out, drop in zip(sizes[:-1], sizes[1:], p, strict=True):
            linear = nn.Linear(fan_in, fan_out)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [nn.Dropout(drop), linear, ACTIVATIONS[activation]()]
        super().__init__(*layers[:-1])
        self.in_features = sizes[0]

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the outputs: [B, Q] -> [B, D].

        Raises:
            ValueError: If ``inputs`` is of another shape.
        """
        check_shape("inputs", inputs, "B", self.in_features)
        for layer in self:
            inputs = layer(inputs)
        return inputs


class DropoutLeNet(nn.Sequential):
    """The LeNet of the paper's section 5.2: convolutions of 20 and 50 maps, 500 units, rectified.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of an image.
        image_size: Height and width of an image, at least 16.
        p: Probability of dropping.
        dropout: "last" for dropout before the last layer, as in section 5.2, or "all" for dropout after the
            convolutions' pooling, too.

    Raises:
        TypeError: If a number of classes or channels is no integer.
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> DropoutLeNet(image_size=28)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    @typed
    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 32,
        *,
        p: float = 0.5,
        dropout: Literal["last", "all"] = "last",
    ) -> None:
        check_counts(2, num_classes=num_classes)
        check_counts(in_channels=in_channels)
        side = ((image_size - 4) // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"Expected `image_size` to be at least 16 but got {image_size}")

        def convolution(channels: int, maps: int) -> list[nn.Module]:
            layers = [nn.Conv2d(channels, maps, 5), nn.MaxPool2d(2)]
            return [*layers, nn.Dropout(p)] if dropout == "all" else layers

        super().__init__(
            *convolution(in_channels, 20),
            *convolution(20, 50),
            nn.Flatten(),
            nn.Linear(50 * side**2, 500),
            nn.ReLU(),
            nn.Dropout(p),
            nn.Linear(500, num_classes),
        )
        self.image_shape = (in_channels, image_size, image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits: [B, in_channels, image_size, image_size] -> [B, C].

        Raises:
            ValueError: If ``images`` is of another shape.
        """
        check_shape("images", images, "B", *self.image_shape)
        for layer in self:
            images = layer(images)
        return images


def drop_probabilities(network: nn.Module) -> dict[str, float]:
    """Return for each parameter the p of the dropout on its inputs, as the paper's lambda_l needs it.

    It is that of the dropout module between the parameter's layer and the one before, in the order in which
    modules were registered; 0 if there is none, and for biases and all other vectors, which are not dropped.

    Example:
        >>> drop_probabilities(DropoutMLP([3, 4, 1], [0.0, 0.2]))
        {'1.weight': 0.0, '1.bias': 0.0, '4.weight': 0.2, '4.bias': 0.0}
    """
    found: dict[str, float] = {}
    p = 0.0
    for path, part in network.named_modules():
        if isinstance(part, DROPOUTS):
            p = part.p
        for name, parameter in part.named_parameters(prefix=path, recurse=False):
            found[name] = p if parameter.ndim > 1 else 0.0
            if parameter.ndim > 1 and name.endswith("weight"):
                p = 0.0
    return found
