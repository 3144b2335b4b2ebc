"""What the suite knows of this paper without torch: its panels, and what is reproduced."""

from pl_losses.core.manifests import Reproduced, rates, recipe_scores
from pl_losses.core.panels import Section, lines, pictures, reproduction

STACKED = (
    Section(
        "Layer by layer",
        (
            lines("Reconstruction error of each layer, nats", "<stage>/reconstruction_<k>"),
            lines("Stage: a layer's number, then fine-tuning", "train/stage"),
        ),
    ),
)
AUTOENCODER_REPORT = (
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
)
VARIATIONS = Reproduced(
    "sdae/variations",
    "pl_losses.papers.sdae.comparison.reproduce",
    panels=reproduction("Section 6.2: with noise, without, and from random weights", "sdae/variations"),
    minutes=61,
    needs="MNIST",
    quick="--source digits --variations rot-gen --seeds 1 --train_size 64 --val_size 20 --test_size 20"
    " --hidden_size 4 --pretrain_epochs 1 --finetune_epochs 1",
)
LEVELS = Reproduced(
    "sdae/levels",
    "pl_losses.papers.sdae.noise_levels.reproduce",
    panels=reproduction("Section 6.3: noise levels and layers", "sdae/levels", "levels"),
    minutes=19,
    needs="MNIST",
    quick="--levels [0.0,0.25] --layers [1,2] --source digits --seeds 1 --train_size 64 --val_size 20"
    " --test_size 20 --hidden_size 4 --pretrain_epochs 1 --finetune_epochs 1",
)
RECIPES = recipe_scores(
    "sdae",
    ["sdae/mnist"],
    ["test/error"],
    grids={"sdae/mnist": rates("model.lr_scheduler.max_lr", 0.0003, 0.001, 0.003)},
    seeds=3,
    minutes=131,
    needs="MNIST",
    small="sdae/digits",
    published={"sdae/mnist": 1.28},
)
