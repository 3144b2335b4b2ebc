import pickle
import re
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pl_losses.core.rng import fold_in
from pl_losses.data import Digits
from pl_losses.papers.dropout import monitor as module_under_test
from pl_losses.papers.dropout.metrics import ClassificationScores
from pl_losses.papers.dropout.monitor import DropoutUncertaintyMonitor
from pl_losses.papers.dropout.monitor_metrics import ClassificationSummary, RegressionSummary
from pl_losses.papers.dropout.sampling.sampling import mc_samples
from pl_losses.papers.dropout.uncertainty import mutual_information


class Classifier(pl.LightningModule):
    """A small CNN for the digits, with two kinds of dropout and BatchNorm."""

    def __init__(self, p=0.5):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 6, 5, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout2d(p / 2),
            nn.Flatten(),
            nn.Linear(6 * 49, 10),
        )
        self.p = p
        self.passes = 0

    def forward(self, images):
        self.passes += 1
        return F.dropout(self.network(images), self.p / 5, self.training)

    def training_step(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch):
        self.log("test/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


class Regressor(Classifier):
    def __init__(self, p=0.2):
        super().__init__(p)
        self.network = nn.Sequential(nn.Linear(2, 20), nn.ReLU(), nn.Dropout(p), nn.Linear(20, 1))

    def training_step(self, batch):
        return F.mse_loss(self(batch[0])[:, 0], batch[1])

    def validation_step(self, batch):
        pass

    test_step = validation_step


def regression_data(size=50, batch_size=16):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 2, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(dim=1)), batch_size)


def trainer(folder, *callbacks, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "max_epochs": 1}
    return pl.Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **quiet | options
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Classifier()


@pytest.fixture
def drawn(monkeypatch):
    """Keys of the pictures and tables that were logged."""
    keys = []
    for name in ("log_figure", "log_samples"):
        monkeypatch.setattr(module_under_test, name, lambda trainer, key, *shown, **rows: keys.append(key))
    return keys


def test_validation_of_real_digits(tmp_path, model):
    pl.seed_everything(0)
    logger = CSVLogger(tmp_path, "csv")
    monitor = DropoutUncertaintyMonitor(samples=10, max_batches=8)
    fit = trainer(tmp_path, monitor, max_epochs=3, logger=logger)
    fit.fit(model, data := Digits(batch_size=16))
    found = {key.removeprefix("val/dropout/"): value.item() for key, value in fit.logged_metrics.items()}
    assert found["inputs"] == 300
    assert found["mutual_information"] == pytest.approx(
        found["predictive_entropy"] - found["expected_entropy"], abs=1e-5
    )
    assert 0 < found["mutual_information"] < 1
    # The same from the metrics by hand.
    images, target = next(iter(data.val_dataloader()))
    seed = fold_in(0, 0, 0, 0)
    samples = mc_samples(model, images, 10, seed=seed, forward=lambda x: model(x).softmax(dim=1))
    scores = ClassificationScores()
    scores.update(samples.mean(dim=0), target)
    for name, value in scores.compute().items():
        assert found[name] == pytest.approx(value.item(), abs=1e-6)
    model.eval()
    with torch.no_grad():
        nll = F.cross_entropy(model(images), target)
    assert found["nll_deterministic"] == pytest.approx(nll.item(), abs=1e-5)
    assert found["mutual_information"] == pytest.approx(mutual_information(samples).mean().item(), abs=1e-5)
    # One row with Lightning's own, one per epoch.
    text = (tmp_path / "csv/version_0/metrics.csv").read_text().splitlines()
    header, rows = text[0].split(","), [line.split(",") for line in text[1:]]
    both = [row for row in rows if row[header.index("val/loss")]]
    assert len(both) == 3
    assert all(row[header.index("val/dropout/nll")] for row in both)
    # Pictures once, at the end.
    names = {path.name for path in (tmp_path / "csv/version_0/pictures").iterdir()}
    assert names == {f"val-dropout-{name}.png" for name in ("reliability", "entropy", "most_uncertain")}


class Noisy(Classifier):
    """Takes random numbers in evaluation, too, also from generators of its own."""

    def __init__(self):
        super().__init__()
        self.streams = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
        self.stream = np.random.default_rng(1)

    def forward(self, images):
        outputs = super().forward(images) + 0.1 * torch.randn(10) + 0.1 * self.stream.random()
        return outputs + 0.1 * sum(torch.randn(10, generator=stream) for stream in self.streams)


def test_training_is_the_same_to_the_last_bit(tmp_path):
    def weights(*callbacks):
        pl.seed_everything(1)
        model = Noisy()
        trainer(tmp_path, *callbacks, max_epochs=2, val_check_interval=5).fit(model, Digits(batch_size=64))
        return model.state_dict()

    plain, monitored = weights(), weights(DropoutUncertaintyMonitor(samples=3, max_batches=8))
    assert all(torch.equal(plain[key], monitored[key]) for key in plain)


@pytest.mark.parametrize("masks", ["independent", "shared"])
def test_every_key_has_one_pattern_and_every_pattern_is_logged(tmp_path, model, drawn, masks):
    logged = set()

    class Recorder(CSVLogger):
        def log_metrics(self, metrics, step=None):
            logged.update(key for key in metrics if "dropout" in key)

    options = {"logger": Recorder(tmp_path), "max_epochs": 2}
    run = trainer(tmp_path, DropoutUncertaintyMonitor(samples=2, max_batches=8, masks=masks), **options)
    data = Digits(limit=64)
    run.fit(model, data)
    run.validate(model, data, verbose=False)
    run.test(model, data, verbose=False)
    run.predict(model, data)
    of_classifier = set(logged)
    regression = DropoutUncertaintyMonitor(
        samples=2, max_batches=8, task="regression", precision=4.0, masks=masks
    )
    run = trainer(tmp_path, regression, **options)
    loader = regression_data()
    run.fit(Regressor(), loader, loader)
    run.test(run.lightning_module, loader, verbose=False)
    run.predict(run.lightning_module, loader)
    patterns = {
        pattern: re.compile(re.escape(pattern).replace("<stage>", "(val|test|predict)"))
        for pattern in DropoutUncertaintyMonitor.KEYS
    }
    matched = {key: [name for name, p in patterns.items() if p.fullmatch(key)] for key in logged | set(drawn)}
    assert all(len(names) == 1 for names in matched.values()), matched
    assert {name for names in matched.values() for name in names} == set(patterns)
    # With no targets: what needs none.
    assert {key for key in of_classifier if key.startswith("predict/")} == {
        f"predict/dropout/{name}"
        for name in (
            *("inputs", "predictive_entropy", "expected_entropy", "mutual_information"),
            *("variation_ratio", "max_probability"),
        )
    }
    assert drawn.count("val/dropout/reliability") == 2  # after all of fit, after validate
    assert drawn.count("predict/dropout/most_uncertain") == 1


def test_only_some_batches_of_some_epochs(tmp_path, model):
    monitor = DropoutUncertaintyMonitor(samples=4, max_batches=2, every_n_epochs=2)
    run = trainer(tmp_path, monitor, max_epochs=3, limit_train_batches=1, num_sanity_val_steps=0)
    run.fit(model, Digits(eval_batch_size=60))
    # Training, five batches a validation; then two batches of five passes and one to look.
    assert model.passes == 3 + 3 * 5 + (1 + 2 * (1 + 4))
    assert run.callback_metrics["val/dropout/inputs"] == 120


def test_a_sanity_check_tries_one_batch_without_sampling(tmp_path, model):
    monitor = DropoutUncertaintyMonitor(samples=4, max_batches=8)
    trainer(tmp_path, monitor, limit_train_batches=1, num_sanity_val_steps=2, limit_val_batches=3).fit(
        model, Digits(eval_batch_size=60)
    )
    assert model.passes == (2 + 1 + 1) + 1 + 3 + (1 + 3 * (1 + 4))


def test_batches_that_do_not_fit_are_refused_before_training(tmp_path, model, monkeypatch):
    def never(self, batch):
        raise AssertionError("trained")

    monkeypatch.setattr(Classifier, "training_step", never)
    monkeypatch.setattr(Classifier, "validation_step", lambda self, batch: None)
    data = DataLoader(Wrapped(lambda x, y: {"x": x, "y": y}), 4)
    with pytest.raises(TypeError, match="got a dict of 'x', 'y': override `get_inputs`"):
        trainer(tmp_path, DropoutUncertaintyMonitor()).fit(model, data, data)


@pytest.mark.parametrize("checks", [0, 1])
def test_a_dense_regression_is_refused_before_it_is_scored(tmp_path, monkeypatch, checks):
    """In the sanity check, and without one at the first validation batch."""
    passes = []
    monkeypatch.setattr(
        Regressor, "forward", lambda self, x: (passes.append(1), F.dropout(x[:, None], 0.1, self.training))[1]
    )
    monkeypatch.setattr(Regressor, "training_step", lambda self, batch: self.network[0].weight.sum())
    data = DataLoader(TensorDataset(torch.randn(8, 5, 6), torch.randn(8, 1, 5, 6)), 4)
    run = trainer(
        tmp_path, DropoutUncertaintyMonitor(task="regression", max_batches=8), num_sanity_val_steps=checks
    )
    words = r"`target` of shape \[B\] or \[B, Q\].*flattened to rows, but got \[4, 1, 5, 6\]: override `get_t"
    with pytest.raises(ValueError, match=words):
        run.fit(Regressor(), data, data)
    assert run.global_step == (0 if checks else 2 * run.max_epochs)
    assert len(passes) == 2  # one to find dropout, one without it


def test_two_validation_sets_have_keys_of_their_own(tmp_path, model, drawn, monkeypatch):
    monkeypatch.setattr(Classifier, "validation_step", lambda self, batch, batch_idx, dataloader_idx=0: None)
    data = Digits(eval_batch_size=50)
    data.setup("fit")
    first, second = data.val_dataloader(), data.train_dataloader()
    monitor = DropoutUncertaintyMonitor(samples=2, max_batches=1)
    run = trainer(tmp_path, monitor, logger=CSVLogger(tmp_path))
    (one, two) = run.validate(model, [first, second], verbose=False)
    assert one["val/dropout/inputs/dataloader_idx_0"] == 50
    assert (one | two)["val/dropout/inputs/dataloader_idx_1"] == 64
    assert "val/dropout/reliability/dataloader_idx_1" in drawn


def test_a_module_without_dropout_is_told_once_and_costs_nothing(tmp_path, drawn):
    model = Regressor()
    model.network[2] = nn.Identity()
    model.forward = lambda x: (setattr(model, "passes", model.passes + 1), model.network(x))[1]
    run = trainer(
        tmp_path,
        DropoutUncertaintyMonitor(task="regression", max_batches=8),
        max_epochs=3,
        logger=CSVLogger(tmp_path),
    )
    with pytest.warns(UserWarning, match="measures nothing of Regressor: it calls no dropout") as caught:
        run.fit(model, regression_data(), regression_data())
    assert sum("measures nothing" in str(warning.message) for warning in caught) == 1
    assert model.passes == 3 * 4 + 1
    assert not any("dropout" in key for key in run.logged_metrics)
    assert not drawn


def test_a_probability_may_rise_from_zero(tmp_path, model):
    class Schedule(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.p = 0.5 * (trainer.current_epoch > 0)

    model.network[4].p = 0.0
    model.p = 0.0
    found = []

    class Watch(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            found.append("val/dropout/nll" in trainer.callback_metrics)

    run = trainer(
        tmp_path, Schedule(), DropoutUncertaintyMonitor(samples=2, max_batches=8), Watch(), max_epochs=3
    )
    with pytest.warns(UserWarning, match="every dropout that it calls has p = 0") as caught:
        run.fit(model, Digits(limit=64))
    assert sum("p = 0" in str(warning.message) for warning in caught) == 1
    assert found == [False, False, True, True][-len(found) :]


def test_without_a_logger_there_are_metrics_and_no_pictures(tmp_path, model, drawn):
    run = trainer(tmp_path, DropoutUncertaintyMonitor(samples=2, max_batches=8))
    (result,) = run.test(model, Digits(), verbose=False)
    assert result["test/dropout/inputs"] == 300
    assert not drawn
    assert not list(tmp_path.iterdir())
    none = trainer(
        tmp_path, DropoutUncertaintyMonitor(samples=2, max_batches=8, pictures=0), logger=CSVLogger(tmp_path)
    )
    none.test(model, Digits(), verbose=False)
    assert not drawn


def test_precision_of_the_trainer_is_that_of_the_passes(tmp_path, model):
    seen = set()

    class Monitor(DropoutUncertaintyMonitor):
        def to_probabilities(self, pl_module, outputs):
            seen.add(outputs.dtype)
            return super().to_probabilities(pl_module, outputs)

    trainer(tmp_path, Monitor(samples=2), precision="bf16-mixed").validate(model, Digits(), verbose=False)
    assert seen == {torch.bfloat16}


def one_logit(self, images):
    return self.network(images)[:, :1]


def test_one_logit_is_that_of_the_second_class(tmp_path, model, monkeypatch):
    monkeypatch.setattr(Classifier, "forward", one_logit)
    monkeypatch.setattr(Classifier, "validation_step", lambda self, batch: None)

    class Binary(DropoutUncertaintyMonitor):
        def get_target(self, batch):
            return (batch[1] > 4).long()

    run = trainer(tmp_path, Binary(samples=2))
    (found,) = run.validate(model, data := Digits(), verbose=False)
    images, target = next(iter(data.val_dataloader()))
    with torch.no_grad():
        nll = F.binary_cross_entropy_with_logits(model.eval()(images)[:, 0], (target > 4).float())
    assert found["val/dropout/nll_deterministic"] == pytest.approx(nll.item(), abs=1e-5)
    assert 0 < found["val/dropout/predictive_entropy"] <= 0.6932


def test_modules_may_say_what_their_outputs_mean(tmp_path, model, monkeypatch):
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, x: {"penalties": -forward(self, x)})
    monkeypatch.setattr(Classifier, "validation_step", lambda self, batch: None)
    monkeypatch.setattr(
        Classifier, "class_probabilities", lambda self, out: (-out["penalties"]).softmax(1), raising=False
    )
    run = trainer(tmp_path, DropoutUncertaintyMonitor(samples=2, max_batches=8, seed=3))
    (found,) = run.validate(model, Digits(), verbose=False)
    monkeypatch.undo()
    (expected,) = trainer(tmp_path, DropoutUncertaintyMonitor(samples=2, max_batches=8, seed=3)).validate(
        model, Digits(), verbose=False
    )
    assert found["val/dropout/nll"] == pytest.approx(expected["val/dropout/nll"])


def test_a_regressor_may_say_what_its_outputs_mean(tmp_path):
    class Scaled(Regressor):
        def predicted_values(self, outputs):
            return outputs * 2 + 1

    torch.manual_seed(0)
    model = Scaled()
    monitor = DropoutUncertaintyMonitor(samples=3, max_batches=8, task="regression")
    (found,) = trainer(tmp_path, monitor).validate(model, regression_data(), verbose=False)
    x, y = regression_data().dataset.tensors
    with torch.no_grad():
        error = (model.eval()(x)[:, 0] * 2 + 1 - y).square().mean().sqrt()
    assert found["val/dropout/rmse_deterministic"] == pytest.approx(error.item(), abs=1e-5)
    assert found["val/dropout/inputs"] == 50
    assert "val/dropout/log_likelihood" not in found


class Wrapped(torch.utils.data.Dataset):
    """Samples in another form than pairs."""

    def __init__(self, form):
        self.form = form

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.form(torch.randn(1, 32, 32), index % 3)


@pytest.mark.parametrize(
    ("form", "options", "error", "words"),
    [
        (
            lambda x, y: {"x": x, "y": y},
            {},
            TypeError,
            "got a dict of 'x', 'y': override `get_inputs`",
        ),
        (lambda x, y: [x], {}, TypeError, "got a list of Tensor: override `get_target`"),
        (
            lambda x, y: (x, torch.zeros(3, dtype=torch.long)),
            {},
            ValueError,
            r"`target` of shape \[B\] with B = 4 but got \[4, 3\]: override `get_target` or `to_prob",
        ),
        (lambda x, y: (x, y + 0.5), {}, ValueError, "class indices but got .*set `task` to 'regression'"),
        (lambda x, y: (x, y + 9), {}, ValueError, r"`target` in 0\.\.9 but got 9\.\.11"),
        (
            lambda x, y: (x, y),
            {"task": "regression"},
            ValueError,
            r"`target` of shape \[4, 10\] but got \[4\]: override `get_target` or `to_val.*'classification'",
        ),
    ],
)
def test_batches_that_do_not_fit(tmp_path, model, monkeypatch, form, options, error, words):
    monkeypatch.setattr(Classifier, "validation_step", lambda self, batch: None)
    run = trainer(tmp_path, DropoutUncertaintyMonitor(samples=50, max_batches=8, **options))
    with pytest.raises(error, match=words):
        run.validate(model, DataLoader(Wrapped(form), 4), verbose=False)
    # Before any sampling: one pass to look for dropout, one without.
    assert model.passes <= 2


@pytest.mark.parametrize(
    ("forward", "task", "error", "words"),
    [
        (
            lambda self, x: (F.dropout(x), x),
            "classification",
            TypeError,
            "override `to_probabilities`.*or give",
        ),
        (
            lambda self, x: F.dropout(x),
            "classification",
            ValueError,
            r"logits of shape \[B, C\] but got \[4, 1, 3",
        ),
        (lambda self, x: [F.dropout(x)], "regression", TypeError, "`to_values`.*`predicted_values"),
    ],
)
def test_outputs_that_do_not_fit(tmp_path, model, monkeypatch, forward, task, error, words):
    monkeypatch.setattr(Classifier, "forward", forward)
    monkeypatch.setattr(Classifier, "validation_step", lambda self, batch: None)
    with pytest.raises(error, match=words):
        trainer(tmp_path, DropoutUncertaintyMonitor(task=task)).validate(
            model, DataLoader(Wrapped(lambda x, y: (x, y)), 4), verbose=False
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "`samples`.*at least 1 but got 0"),
        ({"max_batches": 1.5}, r"`max_batches`.*1\.5"),
        ({"every_n_epochs": 0}, "`every_n_epochs`"),
        ({"seed": -1}, "`seed`.*at least 0"),
        ({"chunk": 0}, "`chunk`"),
        ({"pictures": -1}, "`pictures`.*at least 0 but got -1"),
        ({"task": "ranking"}, "`task` to be .classification. or .regression. but got 'ranking'"),
        ({"masks": "own"}, "`masks`.*'own'"),
        ({"precision": -2.0}, "`(precision|tau)` to be positive"),
    ],
)
def test_refused_arguments(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        DropoutUncertaintyMonitor(**options)


def test_two_of_a_task_are_refused(tmp_path, model):
    two = [
        DropoutUncertaintyMonitor(samples=2, max_batches=8),
        DropoutUncertaintyMonitor(samples=3, max_batches=8),
    ]
    with pytest.raises(ValueError, match="one DropoutUncertaintyMonitor for classification but got 2"):
        trainer(tmp_path, *two).validate(model, Digits(), verbose=False)


def test_it_is_pickled_in_the_middle_of_a_validation(tmp_path, model):
    copies = []

    class Copy(pl.Callback):
        def on_validation_batch_end(self, trainer, pl_module, *args):
            (monitor,) = (c for c in trainer.callbacks if isinstance(c, DropoutUncertaintyMonitor))
            copies.append(pickle.loads(pickle.dumps(monitor)))

    trainer(tmp_path, DropoutUncertaintyMonitor(samples=2, max_batches=8, seed=5), Copy()).validate(
        model, Digits(), verbose=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        (found,) = trainer(tmp_path, copies[0]).validate(model, Digits(), verbose=False)
    assert found["val/dropout/inputs"] == 300
    assert copies[0].seed == 5


def test_the_most_uncertain_images_are_kept_over_batches():
    generator = torch.Generator().manual_seed(0)
    samples = (3 * torch.randn(5, 30, 4, generator=generator)).softmax(dim=-1)
    images = torch.arange(30.0)[:, None, None, None].expand(30, 3, 2, 2)
    summary = ClassificationSummary(labelled=False, images=7)
    for part in (slice(0, 4), slice(4, 29), slice(29, 30)):
        summary.update(samples[:, part], samples[0, part], None, {"mask": None, "images": images[part]})
    information, kept, labels = summary.kept
    best = mutual_information(samples).argsort(descending=True)[:7]
    assert kept[:, 0, 0, 0].tolist() == best.tolist()
    torch.testing.assert_close(information, mutual_information(samples)[best])
    assert labels.tolist() == [[-1, c] for c in samples.mean(dim=0).argmax(dim=1)[best].tolist()]


def test_spread_of_a_regression_without_targets():
    samples = torch.randn(6, 11, 2, generator=torch.Generator().manual_seed(0))
    summary = RegressionSummary(labelled=False, precision=4.0, pictures=True)
    for part in (slice(0, 4), slice(4, 11)):
        summary.update(samples[:, part], samples[0, part], None, None)
    expected = (samples.var(dim=0, correction=0) + 0.25).sqrt().mean()
    assert {name: round(value.item(), 5) for name, value in summary.values().items()} == {
        "inputs": 11.0,
        "standard_deviation": round(expected.item(), 5),
    }
    assert summary.figures(draw=True) == {}


def test_points_of_a_regression_are_bounded():
    summary = RegressionSummary(labelled=True, precision=None, pictures=True)
    for size in (150, 3, 100):
        summary.update(torch.randn(4, size, 2), torch.randn(size, 2), torch.randn(size, 2), None)
    summary.values()
    assert sum(map(len, summary.points)) == 200
    assert summary.figures(draw=True).keys() == {"calibration", "predictions"}
    assert summary.figures(draw=False) == {}


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_sampling_and_summing_never_wait_for_the_device(kind):
    """On the meta device, where nothing has a value, asking for one raises."""
    network = nn.Sequential(nn.Dropout2d(0.2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 5)).to("meta")
    images, single = torch.rand(6, 3, 4, 4, device="meta"), torch.rand(6, 5, device="meta")
    if kind == "classification":
        summary, target = ClassificationSummary(True, 4), torch.zeros(6, dtype=torch.long, device="meta")
        samples = mc_samples(network, images, 3, seed=0, forward=lambda x: network(x).softmax(1))
    else:
        summary, target = RegressionSummary(True, 2.0, True), single
        samples = mc_samples(network, images, 3, seed=0, masks="shared")
    summary.to("meta")
    for _ in range(2):
        summary.check(single, target)
        summary.update(samples, single, target, images)
    numbers = torch.stack([value.float() for value in summary.values().values()])
    assert numbers.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        numbers.tolist()
