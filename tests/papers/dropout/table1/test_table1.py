import csv
import hashlib
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pl_losses.cli.main import main
from pl_losses.data import uci
from pl_losses.papers.dropout import published
from pl_losses.papers.dropout.published import SETTINGS, Numbers, Settings, numbers
from pl_losses.papers.dropout.table1 import (
    columns as table1_columns,
    experiment as table1,
    report as table1_report,
)
from pl_losses.papers.dropout.table1.batched_mlp import BatchedMLP, Standardised, train
from pl_losses.papers.dropout.table1.choice import COLUMNS, PAPER, Choice, Schedule
from pl_losses.papers.dropout.table1.columns import Case, Row, over_samples, reproduce_column
from pl_losses.papers.dropout.table1.experiment import reproduce
from pl_losses.papers.dropout.table1.report import Entry
from pl_losses.papers.dropout.uncertainty import mc_log_likelihood

QUICK = {"samples": 20, "repeats": 1, "epochs_scale": 0.01, "wandb": "disabled"}


def small_choice(*learning_rates):
    schedules = (PAPER, PAPER._replace(cosine=True), PAPER._replace(epochs=20))
    return Choice((0.0, 0.1), (0.0, 1e-4), learning_rates, schedules, (0.5, 2.0, 8.0), 10)


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    """Few settings to choose from, and few steps."""
    monkeypatch.setattr(table1_columns, "Choice", lambda: small_choice(1e-3, 1e-2))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with a set of one's own, "mine", and a small published one, "small"."""
    random = np.random.RandomState(0)
    inputs = random.randn(60, 3)
    rows = np.column_stack([inputs, 5 * inputs[:, 0] * inputs[:, 1] + 100 + random.randn(60)])
    for folder in ("mine", "Small"):
        (tmp_path / "uci" / folder).mkdir(parents=True)
        np.savetxt(tmp_path / "uci" / folder / "data.txt", rows)
    sha256 = hashlib.sha256((tmp_path / "uci" / "Small" / "data.txt").read_bytes()).hexdigest()
    monkeypatch.setitem(uci.SETS, "small", uci.UCISet("Small", 60, 3, 4, sha256))
    monkeypatch.setitem(SETTINGS, "small", Settings(0.05, 0.2, hidden_size=8))
    # The first two: 3 +- 0.1 and -2 +- 0.05.
    scores = [
        (3.0 + 0.02**0.5, -2 - 0.005**0.5),
        (3.0 - 0.02**0.5, -2 + 0.005**0.5),
        (9.0, -9.0),
        (9.0, -9.0),
    ]
    monkeypatch.setitem(published.scores(), ("small", "paper"), scores)
    return str(tmp_path)


def read(folder, name):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def case(root, name="small", **changes):
    arguments = {"splits": 3, "samples": 30, "repeats": 2, "seed": 0, "scale": 0.02} | changes
    return Case.read(name, root, **arguments)


def test_the_published_numbers_are_complete():
    assert set(SETTINGS) == set(uci.SETS)
    for name, column in itertools.product(SETTINGS, COLUMNS):
        known = published.scores()[name, column]
        assert len(known) == uci.SETS[name].splits
        assert np.isfinite(known).all()
    assert len(published.scores()) == 27
    yacht = numbers("yacht", "10x", range(20))
    assert yacht == pytest.approx((0.724258, 0.05561, -1.375272, 0.014416), abs=1e-6)
    first = published.scores()["yacht", "10x"][:3]
    assert numbers("yacht", "10x", [0, 1, 2]).rmse == pytest.approx(sum(rmse for rmse, _ in first) / 3)
    assert numbers("yacht", "10x", [20]) is numbers("mine", "grid", [0]) is None
    assert {name for name, given in SETTINGS.items() if given.length_scale != 0.01} == {"naval", "yacht"}


def test_epochs_are_those_of_the_authors(root):
    small, protein = case(root, scale=1.0), case(root, scale=1.0)
    object.__setattr__(protein, "settings", SETTINGS["protein"])
    assert [small.epochs(COLUMNS[column]) for column in ("paper", "10x")] == [400, 4000]
    assert [protein.epochs(COLUMNS[column]) for column in ("paper", "10x")] == [200, 2000]
    assert COLUMNS["paper"] == Schedule(10, 32)
    assert COLUMNS["10x"] == Schedule(100, 128)


def test_a_column_is_what_each_split_gives_by_itself(root):
    """Against networks trained alone and scored by the definitions; the seeds are not the same."""
    mine = case(root, repeats=12, scale=0.1, samples=200)
    rows = reproduce_column(mine, "paper", lambda amount: None)
    decay = 1e-4 * 0.95 / (2 * 54 * 0.2) / 2
    for split, row in enumerate(rows):
        rows_train, rows_test = mine.splits[split]
        assert (row.split, row.p, row.precision) == (split, 0.05, 0.2)
        assert row.weight_decay == pytest.approx(decay)
        assert row.length_scale == pytest.approx(0.01)
        x, y = mine.inputs[rows_train], mine.targets[rows_train]
        data = Standardised([x] * 12, [y] * 12)
        alone = BatchedMLP(3, 8, p=[0.05] * 12, seeds=list(range(12)))
        train(alone, data, list(range(12)), epochs=40, batch_size=32, weight_decay=[decay] * 12)
        inputs = torch.from_numpy((mine.inputs[rows_test] - x.mean(0)) / x.std(0)).float()
        target = torch.from_numpy(mine.targets[rows_test])
        errors, likelihoods = [], []
        for member in range(12):
            keep = torch.rand(200, 6, 3) >= 0.05, torch.rand(200, 6, 8) >= 0.05
            units = torch.relu(inputs * keep[0] / 0.95 @ alone.first[member, :3] + alone.first[member, 3])
            passes = units * keep[1] / 0.95 @ alone.second[member] + alone.bias[member]
            passes = passes.double() * y.std() + y.mean()
            errors.append((passes.mean(0) - target).square().mean().sqrt())
            likelihoods.append(mc_log_likelihood(passes, target, 0.2).mean())
        for found, expected in ((row.rmse, errors), (row.ll, likelihoods)):
            values = torch.stack(expected)
            assert found == pytest.approx(values.mean().item(), abs=4 * values.std().item() * (2 / 12) ** 0.5)


def test_repeats_are_averaged_and_splits_do_not_depend_on_one_another(root, monkeypatch):
    rows = reproduce_column(case(root), "paper", lambda amount: None)
    fewer = reproduce_column(case(root, splits=2), "paper", lambda amount: None)
    np.testing.assert_allclose(rows[:2], fewer, rtol=1e-4)
    monkeypatch.setattr(table1_columns, "TOGETHER", 2)
    np.testing.assert_allclose(reproduce_column(case(root), "paper", lambda amount: None), rows, rtol=1e-4)
    assert rows != reproduce_column(case(root, seed=1), "paper", lambda amount: None)


def test_work_is_what_progress_tells(root):
    """Of "grid" it is the most: how long the last training is, is chosen only then."""
    small = case(root)
    for column, least in (("paper", 0.95), ("grid", 0.7)):
        done = []
        reproduce_column(small, column, done.append)
        assert least < sum(done) / small.work(column) < 1.05


def test_the_schedules_to_choose_from_are_the_papers_and_longer_ones_for_small_sets(root, monkeypatch):
    monkeypatch.setattr(table1_columns, "Choice", Choice)
    assert Choice().schedule[0] == COLUMNS["grid"] == PAPER
    small, naval = case(root, scale=1.0), case(root, scale=1.0)
    # 54 samples are 1.7 batches.
    lengths = [(small.epochs(schedule), schedule.cosine) for schedule in small.more_schedules()]
    longer = [(epochs, cosine) for epochs in (5926, 17778, 59259) for cosine in (False, True)]
    assert lengths == [(400, True), *longer]
    object.__setattr__(naval, "splits", [(np.arange(10741), np.arange(1193))])
    assert naval.more_schedules() == [PAPER._replace(cosine=True)]


def test_the_choice_does_not_look_at_the_test_samples(root):
    small = case(root, scale=0.1)
    honest = reproduce_column(small, "grid", lambda amount: None)
    for _, test in small.splits[:1]:
        small.targets[test] += 1000.0
    # Of split 0 only: its test samples are trained on in the others.
    moved = reproduce_column(small, "grid", lambda amount: None)
    assert moved[0].rmse > 900
    assert moved[0][4:] == honest[0][4:]


def test_the_choice_is_the_best_on_the_last_part_of_train(root, monkeypatch):
    """The settings that win there win, whatever they do elsewhere."""
    seen = []
    original = table1_columns._scores

    def recorded(case, splits, members, samples, progress):
        scores = original(case, splits, members, samples, progress)
        seen.append((splits, members, scores))
        return scores

    monkeypatch.setattr(table1_columns, "_scores", recorded)
    small = case(root, scale=0.1)
    rows = reproduce_column(small, "grid", lambda amount: None)
    (splits, first, scores), (_, others, other_scores), (_, last, _) = seen
    for split, (row, (train_rows, _)) in enumerate(zip(rows, small.splits, strict=True)):
        assert np.array_equal(np.concatenate(splits[split]), train_rows)
        assert len(splits[split][0]) == int(0.8 * 54)
        variance = small.targets[splits[split][0]].var()

        def best(members, scores, split=split):
            return max(
                (score[2 + step], member.setting, member.precision[step].item())
                for member, score in zip(members, scores, strict=True)
                if member.split == split
                for step in range(3)
            )

        tried = [member.setting for member in first if member.split == split]
        assert len(set(tried)) == len(tried) == 8
        assert {setting.schedule for setting in tried} == {PAPER}
        kept = best(first, scores)[1]
        again = [member.setting for member in others if member.split == split]
        assert {setting[:2] for setting in again} == {kept[:2]}
        assert {setting.learning_rate for setting in again} == {1e-3, 1e-2}
        assert {setting.schedule for setting in again} == set(small_choice().schedule[1:])
        assert len(set(again)) == len(again) == 4
        _, setting, precision = best(first + others, scores + other_scores)
        assert (row.p, row.weight_decay) == (setting.p, pytest.approx(setting.weight_decay * 43 / 54))
        assert (row.learning_rate, row.precision) == (setting.learning_rate, pytest.approx(precision))
        assert (row.epochs, row.cosine) == (small.epochs(setting.schedule), setting.schedule.cosine)
        assert row.precision * variance in [pytest.approx(tau) for tau in (0.5, 2.0, 8.0)]
        finals = {member.setting for member in last if member.split == split}
        assert finals == {setting._replace(weight_decay=row.weight_decay)}


def test_what_diverges_is_not_chosen(root, monkeypatch):
    monkeypatch.setattr(table1_columns, "Choice", lambda: small_choice(1e-3, 1e30))
    rows = reproduce_column(case(root), "grid", lambda amount: None)
    assert [row.learning_rate for row in rows] == [1e-3] * 3
    monkeypatch.setattr(table1_columns, "Choice", lambda: small_choice(1e30))
    with pytest.raises(FloatingPointError, match="training of small diverged in split 0, 1, 2"):
        reproduce_column(case(root), "grid", lambda amount: None)


def test_the_whole_table(root, folder, capsys):
    reproduce("small,mine", "grid", root=root, folder="out", splits=2, **QUICK | {"wandb": "offline"})
    reproduce("small", "paper", root=root, folder="out", splits=2, **QUICK)
    out = folder / "out"
    assert [(row["set"], row["column"]) for row in read(out, "table1.csv")] == [
        ("small", "grid"), ("mine", "grid"), ("small", "paper"),
    ]  # fmt: skip
    rows = read(out, "per_split.csv")
    assert len(rows) == 6
    table = read(out, "table1.csv")[2]
    scores = [float(row["rmse"]) for row in rows if row["column"] == "paper"]
    assert float(table["rmse"]) == pytest.approx(np.mean(scores))
    assert float(table["rmse_se"]) == pytest.approx(np.std(scores) / math.sqrt(2))
    assert float(table["published_rmse"]) == pytest.approx(3.0)
    assert float(table["published_ll_se"]) == pytest.approx(0.05)
    assert (out / "table1.png").read_bytes()[:4] == b"\x89PNG"
    assert list((out / "wandb").glob("offline-run-*/*.wandb"))
    printed = capsys.readouterr().out
    assert "3 +- 0.1" in printed
    assert "RMSE and log-likelihood within one standard error" not in printed
    assert (
        "small paper is a trial without verdict, 0.01 of the epochs; published are the same 2 of 4" in printed
    )


def test_scikit_learns_diabetes_as_a_folder_of_ones_own(tmp_path):
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    (tmp_path / "diabetes").mkdir()
    np.savetxt(tmp_path / "diabetes" / "data.txt", np.column_stack([data.data, data.target]))
    small = case(str(tmp_path), "diabetes", samples=50, scale=0.01)
    (row, *_) = reproduce_column(small, "grid", lambda amount: None)
    # 51 to 56 for six orders of the rows; 0.7 where the targets stay scaled.
    assert 10 < row.rmse < data.target.std()


def test_an_interrupted_run_goes_on(root, folder, monkeypatch, capsys):
    made = []
    original = table1.reproduce_column

    def interrupted(case, column, progress):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(column)
        return original(case, column, progress)

    monkeypatch.setattr(table1, "reproduce_column", interrupted)
    arguments = {"root": root, "folder": "out", "splits": 2} | QUICK
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    assert main(["reproduce", "dropout/table1", "--sets=small", "--columns=paper,10x", *flags]) == 130
    assert "Interrupted: the same command with --folder out resumes" in capsys.readouterr().err
    first = read(folder / "out", "table1.csv")
    assert [row["column"] for row in first] == ["paper"]
    made.append("")
    reproduce("small", "paper,10x", **arguments)
    assert made == ["paper", "", "10x"]
    after = read(folder / "out", "table1.csv")
    assert after[0] == first[0]
    made.clear()
    made.extend("..")
    reproduce(["small"], ["paper", "10x"], **arguments)
    assert made == ["."] * 2
    assert read(folder / "out", "table1.csv") == after
    with pytest.raises(
        ValueError, match=r"`samples` to be 20, as for the results in out, but got 21: choose"
    ):
        reproduce("small", "paper,10x", **arguments | {"samples": 21})
    # What people may look at and edit is no source of results.
    (folder / "out" / "per_split.csv").write_text("set,column\n")
    reproduce("small", "paper,10x", **arguments)
    assert read(folder / "out", "table1.csv") == after
    assert len(read(folder / "out", "per_split.csv")) == 4
    (folder / "out" / "state.pt").unlink()
    with pytest.raises(ValueError, match=r"`folder` out to have a state\.pt beside its per_split\.csv"):
        reproduce("small", "paper", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sets": "bosten"}, "`sets` of boston, .* but got 'bosten'"),
        ({"sets": "small,"}, "`sets` to be of boston, .* but got ''"),
        ({"columns": "paper,20x"}, "`columns` to be of paper, 10x, grid, or \"all\", but got '20x'"),
        ({"sets": "small,mine", "columns": "paper,grid"}, '`columns` of "grid" alone for mine'),
        ({"samples": 0}, "`samples` to be at least 1 but got 0"),
        ({"repeats": 0}, "`repeats` to be at least 1 but got 0"),
        ({"seed": -1}, "`seed` to be at least 0 but got -1"),
        ({"splits": 0}, r"`splits` to be in 1\.\.4 but got 0"),
        ({"splits": 5}, r"`splits` to be in 1\.\.4 but got 5"),
        ({"epochs_scale": 0.0}, r"`epochs_scale` to be positive and finite but got 0\.0"),
        ({"wandb": "on"}, '`wandb` to be "offline", "online" or "disabled" but got \'on\''),
    ],
)
def test_bad_arguments_are_refused_before_any_work(root, folder, arguments, message):
    given = {"sets": "small", "columns": "paper", "root": root, "folder": "out"} | arguments
    with pytest.raises(ValueError, match=message):
        reproduce(**given)
    assert not (folder / "out").exists()


def entry(rmse, ll, name="small", column="paper"):
    rows = [
        Row(split, rmse + shift, ll + shift, rmse, 0.1, 1.0, 0.0, 0.0, 1e-3, 400, False)
        for split, shift in ((0, -1), (1, 1))
    ]
    return Entry(name, column, rows, 1.0, 2.0)


def test_what_is_worse_than_published_is_marked(root):
    """Published: 3 +- 0.1 and -2 +- 0.05."""
    assert entry(3.09, -2.04).within() == (True, True)
    assert entry(3.11, -2.06).within() == (False, False)
    assert entry(2.9, -1.9).better()
    assert not entry(2.9, -2.01).better()
    assert entry(9.0, -9.0, name="mine").within() == (True, True)
    assert not entry(0.0, 9.0, name="mine").better()
    assert entry(2.0, -1.0).ours == Numbers(
        2.0, pytest.approx(1 / math.sqrt(2)), -1.0, pytest.approx(0.5**0.5)
    )
    marked = table1_report.line(entry(3.11, -2.0))
    assert "3.11 +- 0.71!" in marked
    assert "-2 +- 0.71 " in marked
    assert (
        "one standard error of the published ones or better on 1 of 2, both better on 1"
        in table1_report.text([entry(2.9, -1.9), entry(3.11, -2.0)])
    )


def test_trials_get_no_verdict(root):
    worse = entry(3.5, -2.5)
    for trial in (worse._replace(scale=0.1), worse._replace(rows=worse.rows[:1])):
        assert trial.within() == (True, True)
        text = table1_report.text([trial])
        assert "or better on" not in text
        assert "small paper is a trial without verdict" in text
    assert "published are the same 2 of 4 splits" in table1_report.text([worse])
    assert "3.5 +- 0.71!" in table1_report.text([worse])


def test_entries_are_kept_as_plain_data():
    for one in (entry(3.0, -2.0)._replace(scale=0.5), entry(1.0, 0.1, column="grid")._replace(scale=0.5)):
        assert table1_report.from_result(table1_report.as_result(one), 0.5) == one


def test_the_column_of_a_set_without_published_numbers_is_drawn(tmp_path):
    figure = table1_report.draw(
        [entry(3.0, -2.0, "boston"), entry(1.0, 0.1, "boston", "grid"), entry(1.0, 1.0, "mine", "grid")]
    )
    figure.savefig(tmp_path / "figure.png")
    assert len(figure.axes) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "ours",
        "published, the same splits",
    ]


def test_a_picture_of_one_set_of_ones_own_fits_and_does_not_speak_of_published_numbers():
    trial = entry(3.0, -2.0, "mine", "grid")._replace(scale=0.1)
    figure = table1_report.draw([trial])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ours"]
    assert "a trial" in legend.get_title().get_text()
    inside = figure.bbox
    for box in (legend.get_window_extent(), *(axes.get_tightbbox() for axes in figure.axes)):
        assert box.x0 >= 4 < inside.x1 - box.x1
        assert box.y0 >= 4 < inside.y1 - box.y1


def test_results_of_data_that_have_changed_are_not_taken_for_theirs(root, folder, capsys):
    arguments = {"columns": "grid", "root": root, "folder": "out", "splits": 1, **QUICK}
    reproduce("mine", **arguments)
    reproduce("mine", **arguments)
    reproduce("small", **arguments | {"columns": "paper"})
    file = Path(root, "uci", "mine", "data.txt")
    np.savetxt(file, np.loadtxt(file) + 1)
    with pytest.raises(ValueError, match=r"data of mine to be as for the results in out but got others"):
        reproduce("mine", **arguments)
    reproduce("small", **arguments | {"columns": "paper"})


def test_over_samples_trains_as_the_column_does(root):
    """With the same T both have the same scores; each T is as if it were the only one."""
    small = case(root, samples=30)
    scores = over_samples(small, [5, 30], lambda done: None)
    rows = reproduce_column(small, "paper", lambda done: None)
    assert scores.shape == (2, len(rows), 3)
    for row, (rmse, deterministic, ll) in zip(rows, scores[1], strict=True):
        assert (row.rmse, row.rmse_deterministic, row.ll) == pytest.approx((rmse, deterministic, ll))
    alone = over_samples(small, [5], lambda done: None)
    assert (scores[0] == alone[0]).all()
    assert not (scores[0] == scores[1]).all()


def test_the_results_tell_how_many_splits_chose_what(root):
    one = entry(3.0, -2.0, column="grid")
    one.rows[1] = one.rows[1]._replace(epochs=800, cosine=True)
    scores = table1_report.beside([one, entry(3.0, -2.0)], 1)
    counted = "p 0.1 in 2; weight decay 0 in 2; learning rate 0.001 in 2; epochs 400 in 1, 800 in 1"
    assert [row.chosen for row in scores] == [
        f"of 2 splits: {counted}; falling learning rate in 1",
        "",
        "",
        "",
    ]
