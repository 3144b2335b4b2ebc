"""The progress bar is drawn by the clock."""

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from pl_losses.cli import progress


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("seconds", [0.0, 0.05, 1.0])
def test_bar_by_the_clock(capsys, monkeypatch, tmp_path, stage, seconds):
    """Eight batches of so many seconds each: drawn every 0.2 s, and after the last one."""
    batches = iter(range(1000))
    monkeypatch.setattr(progress, "monotonic", lambda: next(batches) * seconds)
    options = {f"limit_{part}_batches": 8 for part in ("train", "val", "test", "predict")}
    trainer = Trainer(
        callbacks=[progress.TimedProgressBar()],
        default_root_dir=tmp_path,
        max_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
        **options,
    )
    if stage == "fit":
        trainer.limit_val_batches = 0
    getattr(trainer, stage)(BoringModel())
    shown = capsys.readouterr()
    drawn = [n for n in range(1, 9) if f" {n}/8 " in shown.out + shown.err]
    assert drawn == {0.0: [1, 8], 0.05: [1, 5, 8], 1.0: list(range(1, 9))}[seconds]
