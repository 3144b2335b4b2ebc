"""LeCun et al. 1998, section IV: how finely to cut strings of digits.

``pl-losses reproduce gtn/cuts`` counts the held-out strings that cannot be read; no network is trained.
"""

from __future__ import annotations

from typing import Literal

import torch

from pl_losses.core.experiment import Experiment, Recording
from pl_losses.core.protocol import Job, Score, measure, report
from pl_losses.core.results import Row
from pl_losses.core.validation import check_counts, check_some, typed
from pl_losses.data import DigitStrings
from pl_losses.papers.gtn.segmentation import candidate_cuts

NEAR = 2  # Columns between a boundary and its cut.
BATCH = 500


@typed
def reproduce(
    radius: list[int] | None = None,
    projection_radius: list[int] | None = None,
    *,
    max_pieces: int = 6,
    eval_strings: int | None = None,
    seeds: int = 5,
    dataset: Literal["mnist", "digits"] = "mnist",
    root: str | None = None,
    folder: str = "runs/gtn/cuts",
    wandb: Recording = "offline",
) -> None:
    """Section IV: strings that cannot be read, with finer and coarser cuts.

    A string can be read if each boundary of two digits has a cut within two columns, and no digit has more
    pieces than a segment may have. All strings are made of training digits that were held out. Finer cuts
    leave fewer strings unreadable, but make more pieces, and the network reads more segments. The folder gets
    ``trainings.csv``, ``results.csv``, ``results.png`` and a W&B run.

    Args:
        radius: Of the cuts, see :func:`~pl_losses.papers.gtn.segmentation.candidate_cuts`. Default: 1, 2, 3.
        projection_radius: Likewise. Default: 3, 5, 7, 9, 11.
        max_pieces: The most pieces of a segment.
        eval_strings: Strings of a seed. Default: as many as use each digit once.
        seeds: Sets of strings, and of digits held out.
        dataset: Strings of MNIST's digits ("mnist"), or of scikit-learn's, which need no download ("digits").
        root: Folder with MNIST. Default: the environment variable PL_LOSSES_DATA.
        folder: For the results. A folder with a part of them is resumed.
        wandb: Whether W&B records the tables and the picture, and where.

    Raises:
        ValueError: If an argument is out of range, or the folder has the results of other arguments.
    """
    check_counts(max_pieces=max_pieces, seeds=seeds)
    check_some(radius=radius, projection_radius=projection_radius)
    arguments = {"max_pieces": max_pieces, "eval_strings": eval_strings, "dataset": dataset}
    kept = Experiment("gtn/cuts", folder, arguments)
    kept.also |= {"radius": radius, "projection_radius": projection_radius}

    def score(jobs: list[Job]) -> list[Score]:
        (job,) = jobs
        data = DigitStrings(dataset, root, eval_strings=eval_strings, seed=job.seed)
        data.prepare_data()
        data.setup("fit")
        return [unreadable(data, "val", max_pieces, **job.setting)]

    grid = {
        f"radius {one}, projection {other}": [{"radius": one, "projection_radius": other}]
        for one in radius or (1, 2, 3)
        for other in projection_radius or (3, 5, 7, 9, 11)
    }
    rows = []
    for one in measure(kept, grid, seeds, score):
        pieces = sum(score.curve for score in one.scores) / seeds
        row = one.row() | {"chosen": f"{pieces:.2f} pieces per digit"}
        rows.append(Row(one.method, "strings that cannot be read, %", **row))
    report(kept, wandb, rows)


def unreadable(
    data: DigitStrings, split: str, max_pieces: int, *, radius: int, projection_radius: int
) -> Score:
    """Return the share of strings of a split that cannot be read, with the pieces per digit as its curve."""
    strings = data.tensors[split][0]
    wrong, pieces = 0, 0
    for start in range(0, len(strings), BATCH):
        lines = data.compose(split, 0, strings[start : start + BATCH])
        cuts = candidate_cuts(lines.images, radius=radius, projection_radius=projection_radius)
        distance, nearest = (lines.boundaries[:, :, None] - cuts.columns[:, None]).abs().min(dim=2)
        ends = torch.cat([torch.zeros_like(nearest[:, :1]), nearest, cuts.lengths[:, None]], dim=1)
        counts = ends.diff(dim=1)  # Pieces of each digit.
        readable = (distance <= NEAR).all(dim=1) & ((counts > 0) & (counts <= max_pieces)).all(dim=1)
        wrong += int((~readable).sum())
        pieces += int(cuts.lengths.sum())
    return Score.of_error(wrong / len(strings), len(strings), pieces / (len(strings) * data.longest))
