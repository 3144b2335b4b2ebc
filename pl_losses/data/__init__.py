"""LightningDataModules and the in-memory batched loader, loaded on first use."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.data.amat import Amat as Amat
    from pl_losses.data.bag_of_words import BagOfWords as BagOfWords
    from pl_losses.data.cifar10 import CIFAR10 as CIFAR10
    from pl_losses.data.co2 import SyntheticCO2 as SyntheticCO2
    from pl_losses.data.digits import Digits as Digits
    from pl_losses.data.image_folders import ImageFolders as ImageFolders
    from pl_losses.data.image_shards import ImageShards as ImageShards, write_shards as write_shards
    from pl_losses.data.images import ImageDataModule as ImageDataModule
    from pl_losses.data.lines import Characters as Characters, LineImages as LineImages, Lines as Lines
    from pl_losses.data.loader import BatchLoader as BatchLoader
    from pl_losses.data.mnist import MNIST as MNIST
    from pl_losses.data.module import TensorDataModule as TensorDataModule
    from pl_losses.data.photographs import Photographs as Photographs
    from pl_losses.data.pictures import Pictures as Pictures
    from pl_losses.data.strings import DigitStrings as DigitStrings
    from pl_losses.data.transforms import RandomAffine as RandomAffine
    from pl_losses.data.uci import UCI as UCI
    from pl_losses.data.variations import Variations as Variations

__getattr__, __dir__, __all__ = lazy(__name__)
