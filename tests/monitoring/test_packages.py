"""Monitors and reports with `lightning` and with `pytorch_lightning`, and what each kind of logger gets.

Those of MLflow and Aim are skipped unless these are installed, `uv pip install mlflow aim`: they hold back
versions of packages that the suite's dependencies share with them.
"""

import importlib
import warnings

import pytest
import torch
import wandb
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pl_losses import LeNet5
from pl_losses.callbacks import (
    AdamBiasCorrectionMonitor,
    ClassifierReport,
    DropoutUncertaintyMonitor,
    PReLUSlopeMonitor,
)
from pl_losses.cli.main import main
from pl_losses.dashboards.offline.runs import read_run
from pl_losses.dashboards.page.comparison import origin
from pl_losses.dashboards.page.drawing import read_table
from pl_losses.data import Digits


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def package(request):
    return pytest.importorskip(request.param, reason=f"needs {request.param}")


def images(count=32):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    pixels = torch.rand(count, 1, 6, 6, generator=generator) + labels[:, None, None, None] / 3
    return DataLoader(TensorDataset(pixels, labels), batch_size=8)


def net(package):
    class Net(package.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.network = nn.Sequential(
                nn.Flatten(), nn.Linear(36, 8), nn.PReLU(8), nn.Dropout(0.5), nn.Linear(8, 3)
            )

        def forward(self, inputs):
            return self.network(inputs)

        def training_step(self, batch, batch_idx):
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

        def test_step(self, batch, batch_idx):
            confidence, predicted = self(batch[0]).softmax(dim=1).max(dim=1)
            return {"predicted": predicted, "target": batch[1], "confidence": confidence}

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.01)

    return Net()


def run(package, folder, *loggers, callbacks=None):
    callbacks = callbacks or [
        PReLUSlopeMonitor(),
        AdamBiasCorrectionMonitor(),
        DropoutUncertaintyMonitor(samples=4, max_batches=8, pictures=4),
        ClassifierReport(samples=4),
    ]
    trainer = package.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=2,
        logger=list(loggers),
        max_epochs=1,
    )
    module = net(package)
    trainer.fit(module, images(), images(16))
    trainer.test(module, images(16), verbose=False)


def test_wandb_has_the_same_of_both_packages(package, tmp_path):
    wandb.teardown()
    logger = importlib.import_module(f"{package.__name__}.loggers").WandbLogger(
        project="test", offline=True, save_dir=tmp_path
    )
    run(package, tmp_path, logger)
    logger.experiment.finish()
    wandb.teardown()
    found = read_run(next(tmp_path.glob("wandb/offline-run-*/*.wandb")))
    numbers = set(found.curves())
    assert {"prelu/mean", "adam/Adam/effective_step", "val/dropout/nll", "test/dropout/nll"} <= numbers
    assert set(found.items["histogram"]) == {"prelu/network.2/slopes"}
    pictures = set(found.items["picture"])
    assert {"prelu/final_slopes", "adam/bias_correction", "test/dropout/reliability"} <= pictures
    assert {"test/confusion_matrix", "test/errors"} <= pictures
    assert "test/confusion_table" in found.items["table"]
    last = {
        (one.axis, one.x) for key in ("picture", "table") for of in found.items[key].values() for one in of
    }
    assert last == {("trainer/global_step", 4)}
    assert origin(found) == "Net"
    for key, last in (
        ("test/errors_table", "confidence"),
        ("test/dropout/most_uncertain_table", "mutual information, nats"),
    ):
        columns, rows = read_table(found, key, found.items["table"][key][0])
        assert columns == ["image", "right", "predicted", last]
        assert rows
        assert all(row[0].read_bytes().startswith(b"\x89PNG") for row in rows)
    assert not (tmp_path / "pictures").exists()


def test_mlflow_has_numbers_and_pictures(package, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    kind = importlib.import_module(f"{package.__name__}.loggers").MLFlowLogger
    logger = kind("test", tracking_uri=store, artifact_location=str(tmp_path / "artifacts"))
    run(package, tmp_path, logger)
    client = mlflow.MlflowClient(store)
    numbers = client.get_run(logger.run_id).data.metrics
    assert {"prelu/mean", "adam/Adam/effective_step", "val/dropout/nll", "test/dropout/nll"} <= set(numbers)
    names = {file.path for file in client.list_artifacts(logger.run_id, "images")}
    for key in ("prelu/final_slopes", "adam/bias_correction", "test/errors"):
        assert any(key.replace("/", "~") in name for name in names), key


def test_aim_has_numbers_histograms_and_pictures(tmp_path):
    pytest.importorskip("aim", reason="needs aim")
    from aim.pytorch_lightning import AimLogger

    class Open(AimLogger):
        def finalize(self, status=""):
            """Stay open to be read."""

    logger = Open(
        str(tmp_path), system_tracking_interval=None, log_system_params=False, capture_terminal_logs=False
    )
    run(importlib.import_module("lightning.pytorch"), tmp_path, logger)
    found = logger.experiment
    metrics = {one.name for one in found.metrics()}
    assert {"prelu/mean", "adam/Adam/effective_step", "val/dropout/nll", "test/dropout/nll"} <= metrics
    others = found.collect_sequence_info(("distributions", "images"), skip_last_value=True)
    names = {kind: {one["name"] for one in sequences} for kind, sequences in others.items()}
    assert names["distributions"] == {"prelu/network.2/slopes"}
    assert {"prelu/final_slopes", "adam/bias_correction", "test/errors"} <= names["images"]


def test_a_logger_without_pictures_is_named_once(package, tmp_path):
    class Numbers(package.loggers.Logger):
        name, version = "numbers", "0"

        def log_metrics(self, metrics, step=None):
            pass

        def log_hyperparams(self, *args, **kwargs):
            pass

    csv = package.loggers.CSVLogger(tmp_path)
    for loggers, told in (
        ([Numbers()], ["Numbers takes no histograms and pictures: the pictures are under"]),
        ([csv], []),
    ):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run(package, tmp_path, *loggers, callbacks=[PReLUSlopeMonitor(), ClassifierReport(2)])
        texts = [str(one.message) for one in found if "takes no histograms" in str(one.message)]
        assert len(texts) == len(told)
        assert all(text.startswith(start) for text, start in zip(texts, told, strict=True))


def test_the_other_trainer_says_what_to_do(tmp_path):
    other = pytest.importorskip("pytorch_lightning", reason="needs pytorch_lightning")
    trainer = other.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, max_steps=1)
    for use in (trainer.fit, trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(TypeError, match="`LeNet5` is a LightningModule of `lightning`, not of `pytorch_"):
            use(LeNet5(), images())
        for given in ((Digits(),), ()):
            with pytest.raises(TypeError, match="`Digits` is a LightningDataModule of `lightning`"):
                use(net(other), *given, **({} if given else {"datamodule": Digits()}))


def test_the_command_line_says_what_is_of_the_other_package(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = "import pytorch_lightning as pl\n\nclass Other(pl.LightningModule):\n    pass\n"
    (tmp_path / "of_the_other.py").write_text(text)
    logger = "pytorch_lightning.loggers.WandbLogger"
    for option, name, more in (
        ("model", "of_the_other.Other", ["--data", "Digits"]),
        ("trainer.logger", logger, ["--config", "lenet/digits"]),
    ):
        assert main(["fit", *more, f"--{option}", name]) == 2
        told = f"`{option}`: `{name}` is of `pytorch_lightning`, not of `lightning`: use `lightning.pytorch`"
        assert told in capsys.readouterr().err


def test_a_module_of_the_suite_may_be_part_of_another(tmp_path):
    other = pytest.importorskip("pytorch_lightning", reason="needs pytorch_lightning")
    whole = net(other)
    whole.network = nn.Sequential(nn.ZeroPad2d(13), LeNet5(head="linear"))
    trainer = other.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, max_steps=1)
    trainer.fit(whole, images())
    assert trainer.global_step == 1
