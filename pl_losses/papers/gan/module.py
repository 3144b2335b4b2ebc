"""Paszke et al. 2019, Listing 2: simplified training of a generative adversarial network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torchmetrics import MeanMetric

from pl_losses.hparams import save_plain_hyperparameters
from pl_losses.papers.base import PaperModule
from pl_losses.papers.gan import networks
from pl_losses.papers.gan.averaging import MovingAverage
from pl_losses.papers.gan.losses import discriminator_loss, generator_loss
from pl_losses.papers.gan.noise import standard_normal
from pl_losses.papers.gan.passes import frozen, unsynchronised
from pl_losses.strategies import DDPPerModule

NETWORKS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "dcgan": (networks.DCGANGenerator, networks.DCGANDiscriminator),
    "mlp": (networks.MLPGenerator, networks.MLPDiscriminator),
}


def dcgan_adam(parameters: Iterable[Any]) -> Adam:
    """The default optimizer, Radford et al.'s: Adam with a short memory."""
    return Adam(parameters, lr=2e-4, betas=(0.5, 0.999))


class GAN(PaperModule):
    """A generator and a discriminator, trained by the paper's step.

    For each batch of N images: N images are generated once; the discriminator steps on its loss on both,
    through which no gradient reaches the generator; then the generator steps on the loss of the same images
    under the discriminator as it is now. The discriminator's parameters are frozen meanwhile, so that the
    generator's loss leaves no gradients in them. A batch counts as one step (``max_steps``,
    ``trainer.global_step``), although two optimizers step. The noise is that of the joined batch on any
    number of ranks; on more than one, train with ``strategy="ddp_per_module"``.

    Logs what :attr:`KEYS` tells. Batches are images [B, C, S, S], or start with them, their pixels in
    [-1, 1]; give ``mean`` and ``std`` if they are normalised otherwise. Validation, test and prediction are
    of the averaged generator if there is one.

    To change it, override :meth:`configure_generator`, :meth:`configure_discriminator`,
    :meth:`configure_discriminator_loss`, :meth:`configure_generator_loss` or :meth:`sample_noise`.

    Args:
        latent_size: Numbers Z in the noise of an image.
        channels: C.
        image_size: S: 28, 32 or 64; any for the MLP.
        architecture: Of the networks: "dcgan" or "mlp", see :mod:`~pl_losses.papers.gan.networks`.
        width: Channels (MLP: units) of the networks' narrowest layer.
        generator: Makes the generator instead: noise [B, Z] -> images [B, C, S, S].
        discriminator: Makes the discriminator instead: images -> logits [B], or several each.
        generator_optimizer: Parameters to optimizer.
        discriminator_optimizer: Parameters to optimizer.
        smoothing: One-sided label smoothing: real images have the label 1 minus this.
        discriminator_steps: The generator steps only with every so-manieth step of the discriminator.
        ema: Decay of the generator's moving average, such as 0.999; None for none. It is shorter in the
            beginning: with t steps made, at most (1 + t) / (10 + t).
        gradient_clip: Largest norm of each network's gradient; None for no limit. (The Trainer's
            ``gradient_clip_val`` is only for modules with one optimizer.)
        accumulate: Batches whose gradients make one step, the same as of one large batch, but for batch
            normalisation. The generator's images are then generated twice, to save memory.
        mean: Of the data's normalisation, by channel: an image x is seen as 2 (x std + mean) - 1.
        std: Of the data's normalisation, by channel.
        seed: Seed of the noise.

    Raises:
        TypeError: If an optimizer cannot be called.
        ValueError: If an argument is out of range.

    Example:
        >>> model = GAN(width=4)
        >>> model.sample(3).shape
        torch.Size([3, 1, 32, 32])
    """

    KEYS: ClassVar[dict[str, str]] = {
        "train/discriminator_loss": "the discriminator's loss on real and generated images, in nats",
        "train/generator_loss": "the generator's loss under the discriminator after its step, in nats",
        "train/real_output": "mean output D(x) on real images, in [0, 1], before the discriminator's step",
        "train/fake_output": "the same on generated ones, D(G(z))",
        "val/loss": "the discriminator's loss on held-out images and as many generated ones, in nats",
        "val/real_output": "mean output on held-out images",
        "val/fake_output": "mean output on generated ones",
        "test/loss": "as `val/loss`, on the test images",
        "test/real_output": "as `val/real_output`",
        "test/fake_output": "as `val/fake_output`",
    }

    def __init__(
        self,
        latent_size: int = 100,
        channels: int = 1,
        image_size: int = 32,
        architecture: Literal["dcgan", "mlp"] = "dcgan",
        width: int = 64,
        generator: Callable[[], nn.Module] | None = None,
        discriminator: Callable[[], nn.Module] | None = None,
        generator_optimizer: OptimizerCallable = dcgan_adam,
        discriminator_optimizer: OptimizerCallable = dcgan_adam,
        smoothing: float = 0.0,
        discriminator_steps: int = 1,
        ema: float | None = None,
        gradient_clip: float | None = None,
        accumulate: int = 1,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        seed: int = 0,
    ) -> None:
        counts = {"latent_size": latent_size, "channels": channels, "image_size": image_size, "width": width}
        counts |= {"discriminator_steps": discriminator_steps, "accumulate": accumulate}
        for name, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"Expected `{name}` to be a positive integer but got {count!r}")
        if architecture not in NETWORKS:
            raise ValueError(f'Expected `architecture` to be "dcgan" or "mlp" but got {architecture!r}')
        if not 0 <= smoothing < 1:
            raise ValueError(f"Expected `smoothing` in [0, 1) but got {smoothing}")
        if ema is not None and not 0 <= ema < 1:
            raise ValueError(f"Expected `ema` in [0, 1) or None but got {ema}")
        if gradient_clip is not None and not gradient_clip > 0:
            raise ValueError(f"Expected `gradient_clip` to be positive or None but got {gradient_clip}")
        _check_normalisation(mean, std, channels)
        super().__init__(discriminator_optimizer)
        if not callable(generator_optimizer):
            raise TypeError(f"Expected a callable `generator_optimizer` but got {generator_optimizer!r:.80}")
        save_plain_hyperparameters(self)
        self.automatic_optimization = False
        self._generator_optimizer, self._discriminator_optimizer = (
            generator_optimizer,
            discriminator_optimizer,
        )
        self.latent_size, self.channels, self.image_size = latent_size, channels, image_size
        self.architecture, self.width = architecture, width
        self._make_generator, self._make_discriminator = generator, discriminator
        self.smoothing, self.discriminator_steps, self.accumulate = smoothing, discriminator_steps, accumulate
        self.gradient_clip, self.seed = gradient_clip, seed
        self.mean, self.std = mean, std
        # Convolutions are faster with the channels side by side, a tenth and more on a CPU.
        self.generator = self.configure_generator().to(memory_format=torch.channels_last)
        self.discriminator = self.configure_discriminator().to(memory_format=torch.channels_last)
        self.average = None if ema is None else MovingAverage(self.generator, ema)
        self.means = nn.ModuleDict({f"{stage}_{part}": MeanMetric() for stage, part in _PARTS})
        self._noise: list[Tensor] = []

    def configure_generator(self) -> nn.Module:
        """Build the generator: noise [B, Z] -> images [B, C, S, S]."""
        if self._make_generator is not None:
            return self._make_generator()
        sizes = (self.latent_size, self.channels, self.image_size, self.width)
        return NETWORKS[self.architecture][0](*sizes)

    def configure_discriminator(self) -> nn.Module:
        """Build the discriminator: images [B, C, S, S] -> logits [B]."""
        if self._make_discriminator is not None:
            return self._make_discriminator()
        return NETWORKS[self.architecture][1](self.channels, self.image_size, self.width)

    def configure_discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The discriminator's loss: logits of real and of generated images -> scalar."""
        return discriminator_loss(real_logits, fake_logits, smoothing=self.smoothing)

    def configure_generator_loss(self, fake_logits: Tensor) -> Tensor:
        """The generator's loss: logits of generated images -> scalar."""
        return generator_loss(fake_logits)

    def configure_optimizers(self) -> Any:
        """Build the discriminator's and the generator's optimizer, in this order."""
        return [
            self._discriminator_optimizer(self.discriminator.parameters()),
            self._generator_optimizer(self.generator.parameters()),
        ]

    def configure_model(self) -> None:
        """Refuse to be sharded: the networks are used apart from one another.

        Raises:
            ValueError: If the strategy shards modules.
        """
        if self.device_mesh is not None:
            raise ValueError('Expected `strategy` not to shard the module: use "ddp_per_module"')

    def setup(self, stage: str) -> None:
        """Refuse a strategy that fails with two optimizers.

        Raises:
            ValueError: If it is DDP around the whole module.
        """
        strategy = self.trainer.strategy
        if stage != "fit" or not isinstance(strategy, DDPStrategy) or isinstance(strategy, DDPPerModule):
            return
        if not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise ValueError(
                'Expected `strategy="ddp_per_module"` but got DDP around the whole module, which waits for'
                " the gradients of both networks in every backward pass"
            )

    def sample_noise(self, count: int, *key: Any) -> Tensor:
        """This rank's rows of the noise of the joined batch.

        Args:
            count: Rows wanted.
            key: What tells this noise from other, beside the seed.

        Returns:
            [count, Z], on the module's device.
        """
        share = self._trainer.distributed_sampler_kwargs if self._trainer is not None else None
        ranks, rank = (share["num_replicas"], share["rank"]) if share else (1, 0)
        return self.fixed_noise(count * ranks, self.seed, *key)[rank::ranks]

    def fixed_noise(self, count: int, *key: Any) -> Tensor:
        """The same noise for the same key, on every rank: [count, Z], on the module's device."""
        noise = standard_normal(count, self.latent_size, *key)
        return noise.to(self.device, next(self.generator.parameters()).dtype, non_blocking=True)

    @property
    def sampler(self) -> nn.Module:
        """The averaged generator if there is one, else the generator."""
        return self.generator if self.average is None else self.average.network

    def forward(self, noise: Tensor) -> Tensor:
        """Images of :attr:`sampler`: noise [B, Z] -> [B, C, S, S].

        Raises:
            ValueError: If ``noise`` is of another shape.
        """
        if noise.ndim != 2 or noise.shape[1] != self.latent_size:
            raise ValueError(f"Expected `noise` of shape [B, {self.latent_size}] but got {list(noise.shape)}")
        images: Tensor = self.sampler(noise)
        return images

    @torch.no_grad()
    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Images, always the same for a seed, made with the running statistics of batch normalisation.

        Args:
            count: How many.
            seed: Of the noise.

        Returns:
            [count, C, S, S], pixels in [-1, 1].
        """
        return self.generate(self.fixed_noise(count, "sample", seed))

    @torch.no_grad()
    def generate(self, noise: Tensor) -> Tensor:
        """Images of given noise in evaluation mode, a thousand at a time: [N, Z] -> [N, C, S, S]."""
        training = self.sampler.training
        self.sampler.eval()
        try:
            return torch.cat([self(part) for part in torch.split(noise, 1000)])
        finally:
            self.sampler.train(training)

    def images(self, batch: Any) -> Tensor:
        """The images of a batch, their pixels in [-1, 1]: [B, C, S, S]."""
        images: Tensor = batch[0] if isinstance(batch, (tuple, list)) else batch
        if self.mean is None or self.std is None:
            return images
        mean, std = (images.new_tensor(part)[:, None, None] for part in (self.mean, self.std))
        return images.mul(2 * std).add_(2 * mean - 1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Refuse images that the generator cannot make, at the first batch.

        Raises:
            ValueError: If they are of another shape, or pixels are out of range.
        """
        if batch_idx or self.current_epoch:
            return
        images = self.images(batch)
        wanted = (self.channels, self.image_size, self.image_size)
        if self._make_generator is None and images.shape[1:] != wanted:
            raise ValueError(
                f"Expected images of shape [B, {self.channels}, {self.image_size}, {self.image_size}]"
                f" (`channels`, `image_size`) but got {networks.sizes_in_words(images)}"
            )
        low, high = images.min().item(), images.max().item()
        if low < -1.02 or high > 1.02:
            raise ValueError(
                f"Expected pixels in [-1, 1] but got [{low:.3g}, {high:.3g}]: set `low` and `high` of the"
                " data, or `mean` and `std` of the model"
            )

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Listing 2."""
        real = self.images(batch)
        last = (batch_idx + 1) % self.accumulate == 0 or self.trainer.is_last_batch
        generator_too = last and (self.global_step + 1) % self.discriminator_steps == 0
        optimizer: Any = self.optimizers()[0]  # type: ignore[index]
        if not self._noise:
            optimizer.zero_grad()
        self._noise.append(self.sample_noise(len(real), "train", self.current_epoch, batch_idx))
        with torch.set_grad_enabled(generator_too):
            fake = self.generator(self._noise[-1])
        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake.detach())
        loss = self.configure_discriminator_loss(real_logits, fake_logits)
        self.refuse_non_finite(loss)
        self._backward(loss, synchronise=last)
        outputs = real_logits.detach().float().sigmoid().mean(), fake_logits.detach().float().sigmoid().mean()
        self.log("train/discriminator_loss", loss.detach(), prog_bar=True)
        self.log_dict({"train/real_output": outputs[0], "train/fake_output": outputs[1]})
        if last:
            optimizer.step()
            if generator_too:
                self.log("train/generator_loss", self._step_generator(fake), prog_bar=True)
            self._noise.clear()

    def _step_generator(self, fake: Tensor) -> Tensor:
        """Step on the images of the last batch, whose graph is there, and of those accumulated before it."""
        optimizer: Any = self.optimizers()[1]  # type: ignore[index]
        optimizer.zero_grad()
        with frozen(self.discriminator):
            for noise in self._noise[:-1]:
                earlier = self.configure_generator_loss(self.discriminator(self.generator(noise)))
                self._backward(earlier, synchronise=False)
            loss = self.configure_generator_loss(self.discriminator(fake))
            self._backward(loss, synchronise=True)
        # The strategy's step, not the LightningOptimizer's: that one would count the batch a second time.
        self.trainer.strategy.optimizer_step(optimizer.optimizer, _nothing)
        if self.average is not None:
            self.average.update(self.generator, self.global_step)
        return loss.detach()

    def _backward(self, loss: Tensor, synchronise: bool) -> None:
        with nullcontext() if synchronise else unsynchronised(self.trainer.strategy):
            self.manual_backward(loss / self.accumulate if self.accumulate > 1 else loss)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient of the network that is about to step; with AMP it is unscaled by now."""
        if self.gradient_clip is not None:
            self.clip_gradients(optimizer, self.gradient_clip, "norm")

    def on_train_epoch_start(self) -> None:
        """Forget what a run before left unfinished."""
        self._noise.clear()

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Compare a batch with as many generated images; returns what ``GANReport`` draws."""
        return self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Compare a batch with as many generated images; returns what ``GANReport`` draws."""
        return self._evaluate("test", batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """As many generated images as the batch has."""
        images: Tensor = self(self.sample_noise(len(self.images(batch)), "predict", batch_idx))
        return images

    def _evaluate(self, stage: str, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        real = self.images(batch)
        fake = self(self.sample_noise(len(real), stage, batch_idx))
        real_logits, fake_logits = self.discriminator(real).float(), self.discriminator(fake).float()
        values = {
            "loss": self.configure_discriminator_loss(real_logits, fake_logits),
            "real_output": real_logits.sigmoid().mean(),
            "fake_output": fake_logits.sigmoid().mean(),
        }
        for part, value in values.items():
            mean: Any = self.means[f"{stage}_{part}"]
            mean.update(value, len(real))
            self.log(f"{stage}/{part}", mean)
        return {"real": real, "fake": fake, "real_logits": real_logits, "fake_logits": fake_logits}


_PARTS = [(stage, part) for stage in ("val", "test") for part in ("loss", "real_output", "fake_output")]


def _nothing() -> None:
    """The closure of a step whose gradients are there already."""


def _check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if (mean is None) != (std is None) or (values is not None and len(values) != channels):
            raise ValueError(
                f"Expected `mean` and `std` with {channels} numbers each (`channels`), or neither, but got"
                f" {name}={values}"
            )
