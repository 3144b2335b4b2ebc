from itertools import chain, pairwise, product

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from pl_losses.data import BatchLoader


def flat(batches):
    return list(chain.from_iterable(batches))


def ids(loader):
    return [batch[0].tolist() for batch in loader]


def ranks(samples, batch_size, world, **kwargs):
    return [
        BatchLoader((torch.arange(samples),), batch_size, rank=rank, world_size=world, **kwargs)
        for rank in range(world)
    ]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_evaluation_sees_every_sample_once_in_equally_many_batches(world):
    for samples, batch_size in product([*range(4, 42), 97, 1000], [2, 3, 5, 64]):
        seen = [ids(loader) for loader in ranks(samples, batch_size, world)]
        assert sorted(flat(flat(seen))) == list(range(samples))
        assert {len(batches) for batches in seen} == {-(-samples // (batch_size * world))}
        for step in zip(*seen, strict=True):
            sizes = [len(batch) for batch in step]
            assert 1 <= min(sizes) <= max(sizes) <= batch_size
            assert max(sizes) - min(sizes) <= 1
        assert [len(loader) for loader in ranks(samples, batch_size, world)] == [len(seen[0])] * world


@pytest.mark.parametrize(("samples", "drop_last"), [(37, False), (37, True), (3, False), (40, True)])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_training_ranks_together_see_the_batches_of_one_process(samples, drop_last, world):
    joined = BatchLoader((torch.arange(samples),), 2 * world, shuffle=True, drop_last=drop_last)
    shards = ranks(samples, 2, world, shuffle=True, drop_last=drop_last)
    for _ in range(3):
        expected, seen = ids(joined), [ids(shard) for shard in shards]
        assert {len(batches) for batches in seen} == {len(expected)}
        order = flat(expected)
        padded = [order[i % samples] for i in range(-(-len(order) // world) * world)]
        together = [
            [b for step in zip(*batch, strict=True) for b in step] for batch in zip(*seen, strict=True)
        ]
        assert flat(together) == padded
        assert [batch[: len(full)] for batch, full in zip(together, expected, strict=True)] == expected


def test_each_epoch_has_an_order_of_its_own_that_set_epoch_returns_to():
    loader = BatchLoader((torch.arange(50),), 7, shuffle=True, seed=3)
    epochs = [flat(ids(loader)) for _ in range(3)]
    assert all(sorted(order) == list(range(50)) for order in epochs)
    assert all(a != b for a, b in pairwise(epochs))
    loader.set_epoch(1)
    assert flat(ids(loader)) == epochs[1]
    other = BatchLoader((torch.arange(50),), 7, shuffle=True, seed=4)
    assert flat(ids(other)) != epochs[0]


def test_an_order_of_ones_own_is_shared_by_the_ranks():
    """Pairs of equal samples: they may come again, and every step has whole pairs on any number of ranks."""

    def pairs(generator):
        return torch.randint(8, (4,), generator=generator).repeat_interleave(2)

    one, *two = [ids(loader) for n in (1, 2) for loader in ranks(8, 4 // n, n, shuffle=True, order=pairs)]
    assert all(batch[::2] == batch[1::2] for batch in one)
    assert two == [[batch[rank::2] for batch in one] for rank in (0, 1)]


@pytest.mark.parametrize("order", [torch.arange(7), torch.arange(8) + 1, torch.arange(8) - 1])
def test_an_order_of_other_samples_is_refused(order):
    (loader,) = ranks(8, 4, 1, shuffle=True, order=lambda _: order)
    with pytest.raises(ValueError, match=r"Expected `order` to draw 8 places in 0\.\.7 but got"):
        next(iter(loader))


def test_an_iteration_cut_short_is_an_epoch_too():
    loader = BatchLoader((torch.arange(50),), 7, shuffle=True)
    whole = BatchLoader((torch.arange(50),), 7, shuffle=True)
    next(iter(loader))
    ids(whole)
    assert ids(loader) == ids(whole)


def test_an_iterator_made_before_set_epoch_follows_it():
    loader, other = (BatchLoader((torch.arange(50),), 7, shuffle=True) for _ in range(2))
    iterator = iter(loader)
    loader.set_epoch(5)
    other.set_epoch(5)
    assert [batch[0].tolist() for batch in iterator] == ids(other)


def test_tensors_stay_together_and_keep_their_type():
    pixels, labels = torch.arange(20, dtype=torch.uint8).view(20, 1), torch.arange(20)
    for image, label in BatchLoader((pixels, labels), 6, shuffle=True):
        assert image.dtype == torch.uint8
        assert torch.equal(image[:, 0].long(), label)


def jitter(batch, generator):
    return (batch[0] + torch.rand(len(batch[0]), generator=generator),)


def test_random_transforms_repeat_exactly_and_differ_by_seed_epoch_rank_and_batch():
    def run(**kwargs):
        loader = BatchLoader((torch.zeros(8),), 2, transform=jitter, **kwargs)
        return [torch.stack([batch[0] for batch in loader]) for _ in range(2)]

    first, again = run(seed=1), run(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    drawn = [*first[0], *first[1], *run(seed=2)[0], *run(seed=1, rank=1, world_size=2)[0]]
    assert len({tuple(draw.tolist()) for draw in drawn}) == len(drawn)


def test_a_loaded_state_goes_on_with_the_remaining_batches_and_the_same_random_numbers():
    def loader():
        return BatchLoader((torch.arange(20.0),), 3, shuffle=True, seed=2, transform=jitter)

    whole = loader()
    expected = [[batch[0].tolist() for batch in whole] for _ in range(3)]
    for stop in range(1, 8):
        first = loader()
        ids(first)
        for index, _ in enumerate(first):
            if index + 1 == stop:
                state = first.state_dict()
        second = loader()
        second.load_state_dict(state)
        second.set_epoch(1 if stop < 7 else 2)
        rest = ids(second)
        assert rest == (expected[1][stop:] or expected[2])
        assert len(second) == 7


def test_a_state_inside_an_epoch_of_another_order_is_refused():
    loader = BatchLoader((torch.arange(20),), 3, shuffle=True)
    next(iter(loader))
    with pytest.raises(ValueError, match=r"'per_step': 4.*'per_step': 3.*end of an epoch"):
        BatchLoader((torch.arange(20),), 4, shuffle=True).load_state_dict(loader.state_dict())
    ids(loader)
    BatchLoader((torch.arange(20),), 4, shuffle=True).load_state_dict(loader.state_dict())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "`batch_size` to be at least 1 but got 0"),
        ({"seed": -1}, "`seed` to be at least 0 but got -1"),
        ({"world_size": 0}, "`world_size` to be at least 1 but got 0"),
        ({"rank": 2, "world_size": 2}, "`rank` to be in 0..1 but got 2"),
        ({"tensors": ()}, "`tensors` to be at least one tensor"),
        ({"tensors": (torch.ones(3), torch.ones(4))}, r"one length of at least 1 but got \[3, 4\]"),
        ({"tensors": (torch.ones(0),)}, r"one length of at least 1 but got \[0\]"),
        ({"tensors": (torch.ones(5), torch.ones(5, device="meta"))}, "on one device but got"),
        ({"world_size": 8}, "at least one sample per rank but got 5 for `world_size` 8"),
        ({"batch_size": 1, "world_size": 2}, "`batch_size` to be at least 2 to share 5 samples over 2 ranks"),
        ({"batch_size": 8, "drop_last": True}, "at least 8 samples .* but got 5"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        BatchLoader(**{"tensors": (torch.ones(5),), "batch_size": 2, **kwargs})


def test_single_samples_are_fine_where_they_can_be_shared():
    assert [ids(loader) for loader in ranks(6, 1, 2)] == [[[0], [2], [4]], [[1], [3], [5]]]


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch):
        self.seen.append((self.trainer.current_epoch, batch[0].tolist()))
        return self.weight * batch[0].float().mean()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, ckpt_path=None, loader_kwargs=None, callbacks=(), **kwargs):
    model = Recorder()
    loader = BatchLoader((torch.arange(20),), 3, shuffle=True, seed=5, transform=jitter)
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 3, **kwargs},
    )
    trainer.fit(model, loader, BatchLoader((torch.arange(5),), 2), ckpt_path=ckpt_path, weights_only=True)
    return model.seen


@pytest.mark.parametrize("limit", [None, 5])
def test_a_trainer_resumed_anywhere_sees_what_the_uninterrupted_one_saw(tmp_path, limit):
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    expected = fit(tmp_path, callbacks=[saver], limit_train_batches=limit)
    per_epoch = limit or 7
    assert len(expected) == 3 * per_epoch
    assert {epoch for epoch, _ in expected} == {0, 1, 2}
    orders = [[int(x) for _, batch in expected[i::per_epoch] for x in batch] for i in range(per_epoch)]
    assert len(set(map(tuple, orders))) == per_epoch
    for step in (1, 4, per_epoch - 1, per_epoch, per_epoch + 1, 2 * per_epoch, 2 * per_epoch + 2):
        rest = fit(tmp_path, ckpt_path=tmp_path / f"step={step}.ckpt", limit_train_batches=limit)
        assert rest == expected[step:], step


def test_a_trainer_resumed_after_validation_sees_the_next_epoch(tmp_path):
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, every_n_epochs=1)
    expected = fit(tmp_path, callbacks=[saver])
    for epoch in (0, 1):
        assert fit(tmp_path, ckpt_path=tmp_path / f"epoch={epoch}.ckpt") == expected[7 * (epoch + 1) :]
