"""Draws docs/pictures/losses.png, each loss of the suite over one number: `python docs/draw_losses.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pl_losses.losses import (
    content_loss,
    discriminative_forward_loss,
    discriminative_viterbi_loss,
    discriminator_loss,
    generator_loss,
    map_loss,
    mc_log_likelihood,
    mle_loss,
    reconstruction_loss,
    style_loss,
    viterbi_loss,
)
from pl_losses.papers.gtn import SegmentLattice

Loss = Callable[[Tensor], Tensor]
PICTURE = Path(__file__).parent / "pictures" / "losses.png"


def classes(right: Tensor) -> Tensor:
    """Return penalties of three classes, of which the wrong ones stay at 4 and 6."""
    return torch.stack([right, torch.full_like(right, 4.0), torch.full_like(right, 6.0)]).view(1, 3)


def lattice(right: Tensor) -> SegmentLattice:
    """Build two pieces: "01" costs ``right`` in one of two ways, 5 more in the other, the wrong "2" 4."""
    far = torch.full_like(right, 50.0)
    first = torch.stack([right / 2, far, far])
    last = torch.stack([far, right / 2, far])
    both = torch.stack([far, far, torch.full_like(right, 4.0)])
    return SegmentLattice(torch.stack([torch.stack([first, far.expand(3)]), torch.stack([last, both])])[None])


def of_string(criterion: Callable[..., Tensor]) -> Loss:
    """Make a loss of a criterion of the string "01"."""
    return lambda right: criterion(lattice(right), torch.tensor([[0, 1]]))


PANELS: list[tuple[str, str, tuple[float, float], dict[str, Loss]]] = [
    (
        "LeNet-5 (eqs. 8, 9)",
        "penalty of the right class; others 4, 6",
        (0.0, 12.0),
        {
            "mle_loss": lambda y: mle_loss(classes(y), torch.tensor([0])),
            "map_loss": lambda y: map_loss(classes(y), torch.tensor([0])),
        },
    ),
    (
        "Graph transformer networks",
        "penalty of the right reading; the wrong one 4",
        (0.0, 12.0),
        {
            "viterbi_loss, forward_loss": of_string(viterbi_loss),
            "discriminative_viterbi_loss": of_string(discriminative_viterbi_loss),
            "discriminative_forward_loss": of_string(discriminative_forward_loss),
        },
    ),
    (
        "PReLU, Adam: cross-entropy",
        "logit of the right class; the other 0",
        (-6.0, 6.0),
        {
            "cross_entropy": lambda y: torch.nn.functional.cross_entropy(
                torch.stack([y, torch.zeros_like(y)]).view(1, 2), torch.tensor([0])
            )
        },
    ),
    (
        "Dropout: Gaussian noise",
        "prediction, where 0 is right",
        (-3.0, 3.0),
        {
            "-log p, one pass (tau = 1)": lambda y: (
                -mc_log_likelihood(y.view(1, 1, 1), torch.zeros(1, 1), 1.0).sum()
            ),
            "-mc_log_likelihood, a second pass at 1.5": lambda y: (
                -mc_log_likelihood(
                    torch.stack([y, torch.full_like(y, 1.5)]).view(2, 1, 1), torch.zeros(1, 1), 1.0
                ).sum()
            ),
        },
    ),
    (
        "Denoising autoencoders",
        "reconstruction (its logit), 0 and 0.7 are right",
        (-6.0, 6.0),
        {
            "reconstruction_loss, squared": lambda y: reconstruction_loss(
                y.view(1, 1), torch.zeros(1, 1, dtype=y.dtype)
            ),
            "reconstruction_loss, cross_entropy": lambda y: reconstruction_loss(
                y.view(1, 1), torch.full((1, 1), 0.7, dtype=y.dtype), kind="cross_entropy"
            ),
        },
    ),
    (
        "Style transfer (eqs. 1, 4)",
        "a feature, which is 1 in both pictures",
        (-2.5, 2.5),
        {
            "content_loss": lambda y: content_loss(y.view(1, 1, 1, 1), torch.ones(1, 1, 1, 1, dtype=y.dtype)),
            "style_loss": lambda y: style_loss(y.view(1, 1, 1, 1), torch.ones(1, 1, 1, 1, dtype=y.dtype)),
        },
    ),
    (
        "GAN: the generator",
        "logit of D for a generated image",
        (-6.0, 6.0),
        {
            "generator_loss": lambda y: generator_loss(y.view(1)),
            "log(1 - D), which saturates": lambda y: -torch.nn.functional.softplus(y),
        },
    ),
    (
        "GAN: the discriminator",
        "logit of D; the other image at 0",
        (-6.0, 6.0),
        {
            "discriminator_loss, real": lambda y: discriminator_loss(y.view(1), torch.zeros(1)),
            "discriminator_loss, generated": lambda y: discriminator_loss(torch.zeros(1), y.view(1)),
        },
    ),
]


def curve(loss: Loss, low: float, high: float, points: int = 241) -> tuple[Tensor, Tensor, Tensor]:
    """Compute places, and the loss and its slope there, [points] each."""
    places = torch.linspace(low, high, points, dtype=torch.float64)
    values, slopes = [], []
    for place in places:
        value = place.clone().requires_grad_()
        result = loss(value).sum()
        (slope,) = torch.autograd.grad(result, value)
        values.append(result.detach())
        slopes.append(slope)
    return places, torch.stack(values), torch.stack(slopes)


def draw_panel(
    axes: Axes, title: str, label: str, span: tuple[float, float], losses: dict[str, Loss]
) -> None:
    """Draw losses as lines, and their slopes as dashes of the same colour."""
    for name, loss in losses.items():
        places, values, slopes = curve(loss, *span)
        (line,) = axes.plot(places, values, label=name)
        axes.plot(places, slopes, "--", color=line.get_color(), linewidth=1)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(title=title, xlabel=label, ylabel="loss, slope", ylim=(-4, 9))
    axes.legend(fontsize=9, loc="upper center")
    axes.grid(alpha=0.3)


def draw() -> Figure:
    """Draw all panels."""
    figure = Figure(figsize=(8.6, 13), layout="constrained")
    for axes, panel in zip(figure.subplots(4, 2).flat, PANELS, strict=True):
        draw_panel(axes, *panel)
    figure.suptitle("Solid: the loss. Dashed: its slope, which is what training follows.")
    return figure


if __name__ == "__main__":
    draw().savefig(PICTURE, dpi=93)
