import math

import pytest
import torch
from torch import nn

from pl_losses import RectifierNet


@pytest.mark.parametrize(("rectifier", "slope"), [("relu", 0.0), ("prelu", 0.25), ("leaky_relu", 0.5)])
def test_weights_have_the_deviation_of_eq_15(rectifier, slope):
    torch.manual_seed(0)
    net = RectifierNet(stages=[[64, 128]], hidden_size=256, rectifier=rectifier, slope=slope)
    layers = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for layer in layers[1:-1]:
        fan_in = layer.weight[0].numel()
        wanted = math.sqrt(2 / ((1 + slope**2) * fan_in))
        assert layer.weight.std().item() == pytest.approx(wanted, rel=0.02)
    assert layers[-1].weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_one_slope_per_channel_or_per_layer():
    def slopes(rectifier):
        net = RectifierNet(stages=[[4], [6]], hidden_size=8, rectifier=rectifier)
        return [module.weight.numel() for module in net.modules() if isinstance(module, nn.PReLU)]

    assert slopes("prelu") == [4, 6, 8, 8]
    assert slopes("prelu_shared") == [1, 1, 1, 1]
    assert slopes("relu") == slopes("leaky_relu") == []


def test_the_default_slopes_are_the_papers():
    prelu, leaky = (
        RectifierNet(stages=[[4]], hidden_size=8, rectifier=name) for name in ("prelu", "leaky_relu")
    )
    assert prelu.features[1].weight.tolist() == [0.25] * 4
    assert leaky.features[1].negative_slope == 0.01


def test_any_image_size_fits():
    net = RectifierNet(stages=[[4], [4]], pyramid=[3, 1], hidden_size=8, in_channels=3, num_classes=5)
    for size in (16, 28, 33):
        assert net(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_probabilities_are_those_of_the_logits():
    logits = torch.randn(3, 10)
    assert torch.equal(RectifierNet().class_probabilities(logits), logits.softmax(dim=1))


@pytest.mark.parametrize("options", [{"rectifier": "tanh"}, {"p": 1.0}, {"stages": [[8], []]}])
def test_bad_arguments_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}`"):
        RectifierNet(**options)
