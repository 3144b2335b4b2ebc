"""Section 7.2's average against its closed form."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy

from pl_losses.data import BatchLoader
from pl_losses.papers.adam import LogisticRegression, TemporalAveraging

STEPS, BETA2 = 7, 0.8


class Weights(pl.Callback):
    """Writes down the weights after each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append([parameter.detach().clone() for parameter in pl_module.parameters()])


def fit(steps, *after, resume=None, average=None, save=None):
    model = LogisticRegression(
        in_features=3, num_classes=2, optimizer=lambda p: torch.optim.SGD(p, lr=0.5)
    ).double()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4 * STEPS, 3, generator=generator, dtype=torch.float64)
    batches = BatchLoader((inputs, torch.tensor([0, 1, 1, 0] * STEPS)), 4)
    weights = Weights()
    trainer = pl.Trainer(
        **{"logger": False, "accelerator": "cpu", "enable_progress_bar": False},
        **{"enable_model_summary": False, "enable_checkpointing": False},
        max_steps=steps,
        callbacks=[weights, average or TemporalAveraging(BETA2), *after],
    )
    trainer.fit(model, batches, batches, ckpt_path=resume)
    if save:
        trainer.save_checkpoint(save)
    return model, weights.seen


def closed_form(seen):
    """(1 - beta2) sum_i beta2^(t - i) theta_i / (1 - beta2^t)."""
    t = len(seen)
    total = [torch.zeros_like(weight) for weight in seen[0]]
    for i, weights in enumerate(seen, 1):
        total = [sum_ + (1 - BETA2) * BETA2 ** (t - i) * w for sum_, w in zip(total, weights, strict=True)]
    return [sum_ / (1 - BETA2**t) for sum_ in total]


@pytest.mark.filterwarnings("error:.*WeightAveraging")
def test_it_is_the_closed_form(tmp_path):
    path = tmp_path / "three.ckpt"
    model, seen = fit(STEPS, Save(path))
    assert len(seen) == STEPS
    for got, wanted in zip(model.parameters(), closed_form(seen), strict=True):
        torch.testing.assert_close(got.detach(), wanted, rtol=1e-12, atol=1e-12)
    # Training itself went on with the weights, not with their average.
    assert not torch.equal(seen[-1][0], model.network[1].weight)
    state = torch.load(path, weights_only=True)["state_dict"]
    for name, wanted in zip(("network.1.weight", "network.1.bias"), closed_form(seen[:3]), strict=True):
        torch.testing.assert_close(state[name], wanted, rtol=1e-12, atol=1e-12)


class SaveInValidation(pl.Callback):
    """Saves a checkpoint while the average is evaluated, as when that is interrupted."""

    def __init__(self, path):
        self.path = path

    def on_validation_epoch_start(self, trainer, *_):
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)


class Save(pl.Callback):
    """Saves a checkpoint after the third step."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)


def test_a_resumed_run_ends_with_the_same_average(tmp_path):
    path = tmp_path / "three.ckpt"
    whole, _ = fit(STEPS, Save(path))
    resumed, seen = fit(STEPS, resume=path)
    assert len(seen) == STEPS - 3
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("late", [True, False])
def test_training_goes_on_from_a_checkpoint_saved_after_a_fit_or_in_validation(tmp_path, late):
    path = tmp_path / "three.ckpt"
    whole, _ = fit(2 * STEPS)
    fit(STEPS, save=path) if late else fit(STEPS, SaveInValidation(path))
    resumed, seen = fit(2 * STEPS, resume=path)
    assert len(seen) == STEPS
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_second_fit_has_an_average_of_its_own():
    average = TemporalAveraging(BETA2)
    fit(STEPS, average=average)
    for steps in (2, STEPS):
        model, seen = fit(steps, average=average)
        for got, wanted in zip(model.parameters(), closed_form(seen), strict=True):
            torch.testing.assert_close(got.detach(), wanted, rtol=1e-12, atol=1e-12)


def test_counters_are_copied_and_other_buffers_averaged():
    average = TemporalAveraging(0.5)
    mean, count = torch.tensor([0.0]), torch.tensor([3])
    average.move([mean], [torch.tensor([3.0])], torch.tensor(1))
    average.move([count], [torch.tensor([4])], torch.tensor(1))
    assert mean.item() == pytest.approx(3 * 0.5 / 0.75)
    assert count.item() == 4


def test_bad_arguments():
    with pytest.raises(ValueError, match="`beta2` in"):
        TemporalAveraging(1.0)
    trainer = type("Trainer", (), {"strategy": FSDPStrategy()})()
    with pytest.raises(ValueError, match="keeps the weights whole"):
        TemporalAveraging().setup(trainer, LogisticRegression(), "fit")


def test_files_without_the_average_are_refused(tmp_path):
    trainer = pl.Trainer(
        logger=False,
        accelerator="cpu",
        max_steps=1,
        callbacks=[TemporalAveraging(BETA2), ModelCheckpoint(tmp_path, save_weights_only=True)],
    )
    model = LogisticRegression(in_features=3, num_classes=2)
    with pytest.raises(ValueError, match="`save_weights_only` false for TemporalAveraging"):
        trainer.fit(model, BatchLoader((torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)), 4))
