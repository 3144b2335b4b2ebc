"""Paszke et al. 2019, PyTorch: a custom layer, a full model, and the training of a GAN."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.gan.basic import FullBasicModel as FullBasicModel
    from pl_losses.papers.gan.layers import LinearLayer as LinearLayer
    from pl_losses.papers.gan.losses import discriminator_loss as discriminator_loss
    from pl_losses.papers.gan.losses import generator_loss as generator_loss
    from pl_losses.papers.gan.module import GAN as GAN
    from pl_losses.papers.gan.quality import frechet_distance as frechet_distance
    from pl_losses.papers.gan.quality import precision_recall as precision_recall
    from pl_losses.papers.gan.report import GANReport as GANReport
    from pl_losses.strategies import DDPPerModule as DDPPerModule
    from pl_losses.strategies import step_uncounted as step_uncounted

__getattr__, __dir__ = lazy(
    __name__,
    {
        "DDPPerModule": "pl_losses.strategies",
        "FullBasicModel": "pl_losses.papers.gan.basic",
        "GAN": "pl_losses.papers.gan.module",
        "GANReport": "pl_losses.papers.gan.report",
        "LinearLayer": "pl_losses.papers.gan.layers",
        "discriminator_loss": "pl_losses.papers.gan.losses",
        "frechet_distance": "pl_losses.papers.gan.quality",
        "generator_loss": "pl_losses.papers.gan.losses",
        "precision_recall": "pl_losses.papers.gan.quality",
        "step_uncounted": "pl_losses.strategies",
    },
)
__all__ = [
    "GAN",
    "DDPPerModule",
    "FullBasicModel",
    "GANReport",
    "LinearLayer",
    "discriminator_loss",
    "frechet_distance",
    "generator_loss",
    "precision_recall",
    "step_uncounted",
]
