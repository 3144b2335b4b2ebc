"""Vincent et al. 2010, section 3.5: stacked denoising autoencoders, pre-trained and fine-tuned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from pl_losses.core import expected
from pl_losses.core.classifier import Classifier
from pl_losses.core.declared import Keys
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.metrics import computed
from pl_losses.core.panels import Sections
from pl_losses.core.sums import Mean
from pl_losses.core.validation import check_counts, check_init
from pl_losses.core.weights import load_start
from pl_losses.papers.sdae import manifest
from pl_losses.papers.sdae.corruption import Mode
from pl_losses.papers.sdae.denoising import CorruptionName, Denoising
from pl_losses.papers.sdae.losses import Kind
from pl_losses.papers.sdae.stages import StagedClassifier


class StackedDenoisingAutoencoder(Denoising, StagedClassifier):
    """Layers pre-trained one by one as denoising autoencoders, then fine-tuned as one classifier.

    The first ``pretrain_epochs`` of the Trainer's ``max_epochs`` train the first layer, the next ones the
    second layer, and so on. The other epochs fine-tune all encoders and the output layer on clean inputs. The
    inputs of layer k are the clean codes of the layers below. They are computed once, when the stage begins,
    and then corrupted. After the fit the model has the weights with the lowest validation error.

    While layer k is trained, it logs ``train/reconstruction_<k>`` and ``val/reconstruction_<k>``, in nats per
    example. In fine-tuning it logs what :class:`~pl_losses.core.classifier.Classifier` does. ``train/stage``
    is k, and in fine-tuning the number of layers + 1. The noise is the same on any number of ranks.

    To change it, override :meth:`configure_layer` (for convolutions, with :meth:`prepare_input`),
    :meth:`configure_corruption`, :meth:`compute_reconstruction_loss`, :meth:`configure_head`,
    :meth:`compute_loss`, or :meth:`stage_optimizer`, if each layer needs its own optimizer.

    Args:
        in_features: Elements D of an input.
        hidden: Units of each layer, from the bottom up.
        num_classes: Number of classes C.
        corruption: "masking", "gaussian" or "salt_and_pepper".
        level: The fraction of masked or set elements, or the standard deviation of Gaussian noise; 0 gives
            stacked autoencoders without noise (SAE).
        mode: "exact" touches the same number of elements in each example. "bernoulli" draws for each element
            whether to touch it. Gaussian noise has no mode.
        visible: "cross_entropy" for inputs in [0, 1], "squared" for real ones with a linear decoder. The
            inputs of the layers above are codes in [0, 1]. So they always have the cross-entropy.
        sigma: Standard deviation of the Gaussian p(x|z) of "squared".
        alpha: Weight of touched elements.
        beta: Weight of the others.
        tied: Whether the decoders' weights are the encoders' transposed.
        pretrain_epochs: Epochs of each layer, or one number for all; 0 is a random start.
        patience: The fit ends after so many validations in a row without a lower error. Default: it never
            does.
        cache_codes: Whether to compute the codes of the layers below once for a stage. They take 4 N H bytes.
            Codes are always computed for each batch if the loader is not a
            :class:`~pl_losses.data.BatchLoader`, or has random transforms.
        start_from: Checkpoint of the same layers whose weights the fit starts with.
        seed: Seed of the noise.
        pretrain_optimizer: Makes the optimizer of a layer from its parameters.
        pretrain_lr_scheduler: Makes its scheduler. One that takes ``total_steps`` gets the stage's.
        optimizer: Makes the optimizer from the parameters, for fine-tuning.
        lr_scheduler: Makes the scheduler from the optimizer, for fine-tuning.

    Raises:
        ValueError: If an argument is out of range or none of its choices.

    Example:
        >>> model = StackedDenoisingAutoencoder(64, [50, 40])
        >>> model(torch.rand(3, 1, 8, 8)).shape, model.codes(torch.rand(3, 64), depth=1).shape
        (torch.Size([3, 10]), torch.Size([3, 50]))
        >>> model.stage_at(14), model.stage_at(15), model.stage_at(30)
        (0, 1, 2)
    """

    KEYS: ClassVar[Keys] = {
        "train/reconstruction_<k>": "reconstruction error of layer k on corrupted inputs, nats per example",
        "val/reconstruction_<k>": "the same on held-out images",
        "train/stage": "k while layer k is trained, in fine-tuning the number of layers + 1",
    }
    panels: ClassVar[Sections] = manifest.STACKED
    best: ClassVar[dict[str, Literal["min", "max"]]] = Classifier.best

    def __init__(
        self,
        in_features: int = 784,
        hidden: Sequence[int] = (1000, 1000, 1000),
        num_classes: int = 10,
        *,
        corruption: CorruptionName = "masking",
        level: float = 0.25,
        mode: Mode = "exact",
        visible: Kind = "cross_entropy",
        sigma: float = 1.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        tied: bool = True,
        pretrain_epochs: int | list[int] = 15,
        patience: int | None = None,
        cache_codes: bool = True,
        start_from: str | Path | None = None,
        seed: int = 0,
        pretrain_optimizer: OptimizerCallable = torch.optim.Adam,
        pretrain_lr_scheduler: LRSchedulerCallable | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        if not hidden:
            raise ValueError("Expected `hidden` of at least one layer but got none")
        check_counts(num_classes=num_classes)
        super().__init__(optimizer, lr_scheduler)
        expected.builder("pretrain_optimizer", pretrain_optimizer)
        self.pretrain_epochs = _epochs(pretrain_epochs, len(hidden))
        check_counts(patience=patience)
        save_plain_hyperparameters(self)
        self._pretraining = pretrain_optimizer, pretrain_lr_scheduler
        self.patience, self.cache_codes, self.start_from = patience, cache_codes, start_from
        self.num_classes, self.hidden = num_classes, list(hidden)
        for size in hidden:
            check_counts(hidden=size)
        sizes = [in_features, *hidden]
        self.build(
            sizes,
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
        self.head = self.configure_head()
        self.stage = len(hidden)
        self.configure_metrics()

    def configure_head(self) -> nn.Module:
        """Build the output layer: codes [B, H] -> logits [B, C]; by default linear and 0 at the start."""
        head = nn.Linear(self.hidden[-1], self.num_classes)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        return head

    def configure_metrics(self) -> None:
        """Build the metrics, with those of the layers."""
        super().configure_metrics()
        self.val_reconstruction = nn.ModuleList(Mean() for _ in self.layers)

    def setup(self, stage: str) -> None:
        """Start a fit with the weights of ``start_from``; a checkpoint to resume is loaded later.

        Raises:
            ValueError: If ``start_from`` is not a checkpoint of such a model, or the data have more classes
                than the output layer.
        """
        if stage == "fit":
            self._refuse_more_classes()
        if stage == "fit" and self.start_from is not None:
            load_start(self, self.start_from)
        super().setup(stage)

    def _refuse_more_classes(self) -> None:
        """Refuse data with too many classes at once, as pre-training does not look at labels."""
        there = getattr(self.trainer.datamodule, "num_classes", None)  # type: ignore[attr-defined]
        units = getattr(self.head, "out_features", None)
        if isinstance(there, int) and isinstance(units, int) and there > units:
            raise ValueError(f"Expected `num_classes` of at least the data's {there} but got {units}")

    def stage_parameters(self, stage: int) -> Iterable[nn.Parameter]:
        """Return a layer's parameters; in fine-tuning those of all encoders and of the output layer."""
        if stage < len(self.layers):
            return list(self.layers[stage].parameters())
        encoders = [p for index in range(len(self.layers)) for p in self.layer(index).encoder_parameters()]
        return [*encoders, *self.head.parameters()]

    def stage_optimizer(self, stage: int) -> tuple[OptimizerCallable, LRSchedulerCallable | None]:
        """Return the constructor's builders; override it for an optimizer of its own for each layer."""
        return self._pretraining if stage < len(self.layers) else (self._optimizer, self._lr_scheduler)

    def stage_inputs(self, stage: int, inputs: Tensor) -> Tensor:
        """Compute the clean codes of the layers below."""
        return self.codes(inputs, stage)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the logits of the classes: [B, ...] -> [B, C]."""
        codes = self.prepare_input(inputs)
        for index in range(len(self.layers)):
            codes = self.layer(index).encode(codes)
        logits: Tensor = self.head(codes.flatten(1))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute and log a layer's denoising criterion; in fine-tuning the classifier's loss."""
        if self.finetuning:
            return super().training_step(batch, batch_idx)
        loss, weighted = self.denoise(self.served(expected.first(self, batch)), self.stage, batch_idx)
        self.log(f"train/reconstruction_{self.stage + 1}", loss, prog_bar=True)
        return weighted

    def on_train_epoch_end(self) -> None:
        """Log the stage, and in fine-tuning the error of the pass."""
        self.log("train/stage", float(self.stage + 1))
        if self.finetuning:
            super().on_train_epoch_end()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to a layer's mean reconstruction error; in fine-tuning count errors."""
        if self.finetuning:
            super().validation_step(batch, batch_idx)
            return
        clean = self.codes(expected.first(self, batch), self.stage)
        mean = self.val_reconstruction[self.stage]
        self.count_reconstruction(mean, clean, index=self.stage, stage="val", batch_idx=batch_idx)

    def evaluation_results(self, stage: str) -> dict[str, Tensor | float]:
        """Return a layer's mean reconstruction error; in fine-tuning and tests loss and error."""
        if self.finetuning or stage == "test":
            return super().evaluation_results(stage)
        mean: Any = self.val_reconstruction[self.stage]
        return {f"reconstruction_{self.stage + 1}": computed(mean)}


def _epochs(given: int | list[int], layers: int) -> list[int]:
    epochs = list(given) if isinstance(given, (list, tuple)) else [given] * layers
    if len(epochs) != layers or min(epochs) < 0:
        raise ValueError(
            "Expected `pretrain_epochs` to be integers of at least 0, one or"
            f" {layers} (`hidden`), but got {given!r}"
        )
    return epochs
