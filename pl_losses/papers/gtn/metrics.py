"""Errors of string recognition, of strings and of characters, and the error-reject curve."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import torch
from torch import Tensor
from torchmetrics import Metric

from pl_losses.core.metrics import ListMetric, binomial_interval
from pl_losses.core.validation import check_integers, check_real, check_shape, typed
from pl_losses.papers.gtn.lattices.validation import within


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the fewest insertions, deletions and substitutions that turn one sequence into the other.

    >>> edit_distance((3, 1, 4, 1), (3, 4, 1, 5))
    2
    """
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


@typed
def count_edits(predicted: Sequence[Sequence[int]], targets: Tensor, lengths: Tensor) -> Tensor:
    """Compute edit distances of B label strings from the targets [B, L] of these lengths [B]: [B].

    >>> count_edits([(1, 2, 3), (4, 4)], torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2]))
    tensor([0, 1])
    """
    check_integers("targets", targets)
    check_integers("lengths", lengths)
    check_shape("targets", targets, len(predicted), "L")
    check_shape("lengths", lengths, len(predicted))
    within("lengths", lengths, 0, targets.shape[1])
    rows = zip(predicted, targets.tolist(), lengths.tolist(), strict=True)
    edits = [edit_distance(found, row[:length]) for found, row, length in rows]
    return torch.tensor(edits, dtype=torch.long, device=targets.device)


class StringErrors(Metric):
    """String error rate and character error rate, exact over any number of ranks and uneven batches.

    A string is wrong unless it is read exactly; the character error rate is the sum of edit distances over
    the number of characters, and may exceed 1.

    Example:
        >>> errors = StringErrors()
        >>> errors.update(torch.tensor([0, 1]), torch.tensor([3, 2]))
        >>> errors.compute()
        tensor([0.5000, 0.2000])
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Strings, wrong ones, characters, edits, and the sums of edits^2, characters^2, edits x characters.
        self.add_state("sums", torch.zeros(7, dtype=torch.long), dist_reduce_fx="sum")
        self._counted = [0] * 7

    @typed
    def update(self, edits: Tensor, lengths: Tensor) -> None:
        """Count a batch: edit distances and lengths of the right strings, [B] each."""
        check_shape("edits", edits, "B")
        check_shape("lengths", lengths, len(edits))
        check_integers("edits", edits)
        check_integers("lengths", lengths)
        products = (edits * edits, lengths * lengths, edits * lengths)
        columns = (torch.ones_like(edits), (edits > 0).long(), lengths, edits, *products)
        self.sums += torch.stack(columns).sum(dim=1)

    def compute(self) -> Tensor:
        """Compute string error rate and character error rate, [2]; NaN before any sample."""
        self._counted = self.sums.tolist()
        strings, wrong, characters, edits = self.sums[:4]
        return torch.stack([wrong / strings, edits / characters])

    def intervals(self) -> tuple[float, float, float, float]:
        """Return the ends of the 95 % intervals of both rates at the last :meth:`compute`.

        The interval of strings is exact (Clopper and Pearson). That of characters is the normal approximation
        for a ratio of sums over strings, since errors within a string are correlated.
        """
        strings, wrong, characters, edits, edits2, characters2, both = self._counted
        if not characters:
            return *binomial_interval(wrong, strings), nan, nan
        rate = edits / characters
        squares = edits2 - 2 * rate * both + rate * rate * characters2
        half = 1.96 * (max(0.0, squares) * strings / max(1, strings - 1)) ** 0.5 / characters
        return *binomial_interval(wrong, strings), max(0.0, rate - half), rate + half


class ErrorReject(ListMetric):
    """Error-reject curve: the remaining error if the least confident answers are rejected."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_rows("confidence")
        self.add_rows("wrong", dtype=torch.bool)

    @typed
    def update(self, confidence: Tensor, wrong: Tensor) -> None:
        """Add a batch: confidence [B], and whether the answer is wrong [B]."""
        check_shape("confidence", confidence, "B")
        check_real("confidence", confidence)
        check_shape("wrong", wrong, len(confidence))
        self.keep(confidence=confidence, wrong=wrong.to(confidence.device))

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the curve of :func:`error_reject_curve` over all answers."""
        return error_reject_curve(self.rows("confidence"), self.rows("wrong"))


@typed
def error_reject_curve(confidence: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the share of rejected answers and the error among the rest, for every threshold.

    Args:
        confidence: [N].
        wrong: Whether the answer is wrong, [N].

    Returns:
        Thresholds (ascending, each answer's confidence), share of answers with less confidence, and error
        among the others, [T] each with T the number of different confidences.

    Example:
        >>> error_reject_curve(torch.tensor([0.9, 0.2, 0.8, 0.9]), torch.tensor([False, True, False, True]))
        (tensor([0.2000, 0.8000, 0.9000]), tensor([0.0000, 0.2500, 0.5000]), tensor([0.5000, 0.3333, 0.5000]))
    """
    check_shape("confidence", confidence, "N")
    check_real("confidence", confidence)
    check_shape("wrong", wrong, len(confidence))
    if confidence.isnan().any():
        raise ValueError("Expected `confidence` to be numbers but got NaN")
    thresholds, counts = torch.unique(confidence, return_counts=True)
    rejected = counts.cumsum(0) - counts
    # Wrong answers of at least each threshold, from the most confident down.
    place = torch.searchsorted(thresholds, confidence)
    missed = torch.zeros_like(counts).index_add(0, place, wrong.to(counts.dtype))
    left = missed.flip(0).cumsum(0).flip(0)
    return thresholds, rejected / len(confidence), left / (len(confidence) - rejected)
