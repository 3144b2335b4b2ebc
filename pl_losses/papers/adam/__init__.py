"""Kingma and Ba 2015, Adam: a method for stochastic optimization."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.adam.averaging import TemporalAveraging as TemporalAveraging
    from pl_losses.papers.adam.bounds import step_bounds as step_bounds
    from pl_losses.papers.adam.counterexample import AMSGradCounterexample as AMSGradCounterexample
    from pl_losses.papers.adam.losses import (
        bernoulli_error as bernoulli_error,
        kl_to_standard_normal as kl_to_standard_normal,
    )
    from pl_losses.papers.adam.modules import (
        MLP as MLP,
        ConvNet as ConvNet,
        LogisticRegression as LogisticRegression,
    )
    from pl_losses.papers.adam.monitor.monitor import AdamBiasCorrectionMonitor as AdamBiasCorrectionMonitor
    from pl_losses.papers.adam.optimizer import Adam as Adam, AdaMax as AdaMax
    from pl_losses.papers.adam.schedule import InverseSqrtLR as InverseSqrtLR
    from pl_losses.papers.adam.vae import VAE as VAE

__getattr__, __dir__, __all__ = lazy(__name__)
