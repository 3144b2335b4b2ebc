"""Kingma and Ba 2015, Fig. 4: many autoencoders trained at once, each with its own Adam settings.

The weights of G autoencoders are the rows of one tensor, so that a layer of all of them is one batched matrix
product.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_losses.papers.adam.optimizer import Adam


class Settings(NamedTuple):
    """Adam's settings of one run.

    Attributes:
        beta1: Decay rate of the first moment.
        beta2: Decay rate of the second moment.
        alpha: The learning rate.
        bias_correction: Whether both moments are corrected.
    """

    beta1: float
    beta2: float
    alpha: float
    bias_correction: bool


class BatchedVAE:
    """G autoencoders of the shape of :class:`~pl_losses.papers.adam.VAE` with the same start and batches.

    Each is a parameter group of one :class:`~pl_losses.papers.adam.Adam`, whose moments are the only other
    copies of the weights, beside their gradient.

    Args:
        start: The parameters of a ``VAE`` in their order, which all of them start from.
        settings: Adam's settings of each run.

    Example:
        >>> from pl_losses.papers.adam import VAE
        >>> vae = VAE(in_features=4, hidden_size=3, latent_size=2)
        >>> runs = [Settings(0.9, 0.999, alpha, True) for alpha in (1e-3, 1e-2)]
        >>> stack = BatchedVAE(list(vae.parameters()), runs)
        >>> stack.step(torch.ones(5, 4), torch.zeros(5, 2)).shape
        torch.Size([2])
    """

    def __init__(self, start: Sequence[Tensor], settings: Sequence[Settings]) -> None:
        self.shapes = [tensor.shape for tensor in start]
        self.settings = list(settings)
        row = torch.cat([tensor.detach().flatten() for tensor in start])
        self.weights = row.repeat(len(self.settings), 1)
        self._build()

    def __len__(self) -> int:
        return len(self.settings)

    def _build(self) -> None:
        """Build the gradient, the views by layer and the optimizer for the current weights."""
        self.gradient = torch.zeros_like(self.weights)
        self._layers, self._slopes = self._split(self.weights), self._split(self.gradient)
        for layer in self._layers:
            layer.requires_grad_()
        groups: list[dict[str, object]] = []
        for row, gradient, run in zip(self.weights, self.gradient, self.settings, strict=True):
            parameter = nn.Parameter(row)
            parameter.grad = gradient
            betas = (run.beta1, run.beta2)
            own = {"lr": run.alpha, "betas": betas, "bias_correction": run.bias_correction}
            groups.append({"params": [parameter], **own})
        self.optimizer = Adam(groups, fused=True)

    def _split(self, rows: Tensor) -> list[Tensor]:
        parts = torch.split(rows, [prod(shape) for shape in self.shapes], dim=1)
        # Biases as [G, 1, units], for addition to [G, B, units].
        shapes = [shape if len(shape) == 2 else (1, *shape) for shape in self.shapes]
        return [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    @torch.no_grad()
    def step(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """Take one step of every run, on the same batch with the same noise.

        Args:
            inputs: Binary images, [B, D].
            noise: Standard normal, [B, J].

        Returns:
            Negative bound before the step, in nats per image, [G].
        """
        loss = self.differentiate(inputs, noise)
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def losses(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """Compute the negative bound, in nats per image: images [B, D], noise [B, J] -> [G]."""
        return self._losses(inputs, noise)

    def _losses(self, inputs: Tensor, noise: Tensor) -> Tensor:
        w1, b1, w2, b2, w3, b3, w4, b4 = self._layers
        encoded = F.softplus(torch.baddbmm(b1, inputs.expand(len(self), -1, -1), w1.mT))
        mean, log_variance = torch.baddbmm(b2, encoded, w2.mT).chunk(2, dim=2)
        deviation = (0.5 * log_variance).exp()
        decoded = F.softplus(torch.baddbmm(b3, torch.addcmul(mean, deviation, noise), w3.mT))
        logits = torch.baddbmm(b4, decoded, w4.mT)
        divergence = (mean.square() + deviation.square() - log_variance - 1).sum((1, 2)) / 2
        error = F.softplus(logits).sum((1, 2)) - (inputs * logits).sum((1, 2))
        return (error + divergence) / len(inputs)

    def differentiate(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """Write the gradient of :meth:`losses` into ``gradient``; return the losses, [G]."""
        with torch.enable_grad():
            losses = self._losses(inputs, noise)
            found = torch.autograd.grad(losses.sum(), self._layers)
        for slope, own in zip(self._slopes, found, strict=True):
            slope.copy_(own)
        return losses.detach()

    def keep(self, chosen: Sequence[int]) -> None:
        """Keep only some of the runs, by their numbers, at least one."""
        state = self.optimizer.state_dict()
        state["state"] = {new: state["state"][old] for new, old in enumerate(chosen) if old in state["state"]}
        groups = [state["param_groups"][old] for old in chosen]
        state["param_groups"] = [{**group, "params": [new]} for new, group in enumerate(groups)]
        self.settings = [self.settings[old] for old in chosen]
        self.weights = self.weights[list(chosen)]
        self._build()
        self.optimizer.load_state_dict(state)

    def state_dict(self) -> dict[str, object]:
        """Return the weights and Adam's state, as plain data."""
        return {
            "weights": self.weights,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the :meth:`state_dict` of a stack with the same settings."""
        self.weights.copy_(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
