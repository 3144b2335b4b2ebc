import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from pl_losses import DropoutClassifier, DropoutRegressor
from pl_losses.callbacks import RegressionReport
from pl_losses.data import UCI, SyntheticCO2
from pl_losses.papers.dropout import regression_report
from pl_losses.papers.dropout.published import scores


def trainer(tmp_path, callback, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(logger=CSVLogger(tmp_path), callbacks=[callback], **quiet, **options)


def test_it_draws_every_prediction_with_its_deviation(tmp_path, monkeypatch):
    drawn = {}
    for name in ("draw_predictions", "draw_error_by_deviation", "draw_coverage"):
        draw = getattr(regression_report, name)
        monkeypatch.setattr(
            regression_report, name, lambda *found, _n=name, _d=draw: drawn.update({_n: found}) or _d(*found)
        )
    torch.manual_seed(0)
    model = DropoutRegressor(hidden=[4], p=[0.0, 0.3], precision=4.0, samples=3, masks="shared")
    data = SyntheticCO2()
    trainer(tmp_path, RegressionReport(points=7)).test(model, data, verbose=False)
    inputs, targets = data.tensors["test"][:2]
    mean, variance = model.predictive(inputs)
    found = drawn["draw_error_by_deviation"][0]
    torch.testing.assert_close(found, torch.cat([targets, mean, variance.sqrt()], dim=1))
    few = drawn["draw_predictions"][0]
    assert len(few) <= 7
    assert few[1].tolist() in found.tolist()
    inside = (found[:, 0] - found[:, 1]).abs() < 0.5 * 0.1  # 0.5 is the least deviation, of the noise.
    coverage = drawn["draw_coverage"][0]
    assert coverage.shape == (20,)
    assert coverage[-1] == 1
    assert inside.float().mean() <= coverage[3]
    pictures = {path.name for path in tmp_path.glob("lightning_logs/version_0/pictures/*")}
    assert pictures == {"test-predictions.png", "test-error_by_deviation.png", "test-calibration.png"}


def test_the_published_scores_stand_beside_those_of_the_run(tmp_path, monkeypatch, uci_root):
    logged = {}
    monkeypatch.setattr(regression_report, "log_table", lambda trainer, key, rows: logged.update({key: rows}))
    model = DropoutRegressor(in_features=6, precision=1.0, samples=2)
    fitted = trainer(tmp_path, RegressionReport())
    fitted.test(model, UCI("yacht", 3), verbose=False)
    rmse, likelihood = logged["test/published"]
    own = scores()["yacht", "paper"][3]
    for row, name, place in ((rmse, "test/rmse", 0), (likelihood, "test/log_likelihood", 1)):
        assert row["this run"] == pytest.approx(float(fitted.logged_metrics[name]), rel=1e-3)
        assert row["published, this split"] == pytest.approx(own[place], rel=1e-3)
    # Table 1 has 1.11 +- 0.09 and -1.55 +- 0.03.
    assert rmse["published, all splits"] == pytest.approx(1.11, abs=0.01)
    assert likelihood["published, all splits"] == pytest.approx(-1.55, abs=0.01)


def test_errors_that_are_the_deviation_lie_on_the_diagonal():
    deviation = torch.linspace(1, 5, 100)
    points = torch.stack([deviation, torch.zeros(100), deviation], dim=1)
    axes = regression_report.draw_error_by_deviation(points).axes[0]
    places, errors = axes.lines[1].get_data()
    assert len(places) == 10
    torch.testing.assert_close(torch.tensor(errors), torch.tensor(places), rtol=0.02, atol=0)


def test_what_has_no_regression_scores_is_refused(tmp_path):
    with pytest.raises(TypeError, match="DropoutClassifier to have RegressionScores as `test_scores`"):
        trainer(tmp_path, RegressionReport()).test(DropoutClassifier(), SyntheticCO2(), verbose=False)
    with pytest.raises(ValueError, match=r"`points`.*0"):
        RegressionReport(points=0)
