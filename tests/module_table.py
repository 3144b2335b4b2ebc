"""Every module of the suite with tiny data: a paper is in the tests of all modules by being listed."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pl_losses
from pl_losses.data import TensorDataModule
from pl_losses.data.lines import Characters, Lines


class Case(NamedTuple):
    """A module and its data.

    Attributes:
        make: The number of batches that make one optimizer step to the module, always the same; it is for
            modules that accumulate by themselves.
        samples: A number of samples to their tensors.
        batch: Tensors of some samples to a batch.
        train: What turns a batch into one to train on.
        epochs: Epochs of a fit that passes through all that the module does.
        accumulates: Whether it accumulates by itself.
        strategy: For several ranks.
        noise: Whether a training batch has noise, which is by the samples' places in the joint batch.
    """

    make: Callable[[int], Any]
    samples: Callable[[int], tuple[torch.Tensor, ...]]
    batch: Callable[[Any], Any] = tuple
    train: Callable[[Any], Any] = lambda batch: batch
    epochs: int = 1
    accumulates: bool = False
    strategy: str = "ddp"
    noise: bool = False


def sgd(lr):
    return lambda parameters: torch.optim.SGD(parameters, lr)


def images(*shape, classes=10):
    """Images in [0, 1] with labels, of which the first n are always the same."""

    def samples(count):
        generator = torch.Generator().manual_seed(1)
        pixels = torch.rand(64, *shape, generator=generator, dtype=torch.float64)
        return pixels[:count].to(torch.get_default_dtype()), (7 * torch.arange(count) + 3) % classes

    return samples


def rows(count):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(64, 4, generator=generator, dtype=torch.float64)[:count].to(torch.get_default_dtype())
    return x, 3 + x[:, :1] + x[:, 1:2].square()


@cache
def strings():
    """Lines of one or two striped characters; every fifth is said to have one more, which no path spells."""
    generator = torch.Generator().manual_seed(4)
    count = 20
    images, characters = torch.zeros(count, 1, 32, 40), 1 + torch.arange(count) % 2
    for line in range(count):
        for place in range(int(characters[line])):
            stripes = 0.5 + 0.5 * torch.rand(20, 1, generator=generator)
            images[line, 0, 6:26, 4 + 18 * place : 16 + 18 * place] = stripes
    targets = torch.randint(10, (count, 3), generator=generator)
    lengths = characters + (torch.arange(count) % 5 == 0)
    return images, 4 + 18 * characters, targets, lengths, torch.full((count, 2), -1)


def lines(count):
    dtype = torch.get_default_dtype()
    return tuple(part[:count].to(dtype) if part.is_floating_point() else part[:count] for part in strings())


def characters(batch):
    """All there is in a line of one character or two, as so many samples: the batch has other rows."""
    return Characters(batch.images[..., :32], batch.targets[:, 0])


def network(outputs):
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.0), nn.Linear(6, outputs))


def gan(accumulate):
    return pl_losses.GAN(
        latent_size=3,
        image_size=4,
        # Batch normalisation is of each rank's own batch.
        generator=lambda: nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Unflatten(1, (1, 4, 4))),
        discriminator=lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 1)),
        generator_optimizer=sgd(0.1),
        discriminator_optimizer=sgd(0.1),
        accumulate=accumulate,
    )


dropout = {"samples": 3, "masks": "shared", "length_scale": 3.0}
CASES = {
    "LeNet5": Case(lambda _: pl_losses.LeNet5(reject_above=0.5, optimizer=sgd(1e-3)), images(1, 32, 32)),
    "RectifierNet": Case(
        lambda _: pl_losses.RectifierNet(stages=[[3]], pyramid=[1], hidden_size=5, p=0.0, optimizer=sgd(0.1)),
        images(1, 6, 6),
    ),
    "LogisticRegression": Case(
        lambda _: pl_losses.LogisticRegression(9, optimizer=sgd(0.1)), images(1, 3, 3)
    ),
    "MLP": Case(lambda _: pl_losses.MLP(9, [6], p=0.0, optimizer=sgd(0.1)), images(1, 3, 3)),
    "ConvNet": Case(
        lambda _: pl_losses.ConvNet(
            10, 1, 8, out_channels=(2, 2, 2), hidden_size=4, input_p=0.0, p=0.0, optimizer=sgd(0.1)
        ),
        images(1, 8, 8),
    ),
    "VAE": Case(lambda _: pl_losses.VAE(9, 5, 2, optimizer=sgd(0.01)), images(1, 3, 3), noise=True),
    "DenoisingAutoencoder": Case(
        lambda _: pl_losses.DenoisingAutoencoder(9, 5, level=0.4, beta=0.5, optimizer=sgd(0.1)),
        images(1, 3, 3),
        noise=True,
    ),
    "StackedDenoisingAutoencoder": Case(
        lambda _: pl_losses.StackedDenoisingAutoencoder(
            9, [5], level=0.4, beta=0.5, pretrain_epochs=1, pretrain_optimizer=sgd(0.1), optimizer=sgd(0.1)
        ),
        images(1, 3, 3),
        epochs=2,
        noise=True,
    ),
    "DropoutRegressor": Case(
        lambda _: pl_losses.DropoutRegressor(network=network(1), optimizer=sgd(0.1), **dropout), rows
    ),
    "DropoutClassifier": Case(
        lambda _: pl_losses.DropoutClassifier(network=network(3), optimizer=sgd(0.1), **dropout),
        images(4, classes=3),
    ),
    "GAN": Case(gan, images(1, 4, 4), accumulates=True, strategy="ddp_per_module", noise=True),
    "FullBasicModel": Case(lambda _: pl_losses.FullBasicModel(optimizer=sgd(0.1)), images(1, 5, 5)),
    "LatticeReader": Case(
        lambda _: pl_losses.LatticeReader(optimizer=sgd(1e-4)), lines, lambda parts: Lines(*parts)
    ),
    "LatticeReader of characters": Case(
        lambda _: pl_losses.LatticeReader(optimizer=sgd(1e-4)), lines, lambda parts: Lines(*parts), characters
    ),
    "SDNN": Case(lambda _: pl_losses.SDNN(optimizer=sgd(1e-4)), lines, lambda parts: Lines(*parts)),
}


class Data(TensorDataModule):
    """A case's samples as the suite serves them."""

    def __init__(self, case, size, train=5, test=5):
        super().__init__(size, size)
        self.case, self.sizes = case, {"train": train, "val": test, "test": test}

    def load(self, stage):
        return {split: self.case.samples(size) for split, size in self.sizes.items()}

    def train_transform(self, batch, generator):
        return self.case.train(self.case.batch(batch))

    def eval_transform(self, batch, generator):
        return self.case.batch(batch)


def dataset(case, count):
    return TensorDataset(*case.samples(count))


def loader(case, count, size, train=False, **options):
    """A DataLoader as a user makes it."""

    def collate(samples):
        batch = case.batch([torch.stack(column) for column in zip(*samples, strict=True)])
        return case.train(batch) if train else batch

    return DataLoader(dataset(case, count), size, collate_fn=collate, **options)


def make(case, accumulate=1):
    """The module, always with the same weights."""
    torch.manual_seed(3)
    return case.make(accumulate)
