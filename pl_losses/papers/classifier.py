"""What the papers' classifiers share: steps, errors counted exactly, the test error with its interval."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from pl_losses.observers.metrics import ErrorRate, binomial_interval
from pl_losses.papers.base import PaperModule


class Classifier(PaperModule):
    """Base of the papers' classifiers: a ``forward`` from inputs to outputs [B, C], trained on labels [B].

    Logs ``train/loss``, ``train/error``, ``val/loss``, ``val/error``, ``test/loss``, ``test/error`` and its
    95 % interval ``test/error_low`` and ``test/error_high``. Errors are shares in [0, 1].
    Exact over ranks and uneven batches: what a ``DistributedSampler`` repeats, to even out the ranks, is not
    counted.

    To subclass, define ``forward``, and override :meth:`scores` if its outputs are no logits,
    :meth:`configure_loss` for another loss than the cross-entropy, or :meth:`configure_metrics`, which the
    constructor is to call.
    """

    best: ClassVar[dict[str, Literal["min", "max"]]] = {
        "train/loss": "min",
        "train/error": "min",
        "val/loss": "min",
        "val/error": "min",
        "test/error": "min",
    }

    def scores(self, outputs: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the classes, higher is better: outputs [B, C] -> [B, C]."""
        return outputs

    def class_probabilities(self, outputs: Tensor) -> Tensor:
        """Probabilities of the classes: outputs [B, C] -> [B, C]."""
        return self.scores(outputs).softmax(dim=1)

    def test_outputs(self, inputs: Tensor) -> Tensor:
        """The outputs [B, C] that a test goes by: those of ``forward``."""
        outputs: Tensor = self(inputs)
        return outputs

    def configure_loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The loss, by default the cross-entropy: outputs [B, C], target [B] -> scalar."""
        return F.cross_entropy(self.scores(outputs).float(), target)

    def configure_metrics(self) -> None:
        """Build the metrics that are reset every epoch and summed over ranks."""
        self.train_error, self.val_error, self.test_error = ErrorRate(), ErrorRate(), ErrorRate()
        # Metrics of their own: `self.log` averages ranks that saw unequally many samples with equal weight.
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()

    def count(self, stage: str, outputs: Tensor, target: Tensor) -> None:
        """Add a batch to the metrics of "val" or "test": outputs [B, C], target [B], B at least 1."""
        getattr(self, f"{stage}_error").update(self.scores(outputs).argmax(dim=1), target)
        getattr(self, f"{stage}_loss").update(self.configure_loss(outputs, target), len(target))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of inputs and labels [B]."""
        inputs, target = batch
        outputs = self(inputs)
        loss = self.configure_loss(outputs, target)
        self.refuse_non_finite(loss)
        self.train_error.update(self.scores(outputs.detach()).argmax(dim=1), target)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the error of the pass: of the weights as they were at each step."""
        self.log("train/error", self.train_error)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count errors and log the loss of a batch."""
        inputs, target = batch
        outputs = self(inputs)
        if own := self.own_rows(batch_idx, len(target)):
            self.count("val", outputs[:own], target[:own])
        self.log("val/loss", self.val_loss)
        self.log("val/error", self.val_error, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Count errors; returns what ``ClassifierReport`` draws."""
        inputs, target = batch
        outputs = self.test_outputs(inputs)
        if own := self.own_rows(batch_idx, len(target)):
            self.count("test", outputs[:own], target[:own])
        self.log("test/loss", self.test_loss)
        confidence, predicted = self.scores(outputs).max(dim=1)
        return {"outputs": outputs, "predicted": predicted, "target": target, "confidence": confidence}

    def on_test_epoch_end(self) -> None:
        """Log the test error with its 95 % binomial interval."""
        error = self.test_error.compute()
        low, high = binomial_interval(*self.test_error.counted)
        # Equal on all ranks already; without sync_dist Lightning warns that they might not be.
        self.log_dict({"test/error": error, "test/error_low": low, "test/error_high": high}, sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Outputs [B, C] and predicted class [B]."""
        outputs = self(batch[0] if isinstance(batch, (tuple, list)) else batch)
        return {"outputs": outputs, "predicted": self.scores(outputs).argmax(dim=1)}
