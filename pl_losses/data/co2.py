"""A series like the Mauna Loa CO2 record, for pictures of extrapolation. It is synthetic."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from pl_losses.core.validation import check_init, check_integer, check_share
from pl_losses.data.loader import Batch
from pl_losses.data.module import Resident, TensorDataModule


class SyntheticCO2(TensorDataModule):
    r"""A synthetic monthly series that looks like the Mauna Loa record of carbon dioxide.

    It has a rising and accelerating trend, a yearly season of two harmonics, and a little noise:

    .. math:: y(t) &= 315 + 0.9 t + 0.015 t^2 \\
        &+ 2.9 \sin(2 \pi t + 0.4) + 0.8 \sin(4 \pi t - 0.6) + 0.25 e

    Here y is in ppm, t is in years since 1960, and e is drawn from :math:`N(0, 1)`. The months before
    ``until`` are for training. The later months are for the test, in which a model extrapolates. Inputs are
    years [B, 1], targets ppm [B, 1].

    Args:
        start: Year in which the series begins.
        until: Year from which on all months are for the test.
        end: Year in which the series ends.
        val_share: Share of the months before ``until``, drawn by ``seed``, kept for validation.
        batch_size: Training samples per step and rank.
        eval_batch_size: Samples per step and rank in evaluation. Default: 1000, or ``batch_size`` if that is
            larger.
        seed: Seed of the noise, the validation months and the order.
        resident: Where the series lies, see :class:`~pl_losses.data.module.TensorDataModule`.

    Raises:
        TypeError: If a year is no integer.
        ValueError: If an argument is out of range.

    Example:
        >>> data = SyntheticCO2()
        >>> data.setup()
        >>> {split: list(years.shape) for split, (years, _) in data.tensors.items()}
        {'train': [60, 1], 'test': [96, 1]}
    """

    input_shape = (1,)

    def __init__(
        self,
        *,
        start: int = 1967,
        until: int = 1972,
        end: int = 1980,
        val_share: float = 0.0,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        seed: int = 0,
        resident: Resident = "auto",
    ) -> None:
        check_init(locals())
        check_integer("start", start, 1000, most=9000)
        check_integer("until", until, start + 1, most=9000)
        check_integer("end", end, until + 1, most=9000)
        check_share("val_share", val_share)
        super().__init__(batch_size, eval_batch_size=eval_batch_size, seed=seed, resident=resident)
        self.start, self.until, self.end = start, until, end
        self.val_share = val_share

    def load(self, stage: str) -> dict[str, Batch]:
        """Return the months of all splits."""
        generator = torch.Generator().manual_seed(self.seed)
        months = 12 * (self.end - self.start)
        years = self.start + torch.arange(months, dtype=torch.float64) / 12
        noise = torch.randn(months, generator=generator, dtype=torch.float64)
        series = (years.float()[:, None], (co2_like(years) + 0.25 * noise).float()[:, None])
        known = 12 * (self.until - self.start)
        order = torch.randperm(known, generator=generator)
        kept = round(self.val_share * known)
        rows = {"train": order[kept:].sort().values, "test": torch.arange(known, months)}
        if kept:
            rows["val"] = order[:kept].sort().values
        return {split: tuple(values[chosen] for values in series) for split, chosen in rows.items()}


def co2_like(years: Tensor) -> Tensor:
    """Compute the series without its noise: years, of any shape -> ppm.

    >>> co2_like(torch.tensor([1960.0, 1980.0]))
    tensor([315.6776, 339.6776])
    """
    t = years - 1960
    trend = 315 + 0.9 * t + 0.015 * t.square()
    return trend + 2.9 * torch.sin(2 * pi * t + 0.4) + 0.8 * torch.sin(4 * pi * t - 0.6)
