"""A module made of a function, as the tests of sampling write theirs."""

from torch import nn


class Called(nn.Module):
    """A module that is one function of itself and its inputs, with some layers to use."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args):
        return self.function(self, *args)
