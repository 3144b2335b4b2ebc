"""Recipes are found, merged, and refused plainly."""

import pytest

from pl_losses import recipes
from pl_losses.recipes import UsageError, dump, find, listing, merge, names, parse, resolve


@pytest.fixture
def folder(tmp_path, monkeypatch):
    root = tmp_path / "recipes"
    monkeypatch.setattr(recipes, "roots", lambda: [root])

    def write(name, text):
        path = root / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    write("lenet/digits", "# Digits in a minute.\nmodel: {class_path: A, init_args: {x: 1, y: [1, 2]}}\n")
    write("trainers/ddp", "# Two processes.\ntrainer: {devices: 2}\n")
    write("sweeps/lenet", "method: grid\n")
    return write


def test_listing_groups_papers_and_marks_overlays(folder):
    assert names() == ["lenet/digits", "trainers/ddp"]
    text = listing()
    assert text.splitlines()[0] == "lenet"
    assert "lenet/digits  Digits in a minute." in text
    assert "trainers (overlays" in text


def test_the_shipped_recipes_resolve():
    for name in names():
        assert isinstance(resolve(name), dict)


def test_found_by_name_and_by_path(folder, tmp_path, monkeypatch):
    path = folder("lenet/mnist", "trainer: {max_epochs: 1}")
    assert find("lenet/mnist") == find("lenet/mnist.yaml") == find(str(path)) == path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("trainer: {max_epochs: 2}")
    assert resolve("mine") == resolve("mine.yaml") == {"trainer": {"max_epochs": 2}}


def test_extends_merges_in_order(folder):
    folder(
        "lenet/more",
        "extends: [digits, trainers/ddp]\nmodel: {init_args: {y: [3]}}\ntrainer: {max_epochs: 3}",
    )
    assert resolve("lenet/more") == {
        "model": {"class_path": "A", "init_args": {"x": 1, "y": [3]}},
        "trainer": {"devices": 2, "max_epochs": 3},
    }


def test_another_class_drops_the_arguments_of_the_first(folder):
    folder("lenet/b", "extends: lenet/digits\nmodel: {class_path: B, init_args: {z: 1}}")
    assert resolve("lenet/b")["model"] == {"class_path": "B", "init_args": {"z": 1}}


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        (
            {"model": "A"},
            {"model": {"init_args": {"x": 1}}},
            {"model": {"class_path": "A", "init_args": {"x": 1}}},
        ),
        ({"model": {"class_path": "m.A", "init_args": {"x": 1}}}, {"model": "A"}, None),
        ({"logger": {"class_path": "A"}}, {"logger": False}, {"logger": False}),
        ({"callbacks": [1]}, {"callbacks": [2]}, {"callbacks": [2]}),
    ],
)
def test_merge(base, over, merged):
    assert merge(base, over) == (merged or {"model": {"class_path": "A", "init_args": {"x": 1}}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: lenet/digitz", "`extends` in x.yaml: No recipe or file named `lenet/digitz`: did you"),
        ("extends: lenet/x", "in a circle: x -> x"),
        ("extends: lenet/y", "in a circle: x -> y -> x"),
        ("extends: {a: 1}", "Expected `extends`"),
        ("extends: {}", "Expected `extends`"),
        ("- a", "a mapping of names but got list"),
        ("a: [1", "line"),
        ("a: b: c", "x.yaml line 1: mapping values are not allowed"),
    ],
)  # fmt: skip
def test_refused(folder, text, message):
    folder("lenet/y", "extends: x")
    folder("lenet/x", text)
    with pytest.raises(UsageError) as error:
        resolve("lenet/x")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_unknown_recipe_names_the_nearest(folder):
    with pytest.raises(UsageError, match="did you mean `lenet/digits`"):
        resolve("lenet/digit")
    with pytest.raises(UsageError, match="`pl-losses recipes` lists them"):
        resolve("xyz")


def test_numbers_and_text_survive_writing():
    config = {"a": 1e-3, "b": "1e-3", "c": [1.5e10, None, True, "true", ""], "d": float("inf")}
    assert parse(dump(config), "x") == config
    assert parse("{a: 1e-3, b: 1E5}", "x") == {"a": 0.001, "b": 1e5}


def test_extend_is_extends(tmp_path):
    (tmp_path / "mine.yaml").write_text("extend: lenet/mnist\n")
    with pytest.raises(UsageError, match="did you mean `extends`"):
        resolve(str(tmp_path / "mine.yaml"))
