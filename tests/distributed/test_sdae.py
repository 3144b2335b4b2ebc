import os
import subprocess
import sys

import pytest
import torch

from pl_losses import StackedDenoisingAutoencoder
from pl_losses.data import Digits


class Recorded(StackedDenoisingAutoencoder):
    """Writes down its weights, whole, when the fit is over."""

    def __init__(self, path):
        torch.manual_seed(3)
        super().__init__(1024, [12, 10, 8], pretrain_epochs=1)
        self.path = path

    def on_fit_end(self):
        weights = [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in self.parameters()]
        if self.global_rank == 0:
            torch.save((weights, self.lowest_error), self.path)


def fit(trainer, path, **options):
    # 301 validation samples do not share out evenly between two ranks.
    data = Digits(301, 300, low=0.0, high=1.0, batch_size=300 // trainer.world_size)
    trainer.fit(Recorded(path), data, **options)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def check(path, one, **tolerance):
    weights, lowest = torch.load(path)
    whole, wanted = torch.load(one)
    torch.testing.assert_close(weights, whole, **tolerance)
    assert lowest == wanted


@pytest.mark.usefixtures("double")
def test_ddp_equals_one_process_on_the_joined_batch(make_trainer, tmp_path):
    for ranks in (1, 2):
        fit(make_trainer(ranks, max_epochs=5, precision="64-true"), tmp_path / f"{ranks}.pt")
    check(tmp_path / "2.pt", tmp_path / "1.pt", rtol=1e-6, atol=1e-9)


SCRIPT = """
import sys, torch
import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
sys.path.insert(0, {tests!r})
from test_sdae import fit
from pl_losses.strategies import FSDP2Strategy

saver = ModelCheckpoint({folder!r}, "{{step}}", every_n_train_steps=1, save_top_k=-1)
for path, resume in (("2.pt", None), ("3.pt", "step=10.ckpt"), ("4.pt", "step=19.ckpt")):
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=FSDP2Strategy(), max_epochs=5,
        logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=resume is None, callbacks=[] if resume else [saver],
    )
    fit(trainer, {folder!r} + "/" + path, ckpt_path=resume and {folder!r} + "/" + resume)
"""


@pytest.mark.slow
def test_sharded_equals_one_process_also_resumed(make_trainer, tmp_path):
    fit(make_trainer(1, max_epochs=5), tmp_path / "1.pt")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=os.path.dirname(__file__), folder=str(tmp_path)))
    subprocess.run([sys.executable, script], check=True, timeout=80, cwd=tmp_path)
    for name in ("2.pt", "3.pt", "4.pt"):
        # These strategies have no float64.
        check(tmp_path / name, tmp_path / "1.pt", rtol=1e-4, atol=1e-5)
