"""LeCun et al. 1998, sections II and III: LeNet-5 with RBF outputs, trained by the MAP criterion (eq. 9)."""

from __future__ import annotations

from copy import copy
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from pl_losses.core import expected
from pl_losses.core.classifier import Classifier, Gallery
from pl_losses.core.declared import Keys, Part, Recipe, without
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.metrics import ErrorRate, computed
from pl_losses.core.panels import Sections
from pl_losses.core.sharding import shard_like
from pl_losses.core.sums import Mean
from pl_losses.core.validation import check_counts, check_init, check_positive, check_shape
from pl_losses.monitoring.pictures import ClassifierReport
from pl_losses.papers.lenet import manifest
from pl_losses.papers.lenet.layers import LeNet5Features, RBFOutput, digit_codes
from pl_losses.papers.lenet.losses import map_loss, mle_loss, rubbish_posterior
from pl_losses.papers.lenet.optimizer import StochasticDiagonalLM

CURVATURE_PATTERNS = 500


def levenberg_marquardt(parameters: ParamsT) -> StochasticDiagonalLM:
    r"""Build the default optimizer: that of Appendix C, for a batch size of 1.

    Its mu is ten times the paper's 0.02. The step is :math:`\eta g / (\mu + h)`. So mu depends on the
    scale of the loss, which the paper does not give. With eq. 9 as printed, 0.02 drives the units into
    saturation in the first pass.
    """
    return StochasticDiagonalLM(parameters, lr=5e-4, mu=0.2)


class LeNet5(Classifier):
    """LeNet-5 as published: 60 000 trainable parameters, RBF outputs, trained by eq. 9.

    Logs ``train/loss``, ``train/error``, ``val/loss``, ``val/error``, ``test/loss``, ``test/error`` with its
    95 % interval ``test/error_low`` and ``test/error_high``. With ``reject_above`` it also logs
    ``test/rejected`` and ``test/error_accepted``. With adaptable centres it also logs the distances between
    them, ``centres/closest`` and ``centres/farthest``. Errors are shares in [0, 1].

    To change it, override :meth:`configure_network`, :meth:`configure_output`, :meth:`compute_loss`,
    :meth:`configure_metrics` or :meth:`configure_optimizers`.

    Args:
        num_classes: Number of classes C. If they are not the ten digits, RBF outputs need ``codes`` too, or
            ``centres="random"``.
        criterion: "map" (eq. 9) or "mle" (eq. 8); with ``head="linear"`` both are the cross-entropy.
        head: "rbf", or "linear" for the modern variant: a linear layer and the cross-entropy.
        centres: "fixed" RBF centres as in the paper, "adaptable" ones that start at the codes, or "random":
            adaptable ones that start near 0 (normal, standard deviation 0.1), independent of the classes.
        rubbish_penalty: The j > 0 of eq. 9.
        reject_above: A test pattern is rejected if the probability of the rubbish class is above this, for
            example 0.5. ``None`` rejects nothing. Penalties are sums over 84 dimensions. After a short run
            many of them are above a ``rubbish_penalty`` of 1, and so many patterns are rejected.
        codes: Parameter vectors of the classes, C lists of 84 numbers; default: bitmaps of the digits.
        optimizer: Makes the optimizer from the parameters. Default: stochastic diagonal Levenberg-Marquardt
            (Appendix C), meant for a batch size of 1.
        lr_scheduler: Makes the scheduler from the optimizer, see :class:`~pl_losses.core.base.PaperModule`.

    Raises:
        ValueError: If an argument is none of its choices or ``codes`` does not fit ``num_classes``.

    Example:
        >>> model = LeNet5()
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
        60000
        >>> model(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """

    KEYS: ClassVar[Keys] = {
        "test/rejected": "share of patterns that are rejected, 0 to 1",
        "test/error_accepted": "error of the others, 0 to 1",
        "test/rejected_samples": "picture: what was most surely rejected",
        "centres/closest": "smallest distance of two RBF centres",
        "centres/farthest": "largest distance of two RBF centres",
    }
    panels: ClassVar[Sections] = manifest.LENET5

    def __init__(
        self,
        num_classes: int = 10,
        criterion: Literal["map", "mle"] = "map",
        *,
        head: Literal["rbf", "linear"] = "rbf",
        centres: Literal["fixed", "adaptable", "random"] = "fixed",
        rubbish_penalty: float = 1.0,
        reject_above: float | None = None,
        codes: list[list[float]] | None = None,
        optimizer: OptimizerCallable = levenberg_marquardt,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        check_counts(num_classes=num_classes)
        check_positive("rubbish_penalty", rubbish_penalty)
        if reject_above is not None and not 0 < reject_above <= 1:
            raise ValueError(f"Expected `reject_above` in (0, 1] or None but got {reject_above}")
        super().__init__(optimizer, lr_scheduler)
        save_plain_hyperparameters(self)
        self.num_classes = num_classes
        self.criterion, self.head, self.centres = criterion, head, centres
        self.rubbish_penalty, self.reject_above = rubbish_penalty, reject_above
        self.codes = codes
        self.network = self.configure_network()
        self.output = self.configure_output()
        self.configure_metrics()

    def configure_network(self) -> nn.Module:
        """Build the layers up to F6: [B, 1, 32, 32] -> [B, 84, 1, 1]."""
        return LeNet5Features()

    def configure_output(self) -> nn.Module:
        """Build the output layer: features [B, 84] -> penalties [B, C], lower is better."""
        if self.head == "linear":
            return NegatedLinear(84, self.num_classes)
        if self.codes is not None:
            codes = torch.tensor(self.codes)
        else:
            codes = torch.empty(self.num_classes, 84) if self.centres == "random" else digit_codes()
        if codes.shape != (self.num_classes, 84):
            raise ValueError(
                f"Expected `codes` of shape [{self.num_classes}, 84], one row a class, but got "
                f"{list(codes.shape)}" + ("" if self.codes else " (the bitmaps of the ten digits)")
            )
        if self.centres == "random":
            codes = 0.1 * torch.randn_like(codes)
        return RBFOutput(codes, adaptable=self.centres != "fixed")

    def compute_loss(self, penalties: Tensor, target: Tensor) -> Tensor:
        """Compute the criterion: penalties [B, C], target [B] -> scalar."""
        if self.head == "linear":
            return super().compute_loss(penalties, target)
        if self.criterion == "mle":
            return mle_loss(penalties, target)
        return map_loss(penalties, target, self.rubbish_penalty)

    @classmethod
    def logged_keys(cls, part: Part, recipe: Recipe) -> Keys:
        """Return the keys that it logs: those of rejection if it is asked for; fixed centres do not move."""
        rbf, shown = part.argument("head") == "rbf", ("test/rejected_samples",)
        reports = [one for one in recipe.callbacks if issubclass(one.cls, ClassifierReport)]
        left_out: tuple[str, ...] = () if any(one.argument("samples") for one in reports) else shown
        if not rbf or part.argument("criterion") != "map" or part.argument("reject_above") is None:
            left_out += ("test/rejected", "test/error_accepted", *shown)
        if not rbf or part.argument("centres") == "fixed":
            left_out += ("centres/closest", "centres/farthest")
        return without(super().logged_keys(part, recipe), left_out)

    def scores(self, penalties: Tensor) -> Tensor:
        """Return minus the penalties [B, C]."""
        return -penalties

    def configure_metrics(self) -> None:
        """Build the metrics, with those of rejection."""
        super().configure_metrics()
        self.accepted_error, self.rejected = ErrorRate(), Mean()

    @property
    def rejects(self) -> bool:
        """Whether patterns are rejected. Only the loss of eq. 9 can: it has a rubbish class."""
        return self.reject_above is not None and self.head == "rbf" and self.criterion == "map"

    def forward(self, images: Tensor) -> Tensor:
        """Compute the penalties of each class, lower is better.

        Args:
            images: [B, 1, 32, 32], background -0.1 and ink 1.175.

        Returns:
            [B, C].

        Raises:
            TypeError: If ``images`` are no floating point numbers.
            ValueError: If ``images`` is of another shape.
        """
        penalties: Tensor = self.output(self.features(images))
        return penalties

    def features(self, images: Tensor) -> Tensor:
        """Compute the 84 features of F6: [B, 1, 32, 32] -> [B, 84]."""
        check_shape("images", images, "B", 1, 32, 32)
        if not images.is_floating_point():
            raise TypeError(
                f"Expected `images` of a floating point type, from -0.1 to 1.175, but got {images.dtype}"
            )
        features: Tensor = self.network(images)
        return features.flatten(1)

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Warn if the default optimizer gets large batches, from which it hardly learns."""
        first = batch_idx == 0 and self.current_epoch == 0
        if not first or self._optimizer is not levenberg_marquardt:
            return
        _, target = expected.labelled(self, batch)
        if len(target) > 1:
            rank_zero_warn(
                "LeNet5's default optimizer is the paper's, meant for a batch size of 1, but the batches are"
                f" of {len(target)}: set `batch_size=1`, or pass another `optimizer`"
            )

    def on_train_epoch_start(self) -> None:
        """Estimate the curvature before each pass, if the optimizer needs it (Appendix C)."""
        for optimizer in self.trainer.optimizers:
            if isinstance(optimizer, StochasticDiagonalLM):
                self.estimate_curvature(optimizer)

    def on_train_epoch_end(self) -> None:
        """Log the error of the pass, and the distances between adaptable centres."""
        super().on_train_epoch_end()
        if self.head == "rbf" and self.centres != "fixed":
            with self.whole():
                distances = torch.pdist(self.output.get_parameter("centres").detach())
            extremes = {"centres/closest": distances.min(), "centres/farthest": distances.max()}
            self.log_dict(extremes, sync_dist=True)

    def estimate_curvature(self, optimizer: StochasticDiagonalLM) -> None:
        """Estimate the diagonal on 500 training patterns, shared among the ranks."""
        wanted = -(-CURVATURE_PATTERNS // self.trainer.world_size)
        drawn, count = [], 0
        # A copy, so that the pass about to begin starts at its own first batch.
        for batch in copy(self.trainer.train_dataloader) or ():
            drawn.append(expected.labelled(self, batch))
            count += len(drawn[-1][1])
            if count >= wanted:
                break
        images, target = (torch.cat(parts)[:wanted].to(self.device) for parts in zip(*drawn, strict=True))
        images, target = self.trainer.precision_plugin.convert_input((images, target))
        expected.finite(self, images)
        batches = zip(images.split(100), target.split(100), strict=True)
        sharded = list(self.parameters())
        with self.whole():
            whole = dict(zip(sharded, self.parameters(), strict=True))
            groups = [
                {**group, "params": [whole[parameter] for parameter in group["params"]]}
                for group in optimizer.param_groups
            ]
            # The optimizer's parameters are this rank's shards, those in the graph are whole.
            of_whole = StochasticDiagonalLM(groups)
            of_whole.estimate_curvature(
                self.features,
                batches,
                lambda features, target: expected.loss(
                    self, "compute_loss", self.compute_loss(self.output(features), target)
                ),
            )
        for parameter in sharded:
            if found := of_whole.state.get(whole[parameter]):
                optimizer.state[parameter]["curvature"] = shard_like(found["curvature"], parameter)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        """Count errors and rejected patterns; return what ``ClassifierReport`` draws."""
        results = super().test_step(batch, batch_idx)
        if self.reject_above is not None and self.rejects:
            rubbish = rubbish_posterior(results["outputs"], self.rubbish_penalty)
            accepted = rubbish <= self.reject_above
            own = self.num_unpadded(batch_idx, len(accepted))
            kept = accepted[:own].nonzero().flatten()
            self.accepted_error.update(results["predicted"][kept], results["target"][kept])
            self.rejected.update(~accepted[:own])
            rejected = Gallery(~accepted, rubbish, "rubbish with {:.0%}")
            results |= {
                "rubbish": rubbish,
                "rejected": ~accepted,
                "galleries": {"rejected_samples": rejected},
            }
        return results

    def evaluation_results(self, stage: str) -> dict[str, Tensor | float]:
        """Return loss and error; for a test also the error's 95 % interval and the results of rejection."""
        values = super().evaluation_results(stage)
        if stage == "test" and self.rejects:
            values["rejected"] = computed(self.rejected)
            # If every pattern is rejected there is no such error; all ranks see the same sum.
            if bool((error := computed(self.accepted_error)).isfinite()):
                values["error_accepted"] = error
        return values

    def predict_step(self, batch: object, batch_idx: int) -> dict[str, Tensor]:
        """Predict the penalties [B, C], the class [B] and, if it rejects, rubbish's probability [B]."""
        results = super().predict_step(batch, batch_idx)
        if self.rejects:
            results["rubbish"] = rubbish_posterior(results["outputs"], self.rubbish_penalty)
        return results


class NegatedLinear(nn.Linear):
    """A linear layer that returns penalties: minus the logits, so that lower is better as with RBF units."""

    def forward(self, features: Tensor) -> Tensor:
        """Compute the penalties: [B, F] -> [B, C]."""
        return -super().forward(features)
