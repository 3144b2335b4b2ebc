import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pl_losses import LeNet5
from pl_losses.core.base import PaperModule
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


class Logs(PaperModule):
    """Logs in its steps by what ``through`` is: its own ``log``, or Lightning's."""

    def __init__(self, through):
        super().__init__(lambda parameters: torch.optim.SGD(parameters, 0.1))
        self.layer, self.through = torch.nn.Linear(1, 1), through

    def training_step(self, batch, batch_idx):
        loss = (self.layer(batch[0]) ** 2).mean()
        self.through(self, "loss", loss, prog_bar=True)
        self.through(self, "mean", loss, on_step=True, on_epoch=True, batch_size=len(batch[0]))
        self.through(self, "step", float(self.global_step))
        self.through(self, "counted", torch.tensor([batch_idx + 0.5]), logger=batch_idx != 7)
        if batch_idx % 2:
            self.through(self, "odd", loss.double() / 3)
        return loss


class Rows(Callback):
    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, *_):
        shown = (trainer.callback_metrics, trainer.progress_bar_metrics, trainer.logged_metrics)
        self.rows.append([{name: float(value) for name, value in one.items()} for one in shown])

    on_train_epoch_end = on_train_batch_end


def logged(tmp_path, through, batches=3):
    options = dict.fromkeys(("enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.arange(2.0 * batches)[:, None]), 2
    )
    torch.manual_seed(0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=CSVLogger(tmp_path),
        log_every_n_steps=2,
        callbacks=[rows := Rows()],
        **options,
    )
    trainer.fit(Logs(through), loader)
    return rows.rows


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_logged_again_is_what_lightning_would_log(tmp_path, monkeypatch):
    wanted = logged(tmp_path, LightningModule.log)
    calls, log = [], LightningModule.log
    monkeypatch.setattr(
        LightningModule,
        "log",
        lambda self, name, *args, **options: [calls.append(name), log(self, name, *args, **options)],
    )
    assert logged(tmp_path, PaperModule.log) == wanted
    assert (calls.count("loss"), calls.count("mean"), calls.count("step")) == (2, 6, 6)
    with pytest.raises(MisconfigurationException, match="different arguments"):
        logged(tmp_path, PaperModule.log, batches=8)
