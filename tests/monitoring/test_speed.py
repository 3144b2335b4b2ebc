"""Samples per second, as a clock that is set says."""

import csv

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from pl_losses.callbacks import SpeedMonitor
from pl_losses.monitoring import speed


class Slow(BoringModel):
    """Takes half a second for each batch, and 100 seconds for a validation."""

    now = 0.0

    def training_step(self, batch, batch_idx):
        Slow.now += 0.5
        return super().training_step(batch, batch_idx)

    def on_validation_epoch_start(self):
        Slow.now += 100

    def train_dataloader(self):
        return DataLoader(torch.randn(12, 32), 3)

    val_dataloader = train_dataloader


@pytest.mark.parametrize("resumed", [False, True])
def test_the_speed_is_that_of_training_without_validation(tmp_path, monkeypatch, resumed):
    monkeypatch.setattr(speed, "perf_counter", lambda: Slow.now)
    checkpoint = None
    if resumed:
        inside = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        pl.Trainer(
            accelerator="cpu", max_steps=2, logger=False, callbacks=[inside], enable_progress_bar=False,
            default_root_dir=tmp_path, num_sanity_val_steps=0, enable_model_summary=False,
        ).fit(Slow())  # fmt: skip
        checkpoint = tmp_path / "step=1.ckpt"
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, val_check_interval=2, logger=CSVLogger(tmp_path),
        callbacks=[SpeedMonitor(2)], enable_progress_bar=False, enable_checkpointing=False,
        default_root_dir=tmp_path, num_sanity_val_steps=0, log_every_n_steps=1, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Slow(), ckpt_path=checkpoint)
    assert trainer.progress_bar_metrics["train/samples_per_second"] == 6
    rows = csv.DictReader((tmp_path / "lightning_logs/version_0/metrics.csv").open())
    assert [row["train/samples_per_second"] for row in rows if row["train/samples_per_second"]] == ["6.0"] * (
        8 - resumed
    )


def test_a_fit_resumes_inside_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "perf_counter", lambda: Slow.now)
    saved = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    pl.Trainer(max_steps=2, callbacks=[saved], **quiet).fit(Slow())
    trainer = pl.Trainer(max_steps=3, callbacks=[SpeedMonitor()], enable_checkpointing=False, **quiet)
    trainer.fit(Slow(), ckpt_path=tmp_path / "step=2.ckpt")
    assert trainer.progress_bar_metrics["train/samples_per_second"] == 6


def test_the_number_of_batches_is_checked():
    with pytest.raises(ValueError, match="`batches` to be at least 1 but got 0"):
        SpeedMonitor(0)
