"""The folder of an experiment: what is done is kept, never mixed, and never used when it is damaged."""

import csv
import logging
import warnings

import pytest
import torch
from matplotlib.figure import Figure

from pl_losses.core.experiment import Experiment, PlainExperiment, names_of, quiet
from pl_losses.core.results import Row

ARGUMENTS = {"seed": 0, "sizes": [1, 2], "source": None}


def test_it_goes_on(tmp_path):
    kept = Experiment("demo/errors", tmp_path / "out", ARGUMENTS)
    assert not (tmp_path / "out").exists()
    kept.add({"error": 0.125})
    kept.save({"step": 3, "weights": torch.ones(2)})
    again = Experiment("demo/errors", tmp_path / "out", ARGUMENTS)
    assert again.results == [{"error": 0.125}]
    assert again.unfinished["step"] == 3
    again.add({"error": 0.5})
    assert Experiment("demo/errors", tmp_path / "out", ARGUMENTS).unfinished is None


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({**ARGUMENTS, "seed": 1}, "`seed` to be 0, as for the results in .*out, but got 1: choose another"),
        (
            {"seed": 0, "sizes": [1, 2], "more": 3},
            "to have results of demo/errors but it has those of another version: choose another",
        ),
    ],
)
def test_the_results_of_other_arguments_are_refused(tmp_path, others, message):
    Experiment("demo/errors", tmp_path / "out", ARGUMENTS).save()
    with pytest.raises(ValueError, match=message):
        Experiment("demo/errors", tmp_path / "out", others)


def test_the_results_of_another_experiment_are_refused(tmp_path):
    Experiment("demo/others", tmp_path, ARGUMENTS).save()
    with pytest.raises(ValueError, match="results of demo/errors but it has those of demo/others: choose"):
        Experiment("demo/errors", tmp_path, ARGUMENTS)


@pytest.mark.parametrize("other", [Experiment, PlainExperiment])
def test_an_interrupted_experiment_is_told_by_its_state(tmp_path, other):
    kind = Experiment if other is PlainExperiment else PlainExperiment
    other("demo/others", tmp_path / "whole", ARGUMENTS).save("of a part")
    other("demo/others", tmp_path / "parts/seed0", ARGUMENTS).save()
    for folder in ("whole", "parts"):
        with pytest.raises(ValueError, match="of demo/errors but it has those of demo/others: choose"):
            kind("demo/errors", tmp_path / folder, ARGUMENTS)
    assert other("demo/others", tmp_path / "parts", ARGUMENTS).results == []


def test_results_have_the_versions_that_they_were_made_with(tmp_path, monkeypatch):
    def made(packages, add):
        monkeypatch.setattr("pl_losses.core.experiment.versions", lambda: packages)
        kept = PlainExperiment("gtn/cuts", tmp_path, {})
        if add:
            kept.add(1)
        with kept.results_table([Row("a", "error", 1.0, None, None, 1)]).open() as file:
            return next(csv.DictReader(file))["versions"]

    assert made("torch 1", add=True) == "torch 1"
    assert made("torch 2", add=False) == "torch 1"  # Nothing was made anew.
    assert made("torch 3", add=True) == "torch 1; torch 3"


def test_inputs_that_changed_are_refused(tmp_path):
    kept = Experiment("demo/errors", tmp_path, ARGUMENTS)
    kept.same_input("the images", "a")
    kept.add(1)
    again = Experiment("demo/errors", tmp_path, ARGUMENTS)
    again.same_input("the images", "a")
    again.same_input("the weights", "b")
    with pytest.raises(
        ValueError, match=r"Expected the images to be as for the results in .* but got others"
    ):
        again.same_input("the images", "c")


def test_tables_without_results_are_refused(tmp_path):
    (tmp_path / "errors.csv").touch()
    with pytest.raises(ValueError, match=r"to have a state\.pt beside its errors\.csv"):
        Experiment("demo/errors", tmp_path, ARGUMENTS)


@pytest.mark.parametrize("fault", ["bit", "text", "other"])
def test_a_damaged_state_is_set_aside(tmp_path, capsys, fault):
    kept = Experiment("demo/errors", tmp_path, ARGUMENTS)
    kept.add({"weights": torch.ones(100)})
    file = tmp_path / "state.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if fault == "other":
        torch.save([1, 2], file)
    else:
        file.write_bytes(content if fault == "bit" else b"text")
    for number in (1, 2):
        again = Experiment("demo/errors", tmp_path, ARGUMENTS)
        assert again.results == []
        assert (
            f"now {tmp_path}/damaged-{number}.pt, and its results are made again" in capsys.readouterr().err
        )
        file.write_bytes(b"")
    Experiment("demo/errors", tmp_path, ARGUMENTS).add({"error": 0.5})
    assert Experiment("demo/errors", tmp_path, ARGUMENTS).results == [{"error": 0.5}]


def test_tables_pictures_and_the_run(tmp_path):
    kept = Experiment("demo/errors", tmp_path, ARGUMENTS)
    rows, figure = [{"error": 0.5}], Figure()
    with kept.table("errors.csv", rows).open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"error": "0.5"}]
    assert kept.picture("errors.png", figure).read_bytes()[:4] == b"\x89PNG"
    kept.record(
        "offline",
        tables={"demo/errors": rows},
        pictures={"demo/picture": figure},
        summary={"error": 0.5},
    )
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("files/media/images/demo/picture*"))
    assert list(run.glob("files/media/table/demo/errors*"))


def test_names_between_commas_or_in_a_list():
    known = ["a", "b", "c"]
    assert names_of("sets", "all", known) == known
    assert names_of("sets", " c,a,c", known) == names_of("sets", ["c", "a"], known) == ["c", "a"]
    assert names_of("sets", "mine,a", known, others=True) == ["mine", "a"]
    for given, got in (("a,", "''"), ([], "''"), ("d", "'d'")):
        with pytest.raises(ValueError, match=f'`sets` to be of a, b, c, or "all", but got {got}'):
            names_of("sets", given, known)


def test_lightning_speaks_again_after_a_failure(recwarn):
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level

    def fail():
        warnings.warn("unheard", stacklevel=1)
        assert not logger.isEnabledFor(logging.INFO)
        raise KeyError

    with pytest.raises(KeyError), quiet():
        fail()
    assert logger.level == level
    warnings.warn("heard", stacklevel=1)
    assert [str(one.message) for one in recwarn] == ["heard"]


def test_plain_results_are_kept_as_json(tmp_path, capsys):
    kept = PlainExperiment("demo/errors", tmp_path, ARGUMENTS)
    kept.add({"error": float("nan")})
    (again,) = PlainExperiment("demo/errors", tmp_path, ARGUMENTS).results
    assert str(again) == "{'error': nan}"
    with pytest.raises(ValueError, match="`seed` to be 0"):
        PlainExperiment("demo/errors", tmp_path, {**ARGUMENTS, "seed": 1})
    file = tmp_path / "state.json"
    file.write_bytes(file.read_bytes()[:-20])
    assert PlainExperiment("demo/errors", tmp_path, ARGUMENTS).results == []
    assert f"now {tmp_path}/damaged-1.json, and its results are made again" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "x", "/proc/none/x"):
        with pytest.raises(ValueError, match=r"Expected to write to `folder` .* but got: "):
            Experiment("demo/errors", folder, {})
    Experiment("demo/errors", tmp_path / "a" / "b", {})
    assert not (tmp_path / "a").exists()
