import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pl_losses import DropoutClassifier, DropoutRegressor
from pl_losses.callbacks import ExtrapolationReport, RotationReport
from pl_losses.data import SyntheticCO2
from pl_losses.papers.dropout import reports


def trainer(tmp_path, callback):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=tmp_path, logger=CSVLogger(tmp_path), callbacks=[callback], **quiet)


def pictures(tmp_path):
    return [path.name for path in tmp_path.glob("lightning_logs/version_0/pictures/*")]


def test_extrapolation_draws_the_predictive_moments_over_all_data(tmp_path, monkeypatch):
    drawn = []
    draw = reports.draw_extrapolation
    monkeypatch.setattr(reports, "draw_extrapolation", lambda *found: drawn.append(found) or draw(*found))
    torch.manual_seed(0)
    model = DropoutRegressor(hidden=[4], p=[0.0, 0.3], precision=4.0, samples=3, masks="shared")
    data = SyntheticCO2()
    report = ExtrapolationReport(points=21, margin=0.5, xlabel="year", ylabel="ppm")
    trainer(tmp_path, report).test(model, data, verbose=False)
    assert pictures(tmp_path) == ["test-extrapolation.png"]
    ((curve, series, *names),) = drawn
    years = torch.cat([series["train"][0], series["test"][0]])
    room = 0.5 * (years.max() - years.min())
    assert (curve[0, 0], curve[-1, 0]) == (years.min() - room, years.max() + room)
    mean, variance = model.predictive(curve[:, :1])
    torch.testing.assert_close(curve[:, 1:2], mean)
    torch.testing.assert_close(curve[:, 2:].square(), variance)
    assert (variance >= 0.25).all()
    figure = draw(curve, series, *names)
    assert [figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()] == ["year", "ppm"]
    shown = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"predictive mean", "first and last training input", "within 1.5 standard deviations"} <= shown


def test_extrapolation_needs_one_input_and_a_predictive_module(tmp_path):
    report = ExtrapolationReport()
    model = DropoutRegressor(in_features=2, precision=1.0, samples=2)
    loader = DataLoader(TensorDataset(torch.zeros(4, 2), torch.zeros(4, 1)))
    with pytest.raises(ValueError, match=r"`tensors`.*inputs \[N, 1\]"):
        trainer(tmp_path, report).test(model, loader, verbose=False)
    with pytest.raises(TypeError, match="DropoutClassifier to have `predictive"):
        trainer(tmp_path, report).test(DropoutClassifier(), SyntheticCO2(), verbose=False)
    for options, message in (({"points": 1}, "`points`.*1"), ({"margin": -1.0}, "`margin`.*-1.0")):
        with pytest.raises(ValueError, match=message):
            ExtrapolationReport(**options)


def test_rotation_is_about_the_centre_with_the_background_moving_in():
    image = torch.full((1, 5, 5), -0.1)
    image[0, 0, 2] = 1.0  # up
    turned = reports.rotated(image, [0.0, 90.0, 180.0, 45.0])
    torch.testing.assert_close(turned[0], image)
    left, down = torch.full((1, 5, 5), -0.1), torch.full((1, 5, 5), -0.1)
    left[0, 2, 0] = down[0, 4, 2] = 1.0
    torch.testing.assert_close(turned[1], left, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned[2], down, atol=1e-5, rtol=0)
    assert turned.min() == pytest.approx(-0.1)


def test_rotation_takes_the_first_image_of_the_class_and_many_passes(tmp_path, monkeypatch):
    drawn = []
    draw = reports.draw_rotation
    monkeypatch.setattr(
        reports,
        "draw_rotation",
        lambda *found, **named: drawn.append((*found, *named.values())) or draw(*found, **named),
    )
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    model = DropoutClassifier(network=network, samples=2)
    images, labels = torch.randn(9, 1, 4, 4), torch.arange(9) % 3
    loader = DataLoader(TensorDataset(images, labels), batch_size=2)
    report = RotationReport(digit=2, angles=[0.0, 30.0], samples=4, classes=2)
    trainer(tmp_path, report).test(model, loader, verbose=False)
    assert pictures(tmp_path) == ["test-rotation.png"]
    ((turned, angles, logits, single, classes),) = drawn
    torch.testing.assert_close(turned, reports.rotated(images[2], [0.0, 30.0]))
    assert (angles, classes, list(logits.shape)) == ([0.0, 30.0], 2, [4, 2, 3])
    with torch.no_grad():
        torch.testing.assert_close(single, model.eval()(turned))
    assert logits.std(dim=0).min() > 0


def test_rotation_shows_classes_in_order_and_names_them_above_all_curves():
    torch.manual_seed(0)
    logits = 4 * torch.randn(5, 3, 6)
    figure = reports.draw_rotation(torch.rand(3, 1, 4, 4), [0, 10, 20], logits, single=logits[0], classes=4)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(labels) == 4
    assert labels == sorted(labels)
    curves = figure.axes[2]
    highest = max(line.get_ydata().max() for line in curves.lines)
    assert [text.get_text() for text in curves.texts] == [str(k) for k in logits[0].argmax(1).tolist()]
    assert highest < 0.82 * curves.get_ylim()[1]


def test_rotation_needs_an_image_of_the_class(tmp_path):
    model = DropoutClassifier(num_classes=3, image_size=16, samples=2)
    loader = DataLoader(TensorDataset(torch.zeros(3, 1, 16, 16), torch.zeros(3, dtype=torch.long)))
    with pytest.raises(ValueError, match="class `digit` 1"):
        trainer(tmp_path, RotationReport()).test(model, loader, verbose=False)
    for options, message in (
        ({"digit": -1}, "`digit`.*-1"),
        ({"angles": []}, "`angles`"),
        ({"samples": 0}, "`samples`.*0"),
        ({"classes": 0}, "`classes`.*0"),
    ):
        with pytest.raises(ValueError, match=message):
            RotationReport(**options)
