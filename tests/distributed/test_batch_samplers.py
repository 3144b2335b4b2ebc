"""What batch samplers of a user's own make of a DistributedSampler's samples, some of them repeated."""

import random
import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, SubsetRandomSampler
from torch.utils.data.distributed import DistributedSampler

from pl_losses import MLP
from pl_losses.callbacks import ClassifierReport, DropoutUncertaintyMonitor
from pl_losses.core.loaders import num_unpadded, unrepeated_rows


class Uneven(BatchSampler):
    """One sample, two, one, two, ..., in order."""

    def __iter__(self):
        order, size = list(self.sampler), 1
        while order:
            yield order[:size]
            order, size = order[size:], 3 - size

    def __len__(self):
        return (2 * len(self.sampler) + 2) // 3


class Named:
    """No BatchSampler, and with another name for the sampler it is given."""

    def __init__(self, sampler, batch_size, drop_last):
        self.base, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def __iter__(self):
        yield from BatchSampler(self.base, self.batch_size, self.drop_last)

    def __len__(self):
        return -(-len(self.base) // self.batch_size)


class Hidden(Named):
    """It keeps no sampler at all."""

    def __init__(self, sampler, batch_size, drop_last):
        super().__init__(list(sampler), batch_size, drop_last)


class Backwards(BatchSampler):
    def __iter__(self):
        yield from ([sample] for sample in reversed(list(self.sampler)))


class Shuffled(BatchSampler):
    """Batches in another order each time, as buckets by length have them, by the global random numbers."""

    def __iter__(self):
        found = list(super().__iter__())
        yield from (found[i] for i in torch.randperm(len(found)).tolist())


class OwnRandom(BatchSampler):
    """The same with random numbers of its own, which nobody else may draw."""

    def __init__(self, sampler, batch_size, drop_last):
        super().__init__(sampler, batch_size, drop_last)
        self.random = random.Random(0)

    def __iter__(self):
        yield from self.random.sample(found := list(super().__iter__()), len(found))


REORDERING = [Backwards, Shuffled, OwnRandom]


class Tokens(pl.LightningModule):
    """Answers per token, a row each."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 4))

    def forward(self, inputs):
        return self.layers(inputs).flatten(0, -2)

    def test_step(self, batch, batch_idx):
        pass


class PerToken(DropoutUncertaintyMonitor):
    def get_target(self, batch):
        return batch[1].flatten()


def samples(count, *tokens):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, *tokens, 3, generator=generator)
    return list(zip(inputs, torch.randint(0, 4, (count, *tokens), generator=generator), strict=True))


def loader(rows, batches, size=2):
    return DataLoader(rows, batch_sampler=batches(SequentialSampler(rows), size, False))


def monitored(make_trainer, ranks, data, **options):
    torch.manual_seed(0)
    monitor = PerToken(2, masks="shared", max_batches=99, pictures=0)
    (row,) = make_trainer(ranks, callbacks=[monitor], **options).test(Tokens(), data, verbose=False)
    return [row["test/dropout/inputs"], row["test/dropout/nll_deterministic"]]


@pytest.mark.parametrize("batches", [type("Same", (BatchSampler,), {}), Uneven, Named])
def test_the_rows_of_every_sample_count_once(make_trainer, batches):
    one, two = (monitored(make_trainer, ranks, loader(samples(7, 5), batches)) for ranks in (1, 2))
    assert one[0] == 35
    assert two == pytest.approx(one, rel=1e-6)


def test_a_monitor_counts_once_what_every_rank_is_given(make_trainer):
    data = DataLoader(samples(7, 5), 2)
    one, two = (monitored(make_trainer, ranks, data, use_distributed_sampler=False) for ranks in (1, 2))
    assert one[0] == 35
    assert two == pytest.approx(one, rel=1e-6)


def classifier(kind=MLP):
    torch.manual_seed(1)
    return kind(3, [5], 4, p=0.0, optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1))


@pytest.mark.parametrize(("batches", "count"), [(Backwards, 8), (Shuffled, 8), (Uneven, 7), (Named, 7)])
def test_a_module_counts_every_sample_once(make_trainer, batches, count):
    one, two = (
        make_trainer(ranks).test(classifier(), loader(samples(count), batches), verbose=False)[0]
        for ranks in (1, 2)
    )
    assert two == pytest.approx(one, rel=1e-6)


class Batches(list):
    """A data set that is asked for a batch at a time."""

    def __getitem__(self, indices):
        rows = [list.__getitem__(self, i) for i in indices]
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def test_a_sampler_that_gives_batches(make_trainer):
    rows = Batches(samples(9))
    data = DataLoader(rows, batch_size=None, sampler=BatchSampler(SequentialSampler(rows), 2, False))
    one, two = (make_trainer(ranks).test(classifier(), data, verbose=False)[0] for ranks in (1, 2))
    assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("batches", [*REORDERING, Hidden])
def test_what_cannot_be_counted_is_refused(make_trainer, batches):
    with pytest.raises(Exception, match=rf"Expected {batches.__name__} to keep .* `use_distributed_sampler`"):
        make_trainer(2).test(classifier(), loader(samples(7), batches), verbose=False)


def test_batches_of_some_samples_are_refused(make_trainer):
    """Lightning gives each rank a share of all samples instead."""
    rows = samples(13)
    data = DataLoader(rows, batch_sampler=Named(SubsetRandomSampler(range(9)), 3, False))
    assert make_trainer(1).test(classifier(), data, verbose=False)
    message = r"Expected Named to be of all 13 samples, .* but got a sampler of 9: give a"
    with pytest.raises(Exception, match=message):
        make_trainer(2).test(classifier(), data, verbose=False)
    with pytest.raises(Exception, match=message):
        make_trainer(2, max_epochs=1).fit(classifier(), data)


class Shares(pl.LightningDataModule):
    """The user's own share of the samples for each rank, in batches of a sampler of theirs."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def test_dataloader(self):
        sampler = DistributedSampler(
            self.rows, self.trainer.world_size, self.trainer.global_rank, shuffle=False
        )
        return DataLoader(self.rows, batch_sampler=Named(sampler, 2, False))


@pytest.mark.parametrize("lightnings", [False, True])
def test_a_users_own_share_in_batches_of_theirs_counts(make_trainer, lightnings):
    options = {"use_distributed_sampler": lightnings}
    one, two = (
        make_trainer(ranks, **options).test(classifier(), Shares(samples(8)), verbose=False)[0]
        for ranks in (1, 2)
    )
    assert two == pytest.approx(one, rel=1e-6)


def shared(batches, count=7, rank=1):
    """A loader as Lightning makes it for one of two ranks."""
    sampler = DistributedSampler(range(count), 2, rank, shuffle=False)
    return DataLoader(range(count), batch_sampler=batches(sampler, 2, False))


@pytest.mark.parametrize("batches", REORDERING)
def test_training_goes_on_with_a_warning(batches):
    data = shared(batches)
    with pytest.warns(UserWarning, match=f"count twice: expected {batches.__name__} to keep") as warned:
        assert [num_unpadded(data, index, 2, training=True) for index in (0, 1, 0, 1)] == [2, 2, 2, 2]
    assert len(warned) == 1
    with pytest.raises(ValueError, match=f"Expected {batches.__name__} to keep"):
        num_unpadded(data, 0, 2)
    with pytest.raises(ValueError, match=f"Expected {batches.__name__} to keep"):
        unrepeated_rows(data, 0, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert num_unpadded(shared(batches, count=8), 1, 2) == 2


@pytest.mark.parametrize("batches", [Backwards, Hidden])
def test_a_fit_goes_on(make_trainer, batches):
    run = make_trainer(
        2, max_epochs=1, callbacks=[Warned(f"count twice: expected {batches.__name__} to keep")]
    )
    run.fit(classifier(), loader(samples(7), batches))


class Warned(pl.Callback):
    """Looks for one warning of a fit, on rank zero."""

    def __init__(self, words):
        self.words = words

    def on_train_start(self, trainer, pl_module):
        self.caught = warnings.catch_warnings(record=True)
        self.found = self.caught.__enter__()
        warnings.simplefilter("always")

    def on_train_end(self, trainer, pl_module):
        self.caught.__exit__(None, None, None)
        warned = [one for one in self.found if self.words in str(one.message)]
        assert len(warned) == trainer.is_global_zero
        assert trainer.global_step > 0


@pytest.mark.parametrize("batches", REORDERING)
def test_looking_at_the_order_changes_no_random_numbers(batches):
    torch.manual_seed(0)
    data, other = shared(batches), shared(batches)
    expected = [list(other.batch_sampler) for _ in range(2)]
    torch.manual_seed(0)
    found = [list(data.batch_sampler)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        num_unpadded(data, 0, 2, training=True)
    assert [*found, list(data.batch_sampler)] == expected


class Stream(IterableDataset):
    """Samples that every rank is given all of."""

    def __iter__(self):
        return iter([(inputs + 1, (target + 1) % 4) for inputs, target in samples(5)])


class Two(MLP):
    def test_step(self, batch, batch_idx, dataloader_idx=0):
        return super().test_step(batch, batch_idx)


class Confusion(pl.Callback):
    """Looks at what :class:`ClassifierReport` draws."""

    def on_test_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            confusion, *_ = DRAWN.pop()
            assert confusion.sum() == 12


DRAWN = []


@pytest.mark.parametrize("turned", [False, True])
def test_each_of_several_loaders_is_judged_by_itself(make_trainer, turned, monkeypatch):
    monkeypatch.setattr("pl_losses.monitoring.pictures.draw_confusion", lambda *given: DRAWN.append(given))
    monkeypatch.setattr("pl_losses.monitoring.pictures.log_figure", lambda *_: None)
    rows = []
    for ranks in (1, 2):
        data = [DataLoader(samples(7), 2), DataLoader(Stream(), 2)]
        run = make_trainer(ranks, callbacks=[ClassifierReport(), Confusion()])
        found = run.test(classifier(Two), data[::-1] if turned else data, verbose=False)
        rows.append({key: value for row in found for key, value in row.items()})
    assert rows[1] == pytest.approx(rows[0], rel=1e-6)


class OfADict(MLP):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["a"] if isinstance(batch, dict) else batch, batch_idx)


def dict_loaders(count):
    return {name: DataLoader(samples(7), 4) for name in "ab"[:count]}


@pytest.mark.parametrize("count", [0, 1])
def test_repeated_training_samples_weigh_nothing_in_a_dict_of_one_loader(make_trainer, count):
    found = []
    for ranks in (1, 2):
        torch.manual_seed(1)
        model = OfADict(3, [5], 4, p=0.0, optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1))
        # One step an epoch, of all samples.
        loaders = DataLoader(samples(7), 8 // ranks)
        trainer = make_trainer(ranks, max_epochs=1)
        trainer.fit(model, {"a": loaders} if count else loaders)
        found.append(float(trainer.callback_metrics["train/error"]))
    assert found[0] == found[1]


def test_several_training_loaders_are_told_of(make_trainer, monkeypatch):
    warned = []
    monkeypatch.setattr("pl_losses.core.loaders.rank_zero_warn", warned.append)
    make_trainer(1, max_epochs=1).fit(OfADict(3, [5], 4, optimizer=torch.optim.Adam), dict_loaders(2))
    assert not warned
    sampler = DistributedSampler(samples(7), num_replicas=2, rank=0)
    loaders = {name: DataLoader(samples(7), 4, sampler=sampler) for name in "ab"}
    make_trainer(1, max_epochs=1).fit(OfADict(3, [5], 4, optimizer=torch.optim.Adam), loaders)
    assert len(warned) == 2
    assert "2 ranks repeat some of 7 samples" in warned[0]
