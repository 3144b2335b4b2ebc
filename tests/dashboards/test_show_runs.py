"""Which run is shown, and a run that is watched while it trains."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys

from dashboards.offline_files import data_of, ended, framed, history, page_of, panels_of_data, values
from wandb.proto import wandb_internal_pb2 as proto

from pl_losses.cli.main import main
from pl_losses.cli.show import whole_runs
from pl_losses.dashboards import find_run, read_run
from pl_losses.dashboards.offline.runs import was_killed


def test_the_latest_run_is_none_that_failed_or_is_empty(folder, capsys):
    row = history(_step=0, loss=0.5)
    runs = {
        "old": [row, ended(0)],
        "stopped": [row, ended(130)],
        "failed": [row, ended(1)],
        "nothing": [ended(0)],
        "empty": [],
    }
    for age, (name, payloads) in enumerate(runs.items()):
        file = folder / "runs" / "wandb" / f"offline-run-{name}" / f"run-{name}.wandb"
        file.parent.mkdir(parents=True)
        file.write_bytes(framed(payloads))
        os.utime(file, (age, age))
    assert find_run("runs").stem == "run-stopped"
    printed = capsys.readouterr().err
    assert "run-failed`: it failed with exit code 1" in printed
    assert "run-nothing`: it has logged nothing" in printed
    assert "run-empty`: it has logged nothing" in printed
    for name in ("old", "stopped"):
        shutil.rmtree(folder / "runs" / "wandb" / f"offline-run-{name}")
    # Where there is no other, it is what there is to look at.
    assert find_run("runs").stem == "run-empty"


def test_a_resumed_run_is_one_of_all_its_parts(folder):
    """Rows that the resumed part repeats replace those before; ``_step`` counts on."""
    times = ("offline-run-20260101_120000", "run-20260101_110000", "run-20260102_090000")
    parts = [folder / f"{time}-a" / "run-a.wandb" for time in times]
    steps = {parts[1]: (0, 10, 20), parts[0]: (20, 30, 40), parts[2]: (30, 40)}
    axis = proto.Record()
    axis.metric.name, axis.metric.step_metric = "loss", "trainer/global_step"
    for number, (file, at) in enumerate(steps.items()):
        rows = [
            history(_step=count, loss=number, other=step, **{"trainer/global_step": step})
            for count, step in enumerate(at)
        ]
        file.parent.mkdir()
        file.write_bytes(framed([axis.SerializeToString(), *rows, ended(number)]))
    other = folder / "run-20250101_110000-b" / "run-b.wandb"
    other.parent.mkdir()
    other.write_bytes(framed([history(_step=0, loss=0.5), ended(0)]))
    picture = parts[1].parent / "files" / "media" / "a.png"
    picture.parent.mkdir(parents=True)
    picture.touch()
    run = read_run(parts[2])
    assert [list(values) for values in run.curve("loss")[:2]] == [[0, 10, 20, 30, 40], [0, 0, 1, 2, 2]]
    assert [list(values) for values in run.columns.pairs("_step", "other")] == [
        [*range(8)],
        [0, 10, 20, 20, 30, 40, 30, 40],
    ]
    assert (run.stage, run.facts["parts"][0], run.file("media/a.png")) == (
        "failed with exit code 2",
        "3",
        picture,
    )
    assert list(read_run(parts[0]).curve("loss")[0]) == [0, 10, 20, 30, 40]
    assert list(read_run(parts[1]).curve("loss")[0]) == [0, 10, 20]
    folders = sorted(str(path) for path in folder.glob("*run-*"))
    assert len(whole_runs([read_run(find_run(path)) for path in folders])) == 2


def test_the_latest_run_is_read_once(folder, monkeypatch):
    for name in ("a", "b"):
        page_of(folder / "runs" / "wandb" / name)
    read = []
    monkeypatch.setattr(
        "pl_losses.dashboards.offline.find.read_run", lambda path: read.append(path) or read_run(path)
    )
    assert main(["show"]) == 0
    assert len(read) == 1


def test_all_that_lies_in_wandbs_folder(folder):
    place = folder / "runs" / "wandb"
    for name in ("a", "b"):
        page_of(place / name)
    for name in ("debug.log", "debug-internal.log"):
        (place / name).write_text("{}")
    (place / "latest-run").symlink_to("b")
    given = sorted(place.iterdir())
    assert main(["show", *map(str, given), "--out", "show.html"]) == 0
    page = (folder / "show.html").read_text()
    data = re.search(r'<script type="application/json" id="page">(.*?)</script>', page)[1]
    assert len(json.loads(data)["runs"]) == 2


def test_watching_a_run_until_it_ends(folder, monkeypatch, capsys):
    """Whose page is written when its file has grown, and stays when it ends."""
    monkeypatch.setattr("pl_losses.cli.show.EVERY", 3)
    monkeypatch.setattr("pl_losses.cli.show.IDLE", float("inf"))
    rows = [history(_step=step, loss=step / 2) for step in range(4)]
    file = folder / "runs" / "wandb" / "offline-run-x" / "run-x.wandb"
    file.parent.mkdir(parents=True)
    grown = [[], rows[:2], rows[:2], [*rows, ended(0)]]
    pages = []

    def sleep(seconds):
        pages.append(data_of(page.read_text()))
        file.write_bytes(framed(grown[len(pages)]))
        os.utime(file, (len(grown[len(pages)]),) * 2)

    page = file.with_name("show.html")
    file.write_bytes(framed(grown[0]))
    os.utime(file, (1, 1))
    monkeypatch.setattr("time.sleep", sleep)
    assert main(["show", "--watch"]) == 0
    pages.append(data_of(page.read_text()))
    assert [one["refresh"] for one in pages] == [3, 3, 3, 0]
    lines = [
        [len(values(line["y"])) for panel in panels_of_data(one) for line in panel["lines"]] for one in pages
    ]
    assert lines == [[], [2], [2], [4]]
    assert "Run x: finished; 4 rows" in capsys.readouterr().out
    assert main(["show", "--watch"]) == 0
    assert "This run has ended; of one that is starting, give" in capsys.readouterr().out
    assert len(pages) == 4


def test_watching_ends_with_a_run_that_was_killed(folder, monkeypatch, capsys):
    """Whose process is gone from this machine; of a run on another one that is not known."""
    monkeypatch.setattr("pl_losses.cli.show.EVERY", 0.01)
    monkeypatch.setattr("pl_losses.cli.show.SETTLED", 0)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    run = folder / "runs" / "wandb" / "offline-run-x"
    (run / "logs").mkdir(parents=True)
    log = run / "logs" / "debug.log"
    environment = proto.Record(environment=proto.EnvironmentRecord(host=platform.node()))
    file = run / "run-x.wandb"
    file.write_bytes(framed([history(_step=0, loss=1), environment.SerializeToString()]))
    log.write_text(f"Configure stats pid to {os.getpid()}\n")
    assert not was_killed(read_run(file))
    log.write_text(f"Configure stats pid to {gone.pid}\n")
    assert main(["show", "--watch"]) == 0
    assert "Run x: killed: its process is gone" in capsys.readouterr().out
    file.write_bytes(framed([]))  # Before anything was recorded.
    assert was_killed(read_run(file))
    environment.environment.host = "elsewhere"
    file.write_bytes(framed([history(_step=0, loss=1), environment.SerializeToString()]))
    assert not was_killed(read_run(file))


def test_watching_ends_where_nothing_is_written(folder, monkeypatch, capsys):
    """As of CSVLogger, which records no end."""
    file = folder / "metrics.csv"
    file.write_text("step,loss\n0,1.5\n")
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        os.utime(file, (0, 0))

    monkeypatch.setattr("time.sleep", sleep)
    assert main(["show", "--watch", "metrics.csv"]) == 0
    assert len(slept) == 1
    assert "CSVLogger records no end; 1 rows" in capsys.readouterr().out


def test_a_csv_run_says_what_it_is(folder):
    run = folder / "runs/pl_losses/version_3"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("step,train/loss\n1,2.0\n")
    os.utime(run / "metrics.csv", (1_000_060, 1_000_060))
    (run / "config.yaml").write_text("seed_everything: 5\n")
    assert read_run(run / "metrics.csv").name == "pl_losses/version_3"
    record = {
        "started": 1_000_000.5,
        "recipes": ["trainers/ddp", "lenet/digits"],
        "model": "pl_losses.LeNet5",
    }
    (run / "record.json").write_text(json.dumps(record))
    found = read_run(run / "metrics.csv")
    assert (found.name, found.job_type) == ("lenet/digits, seed 5, version_3", "fit")
    assert (found.facts["began"], found.facts["took"]) == ("1970-01-12 13:46 UTC", "60 s")
    (run / "config.yaml").unlink()
    assert read_run(run / "metrics.csv").name == "lenet/digits, version_3"
    (run / "record.json").write_text("{")
    assert read_run(run / "metrics.csv").name == "pl_losses/version_3"


def test_ctrl_c_ends_watching_in_a_line(folder, monkeypatch, capsys):
    def interrupted(seconds):
        raise KeyboardInterrupt

    page_of(folder)
    monkeypatch.setattr("time.sleep", interrupted)
    assert main(["show", "--watch", "offline-run-x", "--open", "false"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.splitlines()[-1].startswith("Page: offline-run-x/show.html (0.")
    assert data_of((folder / "offline-run-x" / "show.html").read_text())["refresh"] == 0
