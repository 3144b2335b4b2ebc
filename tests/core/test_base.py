import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from pl_losses import LeNet5
from pl_losses.data import Digits

SCHEDULERS = {
    "none": None,
    "epochs": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    # It asks for the number of steps, before the loader of the checkpoint is there.
    "steps": lambda optimizer, **options: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, **options),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_fit_goes_on_in_the_middle_of_an_epoch(tmp_path, scheduler):
    def fit(ckpt_path=None):
        pl.seed_everything(0)
        options = {"optimizer": lambda parameters: torch.optim.SGD(parameters, 1e-3, momentum=0.9)}
        model = LeNet5(lr_scheduler=SCHEDULERS[scheduler], **options)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=3,
            logger=False,
            limit_val_batches=0,
            callbacks=[ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        # 5 batches an epoch.
        trainer.fit(model, Digits(batch_size=256), ckpt_path=ckpt_path)
        return trainer.global_step, model.state_dict()

    steps, weights = fit()
    for step in (4, 8):
        again, resumed = fit(tmp_path / f"step={step}.ckpt")
        assert again == steps
        for name, value in weights.items():
            assert torch.equal(resumed[name], value), (step, name)
