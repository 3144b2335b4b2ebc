"""Gal and Ghahramani 2016, section 5.2: the trainings of Table 1's columns, all splits of a set at once.

"paper" and "10x" use the authors' p and tau. "grid" chooses p, the weight decay, the learning rate, its
schedule, the number of steps and tau of each split by the log-likelihood of the last fifth of its training
samples, then trains anew on all of them, and uses the test samples only after that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
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
from pl_losses.papers.dropout.table1.choice import COLUMNS, LEARNING_RATE, PAPER, Choice, Schedule, Setting

# Members trained at once: more hardly lower the overhead of a step, and take memory.
TOGETHER = 60
# Time of a test pass, forward only, relative to one of training.
TEST_SHARE = 0.4


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

    def epochs(self, schedule: Schedule) -> int:
        """Compute the number of epochs of a schedule."""
        size = len(self.splits[0][0])
        epochs = max(schedule.epochs * self.settings.epochs, schedule.steps * schedule.batch_size / size)
        return max(1, round(epochs * self.scale))

    def more_schedules(self) -> list[Schedule]:
        """List the schedules of :class:`Choice` after its first that differ for this set."""
        found: dict[tuple[int, bool], Schedule] = {}
        for schedule in Choice().schedule:
            found.setdefault((self.epochs(schedule), schedule.cosine), schedule)
        return list(found.values())[1:]

    def work(self, column: str) -> float:
        """Estimate samples times members times passes of a column, with tests weighted by their time."""
        train, test = (sum(len(rows[part]) for rows in self.splits) for part in (0, 1))
        first, tests = self.epochs(COLUMNS[column]), TEST_SHARE * self.samples * test
        if column != "grid":
            return self.repeats * (first * train + tests)
        choice, more = Choice(), [self.epochs(schedule) for schedule in self.more_schedules()]
        held_out = [first] * len(choice.settings()) + more * len(choice.learning_rate)
        choosing = 0.8 * sum(held_out) + 0.2 * TEST_SHARE * choice.samples * len(held_out)
        return choosing * train + self.repeats * (max([first, *more]) * train + tests)


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
        epochs: Passes over the training samples.
        cosine: Whether the learning rate falls to 0 as a half cosine.
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
    epochs: int
    cosine: bool


class _Member(NamedTuple):
    """A network to train: its split and setting, and the K precisions (1/y^2) to test it with."""

    split: int
    setting: Setting
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
    chosen = _chosen(case, progress) if column == "grid" else _given(case, COLUMNS[column])
    members = _members(case, column, chosen)
    scores = _scores(case, case.splits, members, case.samples, progress)
    means = np.array(scores).reshape(case.repeats, len(chosen), 3).mean(axis=0)
    _refuse_diverged(case.name, np.isfinite(means).all(axis=1))
    return [
        Row(
            split,
            rmse,
            ll,
            deterministic,
            setting.p,
            precision,
            setting.weight_decay,
            _length_scale(setting, precision, len(train)),
            setting.learning_rate,
            case.epochs(setting.schedule),
            setting.schedule.cosine,
        )
        for split, ((rmse, deterministic, ll), (setting, precision), (train, _)) in enumerate(
            zip(means.tolist(), chosen, case.splits, strict=True)
        )
    ]


def over_samples(case: Case, counts: Sequence[int], progress: Callable[[float], None]) -> NDArray[np.float64]:
    """Train all splits of a set as "paper" does, and test them with several numbers of passes.

    Returns:
        RMSE, RMSE without dropout and log-likelihood, means over the repeats, [counts, splits, 3].
    """
    members = _members(case, "paper", _given(case, PAPER))
    scores = np.zeros((len(counts), len(members), 3))
    for positions, test in _trained(case, case.splits, members, progress):
        for index, count in enumerate(counts):
            scores[index, positions] = test(count)
    found: NDArray[np.float64] = scores.reshape(len(counts), case.repeats, len(case.splits), 3).mean(axis=1)
    _refuse_diverged(case.name, np.isfinite(found.sum(axis=(0, 2))))
    return found


def _given(case: Case, schedule: Schedule) -> list[tuple[Setting, float]]:
    """Return the setting by the authors' p and l, and their tau, for each split."""
    known = case.settings
    return [
        (Setting(known.p, _decay(known, len(train)), LEARNING_RATE, schedule), known.precision)
        for train, _ in case.splits
    ]


def _members(case: Case, column: str, chosen: Sequence[tuple[Setting, float]]) -> list[_Member]:
    """List the networks to train with each split's setting."""
    return [
        _Member(split, setting, torch.tensor([precision]), _seed(case, column, "final", split, repeat))
        for repeat in range(case.repeats)
        for split, (setting, precision) in enumerate(chosen)
    ]


class _HeldOut(NamedTuple):
    """The log-likelihood of a split's last training samples, and the setting and tau (1/y^2) it is of."""

    score: float
    setting: Setting
    precision: float


def _chosen(case: Case, progress: Callable[[float], None]) -> list[tuple[Setting, float]]:
    """Choose the setting and tau of each split by the log-likelihood of its last training samples."""
    choice, splits = Choice(), range(len(case.splits))
    first = choice.settings()
    best = _best(case, [(split, setting) for setting in first for split in splits], 0, progress)
    _refuse_diverged(case.name, np.isfinite([found.score for found in best]))
    others = [
        (split, best[split].setting._replace(schedule=schedule, learning_rate=rate))
        for schedule in case.more_schedules()
        for rate in choice.learning_rate
        for split in splits
    ]
    again = _best(case, others, len(first), progress)
    # The first in a tie: the schedule of the paper.
    pairs = zip(best, again, strict=True)
    return [max(pair, key=lambda found: found.score)[1:] for pair in pairs]


def _best(
    case: Case, tried: Sequence[tuple[int, Setting]], start: int, progress: Callable[[float], None]
) -> list[_HeldOut]:
    """Train splits without their last samples, and find each split's best; ``start`` numbers the settings."""
    choice, splits = Choice(), len(case.splits)
    kept = [uci.train_part(len(train), 0.2) for train, _ in case.splits]
    parts = [(train[:size], train[size:]) for size, (train, _) in zip(kept, case.splits, strict=True)]
    variances = [float(case.targets[train].std()) ** 2 for train, _ in parts]
    grid = torch.tensor(choice.precision, dtype=torch.float64)
    members = [
        _Member(
            split,
            setting._replace(weight_decay=setting.weight_decay * len(case.splits[split][0]) / kept[split]),
            grid / variances[split],
            _seed(case, "grid", "choice", split, start + position // splits),
        )
        for position, (split, setting) in enumerate(tried)
    ]
    scores = _scores(case, parts, members, choice.samples, progress)
    # Members that diverged are not chosen.
    likelihood = torch.tensor([row[2:] for row in scores]).nan_to_num_(nan=-math.inf, posinf=-math.inf)
    best = [_HeldOut(-math.inf, tried[0][1], math.nan)] * splits
    for (split, setting), row in zip(tried, likelihood, strict=True):
        if (score := float(row.max())) > best[split].score:
            best[split] = _HeldOut(score, setting, float(grid[row.argmax()]) / variances[split])
    return best


def _refuse_diverged(name: str, finite: NDArray[np.bool_]) -> None:
    if not finite.all():
        splits = ", ".join(map(str, np.flatnonzero(~finite)))
        raise FloatingPointError(
            f"Expected finite scores but the training of {name} diverged in split {splits}: look at its data"
        )


def _scores(
    case: Case,
    splits: Sequence[tuple[uci.Rows, uci.Rows]],
    members: list[_Member],
    samples: int,
    progress: Callable[[float], None],
) -> list[list[float]]:
    """Compute for each member RMSE, RMSE without dropout, and log-likelihood for each of its precisions."""
    scores: dict[int, list[float]] = {}
    for positions, test in _trained(case, splits, members, progress):
        scores.update(zip(positions, test(samples), strict=True))
    return [scores[position] for position in range(len(members))]


def _trained(
    case: Case,
    splits: Sequence[tuple[uci.Rows, uci.Rows]],
    members: list[_Member],
    progress: Callable[[float], None],
) -> Iterator[tuple[list[int], Callable[[int], list[list[float]]]]]:
    """Train the members in groups; yield the positions of a group, and what scores it with T passes."""
    data = Standardised(*_parts(case, splits, 0))
    inputs, targets = data.normalised(*_parts(case, splits, 1))
    sizes = torch.tensor([len(test) for _, test in splits])
    for positions in _groups(members, TOGETHER):
        group = [members[position] for position in positions]
        sources, settings = [member.split for member in group], [member.setting for member in group]
        schedule = settings[0].schedule
        network = BatchedMLP(
            case.inputs.shape[1],
            case.settings.hidden_size,
            p=[setting.p for setting in settings],
            seeds=[member.seed for member in group],
        )
        train(
            network,
            data,
            sources,
            epochs=case.epochs(schedule),
            batch_size=schedule.batch_size,
            weight_decay=[setting.weight_decay for setting in settings],
            learning_rate=settings[0].learning_rate,
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
    """Yield positions in groups of one rate and schedule, of at most ``size`` and as equal as possible."""
    alike: dict[tuple[float, Schedule], list[int]] = {}
    for position, member in enumerate(members):
        alike.setdefault((member.setting.learning_rate, member.setting.schedule), []).append(position)
    for positions in alike.values():
        count = math.ceil(len(positions) / size)
        for group in range(count):
            yield positions[group * len(positions) // count : (group + 1) * len(positions) // count]


def _decay(settings: Settings, size: int) -> float:
    return weight_decay_of(
        settings.precision, settings.length_scale, size, p=settings.p, convention="authors"
    )


def _length_scale(setting: Setting, precision: float, size: int) -> float:
    of_one = weight_decay_of(precision, 1.0, size, p=setting.p, convention="authors")
    return math.sqrt(setting.weight_decay / of_one)


def _seed(case: Case, *parts: str | int) -> int:
    """Return a member's own seed, whatever else is trained."""
    # With one bit more than `fold_in`: the measured tables were made so.
    return int.from_bytes(blake2b(repr((case.seed, case.name, *parts)).encode(), digest_size=8).digest())
