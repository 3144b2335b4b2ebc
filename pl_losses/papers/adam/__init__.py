"""Kingma and Ba 2015, Adam: a method for stochastic optimization."""

from typing import TYPE_CHECKING

from pl_losses._lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.adam.bounds import step_bounds as step_bounds
    from pl_losses.papers.adam.monitor import AdamBiasCorrectionMonitor as AdamBiasCorrectionMonitor
    from pl_losses.papers.adam.optimizer import Adam as Adam
    from pl_losses.papers.adam.optimizer import AdaMax as AdaMax

__getattr__, __dir__ = lazy(
    __name__,
    {
        "AdaMax": "pl_losses.papers.adam.optimizer",
        "Adam": "pl_losses.papers.adam.optimizer",
        "AdamBiasCorrectionMonitor": "pl_losses.papers.adam.monitor",
        "step_bounds": "pl_losses.papers.adam.bounds",
    },
)
__all__ = [
    "AdaMax",
    "Adam",
    "AdamBiasCorrectionMonitor",
    "step_bounds",
]
