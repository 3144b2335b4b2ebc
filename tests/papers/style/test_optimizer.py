"""MonotoneLBFGS: the matrix that it stands for, no point twice, steps that go on where the last one ended."""

import copy
import math

import pytest
import torch

from pl_losses.papers.style.optimizer import MonotoneLBFGS, cubic_minimum, low_pass, quasi_newton


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


class Problem:
    """A loss of a vector in float64, and where it was evaluated."""

    def __init__(self, loss, start, **options):
        self.x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        self.loss, self.points, self.losses = loss, [], []
        self.optimizer = MonotoneLBFGS([self.x], **options)

    def closure(self):
        self.optimizer.zero_grad()
        loss = self.loss(self.x)
        loss.backward()
        self.points.append(tuple(self.x.tolist()))
        self.losses.append(loss.item())
        return loss

    def steps(self, count):
        for _ in range(count):
            self.optimizer.step(self.closure)
        return self.x.detach().clone()


def test_quasi_newton_is_the_dense_matrix_of_bfgs():
    generator = torch.Generator().manual_seed(0)
    gradient, *moves = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    changes = [root @ root.T @ move for move in moves]
    begin = torch.diag(torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)) + 0.1
    matrix = begin * 2 * (moves[-1] @ changes[-1]) / (changes[-1] @ begin @ changes[-1])
    for s, y in zip(moves, changes, strict=True):
        project = torch.eye(5, dtype=torch.float64) - torch.outer(y, s) / (y @ s)
        matrix = project.T @ matrix @ project + torch.outer(s, s) / (y @ s)
    found = quasi_newton(gradient, moves, changes, begin=begin.__matmul__, stretch=2.0)
    torch.testing.assert_close(found, -matrix @ gradient)
    torch.testing.assert_close(
        quasi_newton(gradient, [], [], begin=begin.__matmul__, stretch=2.0), -begin @ gradient
    )


@pytest.mark.parametrize("size", [(6, 9), (5, 4), (1, 3)])
def test_low_pass_multiplies_each_frequency(size):
    height, width = size
    shape = (2, 3, height, width)
    images = torch.zeros(shape, dtype=torch.float64)
    matrix = torch.stack(
        [low_pass(one.flatten(), [images], 0.1) for one in torch.eye(images.numel()).double()]
    )
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > 0
    # Waves of all frequencies keep their shape.
    for row, column in [(0, 0), (height // 2, 0), (0, width // 2), (height // 3, width // 4)]:
        rows, columns = torch.arange(height)[:, None] * row / height, torch.arange(width) * column / width
        wave = torch.cos(2 * math.pi * (rows + columns)).double().expand(shape).contiguous()
        factor = 1 / (math.hypot(row / height, column / width) + 0.1)
        found = low_pass(wave.flatten(), [images], 0.1)
        torch.testing.assert_close(found, factor * wave.flatten(), rtol=1e-5, atol=1e-5)


def test_smooth_steps_begin_with_coarse_changes():
    # The loss is the same in all frequencies, so that without `smooth` they all change alike.
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 8, 8, generator=generator, dtype=torch.float64)
    ends = {}
    for smooth in (None, 0.05):
        x = torch.zeros_like(target, requires_grad=True)
        optimizer = MonotoneLBFGS([x], max_iter=1, smooth=smooth)

        def closure(x=x, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (x - target).square().sum() / 2
            loss.backward()
            return loss

        optimizer.step(closure)
        first = torch.fft.rfft2(x.detach()).abs() / torch.fft.rfft2(target).abs()
        ends[smooth] = (first[:, 0, 1] / first[:, 4, 4]).mean().item()
        for _ in range(60):
            optimizer.step(closure)
        torch.testing.assert_close(x.detach(), target, rtol=1e-4, atol=1e-4)
    fine = math.hypot(0.5, 0.5)
    assert ends == pytest.approx({None: 1.0, 0.05: (fine + 0.05) / (1 / 8 + 0.05)})


def test_cubic_minimum_is_that_of_the_cubic():
    # x^3 - x^2 - x + 2 is least at 1, x^3 + x nowhere.
    for length in (0.5, 1.7, 3.0):
        value, slope = length**3 - length**2 - length + 2, 3 * length**2 - 2 * length - 1
        assert cubic_minimum(length, (2.0, value), (-1.0, slope)) == pytest.approx(1.0)
        assert math.isnan(cubic_minimum(length, (0.0, length**3 + length), (1.0, 3 * length**2 + 1)))


def test_a_quadratic_is_solved():
    curvature = torch.tensor([1.0, 7.0, 30.0, 200.0], dtype=torch.float64)
    towards = torch.tensor([3.0, -2.0, 1.0, 0.5], dtype=torch.float64)
    problem = Problem(lambda x: (curvature * x.square()).sum() / 2 - towards @ x, [5.0, 5.0, 5.0, 5.0])
    torch.testing.assert_close(problem.steps(3), towards / curvature, rtol=1e-6, atol=1e-9)
    # At the minimum a step evaluates, since Trainers rely on it, and stays.
    before = len(problem.points)
    assert torch.equal(problem.steps(1), problem.steps(1))
    assert len(problem.points) > before


@pytest.mark.parametrize("lr", [1.0, 30.0])
def test_the_loss_never_rises_and_no_point_is_evaluated_twice(lr):
    problem, ends = Problem(rosenbrock, [-1.2, 1.0, -0.5, 0.8], lr=lr, max_iter=4), [float("inf")]
    for _ in range(6):
        problem.steps(1)
        # The last evaluation is that of the weights.
        assert problem.losses[-1] == rosenbrock(problem.x).item() < ends[-1]
        ends.append(problem.losses[-1])
    assert len(set(problem.points)) == len(problem.points)
    # Some steps were too long at first.
    assert len(problem.points) > 1 + 6 * 4


def test_short_steps_are_parts_of_a_long_one_and_a_checkpoint_goes_on():
    whole, parts = (Problem(rosenbrock, [-1.2, 1.0, 0.5], max_iter=count) for count in (12, 3))
    assert torch.equal(whole.steps(1), parts.steps(4))
    assert whole.points == parts.points
    resumed = Problem(rosenbrock, [-1.2, 1.0, 0.5], max_iter=3)
    resumed.steps(2)
    saved, x = copy.deepcopy(resumed.optimizer.state_dict()), resumed.x.tolist()
    again = Problem(rosenbrock, x, max_iter=3)
    again.optimizer.load_state_dict(saved)
    assert torch.equal(again.steps(2), parts.x)


def test_weights_that_were_changed_are_evaluated_again():
    problem = Problem(rosenbrock, [-1.2, 1.0], max_iter=2)
    problem.steps(1)
    with torch.no_grad():
        problem.x.copy_(torch.tensor([0.5, 2.0]))
    before = len(problem.points)
    problem.steps(1)
    assert problem.points[before] == (0.5, 2.0)
    assert problem.losses[-1] < problem.losses[before]


def test_where_no_step_lowers_the_loss_the_weights_stay():
    x = torch.ones(2, requires_grad=True)
    optimizer = MonotoneLBFGS([x, torch.zeros(1, requires_grad=True)])

    def wrong():
        # Its gradient leads up.
        x.grad = -2 * x.detach()
        return x.square().sum()

    optimizer.step(wrong)
    assert x.tolist() == [1.0, 1.0]


def test_arguments_are_checked():
    x = [torch.zeros(1, requires_grad=True)]
    with pytest.raises(ValueError, match="`lr`"):
        MonotoneLBFGS(x, lr=0.0)
    with pytest.raises(ValueError, match="`history_size`"):
        MonotoneLBFGS(x, history_size=0)
    with pytest.raises(ValueError, match="`stretch`"):
        MonotoneLBFGS(x, stretch=0.0)
    with pytest.raises(ValueError, match="`smooth`"):
        MonotoneLBFGS(x, smooth=0.0)
    with pytest.raises(ValueError, match=r"`smooth` to be \[..., H, W\] but got the shapes \[\(1,\)\]"):
        MonotoneLBFGS(x, smooth=0.1)
    with pytest.raises(ValueError, match=r"got the shapes \[\(3, 0, 4\)\]"):
        MonotoneLBFGS([torch.zeros(3, 0, 4, requires_grad=True)], smooth=0.1)
    other = {"params": [torch.zeros(2, requires_grad=True)]}
    with pytest.raises(ValueError, match="`params` of one group but got another one"):
        MonotoneLBFGS([{"params": x}, other])
    with pytest.raises(ValueError, match="`params` of one group but got another one"):
        MonotoneLBFGS(x).add_param_group(other)


def test_a_checkpoint_and_a_copy_have_all_settings():
    x = torch.zeros(2, 4, requires_grad=True)
    optimizer = MonotoneLBFGS([x], stretch=3.0, smooth=0.02)
    other = MonotoneLBFGS([x])
    other.load_state_dict(optimizer.state_dict())
    for one in (other, copy.deepcopy(optimizer)):
        assert (one.param_groups[0]["stretch"], one.param_groups[0]["smooth"]) == (3.0, 0.02)
    # One of an earlier version goes on as it began.
    old = optimizer.state_dict()
    for name in ("stretch", "smooth"):
        del old["param_groups"][0][name]
    other.load_state_dict(old)
    assert (other.param_groups[0]["stretch"], other.param_groups[0]["smooth"]) == (2.0, None)
