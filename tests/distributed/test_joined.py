"""Losses over pairs of samples: the rows of all ranks' batches, with their gradients."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pl_losses.core.base import PaperModule

SAMPLES = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).tolist()
# The batches of each rank: two of 6 samples together, on two ranks 5 and 1, then none and 6.
PARTS = {1: [[range(6), range(6, 12)]], 2: [[(0, 2, 3, 4, 5), ()], [(1,), range(6, 12)]]}


class Parts(pl.LightningDataModule):
    def train_dataloader(self):
        own = [list(batch) for batch in PARTS[self.trainer.world_size][self.trainer.global_rank]]
        return DataLoader(
            SAMPLES, batch_sampler=own, collate_fn=lambda kept: torch.tensor(kept).reshape(-1, 3)
        )


class Pairs(PaperModule):
    """Its loss is a mean over all pairs of samples of a joint batch."""

    def __init__(self, path):
        torch.manual_seed(1)
        super().__init__(lambda parameters: torch.optim.SGD(parameters, 0.1))
        self.layer, self.path, self.seen = nn.Linear(3, 2), path, []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.joined(batch))
        return torch.pdist(self.joined(self.layer(batch))).square().sigmoid().mean()

    def on_fit_end(self):
        weights = [p.detach() for p in self.layer.parameters()]
        torch.save((weights, self.seen), f"{self.path}.{self.global_rank}")


def test_any_share_of_the_batches_is_one_process(make_trainer, tmp_path):
    for ranks in (1, 2):
        options = {"max_epochs": 1, "use_distributed_sampler": False, "precision": "64-true"}
        make_trainer(ranks, **options).fit(Pairs(tmp_path / str(ranks)), Parts())
    weights, batches = torch.load(tmp_path / "1.0")
    assert (weights[0] - Pairs("").layer.weight).abs().max() > 1e-3
    for rank in (0, 1):
        own, seen = torch.load(tmp_path / f"2.{rank}")
        torch.testing.assert_close(own, weights, rtol=1e-9, atol=1e-12)
        assert [sorted(rows.tolist()) for rows in seen] == [sorted(rows.tolist()) for rows in batches]
        assert all(rows[0].equal(whole[0]) for rows, whole in zip(seen, batches, strict=True))


class Ragged(Pairs):
    def training_step(self, batch, batch_idx):
        self.joined(torch.zeros(2, 3 + self.global_rank))


def test_rows_of_other_shapes_are_refused_on_all_ranks(make_trainer):
    options = {"max_epochs": 1, "use_distributed_sampler": False}
    with pytest.raises(Exception, match=r"Expected `rows` \[B, ...\] of one shape .* but got \[2, \d\]"):
        make_trainer(2, **options).fit(Ragged(""), Parts())
