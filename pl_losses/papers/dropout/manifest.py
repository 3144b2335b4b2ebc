"""What the suite knows of this paper without torch: its panels, and what is reproduced."""

from pl_losses.core.manifest import LOSS
from pl_losses.core.manifests import Reproduced, recipe_scores
from pl_losses.core.panels import Section, bars, lines, pictures, reproduction, table

HEADLINE = "rmse"  # The regressor's.
CLASSIFIER = (
    Section(
        "Test",
        (
            bars("Error: weight averaging, and mean of the passes", "test/error", "test/mc_error"),
            bars("Mean of the passes: NLL, Brier, ECE", "test/mc_nll", "test/mc_brier", "test/mc_ece"),
            bars(
                "Uncertainty: entropies and mutual information, nats",
                *(
                    f"test/mc_{name}"
                    for name in ("predictive_entropy", "expected_entropy", "mutual_information")
                ),
            ),
            bars("Agreement", "test/mc_variation_ratio", "test/mc_max_probability"),
        ),
    ),
)
REGRESSOR = (
    Section("Training", (LOSS,)),
    Section(
        "Test (Table 1)",
        (
            lines("RMSE, and that of weight averaging", "<stage>/<rmse|rmse_deterministic>"),
            lines("Log-likelihood, nats", "<stage>/log_likelihood"),
            lines("Precision tau that was chosen", "val/precision"),
            bars("Share of targets within 50, 90, 95 %", *(f"test/coverage_{n}" for n in (50, 90, 95))),
            bars(
                "Calibration error, and standard deviation",
                "test/calibration_error",
                "test/standard_deviation",
            ),
        ),
    ),
)
UNCERTAINTY_MONITOR = (
    Section(
        "Uncertainty (Gal and Ghahramani)",
        (
            pictures("Reliability diagram", "<stage>/dropout/reliability"),
            pictures("Entropy of right and wrong predictions", "<stage>/dropout/entropy"),
            pictures("Most uncertain inputs", "<stage>/dropout/most_uncertain"),
            table("Most uncertain inputs, one by one", "<stage>/dropout/most_uncertain_table"),
            pictures("Calibration of the intervals", "<stage>/dropout/calibration"),
            pictures("Predictions over targets", "<stage>/dropout/predictions"),
        ),
        figure=True,
    ),
    Section(
        "Passes with dropout",
        (
            lines("Error: passes, and deterministic", "<stage>/dropout/<error|error_deterministic>"),
            lines("NLL, nats", "<stage>/dropout/<nll|nll_deterministic>"),
            lines("Brier score", "<stage>/dropout/<brier|brier_deterministic>"),
            lines("Expected calibration error", "<stage>/dropout/<ece|ece_deterministic>"),
            lines("Entropies, nats", "<stage>/dropout/<predictive_entropy|expected_entropy>"),
            lines("Mutual information (BALD), nats", "<stage>/dropout/mutual_information"),
            lines("Agreement", "<stage>/dropout/<variation_ratio|max_probability>"),
            lines("RMSE: passes, and deterministic", "<stage>/dropout/<rmse|rmse_deterministic>"),
            lines("Standard deviation", "<stage>/dropout/standard_deviation"),
            lines("Log-likelihood, nats", "<stage>/dropout/log_likelihood"),
            lines(
                "Coverage of the 50, 90, 95 % intervals",
                "<stage>/dropout/<coverage_50|coverage_90|coverage_95>",
            ),
            lines("Calibration error", "<stage>/dropout/calibration_error"),
            lines("Number of inputs", "<stage>/dropout/inputs"),
        ),
    ),
)
REGRESSION_REPORT = (
    Section(
        "Predictions with their uncertainty (section 5.3)",
        (
            table("Beside Table 1", "test/published"),
            pictures("Predictions over targets", "test/predictions"),
            pictures("Errors over the predictive standard deviation", "test/error_by_deviation"),
            pictures("Calibration of the intervals", "test/calibration"),
        ),
        figure=True,
    ),
)
EXTRAPOLATION_REPORT = (
    Section(
        "Fig. 2: away from the data",
        (pictures("Mean and standard deviations", "test/extrapolation"),),
        figure=True,
    ),
)
ROTATION_REPORT = (
    Section(
        "Fig. 4: a digit as it is turned",
        (pictures("Softmax inputs and outputs", "test/rotation"),),
        figure=True,
    ),
)
TABLE1 = Reproduced(
    "dropout/table1",
    "pl_losses.papers.dropout.table1.experiment.reproduce",
    minutes=129,
    needs="the UCI sets",
    quick="--sets yacht --columns paper --splits 2 --samples 20 --repeats 1 --epochs_scale 0.02",
    panels=(
        Section(
            "Table 1: RMSE and log-likelihood beside the published ones",
            (
                pictures("All data sets", "dropout/table1/picture"),
                table("Means and standard errors", "dropout/table1"),
            ),
            figure=True,
        ),
    ),
)
RECIPES = recipe_scores(
    "dropout",
    ["dropout/uci"],
    ["test/rmse", "test/log_likelihood"],
    published={"dropout/uci": 2.2732381},
    notes={"dropout/uci": "On the first split of Boston, from the authors' logs."},
    minutes=3,
    needs="the UCI sets",
)
SAMPLES = Reproduced(
    "dropout/samples",
    "pl_losses.papers.dropout.table1.over_samples.reproduce",
    panels=reproduction(
        "RMSE and log-likelihood over the number of passes", "dropout/samples", "over_samples"
    ),
    minutes=1,
    needs="the UCI sets",
    quick="--sets yacht --samples [1,10] --splits 2 --repeats 1 --epochs_scale 0.02",
)
