"""Pictures and figures of a GAN: its samples through training, and their quality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from pl_losses.core.declared import Keys, Part, Recipe, declared_keys, without
from pl_losses.core.metrics import States, define_metrics, states_of, take_out_repeated
from pl_losses.core.panels import Sections
from pl_losses.core.validation import check_counts, typed
from pl_losses.monitoring.pictures import gather_objects, log_figure
from pl_losses.monitoring.rows import Row, log_row
from pl_losses.monitoring.steps import logged_step
from pl_losses.papers.gan import manifest
from pl_losses.papers.gan.checks import makers, module
from pl_losses.papers.gan.drawing import draw_classes, draw_outputs, draw_samples
from pl_losses.papers.gan.measures import Measures, feature_name
from pl_losses.papers.gan.module import GAN
from pl_losses.papers.gan.noise import spherical

QUANTILES = (0.05, 0.5, 0.95)
# Pairs to interpolate between, and images for each.
ROWS, STEPS = 6, 12


class GANReport(Callback):
    """Draws samples of the same noise during training, and compares generated samples with held-out images.

    It is for a :class:`~pl_losses.GAN`. During training it logs ``train/samples``. After each validation it
    logs histograms of the discriminator's outputs, with their quantiles. With ``features`` it also compares
    the features of equally many real and generated samples, after each validation and test. After a test it
    also logs the pictures ``test/samples``, ``test/interpolation``, ``test/outputs`` and ``test/classes``.
    All numbers are exact over any number of ranks. With several dataloaders they are about all samples
    together.

    Args:
        features: Function that makes a module whose ``forward`` turns images [B, C, S, S] with pixels in [-1,
            1] into features [B, F]. The module's ``name`` begins the keys, so that you see which features
            they are from. If it has ``scores``, from features to scores of the classes [B, K], the classes
            are counted.
        metric: Function that makes another metric of images, such as torchmetrics'
            ``FrechetInceptionDistance`` with ``normalize=True``. ``update(images, real=...)`` gets images in
            [0, 1] with three channels. The metric is logged by the name of its class.
        every_n_epochs: Draw samples at the start, and at the end of every n-th epoch.
        samples: Number of samples to draw.
        seed: Seed of their noise.

    Raises:
        TypeError: If ``features`` is not a function that makes a module.
        ValueError: If a number is not positive.
    """

    KEYS: ClassVar[Keys] = {
        "<name>_frechet_distance": "squared Fréchet distance of the features of real and generated samples",
        "<name>_precision": "share of generated samples that are near a real sample, by 3 nearest neighbours",
        "<name>_recall": "share of real samples that are near a generated sample, in the same way",
        "<name>_classes_covered": "number of classes at least half as frequent as an average class",
        "<name>_smallest_class": "share of the rarest class",
        "<name>_largest_class": "share of the most frequent class",
        "<name>_real_classes_covered": "as `<name>_classes_covered`, for the real samples",
        "<name>_real_smallest_class": "share of the rarest class among the real samples",
        "<name>_real_largest_class": "share of the most frequent class among the real samples",
        "train/samples": "picture: samples of the same noise over training",
        "test/samples": "picture: samples",
        "test/interpolation": "picture: samples on the way from one noise to another",
        "test/outputs": "picture: the discriminator's outputs",
        "test/classes": "picture: share of each class",
        "val/real_outputs": "histogram of the discriminator's outputs on real images",
        "val/fake_outputs": "histogram of the discriminator's outputs on generated images",
        "val/real_output_<quantile>": "quantile of the discriminator's outputs on real images, such as q50",
        "val/fake_output_<quantile>": "the same on generated images",
    }
    panels: ClassVar[Sections] = manifest.GAN_REPORT

    @classmethod
    def logged_keys(cls, part: Part, recipe: Recipe) -> Keys:
        """Return the keys that it logs: figures of ``features`` if there are any."""
        keys = declared_keys(cls)
        left_out = [key for key in keys if key.startswith("val/") and not recipe.validates]
        if not part.argument("features"):
            left_out += [key for key in keys if key.startswith("<name>") or key == "test/classes"]
        return without(keys, left_out)

    @typed
    def __init__(
        self,
        features: Callable[[], nn.Module] | None = None,
        *,
        metric: Callable[[], Metric] | None = None,
        every_n_epochs: int = 1,
        samples: int = 64,
        seed: int = 0,
    ) -> None:
        check_counts(every_n_epochs=every_n_epochs, samples=samples)
        makers(features=features)
        self.every_n_epochs, self.samples, self.seed = every_n_epochs, samples, seed
        self._make_features, self._make_metric = features, metric
        self._features: nn.Module | None = None
        self._measures: Measures | None = None
        # For each dataloader: logits, and what was measured before it began.
        self._logits: dict[int, dict[str, list[Tensor]]] = {}
        self._begun: list[tuple[int, dict[str, States]]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the features, once.

        Raises:
            TypeError: If the module is not a GAN, or ``features`` makes no module.
        """
        if not isinstance(pl_module, GAN):
            raise TypeError(f"Expected a GAN to report on but got {type(pl_module).__name__}")
        if self._make_features is not None and self._features is None:
            self._features = module("features", self._make_features()).eval().requires_grad_(False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the logger that small distances are better."""
        if self._features is not None:
            name = f"{feature_name(self._features)}_frechet_distance"
            define_metrics(trainer, {f"{stage}/{name}": "min" for stage in ("val", "test")})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show samples of the untrained generator."""
        if trainer.current_epoch == 0:
            self._show_samples(trainer, pl_module, "train/samples")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the current samples of the same noise."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._show_samples(trainer, pl_module, "train/samples")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start new measurements."""
        assert isinstance(pl_module, GAN)
        self._logits, self._begun = {}, []
        self._measures = Measures(self._features, self._make_metric, pl_module.sample(2).float())

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        assert self._measures is not None
        if dataloader_idx not in self._logits:
            self._logits[dataloader_idx] = {"real": [], "fake": []}
            states = {name: states_of(metric) for name, metric in self._measures.metrics().items()}
            self._begun.append((dataloader_idx, states))
        for part, kept in self._logits[dataloader_idx].items():
            kept.append(outputs[f"{part}_logits"].flatten().float().cpu())
            self._measures.update(outputs[part].float(), real=part == "real")

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures, and the distribution of the discriminator's outputs."""
        if trainer.sanity_checking:
            return
        self._log_quality(pl_module, "val")
        real, fake = self._gathered(pl_module)
        if not trainer.is_global_zero:
            return
        row = Row()
        for part, logits in (("real", real), ("fake", fake)):
            outputs = logits.double().sigmoid()
            row.histograms[f"val/{part}_outputs"] = outputs.numpy()
            for share, value in zip(QUANTILES, outputs.quantile(outputs.new_tensor(QUANTILES)), strict=True):
                row.scalars[f"val/{part}_output_q{100 * share:02.0f}"] = float(value)
        log_row(trainer, row, logged_step(trainer))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures and draw the pictures."""
        shares = self._log_quality(pl_module, "test")
        real, fake = self._gathered(pl_module)
        self._show_samples(trainer, pl_module, "test/samples")
        self._show_interpolation(trainer, pl_module)
        if trainer.is_global_zero:
            log_figure(trainer, "test/outputs", draw_outputs(real, fake))
            if shares is not None:
                names = getattr(trainer.datamodule, "class_names", ())  # type: ignore[attr-defined]
                log_figure(trainer, "test/classes", draw_classes(shares.cpu(), names))

    def _log_quality(self, pl_module: LightningModule, stage: str) -> Tensor | None:
        assert self._measures is not None
        assert isinstance(pl_module, GAN)
        pl_module.counts()  # On a rank without a batch, too.
        take_out_repeated(self._measures.metrics(), self._begun, pl_module.counts)
        figures, shares = self._measures.compute()
        # Equal on all ranks already; without sync_dist Lightning warns that they might not be.
        pl_module.log_dict({f"{stage}/{key}": value for key, value in figures.items()}, sync_dist=True)
        self._measures = None
        return shares

    def _gathered(self, pl_module: LightningModule) -> tuple[Tensor, Tensor]:
        assert isinstance(pl_module, GAN)
        own = [kept for loader, kept in self._logits.items() if pl_module.counts(loader)]
        parts = [kept for rank in gather_objects(own) for kept in rank]
        self._logits = {}
        real, fake = (
            torch.cat([torch.zeros(0), *(logits for kept in parts for logits in kept[part])])
            for part in ("real", "fake")
        )
        return real, fake

    def _show_samples(self, trainer: Trainer, pl_module: LightningModule, key: str) -> None:
        assert isinstance(pl_module, GAN)
        images = pl_module.sample(self.samples, self.seed).float().cpu()
        if trainer.is_global_zero and trainer.loggers:
            after = f"after {logged_step(trainer)} batches"
            title = "samples of the tested weights" if key.startswith("test") else after
            log_figure(trainer, key, draw_samples(images, round(self.samples**0.5), title))

    def _show_interpolation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, GAN)
        ends = pl_module.fixed_noise(2 * ROWS, "interpolation", self.seed)
        noise = spherical(ends[:ROWS], ends[ROWS:], STEPS).flatten(0, 1)
        images = pl_module.generate(noise).float().cpu()
        if trainer.is_global_zero:
            title = "from one sample (left) to another (right), along the arc between their noises"
            log_figure(trainer, "test/interpolation", draw_samples(images, STEPS, title))
