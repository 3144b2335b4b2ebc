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
    "this.s": {},
    "antigravity.geohash": {},
}

MODEL = {"class_path": "LeNet5", "init_args": {}}
FAST = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "accelerator": "cpu"}
FAST |= {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def recipe(**trainer):
    """A recipe that trains a step."""
    return {"model": dict(MODEL), "data": "Digits", "trainer": {**FAST, **trainer}, "test_after_fit": False}


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


def places():
    """Recipes that put a call at each other place, and those that write outside."""
    load = {"class_path": "torch.load", "init_args": CALLS["torch.load"]}
    planted = {"class_path": "planted.Planted"}
    for node in (load, planted, "planted.Planted", "./part.yaml", os.path.abspath("part.yaml")):
        for place in ("logger", "strategy", "plugins", "profiler", "accelerator", "precision", "callbacks"):
            yield f"{place} {node}", recipe(**{place: node})
            yield f"{place} [{node}]", recipe(**{place: [node]})
        yield f"model {node}", {**recipe(), "model": node}
        yield f"data {node}", {**recipe(), "data": node}
        yield f"network {node}", with_argument("network", node, "DropoutClassifier")
        yield f"generator {node}", with_argument("generator", node, "GAN")
        yield f"model.optimizer {node}", with_argument("optimizer", node)
        group = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}, "dict_kwargs": {"x": node}}
        yield f"optimizer kwargs {node}", with_argument("optimizer", group)
        lambdas = {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": node}}
        yield f"LambdaLR {node}", with_argument("lr_scheduler", lambdas)
        profiler = {"class_path": "lightning.pytorch.profilers.PyTorchProfiler"}
        if isinstance(node, dict):  # A text stays one.
            profiler["dict_kwargs"] = {"on_trace_ready": node, "schedule": node}
            yield f"profiler kwargs {node}", recipe(profiler=profiler)
        ddp = {"class_path": "lightning.pytorch.strategies.DDPStrategy"}
        yield f"ddp hook {node}", recipe(strategy={**ddp, "init_args": {"ddp_comm_hook": node}})
        average = {"class_path": "StochasticWeightAveraging"}
        yield (
            f"average {node}",
            recipe(callbacks=[{**average, "init_args": {"swa_lrs": 0.1, "avg_fn": node}}]),
        )
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
    name = {"class_path": "ModelCheckpoint", "init_args": {"filename": "../../../outside/x"}}
    yield "file name", recipe(callbacks=[name], logger="CSVLogger")
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


RECIPES = [*calls(), *places(), *writes()]
