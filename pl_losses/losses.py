"""Every loss of the suite by its name."""

from pl_losses.papers.dropout.objective import dropout_objective
from pl_losses.papers.dropout.uncertainty import mc_log_likelihood
from pl_losses.papers.gan.losses import discriminator_loss, generator_loss
from pl_losses.papers.gtn.criteria import (
    discriminative_forward_loss,
    discriminative_viterbi_loss,
    forward_loss,
    viterbi_loss,
)
from pl_losses.papers.lenet.losses import map_loss, mle_loss, rbf_penalties
from pl_losses.papers.sdae.losses import reconstruction_loss
from pl_losses.papers.style.losses import content_loss, gram_matrix, style_loss, total_variation

__all__ = [
    "content_loss",
    "discriminative_forward_loss",
    "discriminative_viterbi_loss",
    "discriminator_loss",
    "dropout_objective",
    "forward_loss",
    "generator_loss",
    "gram_matrix",
    "map_loss",
    "mc_log_likelihood",
    "mle_loss",
    "rbf_penalties",
    "reconstruction_loss",
    "style_loss",
    "total_variation",
    "viterbi_loss",
]
