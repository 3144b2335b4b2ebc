import math
from itertools import pairwise

import pytest

from pl_losses.papers.adam.monitor.history import SPACING, History, draw_history
from pl_losses.papers.adam.monitor.update_rule import Rule


def test_history_is_bounded_keeps_the_beginning_and_the_peaks():
    history, rule = History(), Rule("adam", 1e-3, 0.9, 0.999, 1e-8)
    for step in range(1, 100_000):
        peak = 9.0 if step == 77_777 else 1.0
        history.add("Adam", rule, {"step_max": float(step), "effective_step": 0.5, "max_update": peak})
    points = history.state_dict()["Adam"]["points"]
    steps = [point[0] for point in points]
    assert len(points) < 300
    assert steps[:20] == list(range(1, 21))
    assert all(later <= earlier * SPACING + 1 for earlier, later in pairwise(steps))
    assert max(point[2] for point in points) == 9.0


@pytest.mark.parametrize("known", [False, True])
def test_picture(known):
    history, rule = History(), Rule("adam", 1e-3, 0.9, 0.999, 1e-8)
    rules = {"Adam": rule, "AdamW/pg1": rule, "AdamW/pg2": rule._replace(beta1=0.9, beta2=0.8)}
    for name, one in rules.items():
        for step in range(1, 30):
            found = {"step_max": float(step), "effective_step": 0.5, **({"max_update": 0.9} if known else {})}
            history.add(name, one, found)
    panels = draw_history(history).axes
    assert len(panels) == 1 + known
    labels = [text.get_text() for text in panels[0].get_legend().get_texts()]
    assert labels == [*rules, *(f"corrected, closed form, betas 0.9, {beta2}" for beta2 in (0.999, 0.8))]
    closed = panels[0].lines[3]
    step, factor = closed.get_xdata()[-1], closed.get_ydata()[-1]
    assert factor == pytest.approx(math.sqrt(1 - 0.999**step) / (1 - 0.9**step))
    assert panels[0].get_xscale() == "log"
    if known:
        bounds = {
            text.get_text(): line
            for text, line in zip(panels[1].get_legend().get_texts(), panels[1].lines, strict=True)
        }
        assert bounds["paper's bound, betas 0.9, 0.999"].get_ydata()[0] == pytest.approx(3.1623, abs=1e-4)
        assert bounds["tight bound, betas 0.9, 0.999"].get_ydata()[0] == pytest.approx(7.2703, abs=1e-4)
        assert "tight bound, betas 0.9, 0.8" not in bounds


def test_picture_after_a_change_of_level():
    history, rule = History(), Rule("adam", 1e-3, 0.9, 0.8, 1e-8)
    history.add("Adam", rule, {"step_max": 0.0, "effective_step": 0.3})
    history.add("Adam", rule, {"step_max": 1.0, "effective_step": 0.3})
    history.add("Adam", rule, {"step_max": 2.0, "effective_step": 0.2, "max_update": 0.9})
    line = draw_history(history).axes[1].lines[0]
    assert line.get_xdata().tolist() == [1, 2]
    assert line.get_ydata().tolist() == pytest.approx([math.nan, 0.9], nan_ok=True)
