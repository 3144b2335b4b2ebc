"""He et al. 2015, section 2.2: a picture of the signal by depth, which the initialisation decides."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from pl_losses.core.declared import Keys
from pl_losses.core.figures import Figure, new_figure
from pl_losses.core.panels import Sections
from pl_losses.monitoring.pictures import log_figure
from pl_losses.papers.prelu import manifest
from pl_losses.papers.prelu.dataflow import weighted_layers
from pl_losses.papers.prelu.drawing import shorten

Signal = dict[str, list[float]]


class SignalReport(Callback):
    """Draws the signal of each layer, at the first step and in the last epoch, after a fit.

    The signal is the standard deviation of the layer's outputs y, and of the gradients with respect to them.
    Eqs. 10 and 14 keep both from vanishing and from exploding with depth. It works on any module with linear
    layers or convolutions. It measures the first batch of an epoch (rank zero's part), and needs no extra
    pass. Logs the picture ``prelu/signal``.
    """

    KEYS: ClassVar[Keys] = {
        "prelu/signal": "picture: standard deviations of responses and gradients by depth",
    }
    panels: ClassVar[Sections] = manifest.SIGNAL_REPORT

    def __init__(self) -> None:
        # At the first step and in the last epoch: responses and gradients of each layer.
        self._found: list[Signal] = []
        self._names: list[str] = []
        self._hooks = ExitStack()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure at the first batch of an epoch."""
        if batch_idx or not trainer.is_global_zero:
            return
        layers = weighted_layers(pl_module)
        found: Signal = {path: [0.0, 0.0] for path in layers}
        self._names = list(layers)
        self._found = [*self._found[:1], found]

        def watch(path: str, layer: nn.Module) -> None:
            def backward(gradient: Tensor) -> None:
                found[path][1] = deviation(gradient)

            def forward(_: nn.Module, inputs: Any, outputs: Any) -> None:
                if isinstance(outputs, Tensor) and outputs.requires_grad:
                    found[path][0] = deviation(outputs)
                    outputs.register_hook(backward)  # type: ignore[no-untyped-call]

            self._hooks.callback(layer.register_forward_hook(forward).remove)

        for path, layer in layers.items():
            watch(path, layer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the hooks off."""
        self._hooks.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off."""
        self._hooks.close()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw on rank zero."""
        if self._found:
            log_figure(trainer, "prelu/signal", draw_signal(*self._found))

    def state_dict(self) -> dict[str, Any]:
        """Return the signal of the first step, for a fit that resumes."""
        return {"first": self._found[:1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back the signal of the first step."""
        self._found = list(state_dict["first"])


def deviation(values: Tensor) -> float:
    """Compute the standard deviation of all values, as a number."""
    return float(values.detach().float().std(correction=0))


def draw_signal(first: Signal, last: Signal | None = None) -> Figure:
    """Draw the standard deviation of responses and gradients by depth, at the first step and later.

    Args:
        first: Both by the layer's path, in the order of definition.
        last: The same later, if there was more than one epoch.
    """
    figure = new_figure(9, 4.2)
    titles = ("Responses y of each layer", "Gradients with respect to y")
    depth = range(1, len(first) + 1)
    for place, (axes, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
        for name, found, style in (("first step", first, "o-"), ("last epoch", last, "s--")):
            if found:
                values = torch.tensor([signal[place] for signal in found.values()])
                # Zero has no place on a logarithmic axis; a signal may have vanished.
                axes.plot(depth, values.where(values > 0, torch.nan), style, markersize=4, label=name)
        axes.set(yscale="log", xlabel="layer", ylabel="standard deviation", title=title)
        if len(first) <= 20:
            axes.set_xticks(depth, [shorten(path, 16) for path in first], rotation=90, fontsize=7)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    return figure
