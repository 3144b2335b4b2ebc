"""A sweep file is checked before any run, drawn as W&B draws it, and run as often as it is interrupted."""

import csv
import json
import os
import re
import signal
import statistics
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import scipy.stats
import yaml
from wandb.proto import wandb_internal_pb2 as proto
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from pl_losses import recipes
from pl_losses.cli.distributions import Parameter
from pl_losses.cli.main import main
from pl_losses.cli.sweep import Runner, last_line
from pl_losses.cli.sweep_file import Sweep, read_sweep, words
from pl_losses.dashboards import read_run

# A trial's program: it logs (x - 3)^2, fails for x = 5 and waits for x = 2 while there is a file "hold".
PROGRAM = """
import os, shutil, sys, time
x = float(next(word for word in sys.argv if word.startswith("--x=")).partition("=")[2])
print("hello from", x)
while x == 2 and os.path.exists("hold"):
    open("waiting", "w").close()
    time.sleep(0.02)
if x == 5:
    sys.exit("no good at 5")
run = os.environ["WANDB_RUN_ID"]
folder = f"runs/wandb/offline-run-1-{run}"
os.makedirs(folder)
shutil.copy(f"{round(x)}.wandb", f"{folder}/run-{run}.wandb")
"""
FILE = """method: {method}
name: mine
metric: {{name: val/error, goal: minimize}}
command: [{python}, -IS, trial.py, "${{args}}"]
parameters:
  x: {x}
"""


def wandb_file(*rows, config=None):
    """A W&B file of a few rows, and of a config."""
    data = b":W&B\xe1\xbe\0"
    for row in [{}, *rows]:
        record = proto.Record()
        for key, value in ({} if row else config or {}).items():
            record.config.update.add(key=key, value_json=json.dumps(value))
        for key, value in row.items():
            record.history.item.add(nested_key=[key], value_json=json.dumps(value))
        piece = record.SerializeToString()
        data += struct.pack("<IHB", zlib.crc32(piece, zlib.crc32(b"\1")), len(piece), 1) + piece
    return data


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Writes a sweep of that program, and returns the arguments that run it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trial.py").write_text(PROGRAM)
    for x in range(10):
        rows = [{"_step": step, "val/error": (x - 3.0) ** 2 + 9 * (1 - step)} for step in (0, 1)]
        (tmp_path / f"{x}.wandb").write_bytes(wandb_file(*rows))

    def write(x, method="grid"):
        (tmp_path / "mine.yaml").write_text(FILE.format(x=x, method=method, python=sys.executable))
        return ["sweep", "mine.yaml"]

    return write


def table(folder):
    with (folder / "runs/sweeps/mine/trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(folder, name):
    return [row[name] for row in table(folder)]


def test_a_grid_is_run_to_its_end(sweep, tmp_path, capsys):
    args = sweep("{values: [4, 5, 3, 1]}")
    assert main(args) == 0
    assert column(tmp_path, "x") == ["4", "5", "3", "1"]
    assert column(tmp_path, "val/error") == ["1.0", "", "0.0", "4.0"]
    assert column(tmp_path, "error") == ["", "no good at 5", "", ""]
    told = capsys.readouterr().out
    assert re.search(r"^Trial 2 of 4: x=5 -> failed: no good at 5 \(runs/\S+/trial-0002.log\)", told, re.M)
    assert re.search(r"^Trial 3 of 4: x=3 -> val/error 0 \(0 s; best: trial 3; \d s left\)", told, re.M)
    assert "Best: trial 3, val/error 0\n" in told
    # The program may read W&B's config.
    file = tmp_path / "runs/sweeps/mine/parameters/trial-0003.yaml"
    variables = f"WANDB_MODE=offline WANDB_SWEEP_PARAM_PATH={file}"
    assert f"Run it again: {variables} {sys.executable} -IS trial.py --x=3\n" in told
    assert (tmp_path / "runs/sweeps/mine/logs/trial-0001.log").read_text() == "hello from 4.0\n"
    page = (tmp_path / "runs/sweeps/mine/show.html").read_text()
    assert all(row["run"][-8:] in page for row in table(tmp_path) if row["state"] == "finished")
    main(["show", "runs/sweeps/mine", "--open", "false"])
    assert "All trials of this sweep: runs/sweeps/mine/show.html\n" in capsys.readouterr().out
    # Nothing is left to do but, on request, what failed.
    assert main(args) == 0
    assert "4 trials are in runs/sweeps/mine; 0 are left" in capsys.readouterr().out
    (tmp_path / "trial.py").write_text(PROGRAM.replace("x == 5", "False"))
    assert main([*args, "--retry", "true"]) == 0
    assert column(tmp_path, "val/error") == ["1.0", "4.0", "0.0", "4.0"]


def test_a_seed_draws_the_same(sweep, tmp_path, capsys):
    args = sweep("{min: 0.0, max: 4.0}", "random")
    assert main([*args, "--count", "2"]) == 0
    assert main([*args, "--count", "4"]) == 0
    drawn = column(tmp_path, "x")
    assert len(set(drawn)) == 4
    assert main([*args, "--count", "4", "--folder", "other", "--seed", "1"]) == 0
    (tmp_path / "other/trials.csv").replace(tmp_path / "runs/sweeps/mine/trials.csv")
    assert not set(drawn) & set(column(tmp_path, "x"))
    capsys.readouterr()
    assert main([*args, "--count", "4", "--dry_run", "true"]) == 0
    assert [line.split("--x=")[1] for line in capsys.readouterr().out.splitlines()] == drawn
    args = [*args, "--count", "4"]
    told = "pl-losses: The trials in runs/sweeps/mine are of {}: take another --folder, or delete that one"
    for change, what in (
        (["--seed", "1"], "another `seed` (0, not 1)"),
        (["--", "--y=2"], "other options after `--` (none, not --y=2)"),
    ):
        capsys.readouterr()
        assert main([*args, *change]) == 2
        assert told.format(what) in capsys.readouterr().err
    file = tmp_path / "mine.yaml"
    for old, new, what in (
        ("  x: {", "  x: {value: 3}\n  y: {", "other parameters (changed: x; new: y)"),
        ("  x: {", "  y: {", "other parameters (new: y; gone: x)"),
        ("-IS", "-I", "another `command`"),
    ):
        text = file.read_text()
        file.write_text(text.replace(old, new))
        assert main(args) == 2
        file.write_text(text)
        assert told.format(what) in capsys.readouterr().err


def test_it_stops_after_failures_in_a_row(sweep, tmp_path, capsys):
    args = sweep("{values: [5, 1, 5, 5.0, 3]}")
    assert main([*args, "--failures", "2"]) == 1
    assert column(tmp_path, "state") == ["failed", "finished", "failed", "failed"]
    assert "Stopped after 2 failed trials in a row" in capsys.readouterr().out
    assert main(args) == 0
    assert column(tmp_path, "state")[4:] == ["finished"]


def test_it_has_not_stopped_after_the_last_trial(sweep, tmp_path, capsys):
    args = sweep("{values: [1, 5, 5.0]}")
    assert main([*args, "--failures", "2"]) == 1
    assert column(tmp_path, "state") == ["finished", "failed", "failed"]
    assert "Stopped" not in capsys.readouterr().out


def test_what_is_sought_has_to_be_logged(sweep, tmp_path):
    args = sweep("{values: [1, 3]}")
    (tmp_path / "mine.yaml").write_text((tmp_path / "mine.yaml").read_text().replace("val/error", "val/eror"))
    assert main(args) == 1
    assert column(tmp_path, "error") == ["`val/eror` was not logged: did you mean `val/error`?"] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_it_goes_on(sweep, tmp_path, capsys, number):
    args = sweep("{values: [1, 2, 3]}")
    hold, waiting = tmp_path / "hold", tmp_path / "waiting"
    hold.touch()
    # A process inherits what is ignored, and an interrupted fit before may have left it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen([sys.executable, "-m", "pl_losses", *args], text=True, stdout=-1, stderr=-1)
    while not waiting.exists():
        assert running.poll() is None
        time.sleep(0.02)
    assert main(args) == 2
    told = (
        f"Another sweep (process {running.pid}) is running in runs/sweeps/mine: wait for it, or take another"
    )
    assert told in capsys.readouterr().err
    running.send_signal(number)
    told = running.communicate(timeout=60)
    if number == signal.SIGKILL:
        # The trial lives on, and no other sweep comes in between.
        assert main(args) == 2
        told = capsys.readouterr().err
        found = re.search(
            r"A trial \(process (\d+)\) of a sweep that was killed is running on in (\S+): ", told
        )
        assert found[2] == "runs/sweeps/mine"
        assert f"end it by `kill {found[1]}`, then give the same command again" in told
        os.kill(int(found[1]), 0)  # There is such a process.
    else:
        assert running.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert "x=2 interrupted" in told[0]
        assert "The same command resumes from what is in runs/sweeps/mine" in told[1]
        assert "Traceback" not in told[1]
    assert column(tmp_path, "trial") == ["1"]
    before = table(tmp_path)
    hold.unlink()
    deadline = time.monotonic() + 30
    while (status := main(args)) == 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert status == 0
    assert table(tmp_path)[0] == before[0]
    assert column(tmp_path, "val/error") == ["4.0", "1.0", "0.0"]


def test_a_failed_trial_is_told_by_its_own_last_line(tmp_path):
    log = tmp_path / "log"
    log.write_text("no good\n\x1b[1;34mwandb\x1b[0m: Find logs at: runs\n\x1b[1;34mwandb\x1b[0m: \n")
    assert last_line(log, 3) == "no good"
    log.write_text("wandb: ERROR of wandb\n")
    assert last_line(log, 3) == "wandb: ERROR of wandb"
    assert last_line(log, -9) == "exit status -9"


SCRIPT = """
import sys
import wandb
with wandb.init(project="p", dir=PLACE, config={"lr": 0.5, "model": {"width": 1}}) as run:
    run.log({"loss": run.config.lr + run.config.model["width"]})
"""


@pytest.mark.parametrize("place", [None, "."])
def test_a_program_that_reads_wandbs_config(tmp_path, monkeypatch, capsys, place):
    """The command has no `${args}`: the parameters are where W&B's agent puts them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trial.py").write_text(SCRIPT.replace("PLACE", repr(place)))
    (tmp_path / "mine.yaml").write_text(
        "method: grid\nmetric: {name: loss}\n"
        "parameters: {lr: {values: [0.25]}, model: {parameters: {width: {values: [2]}}}}\n"
        f"command: [{sys.executable}, trial.py]\n"
    )
    assert main(["sweep", "mine.yaml"]) == 0, capsys.readouterr().out
    (row,) = csv.DictReader((tmp_path / "runs/sweeps/mine/trials.csv").open())
    assert (row["lr"], row["model.width"], row["loss"]) == ("0.25", "2", "2.25")
    if place:
        return
    told = capsys.readouterr().out
    (again,) = re.findall("^Run it again: (.*)$", told, re.M)
    env = {"WANDB_DIR": str(tmp_path / "again"), "WANDB_SILENT": "true"}
    (tmp_path / "again").mkdir()
    subprocess.run(again, shell=True, check=True, env=os.environ | env)
    (file,) = tmp_path.glob("again/**/*.wandb")
    assert list(read_run(file).columns.pairs("_step", "loss")[1]) == [2.25]
    assert main(["sweep", "mine.yaml", "--dry_run", "true"]) == 0
    assert capsys.readouterr().out.endswith('trial.py  # {"lr": 0.25, "model": {"width": 2}}\n')


def test_a_trial_that_does_not_take_its_parameters_failed(sweep, tmp_path):
    args = sweep("{values: [1, 3]}")
    file = tmp_path / "mine.yaml"
    file.write_text(file.read_text().replace('"${args}"', "--x=3"))
    assert main(args) == 1
    told = "its `command` has no `${args}`, and its run takes no `wandb.config.x`"
    assert column(tmp_path, "error") == [told] * 2
    sweep("{values: [1, 3]}")
    (tmp_path / "1.wandb").write_bytes(wandb_file({"_step": 0, "val/error": 1.0}, config={"x": 2}))
    (tmp_path / "3.wandb").write_bytes(wandb_file({"_step": 0, "val/error": 1.0}, config={"x": "3.0"}))
    assert main([*args, "--folder", "other"]) == 0
    with (tmp_path / "other/trials.csv").open() as file:
        assert [row["error"] for row in csv.DictReader(file)] == ["its run has x=2, and 1 was drawn", ""]


def test_a_page_shows_what_was_drawn(sweep, tmp_path):
    """The runs of this program have no config."""
    assert main(sweep("{values: [1, 4, 3]}")) == 0
    page = (tmp_path / "runs/sweeps/mine/show.html").read_text()
    assert "<h1>mine</h1>" in page
    data = json.loads(re.search('id="page">(.*?)</script>', page)[1])
    (compared,) = (one for one in data["sections"] if one["name"] == "Runs compared")
    axes = {axis["name"]: axis["values"] for axis in compared["panels"][0]["axes"]}
    assert axes == {"x": [1, 4, 3], "val/error": [4, 1, 0]}


@pytest.mark.slow
def test_a_real_recipe(tmp_path, monkeypatch, capsys):
    """The command line's own trial, as the agent would start it, with what only W&B's server would need."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real.yaml").write_text(
        "method: random\nmetric: {name: val/error}\n"
        "parameters: {model.lr_scheduler.max_lr: {min: 0.001, max: 0.01}}\n"
        "command: [pl-losses, fit, --config, lenet/digits, --trainer.logger.offline=false, '${args}']\n"
    )
    small = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--test_after_fit", "false"]
    assert main(["sweep", "real.yaml", "--count", "1", "--", *small]) == 0, capsys.readouterr().out
    (row,) = csv.DictReader((tmp_path / "runs/sweeps/real/trials.csv").open())
    assert 0 < float(row["val/error"]) <= 1
    assert 0.001 <= float(row["model.lr_scheduler.max_lr"]) <= 0.01
    assert row["run"][-8:] in (tmp_path / "runs/sweeps/real/show.html").read_text()


def test_nothing_heavy_is_loaded():
    code = (
        "import sys; from pl_losses.cli.main import main; main(['sweep', '--help'])\n"
        "main(['sweep', 'lenet-learning-rate', '--count', '2', '--dry_run', 'true'])\n"
        "assert not {'torch', 'numpy', 'lightning', 'wandb', 'optuna'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("pl-losses fit --config lenet/digits") == 2


SHARES = np.linspace(0.01, 0.99, 25)
# W&B's distributions by SciPy's names, as in the schema of W&B's sweeps.
LAWS = {
    "uniform": ({"min": -1.5, "max": 2.5}, scipy.stats.uniform(-1.5, 4)),
    "int_uniform": ({"min": -2, "max": 4}, scipy.stats.randint(-2, 5)),
    "log_uniform": ({"min": -3.0, "max": 1.0}, scipy.stats.loguniform(np.exp(-3), np.exp(1))),
    "log_uniform_values": ({"min": 1e-4, "max": 10}, scipy.stats.loguniform(1e-4, 10)),
    "inv_log_uniform": ({"min": -3.0, "max": 1.0}, scipy.stats.loguniform(np.exp(-1), np.exp(3))),
    "inv_log_uniform_values": ({"min": 1e-4, "max": 10}, scipy.stats.loguniform(1e-4, 10)),
    "normal": ({"mu": 1.0, "sigma": 2.0}, scipy.stats.norm(1, 2)),
    "log_normal": ({"mu": 1.0, "sigma": 0.5}, scipy.stats.lognorm(0.5, scale=np.e)),
    "beta": ({"a": 2.0, "b": 3.0}, scipy.stats.beta(2, 3)),
}


def one(spec, tmp_path, method="random"):
    path = tmp_path / "one.yaml"
    metric = {"metric": {"name": "loss"}}
    path.write_text(json.dumps({"method": method, **metric, "command": ["a"], "parameters": {"x": spec}}))
    return read_sweep(path).parameters["x"]


@pytest.mark.parametrize("name", LAWS)
def test_distributions(name, tmp_path):
    numbers, law = LAWS[name]
    parameter = one({"distribution": name, **numbers}, tmp_path)
    np.testing.assert_allclose([parameter.at(share) for share in SHARES], law.ppf(SHARES), rtol=1e-9)
    if name in ("int_uniform", "inv_log_uniform", "inv_log_uniform_values"):
        return
    for q, kind in ((2, int), (0.5, float)):
        stepped = one({"distribution": f"q_{name}", **numbers, "q": q}, tmp_path)
        drawn = [stepped.at(share) for share in SHARES]
        np.testing.assert_allclose(drawn, np.round(law.ppf(SHARES) / q) * q)
        assert {type(value) for value in drawn} == {kind}


def test_what_is_meant_without_a_distribution(tmp_path):
    meant = {"value": [{"value": [1]}, "constant"], "int": [{"min": 1, "max": 9}, "int_uniform"]}
    meant |= {"float": [{"min": 1, "max": 9.5}, "uniform"], "values": [{"values": [1, None]}, "categorical"]}
    assert {key: one(spec, tmp_path).distribution for key, (spec, _) in meant.items()} == {
        key: name for key, (_, name) in meant.items()
    }
    unequal = one({"values": ["a", "b"], "probabilities": [0.9, 0.1]}, tmp_path)
    assert [unequal.at(share) for share in (0.0, 0.89, 0.91, 0.999)] == ["a", "a", "b", "b"]
    assert one({"value": 3}, tmp_path).at(0.7) == 3


def test_a_grid_has_all_points(tmp_path):
    path = tmp_path / "grid.yaml"
    parameters = {"b": {"values": [[1, 2], "x"]}, "a": {"min": 1, "max": 2}, "c": {"value": 7}}
    parameters["d"] = {"parameters": {"q": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.5}}}
    path.write_text(json.dumps({"method": "grid", "command": ["a"], "parameters": parameters, "run_cap": 7}))
    read = read_sweep(path)
    assert read.total() == 7
    points = [read.draw(number, 0, [])[1] for number in range(1, 9)]
    assert points[:3] == [
        {"a": 1, "b": [1, 2], "c": 7, "d/q": 0.0},
        {"a": 1, "b": [1, 2], "c": 7, "d/q": 0.5},
        {"a": 1, "b": "x", "c": 7, "d/q": 0.0},
    ]
    assert len({str(point) for point in points}) == 8


def test_a_program_gets_its_settings_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trial.py").write_text("import sys; print(open(sys.argv[1]).read())\n")
    command = ["${interpreter}", "-IS", "trial.py", "${args_json_file}"]
    parameters = {"x": {"values": [3]}, "net": {"parameters": {"width": {"value": 4}}}}
    asked = {"method": "grid", "command": command, "parameters": parameters}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(asked))
    main(["sweep", "mine.yaml"])
    log = tmp_path / "runs/sweeps/mine/logs/trial-0001.log"
    assert json.loads(log.read_text()) == {"x": 3, "net": {"width": 4}}


def test_a_program_that_is_none_is_told_on_a_line_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = {"method": "grid", "command": ["nowhere"], "parameters": {"x": {"values": [3]}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(asked))
    assert main(["sweep", "mine.yaml"]) == 2
    told = capsys.readouterr()
    assert told.out == "Trial 1 of 1: x=3 \n"
    assert "The sweep's command cannot be run: nowhere: No such file" in told.err


def test_a_file_without_a_program_is_told(sweep, capsys):
    args = sweep("{values: [1]}")
    assert main([*args, "--dry_run", "true"]) == 0
    assert capsys.readouterr().err == (
        "mine.yaml has no `program`, which `wandb sweep` asks for; here its `command` is enough\n"
    )
    assert main(["sweep", "lenet-learning-rate", "--count", "1", "--dry_run", "true"]) == 0
    assert not capsys.readouterr().err


def test_the_command_is_the_agents(monkeypatch):
    monkeypatch.setenv("WHERE", "here")
    values = {"lr": 0.1, "on": True, "off": False, "betas": [0.9, 0.99], "net/width": 3, "net/depth": 4}
    nested = {**{key: values[key] for key in ("lr", "on", "off", "betas")}, "net": {"width": 3, "depth": 4}}
    agents = create_sweep_command_args({"args": {key: {"value": value} for key, value in nested.items()}})
    del agents["args_dict"]
    for macro, expected in agents.items():
        assert words(Sweep("", "", "", "", ["a", f"${{{macro}}}"], "", {}), values) == ["a", *expected]
    command = ["${env}", "${interpreter}", "${program}", "--root=${envvar:WHERE}/x"]
    got = words(Sweep("", "", "", "", command, "train.py", {}), {})
    assert got == ["/usr/bin/env", sys.executable, "train.py", "--root=here/x"]


GOOD = {"method": "random", "command": ["a"], "parameters": {"x": {"min": 0, "max": 1}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metod": "grid"}, "Unknown key `metod` in bad.yaml: did you mean `method`?"),
        ({"method": "custom"}, "Expected `method` in bad.yaml to be grid, random, bayes but got 'custom'"),
        ({"method": "bayes"}, "Expected `metric` in bad.yaml to name what `method: bayes` seeks"),
        ({"method": "grid", "parameters": {"x": {"min": 0.5, "max": 1}}}, "finitely many values, for a grid"),
        ({"early_terminate": {"type": "hyperband"}}, "`early_terminate` in bad.yaml is for W&B's server"),
        ({"metric": {"name": "a", "gaol": "minimize"}}, "Unknown key `metric.gaol` in bad.yaml: did"),
        ({"metric": {"name": "a", "goal": "min"}}, "Expected `metric.goal` in bad.yaml to be minimize or"),
        ({"metric": "loss"}, "Expected `metric` in bad.yaml to be a mapping"),
        ({"run_cap": 0}, "Expected `run_cap` in bad.yaml to be a positive integer but got 0"),
        ({"command": ["a", "${arg}"]}, "Unknown macro `${arg}` in `command`: did you mean `${args}`?"),
        ({"command": None}, "Expected a `command` or a `program` in bad.yaml but got neither"),
        ({"parameters": None}, "Expected `parameters` in bad.yaml to be a mapping of parameters but"),
        ({"parameters": {"x": 3}}, "Expected `x` in bad.yaml to be a mapping such as {value: 1} but got 3"),
        ({"parameters": {"x": {}}}, "Expected `x` in bad.yaml to have value, values, min and max"),
        ({"parameters": {"-x": {"value": 1}}}, "Expected the parameter `-x` in bad.yaml to have a name"),
        ({"parameters": {"x": {"distribution": "log_unifrm"}}}, "Unknown distribution `log_unifrm` of `x`"),
        ({"parameters": {"x": {"vales": [1]}}}, "Unknown key `vales` of `x` in bad.yaml: did you mean"),
        ({"parameters": {"x": {"value": 1, "min": 2}}}, "Unknown key `min` of `x` in bad.yaml: `constant`"),
        ({"parameters": {"x": {"values": []}}}, "Expected `x.values` in bad.yaml to be a list with"),
        ({"parameters": {"x": {"min": 2, "max": 1}}}, "Expected `x.max` in bad.yaml to be at least min = 2"),
        ({"parameters": {"x": {"min": True, "max": 2}}}, "Expected `x.min` in bad.yaml to be a number but"),
        (
            {"parameters": {"x": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
            "Expected `x.min` in bad.yaml to be positive but got 0",
        ),
        (
            {"parameters": {"x": {"distribution": "log_uniform", "min": 0, "max": 1000}}},
            "Expected `x.max` in bad.yaml to be an exponent up to 700 but got 1000",
        ),
        ({"parameters": {"x": {"distribution": "uniform", "min": 0}}}, "Missing `max` of `x` in bad.yaml"),
        (
            {"parameters": {"x": {"values": [1, 2], "probabilities": [0.5]}}},
            "Expected `x.probabilities` in bad.yaml to be 2 probabilities that sum to 1",
        ),
        ({"parameters": {"x": {"parameters": {"y": {"vale": 1}}}}}, "Unknown key `vale` of `x/y` in"),
    ],
)  # fmt: skip
def test_refused_before_any_run(change, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(json.dumps(GOOD | change))
    assert main(["sweep", "bad.yaml", "--count", "2"]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert os.listdir(tmp_path) == ["bad.yaml"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lenet-learning-rat"], "No sweep file named `lenet-learning-rat`: did you mean"),
        (["a", "b"], "followed by one sweep file but got 2"),
        (["lenet-learning-rate"], "`method: random` has no end: set the number of trials by --count"),
        (["lenet-learning-rate", "--count", "0"], "Expected `--count` to be an integer of at least 1 but"),
        (["lenet-learning-rate", "--cont", "3"], "did you mean `--count`?"),
        (["sweeps/lenet-learning-rate", "--count", "3", "--", "--modle.x=1"], "Unknown option `--modle.x`"),
    ],
)  # fmt: skip
def test_options_are_refused(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *args]) == 2
    assert message in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_a_program_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(json.dumps(GOOD | {"command": ["no-such-program"]}))
    assert main(["sweep", "bad.yaml", "--count", "2"]) == 2
    assert "cannot be run: no-such-program: No such file" in capsys.readouterr().err


def test_bayes_learns_from_the_trials(monkeypatch, tmp_path, capsys):
    pytest.importorskip("optuna")
    parameters = {
        "lr": Parameter("log_uniform_values", numbers={"min": 1e-6, "max": 1.0}),
        "kind": Parameter("categorical", ["bad", "good", "worse"]),
        "fixed": Parameter("constant", [3]),
    }

    def search(method, seed):
        sweep = Sweep("", method, "loss", "maximize", ["a"], "", parameters)
        trials = []
        for number in range(1, 31):
            places, values = sweep.draw(number, seed, trials)
            assert values["fixed"] == 3
            score = -abs(np.log10(values["lr"]) + 3) - 2 * (values["kind"] != "good")
            trials.append({"places": places, "parameters": values, "metric": None if number == 2 else score})
        return trials

    tried = {method: [search(method, seed) for seed in (1, 2)] for method in ("bayes", "random")}
    late = {
        method: statistics.mean(trial["metric"] for run in runs for trial in run[15:])
        for method, runs in tried.items()
    }
    assert late["bayes"] > late["random"] + 0.5
    assert tried["bayes"][0] == search("bayes", 1) != tried["bayes"][1]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["sweep", "dropout-uci", "--count", "2"]) == 2
    assert "pip install '.[sweep]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", recipes.sweeps())
def test_the_shipped_sweeps(name, tmp_path):
    """Their first draws are what the command line takes, as far as it knows without torch."""
    sweep = read_sweep(recipes.sweeps()[name])
    assert sweep.name == name
    for seed in range(2):
        Runner(sweep, tmp_path, seed=seed, more=[], failures=3).check_first()
