import copy
import csv
import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from pl_losses import DropoutClassifier, DropoutRegressor
from pl_losses.data import TensorDataModule
from pl_losses.papers.dropout import mc_log_likelihood, weight_decay_of
from pl_losses.papers.dropout.networks import DropoutLeNet, DropoutMLP, drop_probabilities
from pl_losses.papers.dropout.noise_precision import GRID, PrecisionSearch
from pl_losses.papers.dropout.standardization import Moments, Standardization, read_moments


class Rows(TensorDataModule):
    """Values far from standard, with a column that never changes."""

    def __init__(self, val=11, **options):
        super().__init__(**options)
        self.val = val

    def load(self, stage):
        generator = torch.Generator().manual_seed(0)
        x = 1e3 + 50 * torch.randn(60, 3, generator=generator)
        x[:, 1] = 0.1
        y = 300 + 0.2 * x[:, :1] + 2 * torch.randn(60, 1, generator=generator)
        splits = {"train": (x[:37], y[:37]), "test": (x[37:49], y[37:49])}
        return splits | ({"val": (x[60 - self.val :], y[60 - self.val :])} if self.val else {})


class ImageRows(TensorDataModule):
    num_classes = 3

    def load(self, stage):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(40, 1, 16, 16, generator=generator)
        labels = torch.arange(40) % 3
        return dict.fromkeys(("train", "val", "test"), (images, labels))


def trainer(tmp_path, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"accelerator": "cpu", "max_epochs": 2, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=tmp_path, **quiet | options)


def regressor(**options):
    pl.seed_everything(0, verbose=False)
    small = {"in_features": 3, "hidden": [8], "p": 0.2, "precision": 0.25, "samples": 5}
    return DropoutRegressor(**small | options)


def classifier(**options):
    pl.seed_everything(0, verbose=False)
    return DropoutClassifier(**{"num_classes": 3, "image_size": 16, "samples": 5} | options)


def test_standardises_by_the_training_data_and_speaks_in_units_of_the_targets(tmp_path):
    model, data = regressor(), Rows(batch_size=8)
    trainer(tmp_path).fit(model, data)
    x, y = (rows.double() for rows in data.tensors["train"])
    expected = x.std(dim=0, correction=0)
    expected[1] = 1
    torch.testing.assert_close(model.input_scale.mean.double(), x.mean(dim=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(model.input_scale.std.double(), expected, rtol=1e-6, atol=0)
    std = y.std(correction=0)
    torch.testing.assert_close(model.target_scale.std.double(), std, rtol=1e-6, atol=0)
    assert int(model.size) == 37
    # The same by hand around the bare network.
    model.eval()
    by_hand = model.network(((x - x.mean(dim=0)) / expected).float()).double() * std + y.mean()
    torch.testing.assert_close(model(x.float()).double(), by_hand, rtol=1e-5, atol=0)


def test_several_outputs_share_one_scale_so_that_one_tau_fits_all():
    scale, rows = Standardization(), torch.tensor([[1.0, 10.0], [3.0, 50.0]])
    scale.fit(Moments.of(rows), common=True)
    assert scale.std.item() == pytest.approx(math.sqrt((1 + 400) / 2))
    torch.testing.assert_close(scale.inverse(scale(rows)), rows)


def test_moments_survive_a_mean_far_from_zero():
    rows = 1e8 + torch.arange(9, dtype=torch.float64)
    merged = Moments.merged([Moments.of(rows[:2]), Moments.of(rows[2:3]), Moments.of(rows[3:])])
    assert merged.count == 9
    assert merged.mean.item() == 1e8 + 4
    assert merged.squares.item() == 60


@pytest.mark.parametrize("convention", ["paper", "authors"])
def test_loss_is_the_objective_with_the_decay_of_tau_l_n_and_each_p(tmp_path, convention):
    model = regressor(p=[0.1, 0.3], convention=convention, length_scale=2.0)
    data = Rows(batch_size=37)
    trainer(tmp_path, max_epochs=1).fit(model, data)
    model.train()
    x, y = data.tensors["train"]
    outputs = model(x)
    std = float(model.target_scale.std)
    loss = (0.5 * ((outputs - y) / std).square()).mean()
    for layer, p in ((1, 0.1), (4, 0.3)):
        weight, bias = model.network[layer].weight, model.network[layer].bias
        loss = (
            loss
            + weight_decay_of(0.25, 2.0, 37, p=p, convention=convention, target_std=std)
            * weight.square().sum()
        )
        if convention == "paper":
            loss = (
                loss
                + weight_decay_of(0.25, 2.0, 37, p=0.0, convention=convention, target_std=std)
                * bias.square().sum()
            )
    torch.testing.assert_close(model.compute_loss(outputs, y), loss)
    model.eval()
    torch.testing.assert_close(model.errors(outputs, y).mean(), model.compute_loss(outputs, y))


def test_drop_probabilities_are_those_right_before_each_layer():
    found = drop_probabilities(DropoutLeNet(image_size=16, p=0.5, dropout="all"))
    kernels = [p for name, p in found.items() if name.endswith("weight")]
    assert kernels == [0.0, 0.5, 0.5, 0.5]
    assert [p for p in drop_probabilities(DropoutLeNet(image_size=16)).values() if p] == [0.5]


@pytest.mark.parametrize("make", [regressor, classifier])
def test_training_with_and_without_sampling_is_the_same_to_the_last_bit(tmp_path, make):
    found = []
    data = Rows if make is regressor else ImageRows
    for samples, options in ((2, {"limit_val_batches": 0}), (2, {}), (7, {"num_sanity_val_steps": 2})):
        model = make(samples=samples)
        trainer(tmp_path, **options).fit(model, data(batch_size=16))
        found.append((model.network.state_dict(), torch.rand(3)))
    for weights, stream in found[1:]:
        assert torch.equal(stream, found[0][1])
        assert all(torch.equal(weights[name], found[0][0][name]) for name in weights)


def test_reading_the_data_disturbs_no_random_stream():
    loader = DataLoader(TensorDataset(torch.randn(10, 2), torch.randn(10)), batch_size=3, shuffle=True)
    state = torch.random.get_rng_state()
    inputs, targets = read_moments(loader)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(inputs.mean.float(), loader.dataset.tensors[0].mean(dim=0))
    assert (targets.count, list(targets.mean.shape)) == (10, [1])


def test_moments_of_a_sampler_that_gives_batches():
    rows = TensorDataset(torch.arange(9.0)[:, None], torch.arange(9.0))
    parts = []
    for rank in range(3):  # The last one has a batch of its own and one that is repeated.
        batches = DistributedSamplerWrapper(
            BatchSampler(SequentialSampler(rows), 2, drop_last=False), 3, rank, shuffle=False
        )
        parts.append(read_moments(DataLoader(rows, batch_size=None, sampler=batches))[0])
    assert [part.count for part in parts] == [4, 3, 2]
    assert Moments.merged(parts).mean.item() == 4


def test_chosen_precision_is_the_one_of_brute_force(tmp_path):
    model, data = regressor(precision=None), Rows(batch_size=8, eval_batch_size=4)
    fit = trainer(tmp_path, check_val_every_n_epoch=2, logger=CSVLogger(tmp_path))
    fit.fit(model, data)
    model.eval()
    x, y = data.tensors["val"]
    # As batched in validation: masks belong to batches.
    parts = zip(x.split(4), y.split(4), strict=True)
    batches = [(model.sample(inputs, index).double(), target) for index, (inputs, target) in enumerate(parts)]
    variance = float(model.target_scale.std) ** 2

    def mean_likelihood(tau):
        return sum(mc_log_likelihood(samples, target, tau).sum() for samples, target in batches).item() / 11

    candidates = [tau / variance for tau in GRID]
    best = max(candidates, key=mean_likelihood)
    assert model.precision == pytest.approx(best, rel=1e-6)
    assert fit.logged_metrics["val/precision"].item() == pytest.approx(best, rel=1e-6)
    assert fit.logged_metrics["val/log_likelihood"].item() == pytest.approx(mean_likelihood(best), rel=1e-5)
    assert candidates[0] < best < candidates[-1]
    # Later validations measure, and change nothing.
    (found,) = trainer(tmp_path).validate(model, data, verbose=False)
    assert model.precision == pytest.approx(best, rel=1e-6)
    assert found["val/log_likelihood"] == pytest.approx(mean_likelihood(best), rel=1e-5)


def test_predictive_is_what_the_trainer_predicts_of_the_first_batch(tmp_path):
    model, data = regressor(), Rows()
    (found,) = trainer(tmp_path).predict(model, data)
    mean, variance = model.predictive(data.tensors["test"][0])
    assert torch.equal(mean, found["mean"])
    assert torch.equal(variance, found["variance"])
    assert not torch.equal(mean, model.predictive(data.tensors["test"][0], 1)[0])


def test_without_a_precision_variances_say_once_that_they_lack_the_noise(recwarn):
    model, inputs = regressor(precision=None), torch.zeros(2, 3)
    model.predictive(inputs)
    model.predict_step(inputs, 0)
    (warned,) = recwarn
    assert "variances leave out the noise" in str(warned.message)


def test_a_decay_that_knows_nothing_of_the_networks_dropout_is_told(tmp_path, recwarn):
    class Functional(nn.Linear):
        def forward(self, rows):
            return super().forward(nn.functional.dropout(rows, 0.5, self.training))

    class Known(DropoutRegressor):
        def drop_probabilities(self):
            return {"weight": 0.5, "bias": 0.0}

    for kind, warnings in ((DropoutRegressor, 1), (Known, 0)):
        model = kind(network=Functional(3, 1), precision=1.0, samples=2)
        recwarn.clear()
        trainer(tmp_path, max_epochs=1).fit(model, Rows(batch_size=16))
        assert sum("override `drop_probabilities`" in str(one.message) for one in recwarn) == warnings


def test_no_validation_data_is_nothing_to_warn_of(tmp_path, recwarn):
    trainer(tmp_path, max_epochs=1).fit(regressor(), Rows(val=0, batch_size=16))
    assert not [one for one in recwarn if "Total length" in str(one.message)]


def test_precision_out_of_a_list(tmp_path):
    model = regressor(precision=[0.01, 0.1, 5.0])
    trainer(tmp_path).fit(model, Rows(batch_size=8))
    assert model.precision in (pytest.approx(0.01), pytest.approx(0.1), pytest.approx(5.0))
    search = PrecisionSearch([2.0, 8.0])
    search.update(torch.zeros(3, 4, 2), torch.full((4, 2), 0.5))
    assert search.compute()["precision"] == 2.0  # 1 / 0.25 would be the best: the nearer in logarithms to it
    expected = mc_log_likelihood(torch.zeros(3, 1, 2), torch.full((1, 2), 0.5), 2.0).item()
    assert search.compute()["log_likelihood"].item() == pytest.approx(expected, rel=1e-6)


def test_without_validation_data_there_is_no_choice(tmp_path):
    with pytest.raises(ValueError, match=r"`precision`.*validation data"):
        trainer(tmp_path).fit(regressor(precision=None), Rows(val=0))
    with pytest.raises(ValueError, match=r"`precision`.*validation data"):
        trainer(tmp_path, limit_val_batches=0).fit(regressor(precision=None), Rows())
    model = regressor(precision=None)
    with pytest.warns(UserWarning, match="no `precision`"):
        (found,) = trainer(tmp_path).test(model, Rows(), verbose=False)
    assert "test/log_likelihood" not in found


@pytest.mark.parametrize("make", [regressor, classifier])
def test_logged_keys_are_the_documented_ones(tmp_path, make):
    logger = CSVLogger(tmp_path)
    fit = trainer(tmp_path, logger=logger, log_every_n_steps=1)
    model = make(precision=None) if make is regressor else make()
    data = Rows(batch_size=8) if make is regressor else ImageRows(batch_size=16)
    fit.fit(model, data)
    fit.test(model, data, verbose=False)
    with open(f"{logger.log_dir}/metrics.csv") as file:
        keys = set(next(csv.reader(file)))
    assert keys - {"epoch", "step"} == set(model.KEYS)


@pytest.mark.parametrize("make", [regressor, classifier])
def test_checkpoints_predict_alike(tmp_path, make):
    model = make(precision=None) if make is regressor else make()
    data = Rows(batch_size=8) if make is regressor else ImageRows(batch_size=16)
    fit = trainer(tmp_path, enable_checkpointing=True)
    fit.fit(model, data)
    fit.save_checkpoint(tmp_path / "kept.ckpt")
    torch.load(tmp_path / "kept.ckpt", weights_only=True)
    again = type(model).load_from_checkpoint(tmp_path / "kept.ckpt")
    assert int(again.size) == int(model.size) > 0
    ours, theirs = (trainer(tmp_path).predict(one, data) for one in (model, again))
    assert ours[0].keys() == theirs[0].keys()
    for name in ours[0]:
        assert torch.equal(ours[0][name], theirs[0][name])
    if make is regressor:
        assert again.precision == model.precision
        torch.testing.assert_close(ours[0]["standard_deviation"].square(), ours[0]["variance"])
        assert (ours[0]["variance"] > 1 / model.precision).all()


def test_classifier_scores_are_those_of_its_predictions(tmp_path):
    model, data = classifier(), ImageRows(batch_size=16)
    fit = trainer(tmp_path)
    fit.fit(model, data)
    (found,) = fit.test(model, data, verbose=False)
    (predicted,) = fit.predict(model, data)
    labels = data.tensors["test"][1]
    mean = predicted["probabilities"]
    assert found["test/mc_error"] == pytest.approx((predicted["predicted"] != labels).float().mean().item())
    assert found["test/mc_nll"] == pytest.approx(
        -mean[torch.arange(40), labels].log().mean().item(), rel=1e-5
    )
    assert found["test/mc_mutual_information"] == pytest.approx(
        predicted["mutual_information"].mean().item(), rel=1e-4
    )
    assert found["test/error_low"] < found["test/error"] < found["test/error_high"]


@pytest.mark.parametrize("make", [regressor, classifier])
def test_a_second_test_counts_nothing_twice(tmp_path, make):
    model, data = make(), Rows() if make is regressor else ImageRows()
    first, second = (trainer(tmp_path).test(model, data, verbose=False) for _ in range(2))
    assert first == second


def test_networks_of_ones_own(tmp_path):
    class Wide(DropoutRegressor):
        def configure_network(self):
            return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1))

    given = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3))
    own = DropoutClassifier(network=given, samples=3)
    trainer(tmp_path, fast_dev_run=True).fit(own, ImageRows())
    assert own.network is given
    assert "network" not in own.hparams
    wide = Wide(precision=1.0, samples=3)
    trainer(tmp_path, fast_dev_run=True).fit(wide, Rows())
    assert wide.drop_probabilities()["3.weight"] == 0.5


def test_a_second_fit_keeps_the_scales_the_weights_were_trained_for(tmp_path):
    model = regressor()
    trainer(tmp_path).fit(model, Rows(batch_size=8))
    before = copy.deepcopy(model.input_scale.state_dict())
    rows = TensorDataset(torch.randn(9, 3), torch.randn(9, 1))
    trainer(tmp_path, limit_val_batches=0).fit(model, DataLoader(rows, batch_size=3))
    assert all(torch.equal(before[name], value) for name, value in model.input_scale.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.0}, r"`p` in \[0, 1\) but got 1.0"),
        ({"p": -0.1}, r"`p` in \[0, 1\) but got -0.1"),
        ({"p": [0.1]}, "`p`.* each of 2 layers"),
        ({"precision": 0.0}, "`(precision|tau)` to be positive.*0.0"),
        ({"precision": [1.0, -1.0]}, "`(precision|tau)` to be positive.*-1.0"),
        ({"precision": []}, "`precision` to hold at least one"),
        ({"length_scale": 0.0}, "`length_scale`.*0.0"),
        ({"convention": "mine"}, "`convention`.*'mine'"),
        ({"samples": 0}, "`samples`.*0"),
        ({"masks": "none"}, "`masks`.*'none'"),
        ({"seed": -1}, "`seed`.*-1"),
        ({"chunk": 0}, "`chunk`.*0"),
        ({"hidden": [0]}, "`hidden`.*0"),
        ({"hidden": 50}, r"`hidden` to be a sequence .* but got 50"),
        ({"activation": "selu"}, "`activation`.*'selu'"),
    ],
)
def test_what_a_regressor_refuses(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        regressor(**options)


def test_what_a_classifier_refuses():
    for options, message in (
        ({"p": 1.0}, "`p`"),
        ({"image_size": 15}, "`image_size`.*15"),
        ({"dropout": "ip"}, "`dropout`.*'ip'"),
        ({"num_classes": 1}, "`num_classes` to be at least 2 but got 1"),
        ({"in_channels": 0}, "`in_channels` to be at least 1 but got 0"),
        ({"length_scale": -1.0}, "`length_scale`"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier(**options)


def test_wrong_shapes_and_batches_are_refused(tmp_path):
    model = regressor()
    with pytest.raises(ValueError, match=r"`inputs` of shape \[B, 3\] but got \[2, 4\]"):
        model(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"`images` of shape \[B, 1, 16, 16\]"):
        classifier()(torch.zeros(2, 1, 28, 28))
    with pytest.raises(ValueError, match=r"targets of shape \[2, 1\] but got \[2, 2\]"):
        model.test_step((torch.zeros(2, 3), torch.zeros(2, 2)), 0)
    with pytest.raises(RuntimeError, match="number of training samples"):
        model.train().training_step((torch.zeros(2, 3), torch.zeros(2)), 0)
    loaders = [DataLoader(TensorDataset(torch.zeros(4, 3), torch.zeros(4, 1)))] * 2
    with pytest.raises(TypeError, match="one training dataloader"):
        trainer(tmp_path, limit_val_batches=0).fit(model, loaders)
    with pytest.raises(TypeError, match="pair of tensors"):
        read_moments([torch.zeros(4, 3)])
    with pytest.raises(ValueError, match="training samples"):
        read_moments([])


def test_mlp_starts_as_the_authors_do():
    torch.manual_seed(0)
    network = DropoutMLP([100, 200, 1], [0.0, 0.0])
    bound = math.sqrt(6 / 300)
    assert network[1].weight.abs().max() <= bound
    assert network[1].weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not network[1].bias.any()
