"""``pl-losses fit`` and its like: LightningCLI with recipes, short errors and checkpoints to resume from."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.compile import from_compiled
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.rank_zero import rank_zero_only

from pl_losses import strategies as strategies  # Registers their names.
from pl_losses.cli.arguments import check, first_line, split
from pl_losses.cli.checkpoints import (
    CheckpointCheck,
    WholeCheckpointIO,
    check_links,
    compare,
    read_checkpoint,
    sections,
)
from pl_losses.cli.checks import Checker
from pl_losses.cli.errors import hardware, in_a_line, own_place
from pl_losses.cli.loggers import (
    check_id,
    check_log_model,
    check_writable,
    fill_logger,
    go_on,
    goes_online,
    keep_rows,
    loggers,
    prepare_wandb,
    quiet_wandb,
    save_dirs,
)
from pl_losses.cli.parser import Parser, shorten
from pl_losses.cli.predictions import PredictedSamples, of_all_ranks, rows_of, write_predictions
from pl_losses.cli.progress import TimedProgressBar
from pl_losses.cli.ranks import Ranks, join, tells_of_loss
from pl_losses.cli.trusted_objects import check_objects
from pl_losses.core.compat import of_lightning
from pl_losses.core.jobs import by_slurm, jobs
from pl_losses.core.metrics import headline_text
from pl_losses.core.random_state import RandomState
from pl_losses.core.refusals import sign_in
from pl_losses.core.run_folders import RUNS, Run, choose, named_command, recipe_of
from pl_losses.core.schedule_length import ScheduleLength
from pl_losses.core.signatures import OWN, public
from pl_losses.core.trust import DENIED, IMPORTED, always, check_files, class_paths, own_packages, roots_of
from pl_losses.core.wandb_run import finish
from pl_losses.data.module import TensorDataModule
from pl_losses.monitoring.artifacts import ArtifactRecord
from pl_losses.monitoring.charts import log_table
from pl_losses.monitoring.interruption import InterruptionCheckpoint
from pl_losses.monitoring.record import RECORDED, TRAINED_BY, RunRecord, folder_of, run_folder
from pl_losses.recipes import Config, UsageError, dump, merge, resolve_value, visible

PUBLIC_MODULES = (OWN, f"{OWN}.data", f"{OWN}.callbacks")
SHOWN_ANSWERS = 1000  # Rows of predictions that W&B's table gets.


class PLLossesCLI(of_lightning.CLIWithoutCheckpoint):
    """LightningCLI for any model and data, whose runs keep a record and can be resumed.

    Args:
        args: Command and options, without ``--config``.
        config: The merged config of recipes, files and the checkpoint.
        recipes: Names of the recipes and files, for the record.
        saved: The checkpoint's config, to say how the run differs.
        path: The checkpoint.
        own: Packages of the user's own that are trusted.
        roots: Folders out of which no link leads.
        jobs: Those that the command is of, see :class:`~pl_losses.core.run_folders.Run`.
        resumed: The run that goes on itself.
        ranks: The other ranks that a launcher has started.
        closing: Takes what is to be done after the command.
        kwargs: Passed on to ``LightningCLI``.
    """

    def __init__(
        self,
        args: list[str],
        config: Config,
        *,
        recipes: Sequence[str] = (),
        saved: Config | None = None,
        path: str | None = None,
        own: frozenset[str] = frozenset(),
        roots: Sequence[str] = (RUNS,),
        jobs: Sequence[str] = (),
        resumed: Run | None = None,
        ranks: Ranks | None = None,
        closing: contextlib.ExitStack | None = None,
        **kwargs: Any,
    ) -> None:
        self.merged = config
        self.jobs, self.resumed, self.ranks = jobs, resumed, ranks
        self.closing = closing or contextlib.ExitStack()
        self.roots = roots
        self.own = own
        self.recipes = list(recipes)
        self.saved = saved or {}
        self.check = CheckpointCheck(path, self.saved, print_message)
        self.record: RunRecord | None = None
        strict = {"allow_abbrev": False}
        super().__init__(
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={"default_root_dir": RUNS},
            parser_kwargs={**strict, **{command: dict(strict) for command in self.subcommands()}},
            parser_class=Parser,
            auto_configure_optimizers=False,
            args=args,
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that LightningCLI does not have."""
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=True,
            help="Test with the final weights once the fit is over.",
        )
        parser.add_argument(
            "--compile", type=bool, default=False, help="Compile the model's networks by torch.compile."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the options over the merged config."""
        command, *options = args
        with config_file(self.merged) as path:
            self.config = parser.parse_args([command, f"--config={path}", *options])

    def before_instantiate_classes(self) -> None:
        """Refuse wrong objects, another model's checkpoint, and folders that cannot be written to."""
        check_objects(self.argument("model"), self.own, "model")
        check_objects(self.argument("data"), self.own, "data")
        check_objects(self.argument("trainer"), self.own, "trainer")
        resolved = self.resolved()
        for line in compare(sections(self.saved), resolved):
            print_message(line)
        if self.subcommand != "fit":
            # Irrelevant if no checkpoint is written.
            warnings.filterwarnings("ignore", message="The dirpath has changed")
        for logger in loggers(resolved["trainer"]):
            if "WandbLogger" in logger["class_path"]:
                check_id(logger)
                check_log_model(logger)
                quiet_wandb(logger)
                if goes_online(logger) and not resolved["trainer"].get("fast_dev_run"):
                    rank_zero_only(sign_in)()

    def argument(self, name: str) -> Any:
        """Return an argument of the command, not built yet; ``None`` if the command has none of this name."""
        return self.config[str(self.subcommand)].get(name)

    def resolved(self) -> Config:
        """Return the whole config as plain data, without what concerns a single call."""
        return of_lightning.written_config(self)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; report a value that one of them refuses as a usage error."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            text = shorten(str(error)) + own_place(error, self.own | always())
            raise UsageError(text + hardware(error, self.argument("trainer"))) from error
        if self.argument("trainer")["sync_batchnorm"] and self.trainer.strategy.root_device.type == "cpu":
            raise UsageError("Expected GPUs with `trainer.sync_batchnorm` but got a CPU: leave it out")
        if self.argument("compile"):
            compiled: Any = torch.compile(self.model)
            self.model = from_compiled(compiled)
        if self.ranks is not None:
            self.ranks.agree(path=self.check.path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks that every run has."""
        self.record = RunRecord(
            self.resolved(),
            self.recipes,
            own=self.own,
            origin=self.check.path,
            command=str(self.subcommand),
            trained_by=self.saved.get(TRAINED_BY),
            step=self.saved.get("global_step", 0),
            jobs=self.jobs,
            resumed=self.resumed,
        )
        self.predicted = PredictedSamples()
        section = self.config_init[str(self.subcommand)]["trainer"]
        prepare_wandb(section["logger"], self.record.about)
        given = section["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        always: list[Callback] = [self.check, self.record]
        silent = section["barebones"] or section["enable_progress_bar"] is False
        if not silent and not any(isinstance(one, ProgressBar) for one in given):
            always.append(TimedProgressBar())
        interruption = InterruptionCheckpoint(self.record, print_message)
        if self.subcommand == "fit":
            always += [interruption, RandomState(), ScheduleLength()]
        if self.subcommand == "predict":
            always += [self.predicted]
        # After the callback that saves a checkpoint at an interruption, which is to be recorded.
        callbacks = sorted([*given, *always], key=lambda one: isinstance(one, ArtifactRecord))
        root = str(section["default_root_dir"])
        if by_slurm() and any(Path(root).glob("hpc_ckpt_*.ckpt")):
            # Lightning would load it into any model: it is of some other job.
            section["default_root_dir"] = os.path.join(root, "slurm")
        trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        if self.subcommand == "fit":
            interruption.take_over(trainer)
            self.closing.callback(interruption.close)
        else:
            of_lightning.leave_signals(trainer)
        io: Any = trainer.strategy.checkpoint_io
        while (inner := getattr(io, "checkpoint_io", None)) is not None:
            io = inner  # A plugin hands on to it, and lets it not be replaced.
        if type(io) is TorchCheckpointIO:
            io.__class__ = WholeCheckpointIO
            vars(io).update(roots=self.roots)
        if not getattr(trainer, "fast_dev_run", False):
            self.check_folders(trainer)
        return trainer

    @rank_zero_only
    def check_folders(self, trainer: Trainer) -> None:
        """Refuse folders that cannot be written to, and links out of that of the runs; for rank zero."""
        if self.subcommand in RECORDED:
            for place in save_dirs(self.resolved()["trainer"]):
                check_writable(place)
        folder = run_folder(trainer)
        places = [folder / "checkpoints"]
        for logger in trainer.loggers:
            places += [folder_of(logger, trainer), Path(logger.save_dir or "", "wandb")]
            places += folder_of(logger, trainer).rglob("*")
        check_links(places, self.roots)
        if self.resumed is not None:
            list(map(keep_rows, trainer.loggers))

    def after_fit(self) -> None:
        """Test with the final weights, and say where the run is."""
        asked = self.argument("test_after_fit") and can_test(self.model, self.datamodule)
        seen = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if 0 not in (self.trainer.max_epochs, self.trainer.max_steps):
            self._expect_batches("train", seen)
        if asked and not seen:
            print_message("Not tested: the fit saw no batch, so the weights are untrained.")
        elif asked and not has_test_split(self.datamodule):
            print_message("Not tested: the data have no samples for it.")
        elif asked:
            self.trainer.test(self.model, datamodule=self.datamodule)
        self.after_test()

    def after_test(self) -> None:
        """Print the error and where the run is."""
        if self.subcommand == "validate":
            self._expect_batches("val", sum(self.trainer.num_val_batches))
        elif self.subcommand == "test":
            self._expect_batches("test", sum(self.trainer.num_test_batches))
        testable = can_test(self.model, self.datamodule) and has_test_split(self.datamodule)
        if self.record and self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            text = result_line(self.model, self.trainer.logged_metrics)
            print(visible("\n".join(filter(None, [text, self.record.summary(self.trainer, testable)]))))

    after_validate = after_test

    def _expect_batches(self, stage: str, count: float) -> None:
        if count or not getattr(self.trainer, f"limit_{stage}_batches"):
            return
        owner = type(self.datamodule or self.model).__name__
        raise UsageError(
            f"Expected `{stage}_dataloader` of {owner} to have batches but got none: its data are empty, or"
            " fewer than a batch where it drops the last one"
        )

    def predict(self, **kwargs: Any) -> None:
        """Write the predictions into the run's folder, and say where."""
        batches = self.trainer.predict(**kwargs)
        self._expect_batches("predict", sum(self.trainer.num_predict_batches))
        if getattr(self.trainer, "fast_dev_run", False) or self.record is None or self.record.folder is None:
            return
        if batches is None:
            print_message(
                "No answers are written: `return_predictions` is false, or the strategy cannot return them."
            )
            return
        answers = of_all_ranks(batches, self.trainer, self.predicted.seen)
        if self.trainer.is_global_zero:
            names = getattr(self.datamodule, "predict_names", lambda: None)()
            files = write_predictions(answers, self.record.folder, names)
            if rows := rows_of(answers, names)[:SHOWN_ANSWERS]:
                log_table(self.trainer, "predict/answers", rows)
            answers_in = "Answers: " + ", ".join(map(str, files))
            print(visible("\n".join([answers_in, self.record.summary(self.trainer)])))


def result_line(model: LightningModule, logged: Mapping[str, Any]) -> str:
    """Describe in the module's words what a test found, else a validation; "" if there was none.

    >>> result_line(LightningModule(), {"val/loss": 101.34567, "epoch": 3})
    'Validation loss: 101.3'
    """
    summary = getattr(model, "summary", partial(headline_text, names=["error", "loss"]))
    for stage, title in (("test", "Test"), ("val", "Validation")):
        own = {key.removeprefix(f"{stage}/"): float(logged[key]) for key in logged if key.startswith(stage)}
        if text := summary(own):
            return f"{title} {text}"
    return ""


def run(args: list[str] | None = None) -> int:
    """Run ``fit``, ``validate``, ``test`` or ``predict``, and return the exit status.

    Args:
        args: The command and its options; ``sys.argv`` if not given.

    Raises:
        UsageError: If the arguments do not fit, on this rank or another one.
    """
    ranks = join()
    with contextlib.ExitStack() as closing:
        try:
            return run_one(sys.argv[1:] if args is None else args, ranks, closing)
        except Exception as error:
            shared = share_error(error, ranks)
            if shared is not error:
                raise shared from error
            raise


def share_error(error: Exception, ranks: Ranks | None) -> BaseException:
    """Tell the other ranks of an error, or hear which of them is gone; return what this one ends with."""
    lost = tells_of_loss(error)
    if ranks is None:
        return UsageError("Another process of this command is gone") if lost else error
    refused = isinstance(error, UsageError)
    text = str(error) if refused else f"{type(error).__name__}: {first_line(error)}"
    if not ranks.ready:
        try:
            ranks.agree(text)
        except (UsageError, SystemExit) as answer:
            return answer if refused else error
    if lost:
        return ranks.lost()
    ranks.end(text)
    return error


def run_one(args: list[str], ranks: Ranks | None, closing: contextlib.ExitStack) -> int:
    """Run a command on one of the ranks that a launcher has started."""
    known_jobs = jobs() if ranks is None else ranks.jobs()  # First: the ranks wait for one another.
    command, *options = args
    flags = split(options)
    effective = check(command, flags)
    checkpoint = choose(command, flags, effective, known_jobs)
    if checkpoint.message:
        print_message(checkpoint.message)
    recipes = [value for name, value in flags if name == "config" and value]
    config: Config = {}
    for recipe in recipes:
        config = merge(config, resolve_value(recipe))
    given = {**config, **dict(flags)}
    saved = read_checkpoint(checkpoint.path, str(given.get("weights_only")).lower() != "false")
    # A fit without a named recipe resumes the same fit.
    known = sections(saved, command == "fit" and recipe_of(recipes) is None)
    own = own_packages(flags)

    def check_known(config: Config) -> None:
        Checker(command, "the checkpoint", own=own).config(config)
        check_files(config, flags, " in the checkpoint")

    check_known(known)
    if command != "fit":
        known["trainer"] = {"callbacks": callbacks_of(saved, check_known)}
        if os.path.isdir(str(checkpoint.path)):
            known["trainer"] |= strategy_of(saved, check_known)  # No other one may read shards.
    config = merge(known, {key: value for key, value in config.items() if key != "ckpt_path"})
    for section in ("model", "data"):
        if isinstance(config.get(section), dict):
            # An option may name the class of the arguments in a file.
            named = effective.get(section)
            named = named.get("class_path") if isinstance(named, dict) else named
            config[section] = {**({"class_path": named} if named else {}), **config[section]}
    fill_logger(config, effective)
    if checkpoint.run is not None:
        go_on(config["trainer"], checkpoint.run.versions)
    config = spelt_out(config)
    kept = [flag for flag in flags if flag[0] not in ("config", "ckpt_path", "trust")]
    kept += [("ckpt_path", checkpoint.path)] if checkpoint.path else []
    rest = [f"--{name}" if value is None else f"--{name}={spelt_out(value)}" for name, value in kept]
    prepare_imports(class_paths([config, effective, [value for _, value in flags]]), own)
    if "://" in str(checkpoint.path) and given.get("weights_only") is None:
        # By default, Lightning unpickles what comes over the network.
        config["weights_only"] = True
    status = 1
    try:
        PLLossesCLI(
            [command, *rest],
            config,
            recipes=recipes,
            saved=saved,
            path=checkpoint.path,
            own=own,
            roots=roots_of(flags),
            jobs=[named_command(job, command, flags) for job in known_jobs],
            resumed=checkpoint.run,
            ranks=ranks,
            closing=closing,
        )
        status = 0
    except (
        *(OSError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError, ImportError),
        *(LookupError, AttributeError, MisconfigurationException),
    ) as error:
        raise in_a_line(error, checkpoint.path) from error
    except SystemExit as leaving:
        status = status_of(leaving)
    finally:
        finish_wandb(status)
    return status


def callbacks_of(saved: Config, check: Callable[[Config], None]) -> list[Config]:
    """Return the callbacks of a checkpoint's run, without those that save checkpoints, for another command.

    Args:
        saved: The checkpoint.
        check: Refuses a config; a callback that it refuses is left out, and told.
    """
    found = []
    for one in (sections(saved, whole=True).get("trainer") or {}).get("callbacks") or []:
        name = str(one.get("class_path") if isinstance(one, dict) else one)
        if name.endswith("Checkpoint"):
            continue
        try:
            check({"trainer": {"callbacks": [one]}})
        except UsageError as error:
            print_message(f"Without the run's {name.rpartition('.')[2]}: {error}")
        else:
            found.append(one)
    return found


def strategy_of(saved: Config, check: Callable[[Config], None]) -> Config:
    """Return the strategy of a checkpoint's run, in a section; empty if it had none of its own.

    Args:
        saved: The checkpoint.
        check: Refuses a config.
    """
    trainer = sections(saved, whole=True).get("trainer") or {}
    found = {"strategy": trainer["strategy"]} if isinstance(trainer.get("strategy"), dict) else {}
    check({"trainer": found})
    return found


def spelt_out(value: Any) -> Any:
    """Replace the name of a class that two modules have by Lightning's full path."""
    if isinstance(value, dict):
        return {key: spelt_out(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(spelt_out, value))
    return f"lightning.pytorch.cli.{value}" if value == "ReduceLROnPlateau" else value


def status_of(leaving: SystemExit) -> int:
    """Return the exit status that shells expect; after a signal 128 plus its number."""
    if isinstance(leaving.__context__, KeyboardInterrupt):  # Lightning turns it into a status of 1.
        return 130
    if isinstance(leaving, SIGTERMException) and leaving.code is None:
        return 143
    return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)


def finish_wandb(status: int) -> None:
    """End the W&B run, which another run of the same process would otherwise continue."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        finish(wandb.run, status)


def prepare_imports(wanted: Iterable[str] = (), own: Iterable[str] = ()) -> None:
    """Deny all modules except those that a config may name; register the suite's classes by short names.

    Args:
        wanted: Names in the config and options. Only they are imported, to save time, and so that missing
            requirements of one paper do not affect others.
        own: Packages of the user's own that are trusted.
    """
    set_parsing_settings(
        import_path_denylist=["*", *DENIED],
        import_path_allowlist=[*IMPORTED, *always(), *own],
        # Keep the value of an argument of any type as data.
        instantiate_subclass_spec_in_any=False,
    )
    # Lightning's own warnings: it calls what torch has deprecated, and recommends its other products.
    warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*", category=FutureWarning)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(is_no_tip)
    for module in PUBLIC_MODULES:
        for name in set(public(module)) & set(wanted):
            try:
                getattr(importlib.import_module(module), name)
            except ImportError as error:
                raise UsageError(f"`{name}` of {module} cannot be imported: {first_line(error)}") from None


def is_no_tip(record: logging.LogRecord) -> bool:
    """Return whether a log record is about the run."""
    return "Tip: For seamless cloud" not in record.getMessage()


@contextlib.contextmanager
def config_file(config: Config) -> Iterator[str]:
    """Write a config to a temporary file: the parser takes files more reliably than text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(dump(config), encoding="utf-8")
        yield str(path)


def can_test(model: LightningModule, datamodule: LightningDataModule | None) -> bool:
    """Return whether there is a test step, and data for it."""
    data = datamodule is not None and is_overridden("test_dataloader", datamodule)
    return is_overridden("test_step", model) and (data or is_overridden("test_dataloader", model))


def has_test_split(datamodule: LightningDataModule | None) -> bool:
    """Return whether the suite's data have samples to test on; assume it of any other data."""
    if not isinstance(datamodule, TensorDataModule):
        return True
    datamodule.setup("test")
    return "test" in datamodule.tensors


@rank_zero_only
def print_message(message: str) -> None:
    """Print something other than results for the user."""
    print(visible(message), file=sys.stderr, flush=True)
