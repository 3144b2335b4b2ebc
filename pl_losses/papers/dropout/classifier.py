"""Gal and Ghahramani 2016, section 5.2: a classifier that estimates its uncertainty."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from pl_losses.core import expected
from pl_losses.core.classifier import Classifier
from pl_losses.core.declared import Keys
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.metrics import computed
from pl_losses.core.panels import Sections
from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import check_classes, check_init, check_share
from pl_losses.papers.dropout import manifest
from pl_losses.papers.dropout.base import DropoutModule, MaskSharing
from pl_losses.papers.dropout.metrics import ClassificationScores, ClassificationUncertainty
from pl_losses.papers.dropout.networks import DropoutLeNet
from pl_losses.papers.dropout.objective import Convention
from pl_losses.papers.dropout.uncertainty import (
    mutual_information,
    predictive_entropy,
    variation_ratio,
)

KEYS = {
    "train/loss": "L_dropout of the last batch",
    "train/error": "share of wrong predictions in training, with dropout, 0 to 1",
    "val/loss": "mean cross-entropy without dropout, nats",
    "val/error": "share of wrong predictions without dropout, 0 to 1",
    "test/loss": "mean cross-entropy without dropout, nats",
    "test/error": "share of wrong predictions without dropout, 0 to 1",
    "test/error_low": "lower end of its 95 % binomial interval",
    "test/error_high": "upper end of its 95 % binomial interval",
    "test/mc_error": "share of wrong predictions of the mean of T passes, 0 to 1",
    "test/mc_nll": "-log p of the right class, by the mean of T passes, nats",
    "test/mc_brier": "Brier score of the mean of T passes, 0 to 2",
    "test/mc_ece": "expected calibration error of the mean of T passes, 15 bins, 0 to 1",
    "test/mc_predictive_entropy": "entropy of the mean of T passes, averaged over inputs, nats",
    "test/mc_expected_entropy": "entropy of a pass, averaged over passes and inputs, nats",
    "test/mc_mutual_information": "difference of these two entropies (BALD), nats",
    "test/mc_variation_ratio": "mean share of passes that disagree with the majority, 0 to 1",
    "test/mc_max_probability": "mean probability of the predicted class, 0 to 1",
}


class DropoutClassifier(DropoutModule, Classifier):
    """A classifier that gives classes and their uncertainty, by passes with dropout (section 5.2).

    The loss is :func:`~pl_losses.papers.dropout.dropout_objective` of the cross-entropy. Its weight decay
    follows from ``length_scale``, N and the p of each layer, with tau = 1. The module logs the keys of
    :attr:`KEYS`, exact over ranks and uneven batches.

    To change it, override :meth:`configure_network`, :meth:`scores`, :meth:`errors`, :meth:`compute_loss`,
    :meth:`configure_metrics` or :meth:`drop_probabilities`.

    Args:
        num_classes: Number of classes C of the default network.
        in_channels: Channels of an image of the default network.
        image_size: Height and width of an image of the default network.
        p: Probability of dropping.
        dropout: For the default network, "last" for dropout before the last layer as in section 5.2, or "all"
            for dropout after the convolutions, too.
        length_scale: l, 1 divided by the standard deviation of the weights' prior.
        convention: "paper" or "authors", see :func:`~pl_losses.papers.dropout.weight_decay_of`.
        samples: T, the passes for each input in test and prediction.
        masks: "independent" masks for each input, or "shared" ones: the same functions for all inputs of all
            batches and ranks, which is cheaper.
        chunk: Passes computed at a time; ``None`` for the sampler's own choice.
        seed: Seed of the masks of test and prediction. Those of training are from torch's stream.
        network: Images [B, ...] to logits [B, C], with dropout modules in it; then ``num_classes``,
            ``in_channels``, ``image_size``, ``p`` and ``dropout`` are not used. It is not plain data: pass it
            to ``load_from_checkpoint`` again.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer, see :class:`~pl_losses.core.base.PaperModule`.

    Raises:
        ValueError: If an argument is out of range or none of its choices.

    Example:
        >>> model = DropoutClassifier(image_size=28)
        >>> found = model.predict_step(torch.zeros(3, 1, 28, 28), 0)
        >>> found["probabilities"].shape, found["mutual_information"].shape
        (torch.Size([3, 10]), torch.Size([3]))
    """

    KEYS: ClassVar[Keys] = KEYS
    panels: ClassVar[Sections] = manifest.CLASSIFIER

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 32,
        *,
        p: float = 0.5,
        dropout: Literal["last", "all"] = "last",
        length_scale: float = 1.0,
        convention: Convention = "paper",
        samples: int = 100,
        masks: MaskSharing = "independent",
        chunk: int | None = None,
        seed: int = 0,
        network: nn.Module | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        check_share("p", p)
        super().__init__(
            length_scale=length_scale,
            convention=convention,
            samples=samples,
            masks=masks,
            chunk=chunk,
            seed=seed,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        save_plain_hyperparameters(self)
        self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size
        self.p, self.dropout = p, dropout
        self.network = self.configure_network() if network is None else network
        self.configure_metrics()

    def configure_network(self) -> nn.Module:
        """Build the network: images [B, in_channels, image_size, image_size] -> logits [B, C]."""
        return DropoutLeNet(
            self.num_classes, self.in_channels, self.image_size, p=self.p, dropout=self.dropout
        )

    def configure_metrics(self) -> None:
        """Build the metrics, with those of T passes."""
        super().configure_metrics()
        self.mc_scores, self.mc_uncertainty = ClassificationScores(), ClassificationUncertainty()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of one pass: images [B, ...] -> [B, C]."""
        logits: Tensor = self.network(images)
        return logits

    def errors(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute E, the cross-entropy of each sample: logits [B, C], classes [B] -> [B], in nats."""
        scores = at_least_float32(self.scores(outputs))
        check_classes("target", target, *scores.shape)
        return F.cross_entropy(scores, target.long(), reduction="none")

    def compute_loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute L_dropout in training: logits [B, C], classes [B] -> scalar, in nats.

        In evaluation it is the mean of E alone, without the weight decay.
        """
        return self.objective(self.errors(outputs, target))

    def sample_probabilities(self, images: Tensor, *key: int) -> Tensor:
        """Compute the class probabilities of T passes: images [B, ...] -> [T, B, C]."""
        return self.sample(
            images, *key, forward=lambda inputs: self.class_probabilities(at_least_float32(self(inputs)))
        )

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count errors and log the loss of a batch."""
        inputs, _ = expected.labelled(self, batch)
        with self.without_dropout(inputs):
            super().validation_step(batch, batch_idx)

    def test_outputs(self, inputs: Tensor) -> Tensor:
        """Return the outputs [B, C] that a test uses: those without dropout."""
        with self.without_dropout(inputs):
            return super().test_outputs(inputs)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Count errors, and score T passes; return what ``ClassifierReport`` draws, for the whole batch."""
        results = super().test_step(batch, batch_idx)
        inputs, target = batch
        samples = self.sample_probabilities(inputs, batch_idx)
        own = self.num_unpadded(batch_idx, len(target))
        self.mc_scores.update(samples.mean(dim=0)[:own], target[:own])
        self.mc_uncertainty.update(samples[:, :own])
        return results

    def evaluation_results(self, stage: str) -> dict[str, Tensor | float]:
        """Return loss and error; for a test with the error's interval and the scores of T passes."""
        values = super().evaluation_results(stage)
        if stage == "test":
            scores = computed(self.mc_scores) | computed(self.mc_uncertainty)
            values |= {f"mc_{name}": value for name, value in scores.items()}
        return values

    def predict_step(self, batch: object, batch_idx: int) -> dict[str, Tensor]:
        """Predict mean ``probabilities`` [B, C] of T passes, ``predicted`` class [B] and uncertainty.

        The uncertainty is ``predictive_entropy`` and ``mutual_information`` in nats, and ``variation_ratio``,
        each [B].
        """
        with expected.inputs(self, batch) as images:
            samples = self.sample_probabilities(images, batch_idx)
        mean = samples.mean(dim=0)
        quantities = (predictive_entropy, mutual_information, variation_ratio)
        found = {quantity.__name__: quantity(samples) for quantity in quantities}
        return {"probabilities": mean, "predicted": mean.argmax(dim=1), **found}
