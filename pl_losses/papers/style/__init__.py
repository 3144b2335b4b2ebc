"""Gatys, Ecker and Bethge 2016: Image Style Transfer Using Convolutional Neural Networks."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.style.features import VGG19Features as VGG19Features
    from pl_losses.papers.style.losses import (
        content_loss as content_loss,
        gram_matrix as gram_matrix,
        style_loss as style_loss,
        total_variation as total_variation,
    )
    from pl_losses.papers.style.objective import Objective as Objective
    from pl_losses.papers.style.optimizer import MonotoneLBFGS as MonotoneLBFGS
    from pl_losses.papers.style.presets import PRESETS as PRESETS
    from pl_losses.papers.style.tiles import TiledObjective as TiledObjective
    from pl_losses.papers.style.vgg import load_weights as load_weights

__getattr__, __dir__, __all__ = lazy(__name__)
