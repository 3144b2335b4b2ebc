"""What the tests of switching dropout on and off share."""

import lightning.pytorch as pl
import torch
from papers.dropout.sampling.called import Called
from torch.utils.data import DataLoader, TensorDataset

from pl_losses.papers.dropout.monitor import DropoutUncertaintyMonitor

P = 0.3


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) - 0.2


class Regressor(pl.LightningModule):
    def __init__(self, function, **parts):
        super().__init__()
        self.network = Called(function, **parts)

    def forward(self, x):
        return self.network(x)

    def validation_step(self, batch):
        pass


def rows(function, target, **parts):
    """What the monitor logs of a regression."""
    x = inputs(60, 1)
    run = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[DropoutUncertaintyMonitor(samples=4, max_batches=8, task="regression")],
    )  # fmt: skip
    run.validate(Regressor(function, **parts), DataLoader(TensorDataset(x, target(x)), 20), verbose=False)
    return {key.removeprefix("val/dropout/"): value.item() for key, value in run.callback_metrics.items()}
