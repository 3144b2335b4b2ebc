"""Recipes with one mistake each, run through the command line in processes of their own."""

import copy
import os
import random
import re
import tempfile
from pathlib import Path

import yaml
from processes import Fork

from pl_losses.cli.main import main
from pl_losses.recipes import resolve

SECONDS = 60  # What takes longer hangs; a run takes a few, more on a busy machine.
TRAINER = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "min_epochs": 0, "log_every_n_steps": 1}
TRAINER |= {"limit_train_batches": 1, "limit_val_batches": 1, "limit_test_batches": 1, "precision": 32}
TRAINER |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
TRAINER |= {"check_val_every_n_epoch": 1, "accumulate_grad_batches": 1, "deterministic": False}
TRAINER |= {"strategy": "auto", "num_nodes": 1, "gradient_clip_val": 1.0, "inference_mode": True}
STOPPING = {"class_path": "EarlyStopping", "init_args": {"monitor": "train/loss", "patience": 3}}
# Without which a recipe would train for long.
LIMITS = ["--trainer.max_epochs=1"]
LIMITS += [f"--trainer.limit_{name}_batches=1" for name in ("train", "val", "test")]
# Arguments that make a wing's recipe small.
SMALL = {
    "lenet/digits": ({}, {"val_size": 30}),
    "prelu/digits-prelu": ({"hidden_size": 8}, {"val_size": 30}),
    "adam/vae": ({"hidden_size": 8, "latent_size": 2}, {}),
    "dropout/co2": ({"hidden": [8], "p": 0.1, "samples": 3}, {}),
    "dropout/rotated-digits": ({"samples": 3}, {}),
    "gan/digits": ({"latent_size": 4, "width": 4}, {}),
    "gtn/strings-digits": ({}, {"strings": 20, "eval_strings": 10, "isolated_epochs": 0}),
    "sdae/digits": ({"hidden": [8], "pretrain_epochs": 0}, {}),
}
# What an argument of this type surely is not.
WRONG = {
    bool: ["maybe", 7, [True], {"a": True}, float("nan")],
    int: ["many", [[1]], {"a": 1}, float("nan"), float("inf"), 1.5, -3, -(10**30)],
    float: ["much", [[0.1]], {"a": 0.1}, float("nan"), -1.0, -float("inf")],
    str: [["x"], {"a": "x"}, 3, True, "no such thing", "nope.Nope", "../../x", ""],
    list: ["x", {"a": 1}, [[]], [{}], [None], ["x y"], 7.5],
    dict: ["x y", 3, [], [[]], True, {"class_path": 3}, {"class_path": None}, {"init_args": 3}],
}
# Of any type, and possibly right.
ODD = [None, 0, 1, -1, "", [], {}, 1e30, 10**12, "1", "null", False, "~", "0x10", 1e-30]


def small(name):
    """A wing's recipe with few data and one step."""
    config = resolve(name)
    for section, more in zip(("model", "data"), SMALL[name], strict=True):
        config[section].setdefault("init_args", {}).update(more)
    trainer = dict(TRAINER)
    if name.startswith("gan"):
        del trainer["gradient_clip_val"]
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": "x"}}
    return {
        **config,
        "trainer": {**trainer, "logger": logger, "callbacks": [STOPPING]},
        "test_after_fit": True,
    }


def places(node, path=()):
    """Paths of all values in a config."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(config, path):
    for key in path:
        config = config[key]
    return config


def text_of(path):
    return ".".join(str(key) for key in path if key != "init_args")


class Mutation:
    """A mistake in a recipe.

    Attributes:
        name: What was done.
        text: The recipe.
        wrong: Whether it surely is to be refused.
        options: More options of the command.
    """

    def __init__(self, name, config, wrong, options=()):
        self.name, self.wrong, self.options = name, wrong, list(options)
        self.text = config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False)


def wrong_type(config, draw):
    path = draw.choice([path for path in places(config) if path != ("data", "init_args", "source")])
    kind = type(at(config, path))
    value = draw.choice(WRONG.get(kind, WRONG[str]))
    at(config, path[:-1])[path[-1]] = value
    meant = (path[-1] == "logger" and value in (True, [])) or (path[-1] == "name" and value == "")
    meant |= any("pretrain" in str(key) for key in path)  # Of stages that are left out.
    return Mutation(f"{text_of(path)} = {value!r}", config, not meant)


def odd_value(config, draw):
    path, value = draw.choice(list(places(config))), draw.choice(ODD)
    at(config, path[:-1])[path[-1]] = value
    return Mutation(
        f"{text_of(path)} = {value!r} (odd)", config, False, LIMITS if path == ("trainer",) else ()
    )


def odd_key(config, draw):
    node = draw.choice([node for path in [(), *places(config)] if isinstance(node := at(config, path), dict)])
    key = draw.choice([1, 2.5, None, True, "", "a b", "class_pat", "init_arg", "widht", "--x", ("a", 1)])
    if isinstance(key, tuple):
        text = yaml.safe_dump(config) + "? [a, 1]\n: 3\n"
        return Mutation("a list as key", text, True)
    node[key] = draw.choice([1, "x", {}, None])
    return Mutation(f"key {key!r}", config, True)


def without(config, draw):
    path = draw.choice([("model",), ("data",), ("trainer",), *places(config)])
    node = at(config, path[:-1])
    del node[path[-1]]
    return Mutation(f"without {text_of(path)}", config, path in [("model",), ("data",)], LIMITS)


def callbacks(config, draw):
    value, wrong = draw.choice(
        [
            ([STOPPING, STOPPING], False),
            (["PReLUSlopeMonitor", "PReLUSlopeMonitor"], True),
            ([{}], True),
            ([[STOPPING]], True),
            ({}, True),
            ([None], True),
            (["LearningRateMonitor", "LearningRateMonitor"], False),
            (["EarlyStopping"], True),
            # Lightning warns only, where it is another loop that steps.
            ([{"class_path": "ModelCheckpoint", "init_args": {"monitor": "no/such"}}], False),
            ([{"class_path": "ModelCheckpoint", "init_args": {"every_n_epochs": -1}}], True),
            ([{"class_path": "ModelCheckpoint", "init_args": {"save_top_k": -5}}], True),
            ([{"class_path": "EarlyStopping", "init_args": {"monitor": "no/such"}}], True),
            ([{"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": -1.0}}], True),
            ([{"class_path": "AdamBiasCorrectionMonitor", "init_args": {"every_n_steps": 0}}], True),
            ([{"class_path": "Timer", "init_args": {"duration": "x"}}], True),
            ("LeNet5", True),
            ([{"class_path": "LeNet5"}], True),
            ({"class_path": "EarlyStopping", "init_args": []}, True),
        ]
    )
    config["trainer"]["callbacks"] = value
    return Mutation(f"callbacks {value}", config, wrong)


def devices(config, draw):
    name = draw.choice(["devices", "accelerator", "strategy", "precision", "num_nodes", "logger", "profiler"])
    values = {
        "devices": [0, -3, "x", [0, 0], "1,a", {}, [], 2.5, True, "0", [-1]],
        "accelerator": ["gpus", "cuda", "mps", "tpu", "cpus", 3, [], {}],
        "strategy": ["dp", "fsdp3", 3, [], {}, "ddp_spawn_x", {"class_path": "DDPStrateg"}, "deepspeed"],
        "precision": [8, "half", 31, [], {}, "16-bit", -32],
        "num_nodes": [0, -1, "x", [], 1.5],
        "logger": [3, [3], {"a": 1}, "Nope", [[]], {"class_path": "CSVLogger", "init_args": {"name": 3}}],
        "profiler": ["x", 3, {}, []],
    }
    value = draw.choice(values[name])
    config["trainer"][name] = value
    return Mutation(f"{name} {value!r}", config, name != "devices" or value not in (True, "0", [-1]))


SECTIONS = [3, -1.5, "x", "x y", True, [], [1], [[]], float("nan"), "", [{}]]


def section(config, draw):
    name, value = draw.choice(["model", "data", "trainer"]), draw.choice(SECTIONS)
    config[name] = value
    return Mutation(f"{name}: {value!r}", config, True)


def number(config, draw):
    names = [path for path in places(config) if type(at(config, path)) in (int, float)]
    path = draw.choice(names)
    value = draw.choice([-1, 0, -7, 10**19, 1e300, -1e-9, float("nan"), float("inf"), float("-inf"), 2**63])
    at(config, path[:-1])[path[-1]] = value
    return Mutation(f"{text_of(path)} = {value!r} (number)", config, value != value)


def more(config, draw):
    key, value = draw.choice(
        [
            *(("seed_everything", value) for value in (-1, 2**40, "x", [1], {}, 1.5)),
            *(("test_after_fit", value) for value in ("maybe", [], {}, 3)),
            *(("ckpt_path", value) for value in ("nothing.ckpt", 3, [], {}, "", ".", True)),
            *(("weights_only", value) for value in ("x", [], 3)),
            *(("extends", value) for value in (3, {}, [3], "no/such", "sent", [[]])),
            *((value, 1) for value in ("optimizer", "lr_scheduler", "epochs", "Model", "model.lr", "fit")),
        ]
    )
    config[key] = value
    return Mutation(f"{key}: {value!r}", config, True)


def alias(config, draw):
    text = yaml.safe_dump(config, sort_keys=False)
    name, added = draw.choice(
        [
            ("a list in itself", "extra: &x [*x]\n"),
            ("a mapping in itself", "extra: &x {a: *x}\n"),
            ("arguments in themselves", "ARGS: &x {optimizer: *x}\n"),
            (
                "a bomb",
                "b: &b [x,x,x,x,x,x,x,x,x,x]\n"
                + "".join(
                    f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n"
                    for old, new in zip("bcdefgh", "cdefghi", strict=True)
                ),
            ),
            ("no anchor", "extra: *nowhere\n"),
            ("merge key", "trainer2: &t {a: 1}\nextra: {<<: *t}\n"),
            ("kwargs in themselves", "KWARGS: &x {a: *x}\n"),
            ("a tag", "extra: !!python/object:os.system {}\n"),
            ("deep", "extra: " + "[" * 2000 + "]" * 2000 + "\n"),
            ("a date", "extra: 2020-01-01\n"),
            ("no date", "extra: 2020-99-99\n"),
            ("a set", "extra: !!set {a, b}\n"),
            ("bytes", "extra: !!binary aGVsbG8=\n"),
        ]
    )
    if added.startswith("ARGS"):
        path = config["model"]["class_path"]
        text = re.sub(
            r"(?s)model:.*?\n(?=\w)", f"model:\n  class_path: {path}\n  init_args: {added[6:]}", text
        )
    elif added.startswith("KWARGS"):
        text = text.replace(
            "optimizer:\n      class_path", f"optimizer:\n      dict_kwargs: {added[8:]}      class_path", 1
        )
    else:
        text += added
    return Mutation(name, text, True)


def text(config, draw):
    whole = yaml.safe_dump(config, sort_keys=False)
    place = draw.randrange(len(whole))
    lines = whole.splitlines(keepends=True)
    line = draw.randrange(len(lines))
    kind = draw.choice(["cut", "character", "line", "twice", "tab", "indent", "quote", "document", "swap"])
    if kind == "cut":
        spoilt = whole[:place]
    elif kind == "character":
        spoilt = whole[:place] + draw.choice("{}[]:,&*!|>%@`'\"#?-\n\x00\x07é\u2028") + whole[place + 1 :]
    elif kind == "line":
        spoilt = "".join(lines[:line] + lines[line + 1 :])
    elif kind == "twice":
        spoilt = "".join(lines[: line + 1] + lines[line:])
    elif kind == "tab":
        spoilt = "".join([*lines[:line], "\t" + lines[line], *lines[line + 1 :]])
    elif kind == "indent":
        spoilt = "".join([*lines[:line], " " + lines[line], *lines[line + 1 :]])
    elif kind == "quote":
        spoilt = "".join([*lines[:line], lines[line].replace(": ", ": '", 1), *lines[line + 1 :]])
    elif kind == "document":
        spoilt = whole + "---\n" + whole
    else:
        other = draw.randrange(len(lines))
        lines[line], lines[other] = lines[other], lines[line]
        spoilt = "".join(lines)
    return Mutation(f"text: {kind}", spoilt, kind in ("tab", "document"))


KINDS = [wrong_type] * 6 + [odd_value] * 3 + [number] * 3
KINDS += [odd_key] * 2 + [without, callbacks, devices, section, more, alias] * 2 + [text] * 2


def mutations(count, seed=0):
    """So many mutations of all wings' recipes, always the same of a seed."""
    draw = random.Random(seed)
    known = {name: small(name) for name in SMALL}
    for index in range(count):
        name = list(SMALL)[index % len(SMALL)]
        mutation = KINDS[draw.randrange(len(KINDS))](copy.deepcopy(known[name]), draw)
        mutation.name = f"{name}: {mutation.name}"
        yield mutation


def start(mutation):
    """A process that fits a mutated recipe in an empty folder."""
    return Fork(_fit, mutation.text, mutation.options)


def _fit(text, options):
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("sent.yaml").write_text(text, encoding="utf-8")
        return main(["fit", "--config", "sent.yaml", *options])


def fault(mutation, process):
    """What is wrong with how a mutation ended; empty if nothing is."""
    status = process.wait(SECONDS)
    output, errors = process.printed
    if status == -9:
        return "hangs"
    if "Traceback" in output + errors:
        return "traceback: " + errors.strip().splitlines()[-1][:200]
    if status == 0:
        return "accepted" if mutation.wrong else ""
    if status != 2:
        return f"status {status}"
    messages = [line for line in errors.splitlines() if line.startswith("pl-losses: ")]
    after = errors[errors.index(messages[0]) :].splitlines() if messages else []
    return "" if messages and len(after) <= 4 and len(errors) < 6000 else f"unclear: {errors[-300:]}"
