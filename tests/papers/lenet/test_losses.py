import math

import pytest
import torch

from pl_losses.losses import map_loss, mle_loss, rbf_penalties
from pl_losses.papers.lenet.losses import rubbish_posterior


@pytest.fixture
def penalties():
    return 30 * torch.rand(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


TARGET = torch.tensor([0, 4, 2, 2, 1, 3, 0])


def test_penalties_are_squared_distances():
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 84, dtype=torch.float64, generator=generator) for n in (6, 10))
    by_hand = [[sum((a - b) ** 2 for a, b in zip(row, centre, strict=True)) for centre in w] for row in x]
    torch.testing.assert_close(rbf_penalties(x, w), torch.tensor(by_hand, dtype=torch.float64))


def test_losses_equal_the_equations_written_out(penalties):
    j = 1.5
    mle = sum(penalties[p, d] for p, d in enumerate(TARGET)) / 7
    map_ = sum(
        penalties[p, d] + math.log(math.exp(-j) + sum(math.exp(-y) for y in penalties[p]))
        for p, d in enumerate(TARGET)
    )
    torch.testing.assert_close(mle_loss(penalties, TARGET), mle)
    torch.testing.assert_close(map_loss(penalties, TARGET, j), map_ / 7)


def test_map_gradient_is_the_papers(penalties):
    j = 2.0
    y = penalties.requires_grad_()
    map_loss(y, TARGET, j).backward()
    weights = torch.exp(-y.detach())
    posterior = weights / (math.exp(-j) + weights.sum(1, keepdim=True))
    expected = (torch.nn.functional.one_hot(TARGET, 5) - posterior) / 7
    torch.testing.assert_close(y.grad, expected)


def test_gradcheck(penalties):
    assert torch.autograd.gradcheck(lambda y: map_loss(y, TARGET), penalties.requires_grad_())
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rbf_penalties, (x, w))


def test_map_is_at_least_zero_and_finite_where_exp_underflows():
    far = torch.full((4, 10), 620.0, requires_grad=True)
    loss = map_loss(far, torch.arange(4), rubbish_penalty=700.0)
    loss.backward()
    assert loss >= 0
    assert torch.isfinite(loss)
    assert torch.isfinite(far.grad).all()
    torch.testing.assert_close(loss, torch.tensor(10.0).log())


def test_rubbish_posterior_completes_the_class_posteriors(penalties):
    j = 3.0
    classes = torch.exp(-penalties) / (math.exp(-j) + torch.exp(-penalties).sum(1, keepdim=True))
    torch.testing.assert_close(rubbish_posterior(penalties, j), 1 - classes.sum(1))


def test_float32_under_autocast():
    features = torch.randn(4, 84).bfloat16()
    penalties = rbf_penalties(features, torch.ones(10, 84))
    assert penalties.dtype == torch.float32
    assert map_loss(penalties.bfloat16(), torch.arange(4)).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: rbf_penalties(torch.zeros(2, 3), torch.zeros(4, 5)), ValueError, "`features`.*F = 5.*2, 3"),
        (lambda: rbf_penalties(torch.zeros(2, 3), torch.zeros(3)), ValueError, "`centres`"),
        (
            lambda: mle_loss(torch.zeros(8, 3), torch.zeros(7, dtype=torch.long)),
            ValueError,
            r"B = 8 but got \[7\]",
        ),
        (lambda: map_loss(torch.zeros(2, 3), torch.tensor([0, 3])), ValueError, r"\[0, 2\].*from 0 to 3"),
        (lambda: mle_loss(torch.zeros(2, 3), torch.tensor([0, -1])), ValueError, "from -1 to 0"),
        (lambda: mle_loss(torch.zeros(2, 3), torch.zeros(2)), TypeError, "integers"),
        (lambda: map_loss(torch.zeros(2, 3), torch.tensor([0, 1]), 0.0), ValueError, "`rubbish_penalty`"),
        (lambda: map_loss(torch.zeros(3), torch.tensor([0, 1, 2])), ValueError, "`penalties`"),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()
