"""The objective of an image tile by tile, for images whose features do not fit into memory.

Content losses and Gram matrices are sums over positions. A first pass adds them up tile by tile without
gradients. The sums determine the loss and its derivative by each sum. A second pass sends these derivatives
back through one tile after the other. Tiles are cut with the surroundings that the deepest layer sees, so
that the result is that of the whole image except for rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor

from pl_losses.core.autograd import Context
from pl_losses.papers.style.objective import Objective, Sums, Terms, windows


class TiledObjective:
    """:class:`~pl_losses.papers.style.objective.Objective`, computed tile by tile.

    Args:
        objective: The objective with its targets.
        tile: Largest height and width of a tile in pixels, without its surroundings; rounded up to the stride
            of the deepest layer.
        rank: Number of this process, which computes every ``ranks``-th tile from this one on.
        ranks: Processes that share the tiles; all have the same image, and take part in each evaluation.
    """

    def __init__(self, objective: Objective, tile: int, *, rank: int = 0, ranks: int = 1) -> None:
        self.objective, self.tile, self.rank, self.ranks = objective, tile, rank, ranks

    def __call__(self, image: Tensor) -> tuple[Tensor, Terms]:
        """Compute loss and terms of an image [B, 3, H, W], as :meth:`Objective.forward` does."""
        terms: Terms = {}
        total: Tensor = _Tiled.apply(image, self, terms)
        return self.objective.add_variation(total, terms, image)

    def evaluate(self, image: Tensor, terms: Terms, slope: bool) -> tuple[Tensor, Tensor | None]:
        """Compute the loss and, if wanted, the gradient; write the terms into ``terms``."""
        own = islice(windows(image, self.tile, self.objective.features), self.rank, None, self.ranks)
        tiles, sums = list(own), self._zeros()
        for window, around in tiles:
            with torch.no_grad():
                for key, value in self.objective.measure(image[(..., *around)], window).items():
                    sums[key] += value
        self._add_up(sums.values())
        with torch.enable_grad():
            leaves = {key: value.requires_grad_() for key, value in sums.items()}
            total, found = self.objective.combine(leaves)
        terms.update(found)
        if not slope:
            return total.detach(), None
        slopes = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
        gradient = torch.zeros_like(image)
        for window, around in tiles:
            part = image.detach()[(..., *around)].clone().requires_grad_()
            with torch.enable_grad():
                again = self.objective.measure(part, window)
                linear = torch.stack([(slopes[key] * value).sum() for key, value in again.items()]).sum()
            gradient[(..., *around)] += torch.autograd.grad(linear, part)[0]
        self._add_up([gradient])
        return total.detach(), gradient

    def _zeros(self) -> Sums:
        """Return sums over no tile, in the same order on all ranks."""
        targets = self.objective.fixed()
        grams = {key: torch.zeros_like(gram) for key, gram in targets.grams.items()}
        zero = next(iter(grams.values())).new_zeros(())
        return {(layer,): zero.clone() for layer in targets.content} | grams

    def _add_up(self, values: Iterable[Tensor]) -> None:
        """Add the ranks' values, in place."""
        if self.ranks > 1:
            for value in values:
                torch.distributed.all_reduce(value)


class _Tiled(torch.autograd.Function):
    """Computes the gradient along with the loss, and scales it in the backward pass."""

    @staticmethod
    def forward(ctx: Context, image: Tensor, objective: TiledObjective, terms: Terms) -> Tensor:
        total, gradient = objective.evaluate(image, terms, ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None
