"""Kingma and Ba 2015, Adam: a method for stochastic optimization."""

from typing import TYPE_CHECKING

from pl_losses._lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.adam.bounds import step_bounds as step_bounds
    from pl_losses.papers.adam.monitor import AdamBiasCorrectionMonitor as AdamBiasCorrectionMonitor

__getattr__, __dir__ = lazy(
    __name__,
    {
        "AdamBiasCorrectionMonitor": "pl_losses.papers.adam.monitor",
        "step_bounds": "pl_losses.papers.adam.bounds",
    },
)
__all__ = [
    "AdamBiasCorrectionMonitor",
    "step_bounds",
]
