"""What the suite knows of this paper without torch: its panels, and what is reproduced."""

from pl_losses.core.manifests import Reproduced, rates, recipe_scores
from pl_losses.core.panels import Section, histogram, lines, pictures, reproduction

GAN = (
    Section(
        "The two players",
        (
            lines("Losses, nats", "train/<discriminator_loss|generator_loss>", smoothing=0.6),
            lines("Discriminator's mean outputs", "<stage>/<real_output|fake_output>", smoothing=0.6),
            lines("Discriminator's loss on held-out images, nats", "<val|test>/loss"),
        ),
    ),
)
GAN_REPORT = (
    Section(
        "Samples",
        (
            pictures("Samples at the end", "test/samples"),
            pictures("Samples of the same noise over training", "train/samples"),
            pictures("Interpolation", "test/interpolation"),
            pictures("Discriminator's outputs", "test/outputs"),
            pictures("Classes of the samples", "test/classes"),
        ),
        figure=True,
    ),
    Section(
        "Quality of the samples",
        (
            lines("Fréchet distance", "<name>_frechet_distance", log_y=True),
            lines("Precision and recall", "<name>_precision", "<name>_recall"),
            lines("Classes covered", "<name>_classes_covered"),
            lines("Quantiles of the outputs on held-out images", "val/<real|fake>_output_<quantile>"),
            histogram("Outputs on held-out images", "val/<real|fake>_outputs"),
            lines("Rarest and most frequent class", "<name>_smallest_class", "<name>_largest_class"),
        ),
    ),
)
TABLE1 = Reproduced(
    "gan/table1",
    "pl_losses.papers.gan.table1.reproduce",
    panels=reproduction("Table 1: images per second", "gan/table1", "speeds"),
    minutes=7,
    quick="--models AlexNet --image_size 64 --batch_size 2 --steps 1 --repeats 1",
)
RECIPES = recipe_scores(
    "gan",
    ["gan/mnist", "gan/full-basic-model"],
    ["test/lenet_frechet_distance", "test/lenet_precision", "test/lenet_recall", "test/error"],
    grids={
        "gan/mnist": [
            {"model.generator_optimizer.lr": one, "model.discriminator_optimizer.lr": other}
            for one, other in (
                (0.0001, 0.0002),
                (0.0003, 0.0003),
                (0.0003, 0.0006),
                (0.0003, 0.0012),
                (0.001, 0.002),
                (0.003, 0.006),
                (0.01, 0.02),
            )
        ],
        "gan/full-basic-model": rates("model.lr_scheduler.max_lr", 0.02, 0.06, 0.2, 0.6),
    },
    choice={"gan/mnist": {"data.val_size": 10_000, "trainer.check_val_every_n_epoch": 10}},
    minutes=55,
    needs="MNIST",
    small="gan/digits",
)
