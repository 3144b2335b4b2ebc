"""Figs. 1 to 3: networks trained together are those trained alone, and a stopped training goes on."""

import csv

import pytest
import torch
from torch.nn import functional as F

from pl_losses.cli.main import main
from pl_losses.papers.adam import MLP, curves
from pl_losses.papers.adam.batched import BatchedClassifiers
from pl_losses.papers.adam.curves import OPTIMIZERS


def start(p=0.0):
    torch.manual_seed(0)
    return MLP(6, [5, 4], 3, p=p).double()


def batches(steps):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs = torch.randn(7, 6, generator=generator, dtype=torch.float64)
        yield inputs, torch.randint(3, (7,), generator=generator)


def test_each_network_is_trained_as_if_it_were_alone():
    rates = [0.01, 0.1]
    runs = [(build, rate) for build in OPTIMIZERS.values() for rate in rates]
    stack = BatchedClassifiers(start(), [lambda p, b=build, r=rate: b(p, lr=r) for build, rate in runs])
    for inputs, target in batches(5):
        stack.step(inputs, target, seed=0)
    for (build, rate), row in zip(runs, stack.weights, strict=True):
        network = start()
        optimizer = build(network.parameters(), lr=rate)
        for inputs, target in batches(5):
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), target).backward()
            optimizer.step()
        own = torch.nn.utils.parameters_to_vector(network.parameters())
        torch.testing.assert_close(row, own.detach(), rtol=1e-9, atol=1e-9)


def test_masks_are_the_same_for_all_and_differ_from_step_to_step():
    stack = BatchedClassifiers(start(p=0.5), [torch.optim.SGD, torch.optim.SGD])
    (inputs, target), state = next(batches(1)), torch.get_rng_state()
    losses = [stack.differentiate(inputs, target, seed) for seed in (1, 2, 1)]
    assert all(one[0] == one[1] for one in losses)
    assert losses[0][0] == losses[2][0] != losses[1][0]
    assert torch.equal(torch.get_rng_state(), state)


SMALL = "--datasets ['digits'] --passes 3 --choice_passes 1 --limit 256 --seeds 1 --wandb disabled --folder"


def test_a_stopped_training_goes_on(folder, monkeypatch, capsys):
    monkeypatch.setattr(curves, "SAVE_EVERY", 0.0)
    assert main(["reproduce", "adam/fig1", *SMALL.split(), "whole"]) == 0
    step, left = BatchedClassifiers.step, iter(range(2 + 2 * 2))

    def stopped(self, *batch):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(self, *batch)

    monkeypatch.setattr(BatchedClassifiers, "step", stopped)
    assert main(["reproduce", "adam/fig1", *SMALL.split(), "half"]) == 130
    monkeypatch.setattr(BatchedClassifiers, "step", step)
    seen = []
    monkeypatch.setattr(BatchedClassifiers, "step", lambda *given: seen.append(0) or step(*given))
    assert main(["reproduce", "adam/fig1", *SMALL.split(), "half"]) == 0
    assert len(seen) == 2  # The last of three passes, of two steps.
    tables = [list(csv.DictReader((folder / name / "curves.csv").open())) for name in ("whole", "half")]
    assert [row["method"] for row in tables[0]] == [
        f"digits, {name}" for name in curves.OPTIMIZERS for _ in range(3)
    ]
    for one, other in zip(*tables, strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
