"""What the suite knows of this paper without torch: its panels."""

from pl_losses.core.panels import Section, lines, pictures

LENET5 = (
    Section(
        "What was misread (Fig. 8)",  # Joined with the section of ClassifierReport.
        (
            pictures("Most confident errors", "test/errors"),
            pictures("Rejected samples", "test/rejected_samples"),
        ),
        figure=True,
    ),
    Section(
        "Rejection and centres (section II)",
        (
            lines("Rejected share, and error of the rest", "test/<rejected|error_accepted>"),
            lines("Distances of the RBF centres", "centres/<closest|farthest>"),
        ),
    ),
)
