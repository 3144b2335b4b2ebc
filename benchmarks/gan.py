"""A training step of a GAN: ours, Listing 2 by hand, and the usual Lightning step that generates twice.

Run with ``python -m benchmarks.gan``. All train the same convolutional pair on the same batches with Adam and
one thread. They take turns of a few steps; processor time is counted, and medians of the turns' ratios shown.
The peers have the usual layers of torch and the usual Adam. The last row is the floor of our step: the loop
by hand with our layers and the fused Adam.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from time import process_time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pl_losses import GAN
from pl_losses.papers.gan.module import dcgan_adam

BATCH, STEPS, WARM_UP, REPEATS, WIDTH, LATENT = 128, 6, 2, 15, 16, 100


class Clock(pl.Callback):
    """Processor time of the steps after those that warm up."""

    started = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx == WARM_UP:
            self.started = process_time()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds = process_time() - self.started


class GeneratesTwice(pl.LightningModule):
    """The step of Lightning's own GAN example, on our networks."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = generator, discriminator

    def configure_optimizers(self) -> Any:
        return usual_adam(self.generator.parameters()), usual_adam(self.discriminator.parameters())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        images = batch[0]
        optimizer_g, optimizer_d = self.optimizers()  # type: ignore[misc]
        noise = torch.randn(len(images), LATENT)
        real, fake = torch.ones(len(images)), torch.zeros(len(images))
        self.toggle_optimizer(optimizer_g)
        g_loss = F.binary_cross_entropy_with_logits(self.discriminator(self.generator(noise)), real)
        optimizer_g.zero_grad()
        self.manual_backward(g_loss)
        optimizer_g.step()
        self.untoggle_optimizer(optimizer_g)
        self.toggle_optimizer(optimizer_d)
        real_loss = F.binary_cross_entropy_with_logits(self.discriminator(images), real)
        generated = self.generator(noise).detach()
        fake_loss = F.binary_cross_entropy_with_logits(self.discriminator(generated), fake)
        d_loss = (real_loss + fake_loss) / 2
        optimizer_d.zero_grad()
        self.manual_backward(d_loss)
        optimizer_d.step()
        self.untoggle_optimizer(optimizer_d)
        self.log_dict({"d_loss": d_loss, "g_loss": g_loss})


usual_adam = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))


def usual_layers(network: nn.Sequential) -> nn.Sequential:
    """Copy a network, with torch's layers between rows and maps."""
    layers = list(copy.deepcopy(network))
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Unflatten):
            layers[place] = nn.Unflatten(layer.dim, layer.unflattened_size)
        elif isinstance(layer, nn.Identity):
            layers[place] = nn.Flatten()
        elif isinstance(layer, nn.Linear):
            layers[place] = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            layers[place].load_state_dict(layer.state_dict())
    return nn.Sequential(*layers)


def by_hand(
    generator: nn.Module, discriminator: nn.Module, batches: Any, adam: Callable[..., Any] = usual_adam
) -> float:
    """Listing 2, with the zero_grad that it forgets."""
    optimizer_g, optimizer_d = adam(generator.parameters()), adam(discriminator.parameters())
    started = 0.0
    for step, (images,) in enumerate(batches):
        if step == WARM_UP:
            started = process_time()
        real_label, fake_label = torch.ones(len(images)), torch.zeros(len(images))
        optimizer_d.zero_grad()
        F.binary_cross_entropy_with_logits(discriminator(images), real_label).backward()
        fake = generator(torch.randn(len(images), LATENT))
        F.binary_cross_entropy_with_logits(discriminator(fake.detach()), fake_label).backward()
        optimizer_d.step()
        optimizer_g.zero_grad()
        F.binary_cross_entropy_with_logits(discriminator(fake), real_label).backward()
        optimizer_g.step()
    return process_time() - started


def under_trainer(module: pl.LightningModule, batches: Any) -> float:
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches)
    return clock.seconds


def turns(size: int) -> dict[str, list[float]]:
    """Seconds of each turn of each way, for images of a size."""
    torch.manual_seed(0)
    model = GAN(latent_size=LATENT, image_size=size, width=WIDTH)
    own = copy.deepcopy(model.generator), copy.deepcopy(model.discriminator)
    last = [usual_layers(one) for one in own]
    # As one has them who does not think of it; `GAN` does.
    pair = [copy.deepcopy(one).to(memory_format=torch.contiguous_format) for one in last]
    images: Tensor = torch.rand((STEPS + WARM_UP) * BATCH, 1, size, size) * 2 - 1
    batches = DataLoader(TensorDataset(images), BATCH)
    ways: dict[str, Callable[[], float]] = {
        "GAN": lambda: under_trainer(model, batches),
        "Listing 2 by hand": lambda: by_hand(*pair, batches),
        "Listing 2 by hand, channels last": lambda: by_hand(*last, batches),
        "Lightning's example": lambda: under_trainer(GeneratesTwice(*pair), batches),
        "Lightning's example, channels last": lambda: under_trainer(GeneratesTwice(*last), batches),
        "floor: Listing 2 with our layers, fused Adam": lambda: by_hand(*own, batches, dcgan_adam),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            seconds[name].append(way())
    return seconds


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print(f"GAN step, batch {BATCH}, width {WIDTH}, {REPEATS} turns of {STEPS} steps\n")
    print("| step | pixels | ms | `GAN` is faster by |\n| --- | ---: | ---: | ---: |")
    for size in (28, 32):
        seconds = turns(size)
        for name, values in seconds.items():
            ratio = median(theirs / ours for ours, theirs in zip(seconds["GAN"], values, strict=True))
            print(f"| {name} | {size} | {1000 * median(values) / STEPS:.0f} | {ratio:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
