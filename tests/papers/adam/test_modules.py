"""The experiments' modules: shapes, the variational bound, the schedule, the counterexample."""

import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional as F

from pl_losses.data import BatchLoader
from pl_losses.papers.adam import (
    MLP,
    VAE,
    Adam,
    AMSGradCounterexample,
    ConvNet,
    InverseSqrtLR,
    LogisticRegression,
    bernoulli_error,
    kl_to_standard_normal,
)

QUIET = {
    "logger": False,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bound_is_that_of_torch_distributions():
    mean, log_variance, logits = normal(3, 4), normal(3, 4, seed=1), normal(3, 5, seed=2)
    target = (normal(3, 5, seed=3) > 0).double()
    posterior = Normal(mean, (log_variance / 2).exp())
    divergence = kl_divergence(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum(1)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), divergence)
    error = -Bernoulli(logits=logits).log_prob(target).sum(1)
    torch.testing.assert_close(bernoulli_error(logits, target), error)
    inputs = [tensor.requires_grad_() for tensor in (mean, log_variance)]
    assert torch.autograd.gradcheck(kl_to_standard_normal, inputs)
    assert torch.autograd.gradcheck(lambda values: bernoulli_error(values, target), logits.requires_grad_())


def test_bound_does_not_overflow_and_refuses_other_shapes():
    assert bernoulli_error(torch.tensor([[1e4, -1e4]]), torch.tensor([[1.0, 0.0]])).item() == 0
    assert bernoulli_error(torch.zeros(1, 2, dtype=torch.bfloat16), torch.ones(1, 2)).dtype == torch.float32
    with pytest.raises(ValueError, match=r"`target` of shape \[2, 3\] but got \[2, 4\]"):
        bernoulli_error(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"`log_variance` of shape \[2, 3\] but got \[2\]"):
        kl_to_standard_normal(torch.zeros(2, 3), torch.zeros(2))


def test_loss_of_the_autoencoder_is_the_bound_with_the_given_noise():
    torch.manual_seed(0)
    vae = VAE(in_features=6, hidden_size=5, latent_size=2).double()
    target, noise = (normal(4, 6) > 0).double(), normal(4, 2, seed=1)
    first, _, second = vae.encoder
    mean, log_variance = second(F.softplus(first(target))).split(2, dim=1)
    first, _, second = vae.decoder
    logits = second(F.softplus(first(mean + (log_variance / 2).exp() * noise)))
    reconstruction, divergence = vae.compute_loss(target, noise)
    torch.testing.assert_close(reconstruction, bernoulli_error(logits, target))
    torch.testing.assert_close(divergence, kl_to_standard_normal(mean, log_variance))


def test_images_are_made_binary_and_noise_is_that_of_the_key():
    vae = VAE(in_features=4, hidden_size=3, latent_size=2)
    images = torch.tensor([[[0.0, 0.4], [0.6, 1.0]]])
    assert vae.prepare_target(images).tolist() == [[0, 0, 1, 1]]
    noise = [
        vae.draw_noise(torch.zeros(200, 4), *key)
        for key in (("train", 0, 1), ("train", 0, 1), ("train", 0, 2))
    ]
    assert noise[0].shape == (200, 2)
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    assert noise[0].std().item() == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match=r"4 pixels \(`in_features`\) but got 9"):
        vae(torch.zeros(2, 3, 3))


def test_a_short_fit_lowers_the_bound():
    torch.manual_seed(0)
    vae = VAE(in_features=16, hidden_size=8, latent_size=2, optimizer=lambda p: Adam(p, lr=0.01))
    images = (torch.rand(1, 16) > 0.5).float().expand(40, 16).reshape(40, 4, 4)
    batches = BatchLoader((images, torch.zeros(40)), 40)
    trainer = pl.Trainer(**QUIET, max_epochs=60)
    (before,) = trainer.test(vae, batches, verbose=False)
    trainer.fit(vae, batches, batches)
    (after,) = trainer.test(vae, batches, verbose=False)
    # 0.04 to 0.07 of it for six seeds, on each instruction set.
    assert after["test/loss"] < before["test/loss"] / 2
    assert after["test/loss"] == pytest.approx(after["test/reconstruction"] + after["test/kl"], rel=1e-5)
    prediction = trainer.predict(vae, batches)[0]
    assert {name: tuple(value.shape) for name, value in prediction.items()} == {
        "mean": (40, 2),
        "log_variance": (40, 2),
        "reconstruction": (40, 16),
    }


def test_layers_of_the_convolutional_network_are_the_papers():
    kinds = {nn.Conv2d: "out_channels", nn.Linear: "out_features"}
    net = ConvNet()
    widths = [getattr(layer, kinds[type(layer)]) for layer in net.network if type(layer) in kinds]
    assert widths == [64, 64, 128, 1000, 10]
    assert net.network[-4].in_features == 128 * 4 * 4
    assert [layer.p for layer in net.network if isinstance(layer, nn.Dropout)] == [0.2, 0.5]
    for size in (28, 33):
        small = ConvNet(in_channels=1, image_size=size, out_channels=[2, 2, 3], hidden_size=4)
        assert small(torch.zeros(2, 1, size, size)).shape == (2, 10)


def test_logistic_regression_drops_features_in_training_only():
    model = LogisticRegression(in_features=100, num_classes=2, p=0.5)
    nn.init.ones_(model.network[1].weight)
    torch.manual_seed(0)
    kept = model(torch.ones(1, 100))[0, 0].item() / 2
    assert 30 < kept < 70
    assert model.eval()(torch.ones(1, 100))[0, 0].item() == 100


def test_schedule_is_alpha_over_the_root_of_t_every_step():
    model = LogisticRegression(
        in_features=4, optimizer=lambda p: torch.optim.SGD(p, lr=0.3), lr_scheduler=InverseSqrtLR
    )
    rates = []

    class Rates(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    batches = BatchLoader((torch.ones(6, 4), torch.tensor([0, 1] * 3)), 2)
    pl.Trainer(**QUIET, max_epochs=2, callbacks=[Rates()]).fit(model, batches)
    assert rates == pytest.approx([0.3 / math.sqrt(t) for t in range(1, 7)])


def test_other_schedules_move_once_an_epoch():
    model = MLP(in_features=4, hidden=[3], lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1))
    assert model.configure_optimizers()["lr_scheduler"]["interval"] == "epoch"


@pytest.mark.parametrize(("amsgrad", "low", "high"), [(False, 0.9, 1.0), (True, -1.0, -0.9)])
def test_counterexample_drives_adam_to_the_worst_point(amsgrad, low, high):
    model = AMSGradCounterexample(
        steps=200,
        optimizer=lambda p: Adam(p, lr=0.5, betas=(0.0, 0.1), eps=0.0, amsgrad=amsgrad),
        lr_scheduler=InverseSqrtLR,
    )
    trainer = pl.Trainer(**QUIET, max_epochs=1)
    trainer.fit(model)
    assert low <= model.x.item() <= high
    (tested,) = trainer.test(model, verbose=False)
    assert tested["test/loss"] == pytest.approx(model.x.item() / 3)
    # The regret of Adam does not shrink: (C - 2) / 3 * 2 per step at x = +1.
    assert (model.regret / 200 > 0.5) is not amsgrad


def test_regret_is_of_one_fit_however_often_it_was_interrupted(tmp_path):
    losses = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(outputs["loss"].item() + pl_module.objective(trainer.global_step))

    def fit(model, epochs, path=None):
        trainer = pl.Trainer(**QUIET, max_epochs=epochs, callbacks=[Losses()])
        trainer.fit(model, ckpt_path=path)
        return trainer

    model = AMSGradCounterexample(steps=50, optimizer=lambda p: Adam(p, lr=0.01))
    fit(model, 1).save_checkpoint(path := tmp_path / "a.ckpt")
    fit(again := AMSGradCounterexample(steps=50, optimizer=lambda p: Adam(p, lr=0.01)), 2, path)
    assert len(losses) == 100
    assert again.regret == pytest.approx(math.fsum(losses), rel=1e-13)
    losses.clear()
    for model in (again, AMSGradCounterexample.load_from_checkpoint(path)):
        model.steps = 50
        fit(model, 1)
        assert model.regret == pytest.approx(math.fsum(losses), rel=1e-13)
        losses.clear()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: LogisticRegression(p=1.0), "p"),
        (lambda: MLP(hidden=[]), "hidden"),
        (lambda: MLP(hidden=[10, 0]), "hidden"),
        (lambda: ConvNet(input_p=-0.1), "input_p"),
        (lambda: ConvNet(image_size=7), "image_size"),
        (lambda: VAE(latent_size=0), "latent_size"),
        (lambda: AMSGradCounterexample(slope=2.0), "slope"),
        (lambda: AMSGradCounterexample(steps=0), "steps"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make()


def test_inputs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\[B, 784\] but got \[2, 1024\]"):
        MLP()(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"\[B, 3, 32, 32\] but got \[2, 1, 32, 32\]"):
        ConvNet()(torch.zeros(2, 1, 32, 32))
