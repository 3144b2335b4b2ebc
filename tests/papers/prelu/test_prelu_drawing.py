import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from pl_losses.papers.prelu.drawing import History, draw_final_slopes, draw_heat_map, shorten


@pytest.mark.parametrize("rows", [1, 500, 501, 502, 1000, 1001, 12_345])
def test_history_is_bounded_uniform_and_keeps_the_first(rows):
    history = History()
    for step in range(49, 49 + 50 * rows, 50):
        history.add(step, {"a": step / 7, "b": 1.0})
    assert len(history.steps) <= 500
    assert rows < 500 or len(history.steps) > 249
    assert set(np.diff(history.steps)) <= {50 * history.every}
    assert history.steps[0] == 49
    assert history.steps[-1] > 49 + 50 * (rows - 1) - 50 * history.every
    assert history.means["a"] == [step / 7 for step in history.steps]
    assert len(history.means["b"]) == len(history.steps)


def test_history_takes_the_last_view_of_a_step():
    once, twice = History(columns=4), History(columns=4)
    for step in range(11):
        once.add(step, {"a": step})
        twice.add(step, {"a": -1.0})
        twice.add(step, {"a": step})
    assert vars(once) == vars(twice)


def test_history_of_layers_that_come_and_go():
    history = History()
    for step, names in enumerate(["a", "ab", "b"]):
        history.add(step, dict.fromkeys(names, 1.0))
    np.testing.assert_equal(history.means, {"a": [1.0, 1.0, np.nan], "b": [np.nan, 1.0, 1.0]})


@pytest.mark.parametrize("lowest", [0.1, -0.1])
def test_heat_map(lowest):
    means = {f"network.{row}": [row / 40, lowest, float("nan")] for row in range(40)}
    figure = draw_heat_map([9, 19, 29], means)
    axes, bar = figure.axes
    (image,) = axes.collections
    shown = image.get_array().filled(np.nan).reshape(len(means), -1)  # flat before Matplotlib 3.8
    np.testing.assert_allclose(shown, list(means.values()))
    assert [label.get_text() for label in axes.get_yticklabels()] == list(means)
    assert axes.get_ylim() == (39.5, -0.5)  # The first on top.
    assert axes.get_xlim() == (4, 34)
    assert bar.get_ylim() == pytest.approx((min(lowest, 0), 39 / 40))
    figure.canvas.draw()


def test_final_slopes():
    slopes = {"first": (0.6, 0.4, 0.9), "shared": (0.2, 0.2, 0.2), "broken": (float("nan"),) * 3}
    figure = draw_final_slopes(slopes)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.6, 0.2, 0.0]
    (bars,) = (found for found in axes.containers if isinstance(found, ErrorbarContainer))
    whiskers = bars.lines[2][0].get_segments()
    np.testing.assert_allclose(whiskers[0], [[0.4, 0], [0.9, 0]])
    assert all(not len(ends) or np.isnan(ends).any() for ends in whiskers[1:])
    assert 0.25 in [line.get_xdata()[0] for line in axes.lines]
    assert [text.get_text() for text in axes.texts][-3:] == ["0.600", "0.200", "nan"]
    figure.canvas.draw()


def test_labels_keep_what_tells_layers_apart():
    paths = [f"model.backbone.stages.{i}.blocks.{i + 1}.residual_branch.activation" for i in range(40)]
    labels = [shorten(path) for path in paths]
    assert len(set(labels)) == 40
    assert max(map(len, labels)) <= 48
    assert shorten("network.3") == "network.3"
    assert len(shorten("a." * 60)) == 48
