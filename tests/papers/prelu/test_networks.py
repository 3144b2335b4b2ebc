import pytest
import torch
from torch import nn

from pl_losses import RectifierNet
from pl_losses.papers.prelu import PReLU
from pl_losses.papers.prelu.networks import ARCHITECTURES, SpatialPyramidPooling, plan

# Layers with weights, and sides of the maps of a 224-pixel image after the stem and before the pyramid.
PAPER = {
    "E": (14, 109, 18),
    "A": (19, 112, 14),
    "B": (22, 112, 14),
    "C": (22, 112, 14),
    "depth22": (22, 112, 14),
    "depth30": (30, 109, 18),
}


def on_meta(**options):
    with torch.device("meta"):
        return RectifierNet(num_classes=1000, in_channels=3, **options)


@pytest.mark.parametrize("name", PAPER)
def test_layers_and_map_sizes_are_the_papers(name):
    depth, first, last = PAPER[name]
    net = on_meta(architecture=name, rectifier="prelu_shared")
    weighted = [layer for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == depth == ARCHITECTURES[name].depth
    # An extra parameter for each of the 13 activations of model E (section 4.1).
    assert sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, PReLU)) == depth - 1
    images = torch.empty(1, 3, 224, 224, device="meta")
    assert net.features[0](images).shape[-2:] == (first, first)
    assert net.features[:-1](images).shape[-2:] == (last, last)
    assert net(images).shape == (1, 1000)


def test_model_e_is_table_1():
    net = on_meta(architecture="E", rectifier="relu")
    convolutions = [layer for layer in net.features if isinstance(layer, nn.Conv2d)]
    assert [(layer.out_channels, layer.kernel_size[0]) for layer in convolutions] == [
        (64, 7),
        *[(128, 2)] * 4,
        *[(256, 2)] * 6,
    ]
    assert convolutions[0].stride == (2, 2)
    assert [layer.kernel_size for layer in net.features if isinstance(layer, nn.MaxPool2d)] == [3, 2]
    linear = [layer for layer in net.head if isinstance(layer, nn.Linear)]
    assert linear[0].in_features == 256 * (36 + 9 + 4 + 1)
    assert [layer.out_features for layer in linear] == [4096, 4096, 1000]


def test_model_c_is_wider_than_b():
    channels = [
        [layer.channels for layer in plan(ARCHITECTURES[name]) if hasattr(layer, "channels")] for name in "BC"
    ]
    assert channels == [
        [96, *[256] * 6, *[512] * 12],
        [96, *[384] * 6, *[768] * 6, *[896] * 6],
    ]


@pytest.mark.parametrize("name", ["E", "A", "depth30"])
@pytest.mark.parametrize("side", [28, 32])
def test_small_stems_take_small_images(name, side):
    net = RectifierNet(architecture=name, stem="small", width=0.02)
    assert net(torch.zeros(2, 1, side, side)).shape == (2, 10)
    assert net.features[-1].bins == [4, 2, 1]
    assert net.features[:-1](torch.zeros(1, 1, 32, 32)).shape[-1] == (8 if name != "A" else 4)


def test_pyramids_pool_each_level():
    maps = torch.arange(32.0).view(1, 2, 4, 4)
    pooled = SpatialPyramidPooling([2, 1])(maps)
    assert pooled.tolist() == [[5, 7, 13, 15, 21, 23, 29, 31, 15, 31]]
