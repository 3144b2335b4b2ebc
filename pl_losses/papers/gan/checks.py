"""Checks of the GAN wing's arguments and data, before work starts."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn

from pl_losses.core.compat import of_lightning
from pl_losses.core.validation import check_number
from pl_losses.strategies import DDPPerModule


def normalisation(mean: Any, std: Any, channels: int) -> None:
    """Refuse a normalisation other than None, or one mean and one positive deviation for each channel.

    Raises:
        ValueError: If it is another.
    """
    if mean is None and std is None:
        return
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, (list, tuple)) or len(values) != channels:
            raise ValueError(
                f"Expected `mean` and `std` with {channels} numbers each (`channels`), or neither, but got"
                f" {name}={values}"
            )
    for value in mean:
        check_number("mean", value, "to be finite numbers")
    for value in std:
        check_number("std", value, "to be positive numbers", lambda deviation: deviation > 0)


def makers(**values: object) -> None:
    """Refuse networks as arguments that must be functions that make them; None is allowed.

    Raises:
        TypeError: If an argument is a module, or cannot be called.
    """
    for name, value in values.items():
        if value is not None and (isinstance(value, nn.Module) or not callable(value)):
            raise TypeError(
                f"Expected `{name}` to be a function that makes a module, such as `lambda: network`, but got"
                f" {value!r:.80}"
            )


def module(name: str, value: object) -> nn.Module:
    """Check that a function made a module, and return it.

    Raises:
        TypeError: If it made anything else.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(f"Expected `{name}` to make a torch.nn.Module but got {value!r:.80}")
    return value


def strategy(used: Strategy) -> None:
    """Refuse DDP around a whole module, which fails with two optimizers.

    Raises:
        ValueError: If the strategy is that.
    """
    if not isinstance(used, DDPStrategy) or isinstance(used, DDPPerModule):
        return
    if not of_lightning.finds_unused(used):
        raise ValueError(
            'Expected `strategy="ddp_per_module"` but got DDP around the whole module, which waits for the'
            " gradients of both networks in every backward pass"
        )


def one_optimizer(trainer: Trainer) -> None:
    """Refuse options of the Trainer that are for modules with one optimizer, and name GAN's own.

    Raises:
        ValueError: If one is set.
    """
    options = {"accumulate_grad_batches": ("accumulate", 1), "gradient_clip_val": ("gradient_clip", None)}
    for name, (own, usual) in options.items():
        if (value := getattr(trainer, name)) != usual:
            raise ValueError(
                f"Expected `{name}` of the Trainer to be {usual} with two optimizers but got {value}: set"
                f" `{own}` of the model to {value} instead"
            )


def same_shape(real: Tensor, fake: Tensor) -> None:
    """Refuse images of another shape than the generator's.

    Raises:
        ValueError: If the shapes differ.
    """
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"Expected images of shape {_batch_shape(fake)} as the generator makes them (`channels`,"
            f" `image_size`) but got {_batch_shape(real)}"
        )


def pixel_range(images: Tensor) -> bool:
    """Refuse pixels outside of [-1, 1].

    Returns:
        Whether no pixel is negative, as in images in [0, 1].

    Raises:
        ValueError: If pixels are out of range.
    """
    low, high = images.min().item(), images.max().item()
    if not (low >= -1.02 and high <= 1.02):
        raise ValueError(
            f"Expected pixels in [-1, 1] but got [{low:.3g}, {high:.3g}]: set `low` and `high` of the"
            " data, or `mean` and `std` of the model"
        )
    return low >= 0


def _batch_shape(images: Tensor) -> str:
    return f"[B, {', '.join(map(str, images.shape[1:]))}]"
