"""LeCun et al. 1998, section II.B and Appendix A: the layers of LeNet-5.

60 000 trainable parameters and 340 908 connections up to F6, counted as in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_losses.papers.lenet.losses import rbf_penalties

AMPLITUDE, SLOPE = 1.7159, 2.0 / 3.0

# Table I: the S2 maps that feed each map of C3.
C3_INPUTS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# Fig. 3: 7 x 12 bitmaps of the digits, '#' = +1. The overlines on 0, 2, 4, 5 follow public transcriptions.
_BITMAPS = (
    ".#####./......./..###../.##.##./##...##/##...##/##...##/##...##/.##.##./..###../......./.......",
    "...##../..###../.####../...##../...##../...##../...##../...##../...##../.######/......./.......",
    ".#####./......./.#####./##...##/#....##/....##./..###../.##..../##...../#######/......./.......",
    "#######/.....##/....##./...##../..####./.....##/.....##/.....##/##...##/.#####./......./.......",
    ".#####./......./......./.##..##/.##..##/###..##/##...##/##...##/##..###/.######/.....##/.....##",
    ".#####./......./#######/##...../##...../.####../..####./.....##/##...##/.#####./......./.......",
    "..####./.##..../##...../##...../######./###..##/##...##/##...##/###..##/.#####./......./.......",
    "#######/.....##/.....##/....##./...##../...##../..##.../..##.../..##.../..##.../......./.......",
    ".#####./##...##/##...##/##...##/.#####./##...##/##...##/##...##/##...##/.#####./......./.......",
    ".#####./##..###/##...##/##...##/##..###/.######/.....##/.....##/....##./.####../......./.......",
)


def digit_codes() -> Tensor:
    """Return the paper's target codes: a 7 x 12 bitmap for each digit (Fig. 3), row by row.

    Returns:
        Shape [10, 84], values -1 and +1, float32.
    """
    return torch.tensor([[1.0 if c == "#" else -1.0 for c in bitmap.replace("/", "")] for bitmap in _BITMAPS])


def _in_plain_steps(values: Tensor) -> bool:
    """Return whether several operations are faster than one, and as exact."""
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


class ScaledTanh(nn.Module):
    r"""The paper's squashing function, eq. 6: :math:`f(a) = A \tanh(S a)` with A = 1.7159, S = 2/3.

    f(1) = 1 and f(-1) = -1, and its curvature is largest there. Of every shape.
    """

    def forward(self, activation: Tensor) -> Tensor:
        """Squash ``activation`` into (-1.7159, 1.7159)."""
        if not _in_plain_steps(activation):
            return AMPLITUDE * torch.tanh(SLOPE * activation)
        # On a CPU torch's sigmoid takes a tenth of the time of its tanh: tanh(a) = 2 sigmoid(2 a) - 1.
        return (torch.sigmoid(2 * SLOPE * activation) - 0.5) * (2 * AMPLITUDE)


class SubSampling(nn.Module):
    """S2 and S4: add the four inputs of each 2 x 2 field, multiply by a coefficient and add a bias.

    [B, C, H, W] -> [B, C, H/2, W/2]; one trainable coefficient and one trainable bias per map, no squashing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Sub-sample ``maps`` by 2 in both directions."""
        if _in_plain_steps(maps):  # On a CPU these sums take half of the time of the pooling.
            rows = maps[..., :-1:2, :] + maps[..., 1::2, :]
            total = rows[..., :-1:2] + rows[..., 1::2]
        else:
            total = F.avg_pool2d(maps, 2, divisor_override=1)
        return total * self.coefficient[:, None, None] + self.bias[:, None, None]


class TableConv2d(nn.Module):
    """A convolution in which each output map sees only the input maps that a table lists (C3, Table I).

    Only the table's connections have weights: no others are counted, initialised or updated.

    Args:
        table: Indices of the input maps of each output map.
        in_channels: Number of input maps.
        kernel_size: Side of the square kernel.

    Raises:
        ValueError: If the table names an input map that does not exist.
    """

    outputs: Tensor
    inputs: Tensor

    def __init__(self, table: tuple[tuple[int, ...], ...], in_channels: int, kernel_size: int) -> None:
        super().__init__()
        pairs = [(out, source) for out, sources in enumerate(table) for source in sources]
        if bad := sorted({source for _, source in pairs if not 0 <= source < in_channels}):
            raise ValueError(f"Expected `table` to name input maps in [0, {in_channels - 1}] but got {bad}")
        self.out_channels, self.in_channels = len(table), in_channels
        self.register_buffer("outputs", torch.tensor([out for out, _ in pairs]), persistent=False)
        self.register_buffer("inputs", torch.tensor([source for _, source in pairs]), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(pairs), kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(len(table)))

    def dense_weight(self) -> Tensor:
        """Return the weights with zeros where the table has no connection, shape [out, in, k, k]."""
        shape = (self.out_channels, self.in_channels, *self.weight.shape[1:])
        return self.weight.new_zeros(shape).index_put((self.outputs, self.inputs), self.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve maps: [B, in, H, W] -> [B, out, H - k + 1, W - k + 1]."""
        return F.conv2d(maps, self.dense_weight(), self.bias)


class LeNet5Features(nn.Sequential):
    """LeNet-5 up to F6, exactly as published: 60 000 trainable parameters.

    [B, 1, 32, 32] -> [B, 84, 1, 1]. C5 and F6 stay convolutions, so that a larger image gives a larger
    output, with one column every 4 pixels: the space displacement network of section VII. Weights start
    uniform in +-2.4 / fan-in of their unit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5)
        self.c1_squash = ScaledTanh()
        self.s2 = SubSampling(6)
        self.s2_squash = ScaledTanh()
        self.c3 = TableConv2d(C3_INPUTS, 6, 5)
        self.c3_squash = ScaledTanh()
        self.s4 = SubSampling(16)
        self.s4_squash = ScaledTanh()
        self.c5 = nn.Conv2d(16, 120, 5)
        self.c5_squash = ScaledTanh()
        self.f6 = nn.Conv2d(120, 84, 1)
        self.f6_squash = ScaledTanh()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all weights anew: uniform in +-2.4 / F_i, F_i the inputs of unit i (Appendix A)."""
        for layer, fan_in in (
            (self.c1, 25.0),
            (self.s2, 4.0),
            (self.s4, 4.0),
            (self.c5, 400.0),
            (self.f6, 120.0),
        ):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -2.4 / fan_in, 2.4 / fan_in)
        fan_in_of_map = 25.0 * torch.tensor(
            [len(sources) for sources in C3_INPUTS], device=self.c3.bias.device
        )
        nn.init.uniform_(self.c3.weight, -2.4, 2.4).div_(fan_in_of_map[self.c3.outputs, None, None])
        nn.init.uniform_(self.c3.bias, -2.4, 2.4).div_(fan_in_of_map)


class RBFOutput(nn.Module):
    r"""The output layer: one Euclidean RBF unit per class, eq. 7: :math:`y_i = \sum_j (x_j - w_{ij})^2`.

    Args:
        codes: Parameter vector of each class, shape [C, F].
        adaptable: Whether the vectors are trained. Fixed ones are a buffer, not parameters, as in the paper.

    Raises:
        ValueError: If ``codes`` is not [C, F] or holds non-finite values.
    """

    centres: Tensor

    def __init__(self, codes: Tensor, adaptable: bool = False) -> None:
        super().__init__()
        if codes.ndim != 2 or not codes.isfinite().all():
            raise ValueError(f"Expected `codes` of shape [C, F], all finite, but got {list(codes.shape)}")
        if adaptable:
            self.centres = nn.Parameter(codes.clone())
        else:
            self.register_buffer("centres", codes.clone())

    def forward(self, features: Tensor) -> Tensor:
        """Compute the penalties: [B, F] -> [B, C]."""
        return rbf_penalties(features, self.centres)
