"""Table 1: the slopes by depth."""

import csv

import pytest
import torch

from pl_losses.cli.main import main
from pl_losses.papers.prelu.slopes import find_slopes
from pl_losses.papers.prelu.table1 import HalfSize


def test_the_network_sees_half_the_size():
    torch.manual_seed(0)
    net = HalfSize(in_channels=3, architecture="E", stem="small", width=0.05).eval()
    sizes = []
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, output: sizes.append(inputs[0].shape[-1]))
    images = torch.rand(2, 3, 32, 32)
    outputs = net(images)
    assert sizes[0] == 16
    # Pixels of a block of 2 x 2 may change places.
    assert torch.allclose(net(images.flip(3).unfold(3, 2, 2).flip(3).flatten(3)), outputs, atol=1e-6)


def test_the_slopes_are_those_of_each_layer_means_over_the_seeds(folder, monkeypatch):
    learned = []

    def found(model):
        slopes = find_slopes(model)
        learned.append([float(one.detach().mean()) for one in slopes.values()])
        return slopes

    monkeypatch.setattr("pl_losses.papers.prelu.table1.find_slopes", found)
    small = "--dataset digits --epochs 1 --limit 256 --seeds 2 --width 0.05 --batch_size 32 --wandb disabled"
    assert main(["reproduce", "prelu/table1", *small.split()]) == 0
    rows = list(csv.DictReader((folder / "runs/prelu/table1/results.csv").open()))
    assert len(rows) == 14
    assert rows[0]["what"] == "digits, layer 1"
    assert [row["what"].endswith(", fully connected") for row in rows[:-1]] == [False] * 11 + [True] * 2
    assert learned[0] != learned[1]
    for row, values in zip(rows, zip(*learned, strict=True), strict=False):
        assert float(row["measured"]) == pytest.approx(sum(values) / 2)
        assert float(row["low"]) < float(row["measured"]) < float(row["high"])
    assert rows[-1]["quantity"] == "test error, %"
