"""The modules that run under FSDP2, with their data and options."""

from functools import cache, partial

import torch
from torch import nn
from torch.nn import functional as F

import pl_losses
from pl_losses import GAN, SDNN, DropoutClassifier, DropoutRegressor, LatticeReader, LeNet5, RectifierNet
from pl_losses.callbacks import (
    ActivationCheckpointing,
    AdamBiasCorrectionMonitor,
    DropoutUncertaintyMonitor,
    PReLUSlopeMonitor,
)
from pl_losses.core.classifier import Classifier
from pl_losses.data import Digits, DigitStrings, TensorDataModule
from pl_losses.papers.adam import MLP, VAE, AdaMax, ConvNet, LogisticRegression
from pl_losses.papers.gtn.base import CRITERIA

sgd = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)


class Ninth(Classifier):
    """A module that knows nothing of FSDP2: methods, layers and parameters are used wherever it likes."""

    def __init__(self):
        super().__init__(sgd)
        self.encoder, self.decoder = nn.Linear(1024, 6), nn.Linear(6, 1024)
        self.head = nn.ModuleDict({"a": nn.Linear(6, 10)})
        self.scale = nn.Parameter(torch.ones(1))
        self.configure_metrics()

    def encode(self, images):
        return self.scale * self.encoder(images.flatten(1)).tanh()

    def reconstruct(self, images):
        return F.linear(self.encode(images), self.decoder.weight, self.decoder.bias).sigmoid()

    def forward(self, images):
        return Logits(self.head["a"](self.encode(images)))

    def test_outputs(self, images):
        return self(images).values

    def training_step(self, batch, batch_idx):
        # The second pass is of what the module's own parameters made, and the loss is of parameters too.
        images, target = batch
        both = (self(part).values for part in (self.reconstruct(images), images))
        loss = sum(self.compute_loss(logits, target) for logits in both)
        return {"loss": loss + 0.1 * self.decoder.weight.square().sum()}

    def on_train_epoch_end(self):
        pass

    def validation_step(self, batch, batch_idx):
        self.val_loss.update(self.reconstruct(batch[0]).mean(), len(batch[0]))
        self.log("val/reconstruction", self.val_loss)

    def on_validation_epoch_end(self):
        with torch.no_grad():
            shown = self.decoder(torch.ones(1, 6)).mean()
            with self.whole():
                shown = shown + self.reconstruct(torch.ones(1, 1024)).mean()
        self.log("val/shown", shown, sync_dist=True)

    def predict_step(self, batch, batch_idx):
        return self.encode(batch[0])


class Logits:
    """An output that is neither a tensor nor a collection of them."""

    def __init__(self, values):
        self.values = values


class Rows(TensorDataModule):
    """Numbers to predict by regression."""

    def load(self, stage):
        x = torch.randn(71, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ends = {"train": slice(0, 32), "val": slice(32, 50), "test": slice(50, 71)}
        return {split: (x[end], x[end, :1] + 3) for split, end in ends.items()}


@cache
def digits(ranks, **options):
    options = {"val_size": 12, "test_size": 21, "limit": 16, "low": 0.0, "high": 1.0} | options
    return Digits(batch_size=16 // ranks, eval_batch_size=12 // ranks, **options)


@cache
def strings(ranks):
    options = {"length": 2, "strings": 8, "eval_strings": 6, "isolated_epochs": 1, "clutter": 0.0}
    return DigitStrings(batch_size=4 // ranks, eval_batch_size=6 // ranks, **options)


@cache
def rows(ranks):
    return Rows(batch_size=16 // ranks, eval_batch_size=12 // ranks)


def regressor():
    return DropoutRegressor(network=nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), **dropout)


even = partial(digits, test_size=24, limit=32)
signed = partial(even, low=-1.0)
lenet = partial(partial, LeNet5)
rectifiers = partial(RectifierNet, stages=[[4], [4]], hidden_size=8, p=0.0, slope_momentum=0.5, optimizer=sgd)
mlp = partial(MLP, 1024, [8], p=0.0)
stack = partial(pl_losses.StackedDenoisingAutoencoder, 1024, [8, 6], pretrain_epochs=1)
dropout = {"samples": 3, "masks": "shared", "length_scale": 3.0, "optimizer": sgd}
gan = partial(GAN, 4, architecture="mlp", width=4, generator_optimizer=sgd, discriminator_optimizer=sgd)
# What makes the module, its data, and the Trainer's options; "monitor" makes a callback, and "epochs" are
# those before the checkpoint and in all.
TABLE = {
    "lenet5": (LeNet5, digits, {}),
    "lenet5 mle": (lenet(criterion="mle", optimizer=torch.optim.Adam), digits, {}),
    "lenet5 adaptable": (lenet(centres="adaptable"), digits, {}),
    "lenet5 random": (lenet(centres="random", optimizer=sgd), digits, {"gradient_clip_val": 0.01}),
    "rectifiers": (
        partial(rectifiers, test_views="ten", test_crop=30),
        digits,
        {"monitor": PReLUSlopeMonitor},
    ),
    "rectifiers recomputed": (
        rectifiers,
        digits,
        {"monitor": partial(ActivationCheckpointing, "features")},
    ),
    "rectifiers dense": (partial(rectifiers, test_views="dense", test_crop=28), digits, {}),
    "logistic": (partial(LogisticRegression, 1024, optimizer=AdaMax), digits, {}),
    "mlp": (mlp, digits, {"monitor": AdamBiasCorrectionMonitor}),
    "convnet": (
        partial(ConvNet, 10, 1, out_channels=[2, 2, 3], hidden_size=8, input_p=0.0, p=0.0),
        digits,
        {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"},
    ),
    "vae": (partial(VAE, 1024, 8, 3), even, {"accumulate_grad_batches": 2}),
    "dae": (partial(pl_losses.DenoisingAutoencoder, 1024, 8, optimizer=sgd), even, {}),
    "sdae": (stack, digits, {"epochs": (1, 3)}),
    "sdae begun": (stack, digits, {}),
    "sdae fine-tuned": (stack, digits, {"epochs": (3, 4)}),
    "reader": (partial(LatticeReader, optimizer=sgd), strings, {}),
    **{f"sdnn {one}": (partial(SDNN, one, optimizer=sgd), strings, {}) for one in CRITERIA},
    "regressor": (regressor, rows, {}),
    "classifier": (partial(DropoutClassifier, p=0.0, **dropout), digits, {}),
    "gan": (partial(gan, ema=0.9, gradient_clip=0.05), signed, {}),
    "gan accumulating": (partial(gan, accumulate=2), signed, {}),
    "full basic model": (partial(pl_losses.FullBasicModel, optimizer=sgd), digits, {}),
    "ninth": (Ninth, digits, {}),
    # Masks of training differ between ranks, as they should: these are only tested.
    "dropout": (
        partial(MLP, 1024, [8]),
        digits,
        {"epochs": (0, 0), "monitor": partial(DropoutUncertaintyMonitor, 3, masks="shared")},
    ),
    # In bfloat16, of 8 bits, sums of other addends are rounded otherwise.
    "bf16-mixed": (partial(mlp, optimizer=sgd), digits, {"precision": "bf16-mixed"}),
    "bf16-true": (partial(mlp, optimizer=sgd), digits, {"precision": "bf16-true"}),
}
