import warnings

import lightning.pytorch as pl
import pytest
import torch
from module_table import CASES, loader, make
from torch import nn
from torchmetrics import PearsonCorrCoef

from pl_losses.core.loaders import fingerprint
from pl_losses.core.metrics import ErrorRate, binomial_interval, computed, states_of, take_out
from pl_losses.core.sums import Mean


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_long_mean_is_exact(dtype):
    """Also in float32, as on a device without float64: there 0.1 added 2^21 times makes 0.1009."""
    value = torch.tensor(0.1)
    mean, plain = Mean(), torch.zeros(())
    mean.total = mean.total.to(dtype)
    # The sum of the first 2^24 samples is of one batch.
    mean.update(value, 2**24)
    for _ in range(5000):
        mean.update(value, 3)
    plain = torch.tensor(2.0**24) * value
    for _ in range(5000):
        plain = plain + 3 * value
    assert float(mean.compute()) == pytest.approx(float(value), rel=1e-9)
    assert float(plain) / (2**24 + 15000) != pytest.approx(float(value), rel=1e-6)


def test_a_mean_keeps_its_sums_wide_in_a_module_of_half_precision():
    model = nn.ModuleList([Mean()]).to(torch.bfloat16)
    for _ in range(1000):
        model[0].update(torch.tensor(0.5))
    assert float(model[0].compute()) == 0.5
    model[0].reset()
    model[0].update(torch.tensor([1.0, 2.0]))
    assert model[0].compute().dtype == torch.float64


def test_a_mean_is_not_finite_where_a_value_is_not():
    for value in (float("nan"), float("inf")):
        mean = Mean()
        mean.update(torch.tensor([1.0, value]))
        mean.update(torch.tensor(1.0))
        assert float(mean.compute()) == pytest.approx(value, nan_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert computed(Mean()).isnan()


def test_errors_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shape of `predicted`, \[3\], but got \[3, 1\]"):
        ErrorRate().update(torch.zeros(3), torch.zeros(3, 1))


def test_no_trial_tells_nothing_of_a_rate():
    assert binomial_interval(0, 0) == (0.0, 1.0)


def test_fingerprints_tell_samples_apart():
    images, labels = torch.rand(4, 2, 3), torch.tensor([1, 2, 3, 4])
    whole = fingerprint((images, labels))
    assert whole == fingerprint((images[:1], labels[:1])) + fingerprint((images[1:], labels[1:]))
    assert whole != fingerprint((images, labels.flip(0)))
    assert whole == fingerprint((images.flip(0), labels.flip(0)))
    assert fingerprint(["a", "b"]) != fingerprint(["a", "c"])


@pytest.mark.parametrize("name", CASES)
def test_modules_in_bfloat16_stay_near_float32(name):
    case, found = CASES[name], []
    for precision in ("32-true", "bf16-mixed"):
        quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        run = pl.Trainer(
            accelerator="cpu", max_epochs=case.epochs, precision=precision, **dict.fromkeys(quiet, False)
        )
        model = make(case)
        run.fit(model, loader(case, 6, 3, train=True), loader(case, 6, 3))
        (result,) = run.test(model, loader(case, 6, 3), verbose=False)
        key = "test/loss" if "test/loss" in result else "test/rmse"
        found.append(result[key])
    # bfloat16 has 8 bits. Up to 0.0014 apart for five seeds, on each instruction set.
    assert found[1] == pytest.approx(found[0], rel=0.03)


def test_what_is_no_sum_cannot_be_taken_out():
    correlation = PearsonCorrCoef()
    correlation.update(torch.arange(3.0), torch.tensor([1.0, 3.0, 2.0]))
    before = states_of(correlation)
    correlation.update(torch.arange(3.0), torch.tensor([3.0, 1.0, 2.0]))
    with pytest.raises(ValueError, match="states of PearsonCorrCoef that are sums or lists but got `"):
        take_out(correlation, before, states_of(correlation))
