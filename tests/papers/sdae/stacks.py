"""Stacks, their data and Trainers."""

import lightning.pytorch as pl
import torch

from pl_losses import StackedDenoisingAutoencoder
from pl_losses.data import Digits

EPOCHS = 5


def make(kind=StackedDenoisingAutoencoder, **options):
    torch.manual_seed(0)
    defaults = {
        "in_features": 1024,
        "hidden": [20, 16, 12],
        "pretrain_epochs": 1,
        "pretrain_lr_scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.7),
        "optimizer": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        "lr_scheduler": lambda o, **k: torch.optim.lr_scheduler.OneCycleLR(o, 0.5, **k),
    }
    return kind(**{**defaults, **options})


def data(**options):
    return Digits(low=0.0, high=1.0, **{"batch_size": 300, **options})


def train(folder, *callbacks, epochs=EPOCHS, logger=False, **options):
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=logger,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **{"enable_checkpointing": bool(callbacks), **options},
    )
