"""Kingma and Ba 2015, sections 6.1 to 6.3: logistic regression, multilayer and convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from pl_losses.core.classifier import Classifier
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.validation import check_counts, check_init, check_shape, check_share
from pl_losses.papers.adam.optimizer import Adam


class _Experiment(Classifier):
    """A classifier of section 6: logits of a ``network``, the cross-entropy, and alpha_t from a schedule."""

    network: nn.Module
    input_shape: tuple[int, ...]

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the logits: [B, ...] -> [B, num_classes].

        Raises:
            ValueError: If ``inputs`` do not fit.
        """
        if len(self.input_shape) == 1:
            inputs = inputs.flatten(1)
        check_shape("inputs", inputs, "B", *self.input_shape)
        logits: Tensor = self.network(inputs)
        return logits


class LogisticRegression(_Experiment):
    """Multi-class logistic regression (section 6.1), on pixels or on a sparse bag of words.

    The weights start at 0, so the loss starts at log(num_classes) with any seed. Logs what
    :class:`~pl_losses.core.classifier.Classifier` does.

    Args:
        in_features: Number of features D of an input.
        num_classes: Number of classes.
        p: Probability of dropping a feature in training; the paper's 0.5 for the bag of words.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer; the paper's is
            :class:`~pl_losses.papers.adam.schedule.InverseSqrtLR`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> LogisticRegression(in_features=4, num_classes=3)(torch.ones(2, 1, 2, 2))
        tensor([[0., 0., 0.],
                [0., 0., 0.]], grad_fn=<AddmmBackward0>)
    """

    def __init__(
        self,
        in_features: int = 784,
        num_classes: int = 10,
        *,
        p: float = 0.0,
        optimizer: OptimizerCallable = Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        check_share("p", p)
        check_counts(in_features=in_features, num_classes=num_classes)
        super().__init__(optimizer, lr_scheduler)
        save_plain_hyperparameters(self)
        self.input_shape = (in_features,)
        linear = nn.Linear(in_features, num_classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.network = nn.Sequential(nn.Dropout(p), linear)
        self.configure_metrics()


class MLP(_Experiment):
    """Fully connected ReLU layers, with dropout after each (section 6.2).

    Logs what :class:`~pl_losses.core.classifier.Classifier` does.

    Args:
        in_features: Number of features D of an input.
        hidden: Units of each hidden layer.
        num_classes: Number of classes.
        p: Probability of dropping a hidden unit in training; 0 for the paper's deterministic case.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer, see :class:`~pl_losses.core.base.PaperModule`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> MLP()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> sum(parameter.numel() for parameter in MLP().parameters())
        1796010
    """

    def __init__(
        self,
        in_features: int = 784,
        hidden: Sequence[int] = (1000, 1000),
        num_classes: int = 10,
        *,
        p: float = 0.5,
        optimizer: OptimizerCallable = Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        check_share("p", p)
        check_counts(in_features=in_features, num_classes=num_classes)
        if not hidden or min(hidden) < 1:
            raise ValueError(f"Expected `hidden` to hold the units of each layer but got {list(hidden)}")
        super().__init__(optimizer, lr_scheduler)
        save_plain_hyperparameters(self)
        self.input_shape = (in_features,)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise((in_features, *hidden)):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(p)]
        self.network = nn.Sequential(*layers, nn.Linear(hidden[-1], num_classes))
        self.configure_metrics()


class ConvNet(_Experiment):
    """The c64-c64-c128-1000 network of section 6.3.

    Each of three blocks has a 5x5 convolution, a ReLU, and 3x3 max-pooling of stride 2. Then comes a fully
    connected layer of ReLU units. Dropout is on the image and on the fully connected layer. The paper gives
    neither the padding nor the dropout rates. Here convolutions keep the size, and pooling rounds it up. A
    fifth of the pixels and half of the units are dropped. Logs what
    :class:`~pl_losses.core.classifier.Classifier` does.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of an image.
        image_size: Height and width of an image in pixels.
        out_channels: Channels of each convolution.
        hidden_size: Units of the fully connected layer.
        input_p: Probability of dropping a value of the image in training.
        p: Probability of dropping a unit of the fully connected layer.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer, see :class:`~pl_losses.core.base.PaperModule`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> ConvNet(in_channels=1, out_channels=(4, 4, 8), hidden_size=16)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        *,
        out_channels: Sequence[int] = (64, 64, 128),
        hidden_size: int = 1000,
        input_p: float = 0.2,
        p: float = 0.5,
        optimizer: OptimizerCallable = Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        check_share("input_p", input_p)
        check_share("p", p)
        check_counts(num_classes=num_classes, in_channels=in_channels, hidden_size=hidden_size)
        if not out_channels or min(out_channels) < 1:
            raise ValueError(
                f"Expected `out_channels` to hold those of each layer but got {list(out_channels)}"
            )
        times = len(out_channels)
        if image_size < 2**times:
            raise ValueError(
                f"Expected `image_size` to be at least {2**times} for {times} times of pooling but got"
                f" {image_size}"
            )
        super().__init__(optimizer, lr_scheduler)
        save_plain_hyperparameters(self)
        self.input_shape = (in_channels, image_size, image_size)
        layers: list[nn.Module] = [nn.Dropout(input_p)]
        side = image_size
        for fan_in, fan_out in pairwise((in_channels, *out_channels)):
            layers += [
                nn.Conv2d(fan_in, fan_out, 5, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(3, 2, ceil_mode=True),
            ]
            side //= 2  # That is ceil((side - 3) / 2) + 1.
        layers += [nn.Flatten(), nn.Linear(out_channels[-1] * side**2, hidden_size), nn.ReLU(), nn.Dropout(p)]
        self.network = nn.Sequential(*layers, nn.Linear(hidden_size, num_classes))
        self.configure_metrics()
