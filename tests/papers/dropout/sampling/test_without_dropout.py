"""The pass without dropout: exact, or known to be none where a network stays random."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from papers.dropout.sampling.called import Called
from papers.dropout.sampling.switched import P, inputs, rows
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pl_losses import DropoutClassifier, DropoutRegressor
from pl_losses.papers.dropout.sampling.sampling import mc_samples, without_dropout

# Dropout that says training=True, and what is left without it.
FIXED = {
    "F.dropout": (lambda x: F.dropout(x, P, training=True), None),
    "F.dropout by default": (lambda x: F.dropout(x, P), None),
    "F.dropout2d": (lambda x: F.dropout2d(x[..., None, None], P)[..., 0, 0], None),
    "F.dropout3d": (lambda x: F.dropout3d(x[..., None, None, None], P)[..., 0, 0, 0], None),
    "F.alpha_dropout": (lambda x: F.alpha_dropout(x, P, True), None),
    "F.feature_alpha_dropout": (lambda x: F.feature_alpha_dropout(x, P, True), None),
    "torch.dropout": (lambda x: torch.dropout(x, P, True), None),
    "torch.native_dropout": (lambda x: torch.native_dropout(x, P, True)[0], None),
    "aten::dropout": (lambda x: torch.ops.aten.dropout(x, P, True), None),
    "aten::dropout.default": (lambda x: torch.ops.aten.dropout.default(x, P, train=True), None),
    "aten::native_dropout": (lambda x: torch.ops.aten.native_dropout(x, P, True)[0], None),
    "aten::alpha_dropout_": (lambda x: torch.ops.aten.alpha_dropout_(x + 0, P, True), None),
    "aten::feature_dropout": (lambda x: torch.ops.aten.feature_dropout(x, P, True), None),
    "attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=P),
        lambda x: F.scaled_dot_product_attention(x, x, x),
    ),
    "F.rrelu": (lambda x: F.rrelu(x, training=True), F.rrelu),
}


@pytest.mark.parametrize("kind", FIXED)
def test_dropout_that_says_training_is_off_without_dropout(kind):
    function, expected = FIXED[kind]
    module, x = Called(lambda m, x: function(x)), inputs(4, 8)
    single, is_random = without_dropout(module, x)
    assert torch.equal(single, expected(x) if expected else x)
    assert not is_random
    samples = mc_samples(module, x, 5, seed=0)
    assert (samples != samples[0]).any()


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.dropout(2 * x, P, training=True),
        lambda m, x: 2 * F.alpha_dropout(x, P, training=True),
        lambda m, x: 2 * x * (torch.rand_like(x) > P) if m.training else 2 * x,
    ],
)
def test_the_exact_pass_without_dropout_has_no_error(function):
    found = rows(function, lambda x: 2 * x)
    assert found["rmse_deterministic"] == 0
    assert found["rmse"] > 0.1


def test_without_dropout_there_is_no_number_of_a_network_that_stays_random():
    stream = np.random.default_rng(0)
    for noise in (torch.rand_like, lambda x: torch.from_numpy(stream.random(x.shape)).float()):
        with pytest.warns(
            UserWarning, match="no numbers without dropout: Regressor is random in eval"
        ) as warned:
            found = rows(lambda m, x, noise=noise: F.dropout(x, P) + noise(x), lambda x: x)
        assert sum("no numbers" in str(one.message) for one in warned) == 1
        assert np.isnan(found["rmse_deterministic"])
        assert found["rmse"] > 0.1
    # No dropout at all, but its samples differ.
    with pytest.warns(UserWarning, match="no numbers without dropout"):
        assert rows(lambda m, x: x + torch.rand_like(x), lambda x: x)["inputs"] == 60


def fit(model, *data):
    run = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1,
        enable_checkpointing=False,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(*data), 30)
    run.fit(model, loader, loader)
    return {key: value.item() for key, value in run.callback_metrics.items()}


def test_the_papers_modules_know_what_is_without_dropout():
    class Fixed(nn.Sequential):
        def forward(self, x):
            return F.dropout(super().forward(x), P, training=True)

    torch.manual_seed(0)
    x = inputs(60, 2)
    network = Fixed(nn.Linear(2, 1))
    regressor = DropoutRegressor(network=network, precision=1.0, samples=3)
    found = fit(regressor, x, x.sum(dim=1, keepdim=True))
    exact = regressor.target_scale.inverse(network[0](regressor.input_scale(x)))[:, 0]
    error = (exact - x.sum(dim=1)).square().mean().sqrt().item()
    assert found["val/rmse_deterministic"] == pytest.approx(error, rel=1e-5)
    target = (x.sum(dim=1) > 0).long()
    network = Fixed(nn.Linear(2, 2))
    found = fit(DropoutClassifier(network=network, samples=3), x, target)
    assert found["val/loss"] == pytest.approx(F.cross_entropy(network[0](x), target).item(), rel=1e-5)
    noisy = Called(lambda m, x: m.part(x) + torch.randn(1), part=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="`network` of DropoutClassifier to be random by dropout only"):
        fit(DropoutClassifier(network=noisy), x, target)
