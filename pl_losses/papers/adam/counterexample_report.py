"""Reddi, Kale and Kumar 2018, Fig. 1: the average regret, and where the coordinate goes; a picture."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer

from pl_losses.core.declared import Keys
from pl_losses.core.figures import Figure, new_figure
from pl_losses.core.panels import Sections
from pl_losses.monitoring.pictures import log_figure
from pl_losses.papers.adam import manifest
from pl_losses.papers.adam.counterexample import AMSGradCounterexample

MOST = 2000  # points of a curve


class CounterexampleReport(Callback):
    """Draws Reddi et al.'s Fig. 1 after a fit of :class:`~pl_losses.AMSGradCounterexample`.

    Logs the picture ``train/counterexample``: the average regret and the coordinate over the steps.
    """

    KEYS: ClassVar[Keys] = {"train/counterexample": "picture: average regret and coordinate over the steps"}
    panels: ClassVar[Sections] = manifest.COUNTEREXAMPLE_REPORT

    def __init__(self) -> None:
        # Step, average regret and coordinate.
        self._rows: list[tuple[int, float, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note where the coordinate is."""
        assert isinstance(pl_module, AMSGradCounterexample)
        t = trainer.global_step
        # The module moves x into [-1, 1] after this.
        self._rows.append((t, pl_module.regret / t, min(max(float(pl_module.x.detach()), -1.0), 1.0)))
        if len(self._rows) > 2 * MOST:
            self._rows = self._rows[::2]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw on rank zero."""
        if trainer.is_global_zero and self._rows:
            name = type(trainer.optimizers[0]).__name__
            amsgrad = trainer.optimizers[0].defaults.get("amsgrad")
            log_figure(
                trainer, "train/counterexample", draw_path(self._rows, f"{name}, amsgrad={bool(amsgrad)}")
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the path so far."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the path of before."""
        self._rows = [tuple(row) for row in state_dict["rows"]]


def draw_path(rows: list[tuple[int, float, float]], name: str) -> Figure:
    """Draw the average regret and the coordinate over the steps.

    Args:
        rows: Step, average regret and coordinate.
        name: Of the optimizer.
    """
    figure = new_figure(9, 3.8)
    regret, path = figure.subplots(1, 2)
    steps, regrets, places = zip(*rows, strict=True)
    regret.plot(steps, regrets)
    regret.axhline(0, color="0.6", linestyle="--", linewidth=1)
    regret.set(xlabel="step t", ylabel="average regret", title=name)
    path.plot(steps, places)
    for place, text in ((-1, "the best point"), (1, "the worst point")):
        path.axhline(place, color="0.6", linestyle="--", linewidth=1)
        path.text(
            0.98,
            place,
            text,
            transform=path.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    path.set(xlabel="step t", ylabel="x", ylim=(-1.15, 1.15))
    return figure
