import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from pl_losses.papers.dropout import dropout_objective, precision_of, weight_decay_of

DOUBLE = torch.float64


def linear_problem(rows=7, inputs=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, dtype=DOUBLE, generator=generator)
    y = x @ torch.randn(inputs, 1, dtype=DOUBLE, generator=generator) + 0.3
    return x, y


def half_squares(x, y, weight):
    return 0.5 * (x @ weight - y).square().sum(dim=1)


def test_objective_is_the_sum_written_out():
    errors = torch.tensor([1.0, 2.0, 6.0], dtype=DOUBLE)
    weight, bias = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=DOUBLE), torch.tensor([4.0], dtype=DOUBLE)
    by_hand = (1 + 2 + 6) / 3 + 0.1 * (1 + 4 + 0.25 + 9) + 0.1 * 16
    assert dropout_objective(errors, [weight, bias], 0.1).item() == pytest.approx(by_hand, rel=1e-14)
    by_hand += 0.2 * 16
    assert dropout_objective(errors, iter([weight, bias]), [0.1, 0.3]).item() == pytest.approx(by_hand)


def test_gradcheck_and_float32_under_low_precision():
    weight = torch.randn(3, 2, dtype=DOUBLE, requires_grad=True)
    errors = torch.rand(5, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda e, w: dropout_objective(e, [w, w[0]], [0.3, 0.7]), (errors, weight)
    )
    assert dropout_objective(errors.bfloat16(), [weight.bfloat16()], 0.1).dtype == torch.float32


@pytest.mark.parametrize("convention", ["paper", "authors"])
@pytest.mark.parametrize("p", [0.0, 0.05, 0.5])
def test_there_and_back(convention, p):
    known = {"length_scale": 0.3, "size": 455, "p": p, "convention": convention, "target_std": 9.2}
    for tau in (1e-3, 0.16, 42173.5):
        assert precision_of(weight_decay_of(tau, **known), **known) == pytest.approx(tau, rel=1e-13)


def test_without_dropout_the_minimum_is_the_posterior_mean_of_bayesian_linear_regression():
    (x, y), tau, scale = linear_problem(), 2.5, 0.7
    # Closed form: weights ~ N(0, l^-2), noise of precision tau.
    mean = torch.linalg.solve(tau * x.T @ x + scale**2 * torch.eye(3, dtype=DOUBLE), tau * x.T @ y)
    weight = mean.requires_grad_()
    decay = weight_decay_of(tau, scale, len(x), p=0.0)
    (gradient,) = torch.autograd.grad(dropout_objective(half_squares(x, y, weight), [weight], decay), weight)
    assert gradient.abs().max() < 1e-13


def test_objective_is_the_negative_bound_with_the_expectation_over_all_masks():
    """-1/(N tau) (sum E_q log N(y; y^, 1/tau) + E_q log N(W; 0, l^-2)) has the same gradient in M."""
    (x, y), tau, scale, p = linear_problem(), 2.5, 0.7, 0.3
    weight = torch.randn(3, 1, dtype=DOUBLE, requires_grad=True)
    bias = torch.randn(1, 1, dtype=DOUBLE, requires_grad=True)
    gaussian = Normal(torch.zeros((), dtype=DOUBLE), 1 / scale)
    bound, expected = 0, 0
    for mask in itertools.product([0.0, 1.0], repeat=3):
        share = math.prod(1 - p if keep else p for keep in mask)
        drawn = torch.tensor(mask, dtype=DOUBLE)[:, None] * weight
        outputs = x @ drawn + bias
        likelihood = Normal(outputs, tau**-0.5).log_prob(y).sum()
        prior = sum(gaussian.log_prob(values).sum() for values in (drawn, bias))
        bound = bound + share * (likelihood + prior)
        expected = expected + share * 0.5 * (outputs - y).square().sum(dim=1)
    decays = [weight_decay_of(tau, scale, len(x), p=p), weight_decay_of(tau, scale, len(x), p=0.0)]
    objective = dropout_objective(expected, [weight, bias], decays)
    ours = torch.autograd.grad(objective, (weight, bias), retain_graph=True)
    theirs = torch.autograd.grad(-bound / (len(x) * tau), (weight, bias))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_standardised_targets_have_the_same_minimum_by_the_paper():
    """Weights of targets divided by sigma are 1/sigma as large: l becomes sigma l, tau sigma^2 tau."""
    (x, y), tau, scale, std = linear_problem(), 2.5, 0.7, 3.0
    raw = torch.linalg.solve(tau * x.T @ x + scale**2 * torch.eye(3, dtype=DOUBLE), tau * x.T @ y)
    weight = (raw / std).requires_grad_()
    decay = weight_decay_of(tau, std * scale, len(x), p=0.0, target_std=std)
    loss = dropout_objective(half_squares(x, y / std, weight), [weight], decay)
    assert torch.autograd.grad(loss, weight)[0].abs().max() < 1e-13


def test_the_authors_minimise_their_mean_squared_error_with_half_the_decay():
    (x, y), tau, scale, p, std = linear_problem(), 2.5, 0.7, 0.05, 3.0
    weight = torch.randn(3, 1, dtype=DOUBLE, requires_grad=True)
    published = (x @ weight - y).square().mean() + scale**2 * (1 - p) / (2 * 7 * tau) * weight.square().sum()
    decay = weight_decay_of(tau, scale, 7, p=p, convention="authors", target_std=std)
    ours = dropout_objective(half_squares(x, y, weight), [weight], decay)
    torch.testing.assert_close(2 * ours, published, rtol=1e-13, atol=0)
    assert decay == weight_decay_of(tau, scale, 7, p=p, convention="paper") / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dropout_objective(torch.zeros(2, 1), [], 0.1), r"`errors` of shape \[N\].*\[2, 1\]"),
        (lambda: dropout_objective(torch.zeros(0), [], 0.1), r"`errors`.*\[0\]"),
        (lambda: dropout_objective(torch.zeros(2), [torch.zeros(1)], [0.1, 0.2]), "each of 1 .* but got 2"),
        (lambda: dropout_objective(torch.zeros(2), [torch.zeros(1)], -0.1), "`weight_decay`.*-0.1"),
        (lambda: dropout_objective(torch.zeros(2), [torch.zeros(1)], math.inf), "`weight_decay`.*inf"),
        (lambda: weight_decay_of(0.0, 1.0, 10, p=0.1), "`precision`.*0.0"),
        (lambda: weight_decay_of(1.0, -1.0, 10, p=0.1), "`length_scale`.*-1.0"),
        (lambda: weight_decay_of(1.0, 1.0, 0, p=0.1), "`size`.*0"),
        (lambda: weight_decay_of(1.0, 1.0, 10, p=1.0), r"`p` in \[0, 1\).*1.0"),
        (lambda: weight_decay_of(1.0, 1.0, 10, p=0.1, convention="mine"), "`convention`.*'mine'"),
        (lambda: weight_decay_of(1.0, 1.0, 10, p=0.1, target_std=0.0), "`target_std`.*0.0"),
        (lambda: precision_of(0.0, 1.0, 10, p=0.1), "`weight_decay`.*0.0"),
        (lambda: weight_decay_of(1e-320, 1e300, 10, p=0.1), "give a finite number but they give inf"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_number_of_samples_may_be_any_integer():
    assert weight_decay_of(1.0, 1.0, np.int64(10), p=0.1) == weight_decay_of(1.0, 1.0, 10, p=0.1)


@pytest.mark.parametrize(
    ("parameters", "decay", "message"),
    [
        (torch.zeros(3, 2), 0.1, "`parameters` to be a sequence.* a tensor"),
        (torch.nn.Linear(3, 2), 0.1, "`parameters` to be a sequence.* Linear"),
        ([torch.zeros(3)], torch.tensor(0.1), "`weight_decay` to be a number or a sequence"),
    ],
)
def test_what_would_be_taken_apart_is_refused(parameters, decay, message):
    with pytest.raises(TypeError, match=message):
        dropout_objective(torch.zeros(2), parameters, decay)


def test_a_share_for_a_number_of_samples_is_refused():
    with pytest.raises(TypeError, match=r"`size`.*0.9"):
        weight_decay_of(1.0, 1.0, 0.9, p=0.1)
