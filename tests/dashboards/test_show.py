"""Runs are read back as they were logged, and their page shows them with no network."""

import json
import random
import re
import shutil
import tracemalloc
from base64 import b64decode

import numpy as np
import pytest
import wandb
from dashboards.offline_files import data_of, framed, history, page_of, panels_of, summary, values
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from wandb.proto import wandb_internal_pb2 as proto

from pl_losses import LeNet5
from pl_losses.cli.main import main
from pl_losses.core import panels
from pl_losses.dashboards import build_page, find_run, read_run
from pl_losses.dashboards.offline import wire
from pl_losses.dashboards.offline.columns import plain_numbers, thin_out
from pl_losses.dashboards.offline.records import read_payloads
from pl_losses.data import Digits

matches = panels.matches
LOSSES = [2.5, float("nan"), 1.25, 1e-7, float("inf"), -3.0]


class Own(LeNet5):
    """A class of the user's own."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The file of an offline run that logged one thing of each kind."""
    folder = tmp_path_factory.mktemp("run")
    config = {"recipe": "lenet/digits", "config": {"model": {"class_path": "LeNet5"}, "lr": 0.1}}
    with wandb.init(dir=folder, mode="offline", config=config, settings={"silent": True}) as run:
        run.define_metric("val/*", step_metric="epoch")
        for step, loss in enumerate(LOSSES):
            run.log({"train/loss": loss, "trainer/global_step": 10 * step, "own/x": step})
        for epoch in range(3):
            run.log({"val/error": 0.5 / (epoch + 1), "epoch": epoch})
        image = np.arange(64, dtype=np.uint8).reshape(8, 8)
        table = wandb.Table(["name", "value"], [["<b>", 1.5]])
        curve = wandb.plot.line_series(
            [0, 50], [[4, 1]], keys=["strings"], title="Errors", xname="rejected, %"
        )
        run.log({"test/curve": curve})
        run.log(
            {"prelu/1/slopes": wandb.Histogram(np.arange(9.0)), "test/errors": wandb.Image(image), "t": table}
        )
    wandb.teardown()
    return find_run(str(folder))


def test_a_run_in_plain_python_is_titled_by_its_class(tmp_path):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    logger = WandbLogger(save_dir=tmp_path, offline=True, settings=wandb.Settings(silent=True))
    options = {"accelerator": "cpu", "logger": logger, "max_steps": 1, "limit_val_batches": 0}
    Trainer(**options, **quiet).fit(Own(head="linear"), Digits())
    wandb.finish()
    wandb.teardown()
    run = read_run(find_run(str(tmp_path)))
    assert run.config["model"] == {"class_path": f"{__name__}.Own"}
    assert run.config["head"] == "linear"
    assert "<title>Own</title>" in build_page([run])


def test_a_run_is_read_back_as_it_was_logged(file):
    run = read_run(file)
    steps, losses, axis = run.curve("train/loss")
    assert axis == "_step"
    np.testing.assert_array_equal(steps, range(6))
    np.testing.assert_array_equal(losses, LOSSES)
    epochs, errors, axis = run.curve("val/error")
    assert (axis, list(epochs), list(errors)) == ("epoch", [0, 1, 2], [0.5, 0.25, 0.5 / 3])
    assert run.keys() == {"train/loss", "trainer/global_step", "own/x", "val/error", "prelu/1/slopes"} | {
        "test/errors",
        "test/curve_table",
        "t",
    }
    assert (run.stage, run.recipe, run.config["lr"]) == ("finished", "lenet/digits", 0.1)
    assert sum(run.items["histogram"]["prelu/1/slopes"][0].value["values"]) == 9


def test_a_run_that_was_killed_is_read_as_far_as_it_got(file, tmp_path):
    data = file.read_bytes()
    cut = tmp_path / "run-cut.wandb"
    cut.write_bytes(data[: data.index(b"val/error")])
    run = read_run(cut)
    assert len(run.curve("train/loss")[1]) == 6
    assert "no end was recorded" in run.stage
    assert run.notes == [f"the file ends within a record, at byte {run.notes[0].rpartition(' ')[2]}"]
    at = data.index(b"val/error")
    cut.write_bytes(data[:at] + b"?" + data[at + 1 :])
    assert "damaged" in read_run(cut).notes[0]


def test_a_long_file_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("pl_losses.dashboards.offline.columns.CHUNK", 16)
    file = tmp_path / "run-long.wandb"
    rows = ({f"k{key}": row + key / 7 for key in range(40)} for row in range(600))
    # wandb writes the changes of the summary, too.
    file.write_bytes(
        framed(record for row in rows for record in (history(**row, _step=row["k0"]), summary(**row)))
    )
    tracemalloc.start()
    run = read_run(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(run.curve("k7")[1][[0, -1]]) == [1, 600]
    assert peak < 0.5 * file.stat().st_size


def test_after_damage_reading_goes_on_with_the_next_block(tmp_path):
    file = tmp_path / "run-long.wandb"
    payloads = [f"record {number} ".encode() * (1 + number % 9) for number in range(3000)]
    payloads[7] = b"over three blocks" * 5000
    data = framed(payloads)
    file.write_bytes(data)
    notes = []
    assert list(read_payloads(file, notes)) == payloads
    assert not notes
    data[32768 * 4 + 500] ^= 1
    file.write_bytes(data)
    found = list(read_payloads(file, notes))
    assert re.match(r"the file is damaged at byte 131\d{3}: ", *notes)
    # What is in the rest of that block is lost, no more.
    lost = [payload for payload in payloads if payload not in found]
    assert found == [payload for payload in payloads if payload not in lost]
    assert 30_000 < len(framed(lost)) < 33_000


OUTSIDE = {"columns": ["a"], "data": [["a secret"]]}


@pytest.mark.parametrize(
    "path", ["../../secret.json", "{folder}/secret.json", "link.json", "a\0b", "a" * 5000]
)
def test_a_table_is_of_the_run_or_not_shown(tmp_path, path):
    (tmp_path / "secret.json").write_text(json.dumps(OUTSIDE))
    inside = tmp_path / "offline-run-x" / "files"
    inside.mkdir(parents=True)
    (inside / "link.json").symlink_to(tmp_path / "secret.json")
    (inside / "table.json").write_text(json.dumps({"columns": ["b"], "data": [["no secret"]]}))
    described = {"_type": "table-file", "path": path.format(folder=tmp_path)}
    page = page_of(tmp_path, history(t=described, u={"_type": "table-file", "path": "table.json"}))
    assert "a secret" not in page
    assert "no secret" in page


# What JSON may hold where wandb would not write it.
ODDITIES = [
    None,
    True,
    "text",
    -1,
    1e308,
    10**400,
    [],
    [[]],
    ["text"],
    {},
    {"a": {"b": []}},
    "<script>",
    [None],
]
PLACES = {
    "histogram": lambda odd: history(h={"_type": "histogram", "bins": odd, "values": odd}),
    "counts": lambda odd: history(h={"_type": "histogram", "bins": [0, 1], "values": odd}),
    "image": lambda odd: history(i={"_type": "images/separated", "filenames": odd, "path": odd}),
    "picture": lambda odd: history(i={"_type": "images/separated", "filenames": [odd]}),
    "table": lambda odd: history(t={"_type": "table-file", "path": odd}),
    "type": lambda odd: history(t={"_type": odd}),
    "value": lambda odd: history(v=odd, _step=odd),
    "config": lambda odd: configured(("config", odd), ("recipe", odd), ("git", odd)),
    "model": lambda odd: configured(("config", {"model": odd, "trainer": {"callbacks": odd}})),
    "chart": lambda odd: configured(("_wandb", "visualize", "t", odd)),
    "panel": lambda odd: configured(("_wandb", "visualize", "t", {"panel_config": odd})),
    "texts": lambda odd: configured(("_wandb", "visualize", "t", {"panel_config": {"stringSettings": odd}})),
}


def configured(*updates):
    record = proto.Record()
    for *keys, value in updates:
        record.config.update.add(nested_key=keys, value_json=json.dumps(value))
    return record.SerializeToString()


@pytest.mark.parametrize("place", PLACES)
def test_a_page_is_made_of_odd_records(tmp_path, place):
    scripts = page_of(tmp_path).count("<script>")
    for odd in ODDITIES:
        page = page_of(tmp_path, PLACES[place](odd))
        assert '"loss"' in page
        assert page.count("<script>") == scripts


def test_a_table_with_odd_cells(tmp_path):
    file = tmp_path / "offline-run-x" / "files" / "t.json"
    file.parent.mkdir(parents=True)
    names = ("step", "lineKey", "lineVal"), ("Actual", "Predicted", "nPredictions")
    for name, columns in zip(("wandb/lineseries/v0", "wandb/confusion_matrix/v1"), names, strict=True):
        chart = configured(("_wandb", "visualize", "x", {"panel_config": {"panelDefId": name}}))
        table = history(x_table={"_type": "table-file", "path": "t.json"})
        for odd in ODDITIES:
            for content in (
                odd,
                {"columns": odd, "data": [[1, 2, 3]]},
                {"columns": columns, "data": odd},
                {"columns": columns, "data": [[odd, odd, odd], [0, "a", 1]]},
            ):
                file.write_text(json.dumps(content))
                page_of(tmp_path, chart, table)


def test_a_page_is_made_of_damaged_records(tmp_path, file):
    """Bytes are changed within the records, whose checksums are made anew."""
    payloads = list(read_payloads(file, []))
    draw = random.Random(0)
    for _ in range(100):
        broken = [bytearray(payload) for payload in payloads]
        for payload in draw.sample(broken, 5):
            at = draw.randrange(len(payload))
            payload[at : at + draw.choice((0, 1, 4))] = draw.randbytes(draw.choice((0, 1, 4)))
        page_of(tmp_path, *map(bytes, broken))


def test_thousands_of_keys_take_no_long(tmp_path, monkeypatch):
    """Each has a panel of its own, whose pattern is looked up and not compared with all keys."""
    calls = []
    monkeypatch.setattr(panels, "matches", lambda *given: calls.append(given) or matches(*given))
    counts = []
    for number in (500, 1000):
        page_of(tmp_path, history(**{f"k{key}/v": float(key) for key in range(number)}))
        counts.append(len(calls))
        calls.clear()
    assert 0 < counts[1] < 2.5 * counts[0]


def test_the_machine_and_the_terminal_are_read_back(tmp_path):
    begun, measured, written = proto.Record(), proto.Record(), proto.Record()
    begun.run.start_time.seconds = 1_700_000_000
    measured.stats.timestamp.seconds = 1_700_000_090
    measured.stats.item.add(key="cpu", value_json="12.5")
    measured.stats.item.add(key="name", value_json='"odd"')
    written.output_raw.line = "Epoch 0\n"
    file = tmp_path / "run-x.wandb"
    file.write_bytes(framed(record.SerializeToString() for record in (begun, measured, written)))
    run = read_run(file)
    minutes, values = run.system.pairs("minutes", "cpu")
    assert (list(minutes), list(values), run.console) == ([1.5], [12.5], ["Epoch 0\n"])
    assert run.system.names() == ["cpu", "minutes"]
    assert not run.keys()


def test_the_fields_are_those_of_wandb():
    messages = {
        "RECORD": proto.Record,
        "CONFIG": proto.ConfigRecord,
        "RUN": proto.RunRecord,
        "EXIT": proto.RunExitRecord,
        "METRIC": proto.MetricRecord,
        "ENVIRONMENT": proto.EnvironmentRecord,
        "ARTIFACT": proto.ArtifactRecord,
        "MANIFEST": proto.ArtifactManifest,
        "ENTRY": proto.ArtifactManifestEntry,
        "ITEM": proto.HistoryItem,
        "HISTORY": proto.HistoryRecord,
        "STATS": proto.StatsRecord,
        "OUTPUT": proto.OutputRawRecord,
    }
    for name, message in messages.items():
        for field, number in getattr(wire, name).items():
            assert message.DESCRIPTOR.fields_by_name[field].number == number, (name, field)


def test_rows_of_numbers_are_told_from_others():
    def row(**values):
        record = proto.Record()
        for key, text in values.items():
            record.history.item.add(nested_key=[key], value_json=text)
        return record.SerializeToString()

    assert plain_numbers(row(a="1.5", b="NaN")) == {b"a": b"1.5", b"b": b"NaN"}
    # Of every length: one may look like the mark of a field, as 18 does, and 130 like that of a value.
    for size in range(1, 128):
        key, text = "k" * size, f"{size}{'0' * (size % 30)}"
        read = plain_numbers(row(**{key: text}))
        assert read == {key.encode(): text.encode()} or (read is None and size > 100)
    many = {"k" * size: str(size) for size in range(1, 100)}
    assert plain_numbers(row(**many)) == {key.encode(): text.encode() for key, text in many.items()}
    for text in ('"text"', '{"_type": "histogram"}', "null", '"1.5"'):
        assert plain_numbers(row(a="1", b=text)) is None
    # What changes in the summary is no row, though it is made of the same.
    record = proto.Record(num=1)
    record.summary.update.add(nested_key=["a"], value_json="1")
    assert plain_numbers(record.SerializeToString()) is None


@pytest.mark.parametrize("points", [4, 7, 100, 999])
def test_thinning_keeps_ends_and_extremes(points):
    draw = np.random.default_rng(points)
    x, y = np.arange(1000.0), draw.standard_normal(1000)
    y[draw.integers(1, 999)] = np.nan
    kept, values = thin_out(x, y, points)
    assert len(kept) <= points
    assert (np.diff(kept) > 0).all()
    assert {kept[0], kept[-1]} == {0, 999}
    assert (values.min(), values.max()) == (np.nanmin(y), np.nanmax(y))
    np.testing.assert_array_equal(values, y[kept.astype(int)])


def test_the_page_of_a_run(file):
    page = build_page([read_run(file)])
    # Nothing is loaded from anywhere.
    assert not re.search(r"<(script|link|img|iframe)[^>]*\s(src|href)=", page)
    assert "default-src 'none'" in page
    assert len(page) < 2e6
    panels = panels_of(page)
    kinds = [panel["kind"] for panel in panels]
    assert {"lines", "histogram", "pictures", "table"} == set(kinds)
    shown = [line["key"] for panel in panels for line in panel.get("lines", [])]
    assert sorted(shown) == ["own/x", "strings", "train/loss", "trainer/global_step", "val/error"]
    (chart,) = (panel for panel in panels if panel["title"] == "Errors")
    assert (chart["x"], list(values(chart["lines"][0]["y"]))) == ("rejected, %", [4, 1])
    (loss,) = (line for panel in panels for line in panel.get("lines", []) if line["key"] == "train/loss")
    finite = [value for value in LOSSES if np.isfinite(value)]
    np.testing.assert_array_equal(values(loss["y"]), finite)
    assert loss["note"] == "2 values are not finite, the first at 1"
    (picture,) = (panel for panel in panels if panel["kind"] == "pictures")
    assert b64decode(picture["pictures"][0]["frames"][0]["source"].split(",")[1]).startswith(b"\x89PNG")
    (table,) = (panel for panel in panels if panel["kind"] == "table")
    assert table["rows"] == [["<b>", 1.5]]


def test_runs_are_compared_on_one_page(file):
    one, other = read_run(file), read_run(file)
    other.config = {**one.config, "lr": 0.2}
    page = build_page([one, other])
    assert data_of(page)["runs"] == [one.name, f"{one.name} (2)"]
    assert [line["run"] for panel in panels_of(page) for line in panel.get("lines", [])] == [0, 1] * 5
    cells = "<td>lr</td><td data-run=0>0.1</td><td data-run=1>0.2</td>"
    assert f"<tr data-key=\"lr\" class='differs'>{cells}</tr>" in page
    assert re.findall(r"<td>(lr [0-9.]+)</td>", page) == ["lr 0.1", "lr 0.2"]


def test_the_command(file, folder, capsys, monkeypatch):
    shutil.copytree(file.parent, folder / "runs" / "wandb" / file.parent.name)
    assert main(["show"]) == 0
    printed = capsys.readouterr().out
    assert "wandb leet" in printed
    (page,) = folder.glob("runs/wandb/*/show.html")
    assert f"Page: {page.relative_to(folder)}" in printed
    name = file.stem.removeprefix("run-")
    assert main(["show", name, str(file), "--out", "both.html", "--open", "false"]) == 0
    assert len(data_of((folder / "both.html").read_text())["runs"]) == 2
    ran = []
    monkeypatch.setattr("subprocess.run", lambda command, **_: ran.append(command[1:]))
    capsys.readouterr()
    assert main(["show", name, name, "--terminal", "true"]) == 0
    assert ran == [["-m", "wandb", "leet", "runs/wandb"]]
    assert "In the terminal: wandb leet runs/wandb\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "No run, file or folder named `nowhere`"),
        (["empty.wandb"], "is empty"),
        (["text.wandb"], "is not the file of a W&B run"),
        (["noise.wandb"], "Nothing of `noise.wandb` can be read: the file is damaged at byte 7"),
        (["names.csv"], "has no numbers"),
        ([], "No folder `runs` here"),
        (["."], "No run in `.`"),
        ([".", "--oot", "x"], "Unknown option `--oot`: did you mean `--out`?"),
        ([".", "--open", "perhaps"], "Expected `--open` to be true or false"),
    ],
)
def test_refusals(args, message, folder, capsys):
    (folder / "empty.wandb").touch()
    (folder / "text.wandb").write_text("no run")
    (folder / "noise.wandb").write_bytes(b":W&B\xe1\xbe\0" + bytes(range(256)) * 10)
    (folder / "names.csv").write_text("first,last\nYann,LeCun\n")
    assert main(["show", *args]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1
