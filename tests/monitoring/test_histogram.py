import numpy as np
import pytest

from pl_losses.monitoring.monitor import bins_for, histogram

DRAWS = {
    "normal": lambda generator, n: generator.normal(size=n),
    "ties on edges": lambda generator, n: np.round(generator.normal(size=n), 1),
    "few integers": lambda generator, n: generator.integers(0, 4, n).astype(float),
    "all equal": lambda generator, n: np.full(n, 0.25),
    "float32": lambda generator, n: generator.normal(size=n).astype(np.float32).astype(float) * 1e-6,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_it_is_numpys(draw):
    generator = np.random.default_rng(0)
    for n in [*range(1, 70), 500, 5000]:
        values = draw(generator, n)
        counts, edges = histogram(values)
        expected_counts, expected_edges = np.histogram(values, bins=bins_for(n))
        np.testing.assert_array_equal(counts, expected_counts)
        np.testing.assert_array_equal(edges, expected_edges)


def test_values_too_close_for_edges_between_them():
    values = np.array([0.25, np.nextafter(0.25, 1)] * 8)
    # Which NumPy's own refuses from 2.0 on.
    assert histogram(values)[0].sum() == 16
