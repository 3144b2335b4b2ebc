"""The experiment on the criteria: what it counts and draws."""

from types import SimpleNamespace

import pytest
import torch

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
