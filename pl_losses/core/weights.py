"""Weights from a checkpoint of another model, which fit or are refused in a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from pl_losses.core.sharding import load_whole


def load_start(module: nn.Module, path: str | Path, prefix: str = "") -> None:
    """Load the weights that the argument ``start_from`` names into a module, which may be sharded.

    Args:
        module: What to load into.
        path: A checkpoint's file.
        prefix: What the weights' names may begin with, and those of the module do not.

    Raises:
        ValueError: If it is no checkpoint, or of another architecture.
    """
    try:
        found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except (OSError, EOFError, KeyError, RuntimeError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"Expected `start_from` to be a checkpoint but of {path} got"
            f" {type(error).__name__}: {reason:.100}"
        ) from None
    weights = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    refuse_other_weights(module, weights, "start_from")
    load_whole(module, weights)


def refuse_other_weights(model: nn.Module, weights: Mapping[str, object], argument: str) -> None:
    """Name the first weight of a checkpoint that does not fit the model, instead of all of them.

    Args:
        model: The model to load into.
        weights: Weights by name; none to check nothing.
        argument: The argument that named the checkpoint.

    Raises:
        ValueError: If a name or a shape differs.
    """
    if not weights:
        return
    own = {name: list(getattr(value, "shape", ())) for name, value in model.state_dict().items()}
    found = {name: list(getattr(value, "shape", ())) for name, value in weights.items()}
    for name in (*own, *found):
        if own.get(name) != found.get(name):
            raise ValueError(
                f"Expected `{argument}` to be a checkpoint of the same architecture but of {name!r} the model"
                f" has {own.get(name, 'none')} and the checkpoint {found.get(name, 'none')}"
            )
