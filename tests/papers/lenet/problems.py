"""Small problems in float64 for the diagonal Levenberg-Marquardt method."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F


def half_square(output, target):
    return 0.5 * (output - target).square().flatten(1).sum(1).mean()


def cross_entropy(output, target):
    return F.cross_entropy(output, target)


def small_net(outputs=3):
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, outputs))


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # The problems are small: more threads only wait for one another.
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)
