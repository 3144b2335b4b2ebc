import math

import numpy as np
import pytest
import torch

from pl_losses.papers.dropout.table1 import batched_scores as ensemble_scores
from pl_losses.papers.dropout.table1.batched_mlp import (
    _TRAIN_MASKS,
    BatchedMLP,
    SparseMaskSampler,
    Standardised,
    Workspace,
    _Adam,
    train,
)
from pl_losses.papers.dropout.table1.batched_scores import mc_scores
from pl_losses.papers.dropout.uncertainty import mc_log_likelihood

DOUBLE = torch.float64


def sets(*sizes, features=3, seed=0):
    random = np.random.RandomState(seed)
    inputs = [random.randn(size, features) * 3 + 1 for size in sizes]
    return inputs, [x[:, 0] * x[:, 1] + random.randn(len(x)) for x in inputs]


def network(dropout=(0.0, 0.1, 0.4), seeds=None, features=3, hidden=5):
    return BatchedMLP(
        features, hidden, p=dropout, seeds=seeds or [7 + k for k in range(len(dropout))], dtype=DOUBLE
    )


def with_ones(inputs):
    return torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1)


def written_out(net, inputs, masks, weights):
    """The outputs of a pass, by slow steps that autograd follows."""
    first, second, bias = net.views(weights)
    inputs_kept, units_kept = (
        torch.ones(math.prod(shape) + 1, dtype=DOUBLE)
        for shape in (inputs.shape, (*inputs.shape[:2], net.hidden_size))
    )
    inputs_kept[masks[0]], units_kept[masks[1]] = 0, 0
    keep = net.keep[:, None, None]
    x = inputs * inputs_kept[:-1].view(inputs.shape)
    x = torch.cat([x[..., :-1] / keep, x[..., -1:]], dim=-1)
    units = torch.relu(torch.einsum("mbq,mqh->mbh", x, first))
    units = units * units_kept[:-1].view(units.shape) / keep
    return torch.einsum("mbh,mh->mb", units, second) + bias[:, None]


def test_a_pass_and_its_gradient_are_those_of_autograd():
    net = network()
    net.weights.add_(torch.randn(len(net.weights), dtype=DOUBLE, generator=torch.Generator().manual_seed(0)))
    passes, masks = Workspace(net, rows=8), iter(SparseMaskSampler(net, 8, _TRAIN_MASKS))
    inputs = with_ones(torch.randn(3, 8, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)))
    target = torch.randn(3, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    for _ in range(3):
        places = next(masks)
        weights = net.weights.clone().requires_grad_()
        expected = written_out(net, inputs, places, weights)
        (gradient,) = torch.autograd.grad((expected - target).square().sum(), weights)
        passes.inputs[:] = inputs
        outputs = passes.forward(places)
        torch.testing.assert_close(outputs, expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(passes.backward(2 * (outputs - target)), gradient, rtol=1e-11, atol=1e-12)


def test_units_are_dropped_independently_with_their_probability():
    p = (0.0, 0.05, 0.4)
    net = network(p, features=2, hidden=4)
    masks, steps, rows = iter(SparseMaskSampler(net, 6, _TRAIN_MASKS)), 4000, 6
    inputs, units = torch.zeros(steps, 3 * rows * 3 + 1), torch.zeros(steps, 3 * rows * 4 + 1)
    for step in range(steps):
        places = next(masks)
        inputs[step, places[0]], units[step, places[1]] = 1, 1
    inputs = inputs[:, :-1].view(steps, 3, rows, 3)
    assert not inputs[..., 2].any()
    for dropped in (inputs[..., :2].flatten(2), units[:, :-1].view(steps, 3, -1)):
        for member, probability in enumerate(p):
            own = dropped[:, member]
            count = own.numel()
            error = math.sqrt(probability * (1 - probability) / count)
            assert abs(own.mean() - probability) <= 4 * error
            # The number dropped per step is binomial: its variance tells of independence.
            variance = own.shape[1] * probability * (1 - probability)
            assert own.sum(dim=1).var().item() == pytest.approx(variance, rel=0.12)


def test_a_member_learns_the_same_alone_as_among_others():
    inputs, targets = sets(23, 23)
    data = Standardised(inputs, targets, DOUBLE)
    dropout, seeds, sources, decay = (
        [0.05, 0.0, 0.3, 0.05],
        [3, 4, 5, 6],
        [0, 1, 1, 0],
        [0.0, 0.01, 0.1, 0.02],
    )
    options = {"epochs": 5, "batch_size": 8, "learning_rate": 0.01, "schedule": lambda share: 1 - share}
    together = BatchedMLP(3, 5, p=dropout, seeds=seeds, dtype=DOUBLE)
    train(together, data, sources, weight_decay=decay, **options)
    precision = torch.ones(2, 4, dtype=DOUBLE)
    scores = mc_scores(together, data.inputs[sources], data.targets[sources], precision=precision, samples=70)
    for member in range(4):
        alone = BatchedMLP(
            3, 5, p=dropout[member : member + 1], seeds=seeds[member : member + 1], dtype=DOUBLE
        )
        own = sources[member : member + 1]
        train(alone, data, own, weight_decay=decay[member : member + 1], **options)
        for name in ("first", "second", "bias"):
            torch.testing.assert_close(
                getattr(alone, name)[0], getattr(together, name)[member], rtol=1e-9, atol=1e-9
            )
        score = mc_scores(alone, data.inputs[own], data.targets[own], precision=precision[:, :1], samples=70)
        torch.testing.assert_close(score.mean[0], scores.mean[member], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            score.log_likelihood[:, 0], scores.log_likelihood[:, member], rtol=1e-9, atol=1e-9
        )


def test_training_is_adam_on_the_objective_batch_by_batch():
    """Without dropout, against torch's Adam and autograd, in the order that the member's stream gives."""
    from pl_losses.papers.dropout.table1.batched_mlp import _ORDER, _generator

    inputs, targets = sets(21)
    data = Standardised(inputs, targets, DOUBLE)
    net = network((0.0,), [11])
    weights = net.weights.clone().requires_grad_()
    train(net, data, [0], epochs=3, batch_size=8, weight_decay=[0.05], learning_rate=0.02)
    optimizer, generator = torch.optim.Adam([weights], lr=0.02), _generator(11, _ORDER)
    for _ in range(3):
        for rows in torch.randperm(21, generator=generator).split(8):
            x, y = data.inputs[:, rows], data.targets[:, rows]
            none = torch.tensor([], dtype=torch.int64)
            error = written_out(net, x, (none, none), weights) - y
            first, second, _ = net.views(weights)
            # Twice the objective: the squared error and 2 lambda, kernels only.
            kernels = first[:, :-1].square().sum() + second.square().sum()
            optimizer.zero_grad()
            (error.square().mean() + 2 * 0.05 * kernels).backward()
            optimizer.step()
    torch.testing.assert_close(net.weights, weights.detach(), rtol=1e-10, atol=1e-10)


def test_adam_is_torchs():
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(7, dtype=DOUBLE, generator=generator)
    theirs = ours.clone().requires_grad_()
    adam, optimizer = _Adam(ours), torch.optim.Adam([theirs], lr=0.1)
    for _ in range(5):
        gradient = torch.randn(7, dtype=DOUBLE, generator=generator)
        theirs.grad = gradient.clone()
        optimizer.step()
        adam.step(gradient, 0.1)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)


def test_sets_of_unequal_size_are_normalised_by_themselves_and_repeated():
    inputs, targets = sets(6, 4)
    inputs[1][:, 2] = 0.998  # Constant: its deviation rounds to 1e-16.
    data = Standardised(inputs, targets, DOUBLE)
    assert data.inputs.shape == (2, 6, 4)
    for own, x, y, scale in zip(range(2), inputs, targets, data.scale, strict=True):
        size = len(y)
        torch.testing.assert_close(data.targets[own, :size], torch.from_numpy((y - y.mean()) / y.std()))
        assert scale.item() == pytest.approx(y.std())
        z = data.inputs[own, :size, 0]
        torch.testing.assert_close(z, torch.from_numpy((x[:, 0] - x[:, 0].mean()) / x[:, 0].std()))
    assert torch.equal(data.inputs[1, 4:], data.inputs[1, :2])
    assert data.inputs[1, :, 2].abs().max() < 1e-12
    assert (data.inputs[..., 3] == 1).all()
    again = data.normalised(inputs, targets)
    assert torch.equal(again[0], data.inputs)
    net = network((0.1, 0.1))
    train(net, data, [0, 1], epochs=1, batch_size=4, weight_decay=[0.0, 0.0])


def test_glorot_initialisation():
    net = BatchedMLP(20, 50, p=[0.1] * 20, seeds=list(range(20)))
    kernel = net.first[:, :-1]
    bound = math.sqrt(6 / 70)
    assert kernel.abs().max() <= bound
    assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert net.second.std() == pytest.approx(math.sqrt(2 / 51), rel=0.1)
    assert not net.first[:, -1].any()
    assert not net.bias.any()


@pytest.mark.parametrize("rows", [5, 300])
def test_scores_are_those_of_the_passes_held_at_once(rows, monkeypatch):
    """Also with more rows and passes than a block has, the last ones not full."""
    monkeypatch.setattr(ensemble_scores, "_ROWS", 128)
    monkeypatch.setattr(ensemble_scores, "_HELD", 26)
    seen = []
    forward = Workspace.forward

    def watched(self, masks):
        outputs = forward(self, masks)
        seen.append(outputs.clone())
        return outputs

    monkeypatch.setattr(Workspace, "forward", watched)
    net = network((0.1, 0.3))
    generator = torch.Generator().manual_seed(0)
    inputs = with_ones(torch.randn(2, rows, 3, dtype=DOUBLE, generator=generator))
    targets = torch.randn(2, rows, dtype=DOUBLE, generator=generator)
    precision = torch.tensor([[0.5, 2.0], [30.0, 1e6]], dtype=DOUBLE)
    scores = mc_scores(net, inputs, targets, precision=precision, samples=60)
    size = min(rows, 128)
    at_once = 128 // size
    blocks = torch.stack(seen).view(math.ceil(rows / size), -1, 2, at_once, size)
    for block, start in zip(blocks, range(0, rows, size), strict=True):
        # The last block begins earlier, to be as large as the others, but counts from its start only.
        begin = min(start, rows - size)
        new = slice(start - begin, None)
        # Of each chunk of 26 passes the last step may give more than are wanted.
        per_chunk = math.ceil(26 / at_once)
        chunks = [
            block[k : k + per_chunk].transpose(0, 1).flatten(1, 2) for k in range(0, len(block), per_chunk)
        ]
        passes = torch.cat([chunk[:, :26] for chunk in chunks], dim=1)[:, :60]
        mean = passes.mean(dim=1)[:, new]
        torch.testing.assert_close(scores.mean[:, start : begin + size], mean)
        for k, row in enumerate(precision):
            for member, tau in enumerate(row.tolist()):
                expected = mc_log_likelihood(passes[member], targets[member, begin : begin + size], tau)
                found = scores.log_likelihood[k, member, start : begin + size]
                torch.testing.assert_close(found, expected[new], rtol=1e-11, atol=1e-11)
    assert scores.log_likelihood.isfinite().all()


def test_mean_and_likelihood_of_one_linear_unit_are_those_of_all_its_masks():
    """y = v relu(w x) with p = 1/4 each: three in four times 0, else 16/9 v w x."""
    net = BatchedMLP(1, 1, p=[0.25], seeds=[0], dtype=DOUBLE)
    net.first[0, :, 0] = torch.tensor([1.5, 0.0])
    net.second[:] = 2.0
    x, y, tau = torch.tensor([0.5, 1.0]), torch.tensor([1.0, 2.0], dtype=DOUBLE), 0.7
    inputs = with_ones(x.to(DOUBLE)[None, :, None])
    scores = mc_scores(net, inputs, y[None], precision=torch.tensor([[tau]]), samples=40_000)
    kept, value = 0.75**2, 16 / 9 * 2 * 1.5 * x.to(DOUBLE)
    torch.testing.assert_close(scores.mean[0], kept * value, rtol=0.03, atol=0)
    density = [
        torch.exp(-tau / 2 * (y - output) ** 2) * math.sqrt(tau / (2 * math.pi))
        for output in (0 * value, value)
    ]
    expected = ((1 - kept) * density[0] + kept * density[1]).log()
    torch.testing.assert_close(scores.log_likelihood[0, 0], expected, rtol=0, atol=0.02)


def test_the_seed_alone_decides():
    inputs, targets = sets(15)
    data = Standardised(inputs, targets, DOUBLE)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(results))
        before = torch.random.get_rng_state()
        net = network((0.1,), [seed])
        train(net, data, [0], epochs=2, batch_size=4, weight_decay=[0.0])
        scores = mc_scores(net, data.inputs, data.targets, precision=torch.ones(1, 1), samples=10)
        assert torch.equal(torch.random.get_rng_state(), before)
        results.append((net.weights, scores.mean))
    assert all(map(torch.equal, results[0], results[1]))
    assert not torch.equal(results[0][1], results[2][1])


def test_progress_counts_all_samples():
    inputs, targets = sets(15)
    data, done = Standardised(inputs, targets), []
    net = BatchedMLP(3, 4, p=[0.1, 0.1], seeds=[0, 1])
    train(net, data, [0, 0], epochs=3, batch_size=4, weight_decay=[0, 0], progress=done.append)
    assert done == [30] * 3
    done.clear()
    mc_scores(
        net,
        data.inputs[[0, 0]],
        data.targets[[0, 0]],
        precision=torch.ones(1, 2),
        samples=300,
        progress=done.append,
    )
    assert sum(done) == 2 * 15 * 300


def test_equal_targets_are_refused():
    inputs, _ = sets(9)
    with pytest.raises(ValueError, match=r"`targets` to differ but all of set 0 are 2\.0"):
        Standardised(inputs, [np.full(9, 2.0)])


def test_a_member_that_diverges_leaves_the_others_alone():
    inputs, targets = sets(9)
    data = Standardised(inputs * 2, targets * 2)
    options = {"epochs": 3, "batch_size": 4, "learning_rate": 0.01}
    both, alone = (
        BatchedMLP(3, 4, p=[0.1, 0.1], seeds=[0, 1]),
        BatchedMLP(3, 4, p=[0.1], seeds=[0]),
    )
    both.first[1] = float("inf")
    train(both, data, [0, 1], weight_decay=[0.0, 0.0], **options)
    train(alone, data, [0], weight_decay=[0.0], **options)
    assert not both.first[1].isfinite().all()
    torch.testing.assert_close(both.first[0], alone.first[0])
    torch.testing.assert_close(both.second[0], alone.second[0])
