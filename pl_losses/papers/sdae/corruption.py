"""Vincent et al. 2010, sections 3.3 and 3.4: corruptions of a denoising autoencoder's inputs.

A corruption is drawn anew at every presentation, and the elements that it leaves are not rescaled: dropout,
which divides them by 1 - p, is not masking noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from pl_losses.core.rng import ROWS
from pl_losses.core.validation import check_integer, check_not_negative, check_real, typed

Mode = Literal["exact", "bernoulli"]


class Corruption(ABC):
    """Base of the corruptions: override :meth:`draw` and :meth:`apply`.

    Attributes:
        subset: Whether only a subset of the elements is touched, so that they can be emphasised.
    """

    subset = True

    @abstractmethod
    def draw(
        self, shape: tuple[int, int], like: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        """Draw random tensors for rows of elements.

        Args:
            shape: Number of rows, and of elements in each.
            like: Tensor whose device and type to use.
            generator: Source of the random numbers, on the same device.

        Returns:
            A tuple of tensors with the rows as first dimension.
        """

    @abstractmethod
    def apply(self, clean: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Corrupt clean elements by what was drawn; return them and which are touched, [B, D] both."""

    @typed
    def __call__(
        self, clean: Tensor, generator: torch.Generator | None = None, rank: int = 0, ranks: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Corrupt a batch.

        Args:
            clean: [B, ...], of a floating point type.
            generator: Source of the noise, on the same device; default: torch's own.
            rank: Number among ``ranks`` that share a batch: this one has every ``ranks``-th sample from it
                on.
            ranks: Number of ranks; with the same generator everywhere, their noise is that of the whole
                batch.

        Returns:
            The corrupted batch, and which elements are touched (bool), both [B, ...].

        Raises:
            TypeError: If ``clean`` is not of a floating point type.
            ValueError: If ``clean`` is a single example without the dimension of the batch.
        """
        check_real("clean", clean)
        if clean.ndim < 2:
            raise ValueError(f"Expected `clean` of shape [B, ...] but got {list(clean.shape)}")
        check_integer("ranks", ranks, 1)
        check_integer("rank", rank, 0, most=ranks - 1)
        rows = clean.flatten(1) if clean.ndim != 2 else clean
        count = -(-len(rows) * ranks // ROWS) * ROWS
        drawn = self.draw((count, rows.shape[1]), rows, generator)
        corrupted, touched = self.apply(rows, *(part[rank::ranks][: len(rows)] for part in drawn))
        return corrupted.view_as(clean), touched.view_as(clean)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"


class _SubsetCorruption(Corruption):
    @typed
    def __init__(self, fraction: float = 0.25, mode: Mode = "exact") -> None:
        if not 0 <= fraction <= 1:
            raise ValueError(f"Expected `fraction` in [0, 1] but got {fraction}")
        self.fraction, self.mode = fraction, mode

    def choose(self, keys: Tensor) -> Tensor:
        """Choose the touched elements by uniform random keys: [B, D] -> bool [B, D]."""
        if self.mode == "bernoulli":
            return keys < self.fraction
        count = round(self.fraction * keys.shape[1])
        touched = torch.zeros_like(keys, dtype=torch.bool)
        return touched.scatter_(1, keys.topk(count, dim=1, sorted=False).indices, True)


class MaskingNoise(_SubsetCorruption):
    """Sets a fraction nu of the elements of each example to 0.

    Args:
        fraction: nu.
        mode: "exact" touches round(nu d) of each example's d elements; "bernoulli" each with probability nu,
            which is faster.

    Raises:
        ValueError: If an argument is out of range or none of its choices.

    Example:
        >>> corrupted, touched = MaskingNoise(0.25)(torch.ones(2, 8))
        >>> corrupted.sum(dim=1), touched.sum(dim=1)
        (tensor([6., 6.]), tensor([2, 2]))
    """

    def draw(
        self, shape: tuple[int, int], like: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        """Draw uniform keys."""
        return (torch.rand(shape, generator=generator, device=like.device),)

    def apply(self, clean: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Set touched elements to 0."""
        touched = self.choose(drawn[0])
        return clean * ~touched, touched  # masked_fill takes twice as long on a CPU.


class SaltAndPepper(_SubsetCorruption):
    """Sets a fraction nu of the elements of each example to the least or the largest value, by a fair coin.

    An element that had this value before counts as touched too.

    Args:
        fraction: nu.
        mode: See :class:`MaskingNoise`.
        low: The least value.
        high: The largest value.

    Raises:
        ValueError: If an argument is out of range or none of its choices.

    Example:
        >>> corrupted, touched = SaltAndPepper(0.5)(torch.full((3, 8), 0.5))
        >>> touched.sum(dim=1), sorted(set(corrupted.flatten().tolist()))
        (tensor([4, 4, 4]), [0.0, 0.5, 1.0])
    """

    @typed
    def __init__(
        self, fraction: float = 0.25, mode: Mode = "exact", *, low: float = 0.0, high: float = 1.0
    ) -> None:
        super().__init__(fraction, mode)
        if not low < high:
            raise ValueError(f"Expected `low` to be less than `high` but got {low} and {high}")
        self.low, self.high = low, high

    def draw(
        self, shape: tuple[int, int], like: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        """Draw uniform keys and coins."""
        return tuple(torch.rand((2, *shape), generator=generator, device=like.device).unbind())

    def apply(self, clean: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Set touched elements to salt or pepper."""
        touched = self.choose(drawn[0])
        salt = torch.where(drawn[1] < 0.5, self.high, self.low).to(clean.dtype)
        return torch.where(touched, salt, clean), touched


class GaussianNoise(Corruption):
    r"""Adds :math:`N(0, \sigma^2)` to each element. All elements count as touched.

    Args:
        sigma: Standard deviation.

    Raises:
        ValueError: If ``sigma`` is negative or not finite.

    Example:
        >>> corrupted, touched = GaussianNoise(0.1)(torch.zeros(2, 3))
        >>> corrupted.shape, touched.all()
        (torch.Size([2, 3]), tensor(True))
    """

    subset = False

    @typed
    def __init__(self, sigma: float = 0.25) -> None:
        check_not_negative(sigma=sigma)
        self.sigma = sigma

    def draw(
        self, shape: tuple[int, int], like: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        """Draw standard normal numbers."""
        return (torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype),)

    def apply(self, clean: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Add the noise."""
        return torch.add(clean, drawn[0], alpha=self.sigma), torch.ones_like(clean, dtype=torch.bool)
