"""Gal and Ghahramani 2016, sections 4 and 5.3: a regressor that estimates its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, isnan, nan
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from pl_losses.core import expected
from pl_losses.core.declared import Keys, Part, Recipe, without
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.metrics import computed
from pl_losses.core.panels import Sections
from pl_losses.core.precision import at_least_float32
from pl_losses.core.sums import Mean
from pl_losses.core.validation import check_counts, check_init
from pl_losses.papers.dropout import manifest
from pl_losses.papers.dropout.base import DropoutModule, MaskSharing, check_p_each
from pl_losses.papers.dropout.metrics import RegressionScores
from pl_losses.papers.dropout.networks import Activation, DropoutMLP
from pl_losses.papers.dropout.noise_precision import GRID, PrecisionSearch, check_precisions
from pl_losses.papers.dropout.objective import Convention, weight_decay_of
from pl_losses.papers.dropout.standardization import Standardization, read_moments
from pl_losses.papers.dropout.uncertainty import predictive_moments

KEYS = {
    "train/loss": "L_dropout of the last batch, for standardised targets",
    "val/rmse": "root mean squared error of the predictive mean, units of the target",
    "val/rmse_deterministic": "the same for a pass without dropout",
    "val/log_likelihood": "mean log-likelihood per input, nats",
    "val/precision": "tau, if the module chooses it, in units of 1/y^2",
    "test/rmse": "root mean squared error of the predictive mean, units of the target",
    "test/rmse_deterministic": "the same for a pass without dropout",
    "test/log_likelihood": "mean log-likelihood per input, nats",
    "test/standard_deviation": "mean predictive standard deviation, noise included, units of the target",
    "test/coverage_50": "share of targets in the central 50 % interval, 0 to 1",
    "test/coverage_90": "share of targets in the central 90 % interval, 0 to 1",
    "test/coverage_95": "share of targets in the central 95 % interval, 0 to 1",
    "test/calibration_error": "mean distance of coverage and probability, 0 to 1",
}

_NO_PRECISION = "There is no `precision`, as none was given and no validation has chosen one"


class DropoutRegressor(DropoutModule):
    """A regression that gives values and their uncertainty, by passes with dropout (sections 4 and 5.3).

    Inputs, targets and predictions are in their own units. When the first fit starts, the module computes the
    means and standard deviations of the training data, exactly over all ranks. Checkpoints have these
    numbers. The loss is :func:`~pl_losses.papers.dropout.dropout_objective` of half the squared errors of
    standardised targets. Its weight decay follows from ``length_scale``, the precision tau, N and the p of
    each layer.

    The module logs the keys of :attr:`KEYS`, exact over ranks and uneven batches. Inputs that come twice, so
    that all ranks have equally many, count once, in training too.

    To change it, override :meth:`configure_network`, :meth:`errors`, :meth:`compute_loss`,
    :meth:`configure_metrics` or :meth:`drop_probabilities`.

    Args:
        in_features: Number of inputs Q of the default network.
        out_features: Number of outputs D of the default network.
        hidden: Units of each hidden layer of the default network.
        activation: "relu" or "tanh".
        p: Probability of dropping an input of a layer, from the network's own inputs on: one number, or one
            for each layer of weights.
        precision: tau, 1 divided by the variance of the noise. With ``None`` or a list it is chosen at
            the end of each validation of a fit. The value with the highest log-likelihood of the validation
            data under T passes is taken. ``None`` stands for 141 values, 20 a decade. They go from 0.1 to
            a million, divided by the variance of the targets. The choice is kept in checkpoints. In this
            case the weight decay always has the tau that is 1 divided by the variance of the targets.
            ``Trainer.validate`` chooses only if nothing has been chosen yet.
        length_scale: l, 1 divided by the standard deviation of the weights' prior, for standardised inputs.
        convention: "paper" or "authors", see :func:`~pl_losses.papers.dropout.weight_decay_of`.
        samples: T, the passes for each input in validation, test and prediction.
        masks: "independent" masks for each input, or "shared" ones: the same functions for all inputs of all
            batches and ranks, which is cheaper.
        chunk: Passes computed at a time; ``None`` for the sampler's own choice.
        seed: Seed of the masks of validation, test and prediction. Those of training are from torch's stream.
        network: Standardised inputs [B, ...] to standardised outputs [B, D], with dropout modules in it;
            then ``in_features``, ``out_features``, ``hidden``, ``activation`` and ``p`` are not used. It is
            not plain data: pass it to ``load_from_checkpoint`` again.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer, see :class:`~pl_losses.core.base.PaperModule`.

    Raises:
        ValueError: If an argument is out of range or none of its choices.

    Example:
        >>> model = DropoutRegressor(in_features=13, p=0.05, precision=0.16)
        >>> mean, variance = model.predictive(torch.zeros(8, 13))
        >>> mean.shape, bool((variance >= 1 / 0.16).all())
        (torch.Size([8, 1]), True)
    """

    best: ClassVar[dict[str, Literal["min", "max"]]] = {
        "train/loss": "min",
        "val/rmse": "min",
        "val/log_likelihood": "max",
        "test/rmse": "min",
        "test/log_likelihood": "max",
    }
    KEYS: ClassVar[Keys] = KEYS
    panels: ClassVar[Sections] = manifest.REGRESSOR
    headline: ClassVar[str] = manifest.HEADLINE

    @classmethod
    def logged_keys(cls, part: Part, recipe: Recipe) -> Keys:
        """Return the keys that it logs: a precision that is given is not chosen."""
        left_out = () if part.argument("precision") is None else ("val/precision",)
        return without(super().logged_keys(part, recipe), left_out)

    tau: Tensor

    def __init__(
        self,
        in_features: int = 1,
        out_features: int = 1,
        hidden: Sequence[int] = (50,),
        *,
        activation: Activation = "relu",
        p: float | list[float] = 0.05,
        precision: float | list[float] | None = None,
        length_scale: float = 0.01,
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
        sizes = [in_features, *hidden, out_features]
        check_counts(in_features=in_features, out_features=out_features)
        for units in sizes[1:-1]:
            check_counts(hidden=units)
        given = precision if isinstance(precision, (int, float)) else None
        check_precisions([given] if given is not None else list(GRID) if precision is None else precision)  # type: ignore[arg-type]
        drop = check_p_each(p, len(sizes) - 1)
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
        self.sizes, self.activation, self.p = sizes, activation, drop
        self.choices: list[float] | None = precision if isinstance(precision, list) else None
        self.fixed = given
        self._warned = False
        self.register_buffer("tau", torch.tensor(nan if given is None else float(given)))
        self.input_scale, self.target_scale = Standardization(), Standardization()
        self.network = self.configure_network() if network is None else network
        self.configure_metrics()

    def configure_network(self) -> nn.Module:
        """Build the network: standardised inputs [B, Q] -> standardised outputs [B, D]."""
        return DropoutMLP(self.sizes, self.p, self.activation)

    def configure_metrics(self) -> None:
        """Build the metrics, which are summed over ranks."""
        self.val_scores, self.test_scores = RegressionScores(), RegressionScores()
        self.val_single, self.test_single = Mean(), Mean()
        self.search = PrecisionSearch(self.choices or GRID)
        self.likelihood = PrecisionSearch([1.0])

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the outputs in the units of the targets: inputs [B, Q] -> [B, D]."""
        outputs: Tensor = self.network(self.input_scale(inputs))
        return self.target_scale.inverse(at_least_float32(outputs))

    def errors(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute E, half the squared error of standardised values.

        Args:
            outputs: [B, D], in the units of the targets, as :meth:`forward` gives them.
            target: [B, D], in the same units.

        Returns:
            [B]; divided by the targets' standard deviation ``self.target_scale.std``, so without units.
        """
        difference = (outputs - target) / self.target_scale.std
        return 0.5 * difference.flatten(1).square().sum(dim=1)

    def compute_loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute L_dropout in training; in evaluation the mean of E alone, without the weight decay.

        Args:
            outputs: [B, D], in the units of the targets, as :meth:`forward` gives them.
            target: [B, D], in the same units.

        Returns:
            Scalar, of standardised targets.
        """
        return self.objective(self.errors(outputs, target))

    @property
    def precision(self) -> float | None:
        """tau in the units of 1/y^2; ``None`` if it has not been chosen yet."""
        tau = self.fixed if self.fixed is not None else float(self.tau)
        return tau if isfinite(tau) else None

    def decay_of(self, p: float) -> float:
        """Compute lambda of weights whose inputs are dropped with probability p."""
        std = float(self.target_scale.std)
        tau = 1 / std**2 if self.fixed is None else self.fixed
        return weight_decay_of(
            tau, self.length_scale, int(self.size), p=p, convention=self.convention, target_std=std
        )

    def read_training_data(self, loader: Any) -> int:
        """Standardise by the training data of all ranks; return their number."""
        inputs, targets = read_moments(loader)
        self.input_scale.fit(inputs)
        self.target_scale.fit(targets, common=True)
        return inputs.count

    def on_train_start(self) -> None:
        """Read the training data, after a check that tau can be chosen."""
        trainer = self.trainer
        # Without a sanity check, the validation data are not loaded yet.
        none = trainer.val_dataloaders is not None and not sum(trainer.num_val_batches)
        if self.fixed is None and (none or not trainer.enable_validation):
            raise ValueError(
                "Expected `precision` to be a number where there is no validation data to choose it by but"
                f" got {self.choices}"
            )
        super().on_train_start()

    def predictive(self, inputs: Tensor, *key: int) -> tuple[Tensor, Tensor]:
        """Return predictive mean and variance, 1/tau included, in the units of the targets.

        Without a tau (none was given, and no validation has chosen one) the variance is that of the passes
        alone, as a warning says once.

        Args:
            inputs: [B, Q].
            key: Numbers that distinguish this batch's masks from those of others. Default: 0, for the masks
                that validation, test and prediction draw for their first batch.

        Returns:
            [B, D] each.
        """
        return self._moments(self.sample(inputs, *(key or (0,))))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute and log L_dropout of a batch: inputs [B, Q], targets [B, D], or [B] for one output."""
        inputs, target = expected.labelled(self, batch)
        outputs = expected.outputs(self, self(inputs), len(target))
        own = self.num_unpadded(batch_idx, len(outputs))
        rows = own or len(outputs)
        loss = self.compute_loss(outputs[:rows], fit_shape(target, outputs)[:rows])
        loss = expected.loss(self, "compute_loss", loss)
        self.refuse_non_finite(loss)
        self.log("train/loss", loss, prog_bar=True)
        # The weight decay is weighted, too, by a factor of mean 1.
        return loss * self.rank_weight(own)

    def on_validation_epoch_start(self) -> None:
        """Start with the precisions to choose from."""
        if self.choices is None:
            variance = float(self.target_scale.std) ** 2
            self.search.precisions = [tau / variance for tau in GRID]
        self.likelihood.precisions = [self.precision or 1.0]

    @property
    def chooses(self) -> bool:
        """Whether this validation is to choose the precision."""
        return self.fixed is None and (self.precision is None or self.trainer.state.fn == TrainerFn.FITTING)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Score T passes over a batch, and the pass without dropout."""
        samples, target, own = self._evaluate(batch, batch_idx, self.val_single)
        samples, target = samples[:, :own], target[:own]
        self.val_scores.update(samples, target)
        (self.search if self.chooses else self.likelihood).update(samples, target)

    def summary(self, results: Mapping[str, float]) -> str:
        """Describe the RMSE and the log-likelihood."""
        text = super().summary(results).replace("rmse", "RMSE")
        likelihood = results.get("log_likelihood", nan)
        return text if isnan(likelihood) else f"{text}, log-likelihood {likelihood:.3f} nats"

    def evaluation_results(self, stage: str) -> dict[str, Tensor | float]:
        """Return the scores."""
        scores: dict[str, Tensor | float] = computed(getattr(self, f"{stage}_scores"))
        scores["rmse_deterministic"] = computed(getattr(self, f"{stage}_single")).sqrt()
        if stage == "test":
            return scores
        found = computed(self.search if self.chooses else self.likelihood)
        names = ("rmse", "rmse_deterministic")
        chosen = ("precision", "log_likelihood") if self.chooses else ("log_likelihood",)
        return {name: scores[name] for name in names} | {name: found[name] for name in chosen}

    def on_validation_epoch_end(self) -> None:
        """Log the scores, and choose the precision if that is asked for."""
        super().on_validation_epoch_end()
        if self.chooses and not self.trainer.sanity_checking:
            self.tau.copy_(computed(self.search)["precision"])

    def on_test_epoch_start(self) -> None:
        """Start with the chosen precision."""
        self.test_scores.precision = self.precision
        if self.precision is None:
            self._warned = True
            rank_zero_warn(
                f"{_NO_PRECISION}: the test has no log-likelihood, and its intervals leave out the noise"
            )

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Score T passes over a batch, and the pass without dropout; return ``mean`` and so on."""
        samples, target, own = self._evaluate(batch, batch_idx, self.test_single)
        self.test_scores.update(samples[:, :own], target[:own])
        return {**self._summed_up(samples), "target": target}

    def predict_step(self, batch: object, batch_idx: int) -> dict[str, Tensor]:
        """Predict ``mean``, ``variance`` and ``standard_deviation``, 1/tau included, each [B, D].

        Without a tau they are those of the passes alone, as a warning says once.
        """
        with expected.inputs(self, batch) as inputs:
            samples = self.sample(inputs, batch_idx)
        return self._summed_up(samples)

    def _summed_up(self, samples: Tensor) -> dict[str, Tensor]:
        mean, variance = self._moments(samples)
        return {"mean": mean, "variance": variance, "standard_deviation": variance.sqrt()}

    def _moments(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        if self.precision is None and not self._warned:
            self._warned = True
            rank_zero_warn(f"{_NO_PRECISION}: predictive variances leave out the noise")
        return predictive_moments(samples, self.precision)

    def _evaluate(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, single: Mean
    ) -> tuple[Tensor, Tensor, int]:
        """Return samples [T, B, D], targets [B, D], and how many of these inputs, the first, count."""
        inputs, target = expected.labelled(self, batch)
        with self.without_dropout(inputs):
            outputs = expected.outputs(self, self(inputs), len(target))
        target = fit_shape(target, outputs)
        samples = self.sample(inputs, batch_idx)
        own = self.num_unpadded(batch_idx, len(target))
        single.update((outputs[:own] - target[:own]).square())
        return samples, target, own


def fit_shape(target: Tensor, outputs: Tensor) -> Tensor:
    """Reshape targets to the outputs' shape: [B] and [B, 1] mean the same.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if len(target) != len(outputs) or target.numel() != outputs.numel():
        raise ValueError(f"Expected targets of shape {list(outputs.shape)} but got {list(target.shape)}")
    return target.reshape(outputs.shape)
