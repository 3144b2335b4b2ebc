"""Gal and Ghahramani 2016, Dropout as a Bayesian approximation."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.dropout.metrics import ClassificationScores as ClassificationScores
    from pl_losses.papers.dropout.metrics import ClassificationUncertainty as ClassificationUncertainty
    from pl_losses.papers.dropout.metrics import RegressionScores as RegressionScores
    from pl_losses.papers.dropout.monitor import DropoutUncertaintyMonitor as DropoutUncertaintyMonitor
    from pl_losses.papers.dropout.objective import dropout_objective as dropout_objective
    from pl_losses.papers.dropout.objective import precision_of as precision_of
    from pl_losses.papers.dropout.objective import weight_decay_of as weight_decay_of
    from pl_losses.papers.dropout.sampling.sampling import mc_samples as mc_samples
    from pl_losses.papers.dropout.uncertainty import expected_entropy as expected_entropy
    from pl_losses.papers.dropout.uncertainty import max_probability as max_probability
    from pl_losses.papers.dropout.uncertainty import mc_log_likelihood as mc_log_likelihood
    from pl_losses.papers.dropout.uncertainty import mutual_information as mutual_information
    from pl_losses.papers.dropout.uncertainty import predictive_entropy as predictive_entropy
    from pl_losses.papers.dropout.uncertainty import predictive_moments as predictive_moments
    from pl_losses.papers.dropout.uncertainty import variation_ratio as variation_ratio

__getattr__, __dir__ = lazy(
    __name__,
    {
        "ClassificationScores": "pl_losses.papers.dropout.metrics",
        "ClassificationUncertainty": "pl_losses.papers.dropout.metrics",
        "DropoutUncertaintyMonitor": "pl_losses.papers.dropout.monitor",
        "RegressionScores": "pl_losses.papers.dropout.metrics",
        "dropout_objective": "pl_losses.papers.dropout.objective",
        "expected_entropy": "pl_losses.papers.dropout.uncertainty",
        "max_probability": "pl_losses.papers.dropout.uncertainty",
        "mc_log_likelihood": "pl_losses.papers.dropout.uncertainty",
        "mc_samples": "pl_losses.papers.dropout.sampling.sampling",
        "mutual_information": "pl_losses.papers.dropout.uncertainty",
        "precision_of": "pl_losses.papers.dropout.objective",
        "predictive_entropy": "pl_losses.papers.dropout.uncertainty",
        "predictive_moments": "pl_losses.papers.dropout.uncertainty",
        "variation_ratio": "pl_losses.papers.dropout.uncertainty",
        "weight_decay_of": "pl_losses.papers.dropout.objective",
    },
)
__all__ = [
    "ClassificationScores",
    "ClassificationUncertainty",
    "DropoutUncertaintyMonitor",
    "RegressionScores",
    "dropout_objective",
    "expected_entropy",
    "max_probability",
    "mc_log_likelihood",
    "mc_samples",
    "mutual_information",
    "precision_of",
    "predictive_entropy",
    "predictive_moments",
    "variation_ratio",
    "weight_decay_of",
]
