"""Gal and Ghahramani 2016, section 5.3: predictions with their uncertainty, drawn after a test."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from pl_losses.core.declared import Keys, Part, Recipe, declared_keys, without
from pl_losses.core.figures import Figure, new_axes
from pl_losses.core.loaders import SeenSamples, evaluation_loaders, num_unpadded
from pl_losses.core.panels import Sections
from pl_losses.core.validation import check_integer, typed
from pl_losses.data.uci import UCI
from pl_losses.monitoring.charts import log_table
from pl_losses.monitoring.pictures import gather_objects, log_figure
from pl_losses.papers.dropout import manifest
from pl_losses.papers.dropout.drawing import draw_coverage, draw_predictions
from pl_losses.papers.dropout.metrics import RegressionScores
from pl_losses.papers.dropout.published import SETTINGS, numbers

SCORES = {"rmse": "RMSE, units of the target", "log_likelihood": "log-likelihood, nats"}


class RegressionReport(Callback):
    """Draws predictions, errors and calibration after a test, with predictive standard deviations.

    It works on :class:`~pl_losses.DropoutRegressor`, and any module whose ``test_step`` returns a dict with
    ``mean``, ``standard_deviation`` and ``target``, [B, D] each, and whose ``test_scores`` are
    :class:`~pl_losses.papers.dropout.RegressionScores`. Logs the pictures ``test/predictions``,
    ``test/error_by_deviation`` and ``test/calibration`` and, for a set of Table 1 of
    :class:`~pl_losses.data.UCI`, the table ``test/published``: RMSE and log-likelihood beside the published
    ones. Exact over any number of ranks; of several dataloaders the first is drawn.

    Args:
        points: How many targets are drawn at most.

    Raises:
        ValueError: If ``points`` is not positive.
    """

    KEYS: ClassVar[Keys] = {
        "test/predictions": "picture: predictive means with their standard deviations, over the targets",
        "test/error_by_deviation": "picture: errors over the predictive standard deviation",
        "test/calibration": "picture: share of targets in the central intervals, over their probability",
        "test/published": "table: RMSE and log-likelihood beside the published ones",
    }
    panels: ClassVar[Sections] = manifest.REGRESSION_REPORT

    @classmethod
    def logged_keys(cls, part: Part, recipe: Recipe) -> Keys:
        """Return the keys that it logs: only some data sets have published scores."""
        published = issubclass(recipe.data.cls, UCI) and recipe.data.argument("name") in SETTINGS
        return without(declared_keys(cls), () if published else ("test/published",))

    @typed
    def __init__(self, points: int = 500) -> None:
        check_integer("points", points, 1)
        self.points = points
        self._rows: list[Tensor] = []
        self._seen = SeenSamples()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test.

        Raises:
            TypeError: If the module has no scores of a regression.
        """
        if not isinstance(getattr(pl_module, "test_scores", None), RegressionScores):
            raise TypeError(
                f"Expected {type(pl_module).__name__} to have RegressionScores as `test_scores`, as"
                " DropoutRegressor has"
            )
        self._rows, self._seen = [], SeenSamples()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep targets, means and standard deviations."""
        if dataloader_idx:
            return
        names = ("target", "mean", "standard_deviation")
        if not isinstance(outputs, dict) or not set(names) <= set(outputs):
            raise TypeError(
                f"Expected `test_step` of {type(pl_module).__name__} to return a dict with {', '.join(names)}"
            )
        loader = evaluation_loaders(trainer, "test")[0]
        self._seen.add(loader, batch, 0)
        own = num_unpadded(loader, batch_idx, len(outputs["target"]))
        self._rows.append(torch.stack([outputs[name][:own].flatten() for name in names], dim=1).float().cpu())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the ranks' parts (on all ranks) and draw (on rank zero)."""
        self._seen.counts()  # On a rank without a batch, too.
        parts = gather_objects(self._rows if self._rows and self._seen.counts(0) else [])
        rows = [row for part in parts for row in part]
        if not trainer.is_global_zero or not rows:
            return
        found = torch.cat(rows)
        shown = found[:: -(-len(found) // self.points)]
        log_figure(trainer, "test/predictions", draw_predictions(shown))
        log_figure(trainer, "test/error_by_deviation", draw_error_by_deviation(found, self.points))
        scores: Any = pl_module.test_scores
        log_figure(trainer, "test/calibration", draw_coverage(scores.coverage))
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, UCI) and data.dataset in SETTINGS:
            values = {name: float(trainer.logged_metrics.get(f"test/{name}", torch.nan)) for name in SCORES}
            log_table(trainer, "test/published", beside_published(values, data.dataset, data.split))


def beside_published(values: dict[str, float], name: str, split: int) -> list[dict[str, Any]]:
    """Return rows that set scores beside the published ones, of the printed column.

    Args:
        values: ``rmse`` and ``log_likelihood`` of this run.
        name: A set of Table 1.
        split: Which split was tested.

    Example:
        >>> rmse, likelihood = beside_published({"rmse": 2.5, "log_likelihood": -2.4}, "boston", 0)
        >>> list(rmse.values())
        ['RMSE, units of the target', 2.5, 2.273, 2.974, 0.1899]
    """
    splits = 0
    while numbers(name, "paper", [splits]):
        splits += 1
    own, mean = numbers(name, "paper", [split]), numbers(name, "paper", range(splits))
    rows: list[dict[str, Any]] = []
    for score, place in (("rmse", 0), ("log_likelihood", 2)):
        found = [values[score], own and own[place], mean and mean[place], mean and mean[place + 1]]
        names = ("this run", "published, this split", "published, all splits", "standard error")
        rounded = [None if value is None else float(f"{value:.4g}") for value in found]
        rows.append({"score": SCORES[score], **dict(zip(names, rounded, strict=True))})
    return rows


def draw_error_by_deviation(points: Tensor, most: int = 500) -> Figure:
    """Draw the absolute errors over the predictive standard deviation, and their root mean square in bins.

    Where the deviation tells the error, the root mean square lies on the diagonal.

    Args:
        points: Target, mean and standard deviation, [N, 3].
        most: How many are drawn as dots; the bins have all of them.
    """
    figure, axes = new_axes(4.8, 4.4)
    target, mean, deviation = points.double().unbind(1)
    error = (target - mean).abs()
    few = slice(None, None, -(-len(points) // most))
    axes.plot(deviation[few], error[few], ".", color="C0", alpha=0.5, label="|target - predictive mean|")
    # Bins of equally many inputs.
    bins = [
        part for part in deviation.argsort().tensor_split(min(10, max(1, len(points) // 10))) if len(part)
    ]
    places = [float(deviation[part].mean()) for part in bins]
    axes.plot(places, [float(error[part].square().mean().sqrt()) for part in bins], "o-", color="C3")
    axes.plot([], [], "o-", color="C3", label=f"root mean square of {len(bins)} equal parts")
    ends = torch.stack([deviation.amin(), deviation.amax()])
    for share, style in ((1, "--"), (2, ":")):
        label = f"{share} standard deviation{'s' * (share > 1)}"
        axes.plot(ends, share * ends, style, color="0.5", linewidth=1, label=label)
    axes.set(xlabel="predictive standard deviation", ylabel="error, units of the target", ylim=(0, None))
    axes.legend(frameon=False)
    return figure
