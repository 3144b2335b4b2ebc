"""Names that must not collide, wherever they are made."""

import itertools

import torch
from torch import nn

from pl_losses.core.names import distinct, file_stem
from pl_losses.monitoring.monitor import optimizer_names
from pl_losses.papers.adam import Adam
from pl_losses.papers.prelu import param_groups


def test_no_two_names_are_equal_and_explicit_ones_stay():
    for names in itertools.product(("a", "a-2", "a-3", "b"), repeat=4):
        made = distinct(names)
        assert len(set(made)) == len(made) == 4
        for index, name in enumerate(names):
            assert made[index] == name if name not in names[:index] else made[index].startswith(f"{name}-")


def test_no_two_keys_have_one_file():
    keys = ["".join(key) for length in (1, 2, 3, 4) for key in itertools.product("a/-.%_", repeat=length)]
    stems = {file_stem(key) for key in keys}
    assert len(stems) == len(keys)
    assert not any("/" in stem for stem in stems)


def weights():
    return [nn.Parameter(torch.zeros(2))]


def test_groups_and_optimizers_of_one_name():
    net = nn.Sequential(nn.Linear(2, 2), nn.PReLU())
    one = Adam(param_groups(net) + param_groups(nn.Sequential(nn.Linear(2, 2), nn.PReLU())))
    two = Adam([{"params": weights(), "name": name} for name in ("a/b", "a.b", "a_b", "a.b-1", 3)])
    names = optimizer_names([one, two, torch.optim.Adam(weights())])
    assert names == [
        ["Adam/weights", "Adam/slopes", "Adam/weights-1", "Adam/slopes-1"],
        ["Adam-1/a.b", "Adam-1/a.b-2", "Adam-1/a_b", "Adam-1/a.b-1", "Adam-1/3"],
        ["Adam-2"],
    ]
