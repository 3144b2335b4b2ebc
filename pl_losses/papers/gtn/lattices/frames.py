"""The lattice of a network that answers frame by frame, with CTC's model of characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_losses.core.precision import at_least_float32
from pl_losses.papers.gtn.lattices.arcs import ArcLattice
from pl_losses.papers.gtn.lattices.grammars import ctc_topology
from pl_losses.papers.gtn.lattices.lattice import SegmentLattice
from pl_losses.papers.gtn.lattices.paths import Path


class FrameLattice:
    """The output graph of a swept network: one arc per frame and symbol, composed with a character model.

    The character model is that of CTC: a sequence of symbols spells the string that remains when equal
    neighbours are merged and blanks are removed.

    Args:
        penalties: Penalty of each class and, last, of the blank, [B, T, C + 1].
        lengths: Number of frames of each line, [B].
    """

    def __init__(self, penalties: Tensor, lengths: Tensor) -> None:
        self.penalties = at_least_float32(penalties)
        self.lengths = lengths
        self._there = torch.arange(penalties.shape[1], device=penalties.device) < lengths[:, None]

    @property
    def feasible(self) -> Tensor:
        """Every line has a path, [B]."""
        return torch.ones_like(self.lengths, dtype=torch.bool)

    def forward_penalty(self) -> Tensor:
        """Return -log sum over all sequences of symbols of exp(-penalty), [B]."""
        return -(self._there * (-self.penalties).logsumexp(dim=2)).sum(dim=1)

    def viterbi_penalty(self) -> Tensor:
        """Return the smallest penalty of a sequence of symbols, [B]."""
        return (self._there * self.penalties.amin(dim=2)).sum(dim=1)

    def best_path(self) -> list[Path]:
        """Return the best sequence's string; cuts are the frames where characters begin."""
        best = self.penalties.detach().argmin(dim=2).tolist()
        rows = zip(best, self.lengths.tolist(), self.viterbi_penalty().tolist(), strict=True)
        return [self._collapsed(row[:length], penalty) for row, length, penalty in rows]

    @overload
    def constrain(self, targets: Tensor, target_lengths: Tensor | None = None) -> SpelledFrames: ...
    @overload
    def constrain(self, targets: ArcLattice) -> ArcLattice: ...
    def constrain(
        self, targets: Tensor | ArcLattice, target_lengths: Tensor | None = None
    ) -> SpelledFrames | ArcLattice:
        """Return the sequences that spell the targets [B, L], of lengths [B], or those of a grammar."""
        if isinstance(targets, ArcLattice):
            return self.to_arcs().constrain(targets)
        if target_lengths is None:
            target_lengths = torch.full_like(self.lengths, targets.shape[1])
        return SpelledFrames(self, targets, target_lengths)

    def to_arcs(self) -> ArcLattice:
        """Compose the graph with CTC's transducer, so that its paths spell strings."""
        symbols = self.penalties.shape[2]
        frames = SegmentLattice(self.penalties[:, :, None], self.lengths)
        return frames.to_arcs().compose(ctc_topology(symbols, blank=symbols - 1))

    def _collapsed(self, symbols: Sequence[int], penalty: float) -> Path:
        blank = self.penalties.shape[2] - 1
        before = [blank, *symbols[:-1]]
        starts = [t for t, (a, b) in enumerate(zip(before, symbols, strict=True)) if b not in (a, blank)]
        # The first character's segment begins with the line.
        cuts = (0, *starts[1:], len(symbols)) if starts else (0,)
        return Path(penalty, tuple(symbols[t] for t in starts), cuts)


class SpelledFrames:
    """A :class:`FrameLattice` constrained to one string per line.

    Args:
        lattice: B lines.
        targets: Classes, [B, L].
        target_lengths: [B].
    """

    def __init__(self, lattice: FrameLattice, targets: Tensor, target_lengths: Tensor) -> None:
        self.lattice, self.targets, self.target_lengths = lattice, targets, target_lengths

    @property
    def feasible(self) -> Tensor:
        """Whether a line has frames enough, [B]: one per character and per blank between equal ones."""
        places = torch.arange(1, self.targets.shape[1], device=self.targets.device)
        equal = (self.targets[:, 1:] == self.targets[:, :-1]) & (places < self.target_lengths[:, None])
        return self.target_lengths + equal.sum(dim=1) <= self.lattice.lengths

    def forward_penalty(self) -> Tensor:
        """Return -log sum over sequences that spell the target of exp(-penalty), [B]; ``inf`` without one.

        It is the free lattice's plus CTC's loss, which is of probabilities normalised frame by frame.
        """
        lattice = self.lattice
        scores = (-lattice.penalties).log_softmax(dim=2).transpose(0, 1)
        lengths = (lattice.lengths, self.target_lengths)
        blank = scores.shape[2] - 1
        loss = F.ctc_loss(scores, self.targets, *lengths, blank, reduction="none", zero_infinity=True)
        return (loss + lattice.forward_penalty()).where(self.feasible, float("inf"))

    def viterbi_penalty(self) -> Tensor:
        """Return the smallest penalty of a sequence that spells the target, [B]; ``inf`` without one."""
        penalties, batch = self.lattice.penalties, len(self.targets)
        blank = penalties.shape[2] - 1
        states = self.targets.new_full((batch, 2 * self.targets.shape[1] + 1), blank)
        states[:, 1::2] = self.targets
        emitted = penalties.gather(2, states[:, None, :].expand(-1, penalties.shape[1], -1))
        # From two states before, one skips the blank between different characters.
        skips = (states != blank) & (states != F.pad(states, (2, 0), value=blank)[:, :-2])
        best = penalties.new_full(states.shape, float("inf"))
        best = torch.cat([emitted[:, 0, :2], best[:, 2:]], dim=1)
        for t in range(1, penalties.shape[1]):
            one = F.pad(best, (1, 0), value=float("inf"))[:, :-1]
            two = F.pad(best, (2, 0), value=float("inf"))[:, :-2].where(skips, float("inf"))
            after = torch.minimum(torch.minimum(best, one), two) + emitted[:, t]
            best = after.where((t < self.lattice.lengths)[:, None], best)
        last = 2 * self.target_lengths[:, None]
        ends = best.gather(1, torch.cat([last, (last - 1).clamp(min=0)], dim=1))
        return ends.amin(dim=1)
