import csv

import pytest
import torch

from pl_losses.cli.main import main
from pl_losses.papers.gan import table1


def test_table1_in_small(folder, capsys, monkeypatch):
    class Tiny(torch.nn.Sequential):
        def __init__(self, weights, num_classes):
            super().__init__(
                torch.nn.Conv2d(3, 2, 8, 8), torch.nn.Flatten(), torch.nn.LazyLinear(num_classes)
            )
            self(torch.zeros(1, 3, 64, 64))

    monkeypatch.setattr(table1.torchvision.models, "alexnet", Tiny)
    options = ["--image_size", "64", "--batch_size", "2", "--steps", "2", "--repeats", "1", "--device", "cpu"]
    command = ["reproduce", "gan/table1", "--models", "AlexNet", "--wandb", "disabled", *options]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "published (GP100)" in printed
    (row,) = csv.DictReader((folder / "runs/gan/table1/table1.csv").open())
    assert row["model"] == "AlexNet"
    assert float(row["published"]) == 1547
    assert float(row["plain"]) > 0
    assert float(row["ratio"]) == pytest.approx(
        float(row["trainer"]) / float(row["plain"]), rel=0.02, abs=1e-3
    )
    # It is not measured again.
    monkeypatch.delattr(table1, "measure")
    assert main(command) == 0
    (again,) = csv.DictReader((folder / "runs/gan/table1/table1.csv").open())
    assert again == row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "LeNet"], "`models` to be of AlexNet"),
        (["--device", "tpu"], "`device`: Expected one of 'auto', 'cpu', 'cuda' but got"),
        (["--steps", "0"], "`steps` to be at least 1 but got 0"),
    ],
)
def test_refused(options, message, capsys):
    assert main(["reproduce", "gan/table1", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_networks_are_torchvisions():
    for network, _ in table1.MODELS.values():
        assert callable(getattr(table1.torchvision.models, network))
