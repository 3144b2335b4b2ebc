"""What `pl-losses predict` writes is in the order of the samples, each once, on any number of ranks."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler

from pl_losses.cli.predictions import PredictedSamples, of_all_ranks, write_predictions
from pl_losses.data import TensorDataModule


class Numbers(TensorDataModule):
    def load(self, stage):
        return {"predict": (torch.arange(7),)}


class Echo(pl.LightningModule):
    """Answers with the samples and writes what all ranks answered."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.answers, self.samples = folder, [], PredictedSamples()

    def configure_callbacks(self):
        return [self.samples]

    def predict_step(self, batch, batch_idx):
        self.answers.append(self.answer(batch[0]))

    def answer(self, x):
        return {"x": x, "s": [str(int(one)) for one in x]}

    def on_predict_end(self):
        answers = of_all_ranks(self.answers, self.trainer, self.samples.seen)
        if self.trainer.is_global_zero:
            write_predictions(answers, self.folder)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_sample_once_and_in_order(make_trainer, tmp_path, ranks, shared, monkeypatch):
    trainer = make_trainer(ranks)
    if shared:  # As by a strategy whose ranks hold parts of one model.
        alone = property(lambda self: {"num_replicas": 1, "rank": 0})
        monkeypatch.setattr(type(trainer.strategy), "distributed_sampler_kwargs", alone, raising=False)
    trainer.predict(Echo(tmp_path), Numbers(eval_batch_size=2), return_predictions=False)
    lines = (tmp_path / "predictions.csv").read_text().split()
    assert lines == ["sample,x,s", *(f"{i},{i},{i}" for i in range(7))]


class Stream(IterableDataset):
    """Numbers of which each rank reads all, or its own share."""

    def __init__(self, shares, count=7):
        self.shares, self.count = shares, count

    def __iter__(self):
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return iter(
            [
                (torch.tensor(x),)
                for x in range(*((rank, self.count, ranks) if self.shares else (self.count,)))
            ]
        )


class Repeating(pl.LightningDataModule):
    """A DataLoader whose sampler, the user's own, repeats a sample."""

    def predict_dataloader(self):
        return DataLoader(ROWS, batch_size=2, sampler=DistributedSampler(ROWS, shuffle=False))


ROWS = TensorDataset(torch.arange(7))


class Backwards(BatchSampler):
    """All samples in another order, by a sampler that is kept under another name."""

    def __init__(self, sampler, batch_size, drop_last):
        self.base, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def __iter__(self):
        order = sorted(self.base, reverse=True)
        yield from (order[first : first + 2] for first in range(0, len(order), 2))

    def __len__(self):
        return (len(self.base) + 1) // 2


LOADERS = {
    "a DataLoader": lambda: DataLoader(ROWS, 2),
    "batches of a sampler": lambda: DataLoader(
        ROWS, batch_sampler=BatchSampler(SequentialSampler(ROWS), 2, drop_last=False)
    ),
    "all samples on each rank": lambda: DataLoader(ROWS, 2),
    "a stream on each rank": lambda: DataLoader(Stream(shares=False), 2),
    "a stream that shares": lambda: DataLoader(Stream(shares=True), 2),
    "a sampler that repeats": Repeating,
    "batches in another order": lambda: DataLoader(
        ROWS, batch_sampler=Backwards(SequentialSampler(ROWS), 2, drop_last=False)
    ),
    "a sampler of batches": lambda: DataLoader(
        ROWS, batch_size=None, sampler=BatchSampler(SequentialSampler(ROWS), 2, drop_last=False)
    ),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_every_sample_once_and_in_order_of_a_users_own_loader(make_trainer, tmp_path, kind):
    shared = {"use_distributed_sampler": kind != "all samples on each rank"}
    data = LOADERS[kind]()
    given = {"datamodule" if isinstance(data, Repeating) else "dataloaders": data}
    make_trainer(2, **shared).predict(Echo(tmp_path), **given, return_predictions=False)
    lines = (tmp_path / "predictions.csv").read_text().split()
    assert lines == ["sample,x,s", *(f"{i},{i},{i}" for i in range(7))]


def test_batches_in_another_order_on_one_process(make_trainer, tmp_path):
    loader = LOADERS["batches in another order"]()
    make_trainer(1).predict(Echo(tmp_path), loader, return_predictions=False)
    lines = (tmp_path / "predictions.csv").read_text().split()
    assert lines == ["sample,x,s", *(f"{i},{i},{i}" for i in range(7))]


class Halves(pl.LightningDataModule):
    """Each rank's own half of the samples: 0 to 3, and 4 to 6."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def predict_dataloader(self):
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        own = range(rank * 7 // ranks + rank, (rank + 1) * 7 // ranks + (rank + 1 < ranks))
        if self.kind == "sampler":
            return DataLoader(ROWS, batch_size=2, sampler=list(own))
        if self.kind == "subset":
            return DataLoader(Subset(ROWS, own), batch_size=2)
        return DataLoader([ROWS[place] for place in own], batch_size=2)


@pytest.mark.parametrize("kind", ["sampler", "subset"])
def test_halves_are_put_in_the_order_of_the_samples(make_trainer, tmp_path, kind):
    trainer = make_trainer(2, use_distributed_sampler=False)
    trainer.predict(Echo(tmp_path), Halves(kind), return_predictions=False)
    lines = (tmp_path / "predictions.csv").read_text().split()
    assert lines == ["sample,x,s", *(f"{i},{i},{i}" for i in range(7))]


def test_an_order_that_nobody_knows_is_told(make_trainer, tmp_path, monkeypatch):
    warned = tmp_path / "warned"
    monkeypatch.setattr("pl_losses.cli.predictions.rank_zero_warn", warned.write_text)
    trainer = make_trainer(2, use_distributed_sampler=False)
    trainer.predict(Echo(tmp_path), Halves("rows of its own"), return_predictions=False)
    lines = (tmp_path / "predictions.csv").read_text().split()
    assert [line.split(",")[1] for line in lines[1:]] == list("0415263")
    assert warned.read_text().startswith("It is not known which samples each rank was given")


def test_a_drawn_order_on_one_process(make_trainer, tmp_path):
    loader = DataLoader(ROWS, 2, shuffle=True)
    make_trainer(1).predict(Echo(tmp_path), loader, return_predictions=False)
    lines = (tmp_path / "predictions.csv").read_text().split()
    assert lines == ["sample,x,s", *(f"{i},{i},{i}" for i in range(7))]


class Same(Echo):
    def answer(self, x):
        return torch.zeros(len(x))


class Noise(Echo):
    """Answers by random numbers, other ones on each rank."""

    def answer(self, x):
        generator = torch.Generator().manual_seed(torch.distributed.get_rank())
        return torch.rand(len(x), generator=generator)


@pytest.mark.parametrize("model", [Same, Noise])
@pytest.mark.parametrize("shares", [False, True])
def test_what_counts_are_the_samples_whatever_the_answers(make_trainer, tmp_path, shares, model):
    data = DataLoader(Stream(shares, count=6), 2)
    make_trainer(2).predict(model(tmp_path), data, return_predictions=False)
    lines = (tmp_path / "predictions.csv").read_text().split()
    assert [line.split(",")[0] for line in lines] == ["sample", *map(str, range(6))]
