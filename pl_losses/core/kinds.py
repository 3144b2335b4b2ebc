"""Objects of Lightning by their kind: `lightning` and `pytorch_lightning` have classes of their own each.

So a kind is known by the name of the class or of a base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger


def is_a(one: object, *names: str) -> bool:
    """Return whether an object's class, or a base of it, has one of these names.

    Example:
        >>> is_a(KeyError(), "Exception"), is_a(None, "WandbLogger", "CSVLogger")
        (True, False)
    """
    return any(cls.__name__ in names for cls in type(one).__mro__)


def is_wandb(logger: object) -> TypeGuard[WandbLogger]:
    """Return whether a logger is W&B's."""
    return is_a(logger, "WandbLogger")


def is_tensorboard(logger: object) -> TypeGuard[TensorBoardLogger]:
    """Return whether a logger is TensorBoard's."""
    return is_a(logger, "TensorBoardLogger")


def is_csv(logger: object) -> TypeGuard[CSVLogger]:
    """Return whether a logger writes CSV files."""
    return is_a(logger, "CSVLogger")


def is_mlflow(logger: object) -> TypeGuard[MLFlowLogger]:
    """Return whether a logger is MLflow's."""
    return is_a(logger, "MLFlowLogger")


def is_aim(logger: object) -> TypeGuard[Any]:
    """Return whether a logger is Aim's."""
    return is_a(logger, "AimLogger")
