"""Gal and Ghahramani 2016, section 5.2: the trainings of Table 1's columns, all splits of a set at once.

"paper" and "10x" use the authors' p and tau. "grid" chooses p, the weight decay, the learning rate and tau of
each split by the log-likelihood of the last fifth of its training samples, then trains anew on all of them,
and uses the test samples only after that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pl_losses.core.files import checksum
from pl_losses.data import uci
from pl_losses.papers.dropout.objective import weight_decay_of
from pl_losses.papers.dropout.published import SETTINGS, Settings
from pl_losses.papers.dropout.table1.batched_mlp import Array, BatchedMLP, Standardised, train
from pl_losses.papers.dropout.table1.batched_scores import mc_scores

# Members trained at once: more hardly lower the overhead of a step, and take memory.
TOGETHER = 60
# Time of a test pass, forward only, relative to one of training.
TEST_SHARE = 0.4


class Schedule(NamedTuple):
    """The training of a column.

    Attributes:
        epochs: Epochs in units of the set's, see ``Settings``.
        batch_size: Samples per step.
        cosine: Whether the learning rate falls to 0 as a half cosine.
        steps: Least number of steps; the epochs are increased to reach it.
    """

    epochs: int
    batch_size: int
    cosine: bool = False
    steps: int = 0

    def factor(self) -> Callable[[float], float] | None:
        """Return the function from the share of steps done to the learning rate's factor."""
        return (lambda share: 0.5 * (1 + math.cos(math.pi * share))) if self.cosine else None


COLUMNS = {
    "paper": Schedule(10, 32),
    "10x": Schedule(100, 128),
    "grid": Schedule(10, 32, cosine=True, steps=30_000),
}
LEARNING_RATE = 1e-3  # The authors'.

# From noise ten times the targets' variance to a hundred-thousandth of it, 16 a decade.
GRID = tuple(10 ** (exponent / 16) for exponent in range(-16, 81))


class Choice(NamedTuple):
    """The values that "grid" chooses from.

    Attributes:
        p: Probabilities of dropping a unit.
        weight_decay: lambda for the whole training set; for a part of it, larger by the ratio of their sizes.
        learning_rate: Adam's, at the start.
        precision: tau, in the units of the standardised targets.
        samples: Passes T per validation sample.
    """

    # The authors' p; decades of lambda, around theirs; their learning rate and its tenfold.
    p: tuple[float, ...] = (0.005, 0.01, 0.05, 0.1)
    weight_decay: tuple[float, ...] = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
    learning_rate: tuple[float, ...] = (1e-3, 1e-2)
    precision: tuple[float, ...] = GRID
    samples: int = 200

    def settings(self) -> list[tuple[float, float, float]]:
        """List all p, weight decays and learning rates to train with."""
        return list(product(self.p, self.weight_decay, self.learning_rate))


@dataclass(frozen=True)
class Case:
    """A set, its splits, and what its columns have in common.

    Attributes:
        name: The set's name.
        inputs: [N, Q].
        targets: [N].
        splits: Rows to train on and rows to test, of each split.
        settings: The authors'; for a set of your own the defaults.
        samples: Passes T per test sample.
        repeats: Trainings of each split, whose scores are averaged.
        seed: Seed of everything random.
        scale: Factor of the number of epochs.
    """

    name: str
    inputs: Array
    targets: Array
    splits: list[tuple[uci.Rows, uci.Rows]]
    settings: Settings
    samples: int
    repeats: int
    seed: int
    scale: float

    @classmethod
    def read(
        cls,
        name: str,
        root: str | None,
        *,
        splits: int | None,
        samples: int,
        repeats: int,
        seed: int,
        scale: float,
    ) -> Case:
        """Read a set, all of its splits or the first few.

        Raises:
            OSError: If its file is missing and cannot be downloaded.
            ValueError: If its file is damaged.
        """
        uci.prepare(name, root)
        inputs, targets = uci.read(name, root)
        known = uci.shape_of(name, root)[2]
        folder = uci.find(name, root)
        rows = [uci.split_rows(len(targets), split, folder) for split in range(min(known, splits or known))]
        settings = SETTINGS.get(name, Settings(math.nan, math.nan))
        return cls(name, inputs, targets, rows, settings, samples, repeats, seed, scale)

    def checksum(self) -> str:
        """Compute the checksum of what results depend on beside the arguments: inputs, targets and splits."""
        parts = [self.inputs, self.targets, *(rows for split in self.splits for rows in split)]
        return checksum(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))

    def epochs(self, column: str) -> int:
        """Compute the number of epochs of a column."""
        schedule, size = COLUMNS[column], len(self.splits[0][0])
        epochs = max(schedule.epochs * self.settings.epochs, schedule.steps * schedule.batch_size / size)
        return max(1, round(epochs * self.scale))

    def work(self, column: str) -> float:
        """Compute samples times members times passes of a column, with tests weighted by their time."""
        train, test = (sum(len(rows[part]) for rows in self.splits) for part in (0, 1))
        final = self.repeats * (self.epochs(column) * train + TEST_SHARE * self.samples * test)
        if column != "grid":
            return final
        choice = Choice()
        return (
            final
            + len(choice.settings()) * (0.8 * self.epochs(column) + 0.2 * TEST_SHARE * choice.samples) * train
        )


class Row(NamedTuple):
    """Scores of one split, averaged over the repeats, and the settings of their training.

    Attributes:
        split: The split's number.
        rmse: RMSE of the mean of the passes, in the data's units.
        ll: Log-likelihood per test sample, in nats.
        rmse_deterministic: RMSE of the pass without dropout.
        p: Probability of dropping a unit.
        precision: tau, in the units of 1/y^2.
        weight_decay: lambda.
        length_scale: l that lambda implies by the authors' convention.
        learning_rate: Adam's, at the start.
    """

    split: int
    rmse: float
    ll: float
    rmse_deterministic: float
    p: float
    precision: float
    weight_decay: float
    length_scale: float
    learning_rate: float


class _Member(NamedTuple):
    """A network to train: its split and settings, and the K precisions (1/y^2) to test it with."""

    split: int
    p: float
    weight_decay: float
    learning_rate: float
    precision: Tensor
    seed: int


def reproduce_column(case: Case, column: str, progress: Callable[[float], None]) -> list[Row]:
    """Train and test all splits of a set.

    Args:
        case: The set.
        column: "paper", "10x" or "grid".
        progress: Called with the part of :meth:`Case.work` done since the last call.

    Returns:
        One row per split.

    Raises:
        FloatingPointError: If the training of a split diverged; of "grid", with the chosen settings or with
            all there are to choose from.
    """
    settings = _chosen(case, progress) if column == "grid" else _given(case)
    members = _members(case, column, settings)
    scores = _scores(case, column, case.splits, members, case.samples, progress)
    means = np.array(scores).reshape(case.repeats, len(settings), 3).mean(axis=0)
    _refuse_diverged(case.name, np.isfinite(means).all(axis=1))
    return [
        Row(
            split,
            rmse,
            ll,
            deterministic,
            p,
            precision,
            decay,
            _length_scale(p, precision, decay, len(train)),
            rate,
        )
        for split, ((rmse, deterministic, ll), (p, decay, rate, precision), (train, _)) in enumerate(
            zip(means.tolist(), settings, case.splits, strict=True)
        )
    ]


def over_samples(case: Case, counts: Sequence[int], progress: Callable[[float], None]) -> NDArray[np.float64]:
    """Train all splits of a set as "paper" does, and test them with several numbers of passes.

    Returns:
        RMSE, RMSE without dropout and log-likelihood, means over the repeats, [counts, splits, 3].
    """
    members = _members(case, "paper", _given(case))
    scores = np.zeros((len(counts), len(members), 3))
    for positions, test in _trained(case, "paper", case.splits, members, progress):
        for index, count in enumerate(counts):
            scores[index, positions] = test(count)
    found: NDArray[np.float64] = scores.reshape(len(counts), case.repeats, len(case.splits), 3).mean(axis=1)
    _refuse_diverged(case.name, np.isfinite(found.sum(axis=(0, 2))))
    return found


def _given(case: Case) -> list[tuple[float, float, float, float]]:
    """Return the authors' p, lambda, learning rate and tau for each split."""
    known = case.settings
    return [(known.p, _decay(known, len(train)), LEARNING_RATE, known.precision) for train, _ in case.splits]


def _members(case: Case, column: str, settings: Sequence[tuple[float, float, float, float]]) -> list[_Member]:
    """List the networks to train with each split's settings."""
    return [
        _Member(split, p, decay, rate, torch.tensor([precision]), _seed(case, column, "final", split, repeat))
        for repeat in range(case.repeats)
        for split, (p, decay, rate, precision) in enumerate(settings)
    ]


def _chosen(case: Case, progress: Callable[[float], None]) -> list[tuple[float, float, float, float]]:
    """Choose p, lambda, learning rate and tau of each split by the log-likelihood of its last samples."""
    choice = Choice()
    settings = choice.settings()
    kept = [uci.train_part(len(train), 0.2) for train, _ in case.splits]
    parts = [(train[:size], train[size:]) for size, (train, _) in zip(kept, case.splits, strict=True)]
    deviations = [float(case.targets[train].std()) for train, _ in parts]
    grid = torch.tensor(choice.precision, dtype=torch.float64)
    members = [
        _Member(
            split,
            p,
            decay * len(case.splits[split][0]) / kept[split],
            rate,
            grid / deviations[split] ** 2,
            _seed(case, "grid", "choice", split, position),
        )
        for position, (p, decay, rate) in enumerate(settings)
        for split in range(len(parts))
    ]
    scores = _scores(case, "grid", parts, members, choice.samples, progress)
    likelihood = torch.tensor([row[2:] for row in scores]).view(len(settings), len(parts), len(grid))
    # Members that diverged are not chosen.
    likelihood.nan_to_num_(nan=-math.inf, posinf=-math.inf)
    _refuse_diverged(case.name, likelihood.amax(dim=(0, 2)).isfinite().numpy())
    chosen = []
    for split in range(len(parts)):
        setting, step = divmod(int(likelihood[:, split].argmax()), len(grid))
        chosen.append((*settings[setting], float(grid[step]) / deviations[split] ** 2))
    return chosen


def _refuse_diverged(name: str, finite: NDArray[np.bool_]) -> None:
    if not finite.all():
        splits = ", ".join(map(str, np.flatnonzero(~finite)))
        raise FloatingPointError(
            f"Expected finite scores but the training of {name} diverged in split {splits}: look at its data"
        )


def _scores(
    case: Case,
    column: str,
    splits: Sequence[tuple[uci.Rows, uci.Rows]],
    members: list[_Member],
    samples: int,
    progress: Callable[[float], None],
) -> list[list[float]]:
    """Compute for each member RMSE, RMSE without dropout, and log-likelihood for each of its precisions."""
    scores: dict[int, list[float]] = {}
    for positions, test in _trained(case, column, splits, members, progress):
        scores.update(zip(positions, test(samples), strict=True))
    return [scores[position] for position in range(len(members))]


def _trained(
    case: Case,
    column: str,
    splits: Sequence[tuple[uci.Rows, uci.Rows]],
    members: list[_Member],
    progress: Callable[[float], None],
) -> Iterator[tuple[list[int], Callable[[int], list[list[float]]]]]:
    """Train the members in groups; yield the positions of a group, and what scores it with T passes."""
    data = Standardised(*_parts(case, splits, 0))
    inputs, targets = data.normalised(*_parts(case, splits, 1))
    sizes = torch.tensor([len(test) for _, test in splits])
    schedule = COLUMNS[column]
    for positions in _groups(members, TOGETHER):
        group = [members[position] for position in positions]
        sources = [member.split for member in group]
        network = BatchedMLP(
            case.inputs.shape[1],
            case.settings.hidden_size,
            p=[member.p for member in group],
            seeds=[member.seed for member in group],
        )
        train(
            network,
            data,
            sources,
            epochs=case.epochs(column),
            batch_size=schedule.batch_size,
            weight_decay=[member.weight_decay for member in group],
            learning_rate=group[0].learning_rate,
            schedule=schedule.factor(),
            progress=progress,
        )
        x, y, scale = inputs[sources], targets[sources], data.scale[sources]
        precision = torch.stack([member.precision for member in group], dim=1) * scale.square()
        # Splits with fewer rows than the largest are padded.
        counted = (torch.arange(y.shape[1]) < sizes[sources, None]).double()
        counted /= counted.sum(dim=1, keepdim=True)

        def test(
            samples: int,
            network: BatchedMLP = network,
            x: Tensor = x,
            y: Tensor = y,
            scale: Tensor = scale,
            precision: Tensor = precision,
            counted: Tensor = counted,
        ) -> list[list[float]]:
            result = mc_scores(
                network,
                x,
                y,
                precision=precision,
                samples=samples,
                progress=lambda passes: progress(TEST_SHARE * passes),
            )
            columns = [
                ((outputs - y).double().square() * counted).sum(dim=1).sqrt() * scale
                for outputs in (result.mean, network(x[..., :-1]))
            ]
            columns += list((result.log_likelihood * counted).sum(dim=2) - scale.log())
            found: list[list[float]] = torch.stack(columns, dim=1).tolist()
            return found

        yield positions, test


def _parts(
    case: Case, splits: Sequence[tuple[uci.Rows, uci.Rows]], part: int
) -> tuple[list[Array], list[Array]]:
    return [case.inputs[rows[part]] for rows in splits], [case.targets[rows[part]] for rows in splits]


def _groups(members: list[_Member], size: int) -> Iterator[list[int]]:
    """Yield positions in groups of one learning rate, of at most ``size`` and as equal as possible."""
    by_rate: dict[float, list[int]] = {}
    for position, member in enumerate(members):
        by_rate.setdefault(member.learning_rate, []).append(position)
    for positions in by_rate.values():
        count = math.ceil(len(positions) / size)
        for group in range(count):
            yield positions[group * len(positions) // count : (group + 1) * len(positions) // count]


def _decay(settings: Settings, size: int) -> float:
    return weight_decay_of(
        settings.precision, settings.length_scale, size, p=settings.p, convention="authors"
    )


def _length_scale(p: float, precision: float, weight_decay: float, size: int) -> float:
    return math.sqrt(weight_decay / weight_decay_of(precision, 1.0, size, p=p, convention="authors"))


def _seed(case: Case, *parts: str | int) -> int:
    """Return a member's own seed, whatever else is trained."""
    # With one bit more than `fold_in`: the measured tables were made so.
    return int.from_bytes(blake2b(repr((case.seed, case.name, *parts)).encode(), digest_size=8).digest())
