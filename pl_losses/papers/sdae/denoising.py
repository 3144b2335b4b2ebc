"""Vincent et al. 2010, section 3.1: the denoising criterion, and one layer trained by it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from pl_losses.core import expected
from pl_losses.core.base import PaperModule
from pl_losses.core.declared import Keys
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.loaders import BLOCK, drawn_at, rank_of
from pl_losses.core.metrics import computed
from pl_losses.core.rng import keyed_generator
from pl_losses.core.sums import Mean
from pl_losses.core.validation import check_counts, check_init, check_integer
from pl_losses.papers.sdae.corruption import (
    Corruption,
    GaussianNoise,
    MaskingNoise,
    Mode,
    SaltAndPepper,
)
from pl_losses.papers.sdae.layers import AutoencoderLayer, DenseLayer
from pl_losses.papers.sdae.losses import Kind, reconstruction_loss

CorruptionName = Literal["masking", "gaussian", "salt_and_pepper"]


class Denoising(PaperModule):
    """Base of a denoising autoencoder and of a stack of them: layers, corruption and criterion.

    The constructor must call :meth:`build`. Override :meth:`configure_layer`, :meth:`configure_corruption`,
    :meth:`compute_reconstruction_loss` or :meth:`prepare_input` to change it.
    """

    compiled = ("forward", "layers")
    layers: nn.ModuleList

    def build(
        self,
        sizes: list[int],
        corruption: CorruptionName,
        *,
        level: float,
        mode: Mode,
        visible: Kind,
        sigma: float,
        alpha: float,
        beta: float,
        tied: bool,
        seed: int,
    ) -> None:
        """Check the arguments and build the layers; ``sizes`` are the inputs' and the hidden layers'."""
        check_counts(in_features=sizes[0])
        self.corruption, self.level, self.mode = corruption, level, mode
        self.visible, self.sigma, self.alpha, self.beta = visible, sigma, alpha, beta
        self.in_features, self.tied, self.seed = sizes[0], tied, seed
        # A trial refuses arguments out of range before any work is done.
        reconstruction_loss(
            torch.zeros(1, 1),
            torch.zeros(1, 1),
            torch.zeros(1, 1, dtype=torch.bool),
            kind=visible,
            sigma=sigma,
            alpha=alpha,
            beta=beta,
        )
        pairs = list(pairwise(sizes))
        self.noise = [self.configure_corruption(index) for index in range(len(pairs))]
        if alpha != beta and not all(noise.subset for noise in self.noise):
            raise ValueError(
                f"Expected `alpha` equal to `beta` for a corruption that touches all elements but got {alpha}"
                f" and {beta}"
            )
        self.layers = nn.ModuleList(self.configure_layer(index, *pair) for index, pair in enumerate(pairs))

    def configure_layer(self, index: int, in_features: int, hidden_size: int) -> AutoencoderLayer:
        """Build the layer ``index``, from 0: inputs [B, in_features] -> codes [B, hidden_size]."""
        kind: Kind = self.visible if index == 0 else "cross_entropy"
        return DenseLayer(in_features, hidden_size, tied=self.tied, kind=kind)

    def configure_corruption(self, index: int) -> Corruption:
        """Build the corruption of the inputs of layer ``index``, by default the same for all.

        Raises:
            ValueError: If ``level`` is out of range.
        """
        # Name the user's arguments: the noises call them otherwise, and `sigma` is another argument here.
        most = float("inf") if self.corruption == "gaussian" else 1.0
        if not 0 <= self.level <= most or self.level == float("inf"):
            wanted = "finite and at least 0" if self.corruption == "gaussian" else "in [0, 1]"
            raise ValueError(f"Expected `level` of {self.corruption} noise {wanted} but got {self.level}")
        if self.corruption == "gaussian":
            return GaussianNoise(self.level)
        if self.corruption == "salt_and_pepper":
            return SaltAndPepper(self.level, self.mode)
        return MaskingNoise(self.level, self.mode)

    def compute_reconstruction_loss(
        self, index: int, decoded: Tensor, clean: Tensor, touched: Tensor
    ) -> Tensor:
        """Compute the criterion of layer ``index``: decoded, clean inputs, touched elements -> scalar."""
        return reconstruction_loss(
            decoded,
            clean,
            touched,
            kind=self.layer(index).kind,
            sigma=self.sigma if index == 0 else 1.0,
            alpha=self.alpha,
            beta=self.beta,
        )

    def prepare_input(self, inputs: Tensor) -> Tensor:
        """Make the first layer's inputs from a batch, by default rows: [B, ...] -> [B, D].

        Raises:
            ValueError: If an input has not D elements, or there is no dimension of the batch.
        """
        if inputs.ndim < 2:
            raise ValueError(f"Expected `inputs` of shape [B, ...] but got {list(inputs.shape)}")
        rows = inputs.flatten(1)
        if rows.shape[1] != self.in_features:
            raise ValueError(
                f"Expected inputs of {self.in_features} elements (`in_features`) but got {rows.shape[1]}"
            )
        return rows

    def layer(self, index: int) -> AutoencoderLayer:
        """Return the layer ``index``, from 0."""
        layer: object = self.layers[index]
        assert isinstance(layer, AutoencoderLayer)
        return layer

    @torch.no_grad()
    def codes(self, inputs: Tensor, depth: int | None = None) -> Tensor:
        """Encode clean inputs, without gradients.

        Args:
            inputs: [B, ...].
            depth: Number of layers to pass, 0 for the inputs as the first layer sees them. Default: all.

        Returns:
            [B, H] of the last layer passed.
        """
        codes = self.prepare_input(inputs)
        with self.whole():
            for index in range(len(self.layers) if depth is None else depth):
                codes = self.layer(index).encode(codes)
        return codes

    def corrupt(
        self, clean: Tensor, index: int, *key: object, places: range | None = None
    ) -> tuple[Tensor, Tensor]:
        """Corrupt this rank's inputs of layer ``index`` as those of the joined batch.

        Args:
            clean: [B, ...].
            index: The layer, from 0.
            key: What distinguishes this presentation from others, beside the seed and the layer.
            places: Positions of the inputs in the data set, if their noise depends on these and not on the
                batch.

        Returns:
            The corrupted inputs and which elements are touched, [B, ...] both.
        """
        if places is not None:
            rows, noise = clean.flatten(1), self.noise[index]

            def draw(block: int) -> tuple[Tensor, ...]:
                generator = keyed_generator(self.seed, index, *key, block, device=clean.device)
                return noise.draw((BLOCK, rows.shape[1]), rows, generator)

            corrupted, touched = noise.apply(rows, *drawn_at(places, draw))
            return corrupted.view_as(clean), touched.view_as(clean)
        generator = keyed_generator(self.seed, index, *key, device=clean.device)
        return self.noise[index](clean, generator, *rank_of(self.trainer_or_none))

    def denoising_loss(
        self, clean: Tensor, index: int, own: int, *key: object, places: range | None = None
    ) -> Tensor:
        """Compute the criterion of layer ``index`` for the first ``own`` clean inputs of [B, ...] -> scalar.

        If ``own`` is 0, all inputs are used. ``key`` and ``places`` are those of :meth:`corrupt`.
        """
        rows = own or len(clean)
        corrupted, touched = self.corrupt(clean, index, *key, places=places)
        decoded = self.layers[index](corrupted)
        loss = self.compute_reconstruction_loss(index, decoded[:rows], clean[:rows], touched[:rows])
        return expected.loss(self, "compute_reconstruction_loss", loss)

    def denoise(self, clean: Tensor, index: int, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Compute the loss of a training batch of layer ``index``, of this rank and weighted."""
        own = self.num_unpadded(batch_idx, len(clean))
        loss = self.denoising_loss(clean, index, own, "train", self.current_epoch, batch_idx)
        self.refuse_non_finite(loss)
        return loss, loss * self.rank_weight(own)

    def count_reconstruction(
        self, mean: Any, clean: Tensor, *, index: int, stage: str, batch_idx: int
    ) -> None:
        """Add the criterion of a batch of clean inputs of layer ``index`` to a mean."""
        own = self.num_unpadded(batch_idx, len(clean))
        places = self.places(batch_idx, len(clean))
        loss = self.denoising_loss(clean, index, own, stage, places=places)
        if own:
            mean.update(loss, own)

    @torch.no_grad()
    def reconstruct(self, inputs: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Reconstruct corrupted inputs by the first layer.

        Args:
            inputs: Clean inputs, [B, ...].
            seed: Seed of the noise.

        Returns:
            The corrupted inputs and the mean of p(x|z), both [B, D].
        """
        clean = self.prepare_input(inputs)
        corrupted, _ = self.noise[0](clean, keyed_generator(seed, "reconstruct", device=clean.device))
        layer = self.layer(0)
        with self.whole():
            return corrupted, layer.mean(layer.encode(corrupted))

    @torch.no_grad()
    def sample(self, inputs: Tensor, count: int = 1, seed: int = 0) -> Tensor:
        """Generate by the procedure of section 6.7.

        The code of each input is computed bottom-up. Then, from the top layer down, binary units are drawn
        from Bernoulli distributions with the layer's means; the result is the mean of the visible layer.

        Args:
            inputs: Training examples to start from, [B, ...].
            count: Samples from each example.
            seed: Seed of the drawn units.

        Returns:
            [count, B, D]: means of the visible layer.

        Raises:
            TypeError: If ``count`` is not an integer.
            ValueError: If ``count`` is below 1.
        """
        check_integer("count", count, 1)
        generator = keyed_generator(seed, "sample", device=inputs.device)
        top = self.codes(inputs)
        mean = top.expand(count, *top.shape).flatten(0, 1)
        for index in reversed(range(len(self.layers))):
            layer = self.layer(index)
            uniform = torch.rand(mean.shape, generator=generator, device=mean.device)
            with self.whole():
                mean = layer.mean((uniform < mean).to(top.dtype))
        return mean.view(count, len(top), *mean.shape[1:])


class DenoisingAutoencoder(Denoising):
    """One denoising autoencoder: an encoder and a decoder, trained to undo a corruption.

    A batch is inputs [B, ...], or a tuple that starts with them. The module logs ``<stage>/loss`` for the
    stages train, val and test. This is the reconstruction error of corrupted inputs, in nats per example. The
    noise is the same on any number of ranks. In validation and test an input always has the same noise.

    Args:
        in_features: Elements D of an input.
        hidden_size: Units H of the code.
        corruption: "masking", "gaussian" or "salt_and_pepper".
        level: The fraction of masked or set elements, or the standard deviation of Gaussian noise; 0 gives a
            plain autoencoder.
        mode: "exact" touches the same number of elements in each example. "bernoulli" draws for each element
            whether to touch it. Gaussian noise has no mode.
        visible: "cross_entropy" for inputs in [0, 1], "squared" for real ones with a linear decoder.
        sigma: Standard deviation of the Gaussian p(x|z) of "squared".
        alpha: Weight of touched elements.
        beta: Weight of the others.
        tied: Whether the decoder's weights are the encoder's transposed.
        seed: Seed of the noise.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer, see :class:`~pl_losses.core.base.PaperModule`.

    Raises:
        ValueError: If an argument is out of range or none of its choices.

    Example:
        >>> model = DenoisingAutoencoder(in_features=64, hidden_size=100)
        >>> model(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 100])
    """

    KEYS: ClassVar[Keys] = {
        "<stage>/loss": "reconstruction error of corrupted inputs, nats per example",
    }
    best: ClassVar[dict[str, Literal["min", "max"]]] = {
        "train/loss": "min",
        "val/loss": "min",
        "test/loss": "min",
    }

    def __init__(
        self,
        in_features: int = 784,
        hidden_size: int = 1000,
        *,
        corruption: CorruptionName = "masking",
        level: float = 0.25,
        mode: Mode = "exact",
        visible: Kind = "cross_entropy",
        sigma: float = 1.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        tied: bool = True,
        seed: int = 0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        super().__init__(optimizer, lr_scheduler)
        save_plain_hyperparameters(self)
        check_counts(hidden_size=hidden_size)
        self.build(
            [in_features, hidden_size],
            corruption,
            level=level,
            mode=mode,
            visible=visible,
            sigma=sigma,
            alpha=alpha,
            beta=beta,
            tied=tied,
            seed=seed,
        )
        self.means = nn.ModuleDict({"val": Mean(), "test": Mean()})

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode clean inputs: [B, ...] -> [B, H]."""
        return self.layer(0).encode(self.prepare_input(inputs))

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        """Compute and log the reconstruction error of a batch, per example."""
        loss, weighted = self.denoise(self._clean(batch), 0, batch_idx)
        self.log("train/loss", loss, prog_bar=True)
        return weighted

    def validation_step(self, batch: object, batch_idx: int) -> None:
        """Add a batch to the mean."""
        self.count_reconstruction(
            self.means["val"], self._clean(batch), index=0, stage="val", batch_idx=batch_idx
        )

    def test_step(self, batch: object, batch_idx: int) -> None:
        """Add a batch to the mean."""
        self.count_reconstruction(
            self.means["test"], self._clean(batch), index=0, stage="test", batch_idx=batch_idx
        )

    def evaluation_results(self, stage: str) -> Mapping[str, Tensor | float]:
        """Return the mean reconstruction error."""
        return {"loss": computed(self.means[stage])}  # type: ignore[arg-type]

    def predict_step(self, batch: object, batch_idx: int) -> dict[str, Tensor]:
        """Predict codes [B, H] of clean inputs and their reconstruction [B, D]."""
        codes = self.codes(expected.first(self, batch))
        return {"codes": codes, "reconstruction": self.layer(0).mean(codes)}

    def _clean(self, batch: object) -> Tensor:
        return self.prepare_input(expected.first(self, batch))
