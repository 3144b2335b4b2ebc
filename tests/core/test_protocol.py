"""Settings are chosen on held-out data, by a seed of their own, and the test set is used once a seed."""

from contextlib import contextmanager
from math import inf, isnan
from types import SimpleNamespace

import pytest

from pl_losses.core.experiment import PlainExperiment
from pl_losses.core.figures import new_axes
from pl_losses.core.protocol import CHOICE, Job, Measured, Score, draw, draw_line, measure, table
from pl_losses.core.results import Row

GRIDS = {"a": [{"lr": 1}, {"lr": 2}, {"lr": 3}], "b": [{"lr": 2}]}


class Trainings:
    """Held-out scores are lowest at lr 2; the test set would have chosen 3."""

    def __init__(self, stop=None):
        self.calls, self.stop = [], stop

    def __call__(self, jobs):
        if len(self.calls) == self.stop:
            raise KeyboardInterrupt
        self.calls.append(jobs)
        if any(job.setting["lr"] == 3 and job.held_out for job in jobs) and len(jobs) == 1:
            raise FloatingPointError
        return [
            Score(abs(job.setting["lr"] - 2) if job.held_out else 10 - job.setting["lr"] + job.seed, 0.5)
            for job in jobs
        ]


def test_the_choice_is_by_held_out_data(tmp_path):
    train = Trainings()
    a, b = measure(PlainExperiment("demo/errors", tmp_path, {}), GRIDS, 2, train)
    jobs = [job for jobs in train.calls for job in jobs]
    assert all(job.held_out == (job.seed == CHOICE) for job in jobs)
    assert [job for job in jobs if not job.held_out] == [
        Job(method, {"lr": 2}, seed, False) for seed in (0, 1) for method in ("a", "b")
    ]
    assert len(jobs) == 3 + 4  # A single setting needs no choice.
    assert (a.setting, [score.value for score in a.scores]) == ({"lr": 2}, [8, 9])
    assert a.row()["chosen"] == "lr 2 (held out: 1: 1.00, 2: 0.00, 3: diverged)"
    row = b.row()
    assert (row["measured"], row["seeds"], row["chosen"]) == (8.5, 2, "lr 2")
    assert row["low"] < 8 < 9 < row["high"]


@pytest.mark.parametrize("together", [False, True])
def test_the_bar_counts_what_is_done(tmp_path, monkeypatch, together):
    bars = []

    @contextmanager
    def bar(total):
        bars.append([total, 0])
        yield SimpleNamespace(update=add, set_description=lambda text: None)

    def add(count):
        bars[-1][1] += count

    monkeypatch.setattr("pl_losses.core.protocol.progress_bar", bar)
    for seeds in (1, 1, 2):
        kept = PlainExperiment("demo/errors", tmp_path, {})
        measure(kept, GRIDS, seeds, Trainings(), together=together)
    assert bars == [[5, 5], [5, 5], [7, 7]]


def test_a_diverged_setting_is_not_chosen(tmp_path):
    kept = PlainExperiment("demo/errors", tmp_path, {})
    measure(kept, GRIDS, 1, Trainings())
    assert [row["score"] for row in table(kept) if '"lr": 3' in row["setting"]] == [inf]


@pytest.mark.parametrize("together", [False, True])
def test_an_interrupted_measurement_goes_on(tmp_path, together):
    whole = measure(
        PlainExperiment("demo/errors", tmp_path / "a", {}), GRIDS, 2, Trainings(), together=together
    )
    half, rest = Trainings(stop=2), Trainings()
    with pytest.raises(KeyboardInterrupt):
        measure(PlainExperiment("demo/errors", tmp_path / "b", {}), GRIDS, 2, half, together=together)
    again = measure(PlainExperiment("demo/errors", tmp_path / "b", {}), GRIDS, 2, rest, together=together)
    assert [one.scores for one in again] == [one.scores for one in whole]
    assert len(half.calls) + len(rest.calls) == (3 if together else 7)
    more = Trainings()
    measure(PlainExperiment("demo/errors", tmp_path / "b", {}), GRIDS, 3, more, together=together)
    assert {job.seed for jobs in more.calls for job in jobs} == {2}


def test_a_line_has_intervals_where_there_are_any():
    """One seed without a test error has none, nor has a training that diverged."""
    scores = [[Score(0.0)], [Score(inf), Score(2.0)], [Score(1.0, 0.5), Score(2.0, 0.5)]]
    _, axes = new_axes(2, 2)
    draw_line(axes, [1, 2, 3], [Measured("a", {}, one, 1.0) for one in scores], "a")
    (drawn,) = axes.containers
    assert [value for value in drawn.lines[0].get_ydata() if not isnan(value)] == [0.0, 1.5]
    alone, diverged, ends = (segment.tolist() for segment in drawn.lines[2][0].get_segments())
    assert [end for _, end in alone] == [0.0, 0.0]
    assert not [end for _, end in diverged if not isnan(end)]
    assert ends[0][1] < 1 < 2 < ends[1][1]


def test_each_quantity_has_an_axis_of_its_own():
    rows = [
        Row("a", "error, %", 80.0, 70.0, 90.0),
        Row("a", "loss", 1e-5),
        Row("b", "error, %", 5.0, published=4.0),
    ]
    errors, losses = draw(rows).axes
    assert [axes.get_xlabel() for axes in (errors, losses)] == ["error, %", "loss"]
    assert [text.get_text() for text in errors.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in losses.get_yticklabels()] == ["a"]
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (errors, losses)]
    assert legends == [["measured, 95 % interval", "published"], ["measured, 95 % interval"]]
    points = [[float(x) for line in axes.lines for x in line.get_xdata()] for axes in (errors, losses)]
    assert points == [[70, 90, 80, 5, 5, 5, 4, 4, 4], [1e-5, 1e-5, 1e-5]]
