"""Hyper-parameters as plain data, so that ``torch.load(weights_only=True)`` reads every checkpoint."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities.parsing import collect_init_args

from pl_losses.core.compat import of_lightning

_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.Tensor,
    torch.dtype,
    torch.device,
    torch.Size,
)


def is_plain(value: Any) -> bool:
    """Return whether a value is data that ``weights_only=True`` loads.

    >>> is_plain({"widths": (6, 16)}), is_plain(torch.optim.Adam)
    (True, False)
    """
    if type(value) in (list, tuple, set):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    return type(value) in _PLAIN


def save_plain_hyperparameters(module: LightningModule | LightningDataModule, *, logger: bool = True) -> None:
    """Save the constructor's arguments as ``save_hyperparameters`` does, less what is not plain data.

    Call it from ``__init__``. On the command line Lightning has the arguments as they were written,
    an optimizer as its ``class_path`` and ``init_args``, and nothing needs to be left out. From Python a
    callable is left out: ``load_from_checkpoint`` then uses the default, or the one that is passed to it.
    A path is saved as text.

    Args:
        module: The module whose ``__init__`` is running.
        logger: Whether the arguments also go to the logger.
    """
    frame = inspect.currentframe()
    caller = frame.f_back if frame else None
    ignore: list[str] = []
    paths: dict[str, str] = {}
    if not of_lightning.parses_arguments() and caller is not None:
        levels = collect_init_args(caller, [], classes=(HyperparametersMixin,))
        given = {name: value for level in levels for name, value in level.items()}
        ignore = sorted({name for level in levels for name, value in level.items() if not is_plain(value)})
        paths = {name: str(given[name]) for name in ignore if isinstance(given[name], Path)}
    module.save_hyperparameters(ignore=ignore, frame=caller, logger=logger)
    if paths:
        module.save_hyperparameters(paths, logger=logger)
