"""Every loss of the suite by its name."""

from pl_losses.papers.dropout.objective import dropout_objective
from pl_losses.papers.dropout.quantities import mc_log_likelihood
from pl_losses.papers.lenet.losses import map_loss, mle_loss, rbf_penalties

__all__ = ["dropout_objective", "map_loss", "mc_log_likelihood", "mle_loss", "rbf_penalties"]
