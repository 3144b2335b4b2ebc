import weakref
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.optim import Adam, NAdam

from pl_losses.papers.adam.monitor import AdamBiasCorrectionMonitor


def test_strategies_that_keep_states_elsewhere():
    optimizer = Adam([nn.Parameter(torch.ones(3))])
    trainer = SimpleNamespace(optimizers=[optimizer], is_global_zero=True, strategy=FSDPStrategy())
    monitor = AdamBiasCorrectionMonitor()
    with pytest.warns(UserWarning, match="logs nothing: FSDPStrategy keeps states where it cannot"):
        monitor.prepare(trainer, nn.Module())
    assert monitor.collect(trainer, nn.Module(), optimizer) == []


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
