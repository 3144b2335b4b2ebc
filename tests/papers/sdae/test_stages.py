"""Stages in one fit: budgets, optimizers, cached codes, the best weights, and resuming anywhere."""

import signal
import subprocess
import sys

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from papers.sdae.stacks import EPOCHS, data, make, train

from pl_losses import StackedDenoisingAutoencoder
from pl_losses.data import Digits
from pl_losses.papers.sdae.drawing import draw_curves


class Seen(StackedDenoisingAutoencoder):
    """Writes down what moves in each step, and what its inputs were."""

    def __init__(self, **options):
        super().__init__(**options)
        self.rows, self.clean = [], []

    def on_train_batch_start(self, batch, batch_idx):
        self.before = {name: value.detach().clone() for name, value in self.named_parameters()}

    def denoising_loss(self, clean, index, own, *key, places=None):
        if key[0] == "train":
            self.clean.append(clean.clone())
        return super().denoising_loss(clean, index, own, *key, places=places)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        moved = {name for name, value in self.named_parameters() if not torch.equal(value, self.before[name])}
        self.rows.append((self.current_epoch, self.global_step, type(self.optimizers().optimizer), moved))


def test_each_stage_trains_its_own_layer_with_its_own_optimizer(tmp_path):
    model, trainer = make(Seen), train(tmp_path, LearningRateMonitor(), logger=CSVLogger(tmp_path))
    trainer.fit(model, data())
    assert trainer.current_epoch == EPOCHS
    assert [step for _, step, _, _ in model.rows] == list(range(1, 4 * EPOCHS + 1))
    for epoch, _, optimizer, moved in model.rows:
        if epoch < 3:
            own = ("weight", "hidden_bias", "visible_bias")
            assert moved == {f"layers.{epoch}.{name}" for name in own}
            assert optimizer is torch.optim.Adam
        else:
            assert optimizer is torch.optim.SGD
            assert moved <= {f"layers.{k}.{n}" for k in range(3) for n in ("weight", "hidden_bias")} | {
                "head.weight",
                "head.bias",
            }
    assert "layers.0.weight" in model.rows[-1][3]
    assert all(parameter.requires_grad for parameter in model.parameters())
    logged = trainer.callback_metrics
    assert logged["train/stage"] == 4
    assert {"lr-Adam", "lr-SGD", "train/reconstruction_3", "val/reconstruction_3", "val/error"} <= set(logged)


def test_cached_codes_are_what_would_be_computed_with_each_batch(tmp_path):
    models = []
    for cached in (True, False):
        model = make(Seen, cache_codes=cached)
        encoded = []
        model.layers[0].register_forward_pre_hook(lambda *_, seen=encoded: seen.append(1))
        train(tmp_path, epochs=3).fit(model, data())
        models.append(model)
    for ours, theirs in zip(models[0].clean, models[1].clean, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=1e-4, atol=1e-5)


def test_codes_are_computed_once_and_not_where_images_are_distorted(tmp_path):
    class Counting(StackedDenoisingAutoencoder):
        def stage_inputs(self, stage, inputs):
            if self.trainer.training and not self.trainer.sanity_checking:
                self.calls = getattr(self, "calls", 0) + 1
            return super().stage_inputs(stage, inputs)

    for distort in (False, True):
        model = make(Counting, hidden=[8, 8], pretrain_epochs=[1, 2])
        train(tmp_path, epochs=3, limit_val_batches=0).fit(model, data(distort=distort))
        # The first layer's four batches, then two pieces of 1000, or its eight batches.
        assert model.calls == (4 + 8 if distort else 4 + 2)


def test_resumed_anywhere_the_weights_are_bit_identical(tmp_path):
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    ends = ModelCheckpoint(
        tmp_path, "end-{step}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True
    )
    whole, trainer = make(), train(tmp_path, saver, ends)
    trainer.fit(whole, data())
    (tested,) = trainer.test(whole, data(), verbose=False)
    # In each stage, at the last batch of a stage and of the fit, and at the end of an epoch.
    for name in ("step=2", "step=4", "step=7", "end-step=8", "step=11", "step=12", "step=14", "step=20"):
        model, trainer = make(), train(tmp_path)
        trainer.fit(model, data(), ckpt_path=tmp_path / f"{name}.ckpt", weights_only=True)
        torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0, msg=name)
        assert trainer.global_step == 4 * EPOCHS
    # The checkpoint itself has the best weights.
    path = tmp_path / f"end-step={4 * EPOCHS}.ckpt"
    loaded = StackedDenoisingAutoencoder.load_from_checkpoint(path, weights_only=True)
    assert train(tmp_path).test(loaded, data(), verbose=False) == [tested]


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
import test_stages as t
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

class Slow(Callback):
    def on_train_batch_end(self, trainer, *_):
        print(trainer.global_step, flush=True)
        if trainer.global_step > {stop}:
            import time; time.sleep(60)

saver = ModelCheckpoint({folder!r}, every_n_train_steps=3, save_top_k=1)
t.train({folder!r}, saver, Slow()).fit(t.make(), t.data())
"""


@pytest.mark.slow
@pytest.mark.parametrize("stop", [3, 7, 10, 16])
def test_killed_and_resumed(tmp_path, stop):
    folder = tmp_path / "killed"
    script = SCRIPT.format(tests=str(__file__).rpartition("/")[0], folder=str(folder), stop=stop)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == str(stop + 1):
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (checkpoint,) = folder.glob("*.ckpt")
    whole, resumed = make(), make()
    train(tmp_path).fit(whole, data())
    train(tmp_path).fit(resumed, data(), ckpt_path=checkpoint)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_early_stopping_counts_in_the_last_stage_only_and_the_best_weights_are_kept(tmp_path):
    # Without a learning rate nothing improves on the first validation.
    model = make(
        pretrain_epochs=2, patience=2, optimizer=lambda p: torch.optim.SGD(p, 0.0), lr_scheduler=None
    )
    trainer = train(tmp_path, epochs=20)
    trainer.fit(model, data())
    assert trainer.current_epoch == 3 * 2 + 3

    class Spoilt(StackedDenoisingAutoencoder):
        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            if self.current_epoch == 2:
                with torch.no_grad():
                    self.head.weight.mul_(-1)

        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            errors.append(float(self.trainer.callback_metrics["val/error"]))

    errors = []
    spoilt = make(Spoilt, hidden=[30], pretrain_epochs=0, lr_scheduler=None)
    trainer = train(tmp_path, epochs=3)
    trainer.fit(spoilt, data(batch_size=30))
    assert spoilt.lowest_error == min(errors) < errors[-1]
    (validated,) = trainer.validate(spoilt, data(), verbose=False)
    assert validated["val/error"] == pytest.approx(spoilt.lowest_error)


def test_separate_commands_equal_one_fit(tmp_path):
    options = {"lr_scheduler": None, "pretrain_lr_scheduler": None}
    whole = make(**options)
    train(tmp_path, epochs=4).fit(whole, data())
    first, trainer = make(**options), train(tmp_path, epochs=3)
    trainer.fit(first, data())
    trainer.save_checkpoint(tmp_path / "pretrained.ckpt")
    with pytest.warns(UserWarning, match="of stage 3 of 4: the output layer at least is untrained"):
        trainer.validate(make(**options), data(), ckpt_path=tmp_path / "pretrained.ckpt", verbose=False)
    second = make(start_from=str(tmp_path / "pretrained.ckpt"), **options)
    # The same epoch of the same data, so that the order is the same.
    second.pretrain_epochs = [0, 0, 0]
    shifted = data()
    shifted.setup("fit")
    loader = shifted.train_dataloader()
    loader.set_epoch = lambda epoch: type(loader).set_epoch(loader, epoch + 3)
    train(tmp_path, epochs=1).fit(second, loader, shifted.val_dataloader())
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": []}, "`hidden`"),
        ({"hidden": [3, 0]}, "`hidden`.*got 0"),
        ({"corruption": "dropout"}, "`corruption`.*'dropout'"),
        ({"level": 2.0}, "`level`.*2.0"),
        ({"corruption": "gaussian", "level": -1.0}, "`level`.*-1.0"),
        ({"num_classes": 0}, "`num_classes`"),
        ({"pretrain_epochs": 1.5}, "`pretrain_epochs`.*1.5"),
        ({"corruption": "gaussian", "beta": 0.5}, "`alpha` equal to `beta`"),
        ({"visible": "bernoulli"}, "`visible`"),
        ({"pretrain_epochs": [1, 2]}, r"`pretrain_epochs`.*\[1, 2\]"),
        ({"pretrain_epochs": -1}, "`pretrain_epochs`"),
        ({"patience": 0}, "`patience`"),
    ],
)
def test_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(**options)


def test_a_number_for_hidden_is_refused():
    with pytest.raises(TypeError, match=r"`hidden`.*sequence.*5"):
        make(hidden=5)


@pytest.mark.parametrize("inputs", [torch.rand(1024), torch.tensor(0.5)])
def test_single_inputs_are_refused(inputs):
    with pytest.raises(ValueError, match=r"`inputs` of shape \[B, \.\.\.\]"):
        make()(inputs)


def test_samples_are_at_least_one():
    with pytest.raises(ValueError, match=r"`count`.*0"):
        make().sample(torch.rand(2, 1024), 0)


def test_checkpoints_of_other_architectures_are_refused_in_a_line(tmp_path):
    trainer = train(tmp_path, epochs=1, limit_train_batches=1)
    trainer.fit(make(), data())
    path, junk = tmp_path / "other.ckpt", tmp_path / "junk.ckpt"
    trainer.save_checkpoint(path)
    junk.write_text("no checkpoint")
    for options in ({"hidden": [20, 15, 12]}, {"hidden": [20, 16]}, {"tied": False}):
        with pytest.raises(ValueError, match=r"`ckpt_path`.*'(layers|head).*the checkpoint"):
            train(tmp_path, epochs=1).fit(make(**options), data(), ckpt_path=path, weights_only=True)
        with pytest.raises(ValueError, match=r"`start_from`.*'(layers|head).*the checkpoint"):
            train(tmp_path, epochs=1).fit(make(start_from=str(path), **options), data())
    for wrong in (junk, tmp_path / "none.ckpt"):
        with pytest.raises(ValueError, match=f"`start_from`.*{wrong.name}"):
            train(tmp_path, epochs=1).fit(make(start_from=str(wrong)), data())


def test_more_classes_than_units_are_refused_before_pre_training(tmp_path):
    with pytest.raises(ValueError, match="`num_classes` of at least the data's 10 but got 5"):
        train(tmp_path).fit(make(num_classes=5), data())


def test_patience_needs_validation(tmp_path):
    for images, options in ((data(val_size=0), {}), (data(), {"limit_val_batches": 0})):
        with pytest.raises(ValueError, match="`patience` 3"):
            train(tmp_path, **options).fit(make(patience=3), images)


def test_batches_without_labels_are_pre_trained_on_whole(tmp_path):
    model = make(Seen, pretrain_epochs=[1, 0, 0])
    loader = torch.utils.data.DataLoader(torch.rand(6, 1, 32, 32), batch_size=3)
    train(tmp_path, epochs=1).fit(model, loader)
    assert [len(clean) for clean in model.clean] == [3, 3]


def test_too_few_epochs_are_told(tmp_path):
    with pytest.warns(UserWarning, match="`max_epochs` 2 ends before the 3 .* layer 3 "):
        train(tmp_path, epochs=2, limit_train_batches=1).fit(make(), data())


def test_a_fit_that_broke_off_leaves_no_codes_to_the_next(tmp_path):
    class Broken(StackedDenoisingAutoencoder):
        def on_train_batch_start(self, batch, batch_idx):
            if self.stage == 1:
                raise RuntimeError("broken off")

    images = data()
    images.setup("fit")
    loader = images.train_dataloader()
    model = make(Broken)
    with pytest.raises(RuntimeError, match="broken off"):
        train(tmp_path).fit(model, loader)
    assert loader.tensors[0].shape[1:] == (20,)
    with pytest.raises(RuntimeError, match="broken off"):  # In the second stage again, not in the first.
        train(tmp_path, epochs=4).fit(model, loader)
    assert model.stage == 1


def test_data_that_do_not_fit_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"1024 elements|in_features"):
        train(tmp_path).fit(make(in_features=784), data())
    with pytest.raises(ValueError, match="set `low` to 0"):
        train(tmp_path).fit(make(), Digits(batch_size=300))
    with pytest.raises(ValueError, match="`max_epochs`"):
        train(tmp_path, epochs=-1).fit(make(), data())


def test_curves_have_no_empty_axes():
    layers, errors = {"val/reconstruction_1": [(0, 2.0), (1, 1.0)]}, {"val/error": [(2, 0.5), (3, 0.25)]}
    assert [len(draw_curves(found, [], 1).axes) for found in (layers, errors, layers | errors)] == [1, 1, 2]
