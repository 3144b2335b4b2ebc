"""What the suite knows of this paper without torch: its panels, and what is reproduced."""

from pl_losses.core.manifests import Reproduced, rates, recipe_scores
from pl_losses.core.panels import Section, lines, pictures, reproduction

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
FIG9 = Reproduced(
    "lenet/fig9",
    "pl_losses.papers.lenet.fig9.reproduce",
    panels=reproduction("Fig. 9: test errors beside the published ones", "lenet/fig9"),
    minutes=56,
    needs="MNIST",
    quick="--classifiers 'pairwise linear,k-NN,LeNet-1,SVM poly 4' --dataset digits --epochs 1"
    " --limit 100 --val_size 50 --seeds 1",
)
TRAINING_SIZE = Reproduced(
    "lenet/training-size",
    "pl_losses.papers.lenet.training_size.reproduce",
    panels=reproduction("Fig. 6: test error over the number of images", "lenet/training-size", "sizes"),
    minutes=88,
    needs="MNIST",
    quick="--dataset digits --sizes [50,100] --steps 4 --batch_size 32 --seeds 1",
)
RECIPES = recipe_scores(
    "lenet",
    ["lenet/mnist-distorted", "lenet/digits"],
    ["test/error"],
    grids={
        "lenet/mnist-distorted": rates("model.lr_scheduler.max_lr", 0.001, 0.003, 0.01),
        "lenet/digits": rates("model.lr_scheduler.max_lr", 0.001, 0.003, 0.01, 0.03),
    },
    choice={"lenet/mnist-distorted": {"data.val_size": 10_000}},
    published={"lenet/mnist-distorted": 0.80},
    minutes=23,
    needs="MNIST",
    small="lenet/digits",
)
