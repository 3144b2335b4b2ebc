"""The interactive page computes what the suite computes: its scripts are run beside the functions."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from pl_losses import losses
from pl_losses.papers.adam import Adam
from pl_losses.papers.gtn import ArcLattice
from pl_losses.papers.prelu import PReLU

PAGE = Path(__file__).parents[1] / "docs/explore-losses.html"
INPUTS = (
    *("right", "wrong", "other", "first", "second", "touched", "untouched", "prediction", "target", "weight"),
    *("feature", "centre", "photograph", "painting", "pixel", "neighbour", "generated", "real"),
)
CONSTANTS = {"j": (0.1, 12), "clean": (0, 1), "alpha": (0, 2), "beta": (0, 2), "sigma": (0.5, 3)} | {
    "tau": (0.1, 5),
    "decay": (0, 1),
    "smoothing": (0, 0.9),
}
RIGHT = torch.tensor([0])


def classes(p):
    return torch.stack([p["right"], p["wrong"], p["other"]])[None]


def of_string(criterion):
    """Two arcs with the right label, one with the wrong."""

    def loss(p):
        penalty = torch.stack([p["first"], p["second"], p["wrong"]])
        return criterion(ArcLattice([0, 0, 0], [1, 1, 1], [0, 0, 1], penalty=penalty), torch.tensor([[0]]))

    return loss


def reconstruction(kind):
    def loss(p):
        decoded = torch.stack([p["touched"], p["untouched"]])[None]
        clean, touched = torch.full_like(decoded, p["clean"]), torch.tensor([[True, False]])
        sigma = {"sigma": p["sigma"]} if kind == "squared" else {}
        options = {"kind": kind, "alpha": p["alpha"], "beta": p["beta"]} | sigma
        return losses.reconstruction_loss(decoded, clean, touched, **options)

    return loss


def likelihood(*passes):
    def loss(p):
        samples = torch.stack([p[name] for name in passes])[:, None]
        return -losses.mc_log_likelihood(samples, p["target"].detach()[None], p["tau"]).sum()

    return loss


def objective(p):
    error = 0.5 * p["tau"] * (p["prediction"] - p["target"].detach()) ** 2
    return losses.dropout_objective(error[None], [p["weight"]], p["decay"])


def content(p):
    return losses.content_loss(p["feature"].view(1, 1, 1, 1), p["photograph"].detach().view(1, 1, 1, 1))


def style(p):
    return losses.style_loss(p["feature"].view(1, 1, 1, 1), p["painting"].detach().view(1, 1, 1, 1))


LOSSES = {
    "rbf_penalties": lambda p: losses.rbf_penalties(p["feature"].view(1, 1), p["centre"].view(1, 1)).sum(),
    "mle_loss": lambda p: losses.mle_loss(classes(p), RIGHT),
    "map_loss": lambda p: losses.map_loss(classes(p), RIGHT, p["j"]),
    "cross_entropy": lambda p: F.cross_entropy(-classes(p), RIGHT),
    **{
        name: of_string(getattr(losses, name))
        for name in (
            *("viterbi_loss", "forward_loss"),
            *("discriminative_viterbi_loss", "discriminative_forward_loss"),
        )
    },
    **{f"reconstruction_loss, {kind}": reconstruction(kind) for kind in ("squared", "cross_entropy")},
    "dropout_objective": objective,
    "-mc_log_likelihood, one pass": likelihood("prediction"),
    "-mc_log_likelihood, both passes": likelihood("prediction", "second"),
    "content_loss": content,
    "style_loss": style,
    "alpha content_loss + beta style_loss": lambda p: p["alpha"] * content(p) + p["beta"] * style(p),
    "total_variation": lambda p: losses.total_variation(torch.stack([p["pixel"], p["neighbour"]])[None]),
    "discriminator_loss": lambda p: losses.discriminator_loss(
        p["real"][None], p["generated"][None], smoothing=p["smoothing"]
    ),
    "generator_loss": lambda p: losses.generator_loss(p["generated"][None]),
    "log(1 - D), its older form": lambda p: F.logsigmoid(-p["generated"]),
}


@pytest.fixture(scope="module")
def page():
    """Evaluate an expression of the page's scripts, [...] and numbers coming back."""
    racer = pytest.importorskip("py_mini_racer", reason="mini-racer is missing")
    with racer.MiniRacer() as context:
        for block in ("formulas", "rules"):
            context.eval(re.search(rf'<script id="{block}">(.*?)</script>', PAGE.read_text(), re.S)[1])
        yield lambda expression: json.loads(context.eval(f"JSON.stringify({expression})"))


def test_every_loss_is_on_the_page(page):
    assert page("Object.keys(LOSSES)") == list(LOSSES)
    named = " ".join(LOSSES)
    assert [one for one in losses.__all__ if one not in named] == ["gram_matrix"]  # A part of style_loss.


@pytest.mark.parametrize("name", LOSSES)
def test_the_page_has_the_losses_and_their_slopes(name, page):
    draw = random.Random(name)
    for _ in range(20):
        p = {key: draw.uniform(-6, 12) for key in INPUTS} | {
            key: draw.uniform(*span) for key, span in CONSTANTS.items()
        }
        found = page(f"LOSSES[{json.dumps(name)}]({json.dumps(p)})")
        moved = {key: torch.tensor(p[key], dtype=torch.float64, requires_grad=True) for key in INPUTS}
        loss = LOSSES[name](p | moved)
        loss.backward()
        slopes = {key: float(one.grad) for key, one in moved.items() if one.grad is not None}
        assert found.pop("loss") == pytest.approx(loss.item(), rel=1e-9, abs=1e-9)
        assert set(slopes) <= set(found)
        assert found == pytest.approx(dict.fromkeys(found, 0.0) | slopes, rel=1e-9, abs=1e-9)


def follow(optimizer, loss, start, steps):
    place = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    rule, path = optimizer([place]), [start]
    for _ in range(steps):
        rule.zero_grad()
        loss(place).backward()
        rule.step()
        path.append(place.tolist())
    return path


def ravine(place):
    return 0.5 * (torch.tensor([1.0, 25.0], dtype=torch.float64) * place**2).sum()


def assert_same(found, wanted):
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_page_goes_down_by_sgd(momentum, page):
    found = page(f"sgd(ravine, [-10, 2], {{lr: 0.035, momentum: {momentum}, steps: 40}})")
    assert_same(found, follow(lambda p: torch.optim.SGD(p, 0.035, momentum), ravine, [-10.0, 2.0], 40))


@pytest.mark.parametrize("corrected", [True, False])
def test_the_page_goes_down_by_adam(corrected, page):
    options = f"{{lr: 0.3, beta1: 0.9, beta2: 0.999, corrected: {json.dumps(corrected)}, steps: 60}}"
    wanted = follow(lambda p: Adam(p, 0.3, bias_correction=corrected), ravine, [-10.0, 2.0], 60)
    assert_same(page(f"adam(ravine, [-10, 2], {options})"), wanted)


def test_the_page_learns_a_slope(page):
    layer = PReLU(init=0.25).double()
    inputs = torch.linspace(-2, 2, 9, dtype=torch.float64)
    rule, slopes = torch.optim.SGD(layer.parameters(), 0.1, 0.9), [[0.25]]
    for _ in range(60):
        rule.zero_grad()
        (0.5 * (layer(inputs[:, None])[:, 0] - F.leaky_relu(inputs, 0.8)).square().mean()).backward()
        rule.step()
        slopes.append(layer.weight.tolist())
    assert_same(page("sgd(preluGradient(0.8), [0.25], {lr: 0.1, momentum: 0.9, steps: 60})"), slopes)


def test_the_page_loads_nothing():
    assert not re.search(r"""(src|href|url)\s*[=(]|@import|fetch\(|import\s""", PAGE.read_text())
