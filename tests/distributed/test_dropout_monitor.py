import math
from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
import torch.multiprocessing
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pl_losses.data import TensorDataModule
from pl_losses.papers.dropout import monitor_metrics as summaries
from pl_losses.papers.dropout.budget import Budget
from pl_losses.papers.dropout.monitor import DropoutUncertaintyMonitor
from pl_losses.papers.dropout.sampling.sampling import mc_samples


def tensors(task):
    """37 inputs: two ranks cannot share them evenly."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(37, 1, 4, 4, generator=generator)
    if task == "classification":
        return images, torch.randint(3, (37,), generator=generator)
    return images, images.sum(dim=(1, 2, 3)) / 4


class Data(TensorDataModule):
    def __init__(self, task="classification", **options):
        super().__init__(**options)
        self.task = task

    def load(self, stage):
        both = tensors(self.task)
        return {"train": both, "val": both, "test": both}


class Network(pl.LightningModule):
    def __init__(self, folder, task):
        super().__init__()
        torch.manual_seed(0)
        self.folder, self.task = folder, task
        layers = [nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3)]
        self.network = nn.Sequential(*layers, nn.Linear(12, 3 if task == "classification" else 1))

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch):
        outputs = self(batch[0])
        if self.task == "classification":
            return F.cross_entropy(outputs, batch[1])
        return F.mse_loss(outputs[:, 0], batch[1])

    def validation_step(self, batch):
        pass

    def test_step(self, batch):
        pass

    def on_fit_end(self):
        self.write("fit", self.state_dict())

    def write(self, name, value):
        torch.save(value, f"{self.folder}/{name}{self.trainer.world_size}-{self.global_rank}.pt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Watch(pl.Callback):
    """Writes down what was logged, on each rank."""

    def on_test_end(self, trainer, pl_module):
        pl_module.write("metrics", {k: v.item() for k, v in trainer.callback_metrics.items()})

    on_validation_end = on_test_end


def read(folder, name, ranks):
    found = [torch.load(f"{folder}/{name}{ranks}-{rank}.pt") for rank in range(ranks)]
    assert all(str(each) == str(found[0]) for each in found)
    return found[0]


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("foreign", [False, True])
def test_two_ranks_equal_one_process_on_an_uneven_set(make_trainer, tmp_path, task, foreign):
    results = {}
    for ranks in (1, 2):
        # Shared masks depend on the seed only, so that the passes are the same functions on all ranks.
        monitor = DropoutUncertaintyMonitor(
            samples=7, task=task, masks="shared", precision=2.0, max_batches=100
        )
        trainer = make_trainer(ranks, callbacks=[monitor, Watch()])
        if foreign:
            # Lightning gives it a DistributedSampler, which repeats the first of 37.
            data = {"dataloaders": DataLoader(TensorDataset(*tensors(task)), 8 // ranks)}
        else:
            data = {"datamodule": Data(task, eval_batch_size=8 // ranks)}
        trainer.test(Network(tmp_path, task), **data, verbose=False)
        results[ranks] = read(tmp_path, "metrics", ranks)
    assert results[1]["test/dropout/inputs"] == 37
    assert results[2] == pytest.approx(results[1], rel=1e-5, abs=1e-6)
    assert not any(math.isnan(value) for value in results[1].values())


class Flattened(Network):
    """An output for each of 16 pixels, or for as many as the image says, in one row each."""

    def __init__(self, folder, ragged=0):
        super().__init__(folder, "classification")
        self.network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Dropout2d(0.3), nn.Conv2d(4, 3, 1))
        self.ragged = ragged

    def kept(self, images):
        few = (images[:, :, :1, :1] > 0).expand(-1, 1, 4, 4)
        rows = few & (torch.arange(16).view(4, 4) >= self.ragged)
        return ~rows.flatten() if self.ragged else slice(None)

    def forward(self, images):
        return self.network(images).permute(0, 2, 3, 1).flatten(0, 2)[self.kept(images)]


class PixelMonitor(DropoutUncertaintyMonitor):
    def get_target(self, batch):
        return (batch[0] > 0).long().flatten()

    def call(self, pl_module, inputs):
        return pl_module(inputs)


@pytest.mark.parametrize("ranks", [2, 3])
def test_pixels_of_ranks_equal_those_of_one_process(make_trainer, tmp_path, ranks):
    """37 inputs of 16 pixels each: the repetitions of one or two inputs are 16 rows each."""
    results = {}
    for devices in (1, ranks):
        monitor = PixelMonitor(samples=5, masks="shared", max_batches=100, pictures=6)
        trainer = make_trainer(devices, callbacks=[monitor, Watch()], logger=CSVLogger(tmp_path))
        trainer.test(
            Flattened(tmp_path), DataLoader(TensorDataset(*tensors("classification")), 5), verbose=False
        )
        results[devices] = read(tmp_path, "metrics", devices)
    assert results[1]["test/dropout/inputs"] == 37 * 16
    assert results[ranks] == pytest.approx(results[1], rel=1e-5, abs=1e-6)


class RaggedMonitor(PixelMonitor):
    def get_target(self, batch):
        return super().get_target(batch)[Flattened("", self.ragged).kept(batch[0])]

    def _warn_once(self, words):
        with open(f"{self.folder}/warned", "a") as file:
            file.write(words)
        super()._warn_once(words)


@pytest.mark.parametrize("few", [11, 12])
def test_repetitions_that_cannot_be_told_are_counted_and_that_is_said(make_trainer, tmp_path, few):
    """Also where the number of samples divides that of the rows by chance."""
    monitor = RaggedMonitor(samples=3, masks="shared", max_batches=100)
    monitor.folder, monitor.ragged = tmp_path, few
    images, target = tensors("classification")
    trainer = make_trainer(2, callbacks=[monitor, Watch()])
    trainer.test(Flattened(tmp_path, few), DataLoader(TensorDataset(images, target), 5), verbose=False)
    sizes = torch.where(images[:, 0, 0, 0] > 0, few, 16)
    # The second rank ends with these four samples, the last of them for the second time.
    assert bool(sizes[[31, 33, 35, 0]].sum() % 4) == (few == 11)
    assert len(sizes[[31, 33, 35, 0]].unique()) == 2
    assert read(tmp_path, "metrics", 2)["test/dropout/inputs"] == sizes.sum() + sizes[0]
    assert "it cannot tell their rows" in (tmp_path / "warned").read_text()


def test_pictures_of_two_ranks_are_drawn_once_from_all_inputs(make_trainer, tmp_path, monkeypatch):
    class Monitor(DropoutUncertaintyMonitor):
        def _draw(self, trainer, stage):
            torch.save(self._seen[""].kept[0], f"{tmp_path}/kept{trainer.global_rank}.pt")
            super()._draw(trainer, stage)

    def draw_uncertain(images, labels, information):
        torch.save(information, tmp_path / "drawn.pt")
        return draw(images, labels, information)

    draw = summaries.draw_uncertain
    monkeypatch.setattr(summaries, "draw_uncertain", draw_uncertain)
    trainer = make_trainer(2, callbacks=[Monitor(samples=3, pictures=6)], logger=CSVLogger(tmp_path, "csv"))
    trainer.test(Network(tmp_path, "classification"), Data(eval_batch_size=5), verbose=False)
    names = {path.name for path in tmp_path.glob("csv/version_0/pictures/*")}
    assert names == {f"test-dropout-{name}.png" for name in ("reliability", "entropy", "most_uncertain")}
    kept = torch.cat([torch.load(tmp_path / f"kept{rank}.pt") for rank in (0, 1)])
    assert len(kept) == 12
    assert torch.equal(torch.load(tmp_path / "drawn.pt"), kept.sort(descending=True).values[:6])


def test_training_of_two_ranks_is_the_same_to_the_last_bit(make_trainer, tmp_path):
    weights = []
    for callbacks in ([], [DropoutUncertaintyMonitor(samples=3, max_batches=8)]):
        pl.seed_everything(0)
        trainer = make_trainer(2, callbacks=callbacks, max_epochs=2)
        trainer.fit(Network(tmp_path, "classification"), Data(batch_size=8, eval_batch_size=8))
        weights.append([torch.load(f"{tmp_path}/fit2-{rank}.pt") for rank in (0, 1)])
    for plain, monitored in zip(*weights, strict=True):
        assert all(torch.equal(plain[key], monitored[key]) for key in plain)


def test_ranks_look_at_as_many_batches_as_rank_zero_has_time_for(make_trainer, tmp_path, monkeypatch):
    """By their own clocks the other would look at three of its batches, then at none while zero gathers."""
    plans = {0: iter([2, 1, 0]), 1: iter([3, 0, 2])}
    own = lambda budget, most: next(plans[torch.distributed.get_rank()])  # noqa: E731
    monkeypatch.setattr(Budget, "batches", own)
    looks = []

    class Looks(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            looks.append(trainer.callback_metrics.get("val/dropout/inputs", torch.tensor(0.0)).item())

        def on_fit_end(self, trainer, pl_module):
            pl_module.write("looks", looks)

    callbacks = [DropoutUncertaintyMonitor(samples=3, pictures=0), Looks()]
    trainer = make_trainer(2, callbacks=callbacks, max_epochs=3, num_sanity_val_steps=0)
    trainer.fit(Network(tmp_path, "classification"), Data(batch_size=8, eval_batch_size=5))
    assert [torch.load(path) for path in sorted(tmp_path.glob("looks*"))] == [[20, 10, 10]] * 2


class Uneven(IterableDataset):
    """Rank zero has nothing, the other all."""

    def __iter__(self):
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 0:
            return
        yield from zip(*tensors("classification"), strict=True)


@pytest.mark.parametrize("dropout", [True, False])
def test_a_rank_without_batches_is_waited_for(make_trainer, tmp_path, dropout):
    network = Network(tmp_path, "classification")
    if not dropout:
        network.network[4] = nn.Identity()
    trainer = make_trainer(2, callbacks=[DropoutUncertaintyMonitor(samples=3, max_batches=8), Watch()])
    trainer.validate(network, DataLoader(Uneven(), 10), verbose=False)
    found = read(tmp_path, "metrics", 2)
    if dropout:
        assert found["val/dropout/inputs"] == 37
        assert 0 < found["val/dropout/nll"] < 10
    else:
        assert not found


def test_ranks_draw_masks_of_their_own(make_trainer, tmp_path):
    class Recorder(DropoutUncertaintyMonitor):
        def to_probabilities(self, pl_module, outputs):
            pl_module.outputs = [*getattr(pl_module, "outputs", []), outputs.clone()]
            return super().to_probabilities(pl_module, outputs)

        def on_test_end(self, trainer, pl_module):
            pl_module.write("outputs", pl_module.outputs)

    trainer = make_trainer(2, callbacks=[Recorder(samples=2)], use_distributed_sampler=False)
    loader = DataLoader(TensorDataset(*tensors("classification")), 37)
    trainer.test(Network(tmp_path, "classification"), loader, verbose=False)
    first, second = (torch.load(f"{tmp_path}/outputs2-{rank}.pt") for rank in (0, 1))
    # One pass to look, one without dropout, which is the same; then two of its own.
    assert len(first) == len(second) == 4
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[2], second[2])
    assert not torch.equal(first[2], first[3])


def sample_a_sharded_module(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    network, images = Network(folder, "classification"), tensors("classification")[0]
    whole = [mc_samples(network, images, 5, seed=0, masks=masks) for masks in ("shared", "independent")]
    torch.distributed.fsdp.fully_shard(network)
    assert isinstance(network.network[1].weight, torch.distributed.tensor.DTensor)
    with torch.inference_mode():
        sharded = [mc_samples(network, images, 5, seed=0, masks=masks) for masks in ("shared", "independent")]
    torch.testing.assert_close(whole, sharded)
    torch.save(sharded, f"{folder}/sharded{rank}.pt")
    torch.distributed.destroy_process_group()


def test_samples_of_a_sharded_module_are_those_of_the_whole(tmp_path):
    torch.multiprocessing.start_processes(sample_a_sharded_module, (tmp_path,), nprocs=2, start_method="fork")
    assert [path.name for path in sorted(tmp_path.glob("*.pt"))] == ["sharded0.pt", "sharded1.pt"]
