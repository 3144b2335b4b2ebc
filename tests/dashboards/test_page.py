"""What is on a page of runs that are made here, without wandb."""

import json
import re
import shutil
import subprocess
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from pl_losses.core.panels import Panel
from pl_losses.dashboards import build_page, read_run
from pl_losses.dashboards.offline.runs import Chart, Item, Run
from pl_losses.dashboards.page.page import d3
from pl_losses.recipes import HERE


def sections_of(*runs):
    data = re.search(r'id="page">(.*?)</script>', build_page(runs), re.S)[1]
    # As a browser does, which knows no NaN.
    return json.loads(data, parse_constant=pytest.fail)["sections"]


def panels_of(*runs):
    return [panel for section in sections_of(*runs) for panel in section["panels"]]


def made(folder, name="a", **columns):
    """A run with columns of numbers."""
    run = Run(name, folder / name, [folder])
    keys = [key.replace("__", "/").encode() for key in columns]
    for row in zip(*columns.values(), strict=True):
        run.columns.add(dict(zip(keys, (json.dumps(value).encode() for value in row), strict=True)))
    return run


def test_single_values_make_a_table(tmp_path):
    runs = [Run(name, tmp_path / name, [tmp_path]) for name in ("a", "b")]
    runs[0].columns.add({b"_step": b"3", b"test/error": b"0.25", b"test/error_low": b"0.125"})
    runs[1].columns.add({b"_step": b"3", b"test/error": b"0.5"})
    tables = [panel for panel in panels_of(*runs) if panel["kind"] == "table"]
    rows = [row for table in tables for row in table["rows"]]
    assert ["test/error", "0.25", "0.5"] in rows
    assert ["test/error_low", "0.125", ""] in rows


def test_the_tables_of_the_config_then_those_that_fit(tmp_path):
    run = made(
        tmp_path, _step=[0, 1], train__loss=[2, 1], train__error=[0.5, 0.25], test__error_low=[0.1, 0.1]
    )
    sections = {section["name"]: section for section in sections_of(run)}
    # A classifier's, not those of a reader of strings, which has the same keys and more.
    assert [panel["title"] for panel in sections["Training"]["panels"]] == ["Loss", "Error, share of all"]
    run.config = {"model": {"class_path": "pl_losses.LatticeReader"}}
    assert [section["name"] for section in sections_of(run)] == ["Training", "Test"]


def test_each_axis_has_a_panel_of_its_own(tmp_path):
    one, other = (made(tmp_path, _step=[0, 1], epoch=[0, 1], train__loss=[2, 1]) for _ in range(2))
    other.axes = {"train/loss": "epoch"}
    assert [panel["x"] for panel in panels_of(one, other) if panel["title"] == "Loss"] == ["_step", "epoch"]


def test_all_pictures_of_a_key(tmp_path):
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    run = made(tmp_path)
    names = ["0.png", "1.png", "gone.png", "../outside.png"]
    run.items = {"picture": {"own/two": [Item(5.0, "_step", {"filenames": names})]}}
    (panel,) = panels_of(run)
    assert len(panel["pictures"][0]["frames"]) == 2
    run.items["picture"]["own/two"] = [Item(5.0, "_step", {"path": "gone.png"})]
    (panel,) = panels_of(run)
    assert panel["pictures"][0]["note"] == "(0 of 1 steps are shown)"


def test_a_confusion_matrix_of_a_chart(tmp_path):
    cells = [["0", "0", 3], ["0", "1", float("nan")], ["1", "0", 0], ["1", "1", 4]]
    table = {"columns": ["Actual", "Predicted", "nPredictions"], "data": cells}
    (tmp_path / "table.json").write_text(json.dumps(table))
    run = made(tmp_path)
    run.items = {"table": {"test/confusion_table": [Item(1.0, "_step", {"path": "table.json"})]}}
    run.charts = {"test/confusion_table": Chart("wandb/confusion_matrix/v1", {})}
    (panel,) = panels_of(run)
    assert panel["columns"] == ["right, predicted", "0", "1"]
    assert panel["rows"] == [["0", 3, "nan"], ["1", "", 4]]
    # The picture has the counts, too.
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    run.items["picture"] = {"test/confusion_matrix": [Item(1.0, "_step", {"path": "a.png"})]}
    assert [panel["kind"] for panel in panels_of(run)] == ["pictures"]
    (tmp_path / "a.png").unlink()
    assert "table" in [panel["kind"] for panel in panels_of(run)]


def test_a_page_keeps_to_its_size(tmp_path):
    draw = np.random.default_rng(0)
    run = made(tmp_path, _step=range(3000), **{f"k{k}": draw.standard_normal(3000) for k in range(100)})
    histogram = {"bins": list(draw.standard_normal(65)), "values": [123456] * 64}
    run.items = {"histogram": {f"h{k}": [Item(i, "_step", histogram) for i in range(200)] for k in range(20)}}
    (tmp_path / "table.json").write_text(json.dumps({"columns": ["a"], "data": [["b" * 5000]] * 500}))
    run.items["table"] = {"t": [Item(0, "_step", {"path": "table.json"})]}
    for minute in range(1000):
        row = {"minutes": minute} | {f"gpu.{number}.power": minute % 7 for number in range(8)}
        run.system.add({key.encode(): json.dumps(value).encode() for key, value in row.items()})
    run.console = ["line\n" * 100_000]
    Image.fromarray(draw.integers(0, 255, (600, 600, 3)).astype(np.uint8)).save(tmp_path / "noise.png")
    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    run.items["picture"] = {"p": [Item(i, "_step", {"path": "noise.png"}) for i in range(9)]}
    run.items["picture"] |= {key: [Item(0, "_step", {"path": f"{key}.png"})] for key in ("noise", "small")}
    page = build_page([run])
    assert 3e6 < len(page) < 5e6
    panels = {panel["title"]: panel for panel in panels_of(run)}
    assert len(panels["h3"]["maps"][0]["steps"]) > 10
    assert "of 500 rows" in panels["t"]["note"]
    assert panels["p"]["pictures"][0]["note"] == "(1 of 9 steps are shown)"
    # No key is left out for another one's sake: what is too large becomes smaller.
    kinds = [panels[key]["pictures"][0]["frames"][0]["source"][:14] for key in ("p", "noise", "small")]
    assert kinds == ["data:image/jpe", "data:image/jpe", "data:image/png"]
    kept, whole = np.frombuffer(b64decode(panels["k7"]["lines"][0]["y"])), run.curve("k7")[1]
    assert (kept.min(), kept.max()) == (whole.min(), whole.max())


def test_a_run_of_csv_logger(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss,text\n0,01.5,a\n10,nan,b,beyond\n20,1_0,\n")
    (tmp_path / "pictures").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "pictures" / "test-dropout-entropy.png")
    run = read_run(tmp_path / "metrics.csv")
    steps, losses, axis = run.curve("train/loss")
    assert (axis, list(steps)) == ("trainer/global_step", [0, 10, 20])
    np.testing.assert_array_equal(losses, [1.5, np.nan, 10])
    assert run.curves() == ["train/loss"]
    assert list(run.items["picture"]) == ["test/dropout/entropy"]
    assert "Uncertainty (Gal and Ghahramani)" in [section["name"] for section in sections_of(run)]


def test_pictures_in_a_table_are_of_the_run(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for place in (folder, tmp_path):
        Image.new("L", (28, 28)).save(place / "seven.png")
    cells = [{"_type": "image-file", "path": path} for path in ("seven.png", "../seven.png", "gone.png", 5)]
    (folder / "table.json").write_text(json.dumps({"columns": ["image"], "data": [[one] for one in cells]}))
    run = Run("a", folder / "a.wandb", [folder])
    run.items = {"table": {"test/misread": [Item(1.0, "_step", {"path": "table.json"})]}}
    (panel,) = panels_of(run)
    (first,), *others = panel["rows"]
    assert b64decode(first["source"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert all(isinstance(cell, str) for row in others for cell in row)
    # As many as there are, they keep to their room.
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8)).save(
        folder / "seven.png"
    )
    (folder / "table.json").write_text(json.dumps({"columns": ["image"], "data": [[cells[0]]] * 150}))
    assert len(build_page([run])) < 1.5e6


def test_sections_of_one_topic_are_joined(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    run = made(tmp_path, _step=[0, 1], train__loss=[2, 1])
    run.config = {"model": {"class_path": "pl_losses.LeNet5"}}
    keys = ("test/errors", "test/rejected_samples", "test/confusion_matrix")
    run.items = {"picture": {key: [Item(1.0, "_step", {"path": "a.png"})] for key in keys}}
    names = [section["name"] for section in sections_of(run)]
    assert names == ["What was misread (Fig. 8)", "Training"]


def test_a_run_of_an_own_class_is_titled_by_it(tmp_path):
    run = made(tmp_path, _step=[0, 1], train__loss=[2, 1])
    assert "<title>a</title>" in build_page([run])
    run.config = {"model": {"class_path": "own.module.Net"}}
    assert "<title>Net</title>" in build_page([run])
    run.recipe = "lenet/digits"
    assert "<title>Net, lenet/digits</title>" in build_page([run])
    run.config = {"model": {"class_path": "pl_losses.LeNet5"}}
    assert "<title>lenet/digits</title>" in build_page([run])


def test_runs_of_a_sweep_are_compared_by_what_differs(tmp_path):
    runs = [made(tmp_path, f"r{number}", _step=[0, 1], test__error=[0.5, number / 10]) for number in range(4)]
    for number, run in enumerate(runs):
        optimizer = {"class_path": ("torch.optim.SGD", "torch.optim.Adam")[number % 2], "lr": 10.0**-number}
        run.config = {"optimizer": optimizer, "folder": f"runs/{number}", "depth": 3}
    panel = panels_of(*runs)[0]
    assert (panel["kind"], panel["title"]) == ("parallel", "Configs and test/error")
    assert [(axis["name"], axis["values"]) for axis in panel["axes"]] == [
        ("optimizer.class_path", ["SGD", "Adam", "SGD", "Adam"]),
        ("optimizer.lr", [1.0, 0.1, 0.01, 0.001]),
        ("test/error", [0.0, 0.1, 0.2, 0.3]),
    ]
    assert panels_of(*runs[:2])[0]["kind"] != "parallel"
    # What only some have is no axis, and what a sweep seeks may be another key.
    runs[0].config["callback"] = 1
    assert [axis["name"] for axis in panels_of(*runs)[0]["axes"]][:-1] == [
        "optimizer.class_path",
        "optimizer.lr",
    ]
    # Nor is where a run was kept.
    for number, run in enumerate(runs):
        run.config["trainer"] = {"logger": {"init_args": {"offline": number > 1}}}
    assert [axis["name"] for axis in panels_of(*runs)[0]["axes"]][:-1] == [
        "optimizer.class_path",
        "optimizer.lr",
    ]
    assert "Configs and test/error" in build_page(runs, metric="test/error")
    assert "Configs and" not in build_page(runs, metric="unknown")


def test_the_machine_and_the_terminal_come_last(tmp_path):
    run = made(tmp_path, _step=[0, 1], train__loss=[2, 1])
    for minute in range(3):
        row = {"minutes": minute, "gpu.0.temp": 40 + minute, "gpu.1.temp": 50, "cpu": 7}
        run.system.add({key.encode(): json.dumps(value).encode() for key, value in row.items()})
    run.console = ["Epoch 0:  50%", "\rEpoch 0: 100%", "\n\x1b[31m<b>\x1b[0m\n", "x" * 300_000, "\nend"]
    *_, last = sections_of(run)
    assert (last["name"], last["open"]) == ("System", False)
    assert [panel["title"] for panel in last["panels"]] == ["cpu", "gpu.temp"]
    assert [line["key"] for line in last["panels"][1]["lines"]] == ["gpu.0.temp", "gpu.1.temp"]
    page = build_page([run])
    (text,) = re.findall(r"<pre>(.*?)</pre>", page, re.S)
    assert text.startswith("Epoch 0: 100%\n&lt;b&gt;\nxxx")
    assert text.endswith("xxx\nend")
    assert "characters left out" in text
    assert len(text) < 110_000


def contrast(one, other):
    """As WCAG defines it."""

    def luminance(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_are_seen_on_light_and_dark_ground(tmp_path):
    page = build_page([made(tmp_path, _step=[0, 1], train__loss=[2, 1])])
    grounds = re.search(r"--ground: light-dark\((#\w+), (#\w+)\)", page).groups()
    assert grounds == ("#fff", "#16181c")
    colours = re.findall(r"#\w{6}", re.search(r"PALETTE = \[(.*?)\]", page)[1])
    assert len(set(colours)) == 10
    for colour in colours:
        assert min(contrast(colour, "#ffffff"), contrast(colour, "#16181c")) >= 3  # That of graphics.


def test_a_panel_shows_what_it_is_for():
    panel = Panel("Right and predicted", ("test/confusion_table",), "chart")
    assert panel.shown({"test/confusion_table": "table", "test/error": "table"}) == {"test/confusion_table"}
    assert not panel.shown({"test/confusion_table": "lines"})


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on the PATH")
@pytest.mark.parametrize(
    ("domain", "ticks"),
    [([2.1, 4.5], [2.5, 3, 3.5, 4, 4.5]), ([0.3, 6], [0.5, 1, 2, 5]), ([0.01, 20], [0.01, 0.1, 1, 10])],
)
def test_a_log_scale_has_ticks(domain, ticks):
    charts = (HERE / "dashboards/page/charts.js").read_text()
    (function,) = re.findall(r"^function logTicks.*?^}", charts, re.M | re.S)
    tell = f"console.log(JSON.stringify(logTicks(d3.scaleLog().domain({domain}))))"
    library = f"const d3 = {{}}; (function (exports, module, define) {{{d3()}}}).call({{d3}})"
    script = f"{library}\n{function}\n{tell}"
    done = subprocess.run(["node", "-"], input=script, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ticks
