"""The options of RectifierNet beyond its first form: initialisation, groups, top-5 errors."""

import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from pl_losses import RectifierNet
from pl_losses.data import Digits
from pl_losses.papers.prelu.module import top_prediction

TINY = {"stages": [[4], [6]], "hidden_size": 8}


def weights(net):
    return [layer for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]


def test_initialisations():
    wide = {"stages": [[64, 128]], "hidden_size": 256, "rectifier": "relu"}
    he, xavier, torchs = (RectifierNet(init=init, **wide) for init in ("he", "xavier", "torch"))
    assert weights(he)[1].weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert weights(xavier)[1].weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 192)), rel=0.02)
    assert weights(torchs)[1].weight.std().item() == pytest.approx(math.sqrt(1 / (3 * 9 * 64)), rel=0.02)
    for net in (he, xavier):
        assert weights(net)[-1].weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not any(layer.bias.any() for layer in weights(net))


@torch.no_grad()
def test_thirty_layers_keep_the_signal_with_he_and_lose_it_with_xavier():
    """Fig. 3: the 29 halvings of Xavier's, less what the transitions between widths give back."""
    scale = {}
    for init in ("he", "xavier"):
        torch.manual_seed(0)
        net = RectifierNet(architecture="depth30", stem="small", width=0.125, rectifier="relu", init=init)
        outputs = net.head[:-1].eval()(net.features(torch.randn(4, 1, 32, 32)))
        scale[init] = outputs.square().mean().item()
    assert 1e-3 < scale["he"] < 1e3
    assert scale["xavier"] / scale["he"] < 2.0**-20


def fitted(tmp_path, model, **options):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=1,
        val_check_interval=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(model, Digits(batch_size=16))
    return trainer


def test_the_optimizers_weight_decay_does_not_reach_the_slopes(tmp_path):
    model = RectifierNet(
        **TINY,
        slope_lr=0.0,
        slope_momentum=0.5,
        optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    )
    trainer = fitted(tmp_path, model)
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    assert groups["weights"]["weight_decay"] == 0.1
    assert (groups["weights"]["momentum"], groups["slopes"]["momentum"]) == (0.9, 0.5)
    assert groups["slopes"]["weight_decay"] == 0
    assert sum(map(len, (group["params"] for group in groups.values()))) == len(list(model.parameters()))
    slopes = [layer.weight for layer in model.modules() if isinstance(layer, nn.PReLU)]
    assert all((slope == 0.25).all() for slope in slopes)
    assert {"val/error", "val/error_top5"} <= set(trainer.callback_metrics)


def test_a_momentum_of_the_slopes_needs_an_optimizer_with_one():
    model = RectifierNet(**TINY, slope_momentum=0.5, optimizer=torch.optim.Adam)
    with pytest.raises(ValueError, match=r"`slope_momentum` with an optimizer that has a momentum .* Adam"):
        model.configure_optimizers()


def test_top_5_errors_are_counted(tmp_path):
    scores, target = torch.randn(50, 10), torch.arange(50) % 10
    best = scores.argsort(dim=1, descending=True)[:, :5].tolist()
    hits = [label in row for label, row in zip(target.tolist(), best, strict=True)]
    found = top_prediction(scores, target)
    assert (found == target).tolist() == hits
    assert (found[~torch.tensor(hits)] == -1).all()


def test_few_classes_have_no_top_5():
    model = RectifierNet(**TINY, num_classes=5)
    batch = torch.zeros(2, 1, 32, 32), torch.tensor([0, 4])
    model.validation_step(batch, 0)
    model.test_step(batch, 0)
    assert list(model.evaluation_results("val")) == ["loss", "error"]
    assert list(model.evaluation_results("test")) == ["loss", "error", "error_low", "error_high"]


def test_checkpoints_are_plain_and_name_the_architecture(tmp_path):
    model = RectifierNet(architecture="E", stem="small", width=0.02, rectifier="prelu_shared", init="xavier")
    trainer = fitted(tmp_path, model)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = RectifierNet.load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.rectifier == "prelu_shared"
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"architecture": "D"}, "architecture"),
        ({"architecture": "E", "stages": [[4]]}, "stages"),
        ({"architecture": "E", "width": 0.0}, "width"),
        ({"width": 0.5}, "width"),
        ({"stem": "small"}, "width"),
        ({"architecture": "E", "stem": "tiny"}, "stem"),
        ({"init": "glorot"}, "init"),
        ({"test_views": "five"}, "test_views"),
        ({"test_views": "ten"}, "test_crop"),
        ({"test_crop": 24}, "test_crop"),
        ({"slope_lr": -1.0}, "slope_lr"),
        ({"slope_lr": 0.1, "rectifier": "relu"}, "slope_lr"),
        ({"test_views": "ten", "test_crop": 0}, "test_crop"),
        ({"num_classes": 1}, "num_classes"),
        ({"pyramid": [2, 0]}, "pyramid"),
    ],
)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        RectifierNet(**options)
