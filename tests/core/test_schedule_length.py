"""Fits that go on for longer, or end earlier, than the one that saved their checkpoint."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
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


def fit(model, epochs, resume=None, batches=4):
    pl.seed_everything(0)
    rates = Rates()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=batches,
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


@pytest.mark.parametrize("batches", [2, 8])
def test_epochs_of_other_lengths_go_on_at_their_part_of_the_cycle(batches, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(paper(), 2)
    whole = list(fit(paper(), 4, batches=batches).values())
    resumed = fit(paper(), 4, "2.ckpt", batches)
    assert list(resumed) == list(range(8, 8 + 2 * batches))
    assert list(resumed.values()) == [pytest.approx(rates) for rates in whole[2 * batches :]]


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


class Watched(MLP):
    """Notes what its schedule counts."""

    def __init__(self):
        schedule = partial(ReduceLROnPlateau, monitor="val/loss", factor=0.5, patience=0)
        super().__init__(1024, [8], 10, optimizer=adam, lr_scheduler=schedule)
        self.counted = []

    def lr_scheduler_step(self, scheduler, metric):
        self.counted.append(float(metric))
        super().lr_scheduler_step(scheduler, metric)


def watch(folder, resume=None):
    pl.seed_everything(0)
    kept = [{"every_n_train_steps": 3}, {"save_on_train_epoch_end": False}, {"save_on_train_epoch_end": True}]
    kept[2]["monitor"] = "val/loss"
    model = Watched()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=4,
        limit_train_batches=4,
        limit_val_batches=2,
        logger=False,
        callbacks=[
            ModelCheckpoint(folder, filename=f"{{step}}-{place}", save_top_k=-1, **options)
            for place, options in enumerate(kept)
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, Digits(batch_size=64), ckpt_path=resume)
    return model


def test_a_schedule_that_watches_a_value_counts_each_validation_once(tmp_path):
    """Saved inside the second epoch, after its validation, and at its end."""
    whole = watch(tmp_path / "whole")
    assert len(whole.counted) == 4
    for name in ("step=6-0", "step=8-1", "step=8-2"):
        resumed = watch(tmp_path / name, tmp_path / f"whole/{name}.ckpt")
        assert resumed.counted == whole.counted[1:]
        weights = [nn.utils.parameters_to_vector(model.parameters()) for model in (resumed, whole)]
        assert torch.equal(*weights)
