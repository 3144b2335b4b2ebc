"""Every loss of the suite by its name."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.dropout.objective import dropout_objective as dropout_objective
    from pl_losses.papers.dropout.uncertainty import mc_log_likelihood as mc_log_likelihood
    from pl_losses.papers.gan.losses import (
        discriminator_loss as discriminator_loss,
        generator_loss as generator_loss,
    )
    from pl_losses.papers.gtn.criteria import (
        discriminative_forward_loss as discriminative_forward_loss,
        discriminative_viterbi_loss as discriminative_viterbi_loss,
        forward_loss as forward_loss,
        viterbi_loss as viterbi_loss,
    )
    from pl_losses.papers.lenet.losses import (
        map_loss as map_loss,
        mle_loss as mle_loss,
        rbf_penalties as rbf_penalties,
    )
    from pl_losses.papers.sdae.losses import reconstruction_loss as reconstruction_loss
    from pl_losses.papers.style.losses import (
        content_loss as content_loss,
        gram_matrix as gram_matrix,
        style_loss as style_loss,
        total_variation as total_variation,
    )

__getattr__, __dir__, __all__ = lazy(__name__)
