"""A module made of a function, and its inputs, as the tests of sampling have theirs."""

import torch
from torch import nn

P = 0.3


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Called(nn.Module):
    """A module that is one function of itself and its inputs, with some layers to use."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args):
        return self.function(self, *args)
