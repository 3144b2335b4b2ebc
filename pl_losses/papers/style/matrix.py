"""Gatys et al. 2016, section 3: images over the layers of the style, and over the ratio alpha / beta.

``pl-losses reproduce style/matrix`` makes an image for each, and draws them side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import process_time
from typing import Any

import torch

from pl_losses.core.experiment import Experiment, Recording, progress_bar, quiet
from pl_losses.core.figures import Figure, new_figure
from pl_losses.core.protocol import plain_trainer, report
from pl_losses.core.results import Row
from pl_losses.core.validation import check_integer, check_positive, check_some, typed
from pl_losses.data.pictures import Pictures
from pl_losses.papers.style.module import StyleTransfer
from pl_losses.papers.style.optimizers import weights_of

LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")


@typed
def reproduce(
    content: str = "grace-hopper",
    style: str = "starry-night",
    ratios: list[float] | None = None,
    *,
    depths: list[int] | None = None,
    size: int = 128,
    steps: int = 10,
    root: str | None = None,
    folder: str = "runs/style/matrix",
    seed: int = 0,
    wandb: Recording = "offline",
) -> None:
    """Section 3: pictures of one pair of images, with several sets of style layers and ratios alpha / beta.

    The rows of the picture take the style of conv1_1 alone, of conv1_1 and conv2_1, and so on. The images
    start from noise. The folder gets ``losses.csv``, ``results.csv``, ``matrix.png`` and a W&B run, and the
    same command resumes after an interruption. The paper shows pictures, and gives no numbers.

    Args:
        content: A file, or the name of a packaged image: "grace-hopper" is a portrait in the public domain.
        style: Likewise: "starry-night" is van Gogh's, of 1889.
        ratios: Values of alpha / beta. Default: 1e-5, 1e-4, 1e-3 and 1e-2.
        depths: Numbers of layers. Default: 1 to 5.
        size: Longer side of the images, in pixels.
        steps: Steps of L-BFGS for each image, of 20 iterations.
        root: Folder with the images and the weights of VGG-19. Default: the environment variable
            PL_LOSSES_DATA; the extra ``style`` brings the weights.
        folder: For the results. A folder with a part of them is resumed.
        seed: Seed of the noise.
        wandb: Whether W&B records the tables and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, or the folder has the results of other arguments.
        OSError: If there are no weights.
    """
    check_some(ratios=ratios, depths=depths)
    alphas = list(dict.fromkeys(ratios or [1e-5, 1e-4, 1e-3, 1e-2]))
    numbers = list(dict.fromkeys(depths or range(1, 6)))
    for alpha in alphas:
        check_positive("ratios", alpha)
    for number in numbers:
        check_integer("depths", number, 1, most=len(LAYERS))
    arguments: dict[str, object] = {"content": content, "style": style, "ratios": ratios, "depths": depths}
    kept = Experiment("style/matrix", folder, arguments | {"size": size, "steps": steps, "seed": seed})
    pictures = Pictures(content, style, size, steps=steps, root=root)
    kept.same_input("the images", pictures.identity()["train"]["checksum"])
    kept.same_input(*weights_of(root))
    left = [(number, alpha) for number in numbers for alpha in alphas][len(kept.results) :]
    with progress_bar(len(left)) as bar:
        for number, alpha in left:
            started = process_time()
            model = StyleTransfer(alpha, style_layers=list(LAYERS[:number]), seed=seed)
            with quiet():
                trainer = plain_trainer(max_epochs=1)
                trainer.fit(model, pictures)
            loss, _ = model.evaluate()
            image = (255 * model.result()[0]).round().byte()
            result = {"layers": number, "alpha": alpha, "loss": float(loss.detach()), "image": image}
            kept.add(result | {"seconds": process_time() - started})
            bar.update()
    losses = [{key: value for key, value in one.items() if key != "image"} for one in kept.results]
    rows = [
        Row(
            f"{one['layers']} style layer{'s' * (one['layers'] > 1)}, alpha / beta {one['alpha']:g}",
            "loss, eq. 7",
            one["loss"],
            seconds=one["seconds"],
            lower_is_better=None,
        )
        for one in losses
    ]
    picture = draw(kept.results, numbers, alphas)
    report(kept, wandb, rows, pictures={"matrix": picture}, tables={"losses": losses})


def draw(results: Sequence[Mapping[str, Any]], numbers: Sequence[int], alphas: Sequence[float]) -> Figure:
    """Draw the images: a row for each set of layers, a column for each ratio."""
    figure = new_figure(2.2 * len(alphas) + 0.4, 1.7 * len(numbers) + 0.4)
    panels = figure.subplots(len(numbers), len(alphas), squeeze=False)
    for axes, result in zip(panels.flat, results, strict=True):
        axes.imshow(torch.as_tensor(result["image"]).permute(1, 2, 0).numpy())
        axes.set_xticks([])
        axes.set_yticks([])
    for axes, alpha in zip(panels[0], alphas, strict=True):
        axes.set_title(rf"$\alpha / \beta = {alpha:g}$", fontsize=8)
    for axes, number in zip(panels[:, 0], numbers, strict=True):
        axes.set_ylabel("to " + LAYERS[number - 1] if number > 1 else LAYERS[0], fontsize=8)
    return figure
