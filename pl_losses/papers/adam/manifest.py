"""What the suite knows of this paper without torch: its panels, and what is reproduced."""

from pl_losses.core.manifest import LOSS
from pl_losses.core.manifests import Reproduced
from pl_losses.core.panels import Section, lines, pictures, table

VAE = (
    Section(
        "Training",
        (
            LOSS,
            lines("Reconstruction, nats", "<stage>/reconstruction", smoothing=0.6),
            lines("KL, nats", "<stage>/kl"),
        ),
    ),
)
PATH = pictures("Average regret and coordinate (Fig. 1)", "train/counterexample")
COUNTEREXAMPLE_REPORT = (Section("Where Adam goes (Reddi et al.)", (PATH,), figure=True),)
AMSGRAD = (
    Section(
        "Where Adam goes (Reddi et al.)",
        (PATH, lines("x, the best is -1", "<stage>/x"), lines("Average regret", "train/regret"), LOSS),
        figure=True,
    ),
)
FIG4 = Reproduced(
    "adam/fig4",
    "pl_losses.papers.adam.fig4.experiment.fig4",
    minutes=2.5,
    needs="MNIST",
    quick="--dataset digits --steps 4 --hidden 4 --latent 2 --log_alpha [-3,-2] --beta2 [0.999]",
    panels=(
        Section(
            "Fig. 4: with and without bias correction",
            (pictures("The grid", "adam/fig4"), table("Losses", "adam/fig4/losses")),
            figure=True,
        ),
    ),
)
