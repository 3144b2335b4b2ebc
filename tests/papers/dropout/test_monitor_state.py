"""One monitor over several calls, and several monitors over one."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pl_losses.papers.dropout.monitor import DropoutUncertaintyMonitor


class Fixed(pl.LightningModule):
    """Says the class that stands in the input, whatever is dropped; or fails."""

    def __init__(self):
        super().__init__()
        self.dropout, self.weight, self.fail_at = nn.Dropout(0.1), nn.Parameter(torch.zeros(())), None

    def forward(self, x):
        return 20 * nn.functional.one_hot(x[:, 0].long(), 3) + self.dropout(torch.ones_like(x))

    def training_step(self, batch):
        return self.weight.square()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if batch_idx == self.fail_at:
            raise RuntimeError("in the middle")

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def loader(right, size=24):
    target = torch.arange(size) % 3
    said = target if right else (target + 1) % 3
    return DataLoader(TensorDataset(said[:, None].expand(-1, 3).float(), target), 8)


@pytest.fixture
def make(tmp_path):
    def trainer(*callbacks, **options):
        return pl.Trainer(
            accelerator="cpu", default_root_dir=tmp_path, callbacks=list(callbacks),
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            **{"logger": False, "max_epochs": 1} | options,
        )  # fmt: skip

    return trainer


def found(run, stage):
    start = f"{stage}/dropout/"
    return {
        key.removeprefix(start): value.item()
        for key, value in run.callback_metrics.items()
        if key.startswith(start)
    }


def test_each_call_counts_its_own_inputs_only(make):
    """Right, wrong and right again, by one trainer, by another one, and in between a test that fails."""
    monitor, model = DropoutUncertaintyMonitor(samples=2, max_batches=8), Fixed()
    run, other = make(monitor), make(monitor)
    for each in (run, run, other, run):
        for right in (True, False, False, True):
            each.test(model, loader(right), verbose=False)
            assert found(each, "test")["error"] == 1 - right
            assert found(each, "test")["inputs"] == 24
        model.fail_at = 1
        with pytest.raises(RuntimeError, match="in the middle"):
            each.test(model, loader(False), verbose=False)
        model.fail_at = None
        assert not any(key.startswith("test/dropout/error") for key in each.callback_metrics)
    run.validate(model, loader(True, 16), verbose=False)
    assert found(run, "val")["inputs"] == 16
    assert found(run, "val")["error"] == 0
    run.fit(model, loader(True), loader(False))
    assert found(run, "val")["inputs"] == 24
    assert found(run, "val")["error"] == 1
    run.test(model, loader(True), verbose=False)
    assert found(run, "test")["error"] == 0


def test_a_fit_that_fails_leaves_nothing_for_the_next_call(make, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "pl_losses.papers.dropout.monitor.log_figure", lambda trainer, key, figure: drawn.append(key)
    )
    monitor, model = DropoutUncertaintyMonitor(samples=2, max_batches=8), Fixed()
    run = make(monitor, logger=CSVLogger(tmp_path), max_epochs=2, num_sanity_val_steps=0)

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raise RuntimeError("between validation and the end")

    with pytest.raises(RuntimeError, match="between"):
        make(monitor, Stop(), logger=CSVLogger(tmp_path), num_sanity_val_steps=0).fit(
            model, loader(True), loader(True)
        )
    assert not drawn
    run.predict(model, loader(True))
    assert drawn == []  # the inputs are no images, and there are no targets
    run.test(model, loader(True), verbose=False)
    assert sorted(drawn) == ["test/dropout/entropy", "test/dropout/reliability"]


class Values(DropoutUncertaintyMonitor):
    def to_values(self, pl_module, outputs):
        return outputs[:, 0]

    def get_target(self, batch):
        return batch[1].float()


def test_monitors_of_two_tasks_have_keys_of_their_own(make):
    """Also the number of inputs, of which the second looks at fewer."""
    both = (
        DropoutUncertaintyMonitor(samples=2, max_batches=8),
        Values(samples=2, task="regression", max_batches=1),
    )
    for callbacks in (both, both[::-1]):
        run = make(*callbacks)
        run.test(Fixed(), loader(True), verbose=False)
        assert found(run, "test")["inputs"] == 24
        assert found(run, "test")["inputs_regression"] == 8
        assert {"error", "rmse"} <= found(run, "test").keys()
    alone = make(both[1])
    alone.test(Fixed(), loader(True), verbose=False)
    assert found(alone, "test")["inputs"] == 8


def test_monitors_of_one_task_have_names_of_their_own(make, tmp_path):
    first = DropoutUncertaintyMonitor(samples=2, max_batches=8)
    second = DropoutUncertaintyMonitor(samples=3, max_batches=2, name="few")
    run = make(first, second, logger=CSVLogger(tmp_path, "csv"))
    run.test(Fixed(), loader(True), verbose=False)
    assert run.callback_metrics["test/dropout/inputs"] == 24
    assert run.callback_metrics["test/few/inputs"] == 16
    names = {path.name for path in tmp_path.glob("csv/version_0/pictures/*")}
    kinds = ("reliability", "entropy")
    assert names == {f"test-{name}-{kind}.png" for name in ("dropout", "few") for kind in kinds}
    third = DropoutUncertaintyMonitor(name="few")
    with pytest.raises((TypeError, ValueError), match="for classification but got 2 of `name` 'few'"):
        make(first, second, third).test(Fixed(), loader(True), verbose=False)
    for name in ("", "a-b", "a/b", 1):
        with pytest.raises((TypeError, ValueError), match=r"`name` to be (of letters, digits and _|a text)"):
            DropoutUncertaintyMonitor(name=name)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("per_image", [1, 4])
def test_rows_that_are_pixels_are_scored_and_need_no_pictures(make, tmp_path, channels, per_image):
    class Pixels(Fixed):
        def forward(self, images):
            logits = self.dropout(images.mean(dim=1).flatten(1)[:, :per_image])
            return torch.stack([logits, -logits, logits * 0], dim=-1).flatten(0, 1)

    class Monitor(DropoutUncertaintyMonitor):
        def get_target(self, batch):
            return batch[1].flatten()

    images = torch.randn(10, channels, 2, 2, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(images, torch.zeros(10, per_image, dtype=torch.long)), 4)
    run = make(Monitor(samples=3), logger=CSVLogger(tmp_path, "csv"))
    run.test(Pixels(), data, verbose=False)
    assert run.callback_metrics["test/dropout/inputs"] == 10 * per_image
    shown = (tmp_path / "csv/version_0/pictures/test-dropout-most_uncertain.png").exists()
    assert shown == (per_image == 1)
