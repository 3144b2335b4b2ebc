"""Vincent et al. 2010, section 3.5: layers trained one after the other, then all together, in one fit.

A stage is a number of epochs with an optimizer of its own. Automatic optimization works as usual: epochs and
steps count as in any fit, gradients may be clipped or accumulated, and a checkpoint has the state of its
stage's optimizer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from itertools import accumulate, islice
from math import ceil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from pl_losses.core import expected
from pl_losses.core.classifier import Classifier
from pl_losses.core.loaders import num_unpadded
from pl_losses.core.sharding import shard_like, whole_tensor
from pl_losses.core.weights import refuse_other_weights
from pl_losses.data.loader import Batch, BatchLoader
from pl_losses.monitoring.monitor import Monitor
from pl_losses.strategies import DDPPerModule

KEY = "stages"  # Key in a checkpoint.
CHUNK = 1000  # Samples encoded at once.


class StagedClassifier(Classifier):
    """A classifier that is pre-trained in stages; a subclass defines the abstract methods.

    In the last stage, which lasts until the end of the fit, the weights with the lowest validation error are
    kept. Checkpoints have these weights, and so has the model after the fit. Training itself, also after a
    resume, continues from the newest weights.

    Attributes:
        pretrain_epochs: Epochs of each stage except the last.
        stage: The stage that the fit is in, from 0.
        patience: Validations in a row without a lower error after which the fit ends.
        cache_codes: Whether a stage's inputs are computed once, when it begins.
    """

    pretrain_epochs: list[int]
    patience: int | None = None
    cache_codes: bool = True
    stage: int = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept: dict[str, Tensor] = {}  # The best weights; after the fit the newest.
        self._lowest, self._waited, self._fitted = float("inf"), 0, False
        self._selected: int | None = None  # The stage of the last fit; a test after it is of the last stage.
        self._validated = 0  # The step of the last validation that was judged.
        self._resumed: dict[str, Any] | None = None
        self._served: int | None = None  # The stage whose codes the loader serves.
        self._source: tuple[BatchLoader, Batch, Any] | None = None

    @abstractmethod
    def stage_parameters(self, stage: int) -> Iterable[nn.Parameter]:
        """Return the parameters that a stage trains; the others are frozen."""

    @abstractmethod
    def stage_optimizer(self, stage: int) -> tuple[OptimizerCallable, LRSchedulerCallable | None]:
        """Return what makes the optimizer from the parameters, and the scheduler from it or None."""

    @abstractmethod
    def stage_inputs(self, stage: int, inputs: Tensor) -> Tensor:
        """Compute a stage's training inputs from a batch of inputs, by the layers of earlier stages."""

    @property
    def finetuning(self) -> bool:
        """Whether the fit is in its last stage, or over."""
        return self.stage == len(self.pretrain_epochs)

    @property
    def lowest_error(self) -> float:
        """The lowest validation error of fine-tuning, which the weights that are kept have; inf before it."""
        return self._lowest

    def stage_at(self, epoch: int) -> int:
        """Return the stage of an epoch, both from 0."""
        return sum(epoch >= end for end in accumulate(self.pretrain_epochs))

    def setup(self, stage: str) -> None:
        """Start with the first stage; a checkpoint to resume is loaded later.

        Raises:
            ValueError: If the number of epochs is not limited.
        """
        if stage != "fit":
            # After a fit that did not reach its end it is the classifier, too.
            self.stage = len(self.pretrain_epochs)
            return
        if self.trainer.max_epochs is None or self.trainer.max_epochs < 0:
            raise ValueError(
                "Expected a Trainer with `max_epochs`, of which the last stage has what is left of"
                f" {sum(self.pretrain_epochs)}, but got {self.trainer.max_epochs}"
            )
        self._kept, self._lowest, self._waited, self._fitted = {}, float("inf"), 0, False
        self._validated = 0
        self._resumed = None
        self._restore_loader()  # An interrupted fit left codes in the loader.
        self._warn_of_missing_stages(self.trainer.max_epochs)
        self._select(self.stage_at(self.trainer.current_epoch))
        if self.trainer.strategy.restore_checkpoint_after_setup:
            self._find_stage_before_loading()

    def _warn_of_missing_stages(self, epochs: int) -> None:
        before = sum(self.pretrain_epochs)
        if epochs < before and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"`max_epochs` {epochs} ends before the {before} of `pretrain_epochs`: layer"
                f" {self.stage_at(epochs) + 1} will not be finished, and nothing fine-tuned"
            )

    def _find_stage_before_loading(self) -> None:
        """Select the checkpoint's stage before the strategy loads the optimizer's state (FSDP2)."""
        strategy: Any = self.trainer.strategy
        load = strategy.load_checkpoint

        def load_checkpoint(path: Any, *args: object, **kwargs: object) -> Any:
            found = Path(path, "meta.pt") if Path(path).is_dir() else Path(path)
            known = torch.load(found, map_location="cpu", weights_only=True, mmap=True)
            self._select(known.get(KEY, {"stage": self.stage})["stage"])
            strategy.setup_optimizers(self.trainer)
            return load(path, *args, **kwargs)

        strategy.load_checkpoint = load_checkpoint

    def _select(self, stage: int) -> None:
        self.stage = self._selected = stage
        trained = {id(parameter) for parameter in self.stage_parameters(stage)}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in trained)

    def parameter_groups(self) -> ParamsT:
        """Return what this stage's optimizer is given."""
        return self.stage_parameters(self.stage)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build this stage's optimizer and scheduler.

        Raises:
            TypeError: If ``stage_optimizer`` does not return their builders.
        """
        made = self.stage_optimizer(self.stage)
        make_optimizer, make_scheduler = expected.makers(self, "stage_optimizer", made)
        return self.with_scheduler(make_optimizer(self.parameter_groups()), make_scheduler)

    def schedule_steps(self) -> int:
        """Return the number of optimizer steps of this stage."""
        self.trainer.fit_loop.setup_data()
        batches = self.trainer.num_training_batches
        steps = ceil(batches / self.trainer.accumulate_grad_batches)
        epochs = [*self.pretrain_epochs, (self.trainer.max_epochs or 0) - sum(self.pretrain_epochs)]
        return max(1, int(steps * epochs[self.stage]))

    def on_train_start(self) -> None:
        """Resume the stage that a checkpoint was saved in.

        Raises:
            ValueError: If ``patience`` is set but nothing is validated.
        """
        super().on_train_start()
        if self.patience is not None and not self._validates():
            raise ValueError(
                f"Expected validation data for `patience` {self.patience} but got none: set `val_size` in the"
                " data, or `patience` to None"
            )
        vars(self.trainer.strategy).pop("load_checkpoint", None)
        if self._resumed is not None:
            self._lowest, self._waited = self._resumed["lowest"], self._resumed["waited"]
            if newest := self._resumed["newest"]:
                self._kept = {name: tensor.to(self.device) for name, tensor in newest.items()}
                self._swap()
            self._validate_if_skipped(self._resumed["validated"])
            self._resumed = None
        # A fit that resumes after the last batch of an epoch runs only this hook.
        self.on_train_epoch_start()

    def _validates(self) -> bool:
        if self.trainer.val_dataloaders is None:  # Not made yet if epochs are skipped.
            return bool(self.trainer.enable_validation)
        return sum(self.trainer.num_val_batches) > 0

    @torch.no_grad()
    def _validate_if_skipped(self, validated: int) -> None:
        """Run the validation that Lightning skips after a checkpoint that was saved just before it."""
        ended = self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        loader: Any = self.trainer.val_dataloaders
        if not (self.finetuning and ended and loader) or validated == self.global_step:
            return
        self.eval()
        self.val_error.reset()
        with self.trainer.precision_plugin.forward_context():
            for index, batch in enumerate(islice(loader, int(self.trainer.num_val_batches[0]))):
                batch = self.trainer.precision_plugin.convert_input(batch)
                inputs, target = self.trainer.strategy.batch_to_device(batch)
                own = num_unpadded(loader, index, len(target))
                self.val_error.update(self.scores(self(inputs)).argmax(dim=1)[:own], target[:own])
        self.train()
        self._judge(float(self.val_error.compute()))
        self.val_error.reset()

    def on_train_epoch_start(self) -> None:
        """Begin the next stage if it is time."""
        stage = self.stage_at(self.trainer.current_epoch)
        if stage != self.stage:
            self._begin(stage)
        self._serve()

    def _begin(self, stage: int) -> None:
        self._select(stage)
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and not isinstance(strategy, DDPPerModule):
            # DDP waits for the parameters that were trainable when it was built.
            strategy.model = self
            strategy.configure_ddp()
        strategy.setup_optimizers(self.trainer)
        callbacks: list[object] = self.trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, Monitor):
                callback.on_train_start(self.trainer, self)

    def _serve(self) -> None:
        """Let the loader serve this stage's inputs, and restore what it served before."""
        if self._served == self.stage:
            return
        self._restore_loader()
        loader = self.trainer.train_dataloader
        if self.stage == 0 or self.finetuning or not self.cache_codes or not isinstance(loader, BatchLoader):
            return
        encoded = self._encoded(loader)
        if encoded is not None:
            self._source = (loader, loader.tensors, loader.transform)
            loader.tensors, loader.transform = encoded, None
            self._served = self.stage

    def _restore_loader(self) -> None:
        if self._source is not None:
            loader, tensors, transform = self._source
            loader.tensors, loader.transform = tensors, transform
        self._source = self._served = None

    @torch.no_grad()
    def _encoded(self, loader: BatchLoader) -> Batch | None:
        """Encode the loader's samples into this stage's inputs; None if its transform is random."""
        place = loader.tensors[0].device
        generator = torch.Generator(place).manual_seed(0)
        untouched = generator.get_state()
        parts = []
        with self.trainer.precision_plugin.forward_context():
            for first in range(0, loader.samples, CHUNK):
                batch = tuple(tensor[first : first + CHUNK] for tensor in loader.tensors)
                if loader.transform is not None:
                    batch = loader.transform(batch, generator)
                if not torch.equal(generator.get_state(), untouched):
                    return None
                inputs = self.trainer.precision_plugin.convert_input(batch[0]).to(self.device)
                inputs = self.stage_inputs(self.stage, inputs)
                parts.append((inputs.to(place), *batch[1:]))
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def served(self, inputs: Tensor) -> Tensor:
        """Return this stage's inputs for the first part of a training batch, which may have them already."""
        return inputs if self._served == self.stage else self.stage_inputs(self.stage, inputs)

    def on_validation_epoch_end(self) -> None:
        """Keep the weights in the last stage if their error is the lowest so far; decide whether to stop."""
        super().on_validation_epoch_end()
        fitting = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        if not fitting or not self.finetuning:
            return
        self._judge(float(self.val_error.compute()))

    def _judge(self, error: float) -> None:
        self._validated = self.global_step
        if error < self._lowest:
            self._lowest, self._waited = error, 0
            self._kept = {name: tensor.detach().clone() for name, tensor in self._trained()}
            return
        self._waited += 1
        if self.patience is not None and self._waited >= self.patience:
            self.trainer.should_stop = True

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        chosen = {id(parameter) for parameter in self.stage_parameters(self.stage)}
        return [(name, tensor) for name, tensor in self.named_parameters() if id(tensor) in chosen]

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the weights with the kept ones."""
        for name, parameter in self._trained():
            before = parameter.detach().clone()
            parameter.copy_(shard_like(self._kept[name], parameter))
            self._kept[name] = before

    def on_train_end(self) -> None:
        """Leave the best weights in the model, and restore the loader and the parameters."""
        self._restore_loader()
        if self._kept:
            self._swap()
        self._fitted = True
        self.requires_grad_(True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the best weights as the model, and the newest beside them."""
        super().on_save_checkpoint(checkpoint)
        state, newest = checkpoint["state_dict"], {}
        kept = {name: whole_tensor(tensor) for name, tensor in self._kept.items()}
        if kept and self._fitted:
            newest = kept
        elif kept and state:  # If the strategy gathers the weights, only rank zero has them.
            newest = {name: state[name] for name in kept}
            state.update(kept)
        checkpoint[KEY] = {
            "stage": self.stage if self._selected is None else self._selected,
            "lowest": self._lowest,
            "waited": self._waited,
            "validated": self._validated,
            "newest": newest,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Find the stage to resume, and warn if a stage before the last is evaluated.

        Raises:
            ValueError: If the checkpoint is of another architecture.
        """
        super().on_load_checkpoint(checkpoint)
        if self.trainer_or_none is not None and self.strict_loading:
            refuse_other_weights(self, checkpoint.get("state_dict") or {}, "ckpt_path")
        resuming = self.trainer_or_none is not None and self.trainer_or_none.state.fn == TrainerFn.FITTING
        if resuming and KEY in checkpoint:
            self._resumed = checkpoint[KEY]
            self._select(checkpoint[KEY]["stage"])
        elif self.trainer_or_none is not None and KEY in checkpoint:
            stage, last = checkpoint[KEY]["stage"], len(self.pretrain_epochs)
            if stage < last:
                rank_zero_warn(
                    f"The checkpoint is of stage {stage + 1} of {last + 1}: the output layer at least"
                    " is untrained"
                )
