"""One shape of public constructors and hooks: what every LightningModule, DataModule and callback keeps."""

import inspect
from pathlib import Path

import lightning as L
import pytest

import pl_losses
from pl_losses import callbacks, data
from pl_losses.core.validation import check_types

CLASSES = [
    cls
    for face in (pl_losses, callbacks, data)
    for name in face.__all__
    if inspect.isclass(cls := getattr(face, name))
    and issubclass(cls, L.LightningModule | L.LightningDataModule | L.Callback)
]
# Hooks that build one of several parts, told which; the others take nothing.
BUILDS_FROM = {
    "configure_layer",
    "configure_corruption",
    "configure_features",
    "configure_objective",
    "configure_rectifier",
}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_few_arguments_are_positional_and_optimizers_come_last(cls):
    parameters = list(inspect.signature(cls).parameters.values())
    positional = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert len(positional) <= 3, f"{positional}: all but the first three are keyword-only"
    names = [one.name for one in parameters]
    last = [name for name in names if name.endswith(("optimizer", "lr_scheduler"))]
    assert names[len(names) - len(last) :] == last


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_what_is_configured_is_built_once(cls):
    own = [name for name in dir(cls) if name.startswith("configure_") and name not in BUILDS_FROM]
    for name in own:
        if getattr(cls, name).__module__.startswith("pl_losses"):
            parameters = list(inspect.signature(getattr(cls, name)).parameters)
            assert parameters == ["self"], (
                f"`{name}` takes {parameters}: a hook that computes is `compute_...`"
            )


# Arguments that name files or folders.
FILES = {"root", "content", "style", "weights", "start_from", "train_file", "test_file", "output", "copies"}
NAMED = [(cls, name) for cls in CLASSES for name in inspect.signature(cls).parameters if name in FILES]


@pytest.mark.parametrize(("cls", "name"), NAMED, ids=lambda one: getattr(one, "__name__", one))
def test_files_and_folders_are_named_by_paths_too(cls, name):
    check_types(cls.__init__, {name: Path("x")})


def test_paths_are_text_in_a_checkpoint():
    made = data.ImageFolders(Path("x"))
    assert made.root == Path("x")
    assert made.hparams["root"] == "x"
    pictures = data.Pictures(Path("china"), [Path("starry-night")], 64, masks=[Path("china")])
    assert (pictures.content, pictures.style, pictures.masks) == (["china"], ["starry-night"], ["china"])
    assert pl_losses.StyleTransfer(weights=Path("x.pt")).hparams["weights"] == "x.pt"
