"""Recipes that strangers might send: each tries to run code, or to write outside of the runs' folder."""

import os
import pickle
from pathlib import Path

MARK = "mark"


class Payload:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (MARK,)


def plant(folder: Path) -> None:
    """Put into a folder what the recipes want to reach."""
    for name in ("evil.pt", "evil.ckpt", "evil.npy", "evil.pkl"):
        (folder / name).write_bytes(pickle.dumps({"state_dict": {}, "x": Payload()}))
    (folder / "evil.yaml").write_text(f"!!python/object/apply:os.mkdir [{MARK}]\n")
    (folder / "planted.py").write_text(
        f"import os\nos.makedirs({MARK!r}, exist_ok=True)\ndef run(*args, **kwargs) -> None: ...\n"
        "class Planted:\n    def __init__(self, *args, **kwargs): ...\n"
    )
    (folder / "part.yaml").write_text("class_path: planted.Planted\n")
    (folder / "hook.cpp").write_text("int x;\n")


# What runs code, reads pickles, writes or reaches out, with arguments that make it do so.
CALLS = {
    "torch.load": {"f": "evil.pt", "weights_only": False},
    "torch.serialization.load": {"f": "evil.pt", "weights_only": False},
    "torch.optim.adam.torch.load": {"f": "evil.pt", "weights_only": False},
    "torch.nn.functional.torch.load": {"f": "evil.pt", "weights_only": False},
    "torch.save": {"f": MARK, "obj": 1},
    "torch.hub.load": {"repo_or_dir": ".", "model": "x", "source": "local"},
    "torch.hub.download_url_to_file": {"url": "file:evil.pt", "dst": MARK},
    "torch.hub.load_state_dict_from_url": {"url": "file:evil.pt", "model_dir": MARK},
    "torch.from_file": {"filename": MARK, "shared": True, "size": 4},
    "torch.jit.load": {"f": "evil.pt"},
    "torch.package.PackageImporter": {"file_or_buffer": "evil.pt"},
    "torch.utils.cpp_extension.load": {"name": "x", "sources": ["hook.cpp"], "build_directory": "."},
    "torch.utils.cpp_extension.load_inline": {"name": "x", "cpp_sources": "", "build_directory": "."},
    "torch.ops.load_library": {"path": "evil.pt"},
    "torch.classes.load_library": {"path": "evil.pt"},
    "torch.distributed.launcher.api.launch_agent": {"entrypoint": "touch", "args": [MARK]},
    "torch.multiprocessing.spawn": {"fn": "os.mkdir", "args": [MARK]},
    "torch.utils.collect_env.run": {"command": f"mkdir {MARK}"},
    "torch.utils.collect_env.run_lambda": {"command": f"mkdir {MARK}"},
    "lightning.fabric.utilities.cloud_io._load": {"path_or_url": "evil.pt", "weights_only": False},
    "lightning.pytorch.LightningModule.load_from_checkpoint": {"checkpoint_path": "evil.ckpt"},
    "lightning.pytorch.core.saving.load_hparams_from_yaml": {"config_yaml": "evil.yaml"},
    "lightning.pytorch.core.saving.save_hparams_to_yaml": {"config_yaml": MARK, "hparams": {}},
    "lightning.pytorch.demos.mnist_datamodule.MNISTDataModule": {"data_dir": MARK},
    "lightning.pytorch.cli.LightningCLI": {"args": ["fit"]},
    "pl_losses.LeNet5.load_from_checkpoint": {"checkpoint_path": "evil.ckpt", "weights_only": False},
    "pl_losses.cli.main.main": {"argv": ["reproduce", "adam/fig4", "--folder", MARK]},
    "pl_losses.cli.reproduce.run": {"name": "adam/fig4", "flags": []},
    "pl_losses.monitoring.record.save_config": {"config": {}, "folder": MARK},
    "pl_losses.data.cifar10.pickle.loads": {"data": "x"},
    "pl_losses.cli.predictions.write_predictions": {"answers": {}, "folder": MARK},
    "yaml.unsafe_load": {"stream": f"!!python/object/apply:os.mkdir [{MARK}]"},
    "yaml.load": {"stream": f"!!python/object/apply:os.mkdir [{MARK}]", "Loader": "yaml.UnsafeLoader"},
    "sympy.sympify": {"a": f"__import__('os').mkdir('{MARK}')"},
    "sympy.parsing.sympy_parser.parse_expr": {"s": f"__import__('os').mkdir('{MARK}')"},
    "joblib.load": {"filename": "evil.pkl"},
    "joblib.Memory": {"location": MARK},
    "pandas.read_pickle": {"filepath_or_buffer": "evil.pkl"},
    "pandas.eval": {"expr": f"__import__('os').mkdir('{MARK}')"},
    "numpy.load": {"file": "evil.npy", "allow_pickle": True},
    "numpy.save": {"file": MARK, "arr": [1]},
    "numpy.memmap": {"filename": MARK, "mode": "w+", "shape": 4},
    "builtins.eval": {"source": f"__import__('os').mkdir('{MARK}')"},
    "builtins.open": {"file": MARK, "mode": "w"},
    "os.system": {"command": f"mkdir {MARK}"},
    "os.mkdir": {"path": MARK},
    "subprocess.Popen": {"args": ["mkdir", MARK]},
    "functools.partial": {"func": "os.mkdir"},
    "operator.methodcaller": {"name": "mkdir"},
    "importlib.import_module": {"name": "planted"},
    "runpy.run_path": {"path_name": "planted.py"},
    "pydoc.locate": {"path": "planted"},
    "doctest.testfile": {"filename": "planted.py"},
    "timeit.timeit": {"stmt": f"import os; os.mkdir('{MARK}')", "number": 1},
    "cProfile.run": {"statement": f"import os; os.mkdir('{MARK}')"},
    "bdb.Bdb": {},
    "asyncio.create_subprocess_shell": {"cmd": f"mkdir {MARK}"},
    "logging.FileHandler": {"filename": MARK},
    "logging.config.fileConfig": {"fname": "evil.yaml"},
    "sqlite3.connect": {"database": MARK},
    "shelve.open": {"filename": MARK},
    "zipfile.ZipFile": {"file": MARK, "mode": "w"},
    "tarfile.open": {"name": MARK, "mode": "w"},
    "io.FileIO": {"file": MARK, "mode": "w"},
    "codecs.open": {"filename": MARK, "mode": "w"},
    "fsspec.open": {"urlpath": MARK},
    "wandb.init": {"dir": MARK, "mode": "offline"},
    "jsonargparse.set_parsing_settings": {"import_path_allowlist": ["os"]},
    "planted.run": {},
    "planted.Planted": {},
    "dill.load": {"file": "evil.pkl"},
    "cloudpickle.load": {"file": "evil.pkl"},
    "pickle.load": {"file": "evil.pkl"},
    "marshal.loads": {"bytes": "x"},
    "ctypes.CDLL": {"name": "evil.pt"},
    "builtins.exec": {"source": f"import os; os.mkdir('{MARK}')"},
    "os.popen": {"cmd": f"mkdir {MARK}"},
    "os.execvp": {"file": "mkdir", "args": ["mkdir", MARK]},
    "shutil.rmtree": {"path": "evil.pt"},
    "shutil.copyfile": {"src": "evil.pt", "dst": MARK},
    "pathlib.Path.write_text": {"self": MARK, "data": "x"},
    "multiprocessing.Process": {"target": "os.mkdir", "args": [MARK]},
    "runpy.run_module": {"mod_name": "planted"},
    "code.interact": {},
    "webbrowser.open": {"url": "file:planted.py"},
    "torch.export.load": {"f": "evil.pt"},
    "torch.utils.model_zoo.load_url": {"url": "file:evil.pt", "model_dir": MARK},
    "torch.distributed.run.main": {"args": ["planted.py"]},
    "torch.nn.utils.parametrize.torch.load": {"f": "evil.pt", "weights_only": False},
    "lightning.pytorch.loggers.csv_logs.ExperimentWriter": {"log_dir": MARK},
    "lightning.fabric.loggers.csv_logs._ExperimentWriter": {"log_dir": MARK},
    "lightning.fabric.plugins.TorchCheckpointIO.load_checkpoint": {"path": "evil.pt", "weights_only": False},
    "lightning.pytorch.utilities.upgrade_checkpoint.main": {},
    "lightning.pytorch.utilities.deepspeed.convert_zero_checkpoint_to_fp32_state_dict": {"output_file": MARK},
    "lightning.pytorch.callbacks.ModelCheckpoint.to_yaml": {"filepath": MARK},
    "pl_losses.core.files.save_sealed": {"path": MARK, "value": 1},
    "pl_losses.core.experiment.Experiment": {"folder": MARK, "arguments": {}},
    "pl_losses.data.download.download": {"url": "file:evil.pt", "path": MARK},
    "pl_losses.data.image_files.write_image": {"path": f"{MARK}.png"},
    "pl_losses.strategies.torch.load": {"f": "evil.pt", "weights_only": False},
    "this.s": {},
    "antigravity.geohash": {},
}

MODEL = {"class_path": "LeNet5", "init_args": {}}
FAST = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "accelerator": "cpu"}
FAST |= {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def recipe(**trainer):
    """A recipe that trains a step."""
    return {
        "model": dict(MODEL),
        "data": {"class_path": "Digits"},
        "trainer": {**FAST, **trainer},
        "test_after_fit": False,
    }


def with_argument(name, value, model="LeNet5"):
    """A recipe whose model is given an argument."""
    return {**recipe(), "model": {"class_path": model, "init_args": {name: value}}}


def with_hook(value):
    """A recipe whose callback calls a function."""
    hook = {"class_path": "LambdaCallback", "init_args": {"on_fit_start": value}}
    return recipe(callbacks=[hook])


def calls():
    """Recipes that put each call where a config takes a class."""
    for path, arguments in CALLS.items():
        node = {"class_path": path, "init_args": arguments}
        yield f"{path} optimizer", with_argument("optimizer", node)
        yield f"{path} scheduler", with_argument("lr_scheduler", {**node, "dict_kwargs": {}})
        yield f"{path} callbacks", recipe(callbacks=["LearningRateMonitor", node])
        yield f"{path} hook", with_hook(path if path.endswith("n") else node)


def of_class(path, more="init_args", **arguments):
    """A class with arguments, as it stands in a config."""
    return {"class_path": path, more: arguments}


def spots(node):
    """Recipes that put a call at each other place."""
    for place in ("logger", "strategy", "plugins", "profiler", "accelerator", "precision", "callbacks"):
        yield place, recipe(**{place: node})
        yield f"[{place}]", recipe(**{place: [node]})
    yield "second logger", recipe(logger=["CSVLogger", node])
    yield "model", {**recipe(), "model": node}
    yield "data", {**recipe(), "data": node}
    for model, name in (
        ("DropoutClassifier", "network"),
        ("GAN", "generator"),
        ("GAN", "discriminator_optimizer"),
        ("StackedDenoisingAutoencoder", "pretrain_lr_scheduler"),
        ("LeNet5", "optimizer"),
    ):
        yield f"{model} {name}", with_argument(name, node, model)
    layer = of_class("torch.nn.TransformerEncoderLayer", d_model=4, nhead=1, activation=node)
    yield "activation", with_argument("network", layer, "DropoutClassifier")
    group = {**of_class("torch.optim.SGD", lr=0.1), "dict_kwargs": {"x": node}}
    yield "optimizer kwargs", with_argument("optimizer", group)
    schedulers = [("LambdaLR", "lr_lambda"), ("MultiplicativeLR", "lr_lambda"), ("CyclicLR", "scale_fn")]
    for name, argument in schedulers:
        scheduler = of_class(f"torch.optim.lr_scheduler.{name}", **{argument: node})
        yield name, with_argument("lr_scheduler", scheduler)
    if isinstance(node, dict):  # A text stays one.
        profiler = of_class("PyTorchProfiler", "dict_kwargs", on_trace_ready=node, schedule=node)
        profiler["class_path"] = "lightning.pytorch.profilers.PyTorchProfiler"
        yield "profiler kwargs", recipe(profiler=profiler)
        yield "logger kwargs", recipe(logger=of_class("TensorBoardLogger", "dict_kwargs", comment=node))
        ddp = of_class("lightning.pytorch.strategies.DDPStrategy", "dict_kwargs", comment=node)
        yield "ddp kwargs", recipe(strategy=ddp)
    for argument in ("ddp_comm_hook", "ddp_comm_wrapper", "checkpoint_io", "cluster_environment"):
        ddp = of_class("lightning.pytorch.strategies.DDPStrategy", **{argument: node})
        yield argument, recipe(strategy=ddp)
    io = of_class("lightning.pytorch.plugins.io.AsyncCheckpointIO", checkpoint_io=node)
    yield "checkpoint_io", recipe(plugins=[io])
    for name, argument in (
        ("StochasticWeightAveraging", "avg_fn"),
        ("lightning.pytorch.callbacks.ThroughputMonitor", "batch_size_fn"),
        ("lightning.pytorch.callbacks.ModelPruning", "pruning_fn"),
        ("lightning.pytorch.callbacks.ModelPruning", "apply_pruning"),
        ("lightning.pytorch.callbacks.BackboneFinetuning", "lambda_func"),
        ("LambdaCallback", "on_save_checkpoint"),
        ("GANReport", "metric"),
    ):
        yield argument, recipe(callbacks=[of_class(name, **{argument: node})])


def places():
    """Recipes that put some calls everywhere, and all of them at some of the places, in turn."""
    load = {"class_path": "torch.load", "init_args": CALLS["torch.load"]}
    planted = {"class_path": "planted.Planted"}
    for node in (load, planted, "planted.Planted", "./part.yaml", os.path.abspath("part.yaml")):
        for place, config in spots(node):
            yield f"{place} {node}", config
    for index, (path, arguments) in enumerate(CALLS.items()):
        for place, config in list(spots({"class_path": path, "init_args": arguments}))[index % 6 :: 6]:
            yield f"{place} {path}", config
    yield "unpickled checkpoint", {**recipe(), "ckpt_path": "evil.ckpt", "weights_only": False}


def writes():
    """Recipes that write outside of the runs' folder."""
    outside = ("../outside", os.path.abspath("outside"), "outside", "runs/../outside", "~/outside")
    for path in (*outside, f"file://{os.path.abspath('outside')}", "$PWD/outside"):
        for name in ("CSVLogger", "TensorBoardLogger", "WandbLogger"):
            logger = {"class_path": name, "init_args": {"save_dir": path}}
            yield f"{name} {path}", recipe(logger=logger)
            if path != "outside":
                for part in ("name", "version") if name != "WandbLogger" else ("version",):
                    inner = {"save_dir": "runs", part: f"../../{path}"}
                    yield f"{name} {part} {path}", recipe(logger={"class_path": name, "init_args": inner})
        yield f"root {path}", recipe(default_root_dir=path)
        checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": path, "save_last": True}}
        yield f"checkpoint {path}", recipe(callbacks=[checkpoint])
        yield f"one checkpoint {path}", recipe(callbacks=checkpoint)
        crash = {"class_path": "OnExceptionCheckpoint", "init_args": {"dirpath": path}}
        yield f"exception {path}", recipe(callbacks=[crash, "EarlyStopping"])
        for kind in ("Simple", "Advanced", "PyTorch"):
            profiler = {"class_path": f"lightning.pytorch.profilers.{kind}Profiler"}
            yield (
                f"{kind} {path}",
                recipe(profiler={**profiler, "init_args": {"dirpath": path, "filename": "x"}}),
            )
        spikes = {"class_path": "lightning.pytorch.callbacks.SpikeDetection"}
        yield f"spikes {path}", recipe(callbacks=[{**spikes, "init_args": {"exclude_batches_path": path}}])
        picture = {"class_path": "StyleReport", "init_args": {"output": f"{path}.png"}}
        yield f"picture {path}", recipe(callbacks=[picture])
    # A number may be written as the character that it stands for: 46 is a dot.
    for name in ("../../../outside/x", f"{'{step:c}{step:c}/' * 3}x", "{epoch:{step:c}}"):
        checkpoint = of_class("ModelCheckpoint", filename=name, auto_insert_metric_name=False)
        yield f"file name {name}", recipe(callbacks=[checkpoint], logger="CSVLogger")
    # Lightning writes a metric's name too, and fills numbers up with any character.
    inside = (f"{{{os.path.abspath('outside')}}}", "{../outside}", "{../outside:d}", "{a/../../outside}")
    for name in (*inside, "{a}{/../outside}", "{step:/>9}", "{..}/{..}/x", "..{a]b}", "{a!r:/>9}", "{\\x}"):
        for insert in (True, False):
            checkpoint = of_class("ModelCheckpoint", filename=name, auto_insert_metric_name=insert)
            yield f"file name {name} {insert}", recipe(callbacks=[checkpoint], logger="CSVLogger")
        crash = of_class("OnExceptionCheckpoint", dirpath="runs", filename=name)
        yield f"exception name {name}", recipe(callbacks=[crash])
    hidden = of_class("lightning.pytorch.profilers.SimpleProfiler", dirpath="runs", filename="link/x")
    yield "profiler link", recipe(profiler=hidden)
    for odd in ("\x1b[31mred", "x\n  pl-losses recipes", "\x9b2J", "\x1b]0;title\x07"):
        for part in ("name", "version", "prefix"):
            yield f"{part} {odd!r}", recipe(logger=of_class("CSVLogger", **{part: odd}))
        yield f"dirpath {odd!r}", recipe(callbacks=[of_class("ModelCheckpoint", dirpath=f"runs/{odd}")])
        yield f"key {odd!r}", recipe(**{odd: 1})
    for logger, part in (("WandbLogger", "project"), ("WandbLogger", "id"), ("CSVLogger", "name")):
        inner = {"class_path": logger, "init_args": {part: "../../../outside"}}
        yield f"{logger} {part}", recipe(logger=[inner])
    suffix = {"class_path": "TensorBoardLogger", "dict_kwargs": {"filename_suffix": "/../../x"}}
    yield "suffix", recipe(logger=suffix)
    sub = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs", "sub_dir": "../../../../x"}}
    yield "sub_dir", recipe(logger=sub)
    for extra in ({"settings": {"root_dir": "outside"}}, {"dir": "outside"}, {"config": "/etc/passwd"}):
        wandb = {"class_path": "WandbLogger", "dict_kwargs": extra}
        yield f"wandb {extra}", recipe(logger=wandb)


def link(folder: Path) -> None:
    """Put links out of it into the folder of the runs, as one that was sent may hold them."""
    (folder / "away").mkdir()
    for name in ("link", "a/v/checkpoints", "best/val"):
        (folder / "runs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "runs" / name).symlink_to(folder.resolve() / "away")


def links():
    """Recipes that would write where those links lead."""
    for logger in ("CSVLogger", "TensorBoardLogger"):
        for names in ({"name": "link"}, {"name": "", "version": "link"}, {"name": "a", "version": "v"}):
            yield f"{logger} {names}", recipe(logger=of_class(logger, **names))
    yield "sub_dir", recipe(logger=of_class("TensorBoardLogger", name="", version="", sub_dir="link"))
    for folder, name in (("link", "x"), ("", "link/x"), ("best", "{val/loss:.2f}"), ("best/val", "x")):
        checkpoint = of_class("ModelCheckpoint", dirpath=f"runs/{folder}", filename=name)
        yield f"checkpoint {folder} {name}", recipe(callbacks=[checkpoint])
        plugin = "lightning.pytorch.plugins.io.AsyncCheckpointIO"
        yield f"another thread's {folder} {name}", recipe(callbacks=[checkpoint], plugins=[plugin])
        crash = of_class("OnExceptionCheckpoint", dirpath=f"runs/{folder}", filename=name)
        yield f"exception {folder} {name}", recipe(callbacks=[crash], max_steps=1)
    yield "root", recipe(default_root_dir="runs/link")
    yield "picture", recipe(callbacks=[of_class("StyleReport", output="runs/link/x.png")])
    yield "W&B", recipe(logger=of_class("WandbLogger", project="link"))


RECIPES = [*calls(), *places(), *writes()]
