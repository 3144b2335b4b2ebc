"""LeCun, Bottou, Bengio and Haffner 1998: LeNet-5 (sections II and III)."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.lenet.layers import digit_codes as digit_codes
    from pl_losses.papers.lenet.losses import rubbish_posterior as rubbish_posterior
    from pl_losses.papers.lenet.optimizer import StochasticDiagonalLM as StochasticDiagonalLM

__getattr__, __dir__, __all__ = lazy(__name__)
