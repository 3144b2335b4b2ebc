"""Fits that go on for longer, or end earlier, than the one that saved their checkpoint."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from pl_losses import MLP, StackedDenoisingAutoencoder
from pl_losses.core.schedule_length import ScheduleLength
from pl_losses.data import Digits


def one_cycle(optimizer, **options):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, **options)


def fixed(optimizer, **options):
    return one_cycle(optimizer, total_steps=5)


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-3)


class Rates(pl.Callback):
    """The rate and momentum of every step."""

    def on_fit_start(self, trainer, pl_module):
        self.found = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        (group,) = trainer.optimizers[0].param_groups
        self.found[trainer.global_step] = group["lr"], group["betas"][0]


class Users(pl.LightningModule):
    """A module that is none of the suite's."""

    def __init__(self, lr_scheduler=one_cycle):
        super().__init__()
        self.layer, self.lr_scheduler = nn.Linear(1024, 10), lr_scheduler

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        optimizer = adam(self.parameters())
        options = {"total_steps": int(self.trainer.estimated_stepping_batches)}
        scheduler = self.lr_scheduler(optimizer, **options)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def paper(lr_scheduler=one_cycle):
    return MLP(1024, [8], 10, optimizer=adam, lr_scheduler=lr_scheduler)


def stacked():
    return StackedDenoisingAutoencoder(
        1024, [16], 10, pretrain_epochs=[1], optimizer=adam, lr_scheduler=one_cycle, patience=None
    )


def fit(model, epochs, resume=None):
    pl.seed_everything(0)
    rates = Rates()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=4,
        limit_val_batches=0,
        logger=False,
        callbacks=[rates, ScheduleLength()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, Digits(batch_size=64, low=0.0, high=1.0), ckpt_path=resume)
    trainer.save_checkpoint(f"{epochs}.ckpt")
    return rates.found


@pytest.mark.parametrize("make", [paper, Users, stacked])
def test_the_rates_are_those_of_the_longer_fit(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, two = fit(make(), 4), fit(make(), 2)
    assert two != {step: whole[step] for step in two}
    resumed = fit(make(), 4, "2.ckpt")
    assert resumed == {step: pytest.approx(whole[step]) for step in range(8, 16)}
    # Once more, by a checkpoint that a stretched one saved.
    assert fit(make(), 5, "4.ckpt") == {step: pytest.approx(fit(make(), 5)[step]) for step in range(16, 20)}


def test_it_tells_what_it_does(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    fit(paper(), 1)
    with caplog.at_level("INFO"):
        fit(paper(), 2, "1.ckpt")
    assert "OneCycleLR: the checkpoint's cycle over 4 steps is stretched to 8; at step 4" in caplog.text


def test_a_cycle_that_ends_early_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(Users(fixed), 1)
    for resume in (None, "1.ckpt"):
        with pytest.raises(ValueError, match=r"OneCycleLR to be for all 8 steps .* `total_steps` 5"):
            fit(Users(fixed), 2, resume)


def test_a_schedule_needs_an_end():
    with pytest.raises(ValueError, match="`max_epochs` or `max_steps`"):
        fit(paper(), -1)
