"""Published beside measured: intervals, verdicts, and the page that is made of kept tables."""

import csv
from dataclasses import asdict, fields, replace

import pytest
import torch

from pl_losses.core import results
from pl_losses.core.results import Row, interval

ROW = Row(
    "LeNet-5", "test error, %", 0.9, 0.7, 1.1, seeds=3, seconds=90.0, published=0.95, chosen="max_lr 0.003"
)


def test_the_interval_covers_the_mean_in_95_percent():
    """Seeds scatter about a value that is itself off by the error of the test samples, the same for all."""
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randn(2000, generator=generator).tolist()
    scatter = torch.randn(2000, 4, generator=generator).tolist()
    covered = 0
    for offset, own in zip(offsets, scatter, strict=True):
        low, high = interval([5 + 0.3 * offset + 0.5 * one for one in own], standard_error=0.3)
        covered += low <= 5 <= high
    assert 0.93 < covered / 2000 < 0.985


def test_one_seed_has_the_interval_of_the_test_samples():
    assert interval([2.0], 0.5) == pytest.approx((2 - 0.98, 2 + 0.98), abs=1e-4)
    assert interval([2.0]) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (ROW, "equal"),
        (replace(ROW, published=1.2), "better"),
        (replace(ROW, published=0.6), "worse"),
        (replace(ROW, published=0.6, published_low=0.5, published_high=0.7), "equal"),
        (replace(ROW, published=0.6, lower_is_better=False), "better"),
        (replace(ROW, published=0.6, lower_is_better=None), ""),
        (replace(ROW, published=None), ""),
        (replace(ROW, low=None, high=None, published=0.9), "equal"),
        (replace(ROW, low=None, high=None), "better"),
    ],
)
def test_verdicts(row, verdict):
    assert row.verdict() == verdict


def test_rows_come_back_from_their_table(tmp_path):
    rows = [
        ROW,
        Row("k-NN", "test error, %", float("inf"), lower_is_better=None, peer="x", peer_measured=2.0),
    ]
    path = results.write_results(tmp_path, "lenet/fig9", {"epochs": 10}, rows)
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [results.row_of(row) for row in table] == rows
    assert table[0].keys() == {*(one.name for one in fields(Row)), "date", "versions", "options"}
    assert f"torch {torch.__version__.partition('+')[0]}" in table[0]["versions"]


def test_the_table_of_a_trial_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "kept_file", lambda name: tmp_path / results.TABLE)
    results.write_results(tmp_path, "lenet/fig9", {"epochs": 2, "limit": None}, [ROW])
    with pytest.raises(ValueError, match="without options but got epochs=2"):
        results.kept("lenet/fig9")


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "kept_file", lambda name: tmp_path / name / results.TABLE)
    rows = [ROW, replace(ROW, what="SVM", published=None, note="", peer="libsvm", peer_measured=1.5)]
    rows.append(replace(ROW, what="k-NN", published=5.0, note="From a secondary source."))
    results.write_results(tmp_path / "lenet/fig9", "lenet/fig9", {}, rows)
    text = results.page()
    assert "|  | what | published | measured | verdict | best peer | seeds | settings |\n| --- | ---" in text
    assert "| LeNet-5 | test error, % | 0.950 | 0.900 (0.700 to 1.10) | equal |  | 3 | max_lr 0.003 |" in text
    assert "| SVM | test error, % |  | 0.900 (0.700 to 1.10) |  | libsvm 1.50 | 3 |" in text
    assert "| k-NN | test error, % | 5.00 [1] |" in text
    assert "\n[1] From a secondary source.\n" in text
    assert "2 rows have a verdict. Ours is better in 1, equal in 1, worse in 0." in text
    assert "4 minutes in all" in text  # 90 s each.
    assert "90 s in all" in results.section(results.kept("lenet/fig9")[:1])
    other = text.partition("## adam/fig4")[2].partition("\n## ")[0]
    assert "No result is kept yet." in other


def test_rows_of_a_trial_get_no_verdict():
    assert results.text([ROW]).endswith(": equal")
    assert "equal" not in results.text([ROW], "epochs=2")
    assert asdict(ROW)["published"] == 0.95


def test_the_interval_of_an_error_is_within_0_and_100_percent():
    row = results.Row("a", "test error, %", 31.5, -91.3, 154.4)
    assert (row.low, row.high) == (0.0, 100.0)
    row = results.Row("a", "RMSE", 31.5, -91.3, 154.4)
    assert (row.low, row.high) == (-91.3, 154.4)
