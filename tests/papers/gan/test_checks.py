"""What a GAN refuses, of its arguments and of the images it is given."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pl_losses import GAN
from pl_losses.data import Digits


def make(**options):
    return GAN(**{"architecture": "mlp", "width": 8, "latent_size": 8} | options)


def trainer(**options):
    quiet = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger")
    return pl.Trainer(
        accelerator="cpu", **dict.fromkeys(quiet, False) | {"limit_val_batches": 0, "max_steps": 1} | options
    )


def data():
    return Digits(batch_size=16, low=-1.0, high=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "`width` to be at least 1 but got 0"),
        ({"architecture": "vit"}, '`architecture` to be "dcgan" or "mlp" but got \'vit\''),
        ({"smoothing": 1.0}, r"`smoothing` in \[0, 1\) but got 1.0"),
        ({"ema": 1.0}, r"`ema` in \[0, 1\) or None but got 1.0"),
        ({"gradient_clip": 0}, "`gradient_clip` to be positive or None but got 0"),
        ({"mean": [0.5]}, "`mean` (to be|and `std`)"),
        ({"ema": "x"}, r"`ema` to be a number or None but got 'x'"),
        ({"smoothing": "a"}, r"`smoothing` to be a number but got 'a'"),
        ({"gradient_clip": "1"}, "`gradient_clip` to be a number or None but got '1'"),
        ({"mean": 0.5, "std": 0.5}, "`mean` (to be|and `std`)"),
        ({"mean": [0.0], "std": [0.0]}, "`std` to be positive numbers but got 0.0"),
        ({"seed": "a"}, "`seed` to be an integer but got 'a'"),
        ({"accumulate": 1.5}, "`accumulate` to be an integer but got 1.5"),
    ],
)
def test_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(**options)


def test_optimizers_are_refused_if_they_are_no_functions():
    with pytest.raises(TypeError, match="`generator_optimizer` to be a function of the parameters"):
        make(generator_optimizer=0.1)


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_networks_are_made_by_functions(name):
    with pytest.raises(TypeError, match=f"`{name}` to be a function that makes a module, .* but got Linear"):
        make(**{name: nn.Linear(8, 8)})
    with pytest.raises(TypeError, match=f"`{name}` to make a torch.nn.Module but got None"):
        make(**{name: lambda: None})


class Oblong(GAN):
    """Makes images of a size of its own."""

    def configure_generator(self):
        return nn.Sequential(nn.Linear(8, 16 * 24), nn.Tanh(), nn.Unflatten(1, (1, 16, 24)))

    def configure_discriminator(self):
        return nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(0))


def test_images_are_compared_with_those_of_the_generator():
    oblong = torch.rand(6, 1, 16, 24) * 2 - 1
    model = Oblong(latent_size=8)
    trainer().fit(model, DataLoader(oblong, 3))
    assert model.sample(2).shape == (2, 1, 16, 24)
    message = r"images of shape \[B, 1, 16, 24\] as the generator makes them .* but got \[B, 1, 32, 32\]"
    with pytest.raises(ValueError, match=message):
        trainer().fit(Oblong(latent_size=8), data())
    with pytest.raises(ValueError, match=message):
        trainer().test(Oblong(latent_size=8), data(), verbose=False)


def test_batches_of_other_kinds():
    images = torch.rand(6, 1, 32, 32)
    with pytest.raises(TypeError, match=r"`batch` of GAN to be a tensor .* but got a dict of .image."):
        trainer().fit(make(), DataLoader([{"image": image} for image in images], 2))
    with pytest.raises(ValueError, match=r"pixels in \[-1, 1\] but got \[0, 2"):
        trainer().fit(make(), DataLoader((255 * images).to(torch.uint8), 2))
    with pytest.warns(UserWarning, match="No pixel of the first batch is negative"):
        trainer().fit(make(), DataLoader(images.double(), 2))


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_samples_are_counted(count):
    with pytest.raises((TypeError, ValueError), match=r"`count` to be (at least 1|an integer)"):
        make().sample(count)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"pixels in \[-1, 1\] but got \[-0.1, 1.1"):
        trainer().fit(make(), Digits(batch_size=64))
    with pytest.raises(ValueError, match=r"shape \[B, 1, 28, 28\] .* but got \[B, 1, 32, 32\]"):
        trainer().fit(make(image_size=28), data())
    with pytest.raises(ValueError, match=r"`noise` of shape \[B, 8\] but got \[2, 9\]"):
        make()(torch.zeros(2, 9))
