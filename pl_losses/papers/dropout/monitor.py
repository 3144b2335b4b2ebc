"""Gal and Ghahramani 2016: the uncertainty of any LightningModule with dropout."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pl_losses.core.declared import Keys, Part, Recipe, declared_keys, without
from pl_losses.core.loaders import SeenSamples, Stage, evaluation_loaders, unrepeated_rows
from pl_losses.core.metrics import name_class
from pl_losses.core.panels import Sections
from pl_losses.core.precision import wide_type
from pl_losses.core.rng import fold_in
from pl_losses.core.validation import check_counts, check_positive, typed
from pl_losses.monitoring.charts import log_samples
from pl_losses.monitoring.pictures import log_figure
from pl_losses.monitoring.rows import Row, log_row
from pl_losses.monitoring.steps import logged_step
from pl_losses.papers.dropout import manifest
from pl_losses.papers.dropout.budget import SHARE, Budget
from pl_losses.papers.dropout.metrics import IGNORED
from pl_losses.papers.dropout.monitor_metrics import (
    CLASSIFICATION,
    KEYS,
    REGRESSION,
    ClassificationSummary,
    RegressionSummary,
    Summary,
    images_of,
)
from pl_losses.papers.dropout.reading import Reading
from pl_losses.papers.dropout.sampling.isolation import tensors_in
from pl_losses.papers.dropout.sampling.random_parts import differ
from pl_losses.papers.dropout.sampling.sampling import Found, find_dropout, mc_samples, without_dropout

MOST = 8  # Batches, unless told otherwise.


class DropoutUncertaintyMonitor(Reading, Callback):
    """Runs T passes with dropout in validation, test and prediction, and logs uncertainty and errors.

    It works with any LightningModule and any kind of dropout, see
    :func:`~pl_losses.papers.dropout.mc_samples`. If there is no dropout, it warns once and does nothing. It
    does not change the training: the weights are the same to the last bit. The exception is a module with a
    random generator that is neither global nor an attribute of the module or its parts. The keys of
    :attr:`KEYS` are added to the rows of validation and test. They are exact over ranks and uneven batches.
    Each of several dataloaders has its own keys, ending in ``/dataloader_idx_0`` and so on. In prediction
    there are no targets, so only keys that need none are logged. Pictures are drawn after the last validation
    of a fit, and after each ``validate``, ``test`` and ``predict``.

    A batch is ``(inputs, target)``, or a mapping of keyword arguments with "labels". The module returns
    logits [B, C], values [B] or [B, Q], or a mapping with such "logits". A single logit, [B] or [B, 1], is
    that of class 1 of two classes. Then targets may be booleans or floating point. A module with other
    outputs can define ``class_probabilities(outputs)`` or ``predicted_values(outputs)``. You can also
    override :meth:`get_inputs`, :meth:`get_target`, :meth:`call`, :meth:`to_probabilities` or
    :meth:`to_values` of the monitor. A wrong shape is an error in the sanity check before training.

    Outputs may have more rows than the batch has samples: pixels, tokens or nodes. Then flatten the outputs
    and the targets. A ``DistributedSampler`` repeats samples, so that all ranks have equally many. Such a
    sample counts once, with all its rows. So does a sample that all ranks have. For this, the shape of a
    tensor in the batch must show how many rows each sample has: [B, T] or [B, C, T] for T rows each. If none
    does, repetitions count too, and a warning says so. If an iterable dataset itself repeats samples, the
    monitor cannot know.

    By default, the passes in a fit take at most a fifth of the time of its validations. The monitor measures
    these times on rank zero, from one batch of the first validation on. To keep the limit it uses fewer than
    8 batches, or leaves out validations, and says so once. So the number of inputs depends on the machine.
    The key ``inputs`` has this number. To compare runs number by number, give ``max_batches``. A share p of n
    inputs has a standard error of sqrt(p (1 - p) / n).

    "Without dropout" means an evaluation where even dropout with ``training=True`` is off. If a network is
    random even then, ``..._deterministic`` is NaN, and a warning says so.

    Args:
        samples: T, the passes for each batch.
        task: "classification" or "regression".
        max_batches: Largest number of batches of each dataloader and rank, from the first on. ``None`` for 8,
            and in a fit for as many as are within a fifth of the time of its validations.
        precision: tau, 1 divided by the variance of a regression's noise. ``None`` for no
            noise and no likelihood.
        every_n_epochs: Look at the validations of every n-th training epoch.
        seed: Seed of the masks. They are the same at each validation, so that curves show the network's
            changes and not those of the masks.
        masks: "independent", or "shared": one draw of T functions for all inputs, batches and ranks.
        chunk: Largest number of samples computed at once, see ``mc_samples``.
        train: Names of classes whose own ``training`` is on in the passes, see ``mc_samples``. Default: those
            that are random in training. They are tried out in each pass over the data.
        pictures: Number of most uncertain images to show; 0 draws no pictures at all.
        target: Position of the target in a tuple, or its name in a mapping, if a batch is not a pair.
        ignore_index: Target of a classification's rows that are not counted.
        name: Part of the keys, ``<stage>/<name>/...``. Each of several monitors of a task needs its own.

    Raises:
        TypeError: If ``target`` is neither position nor name.
        ValueError: If an argument is out of range.

    Example:
        >>> monitor = DropoutUncertaintyMonitor(samples=50, masks="shared")
        >>> trainer = Trainer(callbacks=[monitor], accelerator="cpu", logger=False)
    """

    KEYS: ClassVar[Keys] = KEYS
    panels: ClassVar[Sections] = manifest.UNCERTAINTY_MONITOR

    @classmethod
    def logged_keys(cls, part: Part, recipe: Recipe) -> Keys:
        """Return the keys that it logs: those of its ``task``."""
        others = REGRESSION if part.argument("task") == "classification" else CLASSIFICATION
        return without(declared_keys(cls), others)

    @typed
    def __init__(
        self,
        samples: int = 20,
        *,
        task: Literal["classification", "regression"] = "classification",
        max_batches: int | None = None,
        precision: float | None = None,
        every_n_epochs: int = 1,
        seed: int = 0,
        masks: Literal["independent", "shared"] = "independent",
        chunk: int | None = None,
        train: Sequence[str] | None = None,
        pictures: int = 24,
        target: int | str | None = None,
        ignore_index: int = IGNORED,
        name: str = "dropout",
    ) -> None:
        super().__init__(target)
        check_counts(samples=samples, max_batches=max_batches, every_n_epochs=every_n_epochs, chunk=chunk)
        check_counts(0, seed=seed, pictures=pictures)
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"Expected `name` to be of letters, digits and _ but got {name!r}")
        check_positive("precision", precision, none=True)
        self.samples, self.task, self.max_batches, self.precision = samples, task, max_batches, precision
        self.every_n_epochs, self.seed, self.masks, self.chunk = every_n_epochs, seed, masks, chunk
        self.train, self.pictures = None if train is None else tuple(train), pictures
        self.ignore_index, self.name = ignore_index, name
        self._forget()

    def _forget(self) -> None:
        # For the current pass over the data: sums, dataloaders, and what a look at the module found.
        self._open = False
        self._summaries: list[Summary] = []
        self._loaders: list[Any] = []
        self._given = SeenSamples()
        self._found: Found | None = None
        # Results of the last pass to be drawn, by the ending of its keys.
        self._seen: dict[str, Summary] = {}
        self._hopeless = False
        self._warned: set[str] = set()
        self._beside = False
        self._limit = MOST
        self._budget = Budget()
        self._told = False

    def __getstate__(self) -> dict[str, object]:
        """Leave out what a pass over the data has found."""
        return self.__dict__ | {
            "_open": False, "_summaries": [], "_loaders": [], "_found": None, "_seen": {}
        }  # fmt: skip

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run.

        Raises:
            ValueError: If there is another monitor of the same task, whose keys would be the same.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        named = [
            one for one in callbacks if isinstance(one, DropoutUncertaintyMonitor) and one.name == self.name
        ]
        alike = sum(one.task == self.task for one in named)
        if alike > 1:
            raise ValueError(
                f"Expected `callbacks` to hold one DropoutUncertaintyMonitor for {self.task} but got"
                f" {alike} of `name` {self.name!r}: their keys would be the same"
            )
        self._forget()
        self._beside = self.task == "regression" and len(named) > 1

    def _begin(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING
        skipped = fitting and (trainer.current_epoch + 1) % self.every_n_epochs != 0
        self._limit = self.max_batches or MOST
        if self._budgeted(trainer) and not skipped:
            # A module's passes may be collectives, as the results are: all ranks look at equally many.
            self._limit = trainer.strategy.broadcast(self._budget.batches(self._most(trainer)))
        self._open = trainer.sanity_checking or (not skipped and self._limit > 0)
        self._found = None
        if self._open:
            self._loaders, self._given = evaluation_loaders(trainer, stage), SeenSamples()
            self._summaries = [self._summary(stage).to(pl_module.device) for _ in self._loaders]

    def _timed(
        self, trainer: Trainer, pl_module: LightningModule, batch: int | None = None
    ) -> AbstractContextManager[None]:
        return self._budget.spending(pl_module.device, batch) if self._budgeted(trainer) else nullcontext()

    def _most(self, trainer: Trainer) -> int:
        return int(min(MOST, max(trainer.num_val_batches, default=MOST)))

    def _budgeted(self, trainer: Trainer) -> bool:
        """Return whether measured times say how many batches to look at: the same on all ranks."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        return self.max_batches is None and fitting and not trainer.sanity_checking

    def _summary(self, stage: Stage) -> Summary:
        labelled = stage != "predict"
        if self.task == "classification":
            return ClassificationSummary(labelled, self.pictures, self.ignore_index)
        return RegressionSummary(labelled, self.precision, bool(self.pictures))

    def _sample_batch(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        stage: Stage,
        batch: object,
        index: int,
        loader: int,
    ) -> None:
        # A sanity check refuses, before any training, what cannot be monitored.
        most = 1 if trainer.sanity_checking else self._limit
        if not self._open or self._hopeless or index >= most:
            return
        inputs = self.get_inputs(batch)
        target = None if stage == "predict" else self.get_target(batch)
        summary = self._summaries[loader]
        # As Lightning runs the steps: with autocast, or another default dtype.
        with trainer.precision_plugin.forward_context():
            forward = partial(self._forward, pl_module)
            first = self._found is None
            found = self._found = self._found or find_dropout(
                pl_module, inputs, forward=forward, train=self.train
            )
            if found.reason:
                # A probability may still rise from 0; a dropout that is not called at all stays out.
                self._hopeless = found.hopeless
                if trainer.is_global_zero:
                    self._warn_once(f"measures nothing of {type(pl_module).__name__}: {found.reason}")
                return
            if found.parts.lacking:
                self._warn_once(f"measures less randomness than training has: {found.parts.lacking}")
            single, random = without_dropout(pl_module, inputs, forward)
            self._check(summary, single, target)
            found.random = found.random or random or (first and differ(found.output, single))
            if found.random:
                single = torch.full_like(single, torch.nan)
                self._warn_once(
                    f"has no numbers without dropout: {type(pl_module).__name__} is random in evaluation too"
                )
            if trainer.sanity_checking:
                return
            seed = self.seed
            if self.masks == "independent":
                seed = fold_in(self.seed, trainer.global_rank, loader, index)
            samples = mc_samples(
                pl_module,
                inputs,
                self.samples,
                chunk=self.chunk,
                seed=seed,
                masks=self.masks,
                forward=forward,
                train=found.parts,
            )
        self._given.add(self._loaders[loader], batch, loader)
        own = unrepeated_rows(self._loaders[loader], index, len(single), tensors_in(batch))
        if own is None:
            own = len(single)
            self._warn_once(
                "counts samples that a DistributedSampler repeats more than once: it cannot tell their rows,"
                " as no tensor of the batch has the shape of equally many for each sample"
            )
        if own:
            target = None if target is None else target[:own]
            images = images_of(inputs, len(single))
            images = None if images is None else images[:own]
            summary.update(samples[:, :own], single[:own], target, images)

    def _warn_once(self, words: str) -> None:
        """Say something once in a run, on the rank that has found it."""
        if words not in self._warned:
            self._warned.add(words)
            warnings.warn(f"{type(self).__name__} {words}", stacklevel=2)

    def _forward(self, pl_module: LightningModule, inputs: object) -> Tensor:
        outputs = self.call(pl_module, inputs)
        if self.task == "classification":
            return self.to_probabilities(pl_module, outputs)
        return self.to_values(pl_module, outputs)

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
        """Sum over ranks, on all ranks whatever each has seen, and log the results."""
        if not self._open:
            return
        self._open, self._seen = False, {}
        if trainer.sanity_checking:
            return
        for position, summary in enumerate(self._summaries):
            if not self._given.counts(position):
                summary = self._summary(stage).to(pl_module.device)
            values = summary.values()
            wide = wide_type(next(iter(values.values())).dtype)
            numbers = torch.stack([value.to(wide) for value in values.values()]).tolist()  # one copy
            row = dict(zip(values, numbers, strict=True))
            if not row["inputs"]:
                continue
            if self._beside:  # that of the classification beside it has that key
                row["inputs_regression"] = row.pop("inputs")
            suffix = f"/dataloader_idx_{position}" if len(self._summaries) > 1 else ""
            self._seen[suffix] = summary
            row = {f"{stage}/{self.name}/{name}{suffix}": number for name, number in row.items()}
            if stage != "predict":
                # Equal on all ranks already; without sync_dist Lightning warns that they might not be.
                pl_module.log_dict(row, sync_dist=True, add_dataloader_idx=False)
            elif trainer.is_global_zero:
                log_row(trainer, Row(row), logged_step(trainer))
        self._summaries, self._loaders = [], []

    def _draw(self, trainer: Trainer, stage: Stage) -> None:
        """Draw the results of the last pass over the data on rank zero, with the ranks' parts gathered."""
        seen, self._seen = self._seen, {}
        name_class(trainer, trainer.lightning_module)
        if not self.pictures or not trainer.loggers or getattr(trainer, "fast_dev_run", False):
            return
        for suffix, summary in seen.items():
            for name, figure in summary.figures(trainer.is_global_zero).items():
                log_figure(trainer, f"{stage}/{self.name}/{name}{suffix}", figure)
            if listed := summary.rows():
                images, rows = listed
                key = f"{stage}/{self.name}/most_uncertain_table{suffix}"
                log_samples(
                    trainer, key, ("right", "predicted", "mutual information, nats"), images=images, rows=rows
                )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new pass; in a sanity check, to try one batch."""
        self._budget.begin()
        with self._timed(trainer, pl_module):
            self._begin(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new pass."""
        self._begin(trainer, pl_module, "test")

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new pass."""
        self._begin(trainer, pl_module, "predict")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Sample, if this batch is one of the first."""
        if self._open and batch_idx < self._limit:
            with self._timed(trainer, pl_module, batch_idx):
                self._sample_batch(trainer, pl_module, "val", batch, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Sample, if this batch is one of the first."""
        self._sample_batch(trainer, pl_module, "test", batch, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Sample, if this batch is one of the first."""
        self._sample_batch(trainer, pl_module, "predict", batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the results in Lightning's row of the validation."""
        with self._timed(trainer, pl_module):
            self._end(trainer, pl_module, "val")
        if not self._budgeted(trainer):
            return
        self._budget.end()
        most = self._most(trainer)
        if not self._told and not self._hopeless and (words := self._budget.words(most)):
            self._told = True
            rank_zero_info(
                f"{type(self).__name__} {words}, to take at most {SHARE:.0%} of their time: with"
                f" `max_batches={most}` it looks at as many in each"
            )

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the results in Lightning's row of the test."""
        self._end(trainer, pl_module, "test")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the results in a row of their own: Lightning has none for predictions."""
        self._end(trainer, pl_module, "predict")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the pictures, unless more validations of a fit may follow."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._draw(trainer, "val")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the pictures of the last validation."""
        self._draw(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the pictures."""
        self._draw(trainer, "test")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the pictures."""
        self._draw(trainer, "predict")
