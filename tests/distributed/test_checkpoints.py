"""All ranks take one checkpoint, and a run of several ranks is found like any other."""

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

cli_modules = pytest.importorskip("cli_modules")

from pl_losses.cli.arguments import check, split  # noqa: E402
from pl_losses.cli.checkpoints import CheckpointCheck  # noqa: E402
from pl_losses.core.run_folders import choose  # noqa: E402
from pl_losses.monitoring.record import RunRecord  # noqa: E402
from pl_losses.recipes import UsageError  # noqa: E402


class Found(CheckpointCheck):
    """The checkpoint that a rank found, and a note of what it was told."""

    def __init__(self, paths):
        super().__init__(None, {})
        self.paths = paths

    def setup(self, trainer, pl_module, stage):
        self.path = self.paths[trainer.global_rank]
        found = ""
        try:
            super().setup(trainer, pl_module, stage)
        except UsageError as error:
            found = str(error)
        Path(trainer.default_root_dir, f"told-{trainer.global_rank}").write_text(found)


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "b"), (None, "b"), ("a", None)])
def test_ranks_that_found_different_checkpoints_are_refused(make_trainer, tmp_path, paths):
    make_trainer(2, callbacks=[Found(paths)]).validate(cli_modules.Line(), cli_modules.LocalPoints())
    found = [(tmp_path / f"told-{rank}").read_text() for rank in range(2)]
    same = paths[0] == paths[1]
    wanted = "" if same else f"Ranks found other checkpoints than {paths[0]}: name it by --ckpt_path"
    assert found == [wanted] * 2


def test_a_run_of_two_ranks_is_found(make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = RunRecord({"model": {"class_path": "cli_modules.Line"}}, ["lenet/digits"])
    callbacks = [record, ModelCheckpoint(dirpath=tmp_path / "kept", monitor="val_loss")]
    make_trainer(2, callbacks=callbacks, enable_checkpointing=True, max_epochs=1).fit(
        cli_modules.Line(), cli_modules.LocalPoints()
    )
    (path,) = (tmp_path / "kept").iterdir()
    assert len(list(tmp_path.glob("record*.json"))) == 1
    options = ["--config=lenet/digits", "--model=cli_modules.Line", "--trainer.default_root_dir=."]
    for which in ("last", "best"):
        flags = split([*options, f"--ckpt_path={which}"])
        assert choose("test", flags, check("test", flags)).path == "kept/" + path.name
