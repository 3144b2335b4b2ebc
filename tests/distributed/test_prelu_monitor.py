import os
from collections import OrderedDict
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils.data import DataLoader, TensorDataset

from pl_losses.monitoring.monitor import bring_together
from pl_losses.papers.prelu.monitor import PReLUSlopeMonitor, gather


class Recorder(Logger):
    """Keeps the rows, and writes them down on the process that logs."""

    name, version = "recorder", "0"

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.rows = {}

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows[step] = dict(metrics)

    def finalize(self, status):
        torch.save(self.rows, self.path)


class Watched(PReLUSlopeMonitor):
    """Leaves a file for every rank that collects."""

    def collect(self, trainer, pl_module, optimizer):
        (self.folder / f"{trainer.world_size}-{trainer.global_rank}").touch()
        return super().collect(trainer, pl_module, optimizer)


def network():
    torch.manual_seed(0)
    sizes = (nn.PReLU(5), nn.PReLU(1), nn.PReLU(6))
    return nn.Sequential(*[nn.Sequential(nn.Linear(n, m), s) for n, m, s in zip((4, 5, 7), (5, 7, 6), sizes)])  # noqa: B905


class Net(pl.LightningModule):
    def __init__(self, optimizer):
        super().__init__()
        self.network = network()
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        return self.network(batch[0]).square().mean()

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


def inputs():
    return torch.randn(48, 4, generator=torch.Generator().manual_seed(1))


def plain(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def zero(parameters):
    if not distributed.is_initialized():
        return plain(parameters)
    return ZeroRedundancyOptimizer(list(parameters), torch.optim.SGD, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("optimizer", [plain, zero])
def test_two_ranks_equal_one_process(make_trainer, tmp_path, optimizer):
    rows = []
    for ranks in (1, 2):
        monitor, path = Watched(every_n_steps=2), tmp_path / f"{ranks}.pt"
        monitor.folder = tmp_path
        options = {"max_epochs": 6, "logger": Recorder(path), "log_every_n_steps": 1}
        trainer = make_trainer(ranks, callbacks=[monitor], **options)
        # All samples in one batch: two ranks would draw them in another order.
        trainer.fit(Net(optimizer), DataLoader(TensorDataset(inputs()), batch_size=48 // ranks))
        rows.append(torch.load(path))
    one, two = rows
    assert list(one) == list(two) == [1, 3, 5]
    for step, row in one.items():
        assert two[step] == pytest.approx(row, rel=1e-4, abs=1e-7)
        assert {f"prelu/network.{i}.1/momentum_norm" for i in range(3)} <= row.keys()
    collected = {path.name for path in tmp_path.glob("?-?")}
    assert collected == {"1-0", "2-0"} | ({"2-1"} if optimizer is zero else set())
    assert len(list(tmp_path.rglob("prelu-final_slopes.png"))) == 1


@contextmanager
def process_group(rank, folder):
    store = distributed.FileStore(os.path.join(folder, "store"), 2)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def on_two_ranks(function, folder):
    torch.multiprocessing.start_processes(function, (str(folder),), nprocs=2, start_method="fork")


def sharded_rank(rank, folder):
    with process_group(rank, folder):
        module = nn.Sequential(OrderedDict(network=network()))
        fully_shard(module)
        assert isinstance(module.network[0][1].weight, DTensor)
        row, picture = steps_by_hand(module, rank, inputs()[rank::2])
        if rank == 0:
            torch.save((row, picture), os.path.join(folder, "row.pt"))
        else:
            assert row is None


def steps_by_hand(module, rank, batch):
    """Two steps of SGD, as Lightning would make them; what is logged of the second, and the final slopes."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        module(batch).square().mean().backward()
        optimizer.step()
    monitor = PReLUSlopeMonitor()
    monitor._sharded = distributed.is_initialized()
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=1))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(
        global_rank=rank, is_global_zero=rank == 0, optimizers=[optimizer], fit_loop=loop, strategy=strategy
    )
    with torch.no_grad():
        parts = monitor.collect(trainer, module, optimizer)
    row = bring_together(parts, trainer, monitor._sharded)
    bring_together([monitor._part(trainer, layers_of(module), None)], trainer, monitor._sharded)
    return (None if row is None else (row.scalars, row.histograms)), monitor._latest


def layers_of(module):
    return {f"network.{i}.1": module.network[i][1].weight for i in range(3)}


def test_fsdp_with_uneven_shards_equals_the_whole(tmp_path):
    on_two_ranks(sharded_rank, tmp_path)
    (scalars, histograms), latest = torch.load(tmp_path / "row.pt", weights_only=False)
    whole, expected = steps_by_hand(nn.Sequential(OrderedDict(network=network())), 0, inputs())
    assert scalars == pytest.approx(whole[0], rel=1e-4, abs=1e-7)
    assert scalars["prelu/network.2.1/momentum_norm"] > 0
    assert {key: len(values) for key, values in histograms.items()} == {
        "prelu/network.0.1/slopes": 5,
        "prelu/network.2.1/slopes": 6,
    }
    for path, values in expected.items():
        assert latest[path] == pytest.approx(values, rel=1e-4)


def placed_rank(rank, folder):
    with process_group(rank, folder):
        mesh = init_device_mesh("cpu", (2,))
        for placement in (Shard(0), Replicate(), None):
            whole = {str(n): torch.arange(1.0, n + 1) for n in (1, 2, 3, 4, 7)}
            layers = {path: nn.Parameter(placed(values, mesh, placement)) for path, values in whole.items()}
            optimizer = torch.optim.Adam(layers.values())
            for path, slopes in layers.items():
                slopes.grad = placed(-whole[path], mesh, placement)
                optimizer.state[slopes]["exp_avg"] = placed(10 * whole[path], mesh, placement)
            sums = gather(layers, optimizer, sharded=True, rank=rank)
            distributed.all_reduce(sums)
            values = torch.cat([*whole.values()])
            expected = torch.cat([values, -values, 10 * values])
            torch.testing.assert_close(sums[: 3 * len(values)].detach(), expected)
            assert (sums[3 * len(values) :] > 0).all()


def placed(values, mesh, placement):
    return values.clone() if placement is None else distribute_tensor(values, mesh, [placement])


def test_shards_copies_and_plain_tensors_add_up_to_the_whole(tmp_path):
    on_two_ranks(placed_rank, tmp_path)
