"""What the suite knows of this paper without torch: its panels, and what is reproduced."""

from pl_losses.core.manifest import LOSS
from pl_losses.core.manifests import Reproduced, rates, recipe_scores
from pl_losses.core.panels import Section, lines, pictures, reproduction, table

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
CURVES = "pl_losses.papers.adam.curves.reproduce"
FIG1 = Reproduced(
    "adam/fig1",
    CURVES,
    panels=reproduction("Fig. 1: logistic regression", "adam/fig1", "curves"),
    minutes=7,
    needs="MNIST",
    quick="--datasets ['digits'] --passes 2 --choice_passes 1 --limit 256 --seeds 2",
    shows="Fig. 1: training loss of logistic regression by five optimizers, on MNIST and a bag of words.",
)
FIG2 = Reproduced(
    "adam/fig2",
    CURVES,
    panels=reproduction("Fig. 2: a network with dropout", "adam/fig2", "curves"),
    minutes=22,
    needs="MNIST",
    quick="--datasets ['digits'] --passes 1 --choice_passes 1 --limit 256 --seeds 1 --width 0.02",
    preset=(("figure", "fig2"), ("folder", "runs/adam/fig2")),
    shows="Fig. 2: training loss of a network with dropout on MNIST, by five optimizers.",
)
FIG3 = Reproduced(
    "adam/fig3",
    CURVES,
    panels=reproduction("Fig. 3: a convolutional network", "adam/fig3", "curves"),
    minutes=46,
    needs="CIFAR-10",
    quick="--datasets ['digits'] --passes 1 --choice_passes 1 --limit 128 --seeds 1 --width 0.05",
    preset=(("figure", "fig3"), ("folder", "runs/adam/fig3")),
    shows="Fig. 3: training loss of a convolutional network on CIFAR-10, by five optimizers.",
)
FIG4 = Reproduced(
    "adam/fig4",
    "pl_losses.papers.adam.fig4.experiment.reproduce",
    minutes=7,
    needs="MNIST",
    quick="--dataset digits --steps 4 --hidden_size 4 --latent_size 2 --log_alpha [-3,-2] --beta2 [0.999]"
    " --seeds 2",
    panels=(
        Section(
            "Fig. 4: with and without bias correction",
            (pictures("The grid", "adam/fig4"), table("Losses", "adam/fig4/losses")),
            figure=True,
        ),
    ),
)
RECIPES = recipe_scores(
    "adam",
    ["adam/cnn", "adam/mlp-dropout", "adam/bow"],
    ["test/error"],
    grids={"adam/bow": rates("model.optimizer.lr", 0.003, 0.01, 0.03, 0.1)},
    choice={"adam/bow": {"data.val_size": 1000}},
    minutes=5,
)
