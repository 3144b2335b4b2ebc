"""What an override returns wrongly, or a batch holds, is named in a sentence: the method and what it was."""

import re

import pytest
import torch
from lightning.pytorch import Trainer
from module_table import CASES, Data, loader, make
from torch.utils.data import DataLoader, TensorDataset

from pl_losses import LatticeReader, LeNet5, RectifierNet
from pl_losses.core import expected
from pl_losses.data import Digits

LOSSES = {
    **dict.fromkeys(CASES, "compute_loss"),
    **dict.fromkeys(("DenoisingAutoencoder", "StackedDenoisingAutoencoder"), "compute_reconstruction_loss"),
    "GAN": "compute_discriminator_loss",
}
# Isolated characters have a loss of their own, which is a function.
NAMES = [name for name in CASES if name != "LatticeReader of characters"]


def trainer():
    return Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, **QUIET)


def refusal(model, data, way="fit"):
    """The message of a fit, or of another way to run."""
    with pytest.raises((TypeError, ValueError)) as error:
        getattr(trainer(), way)(model, data)
    return str(error.value)


QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("evaluate", [False, True], ids=["fit", "test"])
def test_a_loss_is_what_it_is_to_be(name, evaluate):
    method = LOSSES[name]
    model = make(CASES[name])
    if name == "StackedDenoisingAutoencoder" and evaluate:
        method = "compute_loss"
    if name.startswith("Dropout"):
        model.size.fill_(5)
    if name == "DropoutRegressor" and evaluate:
        pytest.skip("its test has no loss")
    value, got = (0.5, "0.5") if evaluate else (torch.ones(2, 3), "a tensor of shape [2, 3]")
    setattr(model, method, lambda *_: value)
    message = refusal(model, Data(CASES[name], 5), "test" if evaluate else "fit")
    assert message.startswith(f"Expected `{method}` of {type(model).__name__} to return")
    assert message.endswith(f"but got {got}")


def test_the_generators_loss():
    model = make(CASES["GAN"])
    model.compute_generator_loss = lambda logits: logits
    message = refusal(model, Data(CASES["GAN"], 5))
    assert message.startswith("Expected `compute_generator_loss` of GAN to return a scalar")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["fit", "validate", "test", "predict"])
def test_a_batch_of_another_kind(name, way):
    case = CASES[name]
    wrong = case._replace(
        batch=lambda parts: {"image": parts[0], "label": parts[1]}, train=lambda batch: batch
    )
    model = make(case)
    if name.startswith("Dropout"):
        model.size.fill_(5)
        model.fixed = 1.0
    message = refusal(model, loader(wrong, 5, 5), way)
    assert message.startswith("Expected ")
    assert "\n" not in message
    assert "batch" in message
    assert "dict" in message


@pytest.mark.parametrize("name", ["LeNet5", "RectifierNet"])
def test_batches_that_a_subclass_unpacks(name):
    case = CASES[name]

    class Unpacking(type(make(case))):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["image"], batch["label"]), batch_idx)

        def test_step(self, batch, batch_idx):
            return super().test_step((batch["image"], batch["label"]), batch_idx)

        def predict_step(self, batch, batch_idx):
            return super().predict_step(batch["image"], batch_idx)

    named = case._replace(batch=lambda parts: {"image": parts[0], "label": parts[1]})
    found = []
    for kind, own in ((Unpacking, named), (None, case)):
        model, run = make(case), trainer()
        model.__class__ = kind or type(model)
        run.fit(model, loader(own, 9, 4))
        tested = run.test(model, loader(own, 7, 3), verbose=False)[0]
        found.append((tested, run.predict(model, loader(own, 7, 3))))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_dictionaries_where_batches_are_looked_at_before_the_first_step():
    one = {"image": torch.zeros(2, 1, 32, 32), "label": torch.zeros(2, dtype=torch.long)}
    data = DataLoader([one], batch_size=None)
    assert refusal(LeNet5(), data).startswith(
        "Expected `batch` of LeNet5 to be a tuple of inputs and targets"
    )
    assert "(inputs, targets) but got a dict of 'image'" in refusal(make(CASES["DropoutClassifier"]), data)


def test_a_reader_on_single_digits():
    message = refusal(LatticeReader(), Digits())
    assert message == (
        "Expected `batch` of LatticeReader to be a pl_losses.data.lines.Lines or"
        " pl_losses.data.lines.Characters but got a tuple of Tensor, Tensor"
    )


CLASSIFIERS = ["LeNet5", "RectifierNet", "MLP", "ConvNet", "DropoutClassifier", "FullBasicModel"]
LABELS = {
    "column": (lambda y: y[:, None].float(), "Expected `target` of shape [B] with B = 5 but got [5, 1]"),
    "floats": (lambda y: y.float(), "Expected `target` to hold integers but got torch.float32"),
    "others": (lambda y: y + 100, "Expected `target` in [0, "),
}


@pytest.mark.parametrize("way", ["fit", "test"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_labels_of_another_kind(name, labels, way):
    spoil, expected = LABELS[labels]
    case = CASES[name]
    model = make(case)
    if name.startswith("Dropout"):
        model.size.fill_(5)
    images, target = case.samples(5)
    model.log = lambda *_, **__: None
    step = model.training_step if way == "fit" else model.test_step
    with pytest.raises((TypeError, ValueError)) as error:
        step((images, spoil(target)), 0)
    assert str(error.value).startswith(expected) or (labels, way) == ("column", "test")


@pytest.mark.parametrize("name", ["LeNet5", "RectifierNet", "GAN", "LatticeReader"])
def test_images_without_channels(name):
    case = CASES[name]
    flat = case._replace(samples=lambda count: (case.samples(count)[0][:, 0], *case.samples(count)[1:]))
    assert re.match(
        r"Expected `?images`? of shape \[B, 1, .*\] .*but got \[", refusal(make(case), loader(flat, 5, 5))
    )


@pytest.mark.parametrize("name", CASES)
def test_no_batches(name):
    """A fit passes over them, as Lightning warns."""
    model = make(CASES[name])
    if name.startswith("Dropout"):
        model.fixed = 1.0
    nothing = DataLoader([None], batch_size=None, collate_fn=lambda batch: batch)
    message = refusal(model, nothing, "test")
    assert message.startswith("Expected ")
    assert "batch" in message
    assert "None" in message


def test_channels_of_another_number():
    with pytest.raises(ValueError, match=r"shape \[B, 1, H, W\] \(`in_channels`\) but got \[2, 3, 32, 32\]"):
        RectifierNet(in_channels=1)(torch.zeros(2, 3, 32, 32))


def test_outputs_of_another_number():
    model = LeNet5(optimizer=torch.optim.Adam)
    model.forward = lambda images: {"logits": images}
    case = CASES["LeNet5"]
    assert refusal(model, Data(case, 5)).endswith("[B, ...] with B = 5 but got a dict of 'logits'")


@pytest.mark.parametrize("wrong", ["optimizer", "pair of optimizer"])
def test_a_stage_has_functions(wrong):
    model = make(CASES["StackedDenoisingAutoencoder"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.stage_optimizer = lambda stage: optimizer if wrong == "optimizer" else (optimizer, None)
    message = refusal(model, Data(CASES["StackedDenoisingAutoencoder"], 5))
    assert message.startswith(
        "Expected `stage_optimizer` of StackedDenoisingAutoencoder to return a function"
    )
    assert message.endswith("but got a SGD" if wrong == "optimizer" else "but got a tuple of SGD, NoneType")


@pytest.mark.parametrize("name", ["LeNet5", "GAN"])
def test_an_optimizer_is_one(name):
    model = make(CASES[name])
    model._optimizer = model._generator_optimizer = list
    message = refusal(model, Data(CASES[name], 5))
    assert message.startswith("Expected `optimizer` to return a torch.optim.Optimizer but got a list")


def test_a_plateau_needs_a_value():
    model = LeNet5(lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    assert "with a `monitor` such as 'val/loss'" in refusal(model, Data(CASES["LeNet5"], 5))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", ["vector", "detached"])
def test_the_loss_of_a_step(name, wrong):
    model = make(CASES[name])
    if name.startswith("Dropout"):
        model.size.fill_(5)
    kind = type(model)

    class Own(kind):
        def backward(self, *_):
            raise AssertionError("went on")

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss.expand(3) if wrong == "vector" else loss.detach()

        def manual_backward(self, loss):
            super().manual_backward(loss.expand(3) if wrong == "vector" else loss.detach())

    model.__class__ = Own
    if not model.automatic_optimization:
        Own.training_step = kind.training_step
    got = "a tensor of shape [3]" if wrong == "vector" else "one that is detached, or made of no parameter"
    message = refusal(model, Data(CASES[name], 5))
    assert message.startswith("Expected the loss of `training_step` of Own to ")
    assert message.endswith(f"but got {got}")


def test_inputs_that_curvature_is_estimated_on():
    images = torch.zeros(4, 1, 32, 32)
    images[0, 0, 0] = torch.nan
    data = DataLoader(TensorDataset(images, torch.arange(4)), batch_size=4)
    assert refusal(LeNet5(), data).endswith(
        "of LeNet5 to be finite but got 32 of 4096 that are NaN or infinite"
    )


def test_arguments_and_types_in_words():
    class Few(LeNet5):
        def compute_loss(self, penalties):
            return penalties.mean()

    owner = {"self": Few()}
    with pytest.raises(TypeError) as error:
        owner["self"].compute_loss(1, 2)
    called = str(error.value).removeprefix("test_arguments_and_types_in_words.<locals>.")
    found = expected.arguments(called, owner)
    assert found.startswith("Expected `compute_loss` of Few to take (self, penalties, target): it takes 2")
    assert not expected.arguments(called, {})
    assert not expected.arguments("Few.own() takes 1 positional argument", owner)
    for layer, size in ((torch.nn.Linear(3, 2), (1, 3)), (torch.nn.Conv2d(3, 2, 1), (1, 3, 4, 4))):
        with pytest.raises(RuntimeError) as error:
            layer(torch.zeros(size, dtype=torch.float64))
        assert expected.types(str(error.value)).startswith("Expected inputs in batches of the type of the")
    assert not expected.types("another")
