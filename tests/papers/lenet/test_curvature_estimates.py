"""The estimate of curvature: what the loss adds, what is refused, and two processes."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from papers.lenet.curvature import Applied, estimate
from papers.lenet.problems import _double, cross_entropy, half_square, small_net  # noqa: F401
from torch import nn
from torch.nn import functional as F

from pl_losses.papers.lenet.optimizer import StochasticDiagonalLM

# --- the loss ---


def test_the_output_starts_with_the_diagonal_of_the_pattern_hessian():
    x, target = torch.randn(9, 4), torch.randint(3, (9,))
    layer = nn.Linear(4, 3)
    p = layer(x).softmax(1).detach()
    weight, bias = estimate(layer, x, target, cross_entropy)
    torch.testing.assert_close(bias, (p * (1 - p)).mean(0))
    torch.testing.assert_close(weight, torch.einsum("bc,bf->cf", p * (1 - p), x.square()) / 9)


def test_a_closed_form_gives_the_same():
    network, x, target = small_net(), torch.randn(9, 4), torch.randint(3, (9,))

    def closed(output, target):
        p = output.softmax(1)
        return p * (1 - p)

    exact = estimate(network, x, target, cross_entropy)
    for got, want in zip(
        estimate(network, x, target, cross_entropy, output_curvature=closed), exact, strict=True
    ):
        torch.testing.assert_close(got, want)


def test_negative_output_curvature_counts_as_zero():
    layer, x = nn.Linear(2, 2, bias=False), torch.randn(5, 2)
    weight, *_ = estimate(layer, x, loss=lambda y, t: (y[:, 0].square() - y[:, 1].square()).mean())
    torch.testing.assert_close(weight, torch.stack([2 * x.square().mean(0), torch.zeros(2)]))


def test_centres_inside_the_loss_have_the_exact_hessian():
    network, centres = small_net(outputs=4), nn.Parameter(torch.randn(3, 4))
    x, target = torch.randn(10, 4), torch.randint(3, (10,))

    def loss(features, target, centres=centres):
        penalties = (features[:, None] - centres).square().sum(2)
        bounded = torch.cat([-penalties, -torch.ones(len(features), 1)], 1).logsumexp(1)
        return (penalties.gather(1, target[:, None])[:, 0] + bounded).mean()

    with torch.no_grad():
        features = network(x)
    exact = torch.autograd.functional.hessian(lambda c: loss(features, target, c), centres.detach())
    *_, got = estimate(network, x, target, loss, [*network.parameters(), centres])
    torch.testing.assert_close(got.flatten(), exact.reshape(12, 12).diagonal().clamp(min=0))
    pieces = [(x[i : i + 3], target[i : i + 3]) for i in range(0, 10, 3)]
    *_, in_pieces = estimate(network, pieces, None, loss, [*network.parameters(), centres])
    torch.testing.assert_close(in_pieces, got)


def test_the_size_of_the_batches_does_not_matter():
    network, x, target = small_net(), torch.randn(500, 4), torch.randint(3, (500,))
    whole = estimate(network, x, target, cross_entropy)
    pieces = [(x[i : i + 130], target[i : i + 130]) for i in range(0, 500, 130)]
    for got, want in zip(estimate(network, pieces, None, cross_entropy), whole, strict=True):
        torch.testing.assert_close(got, want)


def test_training_state_is_left_alone():
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2))
    network[3].eval()
    x = torch.randn(20, 4)
    half_square(network(x), 0.0).backward()
    grads = [p.grad.clone() for p in network.parameters()]
    modes = [m.training for m in network.modules()]
    state, rng = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    network[3].train()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        estimate(network.forward, x, params=list(network.parameters()))
        assert not torch.is_grad_enabled()
    network[3].eval()
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in network.modules()] == modes
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    for p, grad in zip(network.parameters(), grads, strict=True):
        assert torch.equal(p.grad, grad)


def test_batch_norm_in_training_is_a_fixed_affine_map():
    network, x = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), torch.randn(40, 3)
    weight, bias, *_ = estimate(network, x)
    normal = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    h = network[1].weight.detach().square().sum(0)
    torch.testing.assert_close(weight, h * normal.square().mean(0))
    torch.testing.assert_close(bias, h)


# --- errors ---


def nan_layer():
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, torch.nan)
    return nn.Sequential(nn.Linear(2, 2), layer)


def softmax_layer():
    return nn.Sequential(nn.Linear(2, 2), nn.Softmax(1))


def tensor_exponent():
    return Applied(lambda a: a ** a.detach().abs().requires_grad_(), 2)


def uneven_pool():
    return Applied(lambda a: F.avg_pool2d(a[:, None, None], (1, 2), 1, (0, 1), count_include_pad=False), 2)


BAD = {
    "softmax": (lambda: {"network": softmax_layer()}, NotImplementedError, "through SoftmaxBackward0"),
    "tensor exponent": (lambda: {"network": tensor_exponent()}, NotImplementedError, "through PowBackward1"),
    "uneven pool": (lambda: {"network": uneven_pool()}, NotImplementedError, "same number everywhere"),
    "no tensor": (lambda: {"network": lambda x: [x]}, TypeError, "`network` .* got list"),
    "scalar": (lambda: {"network": lambda x: x.sum()}, TypeError, r"\[B, ...\] but got a scalar"),
    "no pair": (lambda: {"batches": [torch.ones(2, 2)]}, TypeError, "`batches` of pairs .* got Tensor"),
    "no batch": (lambda: {"batches": []}, ValueError, "`batches` .* none"),
    "no mean": (lambda: {"loss": lambda y, t: y.square()}, ValueError, r"`loss` .* got shape \[4, 2\]"),
    "no curve": (lambda: {"loss": lambda y, t: y.mean()}, ValueError, "`loss` to be curved"),
    "no use": (lambda: {"loss": lambda y, t: torch.ones(())}, ValueError, "`loss` to be curved"),
    "absolute": (lambda: {"loss": lambda y, t: y.abs().mean()}, ValueError, "`loss` to be curved"),
    "closed form": (lambda: {"output_curvature": lambda y, t: y[:1]}, ValueError, r"\[4, 2\] .* \[1, 2\]"),
    "nan": (lambda: {"network": nan_layer()}, ValueError, "finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_estimates(name):
    make, kind, message = BAD[name]
    options = make()
    network = options.get("network", nn.Linear(2, 2))
    params = list(network.parameters()) if isinstance(network, nn.Module) else [nn.Parameter(torch.ones(1))]
    optimizer = StochasticDiagonalLM(params)
    arguments = {"network": network, "batches": [(torch.ones(4, 2), 0.0)], "loss": half_square, **options}
    with pytest.raises(kind, match=message):
        optimizer.estimate_curvature(**arguments)
    assert not optimizer.state


def test_a_parameter_that_nothing_uses():
    layer, stray = nn.Linear(2, 2), nn.Parameter(torch.ones(3, 7))
    with pytest.raises(ValueError, match=r"parameter 2 of group 0, of shape \[3, 7\].*freeze it"):
        estimate(layer, torch.ones(1, 2), params=[*layer.parameters(), stray])
    assert len(estimate(layer, torch.ones(1, 2))) == 2
    with pytest.raises(ValueError, match="all are frozen"):
        estimate(layer, torch.ones(1, 2), params=[stray.requires_grad_(False)])
    optimizer = StochasticDiagonalLM([*layer.parameters(), stray])
    optimizer.estimate_curvature(layer, [(torch.ones(1, 2), 0.0)], half_square)
    assert stray not in optimizer.state


# --- two processes ---


def problem():
    torch.manual_seed(1)
    centres = nn.Parameter(torch.randn(3, 2))
    network = small_net(outputs=2)

    def loss(y, target):
        return (y - centres[target]).square().sum(1).mean()

    return network, centres, torch.randn(30, 4), torch.randint(3, (30,)), loss


def estimate_on_rank(rank, folder):
    torch.set_num_threads(1)  # A forked process hangs in the thread pool that its parent has used.
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network, centres, x, target, loss = problem()
    # Uneven on purpose: what counts is the number of patterns, not of processes.
    part = slice(0, 10) if rank == 0 else slice(10, 30)
    curvatures = estimate(network, x[part], target[part], loss, [*network.parameters(), centres])
    torch.save(curvatures, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.timeout(50)
def test_two_processes_equal_one(tmp_path):
    context = mp.get_context("fork")
    workers = [context.Process(target=estimate_on_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
        worker.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    network, centres, x, target, loss = problem()
    alone = estimate(network, x, target, loss, [*network.parameters(), centres])
    for h, h_again, want in zip(first, second, alone, strict=True):
        assert torch.equal(h, h_again)
        torch.testing.assert_close(h, want)
