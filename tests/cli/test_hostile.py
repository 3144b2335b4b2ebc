"""A recipe that someone sent runs no code and writes nowhere but into the runs' folder."""

import json
import pickle
import re

import hostile
import pytest
import torch
from commands import sent
from torchmetrics import SumMetric
from torchmetrics.wrappers import bootstrapping

from pl_losses.cli.arguments import check, split
from pl_losses.cli.lightning_cli import print_message
from pl_losses.cli.main import main
from pl_losses.cli.parser import shorten
from pl_losses.cli.trusted_objects import check_object
from pl_losses.core.trust import (
    ACCEPTED,
    DENIED,
    fault,
    folder_options,
    own_packages,
    takes_class,
)
from pl_losses.recipes import UsageError, dump, names

FAST = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.enable_progress_bar=false"]
FAST += ["--trainer.enable_model_summary=false", "--trainer.logger=false", "--test_after_fit=false"]
OURS = ["--model=LeNet5", "--data=Digits", "--trainer.accelerator=cpu", *FAST]


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_all_hostile_recipes_are_refused_by_their_text(box, monkeypatch, every):
    """None is imported either: of 174 of these, 48 left a mark when recipes could name anything."""
    monkeypatch.setattr("builtins.__import__", watching(__import__))
    let_pass = []
    for name, config in [*hostile.RECIPES[::every], *hostile.writes()]:
        try:
            assert "sent.yaml" in sent(box, config)
        except (AssertionError, pytest.fail.Exception) as error:
            let_pass.append(f"{name}: {error}")
    assert let_pass == []
    assert len(hostile.RECIPES) > 1400


def watching(original):
    def watched(name, *args, **kwargs):
        assert name.split(".")[0] not in ("planted", "sympy", "joblib", "pandas"), name
        return original(name, *args, **kwargs)

    return watched


def test_all_shipped_recipes_are_accepted(box):
    for name in names():
        check("fit", split(["--config", name]))


@pytest.mark.parametrize(
    "value",
    [
        {"class_path": "torch.load", "init_args": {"f": "evil.pt", "weights_only": False}},
        "torch.hub.load",
        "numpy.load",
        "functools.partial",
        "pl_losses.LeNet5.load_from_checkpoint",
    ],
)
@pytest.mark.parametrize("option", ["--model.optimizer", "--trainer.callbacks+"])
def test_options_take_no_functions_either(box, value, option):
    status = main(["fit", *OURS, f"{option}={value if isinstance(value, str) else json.dumps(value)}"])
    assert status == 2
    assert not (box / hostile.MARK).exists()


def through_the_parser(config, *options, own=frozenset()):
    """Parse and instantiate as if the front door had let a config pass."""
    from pl_losses.cli.lightning_cli import PLLossesCLI, prepare_imports

    prepare_imports(("LeNet5", "Digits"), own)
    return PLLossesCLI(["fit", *options], config, own=own)


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("optimizer", "torch.load"),
        ("optimizer", "pl_losses.monitoring.record.save_config"),
        ("optimizer", "torch.optim.adam.torch.load"),
        ("lr_scheduler", "torch.nn.functional.torch.load"),
        ("lr_scheduler", "pl_losses.data.cifar10.pickle.loads"),
        ("callbacks", "planted.Planted"),
        ("hook", "torch.nn.functional.torch.load"),
        ("hook", "torch.optim.adam.torch.load"),
        ("hook", "torch.from_file"),
        ("hook", "lightning.pytorch.core.saving.load_hparams_from_yaml"),
        ("hook text", "torch.nn.functional.torch.load"),
        ("hook text", "lightning.pytorch.core.saving.load_hparams_from_yaml"),
        ("kwargs", "planted.Planted"),
        ("strategy", "planted.Planted"),
    ],
)
def test_the_walls_behind_hold_by_themselves(box, place, path):
    node = {"class_path": path, "init_args": hostile.CALLS[path]}
    profiler = {"class_path": "PyTorchProfiler", "dict_kwargs": {"schedule": node}}
    config = {
        "optimizer": hostile.with_argument("optimizer", node),
        "lr_scheduler": hostile.with_argument("lr_scheduler", node),
        "callbacks": hostile.recipe(callbacks=[node]),
        "hook": hostile.with_hook(node),
        "hook text": hostile.with_hook(path),
        "kwargs": hostile.recipe(profiler=profiler),
        "strategy": hostile.recipe(strategy=node),
    }[place]
    with pytest.raises(UsageError):
        through_the_parser(config)
    assert not (box / hostile.MARK).exists()


def test_what_stays_data_is_not_built(box):
    """An argument of any type holds what it is given."""
    from pl_losses.cli.lightning_cli import prepare_imports

    prepare_imports()
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--x", type=object)
    node = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}
    parsed = parser.instantiate(parser.parse_object({"x": node}))
    assert not isinstance(parsed.x, torch.nn.Module)


MINE = {"model": "mine.Mine", "data": "mine.Points"}


def test_own_classes_need_a_word_of_trust(box, capsys, monkeypatch):
    message = sent(box, MINE)
    assert message == (
        "`model` in sent.yaml names `mine.Mine`: "
        "`mine` is not trusted; if its code is yours, add --trust mine"
    )
    fit = ["fit", "--config", "sent.yaml", "--trainer.accelerator=cpu", *FAST]
    assert main([*fit, "--trust", "mine", "--model.optimizer=mine.adam"]) == 0
    shown = capsys.readouterr().out
    assert "pl-losses test --ckpt_path" in shown
    assert "--trust mine" in shown
    # A checkpoint names the classes that it was made with, and is no more trusted than a recipe.
    [path] = (box / "runs" / "checkpoints").glob("*.ckpt")
    assert main(["test", "--ckpt_path", str(path), *FAST[2:]]) == 2
    assert "`model` in the checkpoint names `mine.Mine`" in capsys.readouterr().err
    # Named by an option, or by the environment.
    assert "mine" in own_packages(split(["--model", "mine.Mine"]))
    check("fit", split(["--config", "sent.yaml", "--model", "mine.Mine"]))
    monkeypatch.setenv("PL_LOSSES_TRUST", "mine,other")
    check("fit", split(["--config", "sent.yaml"]))


@pytest.mark.parametrize("name", ["os", "torch", "pl_losses", "joblib", "zipfile", "a-b", "mine,subprocess"])
def test_what_cannot_be_trusted(box, name):
    with pytest.raises(UsageError, match="Expected `--trust` to name a module of your own"):
        check("fit", split(["--trust", name]))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("trainer.default_root_dir", "mine.out"),
        ("trainer.callbacks.filename", "mine.x"),
        ("trainer.logger.save_dir", '{"class_path": "mine.X"}'),
        ("trainer.precision", "mine.x"),
        ("data.content", "mine.jpg"),
        ("data.seed", "mine.x"),
        ("model.weights", "mine.pth"),
    ],
)
def test_files_folders_and_texts_trust_nothing(box, option, value):
    assert own_packages([(option, value)]) == frozenset()
    (box / "sent.yaml").write_text(dump(MINE))
    with pytest.raises(UsageError, match="`mine` is not trusted"):
        check("fit", split(["--config=sent.yaml", f"--{option}={value}"]))


@pytest.mark.parametrize(
    "option",
    [
        *("model", "data.class_path", "model.optimizer", "model.init_args.lr_scheduler", "trainer.strategy"),
        *("trainer.callbacks+", "trainer.logger", "trainer.strategy.cluster_environment", "model.network"),
        "trainer.callbacks.on_fit_start",
    ],
)
def test_options_that_name_a_class_trust_its_package(box, option):
    assert own_packages([(option, "mine.X")]) == {"mine"}


def test_arguments_of_own_classes_that_take_classes(box):
    """Told from their annotations, without an import."""
    (box / "nested.py").write_text(
        "raise ImportError\nimport torch\nclass M(torch.nn.Module):\n"
        "    def __init__(self, encoder: torch.nn.Module, title: str): ...\n"
    )
    assert takes_class("model.encoder", ["nested.M"])
    assert not takes_class("model.title", ["nested.M"])


@pytest.mark.parametrize(
    "path", ["numpy.load", "numpy.memmap", "sympy.sympify", "wandb.init", "numpy.nothing"]
)
def test_of_installed_packages_only_classes_that_belong(box, path):
    """Functions of theirs may read pickles, whoever trusts the package."""
    top = path.split(".")[0]
    config = hostile.with_argument("optimizer", hostile.of_class(path, **hostile.CALLS.get(path, {})))
    assert "--trust" not in sent(box, config)
    with pytest.raises(UsageError):
        check("fit", split(["--config=sent.yaml", "--trust", top]))
    with pytest.raises(UsageError):
        through_the_parser(config, own=frozenset({top}))
    assert not (box / hostile.MARK).exists()
    for base in ACCEPTED:
        assert fault(path, (base,), frozenset({top}))


def test_classes_of_installed_packages_that_belong(box):
    check_object(SumMetric, frozenset({"torchmetrics"}), "model.network")
    assert fault("torchmetrics.aggregation.SumMetric", ("Module",), frozenset({"torchmetrics"})) == ""
    for wrong in (SumMetric, bootstrapping._bootstrap_sampler):
        with pytest.raises(UsageError):
            check_object(wrong, frozenset() if wrong is SumMetric else frozenset({"torchmetrics"}), "x")


def test_trust_is_not_for_what_a_module_imports(box):
    """`mine` imports os, and that is no part of it."""
    for path in ("mine.os.system", "mine.torch.load"):
        config = hostile.with_argument("optimizer", {"class_path": path, "init_args": {}})
        with pytest.raises(UsageError):
            through_the_parser(config, own=frozenset({"mine"}))


def test_a_file_given_by_an_option_is_a_recipe(box):
    (box / "logger.yaml").write_text("class_path: CSVLogger\ninit_args: {save_dir: /elsewhere}\n")
    for option, file in (("--trainer.logger", "logger.yaml"), ("--model", "part.yaml")):
        with pytest.raises(UsageError, match=file):
            check("fit", split([option, file]))
    (box / "photo.png").touch()
    assert own_packages(split(["--model", "part.yaml", "--data.content", "photo.png"])) == frozenset()


def test_the_options_of_a_lone_callback_reach_it():
    """A run whose callback writes elsewhere goes on by the command that it prints."""
    one = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "/elsewhere"}}
    assert folder_options({"callbacks": [one]}) == ["--trainer.callbacks.dirpath=/elsewhere"]
    assert folder_options({"callbacks": [one, "EarlyStopping"]}) == []


def test_no_control_characters_reach_the_terminal(box, capsys):
    """They move the cursor, set the title, or fake lines of the program's own."""
    odd = "\x1b[31mred\x07\x9b2J"
    values = ({odd: 1}, {"model": odd}, {"trainer": {odd: 1}}, {"extends": odd}, {"ckpt_path": odd})
    for config in (*values, hostile.with_argument("weights", odd), hostile.recipe(gradient_clip_val=[[odd]])):
        (box / "sent.yaml").write_text(dump(config))
        assert main(["fit", "--config=sent.yaml"]) == 2
        assert main(["fit", *OURS, f"--ckpt_path={odd}"]) == 2
        printed = capsys.readouterr().err
        assert all(one.isprintable() or one == "\n" for one in printed)
        assert "red" in printed
    print_message(odd)
    assert capsys.readouterr().err == "\\x1b[31mred\\x07\\x9b2J\n"


def test_a_line_is_not_faked(box):
    for config in ({"a\nb": 1}, {"trainer": {"a\nb": 1}}, {"extends": "a\nb"}, {"model": "a\nb"}):
        assert "a\\nb" in sent(box, config)


@pytest.mark.parametrize("value", ["x;touch mark", "a#b", " x", ""])
def test_an_id_that_wandb_does_not_take(box, capsys, value):
    config = hostile.recipe(logger=hostile.of_class("WandbLogger", id=value))
    (box / "sent.yaml").write_text(dump(config))
    assert main(["fit", "--config=sent.yaml"]) == 2
    assert "Expected `trainer.logger.id` to have none of" in capsys.readouterr().err


def test_a_class_in_a_message_goes_by_its_name():
    got = f"Namespace(class_path='lightning.DDPStrategy', init_args=Namespace(x={'1' * 1000}))"
    printed = f"Expected str but got `lightning.DDPStrategy` with x={'1' * 78}"
    assert shorten(f"Expected str but got {got}") == printed


def test_dashboards_import_nothing_strange(box, capsys):
    (box / "sent.yaml").write_text(dump({"model": "planted.Planted"}))
    assert main(["dashboard", "json", "sent.yaml"]) == 2
    assert "not trusted" in capsys.readouterr().err
    assert not (box / hostile.MARK).exists()


def test_an_inherited_recipe_is_read_as_strictly(box):
    (box / "above.yaml").write_text(dump(hostile.with_argument("optimizer", "torch.load")))
    assert "torch.load" in sent(box, {"extends": "./above"})
    text = "x: &a {class_path: torch.load}\nmodel: {class_path: LeNet5, init_args: {optimizer: *a}}\n"
    (box / "sent.yaml").write_text(text.replace("x: &a", "data: &a"))
    with pytest.raises(UsageError, match=r"torch\.load"):
        check("fit", split(["--config=sent.yaml"]))


def test_denied_are_the_standard_library_and_more():
    assert {"os", "subprocess", "builtins", "functools", "importlib", "joblib"} <= DENIED
    assert pickle.__name__ in DENIED


def test_a_checkpoint_alone_writes_where_its_run_did_only_if_that_is_asked_for(folder, monkeypatch, capsys):
    """The commands that a run prints name such a folder; the checkpoint's own word is not enough."""
    monkeypatch.setenv("PL_LOSSES_TRUST", "cli_modules")
    run = ["--trainer.logger=CSVLogger", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    model = ["--model=cli_modules.Line", "--data=cli_modules.LocalPoints", "--test_after_fit=false"]
    assert main(["fit", *model, *run, "--trainer.logger.save_dir=elsewhere"]) == 0
    printed = re.search(r"resume with:\n  pl-losses (fit .*)", capsys.readouterr().err)[1].split()
    assert "--trainer.logger.save_dir=elsewhere" in printed
    (checkpoint,) = (folder / "elsewhere").rglob("*.ckpt")
    assert main(["fit", "--ckpt_path", str(checkpoint)]) == 2
    assert "in the checkpoint is outside of `runs`" in capsys.readouterr().err
    assert main([*printed, "--trainer.max_epochs=2"]) == 0
