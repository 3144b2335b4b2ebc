"""LeCun et al. 1998, sections V and VI: a reader of lines by heuristic over-segmentation (Figs. 17 to 19)."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from math import isfinite
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.validation import check_counts, check_init
from pl_losses.core.weights import load_start
from pl_losses.papers.gtn.base import Criterion, StringReader
from pl_losses.papers.gtn.lattices.lattice import SegmentLattice
from pl_losses.papers.gtn.lattices.paths import NO_PATH, Path
from pl_losses.papers.gtn.segmentation import Cuts, candidate_cuts, centred, cut_segments
from pl_losses.papers.lenet.module import LeNet5

LOW, HIGH = -0.1, 1.175  # LeNet-5's values of background and ink.


class LatticeReader(StringReader[SegmentLattice]):
    """Reads lines by heuristic over-segmentation, LeNet-5 and a lattice of all segments (Fig. 19).

    The recogniser sees all segments of a batch in one pass. It gives each segment a penalty for each class,
    and ``segment_penalty`` is added. There is no class for a segment that is no character. With the
    discriminative criteria the recogniser learns to give such a segment high penalties.

    To change it, override :meth:`configure_recogniser`, :meth:`cut`, :meth:`segment_penalties` or
    :meth:`compute_loss`.

    Args:
        criterion: "viterbi", "discriminative_viterbi", "forward" or "discriminative_forward" (section VI).
        alphabet: The characters, in the order of the classes. If they are not the ten digits, a
            ``recogniser`` is needed.
        max_pieces: K, the most pieces of a segment.
        max_width: The widest segment, in columns; the widest slanted digits have 28.
        radius: See :func:`~pl_losses.papers.gtn.segmentation.candidate_cuts`.
        projection_radius: See there.
        max_ink: See there.
        deslant: Whether to remove each segment's slant, by the second moments of its ink.
        segment_penalty: Added to the penalty of each segment. Above 0, it makes readings of fewer characters
            better.
        centres: LeNet-5's, see :class:`~pl_losses.LeNet5`: "fixed", "adaptable" or "random".
        recogniser: Segments [M, 1, 32, 32], from -0.1 to 1.175, to penalties [M, C]; default: LeNet-5. It is
            not plain data: pass it to ``load_from_checkpoint`` again.
        start_from: Checkpoint whose weights the fit starts with, of a ``LeNet5`` with the same ``centres`` or
            of another ``LatticeReader``.
        penalty_scale: Factor of the recogniser's penalties. Squared distances are of the order of 100 before
            training. Without a factor one class always has a posterior near 1, and training is slow.
        rubbish_penalty: The j > 0 of eq. 9, for isolated characters.
        decoder: Answer with the best path ("viterbi"), or with the best segment at each step from the left
            ("greedy").
        lexicon: The only strings that are answers; default: any. Needs the "viterbi" decoder.
        reject_below: An answer is rejected if its confidence is below this.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer, see :class:`~pl_losses.core.base.PaperModule`.

    Raises:
        ValueError: If an argument is out of range or none of its choices.
    """

    compiled = ("recogniser",)

    def __init__(
        self,
        criterion: Criterion = "discriminative_forward",
        alphabet: str = "0123456789",
        *,
        max_pieces: int = 4,
        max_width: int = 29,
        radius: int = 2,
        projection_radius: int = 3,
        max_ink: float = 12.0,
        deslant: bool = False,
        segment_penalty: float = 0.0,
        centres: Literal["fixed", "adaptable", "random"] = "fixed",
        recogniser: nn.Module | None = None,
        start_from: str | pathlib.Path | None = None,
        penalty_scale: float = 0.1,
        rubbish_penalty: float = 1.0,
        decoder: Literal["viterbi", "greedy"] = "viterbi",
        lexicon: list[str] | None = None,
        reject_below: float = 0.5,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        super().__init__(
            criterion,
            alphabet,
            penalty_scale=penalty_scale,
            rubbish_penalty=rubbish_penalty,
            decoder=decoder,
            lexicon=lexicon,
            reject_below=reject_below,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        check_counts(
            max_pieces=max_pieces, max_width=max_width, radius=radius, projection_radius=projection_radius
        )
        if not max_ink > 0:
            raise ValueError(f"Expected `max_ink` to be positive but got {max_ink}")
        if not isfinite(segment_penalty):
            raise ValueError(f"Expected `segment_penalty` to be finite but got {segment_penalty}")
        save_plain_hyperparameters(self)
        self.max_pieces, self.max_width = max_pieces, max_width
        self.radius, self.projection_radius, self.max_ink = radius, projection_radius, max_ink
        self.deslant = deslant
        self.segment_penalty, self.centres, self.start_from = segment_penalty, centres, start_from
        self.recogniser = self.configure_recogniser() if recogniser is None else recogniser
        self.configure_metrics()

    def configure_recogniser(self) -> nn.Module:
        """Build the recogniser: segments [M, 1, 32, 32] -> penalties [M, C], lower is better.

        Raises:
            ValueError: If the alphabet is not of ten characters: LeNet-5's codes are bitmaps of the digits.
        """
        if len(self.alphabet) != 10 and self.centres != "random":
            raise ValueError(
                f'Expected a `recogniser`, or `centres` "random", for an `alphabet` of {len(self.alphabet)}'
                f" characters but got {self.centres!r}: LeNet-5's codes are bitmaps of the ten digits"
            )
        return LeNet5(len(self.alphabet), centres=self.centres)

    def setup(self, stage: str) -> None:
        """Start a fit with the weights of ``start_from``; a checkpoint to resume is loaded later.

        Raises:
            ValueError: If there is no such file, it does not fit the recogniser, or the data have another
                alphabet.
        """
        super().setup(stage)
        if stage == "fit" and self.start_from is not None:
            load_start(self.recogniser, self.start_from, "recogniser.")

    def cut(self, images: Tensor) -> Cuts:
        """Choose where to cut lines [B, 1, H, W] into pieces."""
        return candidate_cuts(
            images, radius=self.radius, projection_radius=self.projection_radius, max_ink=self.max_ink
        )

    def segment_penalties(self, segments: Tensor) -> Tensor:
        """Compute the penalties of segments: ink in [0, 1], [M, 1, 32, 32] -> [M, C]."""
        penalties: Tensor = self.recogniser(LOW + (HIGH - LOW) * segments)
        return self.penalty_scale * penalties + self.segment_penalty

    def _checked(self, penalties: Tensor) -> Tensor:
        if penalties.ndim != 2 or penalties.shape[1] != len(self.alphabet):
            raise ValueError(
                f"Expected `recogniser` or `segment_penalties` to give [M, {len(self.alphabet)}], a penalty"
                f" for each character of `alphabet`, but got {list(penalties.shape)}"
            )
        return penalties

    def character_penalties(self, images: Tensor) -> Tensor:
        """Compute the penalties of isolated characters, each one segment: [B, 1, H, W] -> [B, C]."""
        self.check_images(images)
        return self._checked(self.segment_penalties(centred(images, deslant=self.deslant)))

    def forward(self, images: Tensor) -> SegmentLattice:
        """Build the interpretation graphs of lines.

        Args:
            images: Ink in [0, 1] on background 0, [B, 1, H, W].

        Returns:
            Lattice whose ``penalties`` are [B, N, K, C], infinite for segments that are too wide or empty.

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If they are of another shape, not finite, or not in [0, 1]; if the recogniser's
                penalties do not fit the alphabet.
        """
        self.check_images(images)
        cuts = self.cut(images)
        with torch.no_grad():
            segments = cut_segments(
                images, cuts, max_pieces=self.max_pieces, max_width=self.max_width, deslant=self.deslant
            )
        penalties = self._checked(self.segment_penalties(segments.images))
        shape = (len(images), cuts.columns.shape[1] - 1, self.max_pieces, penalties.shape[1])
        graph = penalties.new_full(shape, float("inf"))
        return SegmentLattice(
            graph.index_put((segments.line, segments.last, segments.extra), penalties), cuts.lengths
        )

    def columns(self, images: Tensor, paths: Sequence[Path]) -> list[list[int]]:
        """Return the columns of its image where each path is cut."""
        cuts = self.cut(images).columns.tolist()
        return [[row[cut] for cut in path.cuts] for row, path in zip(cuts, paths, strict=True)]

    def greedy_paths(self, lattice: SegmentLattice) -> list[Path]:
        """Take from the left always the best segment from which the end can be reached."""
        best, classes = lattice.penalties.detach().min(dim=3)
        lengths = [best.shape[1]] * len(best) if lattice.lengths is None else lattice.lengths.tolist()
        rows = zip(best.tolist(), classes.tolist(), lengths, strict=True)
        return [_greedy(*row, self.max_pieces) for row in rows]


def _greedy(best: list[list[float]], classes: list[list[int]], pieces: int, max_pieces: int) -> Path:
    """Find a line's greedy path: ``best[j][k]`` and its class are of k + 1 pieces that end with piece j."""

    def arcs(cut: int) -> list[tuple[float, int]]:
        ends = range(cut, min(cut + max_pieces, pieces))
        return [(best[j][j - cut], j + 1) for j in ends if best[j][j - cut] < float("inf") and open_[j + 1]]

    open_ = [False] * pieces + [True]
    for cut in reversed(range(pieces)):
        open_[cut] = bool(arcs(cut))
    if not open_[0]:
        return NO_PATH
    cuts, labels, total = [0], [], 0.0
    while cuts[-1] < pieces:
        penalty, to = min(arcs(cuts[-1]))
        labels.append(classes[to - 1][to - 1 - cuts[-1]])
        cuts.append(to)
        total += penalty
    return Path(total, tuple(labels), tuple(cuts))
