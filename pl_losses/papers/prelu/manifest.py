"""What the suite knows of this paper without torch: its panels, and what is reproduced."""

from pl_losses.core.manifests import Reproduced, rates, recipe_scores
from pl_losses.core.panels import Section, bars, histogram, lines, pictures, reproduction


def layers(title: str, statistic: str) -> tuple[str, str]:
    """Return title and keys of a statistic of the slopes of each layer."""
    return title, f"prelu/<layer>/{statistic}"


TOP5 = ("test/error_top5_low", "test/error_top5", "test/error_top5_high")
RECTIFIER_NET = (
    Section("Training", (lines("Top-5 error, share of all", "<stage>/error_top5"),)),
    Section("Test", (bars("Test top-5 error with its 95 % interval", *TOP5),)),
)
IMAGENET_REPORT = (
    Section(
        "Test errors (He et al., Tables 2 to 4)",
        (pictures("Beside the published ones", "test/published"),),
        figure=True,
    ),
)
SIGNAL_REPORT = (
    Section(
        "Signal by depth (He et al., section 2.2)",
        (pictures("Responses and gradients of each layer", "prelu/signal"),),
        figure=True,
    ),
)
SLOPE_MONITOR = (
    Section(
        "Slopes by depth (He et al., Table 1)",
        (
            pictures("Final slopes by depth", "prelu/final_slopes"),
            pictures("Mean slopes over training", "prelu/heat_map"),
            lines(*layers("Mean slope of each layer", "mean")),
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
            histogram(*layers("Slopes over channels", "slopes")),
        ),
    ),
)
TABLE1 = Reproduced(
    "prelu/table1",
    "pl_losses.papers.prelu.table1.reproduce",
    panels=reproduction("Table 1: the slope of each layer", "prelu/table1", "slopes"),
    minutes=23,
    needs="CIFAR-10",
    quick="--dataset digits --epochs 1 --limit 128 --seeds 1 --width 0.05",
)
FIG2 = Reproduced(
    "prelu/fig2",
    "pl_losses.papers.prelu.convergence.reproduce",
    panels=reproduction("Fig. 2: convergence of 22 layers", "prelu/fig2", "curves"),
    minutes=34,
    needs="MNIST",
    quick="--dataset digits --epochs 1 --validations 2 --limit 128 --seeds 1 --width 0.02",
    preset=(("figure", "fig2"), ("folder", "runs/prelu/fig2")),
    shows="Fig. 2: error of 22 layers over training, from the weights of He and of Xavier.",
)
FIG3 = Reproduced(
    "prelu/fig3",
    "pl_losses.papers.prelu.convergence.reproduce",
    panels=reproduction("Fig. 3: convergence of 30 layers", "prelu/fig3", "curves"),
    minutes=23,
    needs="MNIST",
    quick="--dataset digits --epochs 1 --validations 2 --limit 128 --seeds 1 --width 0.02",
    preset=(("figure", "fig3"), ("folder", "runs/prelu/fig3")),
    shows="Fig. 3: error of 30 layers over training, from the weights of He and of Xavier.",
)
RECIPES = recipe_scores(
    "prelu",
    ["prelu/digits-relu", "prelu/digits-prelu"],
    ["test/error"],
    grids={
        "prelu/digits-relu": rates("model.optimizer.lr", 0.001, 0.003, 0.01, 0.03),
        "prelu/digits-prelu": rates("model.optimizer.lr", 0.001, 0.003, 0.01, 0.03),
    },
    minutes=4,
)
