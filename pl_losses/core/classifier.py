"""What the papers' classifiers share: steps, errors counted exactly, the test error with its interval."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from pl_losses.core import expected, manifest
from pl_losses.core.base import PaperModule
from pl_losses.core.declared import Keys
from pl_losses.core.metrics import ErrorRate, binomial_interval, computed
from pl_losses.core.panels import Sections
from pl_losses.core.precision import at_least_float32
from pl_losses.core.sums import Mean
from pl_losses.core.validation import check_classes


class Gallery(NamedTuple):
    """Samples of a test batch to show.

    Attributes:
        shown: Which of them to show, booleans [B].
        score: Those with the highest score are shown, [B].
        note: Caption of each: a format string for its score.
    """

    shown: Tensor
    score: Tensor
    note: str = ""


class Classifier(PaperModule):
    """Base class of the papers' classifiers: ``forward`` maps inputs to outputs [B, C], labels are [B].

    Logs ``train/loss``, ``train/error``, ``val/loss``, ``val/error``, ``test/loss``, ``test/error`` and its
    95 % interval ``test/error_low`` and ``test/error_high``. Errors are shares in [0, 1].
    They are exact over ranks and uneven batches: samples that are repeated to give all ranks equally many
    are neither counted nor trained on.

    To subclass, define ``forward``, and call :meth:`configure_metrics` in the constructor. If the outputs are
    no logits, override :meth:`scores`. For another loss than the cross-entropy, override
    :meth:`compute_loss`.
    """

    KEYS: ClassVar[Keys] = {
        "<stage>/loss": "the loss, mean over inputs",
        "<stage>/error": "share of wrong predictions, 0 to 1",
        "test/error_low": "lower end of its 95 % binomial interval",
        "test/error_high": "upper end of its 95 % binomial interval",
    }
    panels: ClassVar[Sections] = manifest.CLASSIFIER
    headline: ClassVar[str] = manifest.HEADLINE
    best: ClassVar[dict[str, Literal["min", "max"]]] = {
        "train/loss": "min",
        "train/error": "min",
        "val/loss": "min",
        "val/error": "min",
        "test/error": "min",
    }

    # Predicted and right classes of the current step.
    _uncounted: tuple[Tensor, Tensor] | None = None
    _compared = False  # Whether the outputs have been compared with the classes of the data.

    def scores(self, outputs: Tensor) -> Tensor:
        """Return unnormalised log-probabilities of the classes, higher is better: [B, C] -> [B, C]."""
        return outputs

    def class_probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probabilities of the classes: outputs [B, C] -> [B, C]."""
        return self.scores(outputs).softmax(dim=1)

    def test_outputs(self, inputs: Tensor) -> Tensor:
        """Return the outputs [B, C] that a test uses: those of ``forward``."""
        outputs: Tensor = self(inputs)
        return outputs

    def compute_loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute the loss, by default the cross-entropy: outputs [B, C], target [B] -> scalar."""
        scores = at_least_float32(self.scores(outputs))
        check_classes("target", target, *scores.shape)
        return F.cross_entropy(scores, target.long())

    def configure_metrics(self) -> None:
        """Build the metrics that are reset every epoch and summed over ranks."""
        self.train_error, self.val_error, self.test_error = ErrorRate(), ErrorRate(), ErrorRate()
        # Metrics, because `self.log` weights ranks equally, even if they saw different numbers of samples.
        self.val_loss, self.test_loss = Mean(), Mean()

    def count(self, stage: str, outputs: Tensor, target: Tensor) -> None:
        """Add a batch to the metrics of "val" or "test": outputs [B, C], target [B], B at least 1."""
        getattr(self, f"{stage}_error").update(self.scores(outputs).argmax(dim=1), target)
        loss = expected.loss(self, "compute_loss", self.compute_loss(outputs, target))
        getattr(self, f"{stage}_loss").update(loss, len(target))

    def _outputs(self, value: object, target: Tensor) -> Tensor:
        """Check the outputs of a batch; those of the first one also by the classes of the data."""
        outputs = expected.outputs(self, value, len(target))
        classes = getattr(getattr(self.trainer_or_none, "datamodule", None), "num_classes", None)
        if not self._compared and isinstance(classes, int) and outputs.ndim == 2:
            text = (
                f"`num_classes` of the model to be {classes}, those of the data, but got {outputs.shape[1]}"
            )
            if outputs.shape[1] < classes:
                raise ValueError(f"Expected {text}")
            if outputs.shape[1] > classes:
                rank_zero_warn(f"Some outputs are of no class: expected {text}")
            self._compared = True
        return outputs

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute and log the loss of a batch of inputs and labels [B]."""
        inputs, target = expected.labelled(self, batch)
        outputs = self._outputs(self(inputs), target)
        own = self.num_unpadded(batch_idx, len(target))
        rows = own or len(target)
        loss = expected.loss(self, "compute_loss", self.compute_loss(outputs[:rows], target[:rows]))
        self.refuse_non_finite(loss)
        self._uncounted = self.scores(outputs.detach()).argmax(dim=1)[:own], target[:own]
        self.log("train/loss", loss, prog_bar=True)
        return loss * self.rank_weight(own)

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Count the errors of a batch, once, however often the optimizer evaluated it."""
        self._count_trained()

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Count a batch that was trained on; one whose step was interrupted is taken again."""
        if self.trainer_or_none is not None:
            progress: Any = self.trainer_or_none.fit_loop.epoch_loop.batch_progress.current
            if progress.ready == progress.processed:
                self._count_trained()
        super().on_save_checkpoint(checkpoint)

    def _count_trained(self) -> None:
        if self._uncounted is not None:
            self.train_error.update(*self._uncounted)
            self._uncounted = None

    def on_train_epoch_end(self) -> None:
        """Log the error of the pass: of the weights as they were at each step."""
        error = computed(self.train_error)
        self.train_error.reset()
        # A fit that resumes after the last batch of an epoch has counted none.
        if bool(error.isfinite()):
            self.log("train/error", error, sync_dist=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count errors and the loss of a batch."""
        inputs, target = expected.labelled(self, batch)
        outputs = self._outputs(self(inputs), target)
        if own := self.num_unpadded(batch_idx, len(target)):
            self.count("val", outputs[:own], target[:own])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        """Count errors, and return what ``ClassifierReport`` draws."""
        inputs, target = expected.labelled(self, batch)
        outputs = self._outputs(self.test_outputs(inputs), target)
        if own := self.num_unpadded(batch_idx, len(target)):
            self.count("test", outputs[:own], target[:own])
        predicted = self.scores(outputs).argmax(dim=1)
        confidence = self.class_probabilities(outputs).amax(dim=1)
        return {"outputs": outputs, "predicted": predicted, "target": target, "confidence": confidence}

    def evaluation_results(self, stage: str) -> dict[str, Tensor | float]:
        """Return loss and error; for a test with the 95 % binomial interval of the error."""
        error: ErrorRate = getattr(self, f"{stage}_error")
        values: dict[str, Tensor | float]
        values = {"loss": computed(getattr(self, f"{stage}_loss")), "error": computed(error)}
        if stage == "test":
            values["error_low"], values["error_high"] = binomial_interval(*error.counted)
        return values

    def predict_step(self, batch: object, batch_idx: int) -> dict[str, Tensor]:
        """Predict the outputs [B, C] and classes [B] of a batch."""
        with expected.inputs(self, batch) as inputs:
            outputs = self(inputs)
        return {"outputs": outputs, "predicted": self.scores(outputs).argmax(dim=1)}
