"""Pictures of denoising autoencoders: filters, reconstructions, samples, and curves over the stages."""

from __future__ import annotations

from itertools import accumulate
from math import isqrt
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from pl_losses.core.declared import Keys
from pl_losses.core.panels import Sections
from pl_losses.core.validation import check_counts, typed
from pl_losses.data.loader import BatchLoader
from pl_losses.monitoring.pictures import log_figure
from pl_losses.monitoring.steps import logged_step
from pl_losses.papers.sdae import manifest
from pl_losses.papers.sdae.denoising import Denoising
from pl_losses.papers.sdae.drawing import draw_curves, draw_filters, draw_rows
from pl_losses.papers.sdae.layers import DenseLayer
from pl_losses.papers.sdae.stages import StagedClassifier

SAMPLES = 100  # Samples of each example, to show their variability.
SHOWN = 4  # Samples that are shown.


class AutoencoderReport(Callback):
    """Draws filters, reconstructions, samples and curves of denoising autoencoders during training.

    It is for :class:`~pl_losses.DenoisingAutoencoder` and :class:`~pl_losses.StackedDenoisingAutoencoder` on
    images of the DataModule's ``input_shape``, or square ones. ``pretrain/filters`` are the weights of the
    first layer. They are logged before the first step, and then every ``every_n_epochs`` epochs of this
    layer. Two pictures are logged after pre-training. ``pretrain/reconstructions`` has corrupted inputs
    beside what the first layer makes of them. ``pretrain/samples`` has samples by the paper's procedure
    (section 6.7), and the standard deviation of each pixel over 100 of them. Two more come after the fit:
    ``finetune/filters``, and ``fit/curves``, the losses of all stages with a line where each stage begins.

    Args:
        every_n_epochs: How often to show the filters.
        filters: Number of filters to show, the first ones.
        examples: Number of examples to reconstruct and to start samples from.
        seed: Seed of corruption and samples.

    Raises:
        ValueError: If a number is not positive.
    """

    KEYS: ClassVar[Keys] = {
        "pretrain/filters": "picture: weights of the first layer, over pre-training",
        "pretrain/reconstructions": "picture: corrupted inputs beside their reconstructions",
        "pretrain/samples": "picture: samples with their standard deviation",
        "finetune/filters": "picture: weights of the first layer after fine-tuning",
        "fit/curves": "picture: the criteria of all stages",
    }
    panels: ClassVar[Sections] = manifest.AUTOENCODER_REPORT

    @typed
    def __init__(
        self, every_n_epochs: int = 5, *, filters: int = 128, examples: int = 12, seed: int = 0
    ) -> None:
        check_counts(every_n_epochs=every_n_epochs, filters=filters, examples=examples)
        self.every_n_epochs, self.filters, self.examples, self.seed = every_n_epochs, filters, examples, seed
        self._curves: dict[str, list[tuple[int, float]]] = {}

    def state_dict(self) -> dict[str, object]:
        """Return the curves, which continue after a resume."""
        return {"curves": self._curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the curves."""
        self._curves = state_dict["curves"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse other modules.

        Raises:
            TypeError: If the module is no denoising autoencoder.
        """
        if not isinstance(pl_module, Denoising):
            raise TypeError(
                f"Expected a denoising autoencoder to report on but got {type(pl_module).__name__}"
            )
        if stage == "fit":
            self._curves = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the filters before any training."""
        if trainer.current_epoch == 0:
            self._show_filters(trainer, pl_module, "pretrain/filters")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Extend the curves; show the filters during their training, and the layers once all are trained."""
        epoch = trainer.current_epoch
        for name, value in trainer.callback_metrics.items():
            stage = getattr(pl_module, "stage", 0)
            fine = getattr(pl_module, "finetuning", False)
            # The module logs its training error after this hook.
            ends = ("val/error",) if fine else ("/loss", f"/reconstruction_{stage + 1}")
            if name.endswith(ends):
                self._curves.setdefault(name, []).append((epoch, float(value)))
        if isinstance(pl_module, StagedClassifier):
            if pl_module.stage == 0 and (epoch + 1) % self.every_n_epochs == 0:
                self._show_filters(trainer, pl_module, "pretrain/filters")
            if epoch + 1 == sum(pl_module.pretrain_epochs):
                self._show_layers(trainer, pl_module)
        elif (epoch + 1) % self.every_n_epochs == 0:
            self._show_filters(trainer, pl_module, "pretrain/filters")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the final filters and the curves."""
        if isinstance(pl_module, StagedClassifier):
            self._show_filters(trainer, pl_module, "finetune/filters")
            if trainer.is_global_zero and trainer.loggers and self._curves:
                ends = list(accumulate(pl_module.pretrain_epochs))
                boundaries = [end for end in ends if end < trainer.current_epoch]
                log_figure(trainer, "fit/curves", draw_curves(self._curves, boundaries, len(ends)))
        else:
            self._show_layers(trainer, pl_module)

    def _show_filters(self, trainer: Trainer, pl_module: LightningModule, key: str) -> None:
        assert isinstance(pl_module, Denoising)
        layer = pl_module.layers[0]
        if not isinstance(layer, DenseLayer):
            return
        weight = layer.weight.detach()[: self.filters]
        # All ranks gather the weights of a sharded layer.
        weight = getattr(weight, "full_tensor", lambda: weight)()
        if trainer.is_global_zero and trainer.loggers:
            title = f"first layer after {logged_step(trainer)} steps"
            side = _side(trainer, weight.shape[1])
            log_figure(trainer, key, draw_filters(weight.float().cpu(), side, title))

    def _show_layers(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Denoising)
        inputs = self._examples(trainer)
        if inputs is None:
            return
        inputs = trainer.precision_plugin.convert_input(inputs).to(pl_module.device)
        # On all ranks, as sharded layers need all of them.
        with trainer.precision_plugin.forward_context():
            clean = pl_module.prepare_input(inputs)
            corrupted, decoded = pl_module.reconstruct(inputs, self.seed)
            samples = pl_module.sample(inputs, SAMPLES, self.seed).float().flatten(2)
        if not trainer.is_global_zero or not trainer.loggers:
            return
        clean, corrupted, decoded = (part.float().flatten(1).cpu() for part in (clean, corrupted, decoded))
        side = _side(trainer, clean.shape[1])
        rows = [("clean", clean), ("corrupted", corrupted), ("reconstructed", decoded)]
        log_figure(trainer, "pretrain/reconstructions", draw_rows(rows, side))
        samples = samples.cpu()
        # The largest deviation of numbers in [0, 1] is 0.5.
        spread = 2 * samples.std(dim=0)
        rows = [("example", clean), *(("sample", one) for one in samples[:SHOWN]), ("2 x std", spread)]
        log_figure(trainer, "pretrain/samples", draw_rows(rows, side))

    def _examples(self, trainer: Trainer) -> Tensor | None:
        """Return training examples as the model sees them; None if the DataModule has no tensors."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if "train" not in getattr(data, "tensors", {}):
            return None
        batch = tuple(tensor[: self.examples] for tensor in data.tensors["train"])
        return BatchLoader(batch, self.examples, transform=data.eval_transform).__iter__().__next__()[0]


def _side(trainer: Trainer, elements: int) -> tuple[int, int]:
    """Return height and width of an input."""
    shape: Any = getattr(trainer.datamodule, "input_shape", ())[-2:]  # type: ignore[attr-defined]
    if len(shape) == 2 and shape[0] * shape[1] == elements:
        return int(shape[0]), int(shape[1])
    root = isqrt(elements)
    return (root, root) if root * root == elements else (1, elements)
