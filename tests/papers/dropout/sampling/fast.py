"""What the tests of fast sampling share."""

import torch
from torch import nn

from pl_losses.papers.dropout.sampling import vectorized as module_under_test
from pl_losses.papers.dropout.sampling.sampling import mc_samples

P = 0.3


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def linear():
    return nn.Linear(8, 8)


def counted(monkeypatch):
    """How many passes were for many samples, for one with the prefix given back, and for one from scratch.

    Torch's own layers, whose samples are rows, go the same ways as all others here.
    """
    monkeypatch.setattr("pl_losses.papers.dropout.sampling.sampling.in_rows", lambda *_, **__: None)
    counts = {"many": 0, "replayed": 0, "whole": 0}
    many, one = module_under_test.VectorizedSampler._chunk, module_under_test.VectorizedSampler._one

    def chunk(self, *args):
        counts["many"] += 1
        return many(self, *args)

    def single(self, prefix):
        counts["replayed" if prefix else "whole"] += 1
        return one(self, prefix)

    monkeypatch.setattr(module_under_test.VectorizedSampler, "_chunk", chunk)
    monkeypatch.setattr(module_under_test.VectorizedSampler, "_one", single)
    return counts


def one_by_one(monkeypatch, *args, **options):
    with monkeypatch.context() as patch:
        patch.setattr(
            "pl_losses.papers.dropout.sampling.sampling.why_not_many", lambda *_: "the test wants it so"
        )
        return mc_samples(*args, **options)
