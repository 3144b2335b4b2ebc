"""Vincent, Larochelle, Lajoie, Bengio and Manzagol 2010: stacked denoising autoencoders."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.sdae.corruption import (
        Corruption as Corruption,
        GaussianNoise as GaussianNoise,
        MaskingNoise as MaskingNoise,
        SaltAndPepper as SaltAndPepper,
    )
    from pl_losses.papers.sdae.denoising import DenoisingAutoencoder as DenoisingAutoencoder
    from pl_losses.papers.sdae.layers import AutoencoderLayer as AutoencoderLayer, DenseLayer as DenseLayer
    from pl_losses.papers.sdae.losses import reconstruction_loss as reconstruction_loss
    from pl_losses.papers.sdae.module import StackedDenoisingAutoencoder as StackedDenoisingAutoencoder

__getattr__, __dir__, __all__ = lazy(__name__)
