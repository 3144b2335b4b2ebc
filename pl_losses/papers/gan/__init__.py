"""Paszke et al. 2019, PyTorch: a custom layer, a full model, and the training of a GAN."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.gan.basic import FullBasicModel as FullBasicModel
    from pl_losses.papers.gan.layers import LinearLayer as LinearLayer
    from pl_losses.papers.gan.losses import (
        discriminator_loss as discriminator_loss,
        generator_loss as generator_loss,
    )
    from pl_losses.papers.gan.module import GAN as GAN
    from pl_losses.papers.gan.quality import (
        frechet_distance as frechet_distance,
        precision_recall as precision_recall,
    )
    from pl_losses.papers.gan.report import GANReport as GANReport
    from pl_losses.strategies import DDPPerModule as DDPPerModule, step_uncounted as step_uncounted

__getattr__, __dir__, __all__ = lazy(__name__)
