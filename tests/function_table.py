"""Every public function and constructor with one valid call, and ways to spoil one of its arguments."""

import inspect
import math
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import pl_losses
from pl_losses import callbacks, data, losses
from pl_losses.core.metrics import ErrorRate
from pl_losses.papers import adam, dropout, gan, gtn, prelu, sdae
from pl_losses.papers.adam.bounds import adamax_step_bounds
from pl_losses.papers.dropout.metrics import EntropyHistogram
from pl_losses.papers.gan.quality import FrechetDistance, PrecisionRecall
from pl_losses.papers.gtn.metrics import ErrorReject, StringErrors, count_edits, error_reject_curve
from pl_losses.papers.gtn.segmentation import candidate_cuts, cutting_costs
from pl_losses.papers.lenet.losses import rubbish_posterior
from pl_losses.papers.lenet.optimizer import StochasticDiagonalLM
from pl_losses.papers.prelu.init import fan, he_std
from pl_losses.papers.style.optimizer import MonotoneLBFGS


class Call(NamedTuple):
    """A valid call.

    Attributes:
        make: Makes what is called; anew for each call, as a metric's ``update`` changes the metric.
        arguments: Makes valid arguments; the others have their defaults.
        then: What to look at instead of what was returned, given what was called.
    """

    make: Callable[[], Any]
    arguments: Callable[[], dict[str, Any]] = dict
    then: Callable[[Any], Any] | None = None


def computed(update: Any) -> Any:
    return update.of.compute()


def of(function: Any, **arguments: Any) -> Call:
    """A function and its arguments, copied for each call."""
    return Call(lambda: function, lambda: {name: copy_of(value) for name, value in arguments.items()})


def copy_of(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def metric(make: Callable[[], Any], **arguments: Any) -> Call:
    def update() -> Any:
        made = make()
        made.update.of = made
        return made.update

    return of(None, **arguments)._replace(make=update, then=computed)


def method(make: Callable[[], Any], name: str, **arguments: Any) -> Call:
    return of(None, **arguments)._replace(make=lambda: getattr(make(), name))


def segments() -> gtn.SegmentLattice:
    return gtn.SegmentLattice(torch.arange(24.0).reshape(2, 3, 2, 2) / 10)


def arcs() -> gtn.ArcLattice:
    return gtn.ArcLattice([0, 1, 0], [1, 2, 2], [3, 4, 5], penalty=torch.tensor([0.1, 0.6, 0.8]))


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Dropout(0.5), nn.Linear(4, 1))


logits, rows = torch.tensor([0.5, -1.0, 2.0]), torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
classes, probabilities = torch.tensor([0, 2, 1]), rows.softmax(1)
maps, images = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 20, 24)
samples = torch.stack([probabilities, probabilities.roll(1, 0)])
strings = {"targets": torch.tensor([[0, 1], [1, 0]]), "target_lengths": torch.tensor([2, 1])}
priors = {"length_scale": 0.1, "size": 10, "p": 0.1}
CALLS = {
    "bernoulli_error": of(adam.bernoulli_error, logits=rows, target=rows),
    "kl_to_standard_normal": of(adam.kl_to_standard_normal, mean=rows, log_variance=rows),
    "step_bounds": of(adam.step_bounds, betas=(0.9, 0.999)),
    "adamax_step_bounds": of(adamax_step_bounds, betas=(0.9, 0.999)),
    "Adam": Call(lambda: adam.Adam, lambda: {"params": weights()}),
    "AdaMax": Call(lambda: adam.AdaMax, lambda: {"params": weights()}),
    "InverseSqrtLR": Call(
        lambda: adam.InverseSqrtLR, lambda: {"optimizer": torch.optim.SGD(weights(), lr=0.1)}
    ),
    "MonotoneLBFGS": Call(lambda: MonotoneLBFGS, lambda: {"params": weights()}),
    "StochasticDiagonalLM": Call(lambda: StochasticDiagonalLM, lambda: {"params": weights()}),
    "discriminator_loss": of(losses.discriminator_loss, real_logits=logits, fake_logits=logits),
    "generator_loss": of(losses.generator_loss, fake_logits=logits),
    "frechet_distance": of(
        gan.frechet_distance,
        real_mean=logits,
        real_covariance=torch.eye(3),
        fake_mean=logits + 1,
        fake_covariance=torch.eye(3),
    ),
    "precision_recall": of(gan.precision_recall, real=rows, fake=rows + 0.1, neighbours=1),
    "LinearLayer": of(gan.LinearLayer, in_features=3, out_features=2),
    "rbf_penalties": of(losses.rbf_penalties, features=rows, centres=rows),
    "mle_loss": of(losses.mle_loss, penalties=rows, target=classes),
    "map_loss": of(losses.map_loss, penalties=rows, target=classes),
    "rubbish_posterior": of(rubbish_posterior, penalties=rows),
    "reconstruction_loss": of(losses.reconstruction_loss, decoded=rows, clean=rows),
    "reconstruction_loss, emphasised": of(
        losses.reconstruction_loss,
        decoded=rows,
        clean=rows,
        touched=rows > 0.5,
        kind="cross_entropy",
        beta=0.5,
    ),
    "content_loss": of(losses.content_loss, features=maps, target=maps + 1),
    "gram_matrix": of(losses.gram_matrix, features=maps, mask=maps[:, 0]),
    "style_loss": of(losses.style_loss, features=maps, target=maps + 1),
    "style_loss of layers": of(
        losses.style_loss, features=[maps, maps], target=[maps + 1] * 2, weights=[0.5, 2.0]
    ),
    "total_variation": of(losses.total_variation, images=maps),
    "dropout_objective": of(losses.dropout_objective, errors=logits, parameters=[rows], weight_decay=0.1),
    "mc_log_likelihood": of(losses.mc_log_likelihood, samples=samples, target=rows, tau=1.0),
    "weight_decay_of": of(dropout.weight_decay_of, precision=1.0, **priors),
    "precision_of": of(dropout.precision_of, weight_decay=1.0, **priors),
    "predictive_moments": of(dropout.predictive_moments, samples=samples, precision=1.0),
    "mc_samples": Call(
        lambda: dropout.mc_samples,
        lambda: {"module": network(), "batch": torch.rand(2, 3), "samples": 2, "seed": 0},
    ),
    "he_normal_": of(prelu.he_normal_, tensor=rows),
    "he_uniform_": of(prelu.he_uniform_, tensor=rows),
    "he_std": of(he_std, slope=0.25, fan=9.0),
    "fan": of(fan, tensor=maps, stride=2),
    "he_init_": Call(lambda: prelu.he_init_, lambda: {"module": network()}),
    "param_groups": Call(
        lambda: prelu.param_groups, lambda: {"module": network(), "weight_decay": 0.1, "lr": 0.1}
    ),
    "PReLU": of(prelu.PReLU),
    "SegmentLattice": of(gtn.SegmentLattice, penalties=segments().penalties, lengths=torch.tensor([3, 2])),
    "ArcLattice": of(
        gtn.ArcLattice,
        source=[0, 1, 0],
        destination=[1, 2, 2],
        label=[3, 4, 5],
        penalty=torch.tensor([0.1, 0.6, 0.8]),
        sizes=[3],
        start=[0],
        final=[2],
        output=torch.tensor([3, 4, 5]),
        position=torch.arange(3),
    ),
    "lexicon": of(gtn.lexicon, words=[(1, 2), (1,)], penalties=torch.tensor([0.1, 0.2])),
    "ctc_topology": of(gtn.ctc_topology, num_classes=3),
    "SegmentLattice.constrain": method(
        segments,
        "constrain",
        targets=torch.tensor([[0, 1], [1, 0]]),
        target_lengths=torch.tensor([2, 1]),
    ),
    "ArcLattice.constrain": method(
        arcs, "constrain", targets=torch.tensor([[3, 4]]), target_lengths=torch.tensor([2])
    ),
    "ArcLattice.compose": method(arcs, "compose", other=gtn.lexicon([(3, 4)])),
    "count_edits": of(
        count_edits, predicted=[(1, 2), (3,)], targets=torch.tensor([[1, 2], [3, 4]]), lengths=classes[:2]
    ),
    "error_reject_curve": of(error_reject_curve, confidence=logits, wrong=logits > 0),
    "cutting_costs": of(cutting_costs, images=images),
    "candidate_cuts": of(candidate_cuts, images=images),
    "ErrorRate": metric(ErrorRate, predicted=classes, target=classes),
    "StringErrors": metric(StringErrors, edits=torch.tensor([0, 1]), lengths=torch.tensor([3, 2])),
    "ErrorReject": metric(ErrorReject, confidence=logits, wrong=logits > 0),
    "FrechetDistance": metric(lambda: FrechetDistance(4), features=rows, real=True)._replace(then=None),
    "PrecisionRecall": metric(lambda: PrecisionRecall(4), features=rows, real=True)._replace(then=None),
    "FrechetDistance()": of(FrechetDistance, features=3),
    "PrecisionRecall()": of(PrecisionRecall, features=3),
    "ClassificationUncertainty": metric(dropout.ClassificationUncertainty, samples=samples),
    "ClassificationScores": metric(dropout.ClassificationScores, probabilities=probabilities, target=classes),
    "ClassificationScores()": of(dropout.ClassificationScores),
    "EntropyHistogram": metric(EntropyHistogram, samples=samples, target=classes),
    "EntropyHistogram()": of(EntropyHistogram),
    "RegressionScores": metric(lambda: dropout.RegressionScores(1.0), samples=samples, target=rows),
    "RegressionScores()": of(dropout.RegressionScores, precision=1.0),
    "DenseLayer": of(sdae.DenseLayer, in_features=3, hidden_size=2),
    **{
        name: of(getattr(dropout, name), samples=samples)
        for name in (
            "expected_entropy",
            "max_probability",
            "mutual_information",
            "predictive_entropy",
            "variation_ratio",
        )
    },
    **{
        name: Call(
            lambda name=name: getattr(losses, name),
            lambda: {"lattice": segments(), **{key: value.clone() for key, value in strings.items()}},
        )
        for name in (
            "viterbi_loss",
            "discriminative_viterbi_loss",
            "forward_loss",
            "discriminative_forward_loss",
        )
    },
    **{
        f"{make.__name__}.{name}": method(make, name, n=2)
        for make in (segments, arcs)
        for name in ("n_best", "sample")
    },
    **{
        f"{noise.__name__}{end}": call
        for noise in (sdae.MaskingNoise, sdae.SaltAndPepper, sdae.GaussianNoise)
        for end, call in (("()", of(noise)), ("", of(noise(), clean=rows)))
    },
    # Constructors.
    **{
        name: of(getattr(pl_losses, name))
        for name in ("AMSGradCounterexample", "FullBasicModel", "LatticeReader", "LeNet5", "StyleTransfer")
    },
    "SDNN": of(pl_losses.SDNN),
    "PretrainedLeNet5": of(pl_losses.PretrainedLeNet5),
    "RectifierNet": of(pl_losses.RectifierNet, stages=[[3]], pyramid=[1], hidden_size=5),
    "LogisticRegression": of(pl_losses.LogisticRegression, in_features=9),
    "MLP": of(pl_losses.MLP, in_features=9, hidden=[6]),
    "ConvNet": of(pl_losses.ConvNet, image_size=8, out_channels=(2, 2, 2), hidden_size=4),
    "VAE": of(pl_losses.VAE, in_features=9, hidden_size=5, latent_size=2),
    "DenoisingAutoencoder": of(pl_losses.DenoisingAutoencoder, in_features=9, hidden_size=5),
    "StackedDenoisingAutoencoder": of(pl_losses.StackedDenoisingAutoencoder, in_features=9, hidden=[5]),
    "DropoutRegressor": of(pl_losses.DropoutRegressor, hidden=[5]),
    "DropoutClassifier": of(pl_losses.DropoutClassifier),
    "GAN": of(pl_losses.GAN, image_size=28, width=2),
    **{name: of(getattr(callbacks, name)) for name in callbacks.__all__ if name != "ActivationCheckpointing"},
    "ActivationCheckpointing": of(callbacks.ActivationCheckpointing, layers="*"),
    **{
        name: of(getattr(data, name))
        for name in (
            "CIFAR10",
            "MNIST",
            "UCI",
            "BagOfWords",
            "DigitStrings",
            "Digits",
            "ImageDataModule",
            "ImageFolders",
            "ImageShards",
            "Photographs",
            "RandomAffine",
            "SyntheticCO2",
            "TensorDataModule",
            "Variations",
        )
    },
    "Amat": of(data.Amat, train_file="train.amat", test_file="test.amat"),
    "LineImages": of(data.LineImages, root="lines"),
    "Pictures": of(data.Pictures, content="content.png", style="style.png"),
    "BatchLoader": of(data.BatchLoader, tensors=(rows, classes), batch_size=2),
}

NOTHING = object()
ANYTHING: dict[str, Callable[[Any], Any]] = {
    "None": lambda _: None,
    "a text": lambda _: "text",
    "an object": lambda _: NOTHING,
    "an empty list": lambda _: [],
    "a list of texts": lambda _: ["text"],
    "a list of None": lambda _: [None],
    "a dict": lambda _: {"text": 1},
    "a float": lambda _: 1.5,
    "a bool": lambda _: True,
    "zero": lambda _: 0,
    "negative": lambda _: -1,
    "NaN": lambda _: math.nan,
    "inf": lambda _: math.inf,
    "complex": lambda _: 1 + 2j,
    "a type": lambda _: int,
    "a tensor of another kind": lambda _: torch.ones(7, 1, 5),
}
TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "one dimension more": lambda value: value[None],
    "a column": lambda value: value[..., None],
    "one dimension less": lambda value: value[0],
    "a scalar": lambda value: value.flatten()[0],
    "too few rows": lambda value: value[:-1],
    "too many rows": lambda value: torch.cat([value, value[:1]]),
    "too narrow": lambda value: value[..., :-1],
    "empty": lambda value: value[:0],
    "empty rows": lambda value: value[..., :0],
    "integers": lambda value: value.long(),
    "booleans": lambda value: value > 0,
    "float64": lambda value: value.double(),
    "half": lambda value: value.half(),
    "complex": lambda value: torch.complex(value.float(), torch.ones(value.shape)),
    "sparse": lambda value: value.to_sparse(),
    "quantized": lambda value: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
    "on the meta device": lambda value: value.to("meta"),
    "a NumPy array": lambda value: value.numpy(),
    "a nested list": lambda value: value.tolist(),
    "negative": lambda value: -value.long() - 1 if not value.is_floating_point() else -value - 0.5,
    "out of range": lambda value: value + 100,
    "NaN inside": lambda value: value.float().masked_fill(value == value.flatten()[0], math.nan),
    "inf inside": lambda value: value.float().masked_fill(value == value.flatten()[0], math.inf),
}


class Outcome(NamedTuple):
    """What one spoilt call came to: "returned", "clear", "unclear" or "silent", and in which words."""

    call: str
    argument: str
    spoilt: str
    kind: str
    words: str


def spoilt_calls() -> Iterator[tuple[str, str, str, Callable[[Any], Any]]]:
    """Each call, one of its arguments, and a way to spoil it."""
    for name, call in CALLS.items():
        arguments = call.arguments()
        for argument in parameters(call.make()):
            for how, spoil in ANYTHING.items():
                yield name, argument, how, spoil
            if isinstance(arguments.get(argument), Tensor):
                for how, spoil in TENSORS.items():
                    yield name, argument, f"tensor: {how}", spoil


def parameters(function: Any) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in inspect.signature(function).parameters.values() if each.kind not in kinds]


def outcome(name: str, argument: str, how: str, spoil: Callable[[Any], Any]) -> Outcome:
    """Make one spoilt call."""
    call = CALLS[name]
    arguments, function = call.arguments(), call.make()
    given = arguments[argument] = spoil(arguments.get(argument))
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = function(**arguments)
            result = result if call.then is None else call.then(function)
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        named = any(f"`{each}`" in words for each in parameters(function))
        clear = named and isinstance(error, (TypeError, ValueError, OSError))
        return Outcome(name, argument, how, "clear" if clear else "unclear", words)
    return Outcome(
        name, argument, how, "silent" if is_nonsense(given, result) else "returned", f"{result!r:.200}"
    )


def is_nonsense(given: Any, result: Any) -> bool:
    """Whether what was returned is not a number though what was given is, or lacks an imaginary part."""
    if isinstance(given, complex) or (isinstance(given, Tensor) and given.is_complex()):
        return True
    if isinstance(given, Tensor):
        values = given.coalesce().values() if given.is_sparse else given
        return given.device.type != "meta" and bool(values.isfinite().all()) and has_nan(result)
    return has_nan(result) or given is NOTHING or (isinstance(given, float) and math.isnan(given))


def has_nan(result: Any) -> bool:
    if isinstance(result, Tensor):
        return result.device.type != "meta" and result.is_floating_point() and bool(result.isnan().any())
    if isinstance(result, dict):
        return any(map(has_nan, result.values()))
    if isinstance(result, (tuple, list)):
        return any(map(has_nan, result))
    return isinstance(result, float) and math.isnan(result)


def outcomes(count: int | None = None, seed: int = 0) -> list[Outcome]:
    """All spoilt calls, or some of them."""
    calls = list(spoilt_calls())
    return [outcome(*each) for each in (calls if count is None else random.Random(seed).sample(calls, count))]


if __name__ == "__main__":
    found = []
    for each in spoilt_calls():
        try:
            found.append(outcome(*each))
        except Exception as error:
            if "tensor:" not in each[2]:
                raise
            del error  # This tensor cannot be spoilt so.
    print(len(found), Counter(one.kind for one in found))
    for one in found:
        if one.kind in ("unclear", "silent"):
            print(one.kind, one.call, one.argument, one.spoilt, "|", re.sub(r"\s+", " ", one.words)[:230])
