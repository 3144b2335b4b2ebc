"""The loggers of a run: their defaults, and the folders that they write to."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pl_losses.cli.arguments import Flags
from pl_losses.cli.checks import WORDS
from pl_losses.core.files import written_whole
from pl_losses.core.kinds import is_csv, is_wandb
from pl_losses.core.run_folders import LOGGERS, RUNS
from pl_losses.recipes import Config, UsageError, merge

RESERVED = ":;,#?/'"  # W&B takes none of these in an id.
DEFAULTS: dict[str, Config] = {name: {"save_dir": RUNS, "name": "pl_losses"} for name in LOGGERS}
DEFAULTS["WandbLogger"] = {"project": "pl_losses", "save_dir": RUNS, "offline": True}
# Values of WANDB_MODE, and whether nothing is sent before `wandb sync`.
MODES = {"online": False, "run": False, "shared": False, "disabled": False, "offline": True, "dryrun": True}


def fill_logger(config: Config, effective: Config) -> None:
    """Fill in what the logger needs and the config leaves open: by default W&B, offline.

    Args:
        config: The merged config, which is changed.
        effective: The same with the classes that options name, as options may name another logger.
    """
    trainer = config["trainer"] = config.get("trainer") or {}  # A section may be empty.
    named = (effective.get("trainer") or {}).get("logger", trainer.get("logger"))
    if named is None:
        named = "WandbLogger"
    if isinstance(named, list):
        trainer["logger"] = [filled(one) for one in named]
    else:
        trainer["logger"] = filled(named)


def filled(logger: Any) -> Any:
    """Merge a logger's config over the suite's defaults for its class."""
    logger = {"class_path": logger} if isinstance(logger, str) else logger
    name = str(logger.get("class_path")).rpartition(".")[2] if isinstance(logger, dict) else ""
    if name not in DEFAULTS:
        return logger
    path = logger["class_path"] if "." in logger["class_path"] else f"lightning.pytorch.loggers.{name}"
    arguments = dict(DEFAULTS[name])
    if name == "WandbLogger" and (project := os.environ.get("WANDB_PROJECT")):
        arguments["project"] = project
    if name == "WandbLogger" and (mode := os.environ.get("WANDB_MODE")):
        if mode not in MODES:
            raise UsageError(
                f"Expected the environment variable WANDB_MODE to be one of {', '.join(MODES)} but got"
                f" {mode!r}"
            )
        arguments["offline"] = MODES[mode]
    defaults = {"class_path": path, "init_args": arguments}
    return merge(defaults, {**logger, "class_path": path})


def go_on(trainer: Config, versions: Iterable[str]) -> None:
    """Have the loggers of a trainer section go on with the run that had these versions."""
    named = trainer.get("logger")
    for logger, version in zip(named if isinstance(named, list) else [named], versions, strict=False):
        name = str(logger.get("class_path")).rpartition(".")[2] if isinstance(logger, dict) else ""
        if name in DEFAULTS and Path(version).name == version:
            logger["init_args"] |= {"id" if name == "WandbLogger" else "version": version}


def keep_rows(logger: Any) -> None:
    """Have a CSVLogger add to the table of the run that goes on: Lightning would begin it anew."""
    file = Path(logger.log_dir, "metrics.csv") if is_csv(logger) else None
    if file is not None and file.is_file():
        rows = file.read_bytes()
        with warnings.catch_warnings(action="ignore"):
            writer = logger.experiment
        with written_whole(file) as stream:
            stream.write(rows)
        writer.metrics_keys = rows.decode().partition("\n")[0].strip().split(",")


def loggers(trainer: Config) -> list[Config]:
    """Return the loggers' configs in a resolved trainer section."""
    value = trainer.get("logger")
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]


def save_dirs(trainer: Config) -> list[str]:
    """Return the folders that a run is going to write to."""
    folders = [one.get("init_args", {}).get("save_dir") for one in loggers(trainer)] or [None]
    folders = [folder or trainer.get("default_root_dir") or "." for folder in folders]
    return [folder for folder in folders if "://" not in folder]


def check_writable(folder: str) -> None:
    """Refuse a folder that cannot be made or written to."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The run's folder `{folder}` cannot be made ({error.strerror}); set `save_dir`"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"The run's folder `{folder}` cannot be written to; set `save_dir` of the logger")


def check_id(logger: Config) -> None:
    """Refuse a run's id that W&B does not take, and a project without a name, for which Lightning has one."""
    given = logger.get("init_args", {})
    if given.get("project") == "":
        raise UsageError("Expected `trainer.logger.project` to be a name but got ''")
    for name in ("id", "version"):
        value = given.get(name)
        if isinstance(value, str) and (value != value.strip() or not value or set(value) & set(RESERVED)):
            wanted = f"to have none of {RESERVED} and no spaces around it"
            raise UsageError(f"Expected `trainer.logger.{name}` {wanted} but got {value!r}")


def check_log_model(logger: Config) -> None:
    """Refuse W&B's own way to log checkpoints in an offline run, and name the one that works there."""
    given = logger.get("init_args", {})
    if given.get("log_model") and given.get("offline") and not goes_online(logger):
        raise UsageError(
            "Expected `trainer.logger.offline` false with `log_model`, which uploads checkpoints at once;"
            " an offline run keeps them for `wandb sync` with `--trainer.callbacks+=ArtifactRecord`"
        )


def quiet_wandb(logger: Config) -> None:
    """Keep wandb from chatting about an offline run."""
    if logger.get("init_args", {}).get("offline") and not goes_online(logger):
        os.environ.setdefault("WANDB_SILENT", "true")


def goes_online(logger: Config) -> bool:
    """Return whether a W&B run goes to the server at once, as far as the config says."""
    given = logger.get("init_args", {})
    mode = given.get("mode")
    return mode in ("online", "shared") or (mode is None and not given.get("offline"))


def online_asked(effective: Config, flags: Flags) -> bool:
    """Return whether a run goes to W&B at once, as far as config and options say before torch is loaded.

    Args:
        effective: The merged config with the classes that options name.
        flags: The options.
    """
    trainer = dict(effective.get("trainer") or {})
    given = {name.rpartition(".")[2]: WORDS.get(str(value).lower(), value) for name, value in flags}
    if given.get("fast_dev_run", trainer.get("fast_dev_run")):
        return False
    fill_logger({"trainer": trainer}, effective)
    own = [one for one in loggers(trainer) if str(one.get("class_path")).endswith("WandbLogger")]
    words = {key: given[key] for key in ("offline", "mode") if key in given}
    return any(goes_online({"init_args": one.get("init_args", {}) | words}) for one in own)


def prepare_wandb(loggers: Any, about: Callable[[str | None], Config]) -> None:
    """Say what the run is, where no option has; and nothing of ``anonymous``, of which wandb only warns.

    Args:
        loggers: A logger, a list of them, or something else.
        about: Returns arguments of ``wandb.init`` for a run with this id.
    """
    from pl_losses.core.compat import of_lightning  # Imported here: it loads torch.

    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if is_wandb(logger):
            given = of_lightning.wandb_arguments(logger)
            # The parser passes None for Lightning's "allow": a run would overwrite the one of the same id.
            said = about(given.get("id") or os.environ.get("WANDB_RUN_ID"))
            said |= {} if "WANDB_RESUME" in os.environ else {"resume": "allow"}
            if of_lightning.is_offline(logger):
                # Lightning sets a variable, which wandb does not read again after another run of the process.
                said |= {"mode": "offline"}
            given |= {key: value for key, value in said.items() if not given.get(key)}
            if given.get("anonymous") is None:
                given.pop("anonymous", None)
