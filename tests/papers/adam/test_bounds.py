import math

import pytest

from pl_losses.papers.adam.bounds import adamax_step_bounds, step_bounds

BETAS = [(b1, b2) for b1 in (0.0, 0.3, 0.9, 0.99) for b2 in (0.5, 0.9, 0.99, 0.9999)]


def adam_step(gradients, beta1, beta2, corrected=True):
    """|step| / alpha after the gradients, Algorithm 1 in loops."""
    m = v = 0.0
    for g in gradients:
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    t = len(gradients)
    factor = math.sqrt(1 - beta2**t) / (1 - beta1**t) if corrected else 1.0
    return factor * abs(m) / math.sqrt(v)


def adamax_step(gradients, beta1, beta2):
    m = u = 0.0
    for g in gradients:
        m, u = beta1 * m + (1 - beta1) * g, max(beta2 * u, abs(g))
    return abs(m) / u / (1 - beta1 ** len(gradients))


def test_defaults():
    assert step_bounds((0.9, 0.999)) == pytest.approx((10**0.5, 7.2703), abs=1e-4)
    assert step_bounds((0.0, 0.999)) == pytest.approx((1000**0.5,) * 2)


@pytest.mark.parametrize(("beta1", "beta2"), BETAS)
def test_paper_bound_is_the_step_after_a_lone_gradient(beta1, beta2):
    lone = adam_step([0.0] * 200_000 + [1.0] if beta2 > 0.999 else [0.0] * 5000 + [1.0], beta1, beta2)
    assert step_bounds((beta1, beta2)).paper == pytest.approx(max(lone, 1.0), rel=1e-6)


@pytest.mark.parametrize(("beta1", "beta2"), [betas for betas in BETAS if 0 < betas[0] ** 2 < betas[1]])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100, 3000])
def test_nothing_exceeds_the_tight_bound_and_its_gradients_reach_it(beta1, beta2, steps):
    worst = [(beta1 / beta2) ** k for k in range(steps)]
    gradients = [g / max(worst) for g in reversed(worst)]
    reached, bound = adam_step(gradients, beta1, beta2), step_bounds((beta1, beta2)).tight
    assert reached <= bound * (1 + 1e-9)
    assert adam_step(gradients, beta1, beta2, corrected=False) <= bound * (1 + 1e-9)
    if beta2 ** (steps / 2) < 1e-3 and (beta1**2 / beta2) ** steps < 1e-6:
        assert reached == pytest.approx(bound, rel=1e-3)


def test_the_paper_bound_is_exceeded():
    gradients = [(0.9 / 0.999) ** k for k in reversed(range(5000))]
    assert adam_step(gradients, 0.9, 0.999) > 2 * step_bounds((0.9, 0.999)).paper


def test_unbounded():
    assert step_bounds((0.9, 0.8)).tight == math.inf
    assert adam_step([(0.9 / 0.8) ** k for k in reversed(range(2000))], 0.9, 0.8) > 1e3
    assert adamax_step_bounds((0.9, 0.8)).tight == math.inf
    assert adamax_step([(1 / 0.8) ** k for k in reversed(range(200))], 0.9, 0.8) > 1e3


@pytest.mark.parametrize(("beta1", "beta2"), [(0.0, 0.9), (0.5, 0.9), (0.9, 0.999)])
def test_adamax(beta1, beta2):
    bound = adamax_step_bounds((beta1, beta2)).tight
    for steps in (1, 2, 10, 100, 2000):
        reached = adamax_step([beta2**k for k in range(steps)], beta1, beta2)
        assert reached <= bound * (1 + 1e-12)
    assert reached == pytest.approx(bound)


@pytest.mark.parametrize("bounds", [step_bounds, adamax_step_bounds])
@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9)])
def test_refused(bounds, betas):
    with pytest.raises(ValueError, match=r"Expected `betas` in \[0, 1\)"):
        bounds(betas)
