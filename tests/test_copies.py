"""Copies of what the suite offers: deep ones and pickled ones go on as the original would."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from function_table import CALLS
from torch import nn

import pl_losses
from pl_losses import callbacks
from pl_losses.papers.adam import Adam, AdaMax
from pl_losses.papers.lenet.optimizer import StochasticDiagonalLM


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value)), "save": saved}
OPTIMIZERS = {
    "adam": Adam,
    "uncorrected": lambda p: Adam(p, bias_correction=False, amsgrad=True),
    "denominator": lambda p: Adam(p, bias_correction="denominator", weight_decay=0.1),
    "adamax": AdaMax,
    "levenberg": lambda p: StochasticDiagonalLM(p, lr=0.1),
}


def go_on(optimizer, steps=2):
    """Adds a group, steps, and saves and loads the state."""
    optimizer.add_param_group({"params": [nn.Parameter(torch.full((2,), 3.0))]})
    for step in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, 1.0 + step)
                if isinstance(optimizer, StochasticDiagonalLM):
                    optimizer.state[p].setdefault("curvature", torch.ones_like(p))
        optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    state = optimizer.state_dict()
    groups = [{"differentiable": False} | group for group in state["param_groups"]]  # Unpickling adds it.
    weights = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    return weights, state["state"], [sorted(group.items()) for group in groups]


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("stepped", [False, True])
def test_optimizers(make, duplicate, stepped):
    optimizer = make([nn.Parameter(torch.tensor([1.0, -2.0]))])
    if stepped:
        go_on(optimizer, 1)
    other = duplicate(duplicate(optimizer))
    (*one, groups), (*two, others) = go_on(optimizer), go_on(other)
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    assert others == groups


MODULES = {name: getattr(pl_losses, name) for name in pl_losses.__all__ if not name.startswith("_")}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", MODULES)
def test_modules(name, duplicate):
    model = MODULES[name](**CALLS[name].arguments())
    other = duplicate(model)
    states = dict(other.state_dict()), dict(model.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
    assert str(getattr(other, "hparams", None)) == str(getattr(model, "hparams", None))


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", callbacks.__all__)
def test_callbacks(name, duplicate):
    made = getattr(callbacks, name)
    needed = [p for p in inspect.signature(made).parameters.values() if p.default is p.empty]
    callback = made(*["*" if str(p.annotation) == "str" else None for p in needed])
    other = duplicate(callback)
    assert vars(other).keys() == vars(callback).keys()
