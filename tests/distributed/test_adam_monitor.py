"""Adam's statistics on two ranks: replicated, with sharded states, and with sharded parameters."""

from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from kept_rows import Rows
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.optim import Adam, Adamax, AdamW, NAdam, RAdam

from pl_losses.monitoring.monitor import bring_together
from pl_losses.papers.adam.monitor.monitor import AdamBiasCorrectionMonitor


class Counted(AdamBiasCorrectionMonitor):
    """Counts its looks."""

    looks = 0

    def collect(self, *args):
        self.looks += 1
        return super().collect(*args)


class Net(pl.LightningModule):
    """A network whose batches are shared out between the ranks."""

    def __init__(self, path, make):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
        self.path, self.make = path, make

    def training_step(self, batch, batch_idx):
        data = torch.randn(8, 6, generator=torch.Generator().manual_seed(batch_idx))
        return self.net(data[self.global_rank :: self.trainer.world_size]).square().mean()

    def configure_optimizers(self):
        return self.make(self)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(64))

    def on_fit_end(self):
        looks = self.trainer.callbacks[0].looks
        torch.save((self.trainer.logger.of("adam"), looks), f"{self.path}.{self.global_rank}")


def train(make_trainer, folder, ranks, make, net=Net, **options):
    path = folder / f"rows{ranks}"
    monitor = Counted(every_n_steps=2, **options)
    make_trainer(ranks, max_steps=6, logger=Rows(folder), callbacks=[monitor]).fit(net(path, make))
    return [torch.load(f"{path}.{rank}") for rank in range(ranks)]


def same(one, two, name):
    """Rows that are equal to float32's rounding, given the two names of the optimizer."""
    renamed = {
        step: {key.replace(f"adam/{name[1]}/", f"adam/{name[0]}/"): value for key, value in row.items()}
        for step, row in two.items()
    }
    assert list(one) == list(renamed) == [1, 3, 5]
    for step, row in one.items():
        assert row.keys() == renamed[step].keys()
        assert renamed[step] == pytest.approx(row, rel=1e-4, abs=1e-9)


def test_replicated_only_rank_zero_looks(make_trainer, tmp_path):
    make = lambda net: AdamW(net.parameters(), weight_decay=0.1)  # noqa: E731
    ((one, _),) = train(make_trainer, tmp_path, 1, make, tensors="*bias")
    (two, looks), (none, idle) = train(make_trainer, tmp_path, 2, make, tensors="*bias")
    same(one, two, ("AdamW", "AdamW"))
    assert (looks, idle) == (3, 0)
    assert none == {}


def groups(net):
    return [
        {"params": [net.net[0].weight, net.net[2].bias], "weight_decay": 0.1},
        {"params": [net.net[0].bias, net.net[2].weight], "lr": 0.01},
    ]


@pytest.mark.parametrize("level", ["aggregate", "full"])
def test_zero_redundancy_optimizer(make_trainer, tmp_path, level):
    options = {"tensors": "net.0.*", "level": level}
    ((one, _),) = train(make_trainer, tmp_path, 1, lambda net: AdamW(groups(net)), **options)
    zero = lambda net: ZeroRedundancyOptimizer(groups(net), optimizer_class=AdamW)  # noqa: E731
    (two, looks), (none, also) = train(make_trainer, tmp_path, 2, zero, **options)
    same(one, two, ("AdamW", "ZeroRedundancyOptimizer"))
    assert looks == also == 3
    assert none == {}
    assert one[5]["adam/AdamW/pg1/coordinates"] == 6 * 7 + 3


class Single(Net):
    """Trains one tensor only."""

    def __init__(self, *args):
        super().__init__(*args)
        self.net.requires_grad_(False)
        self.net[0].weight.requires_grad_(True)


def test_zero_redundancy_optimizer_with_nothing_on_one_rank(make_trainer, tmp_path):
    single = partial(train, make_trainer, tmp_path, net=Single)
    ((one, _),) = single(1, lambda net: Adam([net.net[0].weight]))
    zero = lambda net: ZeroRedundancyOptimizer([net.net[0].weight], optimizer_class=Adam)  # noqa: E731
    same(one, single(2, zero)[0][0], ("Adam", "ZeroRedundancyOptimizer"))


OPTIMIZERS = {
    "adamw": partial(AdamW, weight_decay=0.1, foreach=False),
    "amsgrad": partial(Adam, amsgrad=True, foreach=False),
    "nadam": partial(NAdam, weight_decay=0.1, foreach=False),
    "radam": partial(RAdam, betas=(0.9, 0.7), foreach=False),
    "adamax": partial(Adamax, foreach=False),
}
# Evenly and unevenly sharded, empty on one rank, replicated, plain.
TENSORS = [((4, 3), Shard(0)), ((5, 3), Shard(0)), ((1, 6), Shard(0)), ((3,), Replicate()), ((2, 2), None)]


def look_at_tensors(make, level, mesh, rank):
    """Steps with given gradients, on DTensors if there is a mesh, and what a monitor says of the last."""
    generator = torch.Generator().manual_seed(0)

    def tensor(shape, placement):
        whole = torch.randn(shape, generator=generator)
        return whole if mesh is None or placement is None else distribute_tensor(whole, mesh, [placement])

    parameters = [nn.Parameter(tensor(*one)) for one in TENSORS]
    optimizer = make(parameters)
    for step in range(4):
        for index, p in enumerate(parameters):
            p.grad = None if (index, step) in {(0, 1), (3, 2)} else tensor(*TENSORS[index])
        optimizer.step()
    sharded = any(isinstance(p, DTensor) for p in parameters)
    monitor = AdamBiasCorrectionMonitor(level=level, tensors="*")
    monitor._sharded = sharded
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(
        optimizers=[optimizer], is_global_zero=rank == 0, global_rank=rank, strategy=strategy
    )
    monitor.prepare(trainer, nn.ParameterList(parameters))
    with torch.no_grad():
        parts = monitor.collect(trainer, None, optimizer)
    return bring_together(parts, trainer, sharded)


def run_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    rows = {
        (name, level): look_at_tensors(make, level, mesh, rank)
        for name, make in OPTIMIZERS.items()
        for level in ("aggregate", "full")
    }
    assert all((row is None) == (rank == 1) for row in rows.values())
    if rank == 0:
        torch.save({key: row.scalars for key, row in rows.items()}, f"{folder}/rows")
    dist.destroy_process_group()


def test_sharded_parameters(tmp_path):
    torch.multiprocessing.start_processes(run_rank, (tmp_path,), nprocs=2, start_method="fork")
    for (name, level), row in torch.load(tmp_path / "rows").items():
        one = look_at_tensors(OPTIMIZERS[name], level, None, 0).scalars
        assert row == pytest.approx(one, rel=1e-5), (name, level)
        assert len(row) > 60
