"""Figs. 2 and 3: the curves."""

import csv

from pl_losses import RectifierNet
from pl_losses.cli.main import main
from pl_losses.papers.prelu import convergence


def test_a_curve_has_the_errors_of_each_seed(folder, monkeypatch):
    seen = []

    def build(**options):
        seen.append(options)
        return RectifierNet(**options)

    monkeypatch.setattr(convergence, "RectifierNet", build)
    small = "--dataset digits --epochs 2 --validations 2 --limit 256 --seeds 1 --width 0.02 --wandb disabled"
    assert main(["reproduce", "prelu/fig3", *small.split()]) == 0
    assert [(one["architecture"], one["init"], one["rectifier"]) for one in seen] == [
        ("depth30", "he", "relu"),
        ("depth30", "xavier", "relu"),
    ]
    rows = list(csv.DictReader((folder / "runs/prelu/fig3/curves.csv").open()))
    assert [(row["method"], row["step"]) for row in rows] == [
        (f"30 layers, {init}", step) for init in ("He", "Xavier") for step in ("2", "4", "6", "8")
    ]
    assert all(0 <= float(row["error"]) <= 100 for row in rows)
