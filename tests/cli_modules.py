"""A small model and its data, as a user's own module would define them."""

import time

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch.utils.data import DataLoader, TensorDataset

from pl_losses.core.hparams import save_plain_hyperparameters


class Line(LightningModule):
    """A linear unit that learns to be zero."""

    def __init__(
        self,
        width: int = 4,
        scale: float = 1.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        pause: float = 0.0,
    ) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"Expected `width` to be positive but got {width}")
        save_plain_hyperparameters(self)
        self.layer = torch.nn.Linear(width, 1)
        self.scale = scale
        self.optimizer = optimizer
        self.pause = pause

    def training_step(self, batch, index):
        time.sleep(self.pause)
        return self.scale * self.layer(batch[0]).square().mean()

    def validation_step(self, batch, index):
        self.log("val_loss", self.layer(batch[0]).square().mean())

    def test_step(self, batch, index):
        self.log("test_loss", self.layer(batch[0]).square().mean())

    def predict_step(self, batch, index):
        return self.layer(batch[0])

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Other(Line):
    """The same by another name."""


class Stepped(Line):
    """A model whose schedule knows the number of its steps."""

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Told(Callback):
    """A callback that has a name."""

    def __init__(self, name: str = "") -> None:
        self.name = name


class Plain(LightningModule):
    """A model that saves no hyper-parameters."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, 1)

    def training_step(self, batch, index):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class LocalPoints(LightningDataModule):
    """Random points."""

    def __init__(self, count: int = 8, width: int = 4) -> None:
        super().__init__()
        save_plain_hyperparameters(self, logger=False)

    def loader(self):
        points = torch.randn(
            self.hparams.count, self.hparams.width, generator=torch.Generator().manual_seed(0)
        )
        return DataLoader(TensorDataset(points), batch_size=4)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


class Mistaken(Line):
    """A model whose loss makes Lightning fail on a line that refuses nothing."""

    def training_step(self, batch, index):
        return {"loss": "x"}
