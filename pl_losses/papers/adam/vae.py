"""Kingma and Ba 2015, section 6.4: the variational autoencoder of Fig. 4 (Kingma and Welling 2013)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from pl_losses.core import expected
from pl_losses.core.base import PaperModule
from pl_losses.core.declared import Keys
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.loaders import BLOCK, drawn_at, rank_of
from pl_losses.core.metrics import computed
from pl_losses.core.panels import Sections
from pl_losses.core.rng import standard_normal
from pl_losses.core.sums import Mean
from pl_losses.core.validation import check_counts, check_init
from pl_losses.papers.adam import manifest
from pl_losses.papers.adam.losses import bernoulli_error, kl_to_standard_normal
from pl_losses.papers.adam.optimizer import Adam


class VAE(PaperModule):
    """A variational autoencoder of binary images, with one softplus layer each in encoder and decoder.

    The loss is minus the variational bound, with one sample of z for each image, in nats per image. See
    :mod:`~pl_losses.papers.adam.losses`. Images [B, ...] with pixels in [0, 1] are made binary at 0.5. It
    logs ``<stage>/loss`` and the two parts of the loss, ``<stage>/reconstruction`` and ``<stage>/kl``, for
    the stages train, val and test. The noise of z is the same on any number of ranks. In validation and test
    an image always has the same noise, which depends on its place in the data set.

    Args:
        in_features: Pixels D of an image.
        hidden_size: Softplus units of the encoder and of the decoder.
        latent_size: Dimensions J of z.
        seed: Seed of the noise.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer, see :class:`~pl_losses.core.base.PaperModule`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> VAE()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 784])
        >>> [list(parameter.shape) for parameter in VAE().parameters()][:4]
        [[500, 784], [500], [100, 500], [100]]
    """

    compiled = ("forward", "compute_loss")
    KEYS: ClassVar[Keys] = {
        "<stage>/loss": "the negative variational bound, nats per image",
        "<stage>/reconstruction": "its part of the pixels, nats per image",
        "<stage>/kl": "its part of the latents, nats per image",
    }
    panels: ClassVar[Sections] = manifest.VAE
    best: ClassVar[dict[str, Literal["min", "max"]]] = {
        "train/loss": "min",
        "val/loss": "min",
        "test/loss": "min",
    }

    def __init__(
        self,
        in_features: int = 784,
        hidden_size: int = 500,
        latent_size: int = 50,
        *,
        seed: int = 0,
        optimizer: OptimizerCallable = Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        check_counts(in_features=in_features, hidden_size=hidden_size, latent_size=latent_size)
        super().__init__(optimizer, lr_scheduler)
        save_plain_hyperparameters(self)
        self.in_features, self.latent_size, self.seed = in_features, latent_size, seed
        self.encoder = nn.Sequential(
            nn.Linear(in_features, hidden_size), nn.Softplus(), nn.Linear(hidden_size, 2 * latent_size)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_size, hidden_size), nn.Softplus(), nn.Linear(hidden_size, in_features)
        )
        self.metrics = nn.ModuleDict(
            {
                f"{stage}_{part}": Mean()
                for stage in ("val", "test")
                for part in ("loss", "reconstruction", "kl")
            }
        )

    def prepare_target(self, images: Tensor) -> Tensor:
        """Make images binary: [B, ...] in [0, 1] -> [B, D] of zeros and ones.

        Raises:
            ValueError: If an image has not D pixels.
        """
        pixels = images.flatten(1)
        if pixels.shape[1] != self.in_features:
            raise ValueError(
                f"Expected images of {self.in_features} pixels (`in_features`) but got {pixels.shape[1]}"
            )
        return (pixels > 0.5).to(pixels.dtype)

    def encode(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and log-variance of q(z|x): [B, D] -> [B, J] each."""
        mean, log_variance = self.encoder(target).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        """Compute the log-odds of p(x|z): [B, J] -> [B, D]."""
        logits: Tensor = self.decoder(latent)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct images from the mean of q(z|x), as probabilities: [B, ...] -> [B, D]."""
        return self.decode(self.encode(self.prepare_target(images))[0]).sigmoid()

    def compute_loss(self, target: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the terms of the bound: images [B, D], noise [B, J] -> reconstruction error [B], KL [B]."""
        mean, log_variance = self.encode(target)
        latent = mean + (0.5 * log_variance).exp() * noise
        return bernoulli_error(self.decode(latent), target), kl_to_standard_normal(mean, log_variance)

    def _terms(self, target: Tensor, noise: Tensor) -> list[Tensor]:
        terms = expected.several(self, "compute_loss", self.compute_loss(target, noise), 2)
        return [expected.loss(self, "compute_loss", term, len(target)) for term in terms]

    def draw_noise(self, like: Tensor, *key: object) -> Tensor:
        """Draw this rank's rows of the standard normal noise of the joined batch, [B, J].

        It is drawn on the host, so that it does not depend on the device.

        Args:
            like: The batch [B, ...], whose device and type it gets.
            key: What tells this batch from others, beside the seed.
        """
        rank, ranks = rank_of(self.trainer_or_none)
        noise = standard_normal(len(like) * ranks, self.latent_size, self.seed, *key, dtype=like.dtype)
        return noise[rank::ranks].to(like.device, non_blocking=True)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute and log the negative bound of a batch of images, per image."""
        target = self.prepare_target(expected.first(self, batch))
        noise = self.draw_noise(target, "train", self.current_epoch, batch_idx)
        own = self.num_unpadded(batch_idx, len(target))
        rows = own or len(target)
        reconstruction, kl = (term[:rows].mean() for term in self._terms(target, noise))
        loss: Tensor = reconstruction + kl
        self.refuse_non_finite(loss)
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({"train/reconstruction": reconstruction, "train/kl": kl})
        return loss * self.rank_weight(own)

    def _evaluate(self, stage: str, images: Tensor, batch_idx: int) -> None:
        target = self.prepare_target(images)
        places = self.places(batch_idx, len(target))
        key, dtype = (self.seed, stage), target.dtype
        (noise,) = drawn_at(
            places, lambda block: (standard_normal(BLOCK, self.latent_size, *key, block, dtype=dtype),)
        )
        reconstruction, kl = self._terms(target, noise.to(target.device, non_blocking=True))
        parts = {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}
        own = self.num_unpadded(batch_idx, len(target))
        for part, values in parts.items():
            metric: Any = self.metrics[f"{stage}_{part}"]
            metric.update(values[:own])

    def evaluation_results(self, stage: str) -> dict[str, Tensor | float]:
        """Return the bound and its terms."""
        names = [name for name in self.metrics if name.startswith(stage)]
        return {name.removeprefix(f"{stage}_"): computed(self.metrics[name]) for name in names}  # type: ignore[arg-type]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the means of the bound's terms."""
        self._evaluate("val", expected.first(self, batch), batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the means of the bound's terms."""
        self._evaluate("test", expected.first(self, batch), batch_idx)

    def predict_step(self, batch: object, batch_idx: int) -> dict[str, Tensor]:
        """Predict mean [B, J] and log-variance [B, J] of q(z|x), and the reconstruction [B, D]."""
        images = expected.first(self, batch)
        mean, log_variance = self.encode(self.prepare_target(images))
        reconstruction = self.decode(mean).sigmoid()
        return {"mean": mean, "log_variance": log_variance, "reconstruction": reconstruction}
