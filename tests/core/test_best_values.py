"""The best values of validations, over a fit that is resumed from the checkpoint of another one."""

from typing import ClassVar

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pl_losses.core.base import PaperModule
from pl_losses.core.best_values import BestValues

LOGGED = [3.0, float("nan"), 1.0, 2.0, 4.0]


class Given(PaperModule):
    """Logs given values, one a validation."""

    best: ClassVar = {"val/low": "min", "val/high": "max", "train/loss": "min"}

    def __init__(self):
        super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        value = LOGGED[self.current_epoch] if not self.trainer.sanity_checking else -9.0
        self.log_dict({"val/low": value, "val/high": value})


def fitted(folder, epochs, ckpt_path=None):
    loader = DataLoader(TensorDataset(torch.ones(2, 1)), batch_size=2)
    trainer = pl.Trainer(
        **{"default_root_dir": folder, "max_epochs": epochs, "logger": False, "accelerator": "cpu"},
        **{"enable_progress_bar": False, "enable_model_summary": False},
    )
    trainer.fit(Given(), loader, loader, ckpt_path=ckpt_path)
    (best,) = (one for one in trainer.callbacks if isinstance(one, BestValues))
    return trainer, best.values


@pytest.mark.filterwarnings("ignore")
def test_the_best_survives_a_resume(tmp_path):
    trainer, values = fitted(tmp_path, 3)
    assert values == {"val/low": 1.0, "val/high": 3.0}
    _, values = fitted(tmp_path, 5, trainer.checkpoint_callback.best_model_path)
    assert values == {"val/low": 1.0, "val/high": 4.0}
    trainer, values = fitted(tmp_path, 1)
    assert values == {"val/low": 3.0, "val/high": 3.0}
    _, values = fitted(tmp_path, 5, trainer.checkpoint_callback.best_model_path)
    assert values == {"val/low": 1.0, "val/high": 4.0}
