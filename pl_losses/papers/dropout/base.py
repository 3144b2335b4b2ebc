"""Base of the dropout regressor and classifier: the objective with the prior's decay, and MC dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from pl_losses.core import expected
from pl_losses.core.base import PaperModule
from pl_losses.core.rng import fold_in
from pl_losses.core.validation import check_counts, check_init, check_positive
from pl_losses.papers.dropout.networks import drop_probabilities
from pl_losses.papers.dropout.objective import Convention, dropout_objective, weight_decay_of
from pl_losses.papers.dropout.sampling.dropout_mode import DropoutMode
from pl_losses.papers.dropout.sampling.isolation import isolated_eval
from pl_losses.papers.dropout.sampling.mask_sampler import MaskSampler
from pl_losses.papers.dropout.sampling.sampling import find_dropout, mc_samples
from pl_losses.papers.dropout.standardization import count_samples

MaskSharing = Literal["independent", "shared"]


class DropoutModule(PaperModule):
    """Base of :class:`~pl_losses.DropoutRegressor` and :class:`~pl_losses.DropoutClassifier`.

    A subclass has ``network``, an ``nn.Module``, and its loss is :meth:`objective` of the errors of a batch.

    Attributes:
        size: N, the number of training samples, read when the first fit starts and kept in checkpoints.

    Args:
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer, see :class:`~pl_losses.core.base.PaperModule`.
        length_scale: l, 1 divided by the standard deviation of the weights' prior.
        convention: "paper" or "authors", see :func:`~pl_losses.papers.dropout.weight_decay_of`.
        samples: T, the passes for each input.
        masks: "independent" or "shared", see :func:`~pl_losses.papers.dropout.mc_samples`.
        chunk: Passes computed at a time; ``None`` for the sampler's own choice.
        seed: Seed of the masks of MC dropout.

    Raises:
        ValueError: If an argument is out of range.
    """

    size: Tensor
    network: nn.Module

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        length_scale: float,
        convention: Convention,
        samples: int,
        masks: MaskSharing,
        chunk: int | None,
        seed: int,
    ) -> None:
        check_init(locals())
        check_positive("length_scale", length_scale)
        check_counts(samples=samples, chunk=chunk)
        check_counts(0, seed=seed)
        super().__init__(optimizer, lr_scheduler)
        self.length_scale: float = length_scale
        self.convention: Convention = convention
        self.samples, self.chunk, self.seed = samples, chunk, seed
        self.masks: MaskSharing = masks
        self.register_buffer("size", torch.zeros((), dtype=torch.long))
        self._decays: list[tuple[nn.Module, str, float]] = []
        self._decay_checked = False

    def on_train_start(self) -> None:
        """Read what is needed of the training data, unless a checkpoint or an earlier fit has it."""
        super().on_train_start()
        self._decays = []
        loader = self.trainer.train_dataloader
        if not int(self.size) and loader is not None:
            if isinstance(loader, (dict, list, tuple)):
                raise TypeError(
                    f"Expected one training dataloader for {type(self).__name__} but got a"
                    f" {type(loader).__name__} of them: override `read_training_data`"
                )
            self.size.fill_(self.read_training_data(loader))

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Warn at the first batch if the network has dropout that the weight decay does not know of."""
        if self.trainer.global_step or self._decay_checked or any(self.drop_probabilities().values()):
            return
        self._decay_checked = True
        inputs, _ = expected.labelled(self, batch)
        if find_dropout(self.network, inputs, forward=self.__call__).active:
            rank_zero_warn(
                f"The network of {type(self).__name__} has dropout, but not as modules before its layers,"
                " so that its weight decay takes p = 0: override `drop_probabilities`"
            )

    def read_training_data(self, loader: object) -> int:
        """Count the training samples of all ranks, N; runs on all ranks when a fit starts."""
        return count_samples(loader)

    def drop_probabilities(self) -> dict[str, float]:
        """Return for each parameter of ``network``, by name, the p in its lambda; others do not decay.

        By default it is the p of the dropout module registered right before the parameter's layer, and 0 for
        biases and other vectors; with the authors' convention vectors are left out. Override it for a network
        that runs its modules in another order than that of their registration.
        """
        found = drop_probabilities(self.network)
        if self.convention == "authors":
            found = {name: p for name, p in found.items() if self.network.get_parameter(name).ndim > 1}
        return found

    def decay_of(self, p: float) -> float:
        """Compute lambda of weights whose inputs are dropped with probability p; here with tau = 1."""
        return weight_decay_of(1.0, self.length_scale, int(self.size), p=p, convention=self.convention)

    def objective(self, errors: Tensor) -> Tensor:
        """Compute L_dropout of a batch: errors [B] -> scalar; in evaluation without the weight decay.

        Raises:
            RuntimeError: If no fit has started, so that N is unknown.
        """
        if not self.training:
            return dropout_objective(errors, [], 0.0)
        if not self._decays:
            if not int(self.size):
                raise RuntimeError(
                    f"{type(self).__name__} does not know the number of training samples, which its weight"
                    " decay depends on: train it by `Trainer.fit`, or set `size`"
                )
            for name, p in self.drop_probabilities().items():
                path, _, own = name.rpartition(".")
                self._decays.append((self.network.get_submodule(path), own, self.decay_of(p)))
        parameters = [getattr(part, name) for part, name, _ in self._decays]
        return dropout_objective(errors, parameters, [decay for _, _, decay in self._decays])

    @contextmanager
    def without_dropout(self, inputs: Any) -> Iterator[None]:
        """Evaluate the network without any dropout in this context, even with ``training=True``.

        Args:
            inputs: Inputs that the network will be called with.

        Raises:
            ValueError: If the network is random nevertheless.
        """
        with isolated_eval(self.network, inputs) as streams:
            streams.start(0)
            with DropoutMode(MaskSampler(0), on=False):
                yield
            if not streams.untouched(0):
                raise ValueError(
                    f"Expected `network` of {type(self).__name__} to be random by dropout only but it draws"
                    " random numbers in evaluation, so that there is no pass without dropout: have it draw"
                    " them `if self.training`"
                )

    def sample(self, inputs: Any, *key: int, forward: Callable[[Any], Tensor] | None = None) -> Tensor:
        """Make T passes with dropout that leave training unaffected: inputs [B, ...] -> [T, B, ...].

        Args:
            inputs: Inputs that the module is called with.
            key: Numbers that distinguish this batch's masks from those of others. With shared masks, all
                batches and ranks have the same ones, and so have ranks that do not share the samples.
            forward: Called in place of the module.
        """
        seed = self.seed
        if self.masks == "independent":
            seed = fold_in(self.seed, self.places(0, 1)[0], *key)
        # Sample the network: the module's metrics hold tensors of inference mode, which slow sampling down.
        call = forward or self.__call__
        found: Tensor = mc_samples(
            self.network, inputs, self.samples, chunk=self.chunk, seed=seed, masks=self.masks, forward=call
        )
        return found


def check_p_each(p: float | Sequence[float], layers: int) -> list[float]:
    """Return one p for each layer.

    Raises:
        ValueError: If one is not in [0, 1), or their number is not that of the layers.
    """
    each = [p] * layers if isinstance(p, (int, float)) else list(p)
    if len(each) != layers:
        raise ValueError(f"Expected `p` to be a number, or one for each of {layers} layers, but got {p}")
    if not all(0 <= value < 1 for value in each):
        raise ValueError(f"Expected `p` in [0, 1) but got {p}")
    return each
