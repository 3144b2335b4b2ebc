"""What a recipe logs: the ``KEYS`` of its model and callbacks, less what does not apply."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pl_losses.core.trust import KINDS, bases_at, fault, own_packages
from pl_losses.dashboards.panels import Kind
from pl_losses.recipes import Config, UsageError, resolve_value

# What classes log that have no KEYS of their own. A new class says so itself: `KEYS`, key to what it tells.
LOGGED: dict[str, dict[str, str]] = {
    "LightningModule": {"epoch": "how many epochs were complete"},
    "LearningRateMonitor": {"lr-<optimizer>": "learning rate"},
    "Classifier": {
        **{f"{stage}/loss": "the loss, mean over inputs" for stage in ("train", "val", "test")},
        **{f"{stage}/error": "share of wrong predictions, 0 to 1" for stage in ("train", "val", "test")},
        "test/error_low": "lower end of its 95 % binomial interval",
        "test/error_high": "upper end of its 95 % binomial interval",
    },
    "ClassifierReport": {
        "test/confusion_matrix": "picture: shares of each right class by predicted class",
        "test/confusion_table": "table: how often each class is taken for each",
        "test/errors": "picture: the most confident errors",
        "test/rejected_samples": "picture: what was most surely rejected",
    },
    "LeNet5": {
        "test/rejected": "share of patterns that are rejected, 0 to 1",
        "test/error_accepted": "error of the others, 0 to 1",
        "centres/closest": "smallest distance of two RBF centres",
        "centres/farthest": "largest distance of two RBF centres",
    },
    "RectifierNet": {
        f"{stage}/error_top5": "share without the right class in the best five" for stage in ("val", "test")
    },
    "VAE": {
        f"{stage}/{part}": "negative bound and its parts, nats per image"
        for stage in ("train", "val", "test")
        for part in ("loss", "reconstruction", "kl")
    },
    "AMSGradCounterexample": {
        "train/loss": "loss of the step",
        "train/x": "the coordinate",
        "train/regret": "average regret so far",
        "test/loss": "average loss at the end",
        "test/x": "the coordinate at the end",
    },
    "ReadingReport": {
        "test/error_reject": "picture: error over the share of strings rejected",
        "test/error_reject_curve_table": "table: the same as numbers",
        "test/segmentation": "picture: the best paths of the first strings",
        "test/errors": "picture: the most confident errors",
    },
    "StackedDenoisingAutoencoder": {
        "train/reconstruction_<k>": "reconstruction error of layer k on corrupted inputs, nats per example",
        "val/reconstruction_<k>": "the same on held-out images",
        "train/stage": "k while layer k is trained, in fine-tuning the number of layers + 1",
    },
    "AutoencoderReport": {
        "pretrain/filters": "picture: weights of the first layer, over pre-training",
        "pretrain/reconstructions": "picture: corrupted inputs beside their reconstructions",
        "pretrain/samples": "picture: samples with their standard deviation",
        "finetune/filters": "picture: weights of the first layer after fine-tuning",
        "fit/curves": "picture: the criteria of all stages",
    },
    "StyleReport": {"train/image": "picture: the image as it evolves, content and style beside it"},
    "RotationReport": {"test/rotation": "picture: softmax inputs and outputs of a digit as it is turned"},
    "ExtrapolationReport": {"test/extrapolation": "picture: predictions with their standard deviations"},
    "GANReport": {
        "train/samples": "picture: samples of the same noise over training",
        "test/samples": "picture: samples",
        "test/interpolation": "picture: between pairs of noise",
        "test/outputs": "picture: the discriminator's outputs",
        "test/classes": "picture: share of each class",
        "val/real_outputs": "histogram of the discriminator's outputs on real images",
        "val/fake_outputs": "histogram of the same on generated ones",
        "val/real_output_<quantile>": "quantile of the same on real images, such as q50",
        "val/fake_output_<quantile>": "the same on generated ones",
    },
}


@dataclass(frozen=True)
class Part:
    """A class of a recipe with its arguments."""

    cls: type
    arguments: dict[str, Any]

    def is_a(self, name: str) -> bool:
        """Whether the class or a base has this name."""
        return name in (base.__name__ for base in self.cls.__mro__)


@dataclass(frozen=True)
class Recipe:
    """A recipe's classes.

    Attributes:
        name: As it was asked for.
        parts: The model, then the callbacks.
        data: The data.
    """

    name: str
    parts: tuple[Part, ...]
    data: Part

    def argument(self, cls: str, name: str, default: Any) -> Any:
        """An argument of the part that is a ``cls``."""
        return next((part.arguments.get(name, default) for part in self.parts if part.is_a(cls)), default)

    def has(self, cls: str) -> bool:
        """Whether some part is a ``cls``."""
        return any(part.is_a(cls) for part in self.parts)


def rejects(recipe: Recipe) -> bool:
    """Whether LeNet-5 has a rubbish class, by eq. 9."""
    model = [
        recipe.argument("LeNet5", name, first) for name, first in (("criterion", "map"), ("head", "rbf"))
    ]
    return recipe.has("LeNet5") and model == ["map", "rbf"]


def validates(recipe: Recipe) -> bool:
    """Whether there is a validation set, as far as the data's arguments tell."""
    known = inspect.signature(recipe.data.cls).parameters
    sizes = [name for name in ("val_size", "val_share") if name in known]
    return all(recipe.data.arguments.get(name, known[name].default) for name in sizes)


def classifies(recipe: Recipe) -> bool:
    """Whether the targets are classes."""
    return not recipe.has("DropoutRegressor")


MEASURES = [
    f"<name>_{name}"
    for name in (
        *("frechet_distance", "precision", "recall"),
        *(
            f"{of}{name}"
            for of in ("", "real_")
            for name in ("classes_covered", "smallest_class", "largest_class")
        ),
    )
]
# Which keys are only logged under a condition: class and key to the condition.
WHEN: dict[tuple[str, str], Callable[[Recipe], bool]] = {
    **{("LeNet5", f"test/{name}"): rejects for name in ("rejected", "error_accepted")},
    **{
        ("LeNet5", f"centres/{name}"): lambda recipe: (
            recipe.argument("LeNet5", "head", "rbf") == "rbf"
            and recipe.argument("LeNet5", "centres", "fixed") != "fixed"
        )
        for name in ("closest", "farthest")
    },
    **{
        ("RectifierNet", f"{stage}/error_top5"): lambda recipe: (
            recipe.argument("RectifierNet", "num_classes", 10) > 5
        )
        for stage in ("val", "test")
    },
    ("ClassifierReport", "test/rejected_samples"): lambda recipe: rejects(recipe) and _shows(recipe),
    ("ClassifierReport", "test/errors"): lambda recipe: _shows(recipe) and not recipe.data.is_a("BagOfWords"),
    ("DropoutRegressor", "val/precision"): lambda recipe: (
        recipe.argument("DropoutRegressor", "precision", None) is None
    ),
    ("StyleTransfer", "train/total_variation"): lambda recipe: (
        recipe.argument("StyleTransfer", "tv_weight", 0.0) != 0
    ),
    **{
        ("GANReport", key): lambda recipe: bool(recipe.argument("GANReport", "features", None))
        for key in ("test/classes", *MEASURES)
    },
    **{
        ("GANReport", f"val/{part}_{name}"): validates
        for part in ("real", "fake")
        for name in ("outputs", "output_<quantile>")
    },
    **{
        ("DropoutUncertaintyMonitor", f"<stage>/dropout/{name}"): classifies
        for name in (
            *(
                "predictive_entropy",
                "expected_entropy",
                "mutual_information",
                "variation_ratio",
                "max_probability",
            ),
            *(
                f"{score}{end}"
                for score in ("error", "nll", "brier", "ece")
                for end in ("", "_deterministic")
            ),
            *("reliability", "entropy", "most_uncertain"),
        )
    },
    **{
        ("DropoutUncertaintyMonitor", f"<stage>/dropout/{name}"): lambda recipe: not classifies(recipe)
        for name in (
            *("rmse", "rmse_deterministic", "standard_deviation", "log_likelihood", "calibration_error"),
            *("coverage_50", "coverage_90", "coverage_95", "calibration", "predictions"),
        )
    },
}


def _shows(recipe: Recipe) -> bool:
    return bool(recipe.argument("ClassifierReport", "samples", 32) != 0)


def read_recipe(name: str) -> Recipe:
    """Resolve a recipe and import its classes, which takes torch.

    Raises:
        UsageError: If there is no such recipe, or it names no model.
    """
    config = resolve_value(name)
    if not config.get("model"):
        raise UsageError(f"`{name}` names no model: an overlay has no dashboard of its own")
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    parts = [part(config["model"], "model"), *(part(one, "trainer.callbacks") for one in callbacks)]
    return Recipe(
        name, tuple(parts), part(config["data"], "data") if config.get("data") else Part(object, {})
    )


def part(node: str | Config, kind: str) -> Part:
    """Import the class of a config's node."""
    node = {"class_path": node} if isinstance(node, str) else node
    path, arguments = node["class_path"], node.get("init_args") or {}
    module, _, name = path.rpartition(".")
    if wrong := module and fault(path, bases_at(kind), own_packages([])):
        raise UsageError(f"`{kind}` names `{path}`{wrong}")
    for place in (module,) if module else KINDS[kind]:
        found = getattr(importlib.import_module(place), name, None)
        if isinstance(found, type):
            return Part(found, arguments)
    raise UsageError(f"No class `{path}` for `{kind}`")


def keys_of(recipe: Recipe) -> dict[str, str]:
    """The keys that a recipe logs, or patterns of them, with what they tell."""
    found: dict[str, str] = {}
    for one in recipe.parts:
        for base in reversed(one.cls.__mro__):
            own = {**LOGGED.get(base.__name__, {}), **vars(base).get("KEYS", {})}
            for key, about in own.items():
                applies = WHEN.get((base.__name__, key))
                if applies is None or applies(recipe):
                    found[key] = about
    return found


def kind_of(about: str) -> Kind:
    """What is logged under a key, told from its description."""
    first = about.partition(":")[0].partition(",")[0].partition(" ")[0].lower()
    return {"picture": "pictures", "image": "pictures", "histogram": "histogram", "table": "table"}.get(
        first, "lines"
    )  # type: ignore[return-value]
