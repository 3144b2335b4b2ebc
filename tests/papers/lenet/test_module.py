import lightning.pytorch as pl
import pytest
import torch

from pl_losses import LeNet5, recipes
from pl_losses.data import Digits

ADAM = lambda p: torch.optim.Adam(p, 3e-3)  # noqa: E731


def trainer(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, **quiet | options)


def test_parameters():
    def trained(**options):
        return sum(p.numel() for p in LeNet5(**options).parameters() if p.requires_grad)

    assert trained() == 60_000
    assert trained(centres="adaptable") == 60_000 + 840
    assert trained(head="linear") == 60_000 + 850


def test_confidence_is_a_probability(tmp_path):
    found = []

    class Kept(LeNet5):
        def test_step(self, batch, batch_idx):
            found.append(super().test_step(batch, batch_idx)["confidence"])

    trainer(tmp_path).test(Kept(), Digits(), verbose=False)
    confidence = torch.cat(found)
    assert confidence.min() >= 0.1
    assert confidence.max() <= 1


def test_criteria_of_the_heads():
    images, target = torch.randn(4, 1, 32, 32), torch.arange(4)
    model = LeNet5(criterion="mle")
    penalties = model(images)
    torch.testing.assert_close(model.compute_loss(penalties, target), penalties[range(4), target].mean())
    modern = LeNet5(head="linear")
    logits = modern.output.weight @ modern.features(images).T + modern.output.bias[:, None]
    expected = torch.nn.functional.cross_entropy(logits.T, target)
    torch.testing.assert_close(modern.compute_loss(modern(images), target), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"criterion": "mse"}, "`criterion`.*map.*mle.*'mse'"),
        ({"head": "cosine"}, "`head`"),
        ({"rubbish_penalty": -1.0}, "`rubbish_penalty`"),
        ({"reject_above": 0.0}, "`reject_above`"),
        ({"reject_above": 1.5}, "`reject_above`"),
        ({"num_classes": 26}, r"`codes` of shape \[26, 84\]"),
        ({"codes": [[1.0] * 83] * 10}, r"`codes`.*\[10, 83\]"),
    ],
)
def test_refused_arguments(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        LeNet5(**options)


def test_refused_inputs():
    with pytest.raises(ValueError, match=r"`images` of shape \[B, 1, 32, 32\] but got \[2, 1, 28, 28\]"):
        LeNet5()(torch.zeros(2, 1, 28, 28))
    model = LeNet5()
    with pytest.raises(FloatingPointError, match="finite loss but got nan at step 0"):
        model.training_step((torch.full((2, 1, 32, 32), float("nan")), torch.tensor([0, 1])), 0)


def test_other_alphabets():
    codes = (torch.randint(2, (26, 84)) * 2 - 1).float().tolist()
    assert LeNet5(num_classes=26, codes=codes)(torch.zeros(1, 1, 32, 32)).shape == (1, 26)


@pytest.mark.parametrize("optimizer", [None, ADAM], ids=["levenberg-marquardt", "adam"])
def test_it_learns_real_digits_and_its_checkpoint_loads(tmp_path, optimizer):
    pl.seed_everything(0)
    # Six seeds: 0.36 to 0.53 after 600 steps of one digit, 0.05 to 0.07 after two passes of Adam; chance 0.9.
    steps, most = (600, 0.85) if optimizer is None else (-1, 0.25)
    fit = trainer(tmp_path, max_steps=steps, max_epochs=2, limit_val_batches=0)
    model = LeNet5() if optimizer is None else LeNet5(optimizer=optimizer)
    data = Digits(batch_size=1 if optimizer is None else 8)
    fit.fit(model, data)
    (result,) = fit.test(model, data, verbose=False)
    assert result["test/error"] < most
    assert result["test/error_low"] <= result["test/error"] <= result["test/error_high"]
    path = fit.checkpoint_callback.best_model_path
    again = LeNet5.load_from_checkpoint(path, weights_only=True)
    images = torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(again(images), model(images))


@pytest.mark.slow
def test_adaptable_centres_collapse_under_eq_8_and_not_under_eq_9(tmp_path, monkeypatch):
    """Eq. 8 is satisfied by equal centres and features: the loss vanishes and nothing is recognised."""
    monkeypatch.chdir(tmp_path)
    model, data = recipes.resolve("lenet/mle-collapse")["model"]["init_args"], Digits(batch_size=32)
    assert (model["criterion"], model["centres"]) == ("mle", "random")
    spread, result = {}, {}
    for criterion in ("mle", "map"):
        pl.seed_everything(0)
        module = LeNet5(
            criterion=criterion,
            centres="random",
            optimizer=lambda p: torch.optim.Adam(p, model["optimizer"]["init_args"]["lr"]),
            lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 9, 0.1),
        )
        fit = trainer(tmp_path, max_epochs=12, enable_checkpointing=False)
        fit.fit(module, data)
        (result[criterion],) = fit.test(module, data, verbose=False)
        spread[criterion] = torch.pdist(module.output.centres.detach()).max()
    assert result["mle"]["test/loss"] < 1e-3
    assert result["mle"]["test/error"] > 0.5
    assert result["map"]["test/error"] < 0.15
    assert spread["mle"] < 0.05 * spread["map"]


def test_logged_keys_are_the_same_in_every_logger(tmp_path):
    from pl_losses.callbacks import ClassifierReport

    pl.seed_everything(0)
    keys = {}
    for name, logger in {
        "csv": pl.loggers.CSVLogger(tmp_path, "csv"),
        "tensorboard": pl.loggers.TensorBoardLogger(tmp_path, "tb"),
    }.items():
        fit = trainer(
            tmp_path, max_epochs=1, logger=logger, log_every_n_steps=5, callbacks=[ClassifierReport()]
        )
        model = LeNet5(reject_above=0.5, optimizer=ADAM)
        fit.fit(model, data := Digits())
        trained = set(fit.logged_metrics)
        fit.test(model, data, verbose=False)
        keys[name] = trained | set(fit.logged_metrics)
        assert list(tmp_path.glob("**/*rejected_samples*")) or name == "tensorboard"
    assert keys["csv"] == keys["tensorboard"]
    assert {"test/error", "test/rejected", "train/loss", "val/error"} <= keys["csv"]
    header = (tmp_path / "csv/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/error", "val/error", "val/loss", "test/error", "test/error_low"} <= set(
        header
    )
    assert {p.name for p in (tmp_path / "csv/version_0/pictures").iterdir()} >= {
        "test-confusion_matrix.png",
        "test-errors.png",
    }


def test_subclass_in_ten_lines(tmp_path):
    class Smoothed(LeNet5):
        def compute_loss(self, penalties, target):
            return super().compute_loss(penalties, target) + 0.01 * penalties.mean()

    fit = trainer(tmp_path, max_steps=2, enable_checkpointing=False)
    fit.fit(Smoothed(optimizer=ADAM), Digits())
    assert fit.global_step == 2


def test_one_cycle_is_given_the_steps_of_the_run(tmp_path):
    model = LeNet5(
        optimizer=ADAM, lr_scheduler=lambda o, **k: torch.optim.lr_scheduler.OneCycleLR(o, 3e-3, **k)
    )
    fit = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
    fit.fit(model, Digits(batch_size=64))
    assert fit.lr_scheduler_configs[0].scheduler.total_steps == fit.global_step == 2 * 19


@pytest.mark.parametrize("optimizer", [3, torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)])
def test_an_optimizer_that_is_no_callable_is_refused(optimizer):
    with pytest.raises(TypeError, match="`optimizer` to be a function of the parameters"):
        LeNet5(optimizer=optimizer)


def test_the_default_optimizer_warns_of_large_batches(tmp_path):
    with pytest.warns(UserWarning, match="meant for a batch size of 1, but the batches are of 16"):
        trainer(tmp_path, max_steps=1, enable_checkpointing=False).fit(LeNet5(), Digits(batch_size=16))


def test_inputs_that_are_no_floats_are_refused():
    with pytest.raises(TypeError, match="`images` of a floating point type"):
        LeNet5()(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
