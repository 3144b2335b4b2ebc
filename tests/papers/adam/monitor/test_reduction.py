import warnings
import weakref
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn
from torch.optim import Adam, AdamW, NAdam
from torch.utils.data import DataLoader

from pl_losses.monitoring.monitor import bring_together
from pl_losses.papers.adam.monitor.monitor import AdamBiasCorrectionMonitor
from pl_losses.papers.prelu.monitor import PReLUSlopeMonitor


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, FSDPStrategy])
@pytest.mark.parametrize("make", [AdamBiasCorrectionMonitor, PReLUSlopeMonitor])
def test_strategies_that_keep_states_elsewhere(make, strategy, recwarn):
    module = nn.Sequential(nn.Linear(2, 2), nn.PReLU())
    optimizer = Adam(module.parameters())
    parts = {"strategy": object.__new__(strategy), "loggers": [object()], "optimizers": [optimizer]}
    trainer = SimpleNamespace(**parts, is_global_zero=True, global_step=0, log_every_n_steps=1)
    monitor = make()
    monitor.on_train_start(trainer, module)
    assert not optimizer._optimizer_step_post_hooks
    monitor.on_train_end(trainer, module)  # Draws nothing.
    (words,) = [str(one.message) for one in recwarn if "Monitor" in str(one.message)]
    assert f"logs nothing: {strategy.__name__} keeps weights and optimizer states where it" in words


class Adam8bit(torch.optim.Optimizer):
    """Groups and states as bitsandbytes has them."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0})

    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            for number in "12":
                state[f"state{number}"] = torch.zeros_like(parameter, dtype=torch.uint8)
                state[f"qmap{number}"], state[f"absmax{number}"] = torch.zeros(256), torch.zeros(1)
        return loss


Adam8bit.__module__ = "bitsandbytes.optim.adam"


class Slopes(pl.LightningModule):
    def __init__(self, make):
        super().__init__()
        self.slopes, self.make = nn.PReLU(3), make

    def training_step(self, batch, batch_idx):
        return self.slopes(-torch.ones(1, 3)).sum()

    def configure_optimizers(self):
        return self.make(self.parameters())


def test_8_bit_states_are_left_alone(tmp_path, recwarn):
    monitors = [AdamBiasCorrectionMonitor(), PReLUSlopeMonitor()]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_epochs": 1, "log_every_n_steps": 1, "logger": CSVLogger(tmp_path), "accelerator": "cpu"}
    pl.Trainer(callbacks=monitors, **quiet, **options).fit(Slopes(Adam8bit), DataLoader(range(3)))
    found = [str(one.message) for one in recwarn if "Monitor" in str(one.message)]
    assert found == ["AdamBiasCorrectionMonitor logs nothing: it knows no optimizer like Adam8bit"]
    (rows,) = tmp_path.rglob("metrics.csv")
    header, *lines = rows.read_text().splitlines()
    assert len(lines) == 3
    assert "prelu/slopes/grad_norm" in header
    assert "momentum_norm" not in header
    assert "adam/" not in header


class CPUAdam(torch.optim.Optimizer):
    """Groups and states as DeepSpeed's CPUAdam has them; the arithmetic is torch's."""

    def __init__(self, params, adam_w_mode):
        options = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False}
        super().__init__(params, options | {"bias_correction": True})
        self.adam_w_mode = adam_w_mode

    def take_over(self, optimizer):
        for parameter, state in optimizer.state.items():
            moments = {key: state[key] for key in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": int(state["step"]), **moments}


@pytest.mark.parametrize("decoupled", [False, True])
def test_states_of_deepspeeds_own_adam_are_read_like_torchs(look, decoupled):
    parameter = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = (AdamW if decoupled else Adam)([parameter], lr=0.1, weight_decay=0.1)
    for step in range(3):
        parameter.grad = torch.tensor([0.1, step, -0.3])
        optimizer.step()
    own = CPUAdam([parameter], decoupled)
    own.take_over(optimizer)
    expected = look(optimizer)
    name = type(optimizer).__name__
    renamed = {key.replace("/CPUAdam/", f"/{name}/"): value for key, value in look(own).items()}
    assert renamed == expected
    assert expected[f"adam/{name}/update_norm"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("capturable", [False, True])
def test_one_copy_from_the_gpu_per_row(capturable):
    module = nn.Sequential(nn.Linear(300, 300), nn.PReLU(300)).cuda()
    optimizer = AdamW(module.parameters(), capturable=capturable)
    module(torch.ones(2, 300, device="cuda")).sum().backward()
    optimizer.step()
    monitors = [AdamBiasCorrectionMonitor(), PReLUSlopeMonitor()]
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=0))
    trainer = SimpleNamespace(
        optimizers=[optimizer], is_global_zero=True, global_rank=0, global_step=1, fit_loop=loop
    )
    for monitor in monitors:
        monitor.prepare(trainer, module)
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            parts = [part for one in monitors for part in one.collect(trainer, module, optimizer)]
            before = len([one for one in caught if "synchronizing" in str(one.message)])
            row = bring_together(parts, trainer, False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    after = len([one for one in caught if "synchronizing" in str(one.message)])
    assert (before, after) == (0, 1)
    assert row.scalars["adam/AdamW/step_max"] == 1
    assert row.scalars["prelu/1/mean"] == pytest.approx(0.25, abs=0.01)


def test_no_gradient_is_kept_alive():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = NAdam([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    monitor = AdamBiasCorrectionMonitor()
    trainer = SimpleNamespace(optimizers=[optimizer], is_global_zero=True, global_rank=0, strategy=None)
    monitor.prepare(trainer, nn.Module())
    with torch.no_grad():
        parts = monitor.collect(trainer, nn.Module(), optimizer)
    gradient = weakref.ref(parameter.grad)
    optimizer.zero_grad()
    assert gradient() is None
    assert parts


def test_states_without_moments_are_left_out(look, recwarn):
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = Adam(parameters)
    for p in parameters:
        p.grad = torch.ones(3)
    optimizer.step()
    expected = look(optimizer)
    for p in parameters:
        del optimizer.state[p]["exp_avg"]
    assert look(optimizer) == {}
    assert expected["adam/Adam/coordinates"] == 6
    found = [str(one.message) for one in recwarn if "Monitor" in str(one.message)]
    assert found == ["AdamBiasCorrectionMonitor leaves out parameters whose state has no 'exp_avg'"]
