"""The panels of what all monitors share."""

from pl_losses.core.panels import PROGRESS, Section, chart, lines, pictures, table
from pl_losses.monitoring.charts import CONFUSION

CLASSIFIER_REPORT = (
    Section(
        "What was misread",
        (
            pictures("Confusion matrix", "test/confusion_matrix"),
            pictures("Most confident errors", "test/errors"),
            table("Misread images", "test/errors_table"),
            chart("Right and predicted class", "test/confusion_table", CONFUSION),
        ),
        figure=True,
    ),
)
SPEED_MONITOR = (Section(PROGRESS, (lines("Samples per second", "train/samples_per_second"),)),)
