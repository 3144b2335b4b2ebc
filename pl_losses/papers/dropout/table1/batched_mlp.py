"""Gal and Ghahramani 2016, section 5: many small dropout networks trained at once, as stacked weights.

The networks of the paper's regression are so small that a training step is mostly overhead. Here M of them,
each with its own data, dropout probability, weight decay and random numbers, take each step together: one
batched matrix product instead of M, and the gradient in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pl_losses.data.uci import standardisation

Array = NDArray[np.float64]

# Purposes of a member's random streams.
_INIT, _ORDER, _TRAIN_MASKS, _TEST_MASKS = range(4)
_BLOCK = 32  # Steps whose masks are drawn at once; another value would change the results of a seed.


class BatchedMLP:
    """M networks Dropout(p) - Linear(Q, H) - ReLU - Dropout(p) - Linear(H, 1) without interaction.

    Kernels start uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot), biases at 0.

    Attributes:
        weights: All parameters, [M (Q H + 2 H + 1)]; the others are views of it.
        first: Kernel and, in its last row, bias of the first layer, [M, Q + 1, H].
        second: Kernel of the second layer, [M, H].
        bias: Bias of the second layer, [M].
        keep: Probability 1 - p with which a unit is kept, [M].

    Args:
        features: Number of inputs Q.
        hidden_size: Number of hidden units H.
        p: Probability of each member with which an input or hidden unit is dropped.
        seeds: Seed of each member. A member's training depends on its own seed alone.
        dtype: The weights' type.

    Example:
        >>> network = BatchedMLP(3, 8, p=[0.0, 0.1], seeds=[0, 1])
        >>> network(torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        features: int,
        hidden_size: int,
        *,
        p: Sequence[float],
        seeds: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.features, self.hidden_size, self.members = features, hidden_size, len(p)
        self.p, self.seeds = tuple(p), tuple(seeds)
        self.keep = 1 - torch.tensor(p, dtype=dtype)
        self.weights = torch.zeros(self.members * (features * hidden_size + 2 * hidden_size + 1), dtype=dtype)
        self.first, self.second, self.bias = self.views(self.weights)
        for member, seed in enumerate(seeds):
            generator = _generator(seed, _INIT)
            for kernel, fans in (
                (self.first[member, :features], features + hidden_size),
                (self.second[member], hidden_size + 1),
            ):
                bound = math.sqrt(6 / fans)
                kernel.uniform_(-bound, bound, generator=generator)

    def views(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """View a vector as long as ``weights`` in the shapes of ``first``, ``second`` and ``bias``."""
        members, features, hidden_size = self.members, self.features, self.hidden_size
        sizes = [members * (features + 1) * hidden_size, members * hidden_size, members]
        first, second, bias = flat.split(sizes)  # type: ignore[no-untyped-call]
        return first.view(members, features + 1, hidden_size), second.view(members, hidden_size), bias

    def per_kernel(self, values: Tensor) -> Tensor:
        """Return a vector as long as ``weights``: values [M] at the members' kernels, 0 at biases."""
        flat = torch.zeros_like(self.weights)
        first, second, _ = self.views(flat)
        first[:, : self.features] = values.to(flat)[:, None, None]
        second[:] = values.to(flat)[:, None]
        return flat

    def __call__(self, inputs: Tensor) -> Tensor:
        """Make the pass without dropout: inputs [M, B, Q] -> [M, B]."""
        hidden = torch.baddbmm(self.first[:, -1:], inputs, self.first[:, :-1]).relu_()
        return (hidden * self.second[:, None]).sum(dim=2) + self.bias[:, None]


class SparseMaskSampler:
    """The places to set to zero in each step: each input and hidden unit with probability p, independently.

    Dropout is rare here, so that it is cheaper to draw the dropped places than a number for each unit. A
    Poisson number of hits with mean -n log(1 - p), each anywhere among n units, leaves a unit without a hit
    with probability exactly 1 - p, independently of the others.

    Each step yields indices into the flat inputs [M, B, Q + 1], whose last column is never hit, and into the
    flat hidden units [M, B, H]. Both have one more place at their end, for the padding.

    Args:
        network: The members' probabilities, seeds and sizes.
        rows: Number of rows B of a step.
        purpose: Which of a member's random streams.
    """

    def __init__(self, network: BatchedMLP, rows: int, purpose: int) -> None:
        self.network, self.rows = network, rows
        self.generators = [_generator(seed, purpose) for seed in network.seeds]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        network = self.network
        while True:
            inputs = [self._hits(member, network.features) for member in range(network.members)]
            hidden = [self._hits(member, network.hidden_size) for member in range(network.members)]
            # Inputs have one column that is never hit.
            inputs = [hits.add_(hits.div(network.features, rounding_mode="floor")) for hits in inputs]
            yield from zip(
                self._joined(inputs, network.features + 1),
                self._joined(hidden, network.hidden_size),
                strict=True,
            )

    def _hits(self, member: int, width: int) -> Tensor:
        """Draw places in [B, width], [_BLOCK, most]; those beyond the number of hits are huge."""
        places = self.rows * width
        mean = -places * math.log1p(-self.network.p[member])
        generator = self.generators[member]
        # There are more hits than this once in 10^14 steps.
        most = math.ceil(mean + 8 * math.sqrt(mean) + 8) if mean else 0
        count = torch.poisson(torch.full((_BLOCK, 1), mean), generator=generator)
        hits = torch.empty(_BLOCK, most, dtype=torch.int64).random_(0, places, generator=generator)
        return hits.masked_fill_(torch.arange(most) >= count, 2**60)

    def _joined(self, hits: list[Tensor], width: int) -> list[Tensor]:
        """Convert places to those in the flat [M, B, width] of all members, [_BLOCK] of them."""
        size = self.rows * width
        joined = torch.cat([own + member * size for member, own in enumerate(hits)], dim=1)
        return list(joined.clamp_(max=self.network.members * size))


class Workspace:
    """Memory for stochastic passes of B rows through all members, forward and backward.

    Args:
        network: The members.
        rows: Number of rows B.
    """

    def __init__(self, network: BatchedMLP, rows: int) -> None:
        self.network = network
        members, dtype = network.members, network.weights.dtype
        shapes = (members, rows, network.features + 1), (members, rows, network.hidden_size)
        # One more place, for the masks' padding.
        self._flat_inputs, self._flat_units = (
            torch.zeros(math.prod(shape) + 1, dtype=dtype) for shape in shapes
        )
        self.inputs, self.units = (
            flat[:-1].view(shape)
            for flat, shape in zip((self._flat_inputs, self._flat_units), shapes, strict=True)
        )
        self._product = torch.empty(shapes[1], dtype=dtype)
        self.gradient = torch.empty_like(network.weights)
        self._first, self._second, self._bias = network.views(self.gradient)
        self._scale = 1 / network.keep
        # The last input is 1, with the bias as its row of weights: it is never dropped.
        self._input_scale = self._scale[:, None, None].repeat(1, 1, network.features + 1)
        self._input_scale[..., -1] = 1

    def forward(self, masks: tuple[Tensor, Tensor]) -> Tensor:
        """Compute outputs [M, B] of ``inputs``, [M, B, Q + 1] with ones in the last column."""
        network = self.network
        self._flat_inputs.index_fill_(0, masks[0], 0)
        self.inputs.mul_(self._input_scale)
        torch.bmm(self.inputs, network.first, out=self.units)
        self.units.relu_()
        self._flat_units.index_fill_(0, masks[1], 0)
        self._kernel = network.second * self._scale[:, None]
        torch.mul(self.units, self._kernel[:, None], out=self._product)
        return self._product.sum(dim=2).add_(network.bias[:, None])

    def backward(self, outputs: Tensor) -> Tensor:
        """Compute the gradient of all ``weights``, as a vector, from that of the last outputs [M, B]."""
        torch.sum(outputs, dim=1, out=self._bias)
        torch.mul(self.units, outputs[..., None], out=self._product)
        torch.sum(self._product, dim=1, out=self._second)
        self._second.mul_(self._scale[:, None])
        torch.mul(outputs[..., None], self._kernel[:, None], out=self._product)
        # A unit passes the gradient on if it was neither negative nor dropped.
        units = torch.ops.aten.threshold_backward(self._product, self.units, 0)
        torch.bmm(self.inputs.transpose(1, 2), units, out=self._first)
        return self.gradient


class Standardised:
    """Training sets, each normalised by itself to mean 0 and deviation 1, side by side.

    Attributes:
        inputs: [D, N, Q + 1] with ones in the last column; a set with fewer than N samples repeats its own.
        targets: [D, N].
        sizes: Number of samples of each set.
        scale: Deviation of the original targets, float64 [D].

    Args:
        inputs: Features of each set, [N_d, Q].
        targets: Targets of each set, [N_d].
        dtype: The result's type.

    Raises:
        ValueError: If the targets of a set are all equal.
    """

    def __init__(
        self, inputs: Sequence[Array], targets: Sequence[Array], dtype: torch.dtype = torch.float32
    ) -> None:
        self._inputs = [standardisation(x) for x in inputs]
        self._targets = [standardisation(y) for y in targets]
        for position, y in enumerate(targets):
            if y.min() == y.max():
                raise ValueError(f"Expected `targets` to differ but all of set {position} are {y[0]}")
        self.scale = torch.tensor([float(std) for _, std in self._targets], dtype=torch.float64)
        self.dtype = dtype
        self.sizes = [len(y) for y in targets]
        self.inputs, self.targets = self.normalised(inputs, targets)

    def normalised(self, inputs: Sequence[Array], targets: Sequence[Array]) -> tuple[Tensor, Tensor]:
        """Normalise other samples of the same sets as the training samples: [D, n, Q + 1] and [D, n]."""
        most = max(len(y) for y in targets)
        rows = [np.arange(most) % len(y) for y in targets]
        x = [(x - mean) / std for x, (mean, std) in zip(inputs, self._inputs, strict=True)]
        y = [(y - mean) / std for y, (mean, std) in zip(targets, self._targets, strict=True)]
        stacked = np.stack(
            [np.insert(x, x.shape[1], 1.0, axis=1)[row] for x, row in zip(x, rows, strict=True)]
        )
        return (
            torch.from_numpy(stacked).to(self.dtype),
            torch.from_numpy(np.stack([y[row] for y, row in zip(y, rows, strict=True)])).to(self.dtype),
        )


def train(
    network: BatchedMLP,
    data: Standardised,
    sources: Sequence[int],
    *,
    epochs: int,
    batch_size: int,
    weight_decay: Sequence[float],
    learning_rate: float = 1e-3,
    schedule: Callable[[float], float] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Train all members by Adam on twice the paper's objective, without a decay of biases.

    That is the mean squared error + 2 lambda (sum of squared kernel entries). With the ``lambda`` of
    ``weight_decay_of`` by the convention "authors", this is what their code minimises. In each epoch a member
    sees its samples in its own order, with a last batch of the remaining ones; a member with fewer samples
    than the largest set sees its first ones of the epoch twice. A member that diverges ends with weights that
    are not finite, and does not affect the others.

    Args:
        network: The members, changed in place.
        data: The training sets.
        sources: Index of the set that each member trains on, [M].
        epochs: Number of passes over the data.
        batch_size: Samples per step and member.
        weight_decay: lambda of each member, [M].
        learning_rate: Adam's, with decay rates 0.9 and 0.999.
        schedule: Share of the steps done, in [0, 1), to a factor of the learning rate. Default: 1.
        progress: Called with the number of samples times members after each epoch.
    """
    largest = max(data.sizes[source] for source in sources)
    samples = data.targets.shape[1]
    inputs, targets = data.inputs.flatten(0, 1), data.targets.flatten()
    offsets = torch.tensor(sources)[:, None] * samples
    passes, masks = Workspace(network, batch_size), iter(SparseMaskSampler(network, batch_size, _TRAIN_MASKS))
    orders = [_generator(seed, _ORDER) for seed in network.seeds]
    decay = network.per_kernel(4 * torch.tensor(weight_decay, dtype=torch.float64))
    adam = _Adam(network.weights)
    steps = math.ceil(largest / batch_size)
    batches = torch.zeros(network.members, steps * batch_size, dtype=torch.int64)
    for epoch in range(epochs):
        for member, (generator, source) in enumerate(zip(orders, sources, strict=True)):
            size = data.sizes[source]
            order = torch.randperm(size, generator=generator)
            batches[member, :largest] = order if size == largest else order[torch.arange(largest) % size]
        indices = (batches + offsets).view(network.members, steps, batch_size).transpose(0, 1).contiguous()
        for step, rows in enumerate(indices.flatten(1)):
            count = min(batch_size, largest - step * batch_size)
            torch.index_select(inputs, 0, rows, out=passes.inputs.view(-1, network.features + 1))
            error = passes.forward(next(masks))
            error.sub_(targets.index_select(0, rows).view(network.members, batch_size)).mul_(2 / count)
            error[:, count:] = 0
            gradient = passes.backward(error).addcmul_(network.weights, decay)
            share = (epoch * steps + step) / (epochs * steps)
            adam.step(gradient, learning_rate * (schedule(share) if schedule else 1.0))
        if progress is not None:
            progress(largest * network.members)


class _Adam:
    """Adam on one tensor, as ``torch.optim.Adam`` with its defaults, at half its overhead."""

    def __init__(self, weights: Tensor) -> None:
        self.weights, self.steps = weights, 0
        self.mean, self.square, self.root = (torch.zeros_like(weights) for _ in range(3))

    def step(self, gradient: Tensor, learning_rate: float) -> None:
        self.steps += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        torch.sqrt(self.square, out=self.root)
        self.root.div_(math.sqrt(1 - 0.999**self.steps)).add_(1e-8)
        self.weights.addcdiv_(self.mean, self.root, value=-learning_rate / (1 - 0.9**self.steps))


def _generator(seed: int, purpose: int) -> torch.Generator:
    # Not by `keyed_generator`: the measured tables were made so.
    state = np.random.SeedSequence((seed, purpose)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
