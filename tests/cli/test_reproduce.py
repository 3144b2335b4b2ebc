"""`pl-losses reproduce`: what there is, a small form of each, and the page of what was measured."""

import csv
import inspect
import os
import shlex
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from pl_losses.cli import reproduce
from pl_losses.cli.arguments import split
from pl_losses.cli.main import main
from pl_losses.core import results
from pl_losses.core.locks import alone
from pl_losses.core.manifests import reproduced
from pl_losses.data.pictures import packaged
from pl_losses.papers.style.vgg import find_oxford

ROOT = Path(__file__).parents[2]


def test_the_list_tells_figure_cost_and_needs(capsys):
    assert main(["reproduce", "--list"]) == 0
    printed = capsys.readouterr().out
    for name, made in reproduced().items():
        assert f"  {name} " in printed
        assert made.title() in printed
    cost = reproduced()["lenet/training-size"].minutes
    assert f"{cost} minutes of one core; needs MNIST" in printed
    main(["reproduce"])
    assert capsys.readouterr().out == printed


def test_the_list_does_not_wait_for_torch():
    code = "from pl_losses.core.manifests import reproduced; import sys; reproduced(); "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)


# The scores of recipes are made by one function, with a fit for each.
SMALL = [name for name in reproduced() if not name.endswith("/recipes") or name.startswith(("gan", "prelu"))]


@pytest.mark.parametrize("name", SMALL)
def test_a_small_form(name, folder, request):
    if "UCI" in reproduced()[name].needs:
        request.getfixturevalue("uci_root")
    if "VGG" in reproduced()[name].needs and find_oxford() is None:
        pytest.skip("no VGG-19 weights: set PL_LOSSES_DATA")
    # A run of W&B takes longer than the rest; one of those that `report` makes is enough.
    recorded = name == "adam/fig2"
    off = ["--wandb", "disabled"] if "wandb" in reproduce.options(name) and not recorded else []
    assert main(["reproduce", name, "--quick", *off]) == 0
    (made,) = folder.glob(f"runs/quick/*/{name}")
    if recorded:
        (files,) = made.glob("wandb/offline-run-*/files/media")
        shown = {path.name.rpartition("_0_")[0] for path in files.glob("*/adam/fig2/*")}
        assert shown == {"curves", "table", "trainings_table", "curves_table"}
    for path in made.glob("results.csv"):
        rows = list(csv.DictReader(path.open(newline="")))
        for row in rows:
            signed = "likelihood" in row["quantity"] or "correlation" in row["quantity"]
            assert results.row_of(row).measured >= 0 or signed
        # A trial is known by each of its options, also by those that choose the rows.
        (options,) = {row["options"] for row in rows}
        assert [
            flag for flag, _ in split(shlex.split(reproduced()[name].quick)) if f"{flag}=" not in options
        ] == []
        assert list(made.glob("*.png")) or not reproduced()[name].panels


def test_all_small_forms_are_one_command(folder, monkeypatch, capsys):
    called = []

    def run(name, flags, root):
        called.append((name, dict(flags)))
        assert root == "out"
        if name == "gan/table1":
            raise reproduce.UsageError("No room")
        if name == "lenet/fig9":
            raise KeyError("mnist")
        return 0

    monkeypatch.setattr(reproduce, "run", run)
    assert main(["reproduce", "all", "--quick", "--dataset", "mnist", "--folder", "out"]) == 1
    assert [name for name, _ in called] == list(reproduced())
    options = dict(called)
    assert options["adam/fig4"]["dataset"] == "mnist"  # What is given overrides the small form's.
    assert options["adam/fig4"]["folder"] == "out/adam/fig4"
    assert "dataset" not in options["gan/table1"]
    printed, told = capsys.readouterr()
    assert "gan/table1: FAILED in 0 s: No room" in printed
    assert "lenet/fig9: FAILED in 0 s: KeyError: 'mnist'" in printed
    assert 'raise KeyError("mnist")' in told  # An unexpected error has its traceback.
    assert "adam/fig4: made in 0 s" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--quick"], "Expected the name of a table or figure, or `all`, before `--quick`"),
        (["sdae", "--quick"], "Expected one of sdae/variations, sdae/levels, sdae/recipes but got `sdae`"),
        (["all"], "`reproduce all` would take most of a day"),
        (["all", "--quick", "--nothing", "1"], "Unknown option `--nothing`"),
        (["adam/fig2", "--figure", "fig1"], "Expected no `--figure`: it follows from the name"),
        (["adam/fig2", "--passes", "0"], "`passes` to be at least 1 but got 0"),
        (["adam/fig2", "--quick", "--device", "none"], "`device` to be one of this machine but got 'none'"),
        (["gan/table1", "--quick", "--image_size", "40"], "`image_size` to be at least 63 but got 40"),
        (
            ["lenet/training-size", "--quick", "--sizes", "[9999]"],
            "`sizes` of at most 1497, the images of digits, but got 9999",
        ),
        (["lenet/recipes", "--recipes", "[]"], "`recipes` to have an element at least but got []"),
        (["dropout/samples", "--samples", "[]"], "`samples` to have an element at least but got []"),
        (["gtn/cuts", "--radius", "[]"], "`radius` to have an element at least but got []"),
        (["style/matrix", "--ratios", "[]"], "`ratios` to have an element at least but got []"),
        (["sdae/levels", "--pretrain_lr", "-1"], "`pretrain_lr` to be positive and finite but got -1.0"),
        (["adam/fig4", "--quick", "--step", "1"], "Unknown option `--step`: did you mean `--steps`"),
    ],
)
def test_refused(args, message, capsys):
    assert main(["reproduce", *args]) == 2
    assert message in capsys.readouterr().err


def test_the_page_is_what_the_command_makes(capsys):
    assert main(["reproduce", "--results"]) == 0
    page = (ROOT / "docs/measured.md").read_text(encoding="utf-8")
    assert page == capsys.readouterr().out, "pl-losses reproduce --results > docs/measured.md"


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_are_what_the_command_makes(page):
    text = page.read_text(encoding="utf-8")
    assert results.filled(text) == text, f"pl-losses reproduce --results {page}"


def test_blocks_of_pages_are_filled(folder, monkeypatch, capsys):
    monkeypatch.setattr("pl_losses.core.results.kept", lambda name: [])
    before = "<!-- results lenet/fig9 -->\nold\n<!-- end of results -->\n"
    Path("page.md").write_text(before)
    assert main(["reproduce", "--results", "page.md"]) == 0
    filled = before.replace("old", "No result is kept yet.")
    assert Path("page.md").read_text() == filled
    Path("page.md").write_text(before, newline="\r\n")
    assert main(["reproduce", "--results", "page.md"]) == 0
    assert Path("page.md").read_bytes().decode() == filled.replace("\n", "\r\n")
    assert main(["reproduce", "--results", "none.md"]) == 2
    assert "there is no file none.md" in capsys.readouterr().err
    for change, told in (
        ("fig9", "did you mean `lenet/fig9`"),
        ("end of", "Expected `<!-- end of results -->`"),
    ):
        Path("page.md").write_text(before.replace(change, "fig99"))
        assert main(["reproduce", "--results", "page.md"]) == 2
        assert told in capsys.readouterr().err
        assert Path("page.md").read_text() == before.replace(change, "fig99")
    # What lies between two starts is not a block.
    twice = f"  <!-- results adam/fig4 -->\nkept\n  {before}"
    Path("page.md").write_text(twice)
    assert main(["reproduce", "--results", "page.md"]) == 2
    assert Path("page.md").read_text() == twice


def test_the_cost_is_not_much_more_than_the_list_tells():
    for name, made in reproduced().items():
        if rows := results.kept(name):
            minutes = sum(float(row["seconds"]) for row in rows) / 60
            # By the clock, on a machine that may have had other work; some of the rows may not be made yet.
            assert minutes / 1.5 < made.minutes, name


@pytest.mark.parametrize("name", sorted(reproduced()))
def test_the_kept_results_have_the_seeds_of_the_command(name):
    if "seeds" not in reproduce.options(name) or not (rows := results.kept(name)):
        pytest.skip("one training, or no results")
    made = reproduced()[name]
    module, _, attribute = made.function.rpartition(".")
    default = inspect.signature(getattr(import_module(module), attribute)).parameters["seeds"].default
    assert max(int(row["seeds"]) for row in rows) == made.preset_values().get("seeds", default)


@pytest.mark.parametrize("args", ["prelu/table1 --width 0.05", "prelu/fig2 --width 0.03"])
def test_trainings_that_diverge_are_reported(folder, args, capsys):
    given = "--dataset digits --lr 1e8 --epochs 1 --limit 256 --seeds 1 --folder out --wandb disabled"
    for _ in range(2):  # The second time they are read from the folder.
        assert main(["reproduce", *args.split(), *given.split()]) == 0
        assert "diverged" in capsys.readouterr().out
    assert Path("out/results.csv").is_file()


def test_the_help_has_the_defaults_of_the_figure(capsys):
    assert main(["reproduce", "adam/fig2", "--help"]) == 0
    assert "runs/adam/fig2" in capsys.readouterr().out


def test_the_help_has_no_option_that_the_name_decides(capsys):
    assert main(["reproduce", "adam/recipes", "--help"]) == 0
    assert "  paper" not in capsys.readouterr().out


def test_a_list_may_be_written_between_commas(folder, capsys):
    args = "--quick --radius 1,2,1 --projection_radius [3] --folder out --wandb disabled"
    assert main(["reproduce", "gtn/cuts", *args.split()]) == 0
    rows = csv.DictReader((folder / "out/results.csv").open())
    assert [row["what"] for row in rows] == ["radius 1, projection 3", "radius 2, projection 3"]


def test_two_processes_are_not_in_one_folder(folder, capsys):
    with alone(folder / "out", "`reproduce`"):
        assert main(["reproduce", "gtn/cuts", "--quick", "--folder", "out"]) == 2
    assert f"Another `reproduce` (process {os.getpid()}) is running in out: wait" in capsys.readouterr().err
    assert not (folder / "out").exists()  # Nothing was kept there.


def test_a_signal_outside_a_trainer_tells_how_to_resume(folder, monkeypatch, capsys):
    def measure(*args):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("pl_losses.papers.gtn.cut_settings.measure", measure)
    assert main(["reproduce", "gtn/cuts", "--quick", "--folder", "out"]) == 143
    assert "Interrupted: the same command with --folder out resumes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("prelu/fig2 --lr 1e300", "without overflow"),
        ("prelu/fig2 --width 1e300", "Overflow when"),
        ("sdae/levels --hidden_size 1000000000", "can't allocate memory"),
        ("style/matrix --size 100000000", "MemoryError"),
    ],
)
def test_what_is_too_large_is_told_in_a_line(folder, args, message, capsys):
    assert main(["reproduce", *args.split(), "--quick", "--folder", "out", "--wandb", "disabled"]) == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pl-losses")]
    assert told.startswith("pl-losses: A size or number is too large: ")
    assert message in told


def test_images_that_changed_are_refused(folder, capsys):
    if find_oxford() is None:
        pytest.skip("no VGG-19 weights: set PL_LOSSES_DATA")
    shutil.copy(packaged("china"), "photo.jpg")
    small = "--size 32 --folder {} --wandb disabled"
    pairs = (
        f"--pairs [[photo.jpg,starry-night]] --seeds 1 --stretches 1 --smooths 0.1 --evaluations 2 {small}"
    )
    matrix = f"--content photo.jpg --ratios 1e-3 --depths 1 --steps 1 {small}"
    commands = [
        ["reproduce", "style/optimizers", *pairs.format("a").split()],
        ["reproduce", "style/matrix", *matrix.format("b").split()],
    ]
    assert [main(command) for command in commands] == [0, 0]
    shutil.copy(packaged("flower"), "photo.jpg")
    for command in commands:
        assert main(command) == 2
        assert "Expected the images" in (told := capsys.readouterr().err)
        assert "but got others: choose another `folder`" in told


def test_pairs_of_images_with_the_same_names_are_kept_apart(folder):
    if find_oxford() is None:
        pytest.skip("no VGG-19 weights: set PL_LOSSES_DATA")
    for number in "ab":
        (folder / number).mkdir()
        shutil.copy(packaged("starry-night"), folder / number / "painting.jpg")
    pairs = '[["a/painting.jpg", "starry-night"], ["b/painting.jpg", "starry-night"]]'
    args = (
        "--seeds 1 --stretches [1.0] --smooths [0.1] --size 32 --evaluations 3 --folder out --wandb disabled"
    )
    assert main(["reproduce", "style/optimizers", "--pairs", pairs, *args.split()]) == 0
    losses = list(csv.DictReader((folder / "out/losses.csv").open()))
    assert [row["pair"] for row in losses[::4]] == [
        f"{n}/painting.jpg in the style of starry-night" for n in "ab"
    ]
    state = torch.load(folder / "out/state.pt", weights_only=True)
    assert {len(one["losses"]) for one in state["results"]} == {3}
