"""A moving average of a network's weights, from which smoother images are generated."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """A copy of a network whose weights and statistics follow it by an exponential moving average.

    After t steps the decay is at most :math:`(1 + t) / (10 + t)`, so that the average soon forgets the start.

    Args:
        network: The network to copy and follow.
        decay: Share of the average that each step keeps, in [0, 1).

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> average = MovingAverage(layer, decay=0.5)
        >>> before = average.network.weight.clone()
        >>> _ = nn.init.ones_(layer.weight)
        >>> average.update(layer, step=100)
        >>> torch.equal(average.network.weight, (before + 1) / 2)
        True
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.network = deepcopy(network).requires_grad_(False)
        self.decay = decay

    def forward(self, *args: Tensor) -> Tensor:
        """Return the averaged network's output."""
        outputs: Tensor = self.network(*args)
        return outputs

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follow a network after a step, whose number sets the decay."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mine, theirs in zip(_tensors(self.network), _tensors(network), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)


def fit_average(state: dict[str, object], wanted: bool) -> None:
    """Make a GAN's saved weights those of a model with or without an average, in place.

    A saved average that is not wanted is dropped; a wanted one that was not saved starts as the generator.

    Args:
        state: Tensors by name.
        wanted: Whether the model has an average.
    """
    prefix = "average.network."
    saved = [key for key in state if key.startswith(prefix)]
    if not wanted:
        for key in saved:
            del state[key]
    elif not saved:
        weights = {key: value for key, value in state.items() if key.startswith("generator.")}
        state |= {prefix + key.removeprefix("generator."): value for key, value in weights.items()}


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
