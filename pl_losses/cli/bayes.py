"""``method: bayes`` of a sweep, by Optuna: the tree-structured Parzen estimator of Bergstra et al. 2011."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pl_losses.core.version import EXTRA
from pl_losses.recipes import UsageError


def check_optuna() -> None:
    """Refuse if Optuna is missing.

    Raises:
        UsageError: If it is.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UsageError(f"`method: bayes` needs Optuna: {EXTRA.format('sweep')}")


def suggest(
    choices: Mapping[str, int], goal: str, seed: int, before: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Return the place of each parameter, in [0, 1], that the trials so far suggest; ten are random.

    Args:
        choices: Number of equally likely values of each parameter; 0 for one that is sought by its share of
            draws, whatever its distribution.
        goal: "minimize" or "maximize".
        seed: Of the random numbers.
        before: Places and metric of each trial.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=goal, sampler=optuna.samplers.TPESampler(seed=seed))
    spaces = {name: space(count) for name, count in choices.items()}
    for trial in before:
        known = trial["metric"] is not None and math.isfinite(trial["metric"])
        study.add_trial(
            optuna.trial.create_trial(
                params=trial["places"],
                distributions=spaces,
                value=trial["metric"] if known else None,
                state=optuna.trial.TrialState.COMPLETE if known else optuna.trial.TrialState.FAIL,
            )
        )
    return dict(study.ask(spaces).params)


def space(count: int) -> Any:
    """Return Optuna's space of the places of a parameter: the middle of each value's share, or all."""
    import optuna

    if count:
        return optuna.distributions.CategoricalDistribution([(one + 0.5) / count for one in range(count)])
    return optuna.distributions.FloatDistribution(0.0, 1.0)
