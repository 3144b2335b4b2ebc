"""Strings that cannot be read, for settings of the cuts."""

import csv
from itertools import pairwise

import torch

from pl_losses.cli.main import main
from pl_losses.data import DigitStrings
from pl_losses.papers.gtn.cut_settings import unreadable
from pl_losses.papers.gtn.segmentation import candidate_cuts


def test_unreadable_strings_are_those_of_a_plain_loop():
    data = DigitStrings(eval_strings=60, gap=(-3, 2), clutter=0)
    data.setup("fit")
    lines = data.compose("val", 0, torch.arange(60))
    for radius, most in ((1, 2), (3, 6)):
        cuts = candidate_cuts(lines.images, radius=radius, projection_radius=3)
        wrong = 0
        for columns, length, boundaries in zip(cuts.columns, cuts.lengths, lines.boundaries, strict=True):
            at = [min(range(len(columns)), key=lambda i: abs(columns[i] - b)) for b in boundaries]
            near = all(abs(columns[i] - b) <= 2 for i, b in zip(at, boundaries, strict=True))
            ends = [0, *at, int(length)]
            counts = [after - before for before, after in pairwise(ends)]
            wrong += not (near and all(0 < count <= most for count in counts))
        found = unreadable(data, "val", most, radius=radius, projection_radius=3)
        assert 0 < wrong < 60
        assert found.value == 100 * wrong / 60
        assert found.curve == int(cuts.lengths.sum()) / 300


def test_finer_cuts_leave_fewer_strings_unreadable(folder):
    options = ["--dataset=digits", "--radius=[1,3]", "--projection_radius=[9]", "--wandb=disabled"]
    assert main(["reproduce", "gtn/cuts", *options, "--folder=out"]) == 0
    fine, coarse = csv.DictReader((folder / "out/results.csv").open())
    assert float(fine["measured"]) <= float(coarse["measured"])
    assert float(fine["chosen"].split()[0]) > float(coarse["chosen"].split()[0])
    assert main(["reproduce", "gtn/cuts", *options, "--folder=out", "--max_pieces=0"]) == 2
