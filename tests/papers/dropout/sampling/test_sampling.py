import copy
import random
import warnings
from collections import namedtuple
from itertools import product

import numpy as np
import pytest
import torch
from papers.dropout.sampling.called import Called, P, inputs
from torch import nn
from torch.nn import functional as F

from pl_losses.papers.dropout.sampling.sampling import find_dropout, mc_samples
from pl_losses.papers.dropout.uncertainty import predictive_moments


def streams():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()


def small_network(p=P):
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Dropout(p), nn.Linear(3, 4), nn.ReLU(), nn.Dropout(p), nn.Linear(4, 2))
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return network.double()


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=P, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def packed(self, x):
    rows = nn.utils.rnn.pack_padded_sequence(x, [5, 4, 4, 2], batch_first=True)
    return self.part(rows)[0].data


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.GRU(8, 6, 2, dropout=P, batch_first=True)

    forward = packed


KINDS = {
    "Dropout at the root": (lambda: nn.Dropout(P), (4, 8)),
    "Dropout in place": (lambda: nn.Sequential(nn.Dropout(P, inplace=True), nn.ReLU(inplace=True)), (4, 8)),
    "Dropout1d": (lambda: nn.Dropout1d(P), (4, 8, 5)),
    "Dropout2d": (lambda: nn.Dropout2d(P), (4, 8, 3, 3)),
    "Dropout3d": (lambda: nn.Dropout3d(P), (4, 8, 3, 3, 3)),
    "AlphaDropout": (lambda: nn.AlphaDropout(P), (4, 8)),
    "FeatureAlphaDropout": (lambda: nn.FeatureAlphaDropout(P), (4, 8, 5)),
    "F.dropout": (lambda: Called(lambda m, x: F.dropout(x, P, m.training)), (4, 8)),
    "F.dropout2d": (lambda: Called(lambda m, x: F.dropout2d(x, P, training=m.training)), (4, 8, 3, 3)),
    "F.alpha_dropout": (lambda: Called(lambda m, x: F.alpha_dropout(x, P, m.training)), (4, 8)),
    "torch.dropout": (lambda: Called(lambda m, x: torch.dropout(x, P, m.training)), (4, 8)),
    "torch.native_dropout": (
        lambda: Called(lambda m, x: torch.native_dropout(x, P, train=m.training)[0]),
        (4, 8),
    ),
    "MultiheadAttention": (lambda: Attending(need_weights=False), (4, 5, 8)),
    "MultiheadAttention with weights": (lambda: Attending(need_weights=True), (4, 5, 8)),
    "TransformerEncoder": (encoder, (4, 5, 8)),
    "TransformerDecoderLayer": (
        lambda: Twice(nn.TransformerDecoderLayer(8, 2, 16, dropout=P, batch_first=True)),
        (4, 5, 8),
    ),
    "LSTM": (lambda: First(nn.LSTM(8, 6, 2, dropout=P, batch_first=True)), (4, 5, 8)),
    "GRU": (lambda: First(nn.GRU(8, 6, 2, dropout=P)), (4, 5, 8)),
    "RNN": (lambda: First(nn.RNN(8, 6, 2, dropout=P, nonlinearity="relu")), (4, 5, 8)),
    "GRU of packed sequences": (Packed, (4, 5, 8)),
}


class Attending(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=P, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x):
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


class Twice(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x, x)


class First(Twice):
    def forward(self, x):
        return self.part(x)[0]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_dropout_is_on(kind, training):
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    module = make().train(training)
    batch = inputs(*shape)
    before = batch.clone()
    samples = mc_samples(module, batch, 30, seed=3)
    assert samples.std(dim=0).max() > 1e-3
    torch.testing.assert_close(batch, before, rtol=0, atol=0)
    assert torch.equal(samples, mc_samples(module, batch, 30, seed=3))
    assert not torch.equal(samples, mc_samples(module, batch, 30, seed=4))
    assert all(part.training is training for part in module.modules())
    # The law is that of training mode, in which these modules have nothing but dropout.
    module.train()
    with torch.no_grad():
        passes = torch.stack([module(batch.clone()) for _ in range(400)])
    many = mc_samples(module, batch, 400, seed=5)
    error = 6 * (passes.var(dim=0) * 2 / 400).sqrt() + 1e-5
    assert ((many.mean(dim=0) - passes.mean(dim=0)).abs() < error).all()
    torch.testing.assert_close(many.var(dim=0).mean(), passes.var(dim=0).mean(), rtol=0.2, atol=0)


def test_a_linear_layer_has_its_closed_form_moments():
    x, p = torch.tensor([[1.0, -2.0, 0.5]]).double(), 0.25
    layer = nn.Linear(3, 2).double()
    samples = mc_samples(nn.Sequential(nn.Dropout(p), layer), x, 20_000, seed=0)[:, 0]
    weight = layer.weight.detach()
    covariance = p / (1 - p) * weight @ torch.diag(x[0] ** 2) @ weight.T
    torch.testing.assert_close(samples.mean(dim=0), layer(x)[0].detach(), atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(samples.T), covariance, atol=0.03, rtol=0)


@pytest.mark.parametrize("masks", ["independent", "shared"])
def test_a_relu_network_has_the_moments_of_all_its_masks(masks):
    network, x = small_network(), torch.tensor([[0.7, -1.1, 0.4], [0.2, 0.3, -0.5]]).double()
    first, second = network[1], network[4]
    mean, square = 0.0, 0.0
    for bits in product((0, 1), repeat=7):
        mask = torch.tensor(bits).double()
        chance = torch.where(mask > 0, 1 - P, P).prod()
        hidden = F.relu(first(x * mask[:3] / (1 - P))) * mask[3:] / (1 - P)
        output = second(hidden).detach()
        mean, square = mean + chance * output, square + chance * output**2
    found, variance = predictive_moments(mc_samples(network, x, 20_000, seed=0, masks=masks))
    error = ((square - mean**2) / 20_000).sqrt()
    assert ((found - mean).abs() < 4.5 * error).all()
    torch.testing.assert_close(variance, square - mean**2, rtol=0.06, atol=0)


def test_masks_differ_between_inputs_or_are_shared():
    module = nn.Sequential(nn.Dropout(0.5), nn.Dropout1d(0.5), nn.Dropout2d(0.5), nn.Dropout3d(0.5))
    batch = torch.ones(6, 4, 2, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dropout1d and 2d want inputs of their own shapes
        module = nn.Sequential(module[0], module[3])
        own = mc_samples(module, batch, 40, seed=0)
        shared = mc_samples(module, batch, 40, seed=0, masks="shared")
    assert (own != own[:, :1]).any()
    assert (shared == shared[:, :1]).all()
    assert shared.std(dim=0).min() > 0
    # Neither the size of the batch nor what it holds matters.
    assert torch.equal(mc_samples(module, 2 * batch[:3], 40, seed=0, masks="shared"), 2 * shared[:, :3])


def test_whole_channels_are_dropped_together():
    (sample,) = mc_samples(nn.Dropout2d(0.5), torch.ones(8, 16, 3, 3), 1, seed=0)
    assert set(sample.flatten(2).std(dim=2).flatten().tolist()) == {0.0}
    (sample,) = mc_samples(nn.Dropout2d(0.5), torch.ones(8, 16, 3, 3), 1, seed=0, masks="shared")
    assert sorted(sample[:, :, 0, 0].unique().tolist()) == [0.0, 2.0]
    assert (sample == sample[:1, :, :1, :1]).all()


def test_seed_chunk_and_number_of_samples():
    """The same call gives the same bits; with another chunk products may be rounded otherwise, masks not."""
    network, x = small_network(), inputs(5, 3).double()
    samples = mc_samples(network, x, 100, seed=7)
    assert torch.equal(samples, mc_samples(network, x, 100, seed=7))
    for chunk in (1, 33, 1000):
        other = mc_samples(network, x, 100, chunk=chunk, seed=7)
        torch.testing.assert_close(samples, other, rtol=1e-12, atol=1e-12)
    fewer = mc_samples(network, x, 50, seed=7)
    torch.testing.assert_close(samples[:50], fewer, rtol=1e-12, atol=1e-12)
    assert len(samples.flatten(1).unique(dim=0)) > 90
    torch.manual_seed(0)
    first = mc_samples(network, x, 3)
    torch.manual_seed(0)
    assert not torch.equal(first, mc_samples(network, x, 3))


class Everything(nn.Module):
    """What a pass may change: running statistics, all random streams, a graph; and it may fail."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(P), nn.Linear(8, 2))
        self.fail = False

    def forward(self, x):
        if self.fail:
            raise RuntimeError("no")
        return self.layers(x) + torch.randn(1) + np.random.rand() + random.random()


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_left_behind(fail):
    module = Everything()
    module.fail = fail
    module.layers[1].eval()  # a mixture of modes
    module.layers[3].weight.grad = torch.ones(2, 8)
    modes = [part.training for part in module.modules()]
    state = copy.deepcopy(module.state_dict())
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    before = streams()
    if fail:
        with pytest.raises(RuntimeError, match="no"):
            mc_samples(module, inputs(4, 3), 3, seed=0)
    else:
        samples = mc_samples(module, inputs(4, 3), 3, seed=0)
        assert not samples.requires_grad
        assert torch.equal(samples, mc_samples(module, inputs(4, 3), 3, seed=0))
    after = streams()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert [part.training for part in module.modules()] == modes
    assert list(state) == list(module.state_dict())
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    assert torch.equal(module.layers[3].weight.grad, torch.ones(2, 8))
    assert [p.requires_grad for p in module.parameters()] == [True] * 6
    assert hooks == [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    assert torch.is_grad_enabled()


def test_batchnorm_uses_its_running_statistics():
    norm = nn.BatchNorm1d(3).train()
    norm.running_mean.fill_(5.0)
    module = nn.Sequential(norm, nn.Dropout(P))
    samples = mc_samples(module, inputs(16, 3), 200, seed=0)
    assert samples.mean() < -3
    assert norm.running_mean.tolist() == [5.0] * 3
    assert norm.num_batches_tracked == 0


def test_changed_weights_are_seen():
    network, x = small_network(), inputs(4, 3).double()
    before = mc_samples(network, x, 5, seed=0)
    with torch.no_grad():
        network[4].weight *= 2
        network[4].bias *= 2
    torch.testing.assert_close(mc_samples(network, x, 5, seed=0), 2 * before)


def test_structures_of_outputs_and_inputs():
    pair = namedtuple("pair", "mean scale")

    class Many(nn.Module):
        def forward(self, x, y=None):
            x = F.dropout(x, P, self.training)
            return {"tuple": (x, None), "named": pair(x + y, x.sum()), "maps": x[:, :, None, None]}

    x = inputs(4, 6)
    out = mc_samples(Many(), (x, 1.0), 7, seed=0)
    assert out["tuple"][0].shape == (7, 4, 6)
    assert out["tuple"][1] is None
    assert isinstance(out["named"], pair)
    assert out["named"].scale.shape == (7,)
    assert out["maps"].shape == (7, 4, 6, 1, 1)
    torch.testing.assert_close(out["named"].mean, out["tuple"][0] + 1)
    same = mc_samples(Many(), {"x": x, "y": 1.0}, 7, seed=0)
    assert torch.equal(same["maps"], out["maps"])
    by_method = mc_samples(m := Many(), {"x": x}, 7, seed=0, forward=lambda b: m(b["x"], 1.0)["maps"])
    assert torch.equal(by_method, out["maps"])
    with pytest.raises(TypeError, match="got a str in it: pass a `forward`"):
        mc_samples(Called(lambda m, x: (x, "text")), x, 2)


def test_in_place_work_on_the_input_does_not_add_up():
    module = Called(lambda m, x: F.dropout(x.sub_(1), P, m.training))
    x = torch.full((3, 4), 2.0)
    samples = mc_samples(module, x, 20, seed=0)
    # 1 - p is a multiple of 2^-16 or so.
    assert sorted(samples.unique().tolist()) == [0.0, pytest.approx(1 / (1 - P), rel=1e-5)]
    assert (x == 2).all()


class CausalAttention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=P if self.training else 0.0)


def test_a_part_that_asks_for_its_mode_is_found_and_can_be_left_off():
    x = inputs(2, 2, 5, 4)
    with pytest.warns(UserWarning, match="it calls no dropout, and `train`") as caught:
        samples = mc_samples(CausalAttention(), x, 3, train=[])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (samples == samples[:1]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = nn.Sequential(CausalAttention(), nn.BatchNorm2d(2))
        ways = (None, [CausalAttention], ["CausalAttention"])
        on = [mc_samples(module, x, 3, seed=0, train=train) for train in ways]
    assert (on[0] != on[0][:1]).any()
    assert torch.equal(on[0], on[1])
    assert torch.equal(on[0], on[2])


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Linear(3, 2), "it calls no dropout"),
        (
            nn.Sequential(nn.Dropout(0.0), nn.Linear(3, 2), nn.Dropout(0.0)),
            "every dropout that it calls has p = 0",
        ),
    ],
)
def test_without_dropout_the_samples_are_equal_and_a_warning_says_why(module, reason):
    found = find_dropout(module, inputs(4, 3))
    assert found.reason.startswith(reason)
    with pytest.warns(UserWarning, match=reason) as caught:
        samples = mc_samples(module, inputs(4, 3), 5)
    assert len(caught) == 1
    assert predictive_moments(samples)[1].abs().max() == 0


def test_one_layer_of_a_recurrent_network_drops_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = nn.LSTM(3, 4, 1, dropout=P)
    reason = find_dropout(module, inputs(2, 4, 3)).reason
    assert reason.startswith("every dropout that it calls has p = 0, and no part")


def test_compiled_modules_run_uncompiled():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    network = small_network()
    compiled, x = torch.compile(network, backend=backend), inputs(4, 3).double()
    deterministic = compiled.eval()(x)
    assert len(graphs) == 1
    expected = mc_samples(network, x, 5, seed=0)
    assert torch.equal(mc_samples(compiled, x, 5, seed=0), expected)
    assert (expected != expected[:1]).any()
    assert torch.equal(compiled(x), deterministic)
    assert len(graphs) == 1


@pytest.mark.parametrize("kind", ["AlphaDropout", "MultiheadAttention", "LSTM", "torch.dropout"])
def test_masks_that_cannot_be_shared_are_refused(kind):
    make, shape = KINDS[kind]
    with pytest.raises(ValueError, match="`masks` to be 'independent'"):
        mc_samples(make(), inputs(*shape), 2, masks="shared")


def test_shared_masks_in_place():
    module = Called(lambda m, x: (F.dropout(x, P, m.training, inplace=True), x)[1])
    samples = mc_samples(module, torch.ones(3, 50), 60, seed=0, masks="shared")
    assert samples.std(dim=0).min() > 0
    assert (samples == samples[:, :1]).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streams_of_the_gpu_are_restored_and_recurrent_masks_are_seeded():
    module = nn.LSTM(8, 6, 2, dropout=P).cuda()
    x = inputs(4, 5, 8).cuda()
    before = torch.cuda.get_rng_state()
    samples = mc_samples(module, x, 5, seed=0)[0]
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert torch.equal(samples, mc_samples(module, x, 5, seed=0)[0])
    assert samples.std(dim=0).max() > 0
