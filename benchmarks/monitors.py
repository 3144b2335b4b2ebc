"""What the monitors cost: hook time beside a training step and beside peers, memory, collectives.

Run with ``python -m benchmarks.monitors``, or of some networks only: ``... mlp cnn``. Three networks train
under a Lightning Trainer on the CPU, one thread. The contestants take turns: each turn is a fit of some steps
that goes on with the same weights and AdamW, its first step left out. Costs are medians within a turn, ratios
are taken within a turn, and medians over the turns are printed.

Hook time is what the monitors' hooks take, measured from the outside: the post-step hook,
``on_before_optimizer_step`` and ``on_train_batch_end``, with reduction, copy and handing the row to a logger.
A step is from ``on_train_batch_start`` to ``on_train_batch_end``, without callbacks. ``wandb.watch`` works
within forward and backward: its cost is how much longer a step takes than without it. Times are those of the
processor in this thread, which other jobs disturb least; with W&B, which has a thread that sends, in all
threads of this process. Costs "by the step" are differences of whole steps' means, for both sides alike.
What leaves the process is counted, too: W&B's service, another process, takes time for each row, and its file
grows. "Process and W&B's service" is all that a logged step costs this machine.

What is unequal: ``wandb.watch`` logs two histograms of each weight and no statistics of Adam, and a call for
each; ours logs one row, mostly scalars. So there are also an expert's callback, with the same histograms in
one row, and the naive callback with our statistics.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter, process_time, sleep, thread_time
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
import wandb
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.utils.data import DataLoader

from pl_losses.callbacks import AdamBiasCorrectionMonitor, DropoutUncertaintyMonitor, PReLUSlopeMonitor
from pl_losses.monitoring.monitor import Monitor
from pl_losses.strategies import FSDP2Strategy

try:
    from composer.callbacks import OptimizerMonitor
    from composer.optim import DecoupledAdamW
except ImportError:
    OptimizerMonitor = None

Seconds = dict[str, float]
BY, WHOLE = "wandb, all, by steps", "wandb, all, whole"


def mlp() -> nn.Module:
    blocks = [(nn.Linear(n, 64), nn.PReLU(64), nn.Dropout(0.1)) for n in (32, 64)]
    return nn.Sequential(*(layer for block in blocks for layer in block), nn.Linear(64, 10))


def cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise((3, 32, 64, 128, 128, 256, 224))):
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.PReLU(after)]
        layers += [] if number % 2 else [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(224, 10))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(320, 8, 1280, 0.1, nn.PReLU(), batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)
    mean = nn.AdaptiveAvgPool2d((1, 320))  # Over the tokens: [B, L, 320] -> [B, 1, 320].
    return nn.Sequential(nn.Embedding(2000, 320), encoder, mean, nn.Flatten(), nn.Linear(320, 10))


@dataclass(frozen=True)
class Case:
    """A network, a batch of its inputs, turns, and steps of a turn.

    Attributes:
        targets: In % of a step: aggregates and full statistics at every step, everything at every 50.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    turns: int
    steps: int
    targets: tuple[float, float, float]

    def batches(self, steps: int) -> DataLoader[Any]:
        torch.manual_seed(1)
        inputs = self.inputs()
        pairs: Any = [(inputs, torch.randint(10, (len(inputs),)))] * steps
        return DataLoader(pairs, batch_size=None)


TINY = Case("tiny MLP", mlp, lambda: torch.randn(64, 32), 5, 80, (15, 40, 1))
CASES: tuple[Case, ...] = (
    TINY,
    Case("1M CNN", cnn, lambda: torch.randn(16, 3, 32, 32), 5, 11, (3, 10, 0.3)),
    Case("10M transformer", transformer, lambda: torch.randint(2000, (8, 64)), 3, 4, (3, 10, 0.3)),
)


class Net(pl.LightningModule):
    """Classifies; keeps its optimizer from fit to fit."""

    def __init__(self, network: nn.Module, optimizer: Callable[..., torch.optim.Optimizer] = AdamW) -> None:
        super().__init__()
        self.network, self.make_optimizer = network, optimizer
        self.kept: torch.optim.Optimizer | None = None
        self.scalars: dict[str, float] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.kept = self.kept or self.make_optimizer(self.parameters(), lr=1e-4)
        return self.kept

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/loss", cross_entropy(self(batch[0]), batch[1]))


def fit(net: Net, data: Any, callbacks: list[Any], logger: Any = None, **options: Any) -> None:
    options = {"accelerator": "cpu", "devices": 1, "limit_val_batches": 0, "log_every_n_steps": 1} | options
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_epochs": 1} | options | {"callbacks": callbacks, "logger": logger or DummyLogger()}
    pl.Trainer(**options, **quiet).fit(net, data, data)


def post_step(action: Callable[[], None]) -> pl.Callback:
    """Does something after each optimizer's step, before or after the monitors do, by its place."""
    handles = []

    def attach(trainer: pl.Trainer, module: pl.LightningModule) -> None:
        handles.append(trainer.optimizers[0].register_step_post_hook(lambda *_: action()))

    return LambdaCallback(on_train_start=attach, on_train_end=lambda *_: handles.pop().remove())


def fenced(monitors: list[pl.Callback], enter: Callable[[], Any], leave: Callable[[], None]) -> list[Any]:
    """Monitors with ``enter`` before and ``leave`` after whatever they do at a step."""

    def between(method: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            enter()
            method(*args, **kwargs)
            leave()

        return call

    for monitor in monitors:
        for name in ("on_before_optimizer_step", "on_train_batch_end"):
            if getattr(type(monitor), name) is not getattr(pl.Callback, name):
                setattr(monitor, name, between(getattr(monitor, name)))
        if isinstance(monitor, Monitor):  # Its pictures at the end of each fit are no part of a step.
            monitor.on_train_end = partial(Monitor.on_train_end, monitor)  # type: ignore[method-assign]
    return [post_step(enter), *monitors, post_step(leave)]


class Clock(pl.Callback):
    """Seconds of each step, from one step's beginning to the next, and of the hooks in each step.

    Of the processor, in this thread or in all of this process: other jobs do not count in. Short hooks of one
    thread are shorter on the wall: the thread's clock takes a microsecond to read.
    """

    def __init__(self, all_threads: bool) -> None:
        self.all_threads, self.now = all_threads, process_time if all_threads else thread_time
        self.steps: list[float] = []
        self.beginnings: list[float] = []
        self.hooks: list[float] = []
        self.outside = (0.0, 0.0)

    def on_train_batch_start(self, *_: object, **__: object) -> None:
        self.hooks.append(0.0)
        self.beginnings.append(self.now())

    def on_train_batch_end(self, *_: object, **__: object) -> None:
        self.steps.append(self.now() - self.beginnings[-1])

    def enter(self) -> None:
        self.entered = self.now(), perf_counter()

    def leave(self) -> None:
        wall, own = perf_counter() - self.entered[1], self.now() - self.entered[0]
        self.hooks[-1] += own if self.all_threads else min(wall, own)

    def whole(self) -> float:
        return mean(after - before for before, after in pairwise(self.beginnings[1:]))


class Histograms(pl.Callback):
    """What ``wandb.watch(log="all")`` shows as an expert would: all gradients and weights in one row."""

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        row = {}
        for name, weight in module.named_parameters():
            for kind, tensor in (("parameters", weight), ("gradients", weight.grad)):
                low, high = (bound.item() for bound in torch.aminmax(tensor))
                counts = torch.histc(tensor, 64, low, high).tolist()
                edges = torch.linspace(low, high, 65).tolist()
                row[f"{kind}/{name}"] = wandb.Histogram(np_histogram=(counts, edges))
        trainer.logger.log_metrics(row, trainer.global_step)


class TwoNorms(pl.Callback):
    """An expert's: the norms of both of Adam's moments over all weights, by ``torch._foreach_norm``."""

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: object) -> None:
        states = module.kept.state.values()
        row = {}
        for key in ("exp_avg", "exp_avg_sq"):
            norms = torch._foreach_norm([state[key] for state in states])
            row[f"{key}_norm"] = torch.stack(norms).norm().item()
        trainer.logger.log_metrics(row, trainer.global_step)


class Naive(pl.Callback):
    """What one writes without further thought: the same statistics, tensor by tensor, each waited for."""

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: object) -> None:
        row: dict[str, float] = {}
        for name, weight in module.named_parameters():
            row |= {f"{name}/{key}": value.item() for key, value in self.adam(module.kept, weight).items()}
        for name, layer in module.named_modules():
            if isinstance(layer, nn.PReLU):
                row |= {f"{name}/{key}": value.item() for key, value in self.slopes(layer.weight).items()}
        trainer.logger.log_metrics(row, trainer.global_step)

    def adam(self, optimizer: Any, weight: Tensor) -> dict[str, Tensor]:
        group, state = optimizer.param_groups[0], optimizer.state[weight]
        m, v, step = state["exp_avg"], state["exp_avg_sq"], state["step"].item()
        m_hat, v_hat = m / (1 - group["betas"][0] ** step), v / (1 - group["betas"][1] ** step)
        direction = m_hat / (v_hat.sqrt() + group["eps"])
        update = group["lr"] * (direction + group["weight_decay"] * weight)
        norms = {"m_norm": m, "v_norm": v, "m_hat_norm": m_hat, "v_hat_norm": v_hat, "update_norm": update}
        return {key: tensor.norm() for key, tensor in norms.items()} | {
            "update_to_weight": update.norm() / weight.norm(),
            "snr": (m_hat / v_hat.sqrt()).square().mean().sqrt(),
            "max_update": direction.abs().max(),
            "trust_region_share": (direction.abs() > 0.9).float().mean(),
            "eps_share": (v_hat.sqrt() < 10 * group["eps"]).float().mean(),
        }

    def slopes(self, slopes: Tensor) -> dict[str, Tensor]:
        quantiles = {f"q{q}": slopes.quantile(q / 100) for q in (5, 50, 95)}
        shares = {"below_0": (slopes < 0).float().mean(), "above_1": (slopes > 1).float().mean()}
        return quantiles | shares | {"mean": slopes.mean(), "min": slopes.min(), "max": slopes.max()}


class Nothing(pl.Callback):
    """As many hooks as all three monitors have, and nothing in them: what measuring itself takes."""

    def on_before_optimizer_step(self, *_: object) -> None:
        """Of Adam's."""

    def on_train_batch_end(self, *_: object) -> None:
        """Of both."""


class Constant(pl.Callback):
    """Logs numbers that are there already: what W&B and its logger take of a row, whoever makes it."""

    def __init__(self, scalars: bool) -> None:
        self.scalars = scalars

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: object) -> None:
        trainer.logger.log_metrics(module.scalars if self.scalars else {}, trainer.global_step)


class Composer(pl.Callback):
    """Composer's OptimizerMonitor at every step, with what its own AdamW reports, of our AdamW's state."""

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        optimizer = DecoupledAdamW(list(module.parameters()))
        optimizer.state = module.kept.state
        now = SimpleNamespace(batch=SimpleNamespace(value=0))
        self.state = SimpleNamespace(timestamp=now, model=module, optimizers=[optimizer], fsdp_enabled=False)
        self.monitor = OptimizerMonitor(batch_log_interval=1)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: object) -> None:
        self.monitor.batch_end(self.state, trainer.logger)


def everything(every: int = 1) -> list[pl.Callback]:
    adam = AdamBiasCorrectionMonitor(every_n_steps=every)
    return [adam, PReLUSlopeMonitor(every_n_steps=every), DropoutUncertaintyMonitor(samples=2, max_batches=1)]


@contextmanager
def watching(net: Net, logger: WandbLogger, logs: bool = True) -> Iterator[None]:
    """``wandb.watch`` at every step; unless it ``logs``, what it has computed goes nowhere."""
    logger.watch(net, log="all", log_freq=1, log_graph=False)
    with nullcontext() if logs else patch.object(logger.experiment, "_log"):
        yield
    logger.experiment.unwatch(net)


@dataclass(frozen=True)
class Contestant:
    """Callbacks, whether to log to W&B, what surrounds a fit, and how many times the usual steps it takes."""

    callbacks: Callable[[], list[pl.Callback]] = list
    wandb: bool = False
    around: Callable[[Net, WandbLogger], Any] = lambda net, logger: nullcontext()
    times: int = 1

    def fit(self, case: Case, net: Net, logger: WandbLogger) -> Clock:
        clock = Clock(all_threads=self.wandb)
        outside = Outside()
        callbacks = [clock, *fenced(self.callbacks(), clock.enter, clock.leave)]
        with self.around(net, logger):
            fit(net, case.batches(case.steps * self.times), callbacks, logger if self.wandb else None)
        if self.wandb:
            clock.outside = outside.since(case.steps)
        return clock


class Outside:
    """What has left the process: processor time of W&B's service, and bytes of the run's file."""

    def __init__(self) -> None:
        self.before = self.now()

    def now(self) -> tuple[float, float]:
        mine, seconds = str(os.getpid()), 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "stat").read_text().rpartition(")")[2].split()[1] == mine:
                    for thread in (folder / "task").iterdir():
                        seconds += int((thread / "schedstat").read_text().split()[0])
            except OSError:
                continue  # It has ended.
        files = Path().rglob("*.wandb")
        return seconds / 1e9, float(sum(file.stat().st_size for file in files))

    def since(self, steps: int) -> tuple[float, float]:
        sleep(0.3)  # The service works behind.
        return tuple((after - before) / steps for after, before in zip(self.now(), self.before, strict=True))


CONTESTANTS = {
    "bare": Contestant(),
    "aggregate": Contestant(lambda: [AdamBiasCorrectionMonitor(1, level="aggregate")]),
    "full": Contestant(lambda: [AdamBiasCorrectionMonitor(1)]),
    "prelu": Contestant(lambda: [PReLUSlopeMonitor(1)]),
    "all": Contestant(everything),
    "all, every 2": Contestant(lambda: everything(2), times=2),
    "nothing": Contestant(lambda: [Nothing(), LambdaCallback(on_train_batch_end=lambda *_: None)]),
    "naive": Contestant(lambda: [Naive()]),
    "wandb": Contestant(wandb=True),
    "wandb, empty": Contestant(lambda: [Constant(False)], wandb=True),
    "wandb, constant": Contestant(lambda: [Constant(True)], wandb=True),
    "wandb, all": Contestant(everything, wandb=True),
    "wandb, watch": Contestant(wandb=True, around=watching),
    "wandb, expert": Contestant(lambda: [Histograms()], wandb=True),
    "watch": Contestant(around=partial(watching, logs=False)),
} | ({"composer": Contestant(lambda: [Composer()])} if OptimizerMonitor else {})


def turn(clocks: dict[str, Clock]) -> Seconds:
    """A bare step, and each contestant's cost of a logged one."""
    found = {name: median(clock.hooks[1:]) for name, clock in clocks.items()}
    found["bare"] = median(clocks["bare"].steps[1:])
    pairs = clocks["all, every 2"].hooks  # Not logged, logged, not logged, logged, ...
    found["not logged"] = median(pairs[2::2])
    found["all, every 50"] = (median(pairs[3::2]) + 49 * found["not logged"]) / 50
    found["all, every 50, net"] = found["all, every 50"] - found["nothing"]
    found["watch"] = clocks["watch"].whole() - clocks["bare"].whole()
    bare = clocks["wandb"]
    for name in ("watch", "all", "empty", "constant", "expert"):
        one = clocks[f"wandb, {name}"]
        found[f"wandb, {name}, by steps"] = one.whole() - bare.whole()
        for number, key in enumerate(("service", "bytes")):
            found[f"wandb, {name}, {key}"] = one.outside[number] - bare.outside[number]
        found[f"wandb, {name}, whole"] = found[f"wandb, {name}, by steps"] + found[f"wandb, {name}, service"]
    return found


def scalars_of(case: Case, net: Net) -> dict[str, float]:
    """One of the rows of all three monitors."""
    logger = DummyLogger()
    with patch.object(DummyLogger, "log_metrics", create=True) as log:
        fit(net, case.batches(1), everything(), logger)
    rows: list[dict[str, float]] = [call.args[0] for call in log.call_args_list if call.args]
    return max(rows, key=len)


def race(case: Case, logger: WandbLogger) -> list[Seconds]:
    torch.manual_seed(0)
    net, names, turns = Net(case.build()), list(CONTESTANTS), []
    CONTESTANTS["all"].fit(case, net, logger)
    net.scalars = scalars_of(case, net)
    for number in range(case.turns):
        # Another one goes first each time: nobody always follows the same neighbour.
        order = names[number % len(names) :] + names[: number % len(names)]
        turns.append(turn({name: CONTESTANTS[name].fit(case, net, logger) for name in order}))
    return turns


class Allocations:
    """Peak of the bytes that live because of the hooks.

    Of torch's by the profiler's record of its allocations; of NumPy's and Python's the largest of a hook.
    """

    def __init__(self, folder: str) -> None:
        self.trace = Path(folder, "trace.json")
        self.live = self.torch = self.others = 0

    def enter(self) -> None:
        cpu = [torch.profiler.ProfilerActivity.CPU]
        self.profiler = torch.profiler.profile(activities=cpu, profile_memory=True)
        self.profiler.start()
        tracemalloc.start()

    def leave(self) -> None:
        self.others = max(self.others, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        self.profiler.stop()
        self.profiler.export_chrome_trace(str(self.trace))
        events = json.loads(self.trace.read_text())["traceEvents"]
        for event in sorted((one for one in events if one["name"] == "[memory]"), key=lambda one: one["ts"]):
            self.live += event["args"]["Bytes"]
            self.torch = max(self.torch, self.live)


def memory(case: Case, folder: str) -> int:
    meter = Allocations(folder)
    fit(Net(case.build()), case.batches(3), fenced(everything(), meter.enter, meter.leave))
    return meter.torch + meter.others


def identical(case: Case) -> bool:
    """Whether weights and optimizer states after 4 steps and 2 validations are the same to the bit."""
    results = []
    for callbacks in ([], fenced(everything(), lambda: None, lambda: None)):
        torch.manual_seed(0)
        net = Net(case.build())
        validation = {"limit_val_batches": 1, "val_check_interval": 2, "num_sanity_val_steps": 0}
        fit(net, case.batches(4), callbacks, **validation)
        states = net.configure_optimizers().state_dict()["state"].values()
        results.append([*net.state_dict().values(), *(t for state in states for t in state.values())])
    return all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def many() -> nn.Module:
    return nn.Sequential(*(nn.Linear(16, 16) for _ in range(500)))


def of_many(logger: WandbLogger) -> dict[str, tuple[float, float]]:
    """Ms of the hooks for a thousand tensors, and how many times those of an expert's two norms."""
    case = Case("1000 tensors", many, lambda: torch.randn(16, 16), 5, 15, (1, 1, 1))
    contestants = {
        "an expert's two norms": TwoNorms,
        "Adam, aggregates": partial(AdamBiasCorrectionMonitor, 1, level="aggregate"),
        "Adam, full": partial(AdamBiasCorrectionMonitor, 1),
        'Adam, full, `tensors="*"`': partial(AdamBiasCorrectionMonitor, 1, tensors="*"),
    }
    net, turns = Net(case.build()), []
    for _ in range(case.turns):
        fits = {
            name: Contestant(lambda make=make: [make()]).fit(case, net, logger)
            for name, make in contestants.items()
        }
        turns.append({name: median(clock.hooks[1:]) for name, clock in fits.items()})
    first = next(iter(contestants))
    return {
        name: (1e3 * median(one[name] for one in turns), median(one[name] / one[first] for one in turns))
        for name in contestants
    }


class Validations(pl.Callback):
    """Processor time of each validation of a fit."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_validation_start(self, *_: object) -> None:
        self.began = process_time()

    def on_validation_end(self, *_: object) -> None:
        self.seconds.append(process_time() - self.began)


def of_dropout(case: Case, validations: int) -> tuple[float, float, float]:
    """How many times a fit's validations of 16 batches the looks make them: by default, fixed; the first."""
    torch.manual_seed(0)
    net, found = Net(case.build()), {}
    options = {"limit_val_batches": 16, "max_epochs": validations, "limit_train_batches": 1}
    data = case.batches(16)
    for name, monitors in (
        ("bare", []),
        ("default", [DropoutUncertaintyMonitor(pictures=0)]),
        ("fixed", [DropoutUncertaintyMonitor(pictures=0, max_batches=8)]),
    ):
        clock = Validations()
        few = {"max_epochs": 2} if name == "fixed" else {}
        fit(net, data, [clock, *monitors], **options | {"num_sanity_val_steps": 1} | few)
        found[name] = clock.seconds[1:]
    bare = mean(found["bare"])
    return mean(found["default"]) / bare, mean(found["fixed"]) / bare, found["default"][0] / bare


def count_collectives(rank: int, folder: str) -> None:
    """On one of two ranks: those of the monitors in a logged step; rank zero writes them down."""
    elastic = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    elastic |= {"MASTER_ADDR": "localhost", "MASTER_PORT": 0, "TORCHELASTIC_RUN_ID": "benchmark"}
    os.environ.update({key: str(value) for key, value in elastic.items()})
    store = distributed.FileStore(str(Path(folder, "store")), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    with CommDebugMode() as mode:
        distributed.all_reduce(torch.zeros(1))
    assert mode.get_total_counts() == 1, "the counter does not count"
    zero, counts = partial(ZeroRedundancyOptimizer, optimizer_class=AdamW), {}
    for name, strategy, optimizer in (
        ("DDP", DDPStrategy, AdamW),
        ("ZeRO", DDPStrategy, zero),
        ("FSDP2", FSDP2Strategy, AdamW),
    ):
        seen: list[int] = []

        def leave(seen: list[int] = seen) -> None:
            mode.__exit__(None, None, None)
            seen.append(mode.get_total_counts())

        callbacks = fenced(everything(), mode.__enter__, leave)
        gloo = {"strategy": strategy(process_group_backend="gloo"), "devices": 2}
        fit(Net(mlp(), optimizer), TINY.batches(4), callbacks, **gloo)
        counts[name] = sum(seen) / 2  # Each rank has two of the four batches.
    if rank == 0:
        Path(folder, "counts.json").write_text(json.dumps(counts))
    distributed.destroy_process_group()


def collectives(folder: str) -> dict[str, float]:
    torch.multiprocessing.start_processes(count_collectives, (folder,), nprocs=2, start_method="fork")
    return json.loads(Path(folder, "counts.json").read_text())


def table(*rows: list[str]) -> None:
    for row in (rows[0], ["---"] + ["---:"] * (len(rows[0]) - 1), *rows[1:]):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def table_of_shares(found: list[list[Seconds]]) -> None:
    """In % of a bare step; bold where the target is missed."""
    rows = [["bare step, ms"] + [f"{1e3 * median(one['bare'] for one in turns):.3g}" for turns in found]]
    for label, name, target in (
        ("Adam, aggregates, every step", "aggregate", 0),
        ("Adam, full, every step", "full", 1),
        ("PReLU, every step", "prelu", 1),
        ("all three, every step", "all", None),
        ("all three, a step not logged", "not logged", None),
        ("the measurement alone", "nothing", None),
        ("all three, every 50 steps", "all, every 50", None),
        ("the same without the measurement", "all, every 50, net", 2),
    ):
        cells = [f"{100 * median(one[name] / one['bare'] for one in turns):.2g}" for turns in found]
        if target is not None:
            limits = [case.targets[target] for case in CASES]
            cells = [a if float(a) <= b else f"**{a}**" for a, b in zip(cells, limits, strict=True)]
            label += f" (at most {', '.join(f'{limit:g}' for limit in limits)})"
        rows.append([label, *cells])
    table(["hook time, % of a step", *(case.name for case in CASES)], *rows)


def table_of_peers(found: list[list[Seconds]]) -> None:
    rows = []
    for label, name, to in (
        ("Adam, aggregates", "aggregate", "all"),
        ("Adam, full", "full", "all"),
        ("PReLU", "prelu", "all"),
        ("all three", "all", "all"),
        ("naive callback", "naive", "all"),
        ("Composer's OptimizerMonitor", "composer", "all"),
        ('`wandb.watch(log="all")`, its log calls left out', "watch", "all"),
        ("all three with W&B", "wandb, all", "wandb, all"),
        ("all three with W&B, by the step", "wandb, all, by steps", BY),
        ("an empty row with W&B, by the step", "wandb, empty, by steps", BY),
        ("a constant row of the same scalars, by the step", "wandb, constant, by steps", BY),
        ('`wandb.watch(log="all")` with W&B, by the step', "wandb, watch, by steps", BY),
        ("its histograms, logged by hand in one row, by the step", "wandb, expert, by steps", BY),
        ("all three, process and W&B's service", "wandb, all, whole", WHOLE),
        ("an empty row, process and W&B's service", "wandb, empty, whole", WHOLE),
        ("a constant row of the same scalars, process and W&B's service", "wandb, constant, whole", WHOLE),
        ('`wandb.watch(log="all")`, process and W&B\'s service', "wandb, watch, whole", WHOLE),
        (
            "its histograms, logged by hand in one row, process and W&B's service",
            "wandb, expert, whole",
            WHOLE,
        ),
        ("all three, W&B's service", "wandb, all, service", "wandb, all, service"),
        ('`wandb.watch(log="all")`, W&B\'s service', "wandb, watch, service", "wandb, all, service"),
        ("all three, MB of the run's file", "wandb, all, bytes", "wandb, all, bytes"),
        ('`wandb.watch(log="all")`, MB of the run\'s file', "wandb, watch, bytes", "wandb, all, bytes"),
    ):
        cells = ["not installable here"] * len(found)
        if name in found[0][0]:
            unit = 1e-6 if name.endswith("bytes") else 1e3
            times = [unit * median(one[name] for one in turns) for turns in found]
            ratios = [median(one[name] / one[to] for one in turns) for turns in found]
            cells = [f"{ms:.3g} ({ratio:.2g}x)" for ms, ratio in zip(times, ratios, strict=True)]
        rows.append([label, *cells])
    table(["ms of a logged step (times all three)", *(case.name for case in CASES)], *rows)


def main() -> None:
    """Print the tables, of all networks or of those in whose names the arguments are."""
    global CASES
    wanted = [word.lower() for word in sys.argv[1:]]
    CASES = tuple(case for case in CASES if not wanted or any(word in case.name.lower() for word in wanted))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ["WANDB_SILENT"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        counts = collectives(folder)  # Before there are threads: it forks.
        peaks = [memory(case, folder) for case in CASES]
        same = [identical(case) for case in CASES]
        logger = WandbLogger(offline=True, save_dir=folder)
        found = [race(case, logger) for case in CASES]
        adam = of_many(logger)
        looks = [of_dropout(case, 40 if case is TINY else 16) for case in CASES]
        logger.experiment.finish()
    table_of_shares(found)
    table_of_peers(found)
    rows = [[name, f"{ms:.3g} ({ratio:.2g}x)"] for name, (ms, ratio) in adam.items()]
    table(["ms of the hooks (times the expert's), 1000 tensors", "Adam's monitor"], *rows)
    table(
        ["times the fit's validations without it, 16 batches each", *(case.name for case in CASES)],
        ["dropout monitor by default (at most 1.25)"] + [f"{default:.2f}x" for default, _, _ in looks],
        ["the first look"] + [f"{first:.2g}x" for _, _, first in looks],
        ["dropout monitor, `max_batches=8`"] + [f"{fixed:.2g}x" for _, fixed, _ in looks],
    )
    table(["collectives per logged step", *counts], ["all three"] + [f"{one:g}" for one in counts.values()])
    rows = [
        ["peak of memory, torch's and NumPy's, kB (at most 1000)"] + [f"{peak / 1e3:.3g}" for peak in peaks]
    ]
    rows += [["weights with and without are bit-identical"] + ["yes" if one else "**no**" for one in same]]
    table(["all three, every step", *(case.name for case in CASES)], *rows)


if __name__ == "__main__":
    main()
