"""Many networks of one shape trained at once, each by an optimizer of its own.

The weights of G networks are the rows of one tensor. They see the same batches, with the same dropout masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F
from torch.optim import Optimizer

from pl_losses.core.rng import fold_in


class BatchedClassifiers:
    """G copies of a network, which start alike and are trained on the cross-entropy.

    Args:
        network: Inputs [B, ...] -> logits [B, C]; its weights are the start of all.
        optimizers: For each, from parameters to optimizer; one that treats each weight by itself.

    Example:
        >>> rates = [0.1, 1.0]
        >>> optimizers = [lambda parameters, lr=lr: torch.optim.SGD(parameters, lr) for lr in rates]
        >>> stack = BatchedClassifiers(nn.Linear(3, 2), optimizers)
        >>> stack.step(torch.ones(5, 3), torch.zeros(5, dtype=torch.long), seed=0).shape
        torch.Size([2])
    """

    def __init__(self, network: nn.Module, optimizers: Sequence[Callable[[list[Tensor]], Optimizer]]) -> None:
        named = dict(network.named_parameters())
        row = torch.cat([weight.detach().flatten() for weight in named.values()])
        self.weights = row.repeat(len(optimizers), 1)
        self.gradient = torch.zeros_like(self.weights)
        self._layers, self._slopes = (
            {
                name: part.view(-1, *weight.shape)
                for (name, weight), part in zip(named.items(), self._split(rows, named), strict=True)
            }
            for rows in (self.weights, self.gradient)
        )

        def loss(weights: dict[str, Tensor], inputs: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(network, weights, (inputs,)), target)

        self._differentiate = vmap(grad_and_value(loss), (0, None, None), randomness="same")
        self.optimizers = []
        for own, slope, optimizer in zip(self.weights, self.gradient, optimizers, strict=True):
            parameter = nn.Parameter(own)
            parameter.grad = slope
            self.optimizers.append(optimizer([parameter]))

    @staticmethod
    def _split(rows: Tensor, named: dict[str, nn.Parameter]) -> tuple[Tensor, ...]:
        sizes = [weight.numel() for weight in named.values()]
        return torch.split(rows, sizes, dim=1)

    def step(self, inputs: Tensor, target: Tensor, seed: int) -> Tensor:
        """Take one step of every network: inputs [B, ...], target [B]; return the losses before it, [G].

        The masks are drawn from ``seed``.
        """
        losses = self.differentiate(inputs, target, seed)
        for optimizer in self.optimizers:
            optimizer.step()
        return losses

    def differentiate(self, inputs: Tensor, target: Tensor, seed: int) -> Tensor:
        """Write the gradients into ``gradient``; return the losses, [G]."""
        with torch.random.fork_rng([self.weights.device] if self.weights.is_cuda else []):
            torch.manual_seed(fold_in(seed))
            slopes, losses = self._differentiate(self._layers, inputs, target)
        for name, slope in slopes.items():
            self._slopes[name].copy_(slope)
        found: Tensor = losses.detach()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and the optimizers' states."""
        return {"weights": self.weights, "optimizers": [one.state_dict() for one in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the :meth:`state_dict` of networks of the same shape."""
        self.weights.copy_(state["weights"])
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
