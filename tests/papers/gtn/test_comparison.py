"""The experiment on the criteria: what it counts and draws."""

import csv
from math import inf
from types import SimpleNamespace

import pytest
import torch

from pl_losses.core.protocol import Measured, Score
from pl_losses.papers.gtn import comparison
from pl_losses.papers.gtn.comparison import POINTS, Answers


def test_the_score_is_that_of_the_strings_that_count():
    answers = Answers()
    for confidence, wrong, own in (([0.9, 0.2, 0.8], [0, 1, 0], 3), ([0.1, 0.7, 0.5], [1, 0, 1], 2)):
        reading = SimpleNamespace(confidence=torch.tensor(confidence))
        answers.on_test_batch_end(
            None, None, {"own": own, "reading": reading, "wrong": torch.tensor(wrong) > 0}, None, 0
        )
    score = answers.score()
    assert score.value == pytest.approx(40.0)
    assert score.standard_error == pytest.approx(100 * (0.4 * 0.6 / 5) ** 0.5)
    assert len(score.curve) == POINTS
    assert score.curve[0] == pytest.approx([0, 40])
    assert score.curve[20] == pytest.approx(
        [20, 25]
    )  # The least confident string, which is wrong, is rejected.
    assert score.curve[-1] == pytest.approx([60, 0])


def test_all_have_the_rate_with_which_the_leader_reads_held_out_strings_best(tmp_path, monkeypatch):
    asked = []

    def train(model, data, epochs, held_out, callbacks):
        asked.append((model.criterion, data.val_size, epochs, held_out, data.isolated_epochs))
        callbacks[0].score = lambda: Score(50.0, 1.0, [[0.0, 50.0], [1.0, 49.0]])
        return Score([30.0, 20.0, 40.0][len(asked) - 1] if held_out else 0.0)

    monkeypatch.setattr(comparison, "trained", train)
    comparison.reproduce(["viterbi", "isolated"], 1, "digits", folder=str(tmp_path), wandb="disabled")
    chosen = asked[:3]
    assert {(one[0], one[1], one[3]) for one in chosen} == {("discriminative_forward", 300, True)}
    # The criteria that were asked for, on all training digits; "isolated" sees no strings.
    criteria = [("discriminative_forward", 0, 12, False, 12), ("viterbi", 0, 12, False, 8)]
    assert sorted(asked[3:]) == criteria
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(row["what"], row["chosen"]) for row in rows] == [
        ("isolated", "max_lr 0.003, chosen for discriminative_forward"),
        ("viterbi", "max_lr 0.003, chosen for discriminative_forward"),
    ]


def test_trainings_that_diverged_have_no_curve():
    found = [
        Measured("isolated", {"max_lr": 1.0}, [Score(inf), Score(2.0, 0.1, [[0.0, 2.0], [50.0, 1.0]])], 1.0)
    ]
    assert [point["seed"] for point in comparison.points(found)] == [1, 1]
    (line,) = comparison.draw(found).axes[0].lines
    assert line.get_ydata().tolist() == [2.0, 1.0]
