"""Vincent, Larochelle, Lajoie, Bengio and Manzagol 2010: stacked denoising autoencoders."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.sdae.corruption import Corruption as Corruption
    from pl_losses.papers.sdae.corruption import GaussianNoise as GaussianNoise
    from pl_losses.papers.sdae.corruption import MaskingNoise as MaskingNoise
    from pl_losses.papers.sdae.corruption import SaltAndPepper as SaltAndPepper
    from pl_losses.papers.sdae.denoising import DenoisingAutoencoder as DenoisingAutoencoder
    from pl_losses.papers.sdae.layers import AutoencoderLayer as AutoencoderLayer
    from pl_losses.papers.sdae.layers import DenseLayer as DenseLayer
    from pl_losses.papers.sdae.losses import reconstruction_loss as reconstruction_loss
    from pl_losses.papers.sdae.module import StackedDenoisingAutoencoder as StackedDenoisingAutoencoder

__getattr__, __dir__ = lazy(
    __name__,
    {
        "AutoencoderLayer": "pl_losses.papers.sdae.layers",
        "Corruption": "pl_losses.papers.sdae.corruption",
        "DenoisingAutoencoder": "pl_losses.papers.sdae.denoising",
        "DenseLayer": "pl_losses.papers.sdae.layers",
        "GaussianNoise": "pl_losses.papers.sdae.corruption",
        "MaskingNoise": "pl_losses.papers.sdae.corruption",
        "SaltAndPepper": "pl_losses.papers.sdae.corruption",
        "StackedDenoisingAutoencoder": "pl_losses.papers.sdae.module",
        "reconstruction_loss": "pl_losses.papers.sdae.losses",
    },
)
__all__ = [
    "AutoencoderLayer",
    "Corruption",
    "DenoisingAutoencoder",
    "DenseLayer",
    "GaussianNoise",
    "MaskingNoise",
    "SaltAndPepper",
    "StackedDenoisingAutoencoder",
    "reconstruction_loss",
]
