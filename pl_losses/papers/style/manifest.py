"""What the suite knows of this paper without torch: its panels."""

from pl_losses.core.panels import Section, lines, pictures

STYLE_TRANSFER = (
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
)
STYLE_REPORT = (
    Section("The image", (pictures("Content, style, and the image", "train/image"),), figure=True),
)
