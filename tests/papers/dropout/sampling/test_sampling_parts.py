"""The parts of the fast sampler: masks, attention written out, shared masks folded into weights."""

import pytest
import torch
from papers.dropout.sampling.called import Called
from torch import nn
from torch.nn import functional as F

from pl_losses.papers.dropout.sampling import mask_sampler as dropout_masks, vectorized as module_under_test
from pl_losses.papers.dropout.sampling.dropout_mode import attention
from pl_losses.papers.dropout.sampling.linear_fusion import LinearFusion
from pl_losses.papers.dropout.sampling.mask_sampler import DropoutCall, MaskSampler, word_of
from pl_losses.papers.dropout.sampling.sampling import find_dropout, mc_samples, without_dropout

P = 0.3


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def within_vmap(m, x):
    """As many inputs as samples in a chunk, which makes two dimensions look alike."""
    dropped = F.dropout(x[:4].repeat(2, 1)[:5], P)
    return torch.func.vmap(lambda row: m.second(dropped) + row[:2])(x[:4])


SHARED = {
    "folded": (lambda m, x: m.second(F.dropout(x, P)), 1),
    "of what differs": (lambda m, x: m.second(F.dropout(m.first(F.dropout(x, P)).relu(), P)), 1),
    "by keyword": (lambda m, x: F.linear(F.dropout(x, P), weight=m.second.weight), 0),
    "all by keyword": (lambda m, x: F.linear(input=F.dropout(x, P), weight=m.second.weight), 0),
    "without bias": (lambda m, x: F.linear(F.dropout(F.dropout(x, P) * 2, P), m.second.weight), 1),
    "within vmap": (within_vmap, 1),
    "used twice": (lambda m, x: m.second(y := F.dropout(x, P)) + y.sum(), 0),
    "used by two": (lambda m, x: m.second(y := F.dropout(x, P)) + m.second(y), 0),
    "a view": (lambda m, x: m.second(F.dropout(x, P).view(-1, 8)), 0),
    "returned": (lambda m, x: (m.second(y := F.dropout(x, P)), y), 0),
    "large": (lambda m, x: m.first(F.dropout(x, P)), 0),
    "in place": (lambda m, x: m.second(F.dropout(x, P, inplace=True)), 0),
    "channels": (lambda m, x: F.dropout1d(x[:, :, None], P).squeeze(2) * 2, 0),
}


@pytest.mark.parametrize("kind", SHARED)
def test_shared_masks_are_folded_into_the_weights_where_nothing_else_sees_them(kind, monkeypatch):
    function, folds = SHARED[kind]
    torch.manual_seed(0)
    module, x, folded, chunks = (
        Called(function, first=nn.Linear(8, 8), second=nn.Linear(8, 2)).double(),
        inputs(5, 8),
        [],
        [],
    )
    real, chunk = LinearFusion.placeholder, module_under_test.VectorizedSampler._chunk
    monkeypatch.setattr(LinearFusion, "placeholder", lambda *args: (folded.append(1), real(*args))[1])
    monkeypatch.setattr(
        module_under_test.VectorizedSampler, "_chunk", lambda *args: (chunks.append(1), chunk(*args))[1]
    )
    samples = mc_samples(module, x, 9, chunk=4, seed=0, masks="shared")
    assert len(folded) == 2 * folds
    assert len(chunks) == 2
    expected = mc_samples(module, x, 9, chunk=1, seed=0, masks="shared")
    torch.testing.assert_close(samples, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}, {"enable_gqa": True}])
@pytest.mark.parametrize("mask", [None, "boolean", "additive"])
def test_attention_written_out_is_the_fused_one(options, mask):
    if mask and "is_causal" in options:
        options = {}
    query, value = inputs(3, 4, 5, 8), inputs(3, 2 if "enable_gqa" in options else 4, 7, 8)
    key = value.flip(-1)
    if mask:
        mask = inputs(5, 7) > 0 if mask == "boolean" else inputs(5, 7)
        mask[1] = False if mask.dtype == torch.bool else -torch.inf
    found = attention(query, key, value, mask, **options)
    expected = F.scaled_dot_product_attention(query, key, value, mask, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [0.5, 0.25, 0.1, 0.05, 0.003, 1e-6, 0.9, 0.999])
def test_words_give_the_probability(p):
    bits, threshold, kept = word_of(p)
    assert abs(kept - (1 - p)) <= 0.002 * min(p, 1 - p)
    assert (threshold + 2 ** (bits - 1)) / 2**bits == kept
    if bits > 8:  # no narrower word would do
        narrower = round((1 - p) * 2 ** (bits // 2)) / 2 ** (bits // 2)
        assert abs(narrower - (1 - p)) > 0.002 * min(p, 1 - p)


@pytest.mark.parametrize(("p", "rare"), [(0.5, False), (0.3, False), (0.1, True), (0.02, True)])
def test_masks_have_their_law(p, rare, monkeypatch):
    monkeypatch.setattr(dropout_masks, "_PLACES", range(1, 100))
    site = DropoutCall((3, 7), p, True, torch.float64, torch.device("cpu"))
    assert site.rare == rare
    assert site.kept == (1 - p if rare else word_of(p)[2])
    whole = MaskSampler(5).draw(0, site, 20_000)
    assert sorted(whole.unique().tolist()) == [0.0, 1 / site.kept]
    error = (p / (1 - p) / 20_000) ** 0.5
    assert (whole.mean(0) - 1).abs().max() < 4.5 * error
    correlation = torch.corrcoef(whole.flatten(1).T) - torch.eye(21)
    assert correlation.abs().max() < 5 / 20_000**0.5
    # One by one they are the same; each place has a stream of its own; and one can go back.
    masks = MaskSampler(5)
    first = torch.cat([masks.draw(0, site, 1) for _ in range(5)])
    state = masks.state()
    assert torch.equal(first, whole[:5])
    assert torch.equal(masks.draw(0, site, 3), whole[5:8])
    assert not torch.equal(masks.draw(1, site, 100), whole[:100])
    masks.rewind(state)
    assert torch.equal(masks.draw(0, site, 3), whole[5:8])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_few_places_are_dropped_evenly_over_a_large_mask(dtype):
    """In 16 parts of half a million elements each, whose counts are binomial."""
    size, p = 1 << 19, 0.01
    site = DropoutCall((size,), p, False, dtype, torch.device("cpu"))
    masks = MaskSampler(0).draw(0, site, 16)
    assert masks.unique().tolist() == [0.0, 1.0]
    dropped = (masks == 0).view(16, 16, -1).sum(2).double()
    mean, variance = p * size / 16, p * (1 - p) * size / 16
    assert ((dropped - mean) ** 2 / variance).mean().item() == pytest.approx(1, abs=0.4)
    assert abs(dropped.sum(0).div(16) - mean).max() < 4.5 * (variance / 16) ** 0.5
    # Of larger and of small ones every element is drawn.
    assert not any(site._replace(shape=(size,)).rare for size in (1 << 23, 100))


def test_a_dropout_may_drop_few_places_in_one_pass_and_many_in_another():
    """Its p changes, or a larger input makes another way of drawing worth while."""
    seen = []

    def function(module, x):
        seen.append(None)
        rows = x[: 20 if len(seen) % 3 else 64]
        return F.dropout(rows, 0.05 if len(seen) % 2 else 0.2).mean()

    samples = mc_samples(
        Called(function, first=nn.Linear(8, 8), second=nn.Linear(8, 2)), torch.ones(64, 100), 12, seed=0
    )
    assert samples.unique().numel() == 12
    assert (samples - 1).abs().max() < 0.05


def test_everything_dropped():
    module = nn.Sequential(nn.Dropout(1.0), nn.AlphaDropout(1.0))
    assert (mc_samples(module, inputs(2, 3), 4, seed=0) == 0).all()


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (lambda m, x: F.dropout(x, 1.5), "between 0 and 1"),
        (lambda m, x: F.dropout1d(x, P), "Expected 2D or 3D input"),
        (lambda m, x: torch.feature_dropout(x[0, 0, 0], P, True), "at least 2"),
        (lambda m, x: F.dropout(x.long(), P), "can't be cast|not implemented|float"),
    ],
)
def test_what_dropout_refuses_is_refused(function, error):
    with pytest.raises((ValueError, RuntimeError), match=error):
        mc_samples(
            Called(function, first=nn.Linear(8, 8), second=nn.Linear(8, 2)), inputs(2, 3, 4, 4), 3, seed=0
        )


def vmapped(randomness, levels=1):
    def dropped(row):
        return F.dropout(row, P)

    for _ in range(levels):
        dropped = torch.vmap(dropped, randomness=randomness)
    return Called(lambda m, x: m.part(dropped(m.part(x))), part=nn.Identity())


@pytest.mark.parametrize(("randomness", "levels"), [("different", 1), ("different", 2), ("same", 1)])
def test_dropout_within_a_vmap_drops_as_that_says(randomness, levels):
    module, x = vmapped(randomness, levels), torch.ones(6, 40)
    samples = mc_samples(module, x, 50, seed=0)
    assert torch.equal(samples, mc_samples(module, x, 50, seed=0, chunk=1))
    assert samples.unique().tolist() == pytest.approx([0, 1 / (1 - P)])
    assert (samples == 0).double().mean().item() == pytest.approx(P, abs=0.06)
    alike = [(samples[:, :1] == samples).all(), (samples[..., :1] == samples).all()]
    assert alike == [randomness == "same", False]
    single, is_random = without_dropout(module, x)
    assert torch.equal(single, x)
    assert not is_random


def test_dropout_within_a_vmap_that_cannot_be_had_is_refused():
    for look in (find_dropout, lambda *args: mc_samples(*args, 3)):
        with pytest.raises(ValueError, match=r"`randomness` of the torch.vmap around `dropout` to be 'diff"):
            look(vmapped("error"), inputs(4, 8))
    with pytest.raises(ValueError, match=r"'independent' for a module that drops within `torch.vmap` but"):
        mc_samples(vmapped("different"), inputs(4, 8), 3, masks="shared")
