import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pl_losses import FullBasicModel
from pl_losses.losses import discriminator_loss, generator_loss
from pl_losses.papers.gan import LinearLayer
from pl_losses.papers.gan.networks import (
    DCGANDiscriminator,
    DCGANGenerator,
    MLPDiscriminator,
    MLPGenerator,
)


def test_linear_layer_is_an_affine_map():
    torch.manual_seed(0)
    layer = LinearLayer(5, 3).double()
    inputs = torch.randn(2, 4, 5, dtype=torch.float64)
    torch.nn.init.normal_(layer.b)
    expected = F.linear(inputs, layer.w.T, layer.b)
    torch.testing.assert_close(layer(inputs), expected)
    assert [name for name, _ in layer.named_parameters()] == ["w", "b"]


def test_linear_layer_keeps_the_variance_at_the_start():
    torch.manual_seed(0)
    outputs = LinearLayer(400, 300)(torch.randn(500, 400))
    assert float(outputs.var()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("sizes", [(2.5, 3), (True, 3), (3, 0)])
def test_linear_layer_refuses(sizes):
    with pytest.raises((TypeError, ValueError), match=r"_features` to be (an integer|at least 1) but got"):
        LinearLayer(*sizes)
    with pytest.raises((TypeError, ValueError), match=r"`activations` of shape \[..., 5\] but got \[2, 4\]"):
        LinearLayer(5, 3)(torch.zeros(2, 4))
    assert str(LinearLayer(5, 3)) == "LinearLayer(in_features=5, out_features=3)"


def test_full_basic_model_by_hand():
    torch.manual_seed(0)
    model = FullBasicModel()
    images = torch.randn(3, 1, 9, 7)
    maps = F.conv2d(images, model.conv.weight, model.conv.bias)
    pooled = torch.stack([maps[:, c].clamp_min(0).mean(dim=(1, 2)) for c in range(128)], dim=1)
    torch.testing.assert_close(model(images), pooled @ model.fc.w + model.fc.b)
    probabilities = model.class_probabilities(model(images))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))
    with pytest.raises(ValueError, match=r"`images` of shape \[B, 1, H, W\] but got \[3, 3, 9, 7\]"):
        model(torch.zeros(3, 3, 9, 7))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_the_listings_from_probabilities(smoothing):
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(7, dtype=torch.float64, generator=generator) for _ in range(2))
    labels = torch.full((7,), 1 - smoothing, dtype=torch.float64)
    by_hand = F.binary_cross_entropy(real.sigmoid(), labels)
    by_hand += F.binary_cross_entropy(fake.sigmoid(), torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(discriminator_loss(real, fake, smoothing=smoothing), by_hand)
    torch.testing.assert_close(generator_loss(fake), -fake.sigmoid().log().mean())


def test_losses_have_their_derivatives():
    real, fake = torch.randn(2, 5, dtype=torch.float64, requires_grad=True).unbind()
    real, fake = real.detach().requires_grad_(), fake.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda r, f: discriminator_loss(r, f, smoothing=0.2), (real, fake))
    assert torch.autograd.gradcheck(generator_loss, fake)
    # Non-saturating: where D is sure of a fake, the gradient is as large as it gets.
    (slope,) = torch.autograd.grad(generator_loss(sure := torch.tensor([-100.0], requires_grad=True)), sure)
    torch.testing.assert_close(slope, torch.tensor([-1.0]))


def test_losses_at_extreme_logits_and_in_half_precision():
    far = torch.tensor([1e4, -1e4])
    assert float(discriminator_loss(far, far)) == pytest.approx(1e4)
    half = torch.tensor([3.0, -2.0], dtype=torch.bfloat16)
    assert discriminator_loss(half, half).dtype == generator_loss(half).dtype == torch.float32


def test_losses_refuse():
    logits = torch.zeros(2)
    with pytest.raises((TypeError, ValueError), match=r"`real_logits` of at least one sample but got \[0\]"):
        discriminator_loss(logits[:0], logits)
    with pytest.raises((TypeError, ValueError), match=r"`fake_logits` of at least one sample but got \[0\]"):
        generator_loss(logits[:0])
    with pytest.raises((TypeError, ValueError), match=r"`smoothing` in \[0, 1\) but got 1"):
        discriminator_loss(logits, logits, smoothing=1)
    with pytest.raises(TypeError, match="`fake_logits` to be a dense, real tensor but got"):
        generator_loss([1.0, 2.0])


@pytest.mark.parametrize("size", [28, 32, 64])
def test_dcgan_pair_fits_together(size):
    generator, discriminator = DCGANGenerator(5, 3, size, width=2), DCGANDiscriminator(3, size, width=2)
    images = generator(torch.randn(2, 5))
    assert images.shape == (2, 3, size, size)
    assert float(images.abs().max()) <= 1
    assert discriminator(images).shape == (2,)
    weights = [m.weight for m in generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    # One is narrower than the one before; the last makes the image.
    assert [w.shape[0] for w in weights] == [2 * 2**k for k in range(len(weights) - 1, -1, -1)]


@pytest.mark.parametrize("size", [28, 32])
def test_dcgan_pair_computes_as_with_the_usual_layers(size):
    torch.manual_seed(0)
    pair = nn.Sequential(DCGANGenerator(5, 3, size, width=2), DCGANDiscriminator(3, size, width=2)).double()
    usual = copy.deepcopy(pair)
    generator, discriminator = usual
    generator[1] = nn.Unflatten(1, generator[1].unflattened_size)
    discriminator[-3] = nn.Flatten()
    linear = nn.Linear(discriminator[-2].in_features, 1).double()
    linear.load_state_dict(discriminator[-2].state_dict())
    discriminator[-2] = linear
    noise = torch.randn(3, 5, dtype=torch.float64)
    for network in (pair, usual):
        network(noise).square().sum().backward()
    torch.testing.assert_close(pair(noise), usual(noise))
    for one, other in zip(pair.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_dcgan_pair_keeps_the_channels_side_by_side():
    pair = nn.Sequential(DCGANGenerator(5, 3, 28, width=2), DCGANDiscriminator(3, 28, width=2))
    layouts = []

    def look(gradient):
        layouts.append(gradient.is_contiguous(memory_format=torch.channels_last))

    def note(layer, inputs, output):
        assert output.is_contiguous(memory_format=torch.channels_last), layer
        output.register_hook(look)

    for layer in pair.to(memory_format=torch.channels_last).modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(note)
    pair(torch.randn(3, 5)).sum().backward()
    assert layouts == [True] * 7


def test_mlp_pair_fits_any_size():
    images = MLPGenerator(5, 1, 9, width=3)(torch.randn(2, 5))
    assert images.shape == (2, 1, 9, 9)
    assert MLPDiscriminator(1, 9, width=3)(images).shape == (2,)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="`image_size` to be one of 28, 32, 64 but got 30"):
        DCGANGenerator(image_size=30)
