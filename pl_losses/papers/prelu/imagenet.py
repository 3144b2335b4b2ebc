"""He et al. 2015, Tables 2 to 4: a test's errors beside the published ones."""

from __future__ import annotations

from typing import ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer

from pl_losses.core.declared import Keys
from pl_losses.core.figures import Figure, new_figure
from pl_losses.core.panels import Sections
from pl_losses.monitoring.pictures import log_figure
from pl_losses.papers.prelu import manifest

# Of ImageNet's 50 000 validation images: the network and its test, top-1 and top-5 error in percent.
PUBLISHED = {
    "E, ReLU, ten crops": (33.82, 13.34),
    "E, shared PReLU, ten crops": (32.71, 12.87),
    "E, PReLU, ten crops": (32.64, 12.75),
    "A, ReLU, dense": (24.02, 6.51),
    "A, PReLU, dense": (22.97, 6.28),
    "B, PReLU, dense": (22.85, 6.27),
    "C, PReLU, dense": (21.59, 5.71),
}
ERRORS = {"error": "top-1", "error_top5": "top-5"}


class ImageNetReport(Callback):
    """Draws a test's top-1 and top-5 errors with their 95 % intervals, beside those of the paper.

    It is for a :class:`~pl_losses.RectifierNet` with more than five classes. Logs the picture
    ``test/published``.
    """

    KEYS: ClassVar[Keys] = {"test/published": "picture: top-1 and top-5 errors beside the published ones"}
    panels: ClassVar[Sections] = manifest.IMAGENET_REPORT

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw on rank zero."""
        values = {key: float(value) for key, value in trainer.callback_metrics.items()}
        if trainer.is_global_zero and all(f"test/{key}_low" in values for key in ERRORS):
            log_figure(trainer, "test/published", draw_errors(values))


def draw_errors(values: dict[str, float]) -> Figure:
    """Draw errors in percent: those of a test, by their keys, and the published ones."""
    figure = new_figure(8, 3.6)
    names = [*PUBLISHED, "this run, on its own data"]
    for place, (axes, key) in enumerate(zip(figure.subplots(1, 2, sharey=True), ERRORS, strict=True)):
        axes.plot([row[place] for row in PUBLISHED.values()], range(len(PUBLISHED)), "o", color="grey")
        low, error, high = (100 * values[f"test/{key}{end}"] for end in ("_low", "", "_high"))
        spread = [[max(0.0, error - low)], [max(0.0, high - error)]]
        axes.errorbar([error], [len(PUBLISHED)], xerr=spread, fmt="s", capsize=3)
        axes.set(xlabel=f"{ERRORS[key]} error, %", yticks=range(len(names)), yticklabels=names)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    figure.axes[0].invert_yaxis()
    return figure
