"""Scores of recipes over seeds."""

import csv
import json
from pathlib import Path

import pytest

from pl_losses.cli import main as cli
from pl_losses.core.manifests import reproduced
from pl_losses.core.results import kept, row_of
from pl_losses.recipes import resolve

COMMAND = [
    "reproduce",
    "lenet/recipes",
    "--recipes",
    '["lenet/mnist-distorted"]',
    "--grids",
    "null",
    "--seeds",
    "2",
    "--wandb",
    "disabled",
    "--folder",
    "out/own",
]


@pytest.fixture
def fits(folder, monkeypatch):
    """Replace fits by ones that log an error of 1 % more for each seed; return the commands."""
    asked, statuses = [], []

    def fit(args):
        asked.append(args)
        options = dict(arg.removeprefix("--").split("=") for arg in args[3:])
        parts = [options[f"trainer.logger.{key}"] for key in ("save_dir", "name", "version")]
        run = Path(*parts)
        assert run.exists() == (options.get("ckpt_path") == str(run))
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        seed, rate = int(options["seed_everything"]), float(options.get("model.optimizer.lr", 0.3))
        error = abs(rate - 0.3) + 0.01 * (1 + seed) if seed < 1000 else abs(rate - 0.3)
        name = "rmse" if "lenet/digits" in args else "error"
        part = "val" if options.get("test_after_fit") == "false" else "test"
        rows = [f"step,train/loss,{part}/{name},{part}/{name}_low,{part}/{name}_high", "1,0.5,,,"]
        rows.append(f"2,,{error},{error - 0.00196},{error + 0.00196}")
        if part == "val":  # A validation may log what a test does not.
            rows = [f"{row},{end}" for row, end in zip(rows, ("val/more", "", "1"), strict=True)]
        if options.get("data.val_size") == "0":
            rows = ["step,train/loss", "1,0.5"]
        (run / "metrics.csv").write_text("\n".join(rows) + "\n")
        print("what a fit prints" if seed != 3 else "pl-losses: Expected a finite loss but got nan")
        if seed == 3:
            return 2
        status = statuses.pop(0) if statuses else 0
        if status == 143:
            (run / "checkpoints" / "interrupted-step=2.ckpt").touch()
        return status

    real = cli.main
    monkeypatch.setattr(cli, "main", fit)
    return real, asked, statuses


def test_each_seed_is_a_fit_of_its_own(fits, folder, capsys):
    main, asked, _ = fits
    assert main(COMMAND) == 0
    assert [args[:5] for args in asked] == [
        ["fit", "--config", "lenet/mnist-distorted", f"--seed_everything={seed}", f"--data.seed={seed}"]
        for seed in (0, 1)
    ]
    (row,) = csv.DictReader((folder / "out/own/results.csv").open())
    assert row["options"] == "seeds=2 recipes=['lenet/mnist-distorted'] grids=None"
    found = row_of(row)
    assert (found.what, found.quantity, found.measured) == (
        "lenet/mnist-distorted",
        "test error, %",
        pytest.approx(1.5),
    )
    assert (found.published, found.seeds, found.verdict()) == (0.8, 2, "equal")
    # By Student's t of two seeds, and by the standard error of a test, 0.1 points.
    assert found.high - found.measured == pytest.approx(
        (12.7062**2 * 0.5 / 2 + 1.96**2 * 0.01) ** 0.5, rel=1e-3
    )
    logs = folder / "out/own/logs"
    assert (logs / "lenet-mnist-distorted-0.log").read_text() == "what a fit prints\n"
    assert "what a fit prints" not in capsys.readouterr().out


def test_a_published_number_of_ones_own_is_a_trial(fits, folder, capsys):
    main, _, _ = fits
    assert main([*COMMAND, "--published", '{"lenet/mnist-distorted": 50}']) == 0
    (row,) = csv.DictReader((folder / "out/own/results.csv").open())
    assert "published={'lenet/mnist-distorted': 50.0}" in row["options"]
    assert "better" not in capsys.readouterr().out


def test_recipes_may_log_other_metrics(fits, folder, capsys):
    main, _, _ = fits
    chosen = ["--recipes", "lenet/mnist-distorted,lenet/digits", "--seeds", "1"]
    assert main([*COMMAND, *chosen, "--metrics", '["test/error", "test/rmse"]']) == 0
    rows = [row_of(row) for row in csv.DictReader((folder / "out/own/results.csv").open())]
    assert [(row.what, row.quantity, row.measured) for row in rows] == [
        ("lenet/mnist-distorted", "test error, %", 1.0),
        ("lenet/digits", "test RMSE", 0.01),
    ]
    assert main([*COMMAND, *chosen, "--metrics", '["test/error", "test/rmse", "test/rmsee"]']) == 0
    assert "No recipe logs test/rmsee: the tests log test/error, " in capsys.readouterr().out
    first, second = csv.DictReader((folder / "out/own/trainings.csv").open())
    assert (first["test/error"], first["test/rmse"]) == ("0.01", "")
    assert (second["test/error"], second["test/rmse"]) == ("", "0.01")


def test_what_is_done_is_not_done_again(fits, folder, capsys):
    main, asked, statuses = fits
    statuses += [0, 143]
    assert main(COMMAND) == 143
    assert "the same command with --folder out/own resumes" in capsys.readouterr().err
    assert main(COMMAND) == 0
    assert [args[3] for args in asked] == [f"--seed_everything={seed}" for seed in (0, 1, 1)]
    run = "out/own/runs/lenet-mnist-distorted-1"
    assert [f"--ckpt_path={run}" in args for args in asked] == [False, False, True]


def test_the_time_before_an_interruption_counts(fits, folder, monkeypatch):
    main, _, statuses = fits
    clock = iter(range(100))
    monkeypatch.setattr("pl_losses.cli.recipe_scores.process_time", lambda: 10.0 * next(clock))
    statuses.append(130)
    assert main([*COMMAND, "--seeds", "1"]) == 130
    state = folder / "out/own/state.json"
    assert list(json.loads(state.read_text())["unfinished"].values()) == [10.0]
    assert main([*COMMAND, "--seeds", "1"]) == 0
    assert json.loads(state.read_text())["results"][0]["seconds"] == 20.0


def test_a_training_without_a_checkpoint_begins_anew(fits, folder):
    main, asked, statuses = fits
    statuses.append(130)
    assert main([*COMMAND, "--seeds", "1"]) == 130
    assert main([*COMMAND, "--seeds", "1"]) == 0
    assert not any("ckpt_path" in arg for args in asked for arg in args)


def test_refused(fits, folder, capsys):
    main, asked, statuses = fits
    assert main([*COMMAND, "--recipes", "[lenet/mnist-distort]"]) == 2
    assert "did you mean `lenet/mnist-distorted`" in capsys.readouterr().err
    assert asked == []
    statuses.append(1)
    assert main(COMMAND) == 2
    told = "but it failed: what a fit prints (out/own/logs/lenet-mnist-distorted-0.log)"
    assert told in capsys.readouterr().err
    for option, value in (("--grids", "{lenet/digit: [{a: 1}]}"), ("--published", "{lenet/digit: 1}")):
        assert main([*COMMAND, option, value]) == 2
        assert "did you mean `lenet/digits`" in capsys.readouterr().err
    for option, value, told in (
        ("--more", {"data.seed": 5}, "no data.seed in `more`"),
        ("--more", {"config": "lenet/mnist"}, "no config in `more`"),
        ("--more", {"trainer.logger.save_dir": "x"}, "no trainer.logger.save_dir in `more`"),
        ("--grids", {"lenet/mnist-distorted": [{"data.seed": 3}]}, "no data.seed in `grids`"),
        ("--choice", {"lenet/mnist-distorted": {"seed_everything": 0}}, "no seed_everything in `choice`"),
    ):
        assert main([*COMMAND, option, json.dumps(value)]) == 2
        assert f"Expected {told}: each training has its own" in capsys.readouterr().err
    assert main([*COMMAND, "--metrics", json.dumps(["test/eror"]), "--folder", "other/lenet/recipes"]) == 2
    assert Path("other/lenet/recipes/state.json").is_file()  # The training is kept all the same.
    told = "Expected lenet/mnist-distorted to log test/eror but it logs test/error, test/error_high"
    assert told in capsys.readouterr().err


def test_the_folder_of_another_paper_is_refused(fits, folder, capsys):
    main, _, _ = fits
    assert main(COMMAND) == 0
    other = ["reproduce", "adam/recipes", *COMMAND[2:]]
    assert main(other) == 2
    told = "`folder` out/own to have results of adam/recipes but it has those of lenet/recipes"
    assert told in capsys.readouterr().err


def test_a_recipe_that_changed_is_refused(fits, folder, capsys):
    main, _, _ = fits
    file = folder / "mine.yaml"
    file.write_text("extends: lenet/mnist-distorted\n")
    command = [*COMMAND, "--recipes", "[mine.yaml]"]
    assert main([*command, "--seeds", "1"]) == 0
    file.write_text("extends: lenet/mnist-distorted\nseed_everything: 7\n")
    assert main(command) == 2
    assert "Expected the recipe mine.yaml to be as for the results" in capsys.readouterr().err


def test_settings_are_chosen_on_held_out_data_and_tested_with_other_seeds(fits, folder, capsys):
    main, asked, _ = fits
    grids = {"lenet/mnist-distorted": [{"model.optimizer.lr": rate} for rate in (0.1, 0.3, 0.9)]}
    choice = {"lenet/mnist-distorted": {"trainer.max_epochs": 1}}
    assert main([*COMMAND, "--grids", json.dumps(grids), "--choice", json.dumps(choice)]) == 0
    seeds = ["1000", "1000", "1000", "0", "1"]
    assert [args[3].partition("=")[2] for args in asked] == seeds
    assert ["--test_after_fit=false" in args for args in asked] == [seed == "1000" for seed in seeds]
    assert ["--trainer.max_epochs=1" in args for args in asked] == [seed == "1000" for seed in seeds]
    assert all("--model.optimizer.lr=0.3" in args for args in asked[3:])
    (row,) = map(row_of, csv.DictReader((folder / "out/own/results.csv").open()))
    tried = "held out: 0.1: 20.0, 0.3: 0.00, 0.9: 60.0"
    assert (row.measured, row.chosen) == (pytest.approx(1.5), f"optimizer.lr 0.3 ({tried})")
    trainings = list(csv.DictReader((folder / "out/own/trainings.csv").open()))
    assert [one["stage"] for one in trainings] == ["choice"] * 3 + ["result"] * 2
    # The choice has validated, and tested nothing.
    assert [bool(one["val/error"]) for one in trainings] == [True] * 3 + [False] * 2
    assert [bool(one["test/error"]) for one in trainings] == [False] * 3 + [True] * 2
    assert main([*COMMAND, "--grids", json.dumps(grids), "--choice", json.dumps(choice)]) == 0
    assert len(asked) == 5  # All are kept.


def test_a_choice_without_held_out_data_says_what_is_missing(fits, folder, capsys):
    main, _, _ = fits
    grids = {"lenet/mnist-distorted": [{"model.optimizer.lr": 0.1}]}
    choice = {"lenet/mnist-distorted": {"data.val_size": 0}}
    assert main([*COMMAND, "--grids", json.dumps(grids), "--choice", json.dumps(choice)]) == 2
    assert "but it logs nothing: without held-out data nothing can be chosen" in capsys.readouterr().err


def test_a_fit_that_diverges_is_reported(fits, folder, capsys):
    main, asked, _ = fits
    for _ in range(2):  # The second time it is read from the folder.
        assert main([*COMMAND, "--seeds", "4"]) == 0
        assert "lenet/mnist-distorted, test error, %: diverged" in capsys.readouterr().out
    assert len(asked) == 4


GRIDS = {
    recipe: grid
    for name, made in reproduced().items()
    if name.endswith("/recipes")
    for recipe, grid in made.preset_values().get("grids", {}).items()
}


@pytest.mark.parametrize("recipe", GRIDS)
def test_recipes_have_the_chosen_settings(recipe):
    row, *_ = (row for row in kept(f"{recipe.partition('/')[0]}/recipes") if row["what"] == recipe)
    for option in GRIDS[recipe][0]:
        node = resolve(recipe)
        for part in option.split("."):
            node = node[part] if part in node else node["init_args"][part]
        assert f"{option.removeprefix('model.')} {node}" in row["chosen"].partition(" (")[0].split(", ")
    assert row["chosen"].partition(" (held out: ")[2].count(": ") == len(GRIDS[recipe])
