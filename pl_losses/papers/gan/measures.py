"""The figures of real and generated images that a report logs, by their logged names."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from pl_losses.papers.gan.quality import ClassShares, FrechetDistance, PrecisionRecall


class Measures(nn.Module):
    """Collects real and generated images batch by batch, and computes the figures over all ranks.

    Args:
        features: Images [B, C, S, S] -> features [B, F], see :class:`~pl_losses.callbacks.GANReport`.
        metric: Makes one more metric, of images [B, 3, S, S] with pixels in [0, 1].
        example: Images of the size to come.
    """

    def __init__(
        self, features: nn.Module | None, metric: Callable[[], Metric] | None, example: Tensor
    ) -> None:
        super().__init__()
        self.features, self.scores = features, getattr(features, "scores", None)
        self.extra = None if metric is None else metric()
        self.shares: nn.ModuleList | None = None
        if features is not None:
            found = self._features(example)
            self.frechet, self.neighbours = FrechetDistance(found.shape[1]), PrecisionRecall(found.shape[1])
            if callable(self.scores):
                classes = self.scores(found).shape[1]
                self.shares = nn.ModuleList([ClassShares(classes), ClassShares(classes)])
        self.to(example.device)

    @property
    def name(self) -> str:
        """The name of the features."""
        return feature_name(self.features)

    @torch.no_grad()
    def update(self, images: Tensor, real: bool) -> None:
        """Add images [B, C, S, S] with pixels in [-1, 1]; B may be 0."""
        if not len(images):
            return
        if self.features is not None:
            found = self._features(images)
            self.frechet.update(found, real=real)
            self.neighbours.update(found, real=real)
            if self.shares is not None and callable(self.scores):
                shares: Any = self.shares[int(not real)]
                shares.update(self.scores(found))
        if self.extra is not None:
            self.extra.update(((images + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1), real=real)

    def metrics(self) -> dict[str, Metric]:
        """Return the metrics that the figures come from, by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Metric)}

    def compute(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """Compute the figures by name, and the share of each class; a collective on several ranks.

        Returns:
            The figures, and, if there are classes, their shares among the real and the generated images,
            [2, K].
        """
        figures: dict[str, Tensor] = {}
        shares = None
        if self.features is not None:
            figures["frechet_distance"] = self.frechet.compute()
            figures["precision"], figures["recall"] = self.neighbours.compute()
            if self.shares is not None:
                counted: list[Any] = list(self.shares)
                shares = torch.stack([one.compute() for one in counted])
                figures |= extremes(shares[1])
                figures |= {f"real_{key}": value for key, value in extremes(shares[0]).items()}
        named = {f"{self.name}_{key}": value.float() for key, value in figures.items()}
        if self.extra is not None:
            named[snake_case(type(self.extra).__name__)] = self.extra.compute()
        return named, shares

    def _features(self, images: Tensor) -> Tensor:
        assert self.features is not None
        found: Tensor = self.features(images)
        return found.flatten(1)


def feature_name(features: object) -> str:
    """Return the ``name`` of a module, or that of its class."""
    return str(getattr(features, "name", snake_case(type(features).__name__)))


def snake_case(name: str) -> str:
    """Convert a class's name to a key.

    >>> snake_case("FrechetInceptionDistance")
    'frechet_inception_distance'
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def extremes(shares: Tensor) -> dict[str, Tensor]:
    """Count the classes with half of an even share or more, and find the extreme shares.

    >>> {key: float(value) for key, value in extremes(torch.tensor([0.0, 0.25, 0.75])).items()}
    {'classes_covered': 2.0, 'smallest_class': 0.0, 'largest_class': 0.75}
    """
    covered = (shares >= 0.5 / len(shares)).sum()
    return {"classes_covered": covered, "smallest_class": shares.min(), "largest_class": shares.max()}
