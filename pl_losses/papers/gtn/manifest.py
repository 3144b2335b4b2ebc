"""What the suite knows of this paper without torch: its panels, and what is reproduced."""

from pl_losses.core.manifest import LOSS
from pl_losses.core.manifests import Reproduced, rates, recipe_scores
from pl_losses.core.panels import Section, bars, chart, lines, pictures, reproduction, table
from pl_losses.monitoring.charts import LINES

STRING_READER = (
    Section("Training", (LOSS, lines("Errors: strings, and characters", "<stage>/<error|character_error>"))),
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
)
READING_REPORT = (
    Section(
        "The error-reject curve and the segmentations",
        (
            pictures("Error over rejection", "test/error_reject"),
            pictures("Best segmentations", "test/segmentation"),
            pictures("Most confident errors", "test/errors"),
            table("What was read", "test/strings_table"),
            chart("Error over rejection, to compare", "test/error_reject_curve_table", LINES),
        ),
        figure=True,
    ),
)
CRITERIA = Reproduced(
    "gtn/criteria",
    "pl_losses.papers.gtn.comparison.reproduce",
    panels=reproduction(
        "Section VI: five ways to train, and what is gained by rejection", "gtn/criteria", "error_reject"
    ),
    minutes=79,
    needs="MNIST",
    quick="--criteria isolated,discriminative_forward --dataset digits --isolated_epochs 1 --string_epochs 1"
    " --strings 16 --eval_strings 16 --seeds 1",
)
CUTS = Reproduced(
    "gtn/cuts",
    "pl_losses.papers.gtn.cut_settings.reproduce",
    panels=reproduction("Strings that cannot be read", "gtn/cuts"),
    minutes=1,
    needs="MNIST",
    quick="--dataset digits --radius [2] --projection_radius [3] --seeds 1",
)
RECIPES = recipe_scores(
    "gtn",
    ["gtn/collapse", "gtn/strings-digits", "gtn/sdnn"],
    ["test/error", "test/loss"],
    grids={
        recipe: rates("model.lr_scheduler.max_lr", 0.001, 0.003, 0.01)
        for recipe in ("gtn/strings-digits", "gtn/sdnn")
    },
    choice={"gtn/sdnn": {"data.val_size": 5000}},
    minutes=28,
    needs="MNIST",
)
