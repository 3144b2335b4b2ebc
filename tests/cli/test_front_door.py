"""What needs no torch is answered, and what can be refused is refused, before torch is loaded."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pl_losses.cli.arguments import split
from pl_losses.cli.main import BASH, COMMANDS, completion, main
from pl_losses.core.signatures import describe, locate, missing, signature
from pl_losses.recipes import parse, resolve

HERE = Path(__file__).parent
WITHOUT_TORCH = "import sys; from pl_losses.cli.main import main; status = main(sys.argv[1:]); "
WITHOUT_TORCH += "assert not {'torch', 'lightning', 'jsonargparse'} & set(sys.modules); sys.exit(status)"


def outside(*args, env=None, limit=None, **kwargs):
    """Run in a process of its own. A first run also compiles: the quickest of three counts."""
    for _ in range(3):
        done, seconds = measured(*args, env=env, **kwargs)
        if limit is None or seconds < limit:
            return done
    pytest.fail(f"{' '.join(args)} took {seconds:.2f} s of CPU time, not the {limit} s allowed")


def measured(*args, env=None, **kwargs):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, **(env or {})}
    done = subprocess.run(args, capture_output=True, text=True, env=env, **kwargs)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def refused(capsys, *args):
    """The message of a refusal, in this process, which may have loaded torch already."""
    status = main(list(args))
    message = capsys.readouterr().err.strip()
    assert status == 2, message
    assert len(message.splitlines()) <= 2
    return message.removeprefix("pl-losses: ")


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["recipes"], ["fit", "--help"], ["completion", "bash"]]
)
def test_answers_without_torch(args):
    done = outside(sys.executable, "-c", WITHOUT_TORCH, *args, limit=0.6)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--trainer.max_epoch", "1"], "did you mean `--trainer.max_epochs`?"),
        (["fit", "--model", "LeNet6"], "No class `LeNet6` for `model`: did you mean `LeNet5`?"),
        (["fit", "--config", "{trainer: {max_epoch: 1}}"], "did you mean `trainer.max_epochs`?"),
    ],
)
def test_refuses_without_torch(args, message):
    done = outside(sys.executable, "-c", WITHOUT_TORCH, *args, limit=1.0)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_console_script():
    script = Path(sys.executable).with_name("pl-losses")
    if not script.exists():
        pytest.skip("the console script is not installed")
    done = outside(str(script), "--version", limit=0.6)
    assert done.stdout.startswith("pl-losses ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("ft", "Unknown command `ft`: did you mean `fit`?"),
        ("xyz", "Unknown command `xyz`: expected one of fit"),
        ("completion tcsh", "but got `tcsh`"),
        ("fit lenet/digits", "Unexpected argument `lenet/digits`"),
        ("fit --trainer.max_epochs", "Option `--trainer.max_epochs` needs a value"),
        ("fit --max_epochs 1", "Unknown option `--max_epochs`: did you mean `--trainer.max_epochs`?"),
        ("fit --traner.max_epochs 1", "Unknown option `--traner.max_epochs`: did you mean `--trainer`?"),
        ("validate --test_aftr_fit 1", "did you mean `--test_after_fit`?"),
        ("fit --seed_everythin 1", "did you mean `--seed_everything`?"),
        ("fit --config lenet/nothing_like_it", "No recipe or file named `lenet/nothing_like_it`"),
        ("fit --trainer.callbacks+=EarlyStoping", "did you mean `EarlyStopping`?"),
        (
            "fit --trainer.callbacks+ EarlyStopping --trainer.callbacks.patienc 1",
            "`--trainer.callbacks.patience`?",
        ),
        ("fit --trainer.logger CSVLoger", "did you mean `CSVLogger`?"),
        (
            "fit --trainer.logger CSVLogger --trainer.logger.save_dri x",
            "did you mean `--trainer.logger.save_dir`?",
        ),
        ("fit --trainer.logger.class_path CSVLogger --trainer.logger.init_args.save_dri x", "save_dir`?"),
        ("fit --trainer.callbacks lightning.pytorch.callbacks.EarlyStoping", "did you mean `EarlyStopping`?"),
        ("fit --model os.system", "classes from os are not allowed"),
        ("fit --trainer.callbacks+=subprocess.Popen", "classes from subprocess are not allowed"),
        ("fit --ckpt_path nothing.ckpt", "No checkpoint `nothing.ckpt`"),
        ("fit --lr 3", "`--lr`: did you mean `--model.optimizer.lr`?"),
        ("fit --optimizer Adam", "did you mean `--model.optimizer`?"),
        ("fit --config lenet/digits --batch_size 3", "did you mean `--data.batch_size`?"),
        (
            "fit --config lenet/digits --model.lr 0.1",
            "`--model.optimizer.lr`? It is without effect here: OneCycleLR sets the rate by "
            "`--model.lr_scheduler.max_lr`",
        ),
        ("fit --epochs 3", "did you mean `--trainer.max_epochs`?"),
        ("fit --data Mnist", "did you mean `MNIST`?"),
        ("fit --seed_everything=-3", "`seed_everything` to be from 0 to 2^32 - 1 but got -3"),
        ("fit --model.help", "`--model.help` needs a class, or a recipe"),
        ("fit --trainer.log_every_n_steps -1", "`trainer.log_every_n_steps` to be at least 0 but got -1"),
        ("fit --trainer.strategy torch.load", "names `torch.load`, which is no Strategy"),
        ("fit --trainer.gradient_clip_val -3", "`trainer.gradient_clip_val` to be at least 0 but got -3"),
        ("fit --trainer.gradient_clip_val nan", "`trainer.gradient_clip_val` to be a number but got nan"),
        ("fit --trainer.val_check_interval 0", "`trainer.val_check_interval` to be positive but got 0"),
        ("fit --trainer.max_epochs -5", "`trainer.max_epochs` to be at least -1 but got -5"),
        ("fit --trainer.min_steps=-5", "`trainer.min_steps` to be at least 0 but got -5"),
        ("fit --trainer.num_sanity_val_steps -5", "to be at least -1 but got -5"),
        ("fit --config prelu/digits-prelu --model.optimizer.lr -1", "`model.optimizer.lr` to be at least 0"),
        ("fit --config prelu/digits-prelu --model.optimizer.lr nan", "to be a number but got nan"),
        # A schedule has its `epochs`, too.
        ("fit --config lenet/digits --epochs 8", "did you mean `--trainer.max_epochs`?"),
        ("fit --config lenet/digits --trainer.logger.tags own", "a list, such as [own], but got own"),
        ("fit --model mine.py", "to name a class but got the file `mine.py`: write `mine.CLASS`"),
        ("fit --data own/mine.py", "write `own.mine.CLASS`"),
        ("fit --print_confg", "`--print_confg`: did you mean `--print_config`?"),
        ("fit --trainer.callbacks {", "Cannot read the value of `--trainer.callbacks` line"),
    ],
)
def test_refusals(capsys, args, message):
    assert message in refused(capsys, *args.split())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{modle: LeNet5}", "Unknown key `modle` in {modle: LeNet5}: did you mean `model`?"),
        (
            "{trainer: {callbacks: [{class_path: EarlyStopping, init_args: {patienc: 1}}]}}",
            "did you mean `trainer.callbacks.init_args.patience`?",
        ),
        ("{trainer: {callbacks: [EarlyStoping]}}", "did you mean `EarlyStopping`?"),
        ("{trainer: {logger: {class_path: CSVLogger, save_dir: x}}}", "arguments of the class go under"),
        ("{trainer: {logger: {class_path: CSVLogger, init_args: [x]}}}", "to be a mapping but got ['x']"),
        ("{data: {class_path: os.system}}", "`data` in {data: {class_path: os.system}} names `os.system`"),
        ("{ckpt_path: no.ckpt}", "No checkpoint `no.ckpt`"),
        ("{model: [", "Cannot read the inline config line "),
        ("{trainer: {callbacks: [{}]}}", "Expected `trainer.callbacks` in"),
        ("{trainer: {logger: 5}}", "to name a class but got 5"),
        ("{seed_everything: -3}", "to be from 0 to 2^32 - 1 but got -3"),
        ("{trainer: 3}", "Expected `trainer` in {trainer: 3} to be a mapping but got 3"),
        ("{trainer: {check_val_every_n_epoch: 0}}", "to be at least 1 but got 0"),
        (
            "{trainer: {devices: 9223372036854775808}}",
            "to be at most 65536 but got 922",
        ),
        (
            "{trainer: {callbacks: [{class_path: EarlyStopping, init_args: {patience: -3}}]}}",
            "to be at least 0 but got -3",
        ),
        ("{trainer: {num_sanity_val_steps: -2}}", "to be at least -1 but got -2"),
        (
            "{model: {class_path: MLP, init_args: {optimizer: {class_path: Adam, init_args: {eps: .nan}}}}}",
            "`model.init_args.optimizer.init_args.eps` in",
        ),
        ("{trainer: {gradient_clip_val: .nan}}", "to be a number but got nan"),
        ("{trainer: {1: 2}}", "expected the key `1` to be text"),
        ("{data: Digits, data: MNIST}", "`data` is given twice"),
        ("{model: &a {class_path: LeNet5, init_args: *a}}", "or for themselves"),
        ("{model: {class_path: LeNet5, dict_kwargs: {a: 1}}}", "Unknown key `model.dict_kwargs.a`"),
        ("{model: ./other.yaml}", "to name a class but got './other.yaml'"),
        ("{data: !!int abc}", "Cannot read the inline config line 1: `abc` is no int"),
        ("{data: 2001-99-99}", "line 1: `2001-99-99` is no timestamp (month must be in 1..12)"),
        ("{data: !!bool abc}", "line 1: `abc` is no bool"),
        ("{data: !!timestamp abc}", "line 1: `abc` is no timestamp"),
        (f"{{data: {'9' * 5000}}}", f"line 1: `{'9' * 40}` is no int (Exceeds the limit"),
    ],
)
def test_refused_configs(capsys, config, message):
    assert message in refused(capsys, "fit", "--config", config)


def test_aliases_of_aliases_are_counted_not_followed(capsys, tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    assert "stand for more than 100000 values" in refused(capsys, "fit", "--config", str(tmp_path / "x.yaml"))


def test_home_is_found_in_options(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert split(["--trainer.logger.save_dir=~/runs"]) == [("trainer.logger.save_dir", "/home/me/runs")]


def test_help_of_the_parts_of_a_recipe(capsys):
    told = {"model": "rubbish_penalty: float = 1.0", "data": "low: float", "trainer": "max_epochs: Optional"}
    for part, line in told.items():
        assert main(["fit", "--config", "lenet/digits", f"--{part}.help"]) == 0
        assert line in capsys.readouterr().out


def test_a_recipe_is_printed_as_it_is_merged(capsys):
    assert main(["recipes", "lenet/mnist"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# LeNet-5 on all 60 000")
    assert parse(printed, "x") == resolve("lenet/mnist")


def own(tmp_path, monkeypatch, text):
    """Stand a module in for the suite's own, so that its source is read."""
    (tmp_path / "suite.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("pl_losses.cli.checks.KINDS", {"model": ("suite",), "optimizer": ("torch.optim",)})


def test_arguments_of_a_model_and_its_optimizer(capsys, tmp_path, monkeypatch):
    own(
        tmp_path,
        monkeypatch,
        "class A(LightningModule):\n"
        "    def __init__(self, rubbish_penalty: float, optimizer: OptimizerCallable): ...\n"
        "class B(A):\n    def __init__(self, extra, **kwargs):\n        super().__init__(**kwargs)\n"
        "class C(A):\n    def __init__(self, **kwargs):\n        super().__init__(**read(kwargs))\n",
    )
    for model in "AB":
        message = refused(
            capsys, "fit", "--config", f"{{model: {{class_path: {model}, init_args: {{rubish_penalty: 1}}}}}}"
        )
        assert "did you mean `model.init_args.rubbish_penalty`?" in message
        message = refused(capsys, "fit", "--model", model, "--model.rubish_penalty", "1")
        assert "did you mean `--model.rubbish_penalty`?" in message
    message = refused(capsys, "fit", "--model", "A", "--model.optimizer", "Adm")
    assert "No class `Adm` for `model.optimizer`: did you mean `Adam`?" in message
    message = refused(
        capsys, "fit", "--model", "A", "--model.optimizer", "SGD", "--model.optimizer.momentun", "1"
    )
    assert "did you mean `--model.optimizer.momentum`?" in message
    assert signature(locate("suite.C")).open


def test_what_the_source_does_not_tell_is_let_pass():
    assert not missing("torch.nn.init.zeros_")
    assert not missing("torch.float32")
    assert not missing("torch._C.Anything")
    assert not missing("no_such_package.Anything")
    assert not missing("lightning.pytorch.demos.boring_classes.BoringModel")
    assert missing("torch.optim.Adm")
    assert missing("torch.optm.Adam")
    assert signature(locate("lightning.pytorch.loggers.WandbLogger")).open


def test_a_class_is_described_from_its_source(capsys):
    assert "max_epochs: Optional[int] = None\n      Stop training once" in describe(
        locate("lightning.pytorch.Trainer")
    )
    assert main(["fit", "--trainer.callbacks.help", "EarlyStopping"]) == 0
    assert "patience: int = 3" in capsys.readouterr().out


def test_not_a_checkpoint(capsys, tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_text("no")
    assert "is not a checkpoint, or is damaged" in refused(capsys, "test", "--ckpt_path", str(path))
    assert "did you mean" in refused(capsys, "test", "--ckpt_path", str(tmp_path / "y.ckpt"))


@pytest.mark.parametrize(
    ("torch", "torchvision", "message"),
    [
        ("raise ModuleNotFoundError('no torch')", "", "PyTorch cannot be imported (no torch)"),
        (
            "__version__ = '9'",
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "torch 9 and torchvision do not fit together",
        ),
        ("__version__ = '9'", "raise ImportError('undefined symbol')", "install matching builds"),
    ],
)
def test_torch_and_torchvision_that_do_not_fit(tmp_path, torch, torchvision, message):
    for name, text in (("torch", torch), ("torchvision", torchvision)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    done = outside(sys.executable, "-m", "pl_losses", "fit", env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_commands_and_recipes(shell, monkeypatch):
    monkeypatch.setattr("pl_losses.cli.main.names", lambda: ["lenet/digits"])
    script = completion(shell)
    assert "fit validate" in script
    assert "lenet/digits" in script


def test_bash_completion_is_bash():
    assert subprocess.run(["bash", "-n"], input=completion("bash"), text=True).returncode == 0
    assert "complete" in BASH


def test_only_classes_of_the_kind_are_offered(capsys):
    message = refused(capsys, "fit", "--data", "BatchLoader")
    assert message == "`data` names `BatchLoader`, which is no LightningDataModule"
    assert "`Digits`" in refused(capsys, "fit", "--data", "Digit")
    assert main(["fit", "--help"]) == 0
    assert "BatchLoader" not in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: pl-losses {command} ")


def test_a_closed_pipe_ends_it_quietly():
    command = [sys.executable, "-m", "pl_losses", "recipes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
