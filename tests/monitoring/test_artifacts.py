"""What `ArtifactRecord` leaves in an offline run: the data's identity as inputs, checkpoints as outputs."""

import json
import os
import re
import signal
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from wandb.proto import wandb_internal_pb2 as pb

from pl_losses import LeNet5
from pl_losses.callbacks import ArtifactRecord
from pl_losses.cli.loggers import check_log_model
from pl_losses.cli.main import main
from pl_losses.dashboards.offline.records import read_payloads
from pl_losses.data import Digits
from pl_losses.recipes import UsageError

FLAGS = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--trainer.accelerator=cpu"]


def artifacts(folder):
    (path,) = folder.glob("**/wandb/offline-run-*/*.wandb")
    found = [pb.Record.FromString(payload) for payload in read_payloads(path, [])]
    return [record.artifact for record in found if record.HasField("artifact")]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    wandb.teardown()  # The service of an earlier test would write to its own folder.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        best = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss"]
        best += ["--trainer.callbacks.save_last=true", "--trainer.callbacks+=ArtifactRecord"]
        assert main(["fit", "--config", "lenet/digits", *FLAGS, *best]) == 0
        wandb.teardown()
    return artifacts(folder)


def test_data_are_inputs_without_the_data(found):
    data = {one.name: one for one in found if one.type == "dataset"}
    assert set(data) == {"Digits-train", "Digits-val", "Digits-test"}
    module = Digits()
    module.setup()
    for name, artifact in data.items():
        assert artifact.use_after_commit
        (file,) = artifact.manifest.contents
        assert file.path == "identity.json"
        identity = json.loads(Path(file.local_path).read_text())
        assert identity == module.identity()[name.partition("-")[2]]
        assert "/runs/wandb/offline-run-" in file.local_path


def test_checkpoints_are_outputs_with_aliases(found):
    models = [one for one in found if one.type == "model"]
    # W&B names the latest by itself.
    assert [set(one.aliases) - {"latest"} for one in models] == [{"best"}, {"last"}]
    for one in models:
        assert re.fullmatch("model-[a-z0-9]+", one.name)
        (file,) = one.manifest.contents
        assert "state_dict" in torch.load(file.local_path, weights_only=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_fit_leaves_its_last_checkpoint(tmp_path, monkeypatch, number, status):
    monkeypatch.chdir(tmp_path)
    original = LeNet5.training_step

    def interrupted(self, batch, index):
        if self.global_step == 2:
            os.kill(os.getpid(), number)
        return original(self, batch, index)

    monkeypatch.setattr(LeNet5, "training_step", interrupted)
    assert main(["fit", "--config", "lenet/digits", *FLAGS, "--trainer.callbacks+=ArtifactRecord"]) == status
    wandb.teardown()
    (model,) = (one for one in artifacts(tmp_path) if one.type == "model")
    assert set(model.aliases) - {"latest"} == {"last"}
    (file,) = model.manifest.contents
    assert torch.load(file.local_path, weights_only=True)["global_step"] == 3


def test_an_identity_tells_data_apart():
    one, same, other = Digits(), Digits(batch_size=3), Digits(seed=1)
    for module in (one, same, other):
        module.setup("fit")
    assert one.identity() == same.identity()
    assert one.identity()["train"]["checksum"] != other.identity()["train"]["checksum"]
    assert one.identity()["train"]["samples"] == len(one.tensors["train"][0])


@pytest.mark.parametrize(
    ("logger", "told"),
    [
        (CSVLogger, "records nothing: the trainer has no W&B logger"),
        (WandbLogger, "records no data: the Trainer was given loaders, no DataModule"),
    ],
)
def test_it_says_what_it_lacks(tmp_path, logger, told):
    made = logger(tmp_path) if logger is CSVLogger else logger(save_dir=tmp_path, mode="disabled")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[ArtifactRecord()], logger=made, max_steps=1, **quiet)
    data = Digits()
    data.setup()
    with pytest.warns(UserWarning, match=f"ArtifactRecord {told}"):
        trainer.validate(LeNet5(head="linear"), data.val_dataloader(), verbose=False)
    wandb.finish()


def test_an_offline_run_is_told_how_to_log_checkpoints():
    check_log_model({"init_args": {"offline": False, "log_model": "all"}})
    with pytest.raises(UsageError, match=r"`wandb sync` with `--trainer.callbacks\+=ArtifactRecord`"):
        check_log_model({"init_args": {"offline": True, "log_model": True}})
