"""He et al. 2015: plain convolutional networks with learned or fixed rectifiers."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from pl_losses.core.classifier import Classifier
from pl_losses.core.declared import Keys, Part, Recipe, without
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.metrics import ErrorRate, binomial_interval, computed
from pl_losses.core.panels import Sections
from pl_losses.core.validation import check_counts, check_init, check_share
from pl_losses.papers.prelu import manifest
from pl_losses.papers.prelu.init import he_init_
from pl_losses.papers.prelu.layers import PReLU
from pl_losses.papers.prelu.multi_view import at_scale, mean_log_probabilities, ten_crops, windows
from pl_losses.papers.prelu.networks import (
    ARCHITECTURES,
    SMALL_PYRAMID,
    Convolution,
    Pool,
    SpatialPyramidPooling,
    build,
    plan,
    scaled,
)
from pl_losses.papers.prelu.parameter_groups import param_groups

STAGES = [[32, 32], [64, 64], [96, 96]]


class RectifierNet(Classifier):
    """A network of the paper, or a network of the same kind for images of about 32 pixels.

    ``architecture`` names a network of the paper: the 14-layer model E of Table 1, the 19- and 22-layer
    models A, B and C of Table 3, "depth22" (Fig. 2, which is B) or "depth30" (Fig. 3). Without it, the
    network has ``stages`` of 3x3 convolutions, and 2x2 max-pooling after each stage. A rectifier follows each
    convolution. Then come spatial pyramid pooling, two fully connected layers with rectifier and dropout, and
    a linear classifier.

    Logs what :class:`~pl_losses.core.classifier.Classifier` does. With more than five classes it also logs
    ``val/error_top5`` and ``test/error_top5``, the share of images whose class is not among the five
    likeliest, and in a test its 95 % interval. The slopes of PReLUs have no weight decay, with any optimizer.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of an image.
        stages: Channels of each convolution, in a list for each stage. Default: [[32, 32], [64, 64], [96,
            96]].
        pyramid: Bins per side of each level of the spatial pyramid; default 4, 2, 1, or the architecture's.
        hidden_size: Units of each fully connected layer; default 128, or the architecture's times ``width``.
        rectifier: "prelu" (a slope per channel), "prelu_shared" (one per layer), "leaky_relu" or "relu".
        slope: The initial slope of a PReLU, or the fixed one of a leaky ReLU. The defaults are the paper's,
            0.25 and 0.01.
        p: Probability of dropping a unit of the fully connected layers.
        architecture: "E", "A", "B", "C", "depth22" or "depth30".
        stem: "paper", or "small" for images of about 32 pixels, which goes with the pyramid 4, 2, 1.
        width: Factor on the numbers of channels and hidden units of an architecture.
        init: "he": eqs. 10 and 15 with each weight's own rectifier, see
            :func:`~pl_losses.papers.prelu.init.he_init_`. "xavier": variance 2 / (fan-in + fan-out). In both
            the classifier's weights have standard deviation 0.01, and biases start at 0. "torch": its own.
        slope_lr: Learning rate of the slopes; default: that of the optimizer.
        slope_momentum: Momentum of the slopes, for optimizers that have a ``momentum``.
        test_views: What a test sees of an image: "ten" crops of ``test_crop`` pixels, or "dense": all windows
            of the feature map that are as large as a crop's map, and those of the mirror image. The class
            probabilities are averaged over these views.
        test_crop: Height and width of a crop, the size of the images in training.
        test_scales: Lengths of the shorter side, in pixels, to which each image is scaled for these views.
            The class probabilities are averaged over them, too. Default: its own.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer, see :class:`~pl_losses.core.base.PaperModule`.

    Raises:
        ValueError: If an argument is out of range or none of its choices, or two do not go together.

    Example:
        >>> net = RectifierNet(architecture="E", stem="small", width=0.125, rectifier="prelu_shared")
        >>> net(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, torch.nn.PReLU))
        13
    """

    KEYS: ClassVar[Keys] = {
        "<val|test>/error_top5": "share without the right class in the best five, 0 to 1",
        "test/error_top5_low": "lower end of its 95 % binomial interval",
        "test/error_top5_high": "upper end of its 95 % binomial interval",
    }
    panels: ClassVar[Sections] = manifest.RECTIFIER_NET
    best: ClassVar[dict[str, Literal["min", "max"]]] = {
        **Classifier.best,
        "val/error_top5": "min",
        "test/error_top5": "min",
    }

    @classmethod
    def logged_keys(cls, part: Part, recipe: Recipe) -> Keys:
        """Return the keys that it logs: with five classes or fewer there is no top-5 error."""
        left_out = [] if part.argument("num_classes") > 5 else [key for key in cls.KEYS if "top5" in key]
        return without(super().logged_keys(part, recipe), left_out)

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        *,
        stages: list[list[int]] | None = None,
        pyramid: list[int] | None = None,
        hidden_size: int | None = None,
        rectifier: Literal["prelu", "prelu_shared", "leaky_relu", "relu"] = "prelu",
        slope: float | None = None,
        p: float = 0.5,
        architecture: Literal["E", "A", "B", "C", "depth22", "depth30"] | None = None,
        stem: Literal["paper", "small"] = "paper",
        width: float = 1.0,
        init: Literal["he", "xavier", "torch"] = "he",
        slope_lr: float | None = None,
        slope_momentum: float | None = None,
        test_views: Literal["single", "ten", "dense"] = "single",
        test_crop: int | None = None,
        test_scales: list[int] | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        check_share("p", p)
        check_counts(in_channels=in_channels, hidden_size=hidden_size, test_crop=test_crop)
        check_counts(2, num_classes=num_classes)
        if (test_views == "single") != (test_crop is None):
            raise ValueError(
                f'Expected `test_crop` in pixels with `test_views` "ten" or "dense", and only there, but got'
                f" {test_crop} with {test_views!r}"
            )
        if test_scales is not None and not (test_crop and test_scales and min(test_scales) >= test_crop):
            raise ValueError(
                f"Expected `test_scales` of at least `test_crop` pixels, with `test_views`, but got"
                f" {test_scales} with {test_crop} and {test_views!r}"
            )
        if pyramid is not None and (not pyramid or min(pyramid) < 1):
            raise ValueError(f"Expected `pyramid` of numbers of at least 1 but got {pyramid}")
        if "prelu" not in rectifier and (slope_lr is not None or slope_momentum is not None):
            raise ValueError(
                f"Expected `slope_lr` and `slope_momentum` only with PReLUs but `rectifier` is {rectifier!r}"
            )
        layers = _layers(architecture, stem, width, stages)
        paper = ARCHITECTURES[architecture] if architecture else None
        if pyramid is None:
            pyramid = list(paper.pyramid if paper and stem == "paper" else SMALL_PYRAMID)
        if hidden_size is None:
            hidden_size = scaled(paper.hidden_size, width) if paper else 128
        super().__init__(optimizer, lr_scheduler)
        save_plain_hyperparameters(self)
        self.num_classes, self.in_channels, self.init = num_classes, in_channels, init
        self.rectifier = rectifier
        self.slope = (0.01 if rectifier == "leaky_relu" else 0.25) if slope is None else slope
        self.slope_lr, self.slope_momentum = slope_lr, slope_momentum
        self.test_views, self.test_crop, self.test_scales = test_views, test_crop, test_scales
        modules, channels = build(layers, in_channels, self.configure_rectifier)
        self.features = nn.Sequential(*modules, SpatialPyramidPooling(pyramid))
        size = channels * sum(bins**2 for bins in pyramid)
        modules = []
        for _ in range(2):
            modules += [nn.Linear(size, hidden_size), self.configure_rectifier(hidden_size), nn.Dropout(p)]
            size = hidden_size
        self.head = nn.Sequential(*modules, nn.Linear(size, num_classes))
        self.configure_metrics()
        self.initialize_weights()
        self.parameter_groups()  # It refuses wrong arguments.

    def configure_rectifier(self, channels: int) -> nn.Module:
        """Build the rectifier after a layer with this many channels."""
        if self.rectifier == "relu":
            return nn.ReLU()
        if self.rectifier == "leaky_relu":
            return nn.LeakyReLU(self.slope)
        return PReLU(channels if self.rectifier == "prelu" else 1, init=self.slope)

    def initialize_weights(self) -> None:
        """Draw the initial weights."""
        if self.init == "torch":
            return
        if self.init == "he":
            he_init_(self)
        weighted = [module for module in self.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        if self.init == "xavier":
            for module in weighted:
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(weighted[-1].weight, std=0.01)

    def configure_metrics(self) -> None:
        """Build the metrics, with the top-5 errors."""
        super().configure_metrics()
        self.val_error_top5, self.test_error_top5 = ErrorRate(), ErrorRate()

    def parameter_groups(self) -> ParamsT:
        """Group the slopes of PReLUs apart: no weight decay, their own learning rate and momentum."""
        return param_groups(self, slope_lr=self.slope_lr, slope_momentum=self.slope_momentum)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and the scheduler.

        Raises:
            ValueError: If there is a ``slope_momentum`` and the optimizer has none.
        """
        configured: Any = super().configure_optimizers()
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        if self.slope_momentum is not None and "momentum" not in optimizer.defaults:
            raise ValueError(
                "Expected `slope_momentum` with an optimizer that has a momentum but got"
                f" {self.slope_momentum} with {type(optimizer).__name__}"
            )
        return configured  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            images: [B, in_channels, H, W].

        Returns:
            [B, C].

        Raises:
            ValueError: If ``images`` is of another shape.
        """
        # While the module is traced it is not a tensor.
        fits = not isinstance(images, Tensor) or (images.ndim == 4 and images.shape[1] == self.in_channels)
        if not fits:
            raise ValueError(
                f"Expected `images` of shape [B, {self.in_channels}, H, W] (`in_channels`) but got"
                f" {list(images.shape)}"
            )
        logits: Tensor = self.head(self.features(images))
        return logits

    def test_outputs(self, inputs: Tensor) -> Tensor:
        """Return what a test uses: the logits, or the log of the mean probabilities of several views.

        Args:
            inputs: Images [B, in_channels, H, W], at least ``test_crop`` pixels a side where there are views.

        Returns:
            [B, C].
        """
        if self.test_crop is None:
            return super().test_outputs(inputs)
        scales = self.test_scales or [min(inputs.shape[-2:])]
        return mean_log_probabilities(
            (at_scale(inputs, scale) for scale in scales), partial(self.view_outputs, crop=self.test_crop)
        )

    def view_outputs(self, inputs: Tensor, crop: int) -> Tensor:
        """Return the log of the mean probabilities of the views of images at one scale: [B, C]."""
        if self.test_views == "ten":
            return mean_log_probabilities(ten_crops(inputs, crop), self)
        maps, pooling = self.features[:-1], self.features[-1]
        size = maps(inputs[:1, :, :crop, :crop]).shape[-2:]
        both = (windows(maps(view), size) for view in (inputs, inputs.flip(-1)))
        return mean_log_probabilities(chain.from_iterable(both), lambda window: self.head(pooling(window)))

    def count(self, stage: str, outputs: Tensor, target: Tensor) -> None:
        """Add a batch to the metrics, with the top-5 error."""
        super().count(stage, outputs, target)
        if self.num_classes > 5:
            getattr(self, f"{stage}_error_top5").update(top_prediction(self.scores(outputs), target), target)

    def evaluation_results(self, stage: str) -> dict[str, Tensor | float]:
        """Return loss and errors, with the top-5 error."""
        values = super().evaluation_results(stage)
        if self.num_classes > 5:
            error: ErrorRate = getattr(self, f"{stage}_error_top5")
            values["error_top5"] = computed(error)
            if stage == "test":
                values["error_top5_low"], values["error_top5_high"] = binomial_interval(*error.counted)
        return values


def top_prediction(scores: Tensor, target: Tensor, k: int = 5) -> Tensor:
    """Return the class itself if it is among the k best, else -1: scores [B, C], target [B] -> [B].

    Example:
        >>> top_prediction(torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]), torch.tensor([1, 2]), k=2)
        tensor([ 1, -1])
    """
    among = (scores.topk(k, dim=1).indices == target[:, None]).any(dim=1)
    return torch.where(among, target, -1)


def _layers(
    architecture: Literal["E", "A", "B", "C", "depth22", "depth30"] | None,
    stem: Literal["paper", "small"],
    width: float,
    stages: list[list[int]] | None,
) -> list[Convolution | Pool]:
    if architecture is None:
        stages = STAGES if stages is None else stages
        if not stages or not all(stages):
            raise ValueError(f"Expected `stages` to hold channels for each stage but got {stages}")
        if width != 1 or stem != "paper":
            raise ValueError(
                f"Expected `width` and `stem` with an `architecture` only but got {width} and {stem!r}"
            )
        layers: list[Convolution | Pool] = []
        for stage in stages:
            layers += [*map(Convolution, stage), Pool()]
        return layers
    if stages is not None:
        raise ValueError(f"Expected `stages` or `architecture` but got {stages} and {architecture!r}")
    if not width > 0:
        raise ValueError(f"Expected `width` to be positive but got {width}")
    return plan(ARCHITECTURES[architecture], stem, width)
