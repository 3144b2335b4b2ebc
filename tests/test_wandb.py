"""What a recipe leaves in the offline W&B file: keys, values, axes, config, pictures."""

import json
import os
import struct

import pytest
import wandb
from wandb.proto import wandb_internal_pb2 as pb

from pl_losses.cli.main import main


def records(path):
    """The records of an offline run: LevelDB log framing, 32 KiB blocks, a header of 7 bytes in front."""
    data, offset, parts = path.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:
            offset += 32768 - offset % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[offset : offset + 7])
        parts += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


@pytest.fixture(scope="module")
def run_records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wandb")
    flags = ["--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false"]
    wandb.teardown()  # The service of an earlier test would write to its own folder.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", "lenet/digits", *flags]) == 0
        wandb.teardown()
    (path,) = folder.glob("runs/wandb/offline-run-*/*.wandb")
    return list(records(path))


@pytest.fixture(scope="module")
def rows(run_records):
    def values(record):
        items = record.history.item
        return {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in items}

    return [values(record) for record in run_records if record.HasField("history")]


def test_keys_and_values(rows):
    keys = set().union(*rows)
    assert {"train/loss", "train/error", "val/loss", "val/error", "test/loss", "test/error"} <= keys
    assert {"test/error_low", "test/error_high"} <= keys
    # A first run tells of rejection, which needs an explanation, only if it is asked to.
    assert not any("reject" in key or "accepted" in key for key in keys)
    (test,) = [row for row in rows if "test/error" in row]
    assert test["test/error_low"] <= test["test/error"] <= test["test/error_high"]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 2 * 38 // 10
    # From 63 to 67, to 34 to 57, for six seeds.
    assert losses[-1] < losses[0]


def test_rows_have_lightnings_x_axis(rows):
    steps = [row["trainer/global_step"] for row in rows if "train/loss" in row]
    assert steps == [9, 19, 29, 39, 49, 59, 69]


def test_keys_are_defined_on_the_x_axis(run_records):
    metrics = {r.metric.name: r.metric for r in run_records if r.HasField("metric")}
    for key in ("train/loss", "train/error", "val/loss", "val/error"):
        assert metrics[key].step_metric == "trainer/global_step"
        # An aggregate would make the summary an object, which run tables do not show.
        assert not metrics[key].HasField("summary"), key


def test_the_summary_has_the_best_values(run_records, rows):
    summary = {}
    for record in run_records:
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    for key in ("val/loss", "val/error"):
        assert summary[f"{key}/best"] == min(row[key] for row in rows if key in row)


def test_config_holds_the_resolved_config_and_versions(run_records):
    config = {}
    for record in run_records:
        for item in record.config.update:
            config[item.key or "/".join(item.nested_key)] = item.value_json
        for item in record.run.config.update:
            config[item.key or "/".join(item.nested_key)] = item.value_json
    text = json.dumps(config)
    for words in ("LeNet5", "max_epochs", "lenet/digits", "torch", "pl_losses"):
        assert words in text


def test_pictures(rows):
    keys = set().union(*rows)
    assert any(key.startswith("test/confusion_matrix") for key in keys)
    assert any(key.startswith("test/errors") for key in keys)


def test_a_chart_travels_with_the_run(run_records, rows):
    assert any(key.startswith("test/confusion_table") for row in rows for key in row)
    updates = [list(item.nested_key) for record in run_records for item in record.config.update]
    assert ["_wandb", "visualize", "test/confusion"] in updates
    artifacts = [record.artifact for record in run_records if record.HasField("artifact")]
    entries = [entry for artifact in artifacts for entry in artifact.manifest.contents]
    names = {entry.path for entry in entries}
    assert {"test/confusion_table.table.json", "test/errors_table.table.json"} <= names
    assert any(name.startswith("media/images/") for name in names)
    # What `wandb sync` uploads lies with the run, not in the home directory.
    for entry in entries:
        assert "/runs/wandb/offline-run-" in entry.local_path
        assert os.path.isfile(entry.local_path)
