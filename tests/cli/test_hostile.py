"""A recipe that someone sent runs no code and writes nowhere but into the runs' folder."""

import inspect
import json
import os
import pickle
import re

import hostile
import pytest
import torch

from pl_losses import callbacks
from pl_losses.cli.arguments import check, split
from pl_losses.cli.checkpoints import plain_path
from pl_losses.cli.main import main
from pl_losses.cli.trusted_objects import CLASSES
from pl_losses.core.trust import ACCEPTED, DENIED, FOLDERS, PARTS, folder_options, lies_in, own_packages
from pl_losses.recipes import UsageError, dump, names

FAST = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.enable_progress_bar=false"]
FAST += ["--trainer.enable_model_summary=false", "--trainer.logger=false", "--test_after_fit=false"]
OURS = ["--model=LeNet5", "--data=Digits", "--trainer.accelerator=cpu", *FAST]


@pytest.fixture
def box(folder, monkeypatch):
    """A folder with what hostile recipes reach for, and a module of the user's own."""
    monkeypatch.delenv("PL_LOSSES_TRUST", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    hostile.plant(folder)
    (folder / "mine.py").write_text(
        "import os\nimport torch\nfrom pl_losses import LeNet5\nfrom pl_losses.data import Digits\n"
        "class Mine(LeNet5): ...\nclass Points(Digits): ...\n"
        "def adam(parameters) -> torch.optim.Adam:\n    return torch.optim.Adam(parameters)\n"
    )
    return folder


def sent(box, config):
    """The message with which a recipe is refused before torch is needed, and nothing is left behind."""
    (box / "sent.yaml").write_text(dump(config))
    before = sorted(os.listdir(box))
    with pytest.raises(UsageError) as error:
        check("fit", split(["--config", "sent.yaml"]))
    assert sorted(os.listdir(box)) == before
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


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


def test_options_may_write_anywhere(box):
    here = str(box / "elsewhere")
    config = {"trainer": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": here}}}}
    assert "can be given on the command line only" in sent(box, config)
    for option in ("save_dir", "init_args.save_dir"):
        check("fit", split(["--config=sent.yaml", f"--trainer.logger.{option}={here}"]))
    # The runs' folder is where the user wants it, and recipes stay below.
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": f"{here}/best"}}
    (box / "sent.yaml").write_text(dump({"trainer": {"callbacks": [checkpoint]}}))
    check("fit", split(["--config=sent.yaml", f"--trainer.default_root_dir={here}"]))
    with pytest.raises(UsageError):
        check("fit", split(["--config=sent.yaml", f"--trainer.default_root_dir={here}r"]))


def test_all_arguments_that_name_files_are_known():
    """Of classes that a recipe's trainer may name; the others do not write to what they name."""
    reads = {"config", "train_file", "path"}  # DeepSpeed's settings, which are read.
    assert all(getattr(callbacks, name) for name in callbacks.__all__)  # Which imports them.
    found = set()
    for base in ("Callback", "Logger", "Profiler", "Strategy", "CheckpointIO", "Precision"):
        for cls in below(CLASSES[base]):
            if any(lies_in(cls.__module__, (place,)) for place in ACCEPTED[base]):
                for name, one in inspect.signature(cls.__init__).parameters.items():
                    if re.search(r"str|Path|_PATH|Any", str(one.annotation)) and name not in reads:
                        found.add(name)
    writes = r"dir(path)?$|path$|file(name)?$|output|folder|root|^name$|version"
    suspects = {name for name in found if re.search(writes, name)}
    assert suspects <= {*FOLDERS, *PARTS}
    assert {"dirpath", "output", "save_dir", "filename"} <= suspects


def below(cls):
    return {cls}.union(*map(below, cls.__subclasses__()))


def test_the_options_of_a_lone_callback_reach_it():
    """A run whose callback writes elsewhere goes on by the command that it prints."""
    one = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "/elsewhere"}}
    assert folder_options({"callbacks": [one]}) == ["--trainer.callbacks.dirpath=/elsewhere"]
    assert folder_options({"callbacks": [one, "EarlyStopping"]}) == []


@pytest.mark.parametrize("where", ["local://{box}/kept", "runs/x/checkpoints/../../../kept"])
def test_a_checkpoint_deletes_no_files(box, monkeypatch, where):
    """Lightning deletes what a checkpoint says was the best before."""
    monkeypatch.setenv("PL_LOSSES_TRUST", "cli_modules")
    (box / "kept").mkdir()
    run = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    run += ["--model=cli_modules.Line", "--data=cli_modules.LocalPoints", "--test_after_fit=false"]
    run += ["--trainer.default_root_dir=runs/x"]
    assert main(["fit", *run, "--trainer.max_epochs=1"]) == 0
    [path] = (box / "runs").rglob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    [state] = [one for name, one in checkpoint["callbacks"].items() if name.startswith("ModelCheckpoint")]
    state["best_model_path"] = where.format(box=box)
    torch.save(checkpoint, "sent.ckpt")
    assert main(["fit", *run, "--trainer.max_epochs=2", "--ckpt_path=sent.ckpt"]) == 0
    assert (box / "kept").is_dir()


def test_paths_of_checkpoints_without_detours():
    folders = ["s3://bucket/run"]
    for path, plain in (
        ("runs/a/x.ckpt", "runs/a/x.ckpt"),
        ("../runs/a/x.ckpt", "../runs/a/x.ckpt"),
        ("/runs/a/../../etc", "/etc"),
        ("s3://bucket/run/x.ckpt", "s3://bucket/run/x.ckpt"),
        ("s3://bucket/run/../x.ckpt", ""),
        ("s3://bucket/runs/x.ckpt", ""),
        ("simplecache::/etc", ""),
        ("", ""),
        (3, ""),
    ):
        assert plain_path(path, folders) == plain


def test_a_link_out_of_the_folder_is_not_followed(box):
    (box / "runs").mkdir()
    (box / "runs" / "link").symlink_to(box.parent)
    assert "outside of `runs`" in sent(box, {"trainer": {"default_root_dir": "runs/link"}})


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
    told = re.search(r"go on with:\n  pl-losses (fit .*)", capsys.readouterr().err)[1].split()
    assert "--trainer.logger.save_dir=elsewhere" in told
    (checkpoint,) = (folder / "elsewhere").rglob("*.ckpt")
    assert main(["fit", "--ckpt_path", str(checkpoint)]) == 2
    assert "in the checkpoint is outside of `runs`" in capsys.readouterr().err
    assert main([*told, "--trainer.max_epochs=2"]) == 0
