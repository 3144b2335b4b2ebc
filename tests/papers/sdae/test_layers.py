"""Layers of one's own, single autoencoders, and what their codes are good for."""

import pytest
import torch
from papers.sdae.stacks import data, make, train
from torch import nn
from torch.nn import functional as F

from pl_losses import DenoisingAutoencoder, StackedDenoisingAutoencoder
from pl_losses.papers.sdae import AutoencoderLayer
from pl_losses.papers.sdae.features import FrozenEncoder, svm_errors


class ConvLayer(AutoencoderLayer):
    """A convolution, decoded by its transpose with the same weights."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(outputs, inputs, 4, 4))
        self.hidden_bias = nn.Parameter(torch.zeros(outputs))
        self.visible_bias = nn.Parameter(torch.zeros(inputs))

    def encode(self, inputs):
        return F.conv2d(inputs, self.weight, self.hidden_bias, stride=4).sigmoid()

    def decode(self, codes):
        return F.conv_transpose2d(codes, self.weight, self.visible_bias, stride=4)

    def encoder_parameters(self):
        return self.weight, self.hidden_bias


class ConvStack(StackedDenoisingAutoencoder):
    def configure_layer(self, index, in_features, hidden):
        return ConvLayer(in_features, hidden)

    def prepare_input(self, inputs):
        return inputs

    def configure_head(self):
        return nn.Linear(self.hidden[-1] * 4, self.num_classes)


def test_convolutional_layers_by_the_hooks(tmp_path):
    model = make(ConvStack, in_features=1, hidden=[4, 6])
    trainer = train(tmp_path, epochs=3)
    trainer.fit(model, data())
    assert trainer.logged_metrics["val/reconstruction_2"] > 0
    assert model.codes(torch.rand(3, 1, 32, 32)).shape == (3, 6, 2, 2)
    assert model.sample(torch.rand(3, 1, 32, 32), 2).shape == (2, 3, 1, 32, 32)


def test_samples_are_means_given_binary_units_drawn_from_the_layer_above():
    model = make()
    images = torch.rand(3, 1, 32, 32)
    samples = model.sample(images, 4)
    assert samples.shape == (4, 3, 1024)
    assert ((samples > 0) & (samples < 1)).all()
    assert not torch.equal(samples[0], samples[1])
    assert torch.equal(samples, model.sample(images, 4))
    # With units that are sure of themselves nothing is left to chance: up by means, down by rounded ones.
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.mul_(1e4)
            layer.hidden_bias.add_(1.0)
            layer.visible_bias.add_(1.0)
    down = model.codes(images).round()
    for layer in reversed(model.layers):
        means = layer.decode(down).sigmoid()
        down = means.round()
    torch.testing.assert_close(model.sample(images, 2), means.expand(2, -1, -1))


def test_one_autoencoder_learns_to_denoise(tmp_path):
    torch.manual_seed(0)
    model = DenoisingAutoencoder(
        1024, 50, corruption="salt_and_pepper", level=0.2, optimizer=lambda p: torch.optim.Adam(p, 5e-3)
    )
    trainer = train(tmp_path, epochs=4, inference_mode=False)
    (before,) = trainer.validate(model, data(), verbose=False)
    trainer.fit(model, data(batch_size=60))
    (after,) = trainer.test(model, data(), verbose=False)
    # 0.37 to 0.39 of it for six seeds, on each instruction set.
    assert after["test/loss"] < 0.8 * before["val/loss"]


def test_a_frozen_encoder_for_other_classifiers():
    model = make()
    encoder = FrozenEncoder(model, depth=2)
    images = torch.rand(3, 1, 32, 32)
    assert torch.equal(encoder(images), model.codes(images, 2))
    network = nn.Sequential(encoder, nn.Linear(16, 10))
    network(images).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is not None] == ["1.weight", "1.bias"]
    with pytest.raises(ValueError, match=r"`depth`.*0\.\.3 but got 4"):
        FrozenEncoder(model, 4)


def test_support_vector_machines_on_codes():
    found = svm_errors(make(), data(limit=300), depths=(0, 1), c_values=(1.0, 10.0))
    # Of the pixels themselves: 0.06 to 0.07 for six splits.
    assert found[0]["error"] < 0.3
    assert set(found) == {0, 1}
    for options in ({"depths": (4,)}, {"c_values": ()}, {"kernel": "poly"}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
            svm_errors(make(), data(), **options)
