"""The fast ways of sampling, held against the loop over samples, which draws the same masks."""

import pytest
import torch
from papers.dropout.sampling.called import Called
from papers.dropout.sampling.fast import P, counted, inputs, linear
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pl_losses.papers.dropout.sampling import sizes as sizes_under_test, vectorized as module_under_test
from pl_losses.papers.dropout.sampling.sampling import mc_samples


def residual(m, x):
    x = m.first(x)
    x += F.dropout(m.second(x), P, m.training)
    return F.relu_(x) + F.dropout(x, P, m.training)


def structured(m, x, y):
    first = m.first(x)
    dropped = F.dropout(first, P, m.training)
    return {"pair": (dropped + y, None), "mean": dropped.mean(), "same": first}


def convolutions():
    parts = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout2d(P))
    return nn.Sequential(*parts, nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.Dropout(P), nn.Flatten())


def masked_encoder(m, x):
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[1, 3:] = True
    return m.part(x, src_key_padding_mask=padding)


def encoder(**options):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=P, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def packed(m, x):
    rows = nn.utils.rnn.pack_padded_sequence(x, [5, 4, 4, 2], batch_first=True)
    data, (hidden, _) = m.part(rows)
    return data.data, hidden


def decoder(m, x):
    """Dropout first, then layers without any, whose states differ between samples."""
    x = F.dropout(x, P, m.training)
    output, state = m.first(x)
    return m.second(output, state)[0]


def causal(m, x):
    return F.scaled_dot_product_attention(x, x, x, dropout_p=P, is_causal=True)


def self_normalising(m, x):
    return F.feature_alpha_dropout(F.alpha_dropout(m.norm(x), P, m.training), P, m.training)


def attended(m, x):
    attend = m.part(x, x, x, need_weights=True, average_attn_weights=False)
    return *attend, m.part(x, x, x, need_weights=False)[0]


def stochastic_weights(m, x):
    return F.linear(x, F.dropout(m.first.weight, P, m.training), m.first.bias)


def transformed(m, x):
    """Linear layers within transforms of the module's own."""
    x = F.dropout(x, P, m.training)
    slopes = torch.func.grad(lambda y: m.first(y).square().sum())(x)
    return torch.func.vmap(lambda row: m.second(row.relu()))(x) + slopes


def keywords(m, x):
    x = F.dropout(x, P, m.training)
    return F.linear(input=x, weight=m.first.weight) + F.linear(x, bias=m.second.bias, weight=m.second.weight)


# A module and the shape of its input.
ZOO = {
    "Dropout": (lambda: nn.Sequential(linear(), nn.Dropout(P), linear(), nn.Tanh(), nn.Dropout(P)), (4, 8)),
    "at the root": (lambda: nn.Dropout(P), (4, 8)),
    "first in place": (lambda: nn.Sequential(linear(), nn.Dropout(P, inplace=True), linear()), (4, 8)),
    "input in place": (lambda: nn.Sequential(nn.Dropout(P, inplace=True), nn.ReLU(inplace=True)), (4, 8)),
    "later in place": (lambda: nn.Sequential(nn.Dropout(P), linear(), nn.Dropout(P, inplace=True)), (4, 8)),
    "Dropout1d": (lambda: nn.Sequential(nn.Conv1d(8, 6, 2), nn.Dropout1d(P), nn.Conv1d(6, 2, 2)), (4, 8, 5)),
    "2d and BatchNorm": (convolutions, (4, 3, 8, 8)),
    "Dropout3d": (lambda: nn.Sequential(nn.Dropout3d(P), nn.Conv3d(2, 3, 2)), (4, 2, 3, 3, 3)),
    "AlphaDropout": (lambda: nn.Sequential(linear(), nn.SELU(), nn.AlphaDropout(P), linear()), (4, 8)),
    "FeatureAlphaDropout": (lambda: nn.Sequential(linear(), nn.FeatureAlphaDropout(P)), (4, 6, 8)),
    "functional alpha": (lambda: Called(self_normalising, norm=nn.LayerNorm(8)), (4, 6, 8)),
    "native": (lambda: Called(lambda m, x: torch.native_dropout(x, P, m.training)[0]), (4, 8)),
    "torch.dropout_": (lambda: Called(lambda m, x: torch.dropout_(x * 2, P, m.training)), (4, 8)),
    "residual": (lambda: Called(residual, first=linear(), second=linear()), (4, 8)),
    "weights": (lambda: Called(stochastic_weights, first=linear()), (4, 8)),
    "transforms": (lambda: Called(transformed, first=linear(), second=linear()), (4, 8)),
    "keywords": (lambda: Called(keywords, first=linear(), second=linear()), (4, 8)),
    "columns": (lambda: Called(lambda m, x: m.first(F.dropout(x, P).mT), first=linear()), (4, 8, 5)),
    "MultiheadAttention": (
        lambda: Called(attended, part=nn.MultiheadAttention(8, 2, P, batch_first=True, add_bias_kv=True)),
        (4, 5, 8),
    ),
    "fused attention": (lambda: Called(causal), (4, 2, 5, 8)),
    "TransformerEncoder": (encoder, (4, 5, 8)),
    "with padding": (lambda: Called(masked_encoder, part=encoder(norm_first=True)), (4, 5, 8)),
    "LSTM": (
        lambda: nn.LSTM(8, 6, 3, dropout=P, batch_first=True, bidirectional=True, proj_size=3),
        (4, 5, 8),
    ),
    "GRU": (lambda: nn.GRU(8, 6, 2, dropout=P, bias=False), (4, 5, 8)),
    "RNN": (lambda: nn.Sequential(nn.RNN(8, 6, 2, dropout=P, nonlinearity="relu")), (4, 5, 8)),
    "packed": (lambda: Called(packed, part=nn.LSTM(8, 6, 2, dropout=P, batch_first=True)), (4, 5, 8)),
    "states": (lambda: Called(decoder, first=nn.GRU(8, 8), second=nn.GRU(8, 8)), (4, 5, 8)),
}


def make(kind):
    torch.manual_seed(0)
    build, shape = ZOO[kind]
    return build().double(), inputs(*shape)


@pytest.mark.parametrize("kind", ZOO)
def test_many_at_a_time_are_the_same_as_one_at_a_time(kind, monkeypatch):
    module, x = make(kind)
    before, counts = x.clone(), counted(monkeypatch)
    samples = mc_samples(module, x, 9, chunk=4, seed=3)
    assert counts["many"] >= 2
    assert counts["replayed"] == counts["whole"] == 0
    one_by_one = mc_samples(module, x, 9, chunk=1, seed=3)
    assert counts["replayed"] >= 7
    assert counts["whole"] == 0
    # The same masks; products of matrices of other sizes may be rounded differently.
    torch.testing.assert_close(samples, one_by_one, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    monkeypatch.setattr(module_under_test, "why_not_many", lambda *_: "the test wants it so")
    monkeypatch.setattr(
        "pl_losses.papers.dropout.sampling.sampling.why_not_many", lambda *_: "the test wants it so"
    )
    whole = mc_samples(module, x, 9, seed=3)
    assert counts["whole"] == 9
    torch.testing.assert_close(samples, whole, rtol=1e-12, atol=1e-12)


def flops_of_convolutions(*args, **options):
    """Which convolutions run on how many inputs."""
    calls = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution.default:
                calls.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    with Watch():
        mc_samples(*args, **options)
    return calls


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_what_comes_before_the_first_dropout_runs_once(chunk):
    module, x = make("2d and BatchNorm")
    before, after = flops_of_convolutions(module, x, 13, chunk=chunk, seed=0), []
    assert before[0] == (4, 3, 8, 8)
    assert before.count((4, 3, 8, 8)) == 1
    after = [shape for shape in before if shape[1:] != (3, 8, 8)]
    rows = sum(torch.Size(shape).numel() for shape in after)
    assert rows == 13 * 4 * 6 * 6 * 6
    assert len(after) == {1: 13, 3: 5, None: 2}[chunk]


def test_memory_is_bounded_by_the_chunk_or_else_by_a_default(monkeypatch):
    sizes, real = [], module_under_test._samples
    monkeypatch.setattr("pl_losses.papers.dropout.sampling.sampling.in_rows", lambda *_, **__: None)
    monkeypatch.setattr(module_under_test, "_samples", lambda count: (sizes.append(count), real(count))[1])
    module = nn.Sequential(nn.Linear(8, 100), nn.Dropout(P), nn.Linear(100, 50))
    mc_samples(module, torch.ones(10, 8), 20, chunk=7, seed=0)
    assert sizes == [7, 7, 5]
    sizes.clear()
    # 4 kB of masks a sample, and as much for each of up to three results at a time.
    monkeypatch.setitem(sizes_under_test._AT_A_TIME, "cpu", 16_000 * 5)
    mc_samples(module, torch.ones(10, 8), 21, seed=0)
    assert sizes == [5, 5, 5, 5]


def test_masks_depend_neither_on_the_chunk_nor_on_the_number_of_samples():
    module, x = nn.Sequential(nn.Dropout(P), nn.Dropout2d(0.5)), inputs(3, 5, 7, 7)
    samples = mc_samples(module, x, 30, seed=0)
    for chunk in (1, 4, 29, 100):
        assert torch.equal(samples, mc_samples(module, x, 30, chunk=chunk, seed=0))
    assert torch.equal(samples[:11], mc_samples(module, x, 11, seed=0))
    assert len(samples.flatten(1).unique(dim=0)) == 30


def test_changed_weights_of_the_beginning_are_seen():
    module, x = make("2d and BatchNorm")
    before = mc_samples(module, x, 5, seed=0)
    with torch.no_grad():
        module[0].weight.mul_(2)
    assert not torch.allclose(before, mc_samples(module, x, 5, seed=0))
    with torch.no_grad():
        module[0].weight.div_(2)
    assert torch.equal(before, mc_samples(module, x, 5, seed=0))


def test_structures_and_several_inputs_are_computed_together(monkeypatch):
    counts, module = counted(monkeypatch), Called(structured, first=linear()).double()
    x, y = inputs(4, 8), inputs(8)
    samples = mc_samples(module, (x, y), 10, seed=0)
    assert counts == {"many": 1, "replayed": 0, "whole": 0}
    assert samples["pair"][1] is None
    assert samples["mean"].shape == (10,)
    expected = mc_samples(module, (x, y), 10, chunk=1, seed=0)
    torch.testing.assert_close(samples, expected, rtol=1e-12, atol=1e-12)
    assert (samples["same"] == module.first(x)).all()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_in_other_modes(mode, monkeypatch):
    module, x = make("residual")
    counts, expected = counted(monkeypatch), mc_samples(module, x, 9, seed=0)
    counts["many"] = 0
    with mode():
        samples = mc_samples(module, x.clone(), 9, seed=0)
        assert torch.is_inference_mode_enabled() is (mode is torch.inference_mode)
    assert counts == {"many": 1, "replayed": 0, "whole": 0}
    assert not samples.requires_grad
    torch.testing.assert_close(samples, expected, rtol=0, atol=0)


def test_under_autocast():
    module, x = make("Dropout")
    module, x = module.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        samples = mc_samples(module, x, 9, seed=0)
        one_by_one = mc_samples(module, x, 9, chunk=1, seed=0)
    assert samples.dtype == one_by_one.dtype
    torch.testing.assert_close(samples, one_by_one, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["Dropout", "2d and BatchNorm", "TransformerEncoder", "LSTM"])
def test_many_at_a_time_on_a_gpu(kind, monkeypatch):
    module, x = make(kind)
    module, x, counts = module.cuda(), x.cuda(), counted(monkeypatch)
    samples = mc_samples(module, x, 9, chunk=4, seed=3)
    assert counts["many"] >= 2
    torch.testing.assert_close(samples, mc_samples(module, x, 9, chunk=1, seed=3))
