import pytest
import torch

from pl_losses.data import SyntheticCO2
from pl_losses.data.co2 import co2_like


def test_trend_season_and_noise_add_up():
    data = SyntheticCO2(start=1960, until=1990, end=2000, seed=3)
    data.setup()
    years, ppm = (torch.cat([data.tensors[split][i] for split in ("train", "test")]) for i in (0, 1))
    assert torch.equal(years.flatten(), (1960 + torch.arange(480, dtype=torch.float64) / 12).float())
    noise = ppm.flatten().double() - co2_like(years.flatten().double())
    assert noise.std().item() == pytest.approx(0.25, rel=0.1)
    # A whole year's mean has no season in it: only the trend, of the middle of its months.
    year = 1970 + torch.arange(12, dtype=torch.float64) / 12
    t = year - 1960
    assert co2_like(year).mean().item() == pytest.approx(
        (315 + 0.9 * t + 0.015 * t**2).mean().item(), abs=1e-9
    )


def test_the_test_begins_where_training_ends():
    data = SyntheticCO2(val_share=0.25)
    data.setup()
    parts = {split: years.flatten() for split, (years, _) in data.tensors.items()}
    assert {split: len(years) for split, years in parts.items()} == {"train": 45, "val": 15, "test": 96}
    assert max(parts["train"].max(), parts["val"].max()) < 1972 <= parts["test"].min()
    assert not set(parts["train"].tolist()) & set(parts["val"].tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": 1967}, "`until`.*1967"),
        ({"end": 1972}, "`end`.*1972"),
        ({"val_share": 1.0}, "`val_share`.*1.0"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticCO2(**options)
