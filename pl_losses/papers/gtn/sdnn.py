"""LeCun et al. 1998, section VII: the space displacement network, LeNet-5 swept over the line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.validation import check_init
from pl_losses.papers.gtn.base import Criterion, StringReader
from pl_losses.papers.gtn.lattice_reader import HIGH, LOW
from pl_losses.papers.gtn.lattices.frames import FrameLattice
from pl_losses.papers.gtn.lattices.paths import Path
from pl_losses.papers.gtn.segmentation import INK, centred
from pl_losses.papers.lenet.layers import LeNet5Features, RBFOutput, digit_codes

STRIDE, WINDOW = 4, 32  # LeNet-5 has one output every 4 columns, each of which sees 32.
MARGIN = 12  # Background added on both sides, so that a window can be centred near the line's end.


class SDNN(StringReader[FrameLattice]):
    """Reads lines by moving LeNet-5 over them: C5 is a convolution, so one pass computes all positions.

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
