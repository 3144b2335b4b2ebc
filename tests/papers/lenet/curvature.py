"""Estimates of curvature, and the Gauss-Newton matrix to compare them with."""

import torch
from papers.lenet.problems import _double, cross_entropy, half_square, small_net  # noqa: F401
from torch import nn
from torch.func import functional_call, jacrev

from pl_losses.papers.lenet.optimizer import StochasticDiagonalLM


def estimate(network, inputs, target=0.0, loss=half_square, params=None, **options):
    params = list(network.parameters()) if params is None else params
    optimizer = StochasticDiagonalLM(params)
    batches = inputs if isinstance(inputs, list) else [(inputs, target)]
    optimizer.estimate_curvature(network, batches, loss, **options)
    return [optimizer.state[p]["curvature"] for p in params]


def gauss_newton(network, inputs):
    """Mean of the sum of squared derivatives of a pattern's outputs: exact if the loss is half the square."""
    params = dict(network.named_parameters())
    rows = [jacrev(lambda p, x: functional_call(network, p, (x,)))(params, x[None]) for x in inputs]
    outputs = network(inputs[:1]).ndim
    return [
        torch.stack([r[name].square().sum(tuple(range(outputs))) for r in rows]).mean(0) for name in params
    ]


class Applied(nn.Module):
    """A function of the input times one gain for each of its elements."""

    def __init__(self, function, *shape):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(shape))
        self.function = function

    def forward(self, x):
        return self.function(x * self.gain)
