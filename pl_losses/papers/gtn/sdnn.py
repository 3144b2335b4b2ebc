"""LeCun et al. 1998, section VII: the space displacement network, LeNet-5 swept over the line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import check_init
from pl_losses.papers.gtn.base import Criterion, StringReader
from pl_losses.papers.gtn.lattice_reader import HIGH, LOW
from pl_losses.papers.gtn.lattices.arcs import ArcLattice
from pl_losses.papers.gtn.lattices.grammars import ctc_topology
from pl_losses.papers.gtn.lattices.lattice import SegmentLattice
from pl_losses.papers.gtn.lattices.paths import Path
from pl_losses.papers.gtn.segmentation import INK, centred
from pl_losses.papers.lenet.layers import LeNet5Features, RBFOutput, digit_codes

STRIDE, WINDOW = 4, 32  # LeNet-5 has one output every 4 columns, each of which sees 32.
MARGIN = 12  # Background added on both sides, so that a window can be centred near the line's end.


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


class SDNN(StringReader[FrameLattice]):
    """Reads lines by LeNet-5 swept over them: C5 is a convolution, so that one pass gives every position.

    Each fourth column has a penalty for each class, and one for the blank. The blank is an RBF unit whose
    code is an empty bitmap. The loss "discriminative_forward" is that of CTC: it equals
    ``torch.nn.functional.ctc_loss``.

    Args:
        criterion: "viterbi", "discriminative_viterbi", "forward" or "discriminative_forward" (section VI).
        centres: "fixed" RBF centres, or "adaptable" ones.
        penalty_scale: Factor of the squared distances.
        rubbish_penalty: The j > 0 of eq. 9, for isolated characters.
        lexicon: The only strings that are answers; default: any.
        reject_below: An answer is rejected if its confidence is below this.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer, see :class:`~pl_losses.core.base.PaperModule`.

    Example:
        >>> lattice = SDNN()(torch.zeros(1, 1, 32, 40))
        >>> lattice.penalties.shape
        torch.Size([1, 9, 11])
    """

    compiled = ("frame_penalties",)

    def __init__(
        self,
        criterion: Criterion = "discriminative_forward",
        *,
        centres: Literal["fixed", "adaptable"] = "fixed",
        penalty_scale: float = 0.1,
        rubbish_penalty: float = 1.0,
        lexicon: list[str] | None = None,
        reject_below: float = 0.5,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        super().__init__(
            criterion,
            "0123456789",
            penalty_scale=penalty_scale,
            rubbish_penalty=rubbish_penalty,
            decoder="viterbi",
            lexicon=lexicon,
            reject_below=reject_below,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        save_plain_hyperparameters(self)
        self.centres = centres
        self.network, self.output = self.configure_network(), self.configure_output()
        self.configure_metrics()

    def configure_network(self) -> nn.Module:
        """Build the network that is swept over the line: [B, 1, 32, W] -> [B, 84, 1, (W - 32) / 4 + 1]."""
        return LeNet5Features()

    def configure_output(self) -> nn.Module:
        """Build the output layer: features [M, 84] -> penalties [M, C + 1], the blank's last."""
        codes = digit_codes()
        return RBFOutput(torch.cat([codes, -torch.ones_like(codes[:1])]), self.centres == "adaptable")

    def frame_penalties(self, images: Tensor) -> Tensor:
        """Compute penalties at every fourth column: ink in [0, 1], [B, 1, 32, W] -> [B, T, C + 1]."""
        features = self.network(LOW + (HIGH - LOW) * images)
        frames = features[:, :, 0].transpose(1, 2)
        penalties: Tensor = self.output(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return self.penalty_scale * penalties

    def character_penalties(self, images: Tensor) -> Tensor:
        """Compute penalties of characters, each in the middle of a window: [B, 1, H, W] -> [B, C]."""
        self.check_images(images)
        return self.frame_penalties(centred(images))[:, 0, :-1]

    def forward(self, images: Tensor) -> FrameLattice:
        """Build the output graphs of lines: ink in [0, 1] on background 0, [B, 1, 32, W].

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If they are of another shape, not finite, or not in [0, 1].
        """
        self.check_images(images, WINDOW)
        # Lines end at their last ink, however wide the batch is.
        columns = torch.arange(1, images.shape[-1] + 1, device=images.device)
        widths = torch.where((images > INK).any(dim=2)[:, 0], columns, 0).amax(dim=1) + 2 * MARGIN
        framed = F.pad(images, (MARGIN, max(MARGIN, WINDOW - images.shape[-1])))
        lengths = (widths - WINDOW).clamp(min=0) // STRIDE + 1
        return FrameLattice(self.frame_penalties(framed), lengths)

    def columns(self, images: Tensor, paths: Sequence[Path]) -> list[list[int]]:
        """Return the columns where each path is cut: midway between the windows' middles."""
        shift = WINDOW // 2 - MARGIN - STRIDE // 2
        return [[STRIDE * cut + shift for cut in path.cuts] for path in paths]
