"""LeCun et al. 1998, sections V to VIII: the base of all readers of lines, whatever their lattice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Generic, Literal, NamedTuple, TypedDict, TypeVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from pl_losses.core import expected
from pl_losses.core.base import PaperModule
from pl_losses.core.declared import Keys
from pl_losses.core.manifest import HEADLINE
from pl_losses.core.metrics import computed
from pl_losses.core.panels import Sections
from pl_losses.core.sums import Mean
from pl_losses.core.validation import check_init, check_positive
from pl_losses.data.lines import Characters, Lines
from pl_losses.papers.gtn import criteria, manifest
from pl_losses.papers.gtn.lattices.grammars import lexicon as word_graph
from pl_losses.papers.gtn.lattices.paths import Path
from pl_losses.papers.gtn.lattices.protocol import DecodableLattice, Lattice
from pl_losses.papers.gtn.lattices.validation import floating
from pl_losses.papers.gtn.metrics import ErrorReject, StringErrors, count_edits
from pl_losses.papers.lenet.losses import map_loss

L = TypeVar("L", bound=DecodableLattice)  # What a reader's `forward` makes of lines.

Criterion = Literal["viterbi", "discriminative_viterbi", "forward", "discriminative_forward"]
CRITERIA = ("viterbi", "discriminative_viterbi", "forward", "discriminative_forward")

KEYS = {
    "train/loss": "the criterion in the last batch, nats; strings that no path spells are left out",
    "train/infeasible": "share of the last batch's strings that no path spells, 0 to 1",
    "val/loss": "the criterion, mean over strings, nats",
    "val/error": "share of strings not read exactly, 0 to 1",
    "val/character_error": "sum of edit distances, divided by the number of characters",
    "test/loss": "the criterion, mean over strings, nats",
    "test/infeasible": "share of strings that no path spells, 0 to 1",
    "test/error": "share of strings not read exactly, 0 to 1",
    "test/error_low": "lower end of its 95 % binomial interval",
    "test/error_high": "upper end of its 95 % binomial interval",
    "test/character_error": "sum of edit distances, divided by the number of characters",
    "test/character_error_low": "lower end of its 95 % interval",
    "test/character_error_high": "upper end of its 95 % interval",
    "test/rejected": "share of strings whose confidence is below `reject_below`, 0 to 1",
    "test/error_accepted": "share of the other strings that are not read exactly, 0 to 1",
}


class Reading(NamedTuple):
    r"""The answers for B lines.

    Attributes:
        paths: The answer's path for each line; without labels if there is none.
        confidence: Probability of the answer given the line, :math:`\exp(-E_\text{dforw})`, [B]: among all
            strings, or among those of the lexicon.
    """

    paths: list[Path]
    confidence: Tensor


class Evaluation(TypedDict):
    """What a test tells of a batch of B lines, of which the first ``own`` count."""

    reading: Reading
    wrong: Tensor  # Whether the answer is another string, [B].
    infeasible: Tensor  # Whether no path spells the right string, [B].
    own: int


class Answers(TypedDict):
    """What is predicted of B lines: strings, whether they are accepted, and the reading."""

    strings: list[str]
    accepted: Tensor
    paths: list[Path]
    confidence: Tensor


class StringReader(PaperModule, Generic[L]):
    """Base of the readers of lines: define ``forward``, from images [B, 1, H, W] to a lattice of B graphs.

    It is trained on ``Lines`` by the criterion, and on isolated ``Characters`` by eq. 9 of section III.
    Strings that no path spells do not take part in the loss. Logs the keys of :attr:`KEYS`, exact over ranks.

    To subclass, define ``forward`` and :meth:`character_penalties`; override :meth:`compute_loss`,
    :meth:`columns` or :meth:`configure_metrics`, which the constructor must call.

    Args:
        criterion: "viterbi", "discriminative_viterbi", "forward" or "discriminative_forward" (section VI).
        alphabet: The characters, in the order of the classes.
        penalty_scale: Factor of the recogniser's penalties. Squared distances are of the order of 100 before
            training. Without a factor one class always has a posterior near 1, and training is slow.
        rubbish_penalty: The j > 0 of eq. 9, for isolated characters.
        decoder: Answer with the best path ("viterbi"), or with the best segment at each step from the left
            ("greedy").
        lexicon: The only strings that are answers; default: any. Needs the "viterbi" decoder. Confidence is
            then the answer's probability among these: with a single word it is 1 for any line.
        reject_below: An answer is rejected if its confidence is below this.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer, see :class:`~pl_losses.core.base.PaperModule`.

    Raises:
        ValueError: If an argument is out of range or none of its choices.
    """

    KEYS: ClassVar[Keys] = KEYS
    panels: ClassVar[Sections] = manifest.STRING_READER
    headline: ClassVar[str] = HEADLINE
    best: ClassVar[dict[str, Literal["min", "max"]]] = dict.fromkeys(
        ("train/loss", "val/loss", "val/error", "val/character_error", "test/loss", "test/error"), "min"
    )

    def __init__(
        self,
        criterion: Criterion = "discriminative_forward",
        alphabet: str = "0123456789",
        *,
        penalty_scale: float = 0.1,
        rubbish_penalty: float = 1.0,
        decoder: Literal["viterbi", "greedy"] = "viterbi",
        lexicon: list[str] | None = None,
        reject_below: float = 0.5,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_init(locals())
        super().__init__(optimizer, lr_scheduler)
        if not alphabet or len(set(alphabet)) < len(alphabet):
            raise ValueError(f"Expected `alphabet` of different characters but got {alphabet!r}")
        if not 0 <= reject_below <= 1:
            raise ValueError(f"Expected `reject_below` in [0, 1] but got {reject_below}")
        check_positive("penalty_scale", penalty_scale)
        check_positive("rubbish_penalty", rubbish_penalty)
        self.criterion, self.alphabet = criterion, alphabet
        self.penalty_scale, self.rubbish_penalty = penalty_scale, rubbish_penalty
        self.decoder, self.reject_below = decoder, reject_below
        self.words = None if lexicon is None else [self._encoded(word) for word in dict.fromkeys(lexicon)]
        if self.words is not None and (not self.words or decoder == "greedy"):
            raise ValueError("Expected `lexicon` of at least one string, with the `decoder` 'viterbi'")

    def _encoded(self, word: str) -> tuple[int, ...]:
        if not word or (strange := set(word) - set(self.alphabet)):
            what = f"{''.join(sorted(strange))!r}" if word else "an empty string"
            raise ValueError(f"Expected `lexicon` of strings in `alphabet` {self.alphabet!r} but got {what}")
        return tuple(map(self.alphabet.index, word))

    def setup(self, stage: str) -> None:
        """Refuse data whose classes are not the characters of ``alphabet``, in its order.

        Raises:
            ValueError: If they differ; the data may lack the last ones.
        """
        # `trainer` raises where there is none.
        datamodule = getattr(self.trainer_or_none, "datamodule", None)
        names = "".join(getattr(datamodule, "class_names", None) or ())
        if not self.alphabet.startswith(names):
            raise ValueError(
                f"Expected `alphabet` to be that of the data, {names!r}, but got {self.alphabet!r}"
            )

    def check_images(self, images: Tensor, height: int | None = None) -> None:
        """Refuse images that are not lines [B, 1, H, W] of ink in [0, 1], or have another ``height``.

        Raises:
            TypeError: If they are not floating point.
            ValueError: If they are of another shape, empty, not finite, or out of range.
        """
        rows = "H" if height is None else str(height)
        shaped = images.ndim == 4 and images.shape[1] == 1 and images.shape[2] == (height or images.shape[2])
        if not shaped or not images.numel():
            raise ValueError(f"Expected `images` of shape [B, 1, {rows}, W] but got {list(images.shape)}")
        low, high = (float(end) for end in floating("images", images).detach().aminmax())
        # Allow for resampling's overshoot; comparisons with NaN are false.
        if not (low >= -0.05 and high <= 1.05):
            raise ValueError(f"Expected `images` of ink in [0, 1] but got values from {low:g} to {high:g}")

    def character_penalties(self, images: Tensor) -> Tensor:
        """Compute the penalties of isolated characters: [B, 1, H, W] -> [B, C]."""
        raise NotImplementedError(f"Expected `{type(self).__name__}` to override `character_penalties`")

    def columns(self, images: Tensor, paths: Sequence[Path]) -> list[list[int]]:
        """Return the columns of its image where each path is cut."""
        raise NotImplementedError(f"Expected `{type(self).__name__}` to override `columns`")

    def configure_metrics(self) -> None:
        """Build the metrics, which are summed over ranks."""
        self.val_errors, self.test_errors = StringErrors(), StringErrors()
        self.val_loss, self.test_loss, self.test_infeasible = Mean(), Mean(), Mean()
        self.error_reject = ErrorReject()

    def compute_loss(self, lattice: L, targets: Tensor, lengths: Tensor) -> Tensor:
        """Compute the criterion of each string, ``inf`` if no path spells it: targets [B, L] -> [B]."""
        function = getattr(criteria, f"{self.criterion}_loss")
        losses: Tensor = function(lattice, targets, lengths, reduction="none")
        return losses

    def _losses(self, lattice: L, batch: Lines) -> Tensor:
        losses = self.compute_loss(lattice, batch.targets, batch.target_lengths)
        return expected.loss(self, "compute_loss", losses, len(batch.targets))

    def training_step(self, batch: Lines | Characters, batch_idx: int) -> Tensor:
        """Compute and log the loss of a batch of lines or of isolated characters."""
        expected.of_kind(self, batch, Lines, Characters)
        count: int | Tensor
        own = self.num_unpadded(batch_idx, len(batch.images))
        if isinstance(batch, Characters):
            count, rows = own, own or len(batch.labels)
            penalties = self.character_penalties(batch.images)[:rows]
            loss = map_loss(penalties, batch.labels[:rows], self.rubbish_penalty)
        else:
            losses = self._losses(self(batch.images), batch)
            spelt = losses != float("inf")
            self.log("train/infeasible", 1 - spelt.float().mean(), batch_size=len(losses))
            spelt[own:] = False
            count = spelt.sum()
            loss = losses.where(spelt, 0.0).sum() / count.clamp(min=1)
        self.refuse_non_finite(loss)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.images))
        return loss * self.rank_weight(count)

    def read(self, lattice: L) -> Reading:
        """Return the answers of a lattice, with their confidence."""
        whole: L | Lattice = lattice if self.words is None else lattice.constrain(word_graph(self.words))
        paths = self.greedy_paths(lattice) if self.decoder == "greedy" else whole.best_path()
        longest = max(1, *(len(path.labels) for path in paths))
        labels = [path.labels + (0,) * (longest - len(path.labels)) for path in paths]
        lengths = torch.tensor([len(path.labels) for path in paths], device=self.device)
        answers = torch.tensor(labels, device=self.device)
        penalty = lattice.constrain(answers, lengths).forward_penalty() - whole.forward_penalty()
        # Without any path it is inf - inf.
        return Reading(paths, torch.exp(-penalty.clamp(min=0)).nan_to_num(0.0))

    def greedy_paths(self, lattice: L) -> list[Path]:
        """Return the answers without a search, for ``decoder="greedy"``."""
        raise NotImplementedError(f"Expected `{type(self).__name__}` to override `greedy_paths`")

    def _evaluated(self, stage: str, batch: Lines, batch_idx: int) -> Evaluation:
        expected.of_kind(self, batch, Lines)
        lattice = self(batch.images)
        reading = self.read(lattice)
        edits = count_edits([path.labels for path in reading.paths], batch.targets, batch.target_lengths)
        losses = self._losses(lattice, batch)
        own = self.num_unpadded(batch_idx, len(edits))
        getattr(self, f"{stage}_errors").update(edits[:own], batch.target_lengths[:own])
        spelt = losses != float("inf")
        getattr(self, f"{stage}_loss").update(losses[:own][spelt[:own]])
        return {"reading": reading, "wrong": edits > 0, "infeasible": ~spelt, "own": own}

    def validation_step(self, batch: Lines, batch_idx: int) -> None:
        """Count errors."""
        self._evaluated("val", batch, batch_idx)

    def test_step(self, batch: Lines, batch_idx: int) -> Evaluation:
        """Count errors; return what ``ReadingReport`` draws, of which the first ``own`` lines count."""
        found = self._evaluated("test", batch, batch_idx)
        own = found["own"]
        self.test_infeasible.update(found["infeasible"][:own])
        self.error_reject.update(found["reading"].confidence[:own], found["wrong"][:own])
        return found

    def evaluation_results(self, stage: str) -> dict[str, Tensor | float]:
        """Return loss and errors; for a test with intervals and the results of rejection."""
        errors: StringErrors = getattr(self, f"{stage}_errors")
        error, character_error = computed(errors)
        loss = computed(getattr(self, f"{stage}_loss"))
        values = {"loss": loss, "error": error, "character_error": character_error}
        if stage == "val" or not bool(error.isfinite()):
            return values
        low, high, character_low, character_high = errors.intervals()
        values |= {"error_low": low, "error_high": high}
        values |= {"character_error_low": character_low, "character_error_high": character_high}
        thresholds, rejected, accepted_error = computed(self.error_reject)
        chosen = int(torch.searchsorted(thresholds, self.reject_below))
        none_left = chosen == len(thresholds)
        values["rejected"] = 1.0 if none_left else float(rejected[chosen])
        if not none_left:
            values["error_accepted"] = float(accepted_error[chosen])
        return values | {"infeasible": computed(self.test_infeasible)}

    def predict_step(self, batch: object, batch_idx: int) -> Answers:
        """Predict the answers as strings, with confidence [B], acceptance [B], and the paths."""
        images = expected.first(self, batch)
        reading = self.read(self(images))
        strings = ["".join(self.alphabet[label] for label in path.labels) for path in reading.paths]
        accepted = reading.confidence >= self.reject_below
        return Answers(strings=strings, accepted=accepted, paths=reading.paths, confidence=reading.confidence)
