"""Checks of the arguments of lattices."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import check_integers, check_real


def floating(name: str, tensor: Tensor) -> Tensor:
    """Convert a tensor to float32 at least; raise a TypeError if it is not floating point."""
    check_real(name, tensor)
    return at_least_float32(tensor)


def integers(name: str, tensor: Tensor, device: torch.device) -> Tensor:
    """Convert a tensor to int64; raise a TypeError if it does not hold integers."""
    check_integers(name, tensor)
    return tensor.to(device, torch.long)


def numbers(penalties: Tensor) -> Tensor:
    """Check the samples' least penalties, or their scores, [B]: with NaN no path is the best."""
    if wrong := penalties.isnan().nonzero().flatten().tolist():
        raise ValueError(f"Expected `penalties` to be numbers but those of samples {wrong} are NaN")
    return penalties


def within(name: str, tensor: Tensor, low: int, high: int) -> None:
    """Refuse numbers below ``low`` or above ``high``."""
    if tensor.numel():
        least, most = (int(bound) for bound in tensor.aminmax())
        if least < low or most > high:
            raise ValueError(f"Expected `{name}` in [{low}, {high}] but got values from {least} to {most}")


def check_lengths(
    name: str, lengths: Tensor | None, *, samples: int, longest: int, device: torch.device
) -> Tensor | None:
    """Check and convert lengths to int64, one per sample and at most ``longest``."""
    if lengths is None:
        return None
    lengths = integers(name, lengths, device)
    if lengths.shape != (samples,):
        raise ValueError(f"Expected `{name}` of shape [B] with B = {samples} but got {list(lengths.shape)}")
    within(name, lengths, 0, longest)
    return lengths


def check_targets(
    targets: Tensor, lengths: Tensor | None, *, samples: int, classes: int | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Check and convert label strings to int64, at least one column wide and 0 beyond their lengths."""
    targets = integers("targets", targets, device)
    if targets.ndim != 2 or len(targets) != samples:
        raise ValueError(
            f"Expected `targets` of shape [B, L] with B = {samples} but got {list(targets.shape)}"
        )
    lengths = check_lengths(
        "target_lengths", lengths, samples=samples, longest=targets.shape[1], device=device
    )
    if targets.shape[1] == 0:
        targets = targets.new_zeros(samples, 1)
        lengths = targets.new_zeros(samples)
    if lengths is not None:
        used = torch.arange(targets.shape[1], device=device) < lengths[:, None]
        targets = targets.where(used, 0)
    within("targets", targets, 0, (classes or 2**62) - 1)
    return targets, lengths
