"""What the suite knows of this paper without torch: its panels, and what is reproduced."""

from pl_losses.core.manifests import Reproduced
from pl_losses.core.panels import Section, lines, pictures, reproduction

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
MATRIX = Reproduced(
    "style/matrix",
    "pl_losses.papers.style.matrix.reproduce",
    panels=reproduction("Section 3: layers and ratios", "style/matrix", "matrix"),
    minutes=7,
    needs="the weights of VGG-19, which the extra `style` installs",
    quick="--size 48 --steps 1 --ratios [0.001] --depths [1,2]",
)
OPTIMIZERS = Reproduced(
    "style/optimizers",
    "pl_losses.papers.style.optimizers.reproduce",
    panels=reproduction("The same loss by four optimizers", "style/optimizers", "losses"),
    minutes=40,
    needs="the weights of VGG-19, which the extra `style` installs, and five images",
    quick="--pairs [[china,starry-night]] --seeds 1 --stretches [1.0,2.0] --smooths [0.05] --size 48"
    " --evaluations 6",
)
