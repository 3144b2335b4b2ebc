"""What is switched on and off, by behaviour and not by name: held against training mode and evaluation."""

import random
import re
import warnings
from copy import deepcopy

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchvision
from papers.dropout.sampling.called import Called
from papers.dropout.sampling.switched import P, inputs, rows
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.ops import DropBlock2d, DropBlock3d, StochasticDepth

from pl_losses.papers.dropout.monitor import DropoutUncertaintyMonitor
from pl_losses.papers.dropout.sampling.sampling import find_dropout, mc_samples, without_dropout


class DropPath(nn.Module):
    """As it is written by hand in many repositories."""

    def __init__(self, p, row=True):
        super().__init__()
        self.p, self.row = p, row

    def forward(self, x):
        if self.p == 0.0 or not self.training:
            return x
        mask = x.new_empty((len(x) if self.row else 1,) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * mask / (1 - self.p)


class DropConnect(nn.Linear):
    def forward(self, x):
        weight = F.dropout(self.weight, P, self.training)
        if self.training:
            weight = weight * (torch.rand_like(weight) > P)
        return F.linear(x, weight, self.bias)


class OwnStream(nn.Module):
    def __init__(self, stream):
        super().__init__()
        self.stream = stream

    def forward(self, x):
        return x * torch.from_numpy(self.stream.random(x.shape) > P) if self.training else x


def layerdrop(m, x):
    for layer in m.layers:
        if not m.training or torch.rand([]) > P:
            x = layer(x)
    return x


def stored(m, x):
    training = m.training
    if training:
        x = x * (torch.rand_like(x) > P)
    return F.dropout(x, P, training)


def functional_drop_path(x, p, training):
    return x * (torch.rand(len(x), 1) > p) if training else x


def noise_beside_dropout(m, x):
    x = functional_drop_path(x, P, m.training)
    return F.dropout(x, 0.0)


class Noise(nn.Module):
    def forward(self, x):
        return self.add(x)

    def add(self, x):
        return x + torch.randn_like(x) if self.training else x


class Auxiliary(nn.Module):
    """Like networks of detection and Inception: in training it returns something else."""

    def __init__(self, noise=None, auxiliary_noise=None, p=0.0):
        super().__init__()
        self.noise, self.auxiliary_noise, self.p = noise, auxiliary_noise, p

    def forward(self, x):
        if not self.training:
            return F.dropout(x, self.p)
        if self.noise:
            x = self.noise(x)
        return F.dropout(x, self.p), self.auxiliary_noise(x) if self.auxiliary_noise else x


def noise(x):
    return x + torch.randn_like(x)


def attention(p):
    return lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=p if m.training else 0.0)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.MultiheadAttention(8, 2, P, batch_first=True)

    def forward(self, x):
        return self.part(x, x, x)[0]


# A module whose only randomness is that of training, and the shape of its input.
TRAINING_ONLY = {
    "StochasticDepth row": (lambda: StochasticDepth(P, "row"), (16, 8)),
    "StochasticDepth batch": (lambda: StochasticDepth(P, "batch"), (4, 8)),
    "DropBlock2d": (lambda: DropBlock2d(P, 3), (4, 8, 7, 7)),
    "DropBlock3d": (lambda: DropBlock3d(P, 3), (2, 4, 5, 5, 5)),
    "DropPath by hand": (lambda: nn.Sequential(nn.Linear(8, 8), DropPath(P), nn.Dropout(0.0)), (16, 8)),
    "before dropout": (lambda: nn.Sequential(DropPath(P), nn.Dropout(1e-9)), (16, 8)),
    "drop connect": (lambda: DropConnect(8, 8), (4, 8)),
    "layerdrop": (
        lambda: Called(layerdrop, layers=nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])),
        (4, 8),
    ),
    "if training": (lambda: Called(lambda m, x: x * (torch.rand_like(x) > P) if m.training else x), (4, 8)),
    "stored flag": (lambda: Called(stored), (4, 8)),
    "a function": (lambda: Called(noise_beside_dropout), (16, 8)),
    "added noise": (lambda: Called(lambda m, x: x + torch.randn_like(x) if m.training else x), (4, 8)),
    "NumPy": (lambda: Called(lambda m, x: x * np.random.rand() if m.training else x), (4, 8)),
    "Python": (lambda: Called(lambda m, x: x * random.random() if m.training else x), (4, 8)),
    "own stream": (lambda: OwnStream(np.random.default_rng(0)), (4, 8)),
    "fused attention": (lambda: Called(attention(P)), (4, 2, 5, 8)),
    "MultiheadAttention": (Attending, (4, 5, 8)),
    "own torch stream": (
        lambda: Called(
            lambda m, x: x * torch.bernoulli(x, 1 - P, generator=m.streams[0]) if m.training else x,
            streams=[torch.Generator()],
        ),
        (4, 8),
    ),
    "called by forward": (lambda: Called(lambda m, x: m.part.forward(x), part=Noise()), (4, 8)),
    "called by a method": (lambda: Called(lambda m, x: m.part.add(x), part=Noise()), (4, 8)),
    "asked by another": (
        lambda: Called(lambda m, x: noise(x) if m.part.training else x, part=Noise()),
        (4, 8),
    ),
    "two by methods": (
        lambda: nn.Sequential(
            Called(lambda m, x: m.part.add(x), part=Noise()),
            Called(lambda m, x: m.part.function(m.part, x), part=Called(lambda m, x: x + m.training * 0)),
        ),
        (4, 8),
    ),
    "RReLU": (lambda: nn.RReLU(), (4, 8)),
    "LSTM": (lambda: Called(lambda m, x: m.part(x)[0], part=nn.LSTM(8, 6, 2, dropout=P)), (4, 5, 8)),
}


@pytest.mark.parametrize("kind", TRAINING_ONLY)
def test_what_is_random_in_training_is_on_in_samples_and_off_without_dropout(kind):
    torch.manual_seed(0)
    make, shape = TRAINING_ONLY[kind]
    module, x = make().train(), inputs(*shape)
    before = [part.training for part in module.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = mc_samples(module, x, 200, seed=0)
    assert not find_dropout(module, x).reason
    assert (samples != samples[0]).any()
    assert torch.equal(samples, mc_samples(module, x, 200, seed=0))
    assert torch.equal(samples[:3], mc_samples(module, x, 3, seed=0, chunk=1))
    # The law is that of training mode.
    assert [part.training for part in module.modules()] == before
    with torch.no_grad():
        passes = torch.stack([module(x.clone()) for _ in range(200)])
    error = 6 * ((passes.var(dim=0) + samples.var(dim=0)) / 200).sqrt() + 1e-4
    assert ((samples.mean(dim=0) - passes.mean(dim=0)).abs() < error).all()
    torch.testing.assert_close(samples.var(dim=0).mean(), passes.var(dim=0).mean(), rtol=0.35, atol=0)
    single, is_random = without_dropout(module, x)
    assert not is_random
    with torch.no_grad():
        assert torch.equal(single, module.eval()(x))


def test_a_part_with_batch_normalisation_and_noise_keeps_its_statistics():
    class Both(nn.BatchNorm1d):
        def forward(self, x):
            x = F.batch_norm(x, self.running_mean, self.running_var, training=self.training, momentum=0.5)
            return x * (torch.rand_like(x) > P) if self.training else x

    module = nn.Sequential(nn.Linear(3, 3), Both(3), nn.BatchNorm1d(3)).train()
    module[1].running_mean.fill_(5.0)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    samples = mc_samples(module, inputs(16, 3), 50, seed=0)
    assert (samples != samples[0]).any()
    assert samples.min() < -3
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())


def test_trying_a_part_out_changes_nothing():
    """Attributes and buffers of what asks for its mode, and which is no dropout at all."""

    def function(m, x):
        if m.training:
            m.steps, m.other = m.steps + 1, torch.zeros(())
            m.scale.mul_(2)
            m.shift = m.shift + 1
            raise_if = m.fail
            if raise_if:
                raise RuntimeError("no target")
            return {"loss": x.sum()}
        return F.dropout(x, P) * m.scale

    for fail in (False, True):
        module = Called(function)
        module.steps, module.fail = 0, fail
        module.register_buffer("scale", torch.ones(()))
        module.register_buffer("shift", torch.ones(()))
        scale = module.scale
        samples = mc_samples(module, x := inputs(4, 8), 5, seed=0)
        assert samples.shape == (5, 4, 8)
        assert not find_dropout(module, x).parts.found
        assert (module.steps, module.scale.item(), module.shift.item()) == (0, 1.0, 1.0)
        assert module.scale is scale
        assert not hasattr(module, "other")
        assert "forward" not in vars(module)
        assert not hasattr(Called, "training")


ELSE = "is random in training but stays as in evaluation, as it returns something else in training"


def failing(m, x):
    if m.training:
        raise RuntimeError("no targets")
    return x


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Auxiliary(noise), f"do not differ by dropout.*p = 0, and Auxiliary {ELSE}"),
        (lambda: Auxiliary(None, noise), f"do not differ by dropout.*p = 0, and Auxiliary {ELSE}"),
        (lambda: Auxiliary(noise, p=P), f"are less random than training: Auxiliary {ELSE}"),
        (lambda: Auxiliary(None, noise, p=P), None),
        (lambda: Auxiliary(None, F.dropout, p=P), None),
        (
            lambda: Called(failing),
            r"it calls no dropout, and Called stays as in evaluation, as it fails in training \(RuntimeError",
        ),
    ],
)
def test_what_cannot_be_switched_on_is_named(make, words):
    module, x = make().eval(), inputs(16, 8)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        samples = mc_samples(module, x, 5, seed=0)
        rows(lambda m, x: m.part(x), lambda x: x, part=make())
    assert samples.shape == (5, 16, 8)
    warned = [
        str(one.message) for one in warned if "samples" in str(one.message) or "Monitor" in str(one.message)
    ]
    assert len(warned) == 2 * bool(words)
    if words:
        assert re.search(words, warned[0])
        assert re.search(f"Monitor measures.*{words.split(' ', 5)[-1]}", warned[1])


@pytest.mark.parametrize(
    "stream",
    [
        torch.Generator().manual_seed(1),
        np.random.default_rng(1),
        np.random.RandomState(1),
        random.Random(1),
    ],
    ids=lambda stream: type(stream).__name__,
)
def test_generators_of_a_module_stand_afterwards_where_they_stood(stream):
    """Two of a kind are independent in the samples."""

    def draw(stream):
        if isinstance(stream, torch.Generator):
            return torch.rand((), generator=stream)
        return stream.random() if hasattr(stream, "random") else stream.random_sample()

    other = deepcopy(stream)
    module = nn.Sequential(
        *(Called(lambda m, x: x + draw(m.s["s"]) * m.sign, s={"s": s}) for s in (stream, other))
    )
    module[0].sign, module[1].sign = 1, -1
    expected = draw(deepcopy(stream))
    samples = mc_samples(module, torch.zeros(2), 5, seed=0)
    assert torch.equal(samples, mc_samples(module, torch.zeros(2), 5, seed=0))
    assert without_dropout(module, torch.zeros(2))[1]
    assert len(samples.unique()) == 5
    assert draw(stream) == draw(other) == expected


def test_a_flag_that_goes_straight_to_dropout_costs_no_further_passes():
    calls = []
    module = Called(
        lambda m, x: (calls.append(1), F.dropout(m.part(x), P, m.training))[1], part=nn.Linear(8, 8)
    )
    mc_samples(module, inputs(4, 8), 5, chunk=1, seed=0)
    assert len(calls) == 5
    calls.clear()
    find_dropout(module, inputs(4, 8))
    assert len(calls) == 1


def test_shared_masks_refuse_what_cannot_be_shared():
    with pytest.raises(
        ValueError, match="'independent' for a module with a DropPath, which is random in tra"
    ):
        mc_samples(nn.Sequential(DropPath(P), nn.Dropout(P)), inputs(16, 8), 5, masks="shared")


def test_a_list_of_classes_is_all_that_is_on():
    module, x = nn.Sequential(DropPath(P), StochasticDepth(P, "row")), inputs(200, 8)
    share = [
        (mc_samples(module, x, 1, seed=0, train=train) == 0).double().mean() for train in (["DropPath"], None)
    ]
    assert share[0] == pytest.approx(P, abs=0.12)
    assert share[1] == pytest.approx(1 - (1 - P) ** 2, abs=0.12)
    with pytest.warns(UserWarning, match="do not differ by dropout"):
        mc_samples(module, x, 2, train=[])


def test_samples_that_differ_without_dropout_are_not_said_to_be_equal():
    module = Called(lambda m, x: x * torch.bernoulli(torch.full_like(x, 0.5)))
    for samples in (1, 4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mc_samples(module, inputs(4, 8), samples, seed=0)


class Images(pl.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images)

    def validation_step(self, batch):
        pass


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t"])
def test_networks_of_torchvision_whose_randomness_is_drop_path(name):
    torch.manual_seed(0)
    network, images = getattr(torchvision.models, name)(num_classes=5), inputs(4, 3, 32, 32)
    for name, parameter in network.named_parameters():
        if "layer_scale" in name:  # 1e-6 at first: what is dropped would hardly show
            nn.init.ones_(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = mc_samples(network, images, 3, seed=0)
    assert (samples != samples[0]).any()
    assert all(part.training for part in network.modules())
    with torch.no_grad():
        exact = network.eval()(images)
    target = torch.arange(4)
    run = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[DropoutUncertaintyMonitor(samples=2, max_batches=8)],
    )  # fmt: skip
    (found,) = run.validate(Images(network), DataLoader(TensorDataset(images, target), 4), verbose=False)
    assert found["val/dropout/nll_deterministic"] == pytest.approx(
        F.cross_entropy(exact, target).item(), abs=1e-5
    )
    assert found["val/dropout/mutual_information"] > 0
