"""A moving average of a network's weights, from which smoother images are generated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """A copy of a network whose weights and statistics follow it by an exponential moving average.

    The first update copies the network. After t updates the decay is at most :math:`(1 + t) / (10 + t)`, so
    that the average soon forgets the start.

    Args:
        network: The network to copy and follow.
        decay: Share of the average that each update keeps, in [0, 1).

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> average = MovingAverage(layer, decay=0.1)
        >>> for value in (0.0, 1.0):
        ...     _ = nn.init.constant_(layer.weight, value)
        ...     average.update_parameters(layer)
        >>> average.module.weight
        Parameter containing:
        tensor([[0.9000]])
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, multi_avg_fn=self.move, use_buffers=True)
        self.requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def move(self, averages: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        """Move averages of one type towards the network's tensors; what counts is copied."""
        decay = min(self.decay, (1 + int(updates)) / (10 + int(updates)))
        for mine, theirs in zip(averages, current, strict=True):
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
    prefix = "average.module."
    saved = [key for key in state if key.startswith("average.")]
    if not wanted:
        for key in saved:
            del state[key]
    elif not saved:
        weights = {key: value for key, value in state.items() if key.startswith("generator.")}
        state |= {prefix + key.removeprefix("generator."): value for key, value in weights.items()}
        state["average.n_averaged"] = torch.tensor(0)
