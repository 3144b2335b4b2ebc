"""No config, link or checkpoint leads a run to write or delete files outside of its folder."""

import inspect
import os
import re

import hostile
import pytest
import torch
from commands import sent

from pl_losses import callbacks
from pl_losses.cli.arguments import check, split
from pl_losses.cli.checkpoints import WholeCheckpointIO, plain_path
from pl_losses.cli.main import main
from pl_losses.cli.trusted_objects import CLASSES
from pl_losses.core.trust import (
    ACCEPTED,
    FOLDERS,
    PARTS,
    is_part,
    lies_in,
)
from pl_losses.recipes import UsageError, dump


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


@pytest.mark.parametrize(
    "where",
    ["local://{box}/kept", "runs/x/checkpoints/../../../kept", "{box}/runs/x/checkpoints/link/kept"],
)
def test_a_checkpoint_deletes_no_files(box, monkeypatch, where):
    """Lightning deletes what a checkpoint says was the best before."""
    monkeypatch.setenv("PL_LOSSES_TRUST", "cli_modules")
    (box / "kept").mkdir()
    run = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    run += ["--model=cli_modules.Line", "--data=cli_modules.LocalPoints", "--test_after_fit=false"]
    run += ["--trainer.default_root_dir=runs/x"]
    assert main(["fit", *run, "--trainer.max_epochs=1"]) == 0
    [path] = (box / "runs").rglob("*.ckpt")
    (path.parent / "link").symlink_to(box)
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


@pytest.mark.parametrize(
    ("link", "logger"),
    [
        ("link", {"name": "link", "version": "v"}),
        ("pl_losses", {}),
        ("a/v/checkpoints", {"name": "a", "version": "v"}),
        ("a/v/metrics.csv", {"name": "a", "version": "v"}),
    ],
)
def test_no_run_writes_through_a_link(box, monkeypatch, capsys, link, logger):
    """Of a folder that was sent with links in it."""
    monkeypatch.setenv("PL_LOSSES_TRUST", "cli_modules")
    (box / "outside").mkdir()
    (box / "outside" / "kept").write_text("kept")
    (box / "runs" / link).parent.mkdir(parents=True)
    (box / "runs" / link).symlink_to(box / "outside" / ("kept" if link.endswith("csv") else ""))
    config = {"model": "cli_modules.Line", "data": "cli_modules.LocalPoints", "test_after_fit": False}
    config["trainer"] = {"logger": hostile.of_class("CSVLogger", **logger), "max_epochs": 1}
    (box / "sent.yaml").write_text(dump(config))
    assert main(["fit", "--config=sent.yaml", "--trainer.accelerator=cpu"]) == 2
    assert "by a link" in capsys.readouterr().err
    assert os.listdir(box / "outside") == ["kept"]
    assert (box / "outside" / "kept").read_text() == "kept"


def test_no_plugin_writes_checkpoints_through_a_link(box, monkeypatch):
    monkeypatch.setenv("PL_LOSSES_TRUST", "cli_modules")
    hostile.link(box)
    config = {"model": "cli_modules.Line", "data": "cli_modules.LocalPoints", "test_after_fit": False}
    checkpoint = hostile.of_class("ModelCheckpoint", dirpath="runs", filename="link/x")
    plugin = hostile.of_class(
        "lightning.pytorch.plugins.io.AsyncCheckpointIO", checkpoint_io="TorchCheckpointIO"
    )
    config["trainer"] = {"logger": False, "callbacks": [checkpoint], "plugins": [plugin], "max_epochs": 1}
    (box / "sent.yaml").write_text(dump(config))
    main(["fit", "--config=sent.yaml", "--trainer.accelerator=cpu"])
    assert os.listdir(box / "away") == []


def test_checkpoints_are_not_written_or_deleted_through_a_link(box):
    (box / "outside").mkdir()
    (box / "outside" / "x.ckpt").write_text("kept")
    (box / "runs").mkdir()
    (box / "runs" / "link").symlink_to(box / "outside")
    io = WholeCheckpointIO(["runs"])
    with pytest.raises(UsageError, match="by a link"):
        io.save_checkpoint({}, "runs/link/x.ckpt")
    io.remove_checkpoint("runs/link/x.ckpt")
    assert (box / "outside" / "x.ckpt").read_text() == "kept"
    # Where the user says so, and where no link is.
    for path, roots in (("runs/link/x.ckpt", ["runs", "outside"]), ("runs/x.ckpt", ["runs"])):
        io = WholeCheckpointIO(roots)
        io.save_checkpoint({}, path)
        io.remove_checkpoint(path)
    assert os.listdir(box / "outside") == []


def test_names_of_metrics_in_names_of_files():
    good = ("{epoch}-{val/loss:.2f}", "best/{step:06d}", "a..b", "{val_loss}.{epoch}", "{test/top-1.5:.1%}")
    bad = ("{/a}", "{../a}", "{a/../../b:d}", "{a:/>9}", "{a:c}", "{a", "a}", "{}", "{a!r}", "..", "x\n")
    assert all(map(is_part, good))
    assert not any(map(is_part, bad))


@pytest.mark.parametrize("value", ["{{{box}/evil}}", "{{../evil}}", "{{../evil:d}}"])
def test_a_checkpoint_names_no_files_elsewhere(box, capsys, value):
    """The config that it keeps is read as strictly as a recipe."""
    checkpoint = hostile.of_class("ModelCheckpoint", dirpath="runs", filename=value.format(box=box))
    config = hostile.recipe(callbacks=[checkpoint])
    torch.save({"state_dict": {}, "pl_losses": config}, "sent.ckpt")
    before = sorted(os.listdir(box))
    assert main(["fit", "--ckpt_path=sent.ckpt"]) == 2
    assert "`trainer.callbacks.filename` in the checkpoint may lead out" in capsys.readouterr().err
    assert sorted(os.listdir(box)) == before
