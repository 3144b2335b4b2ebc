"""Kingma and Ba 2015, Adam: a method for stochastic optimization."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.adam.averaging import TemporalAveraging as TemporalAveraging
    from pl_losses.papers.adam.bounds import step_bounds as step_bounds
    from pl_losses.papers.adam.counterexample import AMSGradCounterexample as AMSGradCounterexample
    from pl_losses.papers.adam.losses import bernoulli_error as bernoulli_error
    from pl_losses.papers.adam.losses import kl_to_standard_normal as kl_to_standard_normal
    from pl_losses.papers.adam.modules import MLP as MLP
    from pl_losses.papers.adam.modules import ConvNet as ConvNet
    from pl_losses.papers.adam.modules import LogisticRegression as LogisticRegression
    from pl_losses.papers.adam.monitor.monitor import AdamBiasCorrectionMonitor as AdamBiasCorrectionMonitor
    from pl_losses.papers.adam.optimizer import Adam as Adam
    from pl_losses.papers.adam.optimizer import AdaMax as AdaMax
    from pl_losses.papers.adam.schedule import InverseSqrtLR as InverseSqrtLR
    from pl_losses.papers.adam.vae import VAE as VAE

__getattr__, __dir__ = lazy(
    __name__,
    {
        "AMSGradCounterexample": "pl_losses.papers.adam.counterexample",
        "AdaMax": "pl_losses.papers.adam.optimizer",
        "Adam": "pl_losses.papers.adam.optimizer",
        "AdamBiasCorrectionMonitor": "pl_losses.papers.adam.monitor.monitor",
        "ConvNet": "pl_losses.papers.adam.modules",
        "InverseSqrtLR": "pl_losses.papers.adam.schedule",
        "LogisticRegression": "pl_losses.papers.adam.modules",
        "MLP": "pl_losses.papers.adam.modules",
        "TemporalAveraging": "pl_losses.papers.adam.averaging",
        "VAE": "pl_losses.papers.adam.vae",
        "bernoulli_error": "pl_losses.papers.adam.losses",
        "kl_to_standard_normal": "pl_losses.papers.adam.losses",
        "step_bounds": "pl_losses.papers.adam.bounds",
    },
)
__all__ = [
    "MLP",
    "VAE",
    "AMSGradCounterexample",
    "AdaMax",
    "Adam",
    "AdamBiasCorrectionMonitor",
    "ConvNet",
    "InverseSqrtLR",
    "LogisticRegression",
    "TemporalAveraging",
    "bernoulli_error",
    "kl_to_standard_normal",
    "step_bounds",
]
