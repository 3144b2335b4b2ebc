"""Gal and Ghahramani 2016: what dropout knows that it does not know, for any LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from pl_losses.observers.loaders import Stage, evaluation_loaders, unrepeated
from pl_losses.observers.monitor import Row, log_row
from pl_losses.observers.pictures import log_figure
from pl_losses.observers.steps import logged_step
from pl_losses.papers.dropout.evaluation import call_module, copied, undisturbed
from pl_losses.papers.dropout.masks import stream_seed
from pl_losses.papers.dropout.quantities import refuse_precision
from pl_losses.papers.dropout.sampling import find_dropout, mc_samples
from pl_losses.papers.dropout.summaries import KEYS, ClassificationSummary, RegressionSummary, Summary


class DropoutUncertaintyMonitor(Callback):
    """During validation, test and prediction, T passes with dropout on: how uncertain they are and how good.

    Works on any LightningModule with dropout, of whatever kind, see
    :func:`~pl_losses.papers.dropout.sampling.mc_samples`; one without is told so once and costs nothing more.
    Training is not touched: with and without this callback its weights are the same to the last bit. The keys
    of :attr:`KEYS` join the rows of validation and test, exact over ranks and uneven batches; with several
    dataloaders each has its own, ending in ``/dataloader_idx_0`` and so on. Predictions have no targets, so
    that what is logged of them needs none. Pictures are drawn after the last validation of a fit, and after
    each ``validate``, ``test`` and ``predict``.

    A batch is taken for ``(inputs, target)``, the module for one that maps inputs to logits [B, C] (one logit
    [B] or [B, 1] is that of class 1 of 2) or to values [B] or [B, Q]. A module that returns anything else
    offers ``class_probabilities(outputs)`` or ``predicted_values(outputs)``; or override :meth:`get_inputs`,
    :meth:`get_target`, :meth:`call`, :meth:`to_probabilities` or :meth:`to_values` here. Inputs that a
    ``DistributedSampler`` repeats, to give all ranks equally many, are counted once; what an iterable dataset
    repeats on its own cannot be told. What does not fit is refused in the sanity check already.

    Args:
        samples: T, the passes per batch.
        task: "classification" or "regression".
        max_batches: Look at this many batches of each dataloader and rank at most, from the first on.
        precision: tau, the precision of a regression's noise in the units of 1/y^2. ``None`` for no noise:
            then there is no likelihood.
        every_n_epochs: Look at the validations of every n-th training epoch.
        seed: Seed of the masks. They are the same at each validation, so that curves show the network's
            changes and not those of the masks.
        masks: "independent", or "shared": one draw of T functions for all inputs, batches and ranks.
        chunk: At most this many samples in one go, see ``mc_samples``.
        train: Names of classes that ask ``self.training`` before they drop anything, see ``mc_samples``.
        pictures: How many of the most uncertain images are shown; 0 draws no pictures at all.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> monitor = DropoutUncertaintyMonitor(samples=50, masks="shared")
        >>> trainer = Trainer(callbacks=[monitor], accelerator="cpu", logger=False)
    """

    KEYS: ClassVar[dict[str, str]] = KEYS

    def __init__(
        self,
        samples: int = 20,
        task: Literal["classification", "regression"] = "classification",
        max_batches: int = 8,
        precision: float | None = None,
        every_n_epochs: int = 1,
        seed: int = 0,
        masks: Literal["independent", "shared"] = "independent",
        chunk: int | None = None,
        train: Sequence[str] = (),
        pictures: int = 24,
    ) -> None:
        for name, value, least in (
            ("samples", samples, 1),
            ("max_batches", max_batches, 1),
            ("every_n_epochs", every_n_epochs, 1),
            ("seed", seed, 0),
            ("chunk", 1 if chunk is None else chunk, 1),
            ("pictures", pictures, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Expected `{name}` to be an integer of at least {least} but got {value!r}")
        for name, choice, choices in (
            ("task", task, ("classification", "regression")),
            ("masks", masks, ("independent", "shared")),
        ):
            if choice not in choices:
                raise ValueError(f"Expected `{name}` to be one of {', '.join(choices)} but got {choice!r}")
        refuse_precision(precision)
        self.samples, self.task, self.max_batches, self.precision = samples, task, max_batches, precision
        self.every_n_epochs, self.seed, self.masks, self.chunk = every_n_epochs, seed, masks, chunk
        self.train, self.pictures = tuple(train), pictures
        # Of the pass over the data that is under way: sums and dataloaders, and whether there is dropout.
        self._open = False
        self._summaries: list[Summary] = []
        self._loaders: list[Any] = []
        self._drops: bool | None = None
        # What the last pass found, to be drawn, by the ending of its keys.
        self._seen: dict[str, Summary] = {}
        self._hopeless = self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        """Without what a pass over the data has found."""
        return self.__dict__ | {"_open": False, "_summaries": [], "_loaders": [], "_seen": {}}

    def get_inputs(self, batch: Any) -> Any:
        """What the module is called with: a tensor, a tuple of arguments or a dict of keyword arguments.

        Raises:
            TypeError: If the batch is a dict or another object; then override this.
        """
        inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if isinstance(inputs, Tensor):
            return inputs
        raise TypeError(
            f"Expected a batch to be a tensor or (inputs, target) but got {_described(batch)}: override"
            f" `get_inputs` of {type(self).__name__}"
        )

    def get_target(self, batch: Any) -> Tensor:
        """Right classes [B] or values [B] or [B, Q].

        Raises:
            TypeError: If the batch is no pair of tensors; then override this.
        """
        if isinstance(batch, (tuple, list)) and len(batch) > 1 and isinstance(batch[1], Tensor):
            return batch[1]
        raise TypeError(
            f"Expected a batch to be (inputs, target) but got {_described(batch)}: override `get_target` of"
            f" {type(self).__name__}"
        )

    def call(self, pl_module: LightningModule, inputs: Any) -> Any:
        """One pass through the module, by default its ``forward``."""
        return call_module(pl_module, inputs)

    def to_probabilities(self, pl_module: LightningModule, outputs: Any) -> Tensor:
        """Turn the outputs of one pass into probabilities [B, C].

        Raises:
            TypeError: If the outputs are no tensor; then override this.
            ValueError: If they are of another shape than [B, C], [B, 1] or [B].
        """
        hook = getattr(pl_module, "class_probabilities", None)
        if callable(hook):
            return self._tensor(hook(outputs), "to_probabilities")
        logits = self._tensor(outputs, "to_probabilities")
        if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
            second = logits.flatten().sigmoid()
            return torch.stack([1 - second, second], dim=1)
        if logits.ndim != 2:
            raise ValueError(
                f"Expected logits of shape [B, C] but got {list(logits.shape)}: override `to_probabilities`"
                f" of {type(self).__name__}, or give the module a `class_probabilities(outputs)`"
            )
        return logits.softmax(dim=1)

    def to_values(self, pl_module: LightningModule, outputs: Any) -> Tensor:
        """Turn the outputs of one pass into values [B] or [B, Q], in the units of the target.

        Raises:
            TypeError: If the outputs are no tensor; then override this.
        """
        hook = getattr(pl_module, "predicted_values", None)
        return self._tensor(hook(outputs) if callable(hook) else outputs, "to_values")

    def _tensor(self, value: Any, method: str) -> Tensor:
        if isinstance(value, Tensor):
            return value if value.dtype == torch.float64 else value.float()
        hook = {"to_probabilities": "class_probabilities", "to_values": "predicted_values"}[method]
        raise TypeError(
            f"Expected the module to return a tensor but got {_described(value)}: override `{method}` of"
            f" {type(self).__name__}, or give the module a `{hook}(outputs)`"
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Another run: forget the one before.

        Raises:
            ValueError: If there is another monitor of the same task, whose keys would be the same.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        alike = [
            one for one in callbacks if isinstance(one, DropoutUncertaintyMonitor) and one.task == self.task
        ]
        if len(alike) > 1:
            raise ValueError(
                f"Expected `callbacks` to hold one DropoutUncertaintyMonitor for {self.task} but got"
                f" {len(alike)}: their keys would be the same"
            )
        self._seen = {}
        self._open = self._hopeless = self._warned = False

    def _begin(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING
        skipped = fitting and (trainer.current_epoch + 1) % self.every_n_epochs != 0
        self._open = trainer.sanity_checking or not skipped
        self._drops = False if self._hopeless else None
        if self._open:
            self._loaders = evaluation_loaders(trainer, stage)
            self._summaries = [self._summary(stage).to(pl_module.device) for _ in self._loaders]

    def _summary(self, stage: Stage) -> Summary:
        labelled = stage != "predict"
        if self.task == "classification":
            return ClassificationSummary(labelled, self.pictures)
        return RegressionSummary(labelled, self.precision, bool(self.pictures))

    def _look(
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, batch: Any, index: int, loader: int
    ) -> None:
        # A sanity check is there to refuse, before any training, what cannot be looked at.
        most = 1 if trainer.sanity_checking else self.max_batches
        if not self._open or self._drops is False or index >= most:
            return
        inputs = self.get_inputs(batch)
        target = None if stage == "predict" else self.get_target(batch)
        summary = self._summaries[loader]
        # As Lightning runs the steps: autocast, or another default dtype.
        with trainer.precision_plugin.forward_context():
            forward = partial(self._forward, pl_module)
            if self._drops is None and not self._find(pl_module, inputs, forward):
                return
            with undisturbed(pl_module, inputs):
                single = forward(copied(inputs))
            self._check(summary, single, target)
            if trainer.sanity_checking:
                return
            seed = self.seed
            if self.masks == "independent":
                seed = stream_seed(self.seed, trainer.global_rank, loader, index)
            samples = mc_samples(
                pl_module, inputs, self.samples, self.chunk, seed, self.masks, forward, self.train
            )
        if own := unrepeated(self._loaders[loader], index, len(single)):
            target = None if target is None else target[:own]
            summary.update(samples[:, :own], single[:own], target, inputs)

    def _forward(self, pl_module: LightningModule, inputs: Any) -> Tensor:
        outputs = self.call(pl_module, inputs)
        if self.task == "classification":
            return self.to_probabilities(pl_module, outputs)
        return self.to_values(pl_module, outputs)

    def _find(self, pl_module: LightningModule, inputs: Any, forward: Callable[[Any], Any]) -> bool:
        """Whether there is dropout; if not, nothing is looked at, and the reason is told once."""
        found = find_dropout(pl_module, inputs, forward, self.train)
        self._drops = not found.reason
        # A probability may yet rise from 0; what is not called at all is not going to be.
        self._hopeless = not found.calls
        if found.reason and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"{type(self).__name__} measures nothing of {type(pl_module).__name__}: {found.reason}"
            )
        return self._drops

    def _check(self, summary: Summary, single: Tensor, target: Tensor | None) -> None:
        try:
            summary.check(single, target)
        except ValueError as error:
            convert, other = ("to_probabilities", "regression")
            if self.task == "regression":
                convert, other = ("to_values", "classification")
            raise ValueError(
                f"{error}: override `get_target` or `{convert}` of {type(self).__name__}, or set `task` to"
                f" {other!r}"
            ) from error

    def _end(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Bring the ranks' sums together, on all ranks whatever each has seen, and log them."""
        if not self._open:
            return
        self._open, self._seen = False, {}
        if trainer.sanity_checking:
            return
        for position, summary in enumerate(self._summaries):
            values = summary.values()
            numbers = torch.stack([value.float() for value in values.values()]).tolist()  # one copy
            row = dict(zip(values, numbers, strict=True))
            if not row["inputs"]:
                continue
            suffix = f"/dataloader_idx_{position}" if len(self._summaries) > 1 else ""
            self._seen[suffix] = summary
            row = {f"{stage}/dropout/{name}{suffix}": number for name, number in row.items()}
            if stage != "predict":
                # Equal on all ranks already; without sync_dist Lightning warns that they might not be.
                pl_module.log_dict(row, sync_dist=True, add_dataloader_idx=False)
            elif trainer.is_global_zero:
                log_row(trainer, Row(row), logged_step(trainer))
        self._summaries, self._loaders = [], []

    def _draw(self, trainer: Trainer, stage: Stage) -> None:
        """Draw what the last pass over the data found, on rank zero, the ranks' parts brought together."""
        seen, self._seen = self._seen, {}
        if not self.pictures or not trainer.loggers or getattr(trainer, "fast_dev_run", False):
            return
        for suffix, summary in seen.items():
            for name, figure in summary.figures(trainer.is_global_zero).items():
                log_figure(trainer, f"{stage}/dropout/{name}{suffix}", figure)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew; in a sanity check, to try one batch."""
        self._begin(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._begin(trainer, pl_module, "test")

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._begin(trainer, pl_module, "predict")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Sample, if this batch is one of the first."""
        self._look(trainer, pl_module, "val", batch, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Sample, if this batch is one of the first."""
        self._look(trainer, pl_module, "test", batch, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Sample, if this batch is one of the first."""
        self._look(trainer, pl_module, "predict", batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log into Lightning's row of the validation."""
        self._end(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log into Lightning's row of the test."""
        self._end(trainer, pl_module, "test")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log a row: Lightning has none of its own."""
        self._end(trainer, pl_module, "predict")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, unless more validations of a fit may follow."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._draw(trainer, "val")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last validation."""
        self._draw(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        self._draw(trainer, "test")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        self._draw(trainer, "predict")


def _described(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {[type(item).__name__ for item in value]}"
    return type(value).__name__
