"""What arrives on a server that speaks W&B's protocol, and what a user sees where it refuses."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger
from wandb_server import ENTITY, KEY, Server

from pl_losses.cli.arguments import check, split
from pl_losses.cli.loggers import online_asked
from pl_losses.cli.main import main
from pl_losses.core.compat import of_wandb
from pl_losses.core.files import checksum
from pl_losses.core.wandb_run import finish, settings
from pl_losses.dashboards import build_page, read_run
from pl_losses.dashboards.page.drawing import read_table
from pl_losses.dashboards.workspace import build_workspace
from pl_losses.monitoring.charts import log_table
from pl_losses.monitoring.record import how_to_look
from pl_losses.recipes import HERE

ONLINE = ["--trainer.logger.offline", "false"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
VARIABLES = ["WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_SILENT", "WANDB_SWEEP_ID"]


@pytest.fixture(scope="module")
def server():
    with Server().serving() as server:
        yield server


def signed_in(patch, server, folder):
    """Let wandb talk to the server, and to nothing else: no other key, no settings of the user."""
    for name in VARIABLES:
        patch.delenv(name, raising=False)
    patch.chdir(folder)
    patch.setenv("HOME", str(folder))
    patch.setenv("WANDB_BASE_URL", server.url)
    patch.setenv("WANDB_API_KEY", KEY)
    wandb.teardown()  # The service of an earlier test has its own settings.


@pytest.fixture
def online(server, tmp_path, monkeypatch):
    signed_in(monkeypatch, server, tmp_path)
    kept = dict(server.runs)
    server.forget()
    yield server
    server.forget()
    server.runs = kept
    wandb.teardown()


def pl_losses(*args):
    assert main([*args, *QUIET]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def runs(server, folder):
    """A fit and its test; the same kept offline and synced; that fit resumed, and its checkpoint tested."""
    logger = "--trainer.logger.id"
    with pytest.MonkeyPatch.context() as patch:
        signed_in(patch, server, folder)
        subprocess.run(["git", "init", "--quiet"], check=True)
        subprocess.run(["git", "commit", "--quiet", "--allow-empty", "-m", "x"], check=True, env=AUTHOR)
        Path("changed.py").write_text("changed = True\n")
        subprocess.run(["git", "add", "changed.py"], check=True)
        recipe = ["--config", "lenet/digits", "--trainer.max_epochs", "2"]
        pl_losses("fit", *recipe, *ONLINE, logger, "whole")
        pl_losses("fit", *recipe, logger, "synced")
        patch.delenv("WANDB_MODE")  # Lightning sets it.
        (path,) = Path("runs/wandb").glob("offline-run-*-synced")
        done = subprocess.run([sys.executable, "-m", "wandb", "sync", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        again = ["--config", "runs/pl_losses/whole/config.yaml", "--ckpt_path", "runs/pl_losses/whole"]
        pl_losses("test", "--ckpt_path", "runs/pl_losses/whole", *ONLINE, logger, "tested")
        whole = deepcopy(server.runs["whole"])
        again += ["--test_after_fit", "false", *ONLINE, logger]
        pl_losses("fit", *again, "whole", "--trainer.max_epochs", "3")
        pl_losses("fit", *again, "another")
        resumed = deepcopy(server.runs["whole"])
        pl_losses("test", "--ckpt_path", "runs/pl_losses/whole", *ONLINE, logger, "whole")
        wandb.teardown()
    more = {"whole": whole, "resumed": resumed, "tested within": server.runs["whole"]}
    return {**server.runs, **more}


AUTHOR = os.environ | {
    f"GIT_{who}_{what}": "somebody@example.com"
    for who in ("AUTHOR", "COMMITTER")
    for what in ("NAME", "EMAIL")
}


@pytest.mark.parametrize("name", ["whole", "synced"])
def test_rows_axes_and_media_arrive(runs, name):
    run = runs[name]
    losses = [row["trainer/global_step"] for row in run.rows if "train/loss" in row]
    assert losses[:7] == [9, 19, 29, 39, 49, 59, 69]
    keys = set().union(*run.rows)
    assert {"val/error", "val/loss", "train/error", "test/error", "test/error_low", "epoch"} <= keys
    for key in ("train/loss", "val/error", "val/loss"):
        assert run.axes[key] == "trainer/global_step", key
    pictures = [name for name in run.files if name.endswith(".png")]
    for key in ("confusion_matrix", "errors"):
        (picture,) = (
            name for name in pictures if name.startswith(f"media/images/test/{key}_") and "table" not in name
        )
        assert run.files[picture].startswith(b"\x89PNG")
    (table,) = (name for name in run.files if name.startswith("media/table/test/confusion_table"))
    assert json.loads(run.files[table])["columns"] == ["Actual", "Predicted", "nPredictions"]
    assert run.config["_wandb"]["visualize"]["test/confusion"]
    assert {(one["artifactTypeName"], one["projectName"]) for one in run.artifacts} == {
        ("run_table", "pl_losses")
    }
    assert run.exit_code == 0


@pytest.mark.parametrize("name", ["whole", "synced", "tested"])
def test_the_summary_has_plain_numbers_where_dashboards_look(runs, name):
    columns = build_workspace("lenet/digits").runset_settings.pinned_columns
    shown = [column.removeprefix("summary:") for column in columns if "summary:" in column]
    assert shown == ["test/error", "test/loss"]
    for key in (*shown, "test/error_low", "test/error_high"):
        assert isinstance(runs[name].summary[key], float), key


@pytest.mark.parametrize("name", ["whole", "synced", "resumed"])
def test_the_best_values_have_keys_of_their_own(runs, name):
    for key in ("val/error", "val/loss"):
        values = [row[key] for row in runs[name].rows if key in row]
        assert runs[name].summary[f"{key}/best"] == min(values)
        assert runs[name].summary[key] == values[-1]
    assert "val/error/best" not in runs["tested"].summary


def test_a_fit_resumes_under_its_id(runs):
    rows = runs["resumed"].rows
    assert rows[: len(runs["whole"].rows)] == runs["whole"].rows
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    assert [row["trainer/global_step"] for row in rows if "val/error" in row] == [37, 75, 113]
    assert runs["resumed"].config["checkpoint"]["run"] == "whole"
    assert runs["resumed"].told["displayName"] == "lenet/digits, seed 0"
    assert runs["another"].told["displayName"] == "lenet/digits, seed 0, from step 114"


def test_a_run_says_what_it_is(runs, folder):
    for name, job_type in (("whole", "fit"), ("synced", "fit"), ("tested", "test")):
        told = runs[name].told
        assert told["displayName"] == "lenet/digits, seed 0" + ("" if job_type == "fit" else ", test")
        assert (told["groupName"], told["jobType"], told["tags"]) == ("lenet/digits", job_type, ["lenet"])
        assert told["notes"].startswith("LeCun, Bottou, Bengio and Haffner 1998")
        assert len(told["commit"]) == 40
        assert b"+changed = True" in runs[name].files["diff.patch"]
        config = runs[name].config
        assert config["recipe"] == "lenet/digits"
        assert config["config"]["model"]["class_path"].endswith("LeNet5")


def test_a_test_names_its_checkpoint_and_the_run_that_made_it(runs, folder):
    told = runs["tested"].config["checkpoint"]
    assert told["run"] == "whole"
    assert told["path"].endswith("epoch=1-step=76.ckpt")
    assert told["sha256"] == checksum(folder / told["path"])
    assert not (folder / "runs/pl_losses/tested").exists()
    assert "checkpoint" not in runs["synced"].config


def test_a_test_within_the_fits_run_leaves_it_what_it_is(runs, folder):
    before, after = runs["resumed"], runs["tested within"]
    for key in ("displayName", "groupName", "jobType", "notes", "tags"):
        assert before.told[key], key
        assert after.told.get(key) in (before.told[key], None), key
    assert after.config["config"] == before.config["config"]
    assert after.config["checkpoint"] == before.config["checkpoint"]
    tests = [["test/error" in row for row in run.rows] for run in (before, after)]
    assert [sum(one) for one in tests] == [1, 2]
    run = read_run(max(folder.glob("runs/wandb/*-whole/*.wandb")))
    assert (run.name, run.job_type) == (before.told["displayName"], "fit")


def test_a_test_has_what_the_fits_test_has(runs):
    def shown(run):
        keys = {key for row in run.rows for key in row if key.startswith("test/")}
        return keys, {re.sub(r"_\d+_\w+", "", name) for name in run.files if name.startswith("media/")}

    assert shown(runs["tested"]) == shown(runs["whole"])
    assert len(shown(runs["tested"])[1]) == 4
    for row in runs["tested"].rows:
        assert row.get("trainer/global_step", 76) == 76
        assert row.get("epoch", 1) == 1  # As in the checkpoint's name.


@pytest.mark.parametrize(("name", "job_type"), [("whole", "fit"), ("synced", "fit"), ("tested", "test")])
def test_the_page_has_what_was_uploaded(runs, folder, name, job_type):
    """The pictures in a table, too, of which wandb keeps none."""
    record = min(folder.glob(f"runs/wandb/*-{name}/*.wandb"))
    run = read_run(record)
    assert run.job_type == job_type
    columns, rows = read_table(run, "test/errors_table", run.items["table"]["test/errors_table"][-1])
    assert columns == ["image", "right", "predicted", "confidence"]
    assert len(rows) == 100
    for number, (picture, *_) in enumerate(rows):
        assert picture.read_bytes().startswith(b"\x89PNG"), number
    page = build_page([run])
    assert f"<td>{job_type}</td>" in page
    start = re.search("checkpoint runs/pl_losses/whole/checkpoints/[^ ]+step=76.ckpt of run whole</td>", page)
    assert bool(start) is (name == "tested")
    assert page.count("data:image/png;base64,") >= 102


def test_what_the_user_says_wins(online, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_RUN_GROUP", "ours")
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    options = [
        "--trainer.logger.mode",
        "online",
        "--trainer.logger.name",
        "mine",
        "--trainer.logger.notes",
        "see below",
        "--trainer.logger.id",
        "own",
    ]
    pl_losses(
        "fit", "--config", "lenet/digits", *options, "--trainer.max_steps", "1", "--test_after_fit", "false"
    )
    told = online.runs["own"].told
    assert (told["displayName"], told["groupName"], told["notes"]) == ("mine", "ours", "see below")
    assert told["tags"] == ["a", "b"]
    assert told["jobType"] == "fit"
    # The test of an online run is one, too.
    out = capsys.readouterr().out
    printed = re.search("Test it: +(pl-losses .*?)(  .*)?$", out, re.M)[1]
    there = "--trainer.logger.offline false --trainer.logger.project theirs"
    assert printed == f"pl-losses test --ckpt_path runs/theirs/own {there}"
    assert f"Look at it: {online.url}" in out
    assert "wandb sync" not in out


def test_push_makes_a_view_and_updates_it(online, capsys):
    for inserted in (1, 1, 2):
        recipe = "lenet/digits" if inserted == 1 else "lenet/mnist"
        assert main(["dashboard", "push", recipe, "--entity", ENTITY, "--project", "mine"]) == 0
        assert len(online.views) == inserted
    assert f"{online.url}/{ENTITY}/mine?nw=" in capsys.readouterr().out
    view = next(iter(online.views.values()))
    assert (view["entityName"], view["projectName"]) == (ENTITY, "mine")
    assert view["displayName"] == "pl_losses: lenet/digits"
    arrived = json.loads(view["spec"])
    sections = arrived["section"]["panelBankConfig"]["sections"]
    names = [section.name for section in build_workspace("lenet/digits").sections]
    assert [section["name"] for section in sections][: len(names)] == names
    assert all(section["panels"] for section in sections[: len(names)])
    assert "summary:test/error" in view["spec"]


def refusal(capfd, *args):
    """The one line of the suite, the last one; those of wandb and its other process begin with its name."""
    capfd.readouterr()
    status = main([*args])
    wandb.teardown()
    told = capfd.readouterr().err
    assert status == 2, told
    assert "Traceback" not in told
    (line,) = (line for line in told.splitlines() if line.startswith("pl-losses: "))
    assert told.splitlines()[-1] == line
    return line


FIT = ["fit", "--config", "lenet/digits", *ONLINE, *QUIET]
PUSH = ["dashboard", "push", "lenet/digits", "--entity", "nobody"]


FIGURE = ["reproduce", "adam/fig4", "--wandb", "online", "--dataset", "digits"]
INSTEAD = {
    "fit": "; `--trainer.logger.offline true` keeps the run on this machine",
    "dashboard": "; `pl-losses dashboard json` and `pl-losses show` do without it",
    "reproduce": "; `--wandb offline` keeps the run on this machine",
}


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("KEY", None, "Not signed in to W&B: `wandb login` asks for an API key, or set WANDB_API_KEY"),
        ("KEY", "b" * 40, "user is not logged in): `wandb login --relogin` asks for another one, or set"),
        ("KEY", "short", "API key must have 40+ characters, has 5): `wandb login --relogin` asks for"),
        ("URL", "http://127.0.0.1:9", "cannot be reached: http://127.0.0.1:9: Connection refused"),
    ],
)
@pytest.mark.parametrize("command", [FIT, PUSH, FIGURE])
def test_refused_before_any_work(online, monkeypatch, capfd, command, variable, value, told):
    name = {"KEY": "WANDB_API_KEY", "URL": "WANDB_BASE_URL"}[variable]
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    monkeypatch.setattr("pl_losses.cli.main.load_torch", lambda: pytest.fail("torch is loaded"))
    line = refusal(capfd, *command)
    assert told in line
    assert line.endswith(INSTEAD[command[0]])
    assert "{" not in line
    assert not any(Path().glob("runs/wandb/run-*"))


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["--trainer.logger.offline", "false"], True),
        (["--trainer.logger", "WandbLogger", "--trainer.logger.offline=False"], True),
        (["--trainer.logger.offline", "false", "--trainer.logger.mode", "offline"], False),
        (["--trainer.logger.mode", "online"], True),
        (["--trainer.logger.offline", "false", "--trainer.fast_dev_run", "true"], False),
        (["--trainer.logger", "CSVLogger"], False),
        (["--trainer.logger", "false"], False),
        ([], False),
    ],
)
def test_online_is_known_before_torch_is_loaded(monkeypatch, words, asked):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    flags = split(["--config", "lenet/digits", *words])
    assert online_asked(check("fit", flags), flags) is asked
    monkeypatch.setenv("WANDB_MODE", "online")
    flags = split(["--config", "lenet/digits"])
    assert online_asked(check("fit", flags), flags)


@pytest.mark.parametrize("command", [FIT, PUSH])
@pytest.mark.parametrize(
    ("portal", "told"),
    [
        ((500, "text/plain", b"oops"), "answers with an error (HTTP 500)"),
        (
            (200, "text/html", b"<html></html>"),
            "answers with a web page (HTTP 200): is the address right?",
        ),
    ],
)
def test_a_server_that_is_not_well_is_not_about_the_key(online, capfd, command, portal, told):
    online.portal = portal
    line = refusal(capfd, *command)
    assert line == f"pl-losses: W&B at {online.url} {told}{INSTEAD[command[0]]}"


@pytest.mark.parametrize("command", [FIT, PUSH])
@pytest.mark.parametrize("url", ["", "nonsense"])
def test_a_malformed_address_is_refused(online, monkeypatch, capfd, command, url):
    monkeypatch.setenv("WANDB_BASE_URL", url)
    line = refusal(capfd, *command)
    assert "W&B does not take its setting `WANDB_BASE_URL`: Input should be a valid URL" in line
    assert line.endswith(f"but got {url!r}")


def test_a_view_goes_where_the_environment_says(online, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_ENTITY", ENTITY)
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert main(["dashboard", "push", "lenet/digits"]) == 0
    assert f"{ENTITY}/theirs" in capfd.readouterr().out
    told = refusal(capfd, "dashboard", "push", "lenet/digits", "--project", "a/b")
    assert "Invalid project name 'a/b': cannot contain characters" in told
    assert len(online.views) == 1


def test_a_run_needs_the_name_of_a_project(online, capfd):
    told = refusal(capfd, "fit", "--config", "lenet/digits", "--trainer.logger.project", "")
    assert told == "pl-losses: Expected `trainer.logger.project` to be a name but got ''"


def test_nothing_is_pushed_where_nothing_is_to_be_sent(online, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "WANDB_MODE or `wandb offline` says that nothing is sent" in refusal(capfd, *PUSH)
    assert not online.views


@pytest.mark.parametrize(
    ("message", "status"),
    [("permission denied", 403), pytest.param("entity nobody not found", 404, marks=pytest.mark.slow)],
)
def test_refused_by_the_server(online, capfd, runs, folder, message, status):
    online.refusals = dict.fromkeys(("upsertBucket", "upsertView"), (message, status))
    shutil.copytree(folder / "runs", "runs", symlinks=True)
    for command in ("fit", "validate", "test", "predict"):
        given = ["--ckpt_path", "runs/pl_losses/whole", "--config", "lenet/digits"]
        line = refusal(capfd, command, *given, *ONLINE, *QUIET, "--trainer.logger.entity", "nobody")
        assert f": {message} (are entity and project right" in line
        assert line.endswith(INSTEAD["fit"])
    assert message in refusal(capfd, *PUSH)


@pytest.mark.slow
def test_a_table_is_kept_where_the_server_has_gone_away(online, tmp_path, monkeypatch):
    with Server().serving() as server:
        signed_in(monkeypatch, server, tmp_path)
        logger = WandbLogger(project="pl_losses", id="one", settings=wandb.Settings(finish_timeout=1))
        assert how_to_look(logger)[0].startswith("Look at it: http")
        # wandb's service asks once what the server can do, for minutes if it does not answer.
        trainer = SimpleNamespace(loggers=[logger])
        log_table(trainer, "val/rows", [{"a": 0}])
        while not server.runs["one"].artifacts:
            time.sleep(0.02)
    began = time.monotonic()
    log_table(trainer, "test/rows", [{"a": 1}, {"a": 2}])
    assert time.monotonic() - began < 5
    command, told = how_to_look(logger)[2].removeprefix("Upload it:  ").split("  ")
    assert told == "(W&B does not answer now)"
    logger.experiment.finish()
    signed_in(monkeypatch, online, tmp_path)
    done = subprocess.run(f"{sys.executable} -m {command}", shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = online.runs["one"]
    assert run.rows[-1]["test/rows"]["nrows"] == 2
    assert [one["artifactTypeName"] for one in run.artifacts] == ["run_table"] * 2


@pytest.mark.slow
def test_a_run_ends_in_time_whose_server_went_before_its_first_table(online, tmp_path, monkeypatch, capfd):
    """wandb's service asks what the server can do before it comes to the end of the run, for many minutes."""
    monkeypatch.setattr(of_wandb, "GRACE", 2)
    with Server().serving() as server:
        signed_in(monkeypatch, server, tmp_path)
        limits = wandb.Settings(finish_timeout=0.1, x_transaction_log_flush_interval=0.2)
        logger = WandbLogger(project="pl_losses", id="one", settings=limits)
        logger.log_metrics({"a": 1}, 0)
    log_table(SimpleNamespace(loggers=[logger]), "test/rows", [{"a": 1}, {"a": 2}])
    began = time.monotonic()
    finish(logger.experiment, 0)
    assert time.monotonic() - began < 10
    (told,) = re.findall("W&B did not answer in time; to send the rest: (.*)", capfd.readouterr().err)
    signed_in(monkeypatch, online, tmp_path)
    done = subprocess.run(f"{sys.executable} -m {told}", shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = online.runs["one"]
    assert run.rows[0]["a"] == 1
    assert run.rows[-1]["test/rows"]["nrows"] == 2
    assert [one["artifactTypeName"] for one in run.artifacts] == ["run_table"]
    assert run.exit_code == 0


@pytest.mark.slow  # Most of it is waiting.
def test_a_fit_goes_on_where_the_server_goes_away(tmp_path, monkeypatch, capfd):
    with Server().serving() as server:
        signed_in(monkeypatch, server, tmp_path)
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")

        def go_away(given):
            answer = Server.upsertBucket(server, given)
            threading.Timer(0.5, server.stop).start()
            return answer

        server.upsertBucket = go_away
        pl_losses("fit", "--config", "lenet/digits", *ONLINE, "--trainer.max_epochs", "2")
        wandb.teardown()
    told = capfd.readouterr()
    assert "Test error: " in told.out
    assert "wandb sync" in told.err
    assert re.search("^Upload it:  wandb sync --no-skip-online runs/wandb/run-", told.out, re.M)
    assert "left out" not in told.err
    assert "Traceback" not in told.err
    (record,) = tmp_path.glob("runs/wandb/run-*/*.wandb")
    steps, _, _ = read_run(record).curve("val/error")
    assert list(steps) == [37, 75]
    assert {"test/confusion_table", "test/errors_table"} <= read_run(record).items["table"].keys()


def test_a_reproduction_is_refused_and_then_arrives(online, capfd):
    command = ["reproduce", "adam/fig4", "--wandb", "online", "--dataset", "digits", "--device", "cpu"]
    command += ["--steps", "2", "--hidden_size", "4", "--latent_size", "2", "--folder", "kept"]
    command += ["--beta1", "[0.5]", "--beta2", "[0.9]", "--log_alpha", "[-3]"]
    online.refusals = {"upsertBucket": ("permission denied", 403)}
    assert "permission denied" in refusal(capfd, *command)
    assert Path("kept/losses.csv").is_file()
    online.refusals = {}
    assert main(command) == 0  # The results are there.
    run = next(reversed(online.runs.values()))
    told = run.told
    assert (told["displayName"], told["groupName"]) == ("adam/fig4", "adam/fig4")
    assert (told["jobType"], told["tags"]) == ("reproduce", ["adam"])
    assert told["notes"].startswith("Kingma and Ba 2015")
    assert run.config["beta1"] == [0.5]
    assert any(name.startswith("media/table/adam/fig4") for name in run.files)
    assert any(name.startswith("media/images/adam/fig4") for name in run.files)


def test_code_is_the_suites_own_where_the_folder_is_no_checkout(tmp_path, monkeypatch):
    if not (HERE.parent / ".git").exists():
        pytest.skip("the suite is no checkout")
    monkeypatch.chdir(tmp_path)
    assert settings().git_root == str(HERE.parent)
    monkeypatch.chdir(HERE)
    assert settings().git_root is None
    assert settings().save_code
    monkeypatch.setenv("WANDB_SAVE_CODE", "false")
    assert not settings().save_code


@pytest.mark.slow
def test_an_agent_runs_a_sweeps_command(online, monkeypatch):
    online.sweep = (
        (HERE.parent / "recipes/sweeps/lenet-learning-rate.yaml")
        .read_text()
        .replace("  - ${args}", "  - --trainer.max_epochs=1\n  - ${args}")
    )
    online.trials = [{"model.lr_scheduler.max_lr": 0.01, "model.rubbish_penalty": 2.0}]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    agent = [sys.executable, "-m", "wandb", "agent", "--count", "1", f"{ENTITY}/pl_losses/sweep"]
    done = subprocess.run(agent, capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert done.returncode == 0, done.stderr
    run = online.runs["trial0"]
    assert run.told["sweep"] == "sweep"
    assert (run.told["groupName"], run.told["jobType"]) == ("lenet/digits", "fit")
    assert run.config["config"]["model"]["init_args"]["rubbish_penalty"] == 2.0
    assert run.config["model.lr_scheduler.max_lr"] == 0.01
    assert isinstance(run.summary["val/error"], float)
    assert run.exit_code == 0


@pytest.mark.slow
def test_arrives_on_openwandb(tmp_path, monkeypatch):
    """A server that others wrote."""
    if not (command := shutil.which("openwandb")):
        pytest.skip("openwandb is not installed: `uv tool install openwandb` (licence CC-BY-NC)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    serve = [
        command,
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--data-dir",
        str(tmp_path / "data"),
    ]
    with subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(300):
                with suppress(OSError), urlopen(url, timeout=5):
                    break
                time.sleep(0.2)
            signed_in(monkeypatch, SimpleNamespace(url=url), tmp_path)
            recipe = ["--config", "lenet/digits", "--trainer.max_epochs", "2"]
            pl_losses("fit", *recipe, *ONLINE, "--trainer.logger.id", "one")
            wandb.teardown()

            def ask(path):
                with urlopen(f"{url}/api/{path}") as answer:
                    return json.load(answer)

            run, metrics = ask("v2/runs/one")["run"], ask("v2/runs/one/metrics")["metrics_by_key"]
            files = [one["name"] for one in ask("v1/runs/one/files")["files"]]
        finally:
            process.terminate()
    assert (run["display_name"], run["tags"]) == ("lenet/digits, seed 0", ["lenet"])
    errors = [row["value"] for row in metrics["val/error"]]
    assert len(errors) == 2
    assert run["summary"]["val/error/best"] == min(errors)
    assert run["summary"]["test/error"] == metrics["test/error"][-1]["value"]
    assert any(name.startswith("media/images/test/errors") for name in files)
    assert any(name.startswith("media/table/test/confusion_table") for name in files)
