"""LightningDataModules and the in-memory batched loader, loaded on first use."""

from typing import TYPE_CHECKING

from pl_losses._lazy import lazy

if TYPE_CHECKING:
    from pl_losses.data.digits import Digits as Digits
    from pl_losses.data.images import ImageDataModule as ImageDataModule
    from pl_losses.data.loader import BatchLoader as BatchLoader
    from pl_losses.data.mnist import MNIST as MNIST
    from pl_losses.data.module import TensorDataModule as TensorDataModule
    from pl_losses.data.transforms import RandomAffine as RandomAffine

__getattr__, __dir__ = lazy(
    __name__,
    {
        "BatchLoader": "pl_losses.data.loader",
        "Digits": "pl_losses.data.digits",
        "ImageDataModule": "pl_losses.data.images",
        "MNIST": "pl_losses.data.mnist",
        "RandomAffine": "pl_losses.data.transforms",
        "TensorDataModule": "pl_losses.data.module",
    },
)
__all__ = ["MNIST", "BatchLoader", "Digits", "ImageDataModule", "RandomAffine", "TensorDataModule"]
