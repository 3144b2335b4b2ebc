"""The dashboards of the papers: for each class, the sections that it adds to a recipe that uses it.

A class without an entry gets panels made of its ``KEYS``; an entry says what comes first and together.
"""

from __future__ import annotations

from pl_losses.dashboards.panels import PROGRESS, Section, bars, chart, histogram, lines, pictures, table
from pl_losses.monitoring.charts import CONFUSION, LINES

LOSS = lines("Loss", "<stage>/loss", smoothing=0.6)
ERROR = lines("Error, share of all", "<stage>/error")
HOW_FAR = Section(PROGRESS, (lines("Epochs", "epoch"),))
RATE = Section("Training", (lines("Learning rate", "lr-<optimizer>"),))
ERRORS = pictures("Most confident errors", "test/errors")
REJECTED = pictures("Rejected samples", "test/rejected_samples")
TEST_ERROR = bars("Test error with its 95 % interval", "test/error_low", "test/error", "test/error_high")


def layers(title: str, statistic: str) -> tuple[str, str]:
    """Title and keys of a statistic of the slopes of each layer."""
    return title, f"prelu/<layer>/{statistic}"


SECTIONS: dict[str, tuple[Section, ...]] = {
    "Classifier": (Section("Training", (LOSS, ERROR)), Section("Test", (TEST_ERROR,))),
    "LightningModule": (HOW_FAR,),
    "LearningRateMonitor": (RATE,),
    "LeNet5": (
        Section("What was misread (Fig. 8)", (ERRORS, REJECTED), figure=True),
        Section(
            "Rejection and centres (section II)",
            (
                lines("Rejected share, and error of the rest", "test/<rejected|error_accepted>"),
                lines("Distances of the RBF centres", "centres/<closest|farthest>"),
            ),
        ),
    ),
    "RectifierNet": (Section("Training", (lines("Top-5 error, share of all", "<stage>/error_top5"),)),),
    "ClassifierReport": (
        Section(
            "What was misread",
            (
                pictures("Confusion matrix", "test/confusion_matrix"),
                ERRORS,
                REJECTED,
                chart("Right and predicted class", "test/confusion_table", CONFUSION),
            ),
        ),
    ),
    "StringReader": (
        Section(
            "Training", (LOSS, lines("Errors: strings, and characters", "<stage>/<error|character_error>"))
        ),
        Section(
            "Test",
            (
                bars(
                    "Error of strings with its 95 % interval",
                    "test/error_low",
                    "test/error",
                    "test/error_high",
                ),
                bars(
                    "Error of characters with its 95 % interval",
                    *(f"test/character_error{end}" for end in ("_low", "", "_high")),
                ),
                lines("Rejected share, and error of the rest", "test/<rejected|error_accepted>"),
                lines("Strings that no path spells, share", "<stage>/infeasible"),
            ),
        ),
    ),
    "ReadingReport": (
        Section(
            "The error-reject curve and the segmentations",
            (
                pictures("Error over rejection", "test/error_reject"),
                pictures("Best segmentations", "test/segmentation"),
                ERRORS,
                chart("Error over rejection, to compare", "test/error_reject_curve_table", LINES),
            ),
            figure=True,
        ),
    ),
    "PReLUSlopeMonitor": (
        Section(
            "Slopes by depth (He et al., Table 1)",
            (
                pictures("Final slopes by depth", "prelu/final_slopes"),
                pictures("Mean slopes over training", "prelu/heat_map"),
                lines(*layers("Mean slope of each layer", "mean")),
                histogram(*layers("Slopes over channels", "slopes")),
            ),
            figure=True,
        ),
        Section(
            "Slopes",
            (
                lines("All slopes: smallest, mean, largest", "prelu/<min|mean|max>"),
                lines("Share below 0, and above 1", "prelu/<below_0|above_1>"),
                lines(*layers("Smallest and largest slope of each layer", "<min|max>")),
                lines(*layers("Quantiles of each layer: 5 %, 50 %, 95 %", "<q05|median|q95>")),
                lines(*layers("Share below 0, and above 1, of each layer", "<below_0|above_1>")),
                lines(*layers("Norm of the slopes' gradient", "grad_norm"), log_y=True),
                lines(*layers("Norm of the slopes' momentum", "momentum_norm"), log_y=True),
            ),
        ),
    ),
    "AdamBiasCorrectionMonitor": (
        Section(
            "Bias correction (Kingma and Ba, section 3)",
            (
                pictures("Effective and largest steps beside the closed forms", "adam/bias_correction"),
                lines("Effective step, and the one measured", "adam/<group>/<effective_step|measured_step>"),
                lines("1 - beta^t", "adam/<group>/<bias_correction1|bias_correction2>"),
                lines("Largest step over alpha", "adam/<group>/max_update"),
                lines(
                    "Largest step over its bounds", "adam/<group>/<share_of_paper_bound|share_of_tight_bound>"
                ),
            ),
            figure=True,
        ),
        Section(
            "Adam's moments and steps",
            (
                lines("Learning rate, and the effective one", "adam/<group>/<lr|effective_lr>"),
                lines("First moment, norm", "adam/<group>/<m_norm|m_hat_norm>", log_y=True),
                lines("Second moment, norm", "adam/<group>/<v_norm|v_hat_norm>", log_y=True),
                lines("Step, norm and root mean square", "adam/<group>/<update_norm|update_rms>", log_y=True),
                lines("Step over weights", "adam/<group>/update_to_weight", log_y=True),
                lines("Signal to noise", "adam/<group>/snr", log_y=True),
                lines("Shares: large steps, tiny v", "adam/<group>/<trust_region_share|eps_share>"),
                lines("Step counts", "adam/<group>/<step_min|step_max>"),
                lines("Coordinates stepped, steps skipped", "adam/<group>/<coordinates|skipped_steps>"),
            ),
        ),
    ),
    "VAE": (
        Section(
            "Training",
            (
                LOSS,
                lines("Reconstruction, nats", "<stage>/reconstruction", smoothing=0.6),
                lines("KL, nats", "<stage>/kl"),
            ),
        ),
    ),
    "AMSGradCounterexample": (
        Section(
            "Where Adam goes (Reddi et al.)",
            (lines("x, the best is -1", "<stage>/x"), lines("Average regret", "train/regret"), LOSS),
            figure=True,
        ),
    ),
    "DropoutClassifier": (
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
    ),
    "RotationReport": (
        Section(
            "Fig. 4: a digit as it is turned",
            (pictures("Softmax inputs and outputs", "test/rotation"),),
            figure=True,
        ),
    ),
    "ExtrapolationReport": (
        Section(
            "Fig. 2: away from the data",
            (pictures("Mean and standard deviations", "test/extrapolation"),),
            figure=True,
        ),
    ),
    "DropoutRegressor": (
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
    ),
    "DropoutUncertaintyMonitor": (
        Section(
            "Uncertainty (Gal and Ghahramani)",
            (
                pictures("Reliability diagram", "<stage>/dropout/reliability"),
                pictures("Entropy of right and wrong predictions", "<stage>/dropout/entropy"),
                pictures("Most uncertain inputs", "<stage>/dropout/most_uncertain"),
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
    ),
    "StackedDenoisingAutoencoder": (
        Section(
            "Layer by layer",
            (
                lines("Reconstruction error of each layer, nats", "<stage>/reconstruction_<k>"),
                lines("Stage: a layer's number, then fine-tuning", "train/stage"),
            ),
        ),
    ),
    "AutoencoderReport": (
        Section(
            "Filters and reconstructions (Vincent et al., Fig. 5 to 7)",
            (
                pictures("Filters of the first layer", "pretrain/filters"),
                pictures("Corrupted inputs and their reconstructions", "pretrain/reconstructions"),
                pictures("Samples and their variability", "pretrain/samples"),
                pictures("Filters after fine-tuning", "finetune/filters"),
                pictures("All stages", "fit/curves"),
            ),
            figure=True,
        ),
    ),
    "StyleTransfer": (
        Section(
            "Losses (eq. 1 to 7)",
            (
                lines("Total loss", "<stage>/loss", log_y=True),
                lines("Content and style loss", "<stage>/<content_loss|style_loss>", log_y=True),
                lines("Content loss of each layer", "train/content_conv<layer>", log_y=True),
                lines("Style loss of each layer", "train/style_conv<layer>", log_y=True),
                lines("Total variation", "train/total_variation"),
                lines("Evaluations of the loss", "train/evaluations"),
            ),
        ),
    ),
    "StyleReport": (
        Section("The image", (pictures("Content, style, and the image", "train/image"),), figure=True),
    ),
    "GAN": (
        Section(
            "The two players",
            (
                lines("Losses, nats", "train/<discriminator_loss|generator_loss>", smoothing=0.6),
                lines("Discriminator's mean outputs", "<stage>/<real_output|fake_output>", smoothing=0.6),
                lines("Discriminator's loss on held-out images, nats", "<val|test>/loss"),
            ),
        ),
    ),
    "GANReport": (
        Section(
            "Samples",
            (
                pictures("Samples of the same noise over training", "train/samples"),
                pictures("Samples at the end", "test/samples"),
                pictures("Interpolation", "test/interpolation"),
                pictures("Discriminator's outputs", "test/outputs"),
                pictures("Classes of the samples", "test/classes"),
            ),
            figure=True,
        ),
        Section(
            "Quality of the samples",
            (
                lines("Fréchet distance", "<name>_frechet_distance", log_y=True),
                lines("Precision and recall", "<name>_precision", "<name>_recall"),
                lines("Classes covered", "<name>_classes_covered"),
                lines("Quantiles of the outputs on held-out images", "val/<real|fake>_output_<quantile>"),
                histogram("Outputs on held-out images", "val/<real|fake>_outputs"),
                lines("Rarest and most frequent class", "<name>_smallest_class", "<name>_largest_class"),
            ),
        ),
    ),
}

# What `pl-losses reproduce` logs as a run of its own.
REPRODUCED: dict[str, tuple[Section, ...]] = {
    "adam/fig4": (
        Section(
            "Fig. 4: with and without bias correction",
            (pictures("The grid", "adam/fig4"), table("Losses", "adam/fig4/losses")),
            figure=True,
        ),
    ),
    "dropout/table1": (
        Section(
            "Table 1: RMSE and log-likelihood beside the published ones",
            (
                pictures("All data sets", "dropout/table1/picture"),
                table("Means and standard errors", "dropout/table1"),
            ),
            figure=True,
        ),
    ),
}
