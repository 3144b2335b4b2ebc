import copy
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pl_losses import GAN
from pl_losses.callbacks import GANReport
from pl_losses.core.rng import standard_normal
from pl_losses.data import Digits
from pl_losses.papers.gan.passes import frozen

SMALL = {"architecture": "mlp", "width": 8, "latent_size": 8}


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1)


def make(**options):
    torch.manual_seed(3)
    options = {"generator_optimizer": sgd, "discriminator_optimizer": sgd} | SMALL | options
    return GAN(**options)


def trainer(**options):
    quiet = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger")
    options = dict.fromkeys(quiet, False) | {"limit_val_batches": 0} | options
    return pl.Trainer(accelerator="cpu", **options)


def data(batch_size=16, **options):
    return Digits(batch_size=batch_size, low=-1.0, high=1.0, **options)


class Batches(pl.Callback):
    """Keeps the images of each batch, and what the optimizers were given."""

    def __init__(self):
        self.images, self.gradients = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.images.append(batch[0].clone())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.gradients.append([p.grad.clone() for p in parameters])


def listing(model, batches, optimizer):
    """Listing 2 line by line, with the zero_grad it forgets, in the order it has."""
    netG, netD = copy.deepcopy(model.generator), copy.deepcopy(model.discriminator)
    optimG, optimD = optimizer(netG.parameters()), optimizer(netD.parameters())
    for index, real in enumerate(batches):
        noise = standard_normal(len(real), 8, model.seed, "train", 0, index)
        real_label, fake_label = torch.ones(len(real)), torch.zeros(len(real))
        optimD.zero_grad()
        F.binary_cross_entropy_with_logits(netD(real), real_label).backward()
        fake = netG(noise)
        F.binary_cross_entropy_with_logits(netD(fake.detach()), fake_label).backward()
        optimD.step()
        optimG.zero_grad()
        F.binary_cross_entropy_with_logits(netD(fake), real_label).backward()
        optimG.step()
    return netG, netD


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-3)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(sgd, SMALL), (adam, SMALL), (sgd, {"architecture": "dcgan", "width": 2})],
    ids=["sgd", "adam", "dcgan"],
)
def test_the_step_is_the_listings(optimizer, options):
    torch.set_default_dtype(torch.float64)  # Sums in another order round otherwise.
    try:
        model = make(generator_optimizer=optimizer, discriminator_optimizer=optimizer, **options)
        start = copy.deepcopy(model)
        seen = Batches()
        trainer(max_steps=3, callbacks=[seen], precision="64-true").fit(model, data())
        netG, netD = listing(start, seen.images, optimizer)
    finally:
        torch.set_default_dtype(torch.float32)
    for mine, theirs in ((model.generator, netG), (model.discriminator, netD)):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=1e-9, atol=1e-10)


def test_the_generator_is_called_once_and_nothing_leaks():
    calls = []

    class Counted(GAN):
        def configure_generator(self):
            network = super().configure_generator()
            network.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
            return network

        def compute_generator_loss(self, fake_logits):
            assert not any(p.requires_grad for p in self.discriminator.parameters())
            return super().compute_generator_loss(fake_logits)

        def on_train_batch_end(self, *_):
            # What the discriminator's step left: no gradient of the generator's loss on top.
            self.after = [p.grad.clone() for p in self.discriminator.parameters()]

    model = Counted(**SMALL, generator_optimizer=sgd, discriminator_optimizer=sgd)
    seen = Batches()
    trainer(max_steps=2, callbacks=[seen]).fit(model, data())
    assert calls == [True, True]
    assert len(seen.gradients) == 4
    torch.testing.assert_close(model.after, seen.gradients[2], rtol=0, atol=0)
    assert all(p.requires_grad for p in model.discriminator.parameters())


def test_frozen_leaves_what_was_frozen_before():
    layers = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).requires_grad_(False))

    def fail():
        with frozen(layers):
            assert not any(p.requires_grad for p in layers.parameters())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [p.requires_grad for p in layers.parameters()] == [True, True, False, False]


def test_a_batch_counts_once(tmp_path):
    logger = CSVLogger(tmp_path)
    model = make()
    made = trainer(max_steps=7, logger=logger, log_every_n_steps=2)
    made.fit(model, data())
    assert made.global_step == 7
    assert made.fit_loop.epoch_loop._batches_that_stepped == 7
    rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 3
    steps = [int(row.split(",")[rows[0].split(",").index("step")]) for row in rows[1:]]
    assert steps == [1, 3, 5]


def test_resumed_as_if_never_stopped(tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "3.ckpt")

    options = {"generator_optimizer": adam, "discriminator_optimizer": adam, "discriminator_steps": 2}
    whole = make(ema=0.5, **options)
    trainer(max_steps=6, callbacks=[Save()]).fit(whole, data())
    resumed = make(ema=0.5, **options)
    again = trainer(max_steps=6)
    again.fit(resumed, data(), ckpt_path=tmp_path / "3.ckpt", weights_only=True)
    assert again.global_step == 6
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    loaded = GAN.load_from_checkpoint(tmp_path / "3.ckpt", weights_only=True)
    assert loaded.hparams.width == 8


def test_accumulated_batches_are_one_large_batch():
    class Joined(GAN):
        def sample_noise(self, count, *key):
            # The noise of the two halves.
            halves = [standard_normal(8, 8, 0, "train", 0, 2 * key[-1] + half) for half in range(2)]
            return torch.cat(halves)

    one = Joined(**SMALL, generator_optimizer=sgd, discriminator_optimizer=sgd)
    two = make(accumulate=2)
    two.load_state_dict(one.state_dict())
    # Not shuffled: two halves are the whole.
    for model, size, batches in ((one, 16, 3), (two, 8, 6)):
        made = trainer(max_epochs=1, overfit_batches=batches)
        made.fit(model, data(size))
        assert made.global_step == 3
    torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=1e-5, atol=1e-6)


class Parts(GAN):
    """The noise of a batch is that of its parts of 8."""

    ratio = 1

    def sample_noise(self, count, *key):
        starts = range(0, count, 8)
        parts = [
            standard_normal(min(8, count - start), 8, key[-1] * self.ratio + start // 8) for start in starts
        ]
        return torch.cat(parts)


@pytest.mark.parametrize(("accumulate", "large"), [(2, 16), (3, 24), (4, 32)])
def test_what_is_left_at_the_end_of_an_epoch_is_one_batch(accumulate, large):
    # Batches of 8, 8 and 4: a window that lacks one, a window with a shorter batch, and both.
    images = torch.rand(20, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    options = SMALL | {"generator_optimizer": sgd, "discriminator_optimizer": sgd}
    one, two = Parts(**options), Parts(**options, accumulate=accumulate)
    one.ratio = accumulate
    two.load_state_dict(one.state_dict())
    for model, size in ((one, large), (two, 8)):
        made = trainer(max_epochs=2)
        made.fit(model, DataLoader(images, size))
        assert made.global_step == 2 * -(-20 // large)
    torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=1e-5, atol=1e-6)


def test_a_loss_of_the_generator_that_is_not_finite_stops_before_its_step():
    class Broken(GAN):
        def compute_generator_loss(self, fake_logits):
            return super().compute_generator_loss(fake_logits) * torch.nan

    model = Broken(**SMALL, generator_optimizer=sgd, discriminator_optimizer=sgd)
    before = copy.deepcopy(model.generator.state_dict())
    with pytest.raises(FloatingPointError, match="a finite loss but got nan"):
        trainer(max_epochs=1, limit_train_batches=1).fit(model, data())
    torch.testing.assert_close(model.generator.state_dict(), before, rtol=0, atol=0)


def test_an_unfinished_accumulation_steps_at_the_end_of_the_epoch():
    model = make(accumulate=3)
    made = trainer(max_epochs=2, limit_train_batches=4)
    made.fit(model, data())
    assert made.global_step == 4
    assert model._noise == []


@pytest.mark.parametrize(
    ("option", "own"), [("accumulate_grad_batches", "accumulate"), ("gradient_clip_val", "gradient_clip")]
)
def test_the_trainers_options_for_one_optimizer_are_refused_by_the_models_own(option, own):
    with pytest.raises(
        ValueError, match=f"`{option}` of the Trainer .* but got 2: set `{own}` of the model to 2"
    ):
        trainer(fast_dev_run=1, **{option: 2}).fit(make(), data())


def test_the_generator_steps_with_every_third_step():
    model = make(discriminator_steps=3, ema=0.5)
    seen = Batches()
    made = trainer(max_steps=7, callbacks=[seen])
    made.fit(model, data())
    assert made.global_step == 7
    discriminator = len(list(model.discriminator.parameters()))
    of_generator = [i for i, g in enumerate(seen.gradients) if len(g) != discriminator]
    assert of_generator == [3, 7]


def test_gradients_are_clipped_by_network():
    model = make(gradient_clip=1e-3)
    trainer(max_steps=2).fit(model, data())
    for network in (model.generator, model.discriminator):
        norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in network.parameters()]))
        torch.testing.assert_close(norm, torch.tensor(1e-3), rtol=1e-3, atol=0)


def test_the_moving_average_is_that_of_the_weights():
    weights = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            weights.append(pl_module.generator[0].weight.detach().clone())

    model = make(ema=0.15)
    trainer(max_steps=6, callbacks=[Keep()]).fit(model, data())
    expected = weights[0]
    for updates, weight in enumerate(weights[1:], 1):
        decay = min(0.15, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(model.average.module[0].weight, expected)
    assert model.sampler is model.average
    assert not any(p.requires_grad for p in model.average.parameters())
    assert make().sampler is not None


def test_checkpoints_with_an_average_and_without(tmp_path):
    model = make(ema=0.9)
    made = trainer(max_steps=2)
    made.fit(model, data())
    made.save_checkpoint(tmp_path / "with.ckpt")
    without = GAN.load_from_checkpoint(tmp_path / "with.ckpt", ema=None, weights_only=True)
    assert without.average is None
    torch.testing.assert_close(without.sample(2), model.generator.eval()(model.fixed_noise(2, "sample", 0)))
    trainer(max_steps=1).fit(without, data())
    without.trainer.save_checkpoint(tmp_path / "without.ckpt")
    again = GAN.load_from_checkpoint(tmp_path / "without.ckpt", ema=0.5, weights_only=True)
    torch.testing.assert_close(again.sample(2), without.sample(2))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_true_precision(precision):
    model = make(generator_optimizer=adam, discriminator_optimizer=adam, ema=0.9)
    trainer(max_steps=2, precision=precision).fit(model, data())
    kind = {"64-true": torch.float64, "bf16-true": torch.bfloat16}[precision]
    images = model.sample(2)
    assert images.dtype == kind
    assert images.isfinite().all()


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(precision):
    # SGD: Adam makes the roundings of a gradient near zero a whole step. The clipping is always at work.
    model, reference = make(gradient_clip=0.1), make(gradient_clip=0.1)
    before = copy.deepcopy(model.state_dict())
    plugins = None
    if precision == "16-mixed":
        from lightning.pytorch.plugins import MixedPrecision

        plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))]
    options = {"plugins": plugins} if plugins else {"precision": precision}
    made = trainer(max_steps=3, **options)
    made.fit(model, data())
    assert made.global_step == 3
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    trainer(max_steps=3).fit(reference, data())
    for part in ("generator", "discriminator"):
        moves = []
        for fitted in (model, reference):
            state = getattr(fitted, part).state_dict()
            changes = {key: value - before[f"{part}.{key}"] for key, value in state.items()}
            assert all(change.any() for change in changes.values())
            moves.append(torch.cat([change.flatten() for change in changes.values()]))
        # Up to 0.017 for eight seeds, on each instruction set.
        assert 0 < (moves[0] - moves[1]).norm() < 0.1 * moves[1].norm()


def test_custom_networks_losses_and_normalised_images():
    class Hinge(GAN):
        def compute_discriminator_loss(self, real_logits, fake_logits):
            return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()

        def compute_generator_loss(self, fake_logits):
            return -fake_logits.mean()

    model = Hinge(
        latent_size=4,
        generator=lambda: nn.Sequential(nn.Linear(4, 1024), nn.Tanh(), nn.Unflatten(1, (1, 32, 32))),
        discriminator=lambda: nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.Conv2d(2, 1, 1)),
        mean=[0.1 / 1.275],
        std=[1 / 1.275],
    )
    # Digits' own range: -0.1 to 1.175.
    trainer(max_steps=2).fit(model, Digits(batch_size=8))
    images = model.images(torch.tensor([-0.1, 1.175])[:, None, None, None])
    torch.testing.assert_close(images.flatten(), torch.tensor([-1.0, 1.0]))


def test_evaluation_and_prediction_are_repeatable():
    model = make(ema=0.9)
    made = trainer(limit_val_batches=1)
    first = made.validate(model, data(), verbose=False)
    assert first == made.validate(model, data(), verbose=False)
    assert set(first[0]) == {"val/loss", "val/real_output", "val/fake_output"}
    tested = made.test(model, data(test_size=33, eval_batch_size=16), verbose=False)[0]
    assert set(tested) == {"test/loss", "test/real_output", "test/fake_output"}
    predicted = made.predict(model, data(test_size=33, eval_batch_size=16))
    assert [len(images) for images in predicted] == [16, 16, 1]
    torch.testing.assert_close(model.sample(70, seed=1)[:5], model.sample(5, seed=1))
    model.train()
    model.sample(2)
    assert model.generator.training


def test_the_keys_are_those_logged():
    model = make()
    made = trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    made.fit(model, data())
    logged = set(made.logged_metrics) | set(made.test(model, data(), verbose=False)[0])
    assert logged == set(GAN.KEYS)


def test_the_key_tables_of_the_document_are_the_codes():
    text = (Path(__file__).parents[3] / "docs" / "gan.md").read_text()
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, re.M))
    assert rows == GAN.KEYS | GANReport.KEYS
