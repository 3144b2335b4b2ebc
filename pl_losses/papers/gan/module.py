"""Paszke et al. 2019, Listing 2: simplified training of a generative adversarial network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.optimizer import ParamsT

from pl_losses.core import expected
from pl_losses.core.base import PaperModule
from pl_losses.core.declared import Keys
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.kernels import is_plain
from pl_losses.core.loaders import BLOCK, drawn_at, rank_of
from pl_losses.core.metrics import computed
from pl_losses.core.panels import Sections
from pl_losses.core.precision import at_least_float32
from pl_losses.core.rng import standard_normal
from pl_losses.core.sums import Mean
from pl_losses.core.validation import check_counts, check_init, check_number, check_share
from pl_losses.papers.gan import checks, manifest, networks
from pl_losses.papers.gan.averaging import MovingAverage, fit_average
from pl_losses.papers.gan.losses import discriminator_loss, generator_loss
from pl_losses.papers.gan.passes import frozen, scale_gradients, unsynchronised
from pl_losses.strategies import step_uncounted

NETWORKS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "dcgan": (networks.DCGANGenerator, networks.DCGANDiscriminator),
    "mlp": (networks.MLPGenerator, networks.MLPDiscriminator),
}

# Logged in a validation and a test.
PARTS = ("loss", "real_output", "fake_output")


def dcgan_adam(parameters: ParamsT) -> Adam:
    """Build the default optimizer, Radford et al.'s: Adam with a short memory, on a CPU in one kernel."""
    given: list[Any] = list(parameters)
    return Adam(given, lr=2e-4, betas=(0.5, 0.999), fused=all(map(is_plain, given)) or None)


class GAN(PaperModule):
    """A generator and a discriminator, trained by the paper's step.

    A step takes a batch of N images, and generates N images once. First the discriminator takes a step on all
    of these images. Its loss has no gradient for the generator. Then the generator takes a step on the
    generated images, judged by the new discriminator. Here the parameters of the discriminator are frozen, so
    that the generator's loss has no gradient for them. A batch counts as one step (``max_steps``,
    ``trainer.global_step``), although there are two optimizers. The noise is the same on any number of ranks.
    In evaluation it depends on the place of an image in the data set. On several ranks, train with
    ``strategy="ddp_per_module"`` or FSDP2.

    The module logs :attr:`KEYS`. A batch is images [B, C, S, S], or a tuple that starts with them. Their
    pixels are in [-1, 1]. For pixels that are normalised in another way, give ``mean`` and ``std``.
    Validation, test and prediction use the averaged generator, if there is one.

    To change it, override :meth:`configure_generator`, :meth:`configure_discriminator`,
    :meth:`compute_discriminator_loss`, :meth:`compute_generator_loss` or :meth:`sample_noise`.

    Args:
        latent_size: Numbers Z in the noise of an image.
        channels: C.
        image_size: S: 28, 32 or 64; any for the MLP.
        architecture: The networks' architecture, "dcgan" or "mlp", see :mod:`~pl_losses.papers.gan.networks`.
        width: Channels (MLP: units) of the networks' narrowest layer.
        generator: Function that makes another generator: noise [B, Z] -> images [B, C, S, S].
        discriminator: Function that makes another discriminator: images -> logits [B], or several for each
            image.
        generator_optimizer: Makes the optimizer from the parameters.
        discriminator_optimizer: Makes the optimizer from the parameters.
        smoothing: One-sided label smoothing: real images have the label 1 minus this.
        discriminator_steps: Steps of the discriminator for each step of the generator.
        ema: Decay of the generator's moving average, such as 0.999; None for none. At the start the decay is
            smaller: after t updates it is at most (1 + t) / (10 + t).
        gradient_clip: Largest norm of each network's gradient; None for no limit. (The Trainer's
            ``gradient_clip_val`` is only for modules with one optimizer.)
        accumulate: Number of batches whose gradients are added up for one step. The step is that of one large
            batch, except for batch normalisation. The last step of an epoch has the batches that are left.
            (The Trainer's ``accumulate_grad_batches`` is only for modules with one optimizer.) To save
            memory, images are then generated twice.
        mean: Means of the data's normalisation, by channel: the networks see an image x as 2 (x std + mean) -
            1.
        std: Standard deviations of the data's normalisation, by channel.
        seed: Seed of the noise.

    Raises:
        TypeError: If an optimizer cannot be called, or ``generator`` or ``discriminator`` makes no module.
        ValueError: If an argument is out of range.

    Example:
        >>> model = GAN(width=4)
        >>> model.sample(3).shape
        torch.Size([3, 1, 32, 32])
    """

    panels: ClassVar[Sections] = manifest.GAN
    compiled = ("generator", "discriminator")
    KEYS: ClassVar[Keys] = {
        "train/discriminator_loss": "the discriminator's loss on real and generated images, in nats",
        "train/generator_loss": "the generator's loss, in nats, after the discriminator's step",
        "train/real_output": "mean output D(x) on real images, in [0, 1], before the discriminator's step",
        "train/fake_output": "the same on generated images, D(G(z))",
        "val/loss": "the discriminator's loss on held-out images and as many generated images, in nats",
        "val/real_output": "mean output on held-out images",
        "val/fake_output": "mean output on generated images",
        "test/loss": "as `val/loss`, on the test images",
        "test/real_output": "as `val/real_output`",
        "test/fake_output": "as `val/fake_output`",
    }

    def __init__(
        self,
        latent_size: int = 100,
        channels: int = 1,
        image_size: int = 32,
        *,
        architecture: Literal["dcgan", "mlp"] = "dcgan",
        width: int = 64,
        generator: Callable[[], nn.Module] | None = None,
        discriminator: Callable[[], nn.Module] | None = None,
        smoothing: float = 0.0,
        discriminator_steps: int = 1,
        ema: float | None = None,
        gradient_clip: float | None = None,
        accumulate: int = 1,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        seed: int = 0,
        generator_optimizer: OptimizerCallable = dcgan_adam,
        discriminator_optimizer: OptimizerCallable = dcgan_adam,
    ) -> None:
        check_init(locals())
        check_counts(latent_size=latent_size, channels=channels, image_size=image_size)
        check_counts(width=width, discriminator_steps=discriminator_steps, accumulate=accumulate)
        check_share("smoothing", smoothing)
        if ema is not None:
            check_number("ema", ema, "in [0, 1) or None", lambda decay: 0 <= decay < 1)
        if gradient_clip is not None:
            check_number("gradient_clip", gradient_clip, "to be positive or None", lambda norm: norm > 0)
        checks.normalisation(mean, std, channels)
        checks.makers(generator=generator, discriminator=discriminator)
        expected.builder("generator_optimizer", generator_optimizer)
        expected.builder("discriminator_optimizer", discriminator_optimizer)
        super().__init__(discriminator_optimizer)
        save_plain_hyperparameters(self)
        self.automatic_optimization = False
        self._generator_optimizer = generator_optimizer
        self._discriminator_optimizer = discriminator_optimizer
        self.latent_size, self.channels, self.image_size = latent_size, channels, image_size
        self.architecture, self.width = architecture, width
        self._make_generator, self._make_discriminator = generator, discriminator
        self.smoothing, self.discriminator_steps, self.accumulate = smoothing, discriminator_steps, accumulate
        self.gradient_clip, self.seed = gradient_clip, seed
        self.mean, self.std = mean, std
        # Convolutions are faster with the channels side by side, by a tenth and more on a CPU.
        made = checks.module("generator", self.configure_generator())
        self.generator = made.to(memory_format=torch.channels_last)
        made = checks.module("discriminator", self.configure_discriminator())
        self.discriminator = made.to(memory_format=torch.channels_last)
        self.average = None if ema is None else MovingAverage(self.generator, ema)
        self.means = nn.ModuleDict({f"{stage}_{part}": Mean() for stage in ("val", "test") for part in PARTS})
        # Noise, number of samples that count, and its mean over ranks, for the batches of one step.
        self._noise: list[Tensor] = []
        self._own: list[int] = []
        self._counts: list[int | Tensor] = []

    def configure_generator(self) -> nn.Module:
        """Build the generator: noise [B, Z] -> images [B, C, S, S]."""
        if self._make_generator is not None:
            return self._make_generator()
        generator = NETWORKS[self.architecture][0]
        return generator(self.latent_size, self.channels, self.image_size, width=self.width)

    def configure_discriminator(self) -> nn.Module:
        """Build the discriminator: images [B, C, S, S] -> logits [B]."""
        if self._make_discriminator is not None:
            return self._make_discriminator()
        return NETWORKS[self.architecture][1](self.channels, self.image_size, width=self.width)

    def compute_discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Compute the discriminator's loss: logits of real and of generated images -> scalar."""
        return discriminator_loss(real_logits, fake_logits, smoothing=self.smoothing)

    def compute_generator_loss(self, fake_logits: Tensor) -> Tensor:
        """Compute the generator's loss: logits of generated images -> scalar."""
        return generator_loss(fake_logits)

    def configure_optimizers(self) -> list[Optimizer]:
        """Build the discriminator's and the generator's optimizer, in this order."""
        return [
            expected.optimizer(self._discriminator_optimizer(self.discriminator.parameters())),
            expected.optimizer(self._generator_optimizer(self.generator.parameters())),
        ]

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return the callbacks of every module; refuse what the Trainer has for one optimizer only.

        Raises:
            ValueError: If it accumulates or clips gradients.
        """
        checks.one_optimizer(self.trainer)
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        """Refuse a strategy that fails with two optimizers.

        Raises:
            ValueError: If the strategy is DDP around the whole module.
        """
        if stage == "fit":
            checks.strategy(self.trainer.strategy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop a saved average that is not wanted; start a wanted one that was not saved as the generator."""
        super().on_load_checkpoint(checkpoint)
        if "state_dict" in checkpoint:  # Under FSDP2 the strategy has loaded it already.
            fit_average(checkpoint["state_dict"], wanted=self.average is not None)

    def sample_noise(self, count: int, *key: object) -> Tensor:
        """Draw this rank's rows of the noise of the joined batch.

        Args:
            count: Number of rows.
            key: What distinguishes this noise from other, beside the seed.

        Returns:
            [count, Z], on the module's device.
        """
        rank, ranks = rank_of(self.trainer_or_none)
        return self.fixed_noise(count * ranks, self.seed, *key)[rank::ranks]

    def fixed_noise(self, count: int, *key: object) -> Tensor:
        """Draw the same noise for the same key on every rank: [count, Z], on the module's device."""
        noise = standard_normal(count, self.latent_size, *key)
        return noise.to(self.device, next(self.generator.parameters()).dtype, non_blocking=True)

    @property
    def sampler(self) -> nn.Module:
        """The averaged generator if there is one, else the generator."""
        return self.generator if self.average is None else self.average

    def forward(self, noise: Tensor) -> Tensor:
        """Generate images by :attr:`sampler`: noise [B, Z] -> [B, C, S, S].

        Raises:
            ValueError: If ``noise`` is of another shape.
        """
        if noise.ndim != 2 or noise.shape[1] != self.latent_size:
            raise ValueError(f"Expected `noise` of shape [B, {self.latent_size}] but got {list(noise.shape)}")
        images: Tensor = self.sampler(noise)
        return images

    @torch.no_grad()
    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Generate images, always the same for a seed, with running statistics of batch normalisation.

        Args:
            count: Number of images.
            seed: Seed of the noise.

        Returns:
            [count, C, S, S], pixels in [-1, 1].

        Raises:
            ValueError: If ``count`` is no positive integer.
        """
        check_counts(count=count)
        return self.generate(self.fixed_noise(count, "sample", seed))

    @torch.no_grad()
    def generate(self, noise: Tensor) -> Tensor:
        """Generate images of given noise in evaluation mode, a thousand at a time: [N, Z] -> [N, C, S, S]."""
        training = self.sampler.training
        self.sampler.eval()
        try:
            return torch.cat([self(part) for part in torch.split(noise, 1000)])
        finally:
            self.sampler.train(training)

    def images(self, batch: object) -> Tensor:
        """Return the images of a batch, with pixels in [-1, 1]: [B, C, S, S].

        Raises:
            TypeError: If the batch is no tensor and does not start with one.
        """
        images = expected.first(self, batch).to(next(self.generator.parameters()).dtype)
        if self.mean is None or self.std is None:
            return images
        mean, std = (images.new_tensor(part)[:, None, None] for part in (self.mean, self.std))
        return images.mul(2 * std).add_(2 * mean - 1)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Refuse images that the generator cannot make, at the first batch.

        Raises:
            ValueError: If pixels are out of range.
        """
        if not batch_idx and not self.current_epoch and checks.pixel_range(self.images(batch)):
            rank_zero_warn(
                "No pixel of the first batch is negative, but the generator makes pixels in [-1, 1]: if the"
                " images are in [0, 1], set `low=-1.0` of the data, or `mean` and `std` of the model"
            )

    def training_step(self, batch: object, batch_idx: int) -> None:
        """Train by Listing 2 on a batch."""
        real = self.images(batch)
        last = (batch_idx + 1) % self.accumulate == 0 or self.trainer.is_last_batch
        generator_too = last and (self.global_step + 1) % self.discriminator_steps == 0
        optimizer: LightningOptimizer = self.optimizers()[0]  # type: ignore[index]
        if not self._noise:
            optimizer.zero_grad()
        self._noise.append(self.sample_noise(len(real), "train", self.current_epoch, batch_idx))
        with torch.set_grad_enabled(generator_too):
            fake = self.generator(self._noise[-1])
        checks.same_shape(real, fake)
        self._own.append(self.num_unpadded(batch_idx, len(real)))
        self._counts.append(self.mean_count(self._own[-1]))
        rows = self._own[-1] or len(real)
        # Batch normalisation sees repeated samples, the loss does not.
        real_logits, fake_logits = self.discriminator(real)[:rows], self.discriminator(fake.detach())[:rows]
        loss = self._loss("compute_discriminator_loss", real_logits, fake_logits)
        self._backward(loss, self._own[-1], synchronise=last)
        logits = (real_logits, fake_logits)
        outputs = [at_least_float32(one.detach()).sigmoid().mean() for one in logits]
        self.log("train/discriminator_loss", loss.detach(), prog_bar=True)
        self.log_dict({"train/real_output": outputs[0], "train/fake_output": outputs[1]})
        if last:
            self._even_out(self.discriminator)
            optimizer.step()
            if generator_too:
                self.log("train/generator_loss", self._step_generator(fake), prog_bar=True)
            self._forget()

    def _step_generator(self, fake: Tensor) -> Tensor:
        """Step on the images of the last batch, whose graph exists, and on those of accumulated batches."""
        optimizer: LightningOptimizer = self.optimizers()[1]  # type: ignore[index]
        optimizer.zero_grad()
        with frozen(self.discriminator):
            for noise, own in zip(self._noise[:-1], self._own, strict=False):
                logits = self.discriminator(self.generator(noise))
                earlier = self._loss("compute_generator_loss", logits[: own or len(noise)])
                self._backward(earlier, own, synchronise=False)
            own = self._own[-1]
            logits = self.discriminator(fake)[: own or len(fake)]
            loss = self._loss("compute_generator_loss", logits)
            self._backward(loss, own, synchronise=True)
        self._even_out(self.generator)
        step_uncounted(self, optimizer)
        if self.average is not None:
            self.average.update_parameters(self.generator)
        return loss.detach()

    def _loss(self, method: str, *logits: Tensor) -> Tensor:
        loss = expected.loss(self, method, getattr(self, method)(*logits))
        self.refuse_non_finite(loss)
        return loss

    def _backward(self, loss: Tensor, own: int, synchronise: bool) -> None:
        # As if all batches were of the first one's size, over the ranks, and as many as `accumulate`.
        loss = loss * (own / (self.accumulate * self._counts[0]))
        with nullcontext() if synchronise else unsynchronised(self.trainer.strategy):
            self.manual_backward(loss)

    def _even_out(self, network: nn.Module) -> None:
        """Scale accumulated gradients to the number of images there were: fewer at an epoch's end."""
        if self.accumulate > 1:
            scale_gradients(network, float(self.accumulate * self._counts[0] / sum(self._counts)))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient of the network that is about to step; AMP has unscaled it by now."""
        if self.gradient_clip is not None:
            self.clip_gradients(optimizer, self.gradient_clip, "norm")

    def on_train_epoch_start(self) -> None:
        """Forget what an earlier run left unfinished."""
        self._forget()

    def _forget(self) -> None:
        self._noise, self._own, self._counts = [], [], []

    def evaluation_results(self, stage: str) -> dict[str, Tensor | float]:
        """Return the means."""
        means: Any = self.means
        return {part: computed(means[f"{stage}_{part}"]) for part in PARTS}

    def validation_step(self, batch: object, batch_idx: int) -> dict[str, Tensor]:
        """Compare a batch with as many generated images; return what ``GANReport`` draws."""
        return self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: object, batch_idx: int) -> dict[str, Tensor]:
        """Compare a batch with as many generated images; return what ``GANReport`` draws."""
        return self._evaluate("test", batch, batch_idx)

    def predict_step(self, batch: object, batch_idx: int) -> Tensor:
        """Generate as many images as the batch has."""
        images: Tensor = self(self.evaluation_noise("predict", batch_idx, len(self.images(batch))))
        return images

    def evaluation_noise(self, stage: str, batch_idx: int, count: int) -> Tensor:
        """Draw noise by the positions of a batch's images in the data set: [count, Z], on the device."""
        places = self.places(batch_idx, count)
        (noise,) = drawn_at(places, lambda block: (self.fixed_noise(BLOCK, self.seed, stage, block),))
        return noise

    def _evaluate(self, stage: str, batch: object, batch_idx: int) -> dict[str, Tensor]:
        real = self.images(batch)
        fake = self(self.evaluation_noise(stage, batch_idx, len(real)))
        checks.same_shape(real, fake)
        # Repeated samples are not counted, nor are as many of the generated images.
        own = self.num_unpadded(batch_idx, len(real))
        # All ranks call the network, even without samples: a sharded network is gathered there.
        real_logits, fake_logits = (at_least_float32(self.discriminator(part)[:own]) for part in (real, fake))
        real, fake = real[:own], fake[:own]
        means: Any = self.means
        if own:
            loss = self.compute_discriminator_loss(real_logits, fake_logits)
            expected.loss(self, "compute_discriminator_loss", loss)
            means[f"{stage}_loss"].update(loss, own)
            means[f"{stage}_real_output"].update(real_logits.sigmoid().mean(), own)
            means[f"{stage}_fake_output"].update(fake_logits.sigmoid().mean(), own)
        return {"real": real, "fake": fake, "real_logits": real_logits, "fake_logits": fake_logits}
