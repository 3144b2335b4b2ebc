"""Gatys, Ecker and Bethge 2016: Image Style Transfer Using Convolutional Neural Networks."""

from pl_losses.papers.style.features import VGG19Features
from pl_losses.papers.style.losses import content_loss, gram_matrix, style_loss, total_variation
from pl_losses.papers.style.objective import Objective
from pl_losses.papers.style.presets import PRESETS
from pl_losses.papers.style.tiles import TiledObjective
from pl_losses.papers.style.vgg import load_weights

__all__ = [
    "PRESETS",
    "Objective",
    "TiledObjective",
    "VGG19Features",
    "content_loss",
    "gram_matrix",
    "load_weights",
    "style_loss",
    "total_variation",
]
