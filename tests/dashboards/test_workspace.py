"""Workspaces as code; that each recipe's fits what the recipe logs is tested with the recipes."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import wandb
from workspaces import patterns_of

from pl_losses import recipes
from pl_losses.cli.main import main
from pl_losses.core import manifest
from pl_losses.core.manifests import manifests, panels_in, reproduced
from pl_losses.core.panels import Section
from pl_losses.dashboards import build_workspace, push
from pl_losses.dashboards.keys import keys_of, read_recipe
from pl_losses.dashboards.workspace import sections_of

FIGURES = {
    "lenet/digits": "What was misread",
    "gtn/strings-digits": "error-reject curve",
    "prelu/digits-prelu": "Slopes by depth",
    "adam/vae": "Bias correction",
    "sdae/digits": "Filters and reconstructions",
    "style/demo": "The image",
    "dropout/co2": "Fig. 2",
    "dropout/rotated-digits": "Fig. 4",
    "dropout/uci": "Predictions with their uncertainty",
    "prelu/depth30-xavier": "Signal by depth",
    "gan/full-basic-model": "What was misread",
    "adam/amsgrad-counterexample": "Where Adam goes",
    "gan/digits": "Samples",
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_papers_figure_comes_first(name):
    built = build_workspace(name)
    assert FIGURES[name] in built.sections[0].name
    assert all(panel.layout.w == 8 for section in built.sections for panel in section.panels)


@pytest.mark.parametrize("name", [name for name in recipes.names() if not name.startswith("trainers/")])
def test_every_recipe_begins_with_something_to_look_at(name):
    first, *others = sections_of(read_recipe(name))
    assert first.figure
    kinds = {panel.kind for panel in first.panels}
    # A paper whose figure is not named above may have a curve for it.
    named = name.partition("/")[0] in {"monitors", *(figure.partition("/")[0] for figure in FIGURES)}
    assert {"pictures", "histogram", "table", "chart"} & kinds or not named
    shown = [
        panel.keys for section in (first, *others) for panel in section.panels if panel.kind == "pictures"
    ]
    assert len(shown) == len(set(shown)), "a picture is shown twice"


@pytest.mark.parametrize("name", [one.name for one in reproduced().values() if one.panels])
def test_what_is_reproduced_has_a_workspace(name):
    assert any(name in pattern.replace("\\", "") for pattern in patterns_of(build_workspace(name)))


def test_all_panels_of_a_manifest_are_of_a_class():
    import pl_losses
    from pl_losses import callbacks

    shown = [getattr(face, name) for face in (pl_losses, callbacks) for name in face.__all__]
    known = {vars(base).get("panels") for one in shown for base in getattr(one, "__mro__", ())}
    known |= {one.panels for one in reproduced().values()} | {manifest.HOW_FAR, manifest.LEARNING_RATE}
    declared = {panels for room in manifests() for panels in panels_in(room)}
    assert declared <= known
    assert declared >= {panels for panels in known if panels}
    assert all(isinstance(section, Section) for panels in declared for section in panels)


def test_keys_of_a_class_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_model.py").write_text(
        "from pl_losses import LeNet5\n"
        "class Own(LeNet5):\n"
        "    KEYS = {'train/margin': 'margin', 'own/<layer>/norm': 'norm', 'own/map': 'picture: a map'}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PL_LOSSES_TRUST", "own_model")
    recipe = tmp_path / "own.yaml"
    recipe.write_text("extends: lenet/digits\nmodel: own_model.Own\n")
    read = read_recipe(str(recipe))
    assert {"train/margin", "<stage>/loss", "own/map"} <= keys_of(read).keys()
    sections = {section.name: section.panels for section in sections_of(read)}
    assert [panel.kind for panel in sections["own"]] == ["lines", "pictures"]
    assert sections["margin"][0].keys == ("<stage>/margin",)


def test_push_saves_over_what_was_pushed_before():
    saved = []

    def save(workspace):
        saved.append(workspace._to_model())
        return SimpleNamespace(url="https://wandb.example/view")

    assert push("lenet/digits", "me", "mine", save=save) == "https://wandb.example/view"
    push("lenet/digits", "me", "mine", save=save)
    push("lenet/mnist", "me", "mine", save=save)
    assert (saved[0].entity, saved[0].project, saved[0].display_name) == (
        "me",
        "mine",
        "pl_losses: lenet/digits",
    )
    assert saved[0].name == saved[1].name != saved[2].name

    def fail(workspace):
        raise wandb.errors.CommError("no such entity")

    with pytest.raises(Exception, match="W&B refused, or cannot be reached: no such entity"):
        push("lenet/digits", "me", "mine", save=fail)


def test_json(capsys):
    assert main(["dashboard", "json", "lenet/digits", "--project", "mine"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert view["project"] == "mine"
    runs = view["spec"]["section"]["runSets"][0]
    assert "lenet/digits" in runs["filters"]["filters"][0]["value"]
    assert runs["grouping"] == [{"section": "config", "name": "recipe.value"}]


REFUSED = [
    (["json", "lenet/digts"], "No recipe named `lenet/digts`: did you mean `lenet/digits`?"),
    (["json", "trainers/ddp"], "No recipe named `trainers/ddp`"),
    (["draw", "lenet/digits"], "json or push but got `draw`"),
    (["json", "a", "b"], "one recipe but got 2"),
    (["json", "lenet/digits", "--entty", "me"], "did you mean `--entity`?"),
    (["push", "lenet/digits"], "takes --entity"),
    (["push", "lenet/digits", "--entity", "me"], "Not signed in to W&B"),
]


@pytest.mark.parametrize(("args", "message"), REFUSED)
def test_refusals(args, message, capsys, monkeypatch):
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    monkeypatch.setattr("pl_losses.core.refusals.fault", lambda url: "")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert main(["dashboard", *args]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) <= 2


def test_refused_without_torch_and_without_the_extra():
    code = (
        "import sys, importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'wandb_workspaces' else found(name, *a)\n"
        "from pl_losses.cli.main import main; status = main(['dashboard', 'json', 'lenet/digits'])\n"
        "assert not {'torch', 'lightning', 'wandb'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "pip install '.[dashboards]'" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_recipe_of_an_own_class_is_titled_by_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_model.py").write_text(
        "from pl_losses import LeNet5\n\n\nclass Mine(LeNet5):\n    pass\n"
    )
    (tmp_path / "mine.yaml").write_text("extends: lenet/digits\nmodel: own_model.Mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PL_LOSSES_TRUST", "")
    assert main(["dashboard", "json", "mine.yaml"]) == 2
    assert "add --trust own_model" in capsys.readouterr().err
    assert main(["dashboard", "json", "mine.yaml", "--trust", "own_model"]) == 0
    assert "pl_losses: Mine, mine.yaml" in capsys.readouterr().out


def test_the_workspace_of_an_own_class(tmp_path, monkeypatch, capsys):
    text = "from pl_losses import LeNet5\n\n\nclass Own(LeNet5):\n    KEYS = {'own/margin': 'a margin'}\n"
    (tmp_path / "own_class.py").write_text(text)
    (tmp_path / "own_faulty.py").write_text("import nothing_of_this_name\n\n\nclass Own: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_LOSSES_TRUST", "")
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    assert main(["dashboard", "json", "own_class.Own"]) == 0
    printed = capsys.readouterr().out
    assert '"pl_losses: Own"' in printed
    assert "own/margin" in printed
    assert "test/error" in printed
    assert "config.recipe" not in printed
    for name in ("own_class.Other", "own_faulty.Own", "nowhere.Own", "torch.nn.Linear"):
        assert main(["dashboard", "json", name]) == 2, name
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line
