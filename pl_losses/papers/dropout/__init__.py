"""Gal and Ghahramani 2016, Dropout as a Bayesian approximation."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.dropout.metrics import (
        ClassificationScores as ClassificationScores,
        ClassificationUncertainty as ClassificationUncertainty,
        RegressionScores as RegressionScores,
    )
    from pl_losses.papers.dropout.monitor import DropoutUncertaintyMonitor as DropoutUncertaintyMonitor
    from pl_losses.papers.dropout.objective import (
        dropout_objective as dropout_objective,
        precision_of as precision_of,
        weight_decay_of as weight_decay_of,
    )
    from pl_losses.papers.dropout.sampling.sampling import mc_samples as mc_samples
    from pl_losses.papers.dropout.uncertainty import (
        expected_entropy as expected_entropy,
        max_probability as max_probability,
        mc_log_likelihood as mc_log_likelihood,
        mutual_information as mutual_information,
        predictive_entropy as predictive_entropy,
        predictive_moments as predictive_moments,
        variation_ratio as variation_ratio,
    )

__getattr__, __dir__, __all__ = lazy(__name__)
