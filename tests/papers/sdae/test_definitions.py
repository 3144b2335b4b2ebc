"""Corruptions, criterion and layers against their definitions."""

import pytest
import torch
from torch.distributions import Bernoulli, Normal

from pl_losses.losses import reconstruction_loss
from pl_losses.papers.sdae import DenseLayer, GaussianNoise, MaskingNoise, SaltAndPepper
from pl_losses.papers.sdae.comparison import reproduce


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.4, 1.0])
@pytest.mark.parametrize("make", [MaskingNoise, SaltAndPepper])
def test_exact_touches_the_same_number_in_every_example(make, fraction):
    clean = torch.rand(30, 1, 9, 7, generator=stream()) * 0.8 + 0.1
    corrupted, touched = make(fraction)(clean, stream(1))
    assert (touched.flatten(1).sum(dim=1) == round(fraction * 63)).all()
    assert torch.equal(corrupted[~touched], clean[~touched])  # Never rescaled.
    assert corrupted[touched].unique().tolist() == (
        [] if fraction == 0 else [0.0] if make is MaskingNoise else [0.0, 1.0]
    )


def test_bernoulli_touches_each_element_by_itself():
    clean = torch.ones(400, 100)
    corrupted, touched = MaskingNoise(0.25, "bernoulli")(clean, stream())
    counts = touched.sum(dim=1).double()
    assert counts.mean() == pytest.approx(25, abs=4 * (100 * 0.25 * 0.75 / 400) ** 0.5)
    assert counts.var() == pytest.approx(100 * 0.25 * 0.75, rel=0.25)
    assert torch.equal(corrupted, (~touched).float())


def test_every_element_is_as_likely_and_salt_as_pepper():
    clean = torch.full((4000, 8), 0.5)
    corrupted, touched = SaltAndPepper(0.25, low=-1.0, high=2.0)(clean, stream())
    deviation = (4000 * 0.25 * 0.75) ** 0.5
    assert ((touched.sum(dim=0) - 1000).abs() < 4.5 * deviation).all()
    salt = (corrupted == 2).sum()
    assert salt + (corrupted == -1).sum() == touched.sum() == 8000
    assert abs(int(salt) - 4000) < 4.5 * (8000 * 0.25) ** 0.5


def test_gaussian_noise_has_its_moments_and_touches_all():
    corrupted, touched = GaussianNoise(0.3)(torch.full((1000, 50), 2.0, dtype=torch.float64), stream())
    assert corrupted.mean() == pytest.approx(2, abs=4 * 0.3 / 50_000**0.5)
    assert corrupted.std() == pytest.approx(0.3, rel=0.02)
    assert touched.all()


@pytest.mark.parametrize("noise", [MaskingNoise(0.3), SaltAndPepper(0.3, "bernoulli"), GaussianNoise(0.3)])
def test_noise_is_fresh_repeatable_and_shared_by_ranks(noise):
    clean = torch.rand(10, 20, generator=stream())
    generator = stream(5)
    first, second = noise(clean, generator)[0], noise(clean, generator)[0]
    assert not torch.equal(first, second)
    assert torch.equal(noise(clean, stream(5))[0], first)
    for rank in range(2):
        assert torch.equal(noise(clean[rank::2], stream(5), rank, 2)[0], first[rank::2])


def test_losses_are_minus_the_log_likelihood_less_a_constant():
    decoded = torch.randn(6, 5, dtype=torch.float64, generator=stream())
    clean = torch.rand(6, 5, dtype=torch.float64, generator=stream(1))
    for sigma in (0.5, 2.0):
        likelihood = Normal(decoded, sigma).log_prob(clean).sum(dim=1).mean()
        constant = Normal(clean, sigma).log_prob(clean).sum(dim=1).mean()
        torch.testing.assert_close(reconstruction_loss(decoded, clean, sigma=sigma), constant - likelihood)
    binary = clean.round()
    likelihood = Bernoulli(logits=decoded).log_prob(binary).sum(dim=1).mean()
    torch.testing.assert_close(reconstruction_loss(decoded, binary, kind="cross_entropy"), -likelihood)


@pytest.mark.parametrize("kind", ["squared", "cross_entropy"])
def test_emphasis_weighs_the_touched_elements(kind):
    decoded = torch.randn(4, 6, dtype=torch.float64, generator=stream(), requires_grad=True)
    clean = torch.rand(4, 6, dtype=torch.float64, generator=stream(1))
    touched = torch.rand(4, 6, generator=stream(2)) < 0.4
    z = decoded.detach().sigmoid()
    terms = -(clean * z.log() + (1 - clean) * (1 - z).log())
    if kind == "squared":
        terms = (clean - decoded.detach()).square() / 2
    by_hand = (1.5 * terms[touched].sum() + 0.5 * terms[~touched].sum()) / 4
    found = reconstruction_loss(decoded, clean, touched, kind=kind, alpha=1.5, beta=0.5)
    torch.testing.assert_close(found.detach(), by_hand)
    full = reconstruction_loss(decoded, clean, touched, kind=kind, beta=0.0)
    torch.testing.assert_close(full.detach(), terms[touched].sum() / 4)
    plain = reconstruction_loss(decoded, clean, kind=kind)
    assert torch.equal(reconstruction_loss(decoded, clean, touched, kind=kind, alpha=1, beta=1), plain)
    assert torch.autograd.gradcheck(
        lambda d: reconstruction_loss(d, clean, touched, kind=kind, alpha=1.5, beta=0.5), decoded
    )


def test_the_loss_is_float32_at_least_and_stable():
    half = torch.full((2, 2000), 60.0, dtype=torch.bfloat16)
    loss = reconstruction_loss(half, torch.zeros_like(half), kind="cross_entropy")
    assert loss.dtype == torch.float32
    assert loss == 2000 * 60


def test_tied_weights_are_one_parameter_whose_gradient_is_the_sum_of_both_uses():
    torch.manual_seed(0)
    tied, untied = DenseLayer(5, 3).double(), DenseLayer(5, 3, tied=False).double()
    assert sorted(name for name, _ in tied.named_parameters()) == ["hidden_bias", "visible_bias", "weight"]
    with torch.no_grad():
        untied.weight.copy_(tied.weight)
        untied.decoder_weight.copy_(tied.weight.t())
    clean = torch.rand(4, 5, dtype=torch.float64)
    for layer in (tied, untied):
        reconstruction_loss(layer(clean), clean, kind="cross_entropy").backward()
    torch.testing.assert_close(tied.weight.grad, untied.weight.grad + untied.decoder_weight.grad.t())


def test_a_tied_layer_differentiates_as_its_two_halves():
    torch.manual_seed(0)
    layer = DenseLayer(5, 3).double()
    parameters = tuple(layer.parameters())
    inputs = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)

    def decode(inputs, *values):
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), inputs)

    assert "_Tied" in type(layer(inputs).grad_fn).__name__
    assert torch.equal(layer(inputs), layer.decode(layer.encode(inputs)))
    assert torch.autograd.gradcheck(decode, (inputs, *parameters))
    assert torch.autograd.gradgradcheck(decode, (inputs, *parameters))
    layer.weight.requires_grad_(False)
    layer(inputs).sum().backward()
    assert layer.weight.grad is None
    assert layer.hidden_bias.grad is not None


def test_a_layer_of_ones_own_halves_uses_them():
    class Doubled(DenseLayer):
        def decode(self, codes):
            return 2 * super().decode(codes)

    torch.manual_seed(0)
    layer, inputs = Doubled(5, 3), torch.rand(2, 5)
    torch.testing.assert_close(layer(inputs), 2 * DenseLayer.decode(layer, layer.encode(inputs)))
    whole = DenseLayer(5, 3)
    assert whole(torch.rand(2, 7, 5)).shape == (2, 7, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert whole(inputs).dtype == torch.bfloat16
        whole(inputs).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "huber"}, "`kind`"),
        ({"sigma": 0.0}, "`sigma`"),
        ({"alpha": -1.0}, "`alpha`"),
        ({"beta": 0.5}, "`touched`"),
        ({"touched": torch.zeros(2, 4)}, "torch.bool"),
        ({"touched": torch.zeros(2, 3, dtype=torch.bool)}, r"\[2, 4\], but got \[2, 3\]"),
        ({"clean": torch.zeros(3, 4)}, r"`clean`.*\[3, 4\]"),
        ({"clean": torch.full((2, 4), 1.2), "kind": "cross_entropy"}, r"in \[0, 1\].*1.2 to 1.2"),
        ({"decoded": torch.zeros(0, 4), "clean": torch.zeros(0, 4)}, "B of at least 1"),
    ],
)
def test_the_loss_refuses(options, message):
    arguments = {"decoded": torch.zeros(2, 4), "clean": torch.zeros(2, 4), **options}
    with pytest.raises(ValueError, match=message):
        reconstruction_loss(arguments.pop("decoded"), arguments.pop("clean"), **arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskingNoise(1.1), "`fraction`.*1.1"),
        (lambda: MaskingNoise(0.1, "fixed"), "`mode`.*'fixed'"),
        (lambda: SaltAndPepper(low=1.0), "`low`"),
        (lambda: GaussianNoise(-1.0), "`sigma`"),
    ],
)
def test_corruptions_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_single_example_is_not_corrupted():
    with pytest.raises(ValueError, match=r"`clean` of shape \[B, \.\.\.\] but got \[3\]"):
        MaskingNoise()(torch.rand(3))


def test_integers_are_not_corrupted():
    with pytest.raises(TypeError, match="`clean` to be floating point"):
        MaskingNoise()(torch.zeros(2, 3, dtype=torch.uint8))


def test_results_of_unknown_arguments_are_not_gone_on_with(tmp_path):
    (tmp_path / "variations.csv").write_text("variation,method,seed\nrot-gen,MLP-3,0\n")
    with pytest.raises(ValueError, match=r"state\.pt beside its variations\.csv"):
        reproduce(folder=str(tmp_path), source="digits")
