"""A table or figure that takes many trainings: its folder keeps what is done, and its W&B run shows it."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pl_losses.core.compat import of_wandb
from pl_losses.core.files import damage, save_sealed, write_table, written_whole
from pl_losses.core.results import Row, versions, write_results
from pl_losses.core.wandb_run import about, finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from tqdm import tqdm  # type: ignore[import-untyped]

Recording = Literal["offline", "online", "disabled"]


class Experiment:
    """The folder of an experiment, from which the same command resumes after an interruption.

    ``state.pt`` keeps the results so far, written whole and with a checksum. Tables and pictures are made
    from them and never read. A damaged state is set aside, and its results are computed again.

    Args:
        name: What ``reproduce`` calls it.
        folder: Made when there is something to keep.
        arguments: What the results depend on, plain data by name.

    Attributes:
        STATE: Name of the file that keeps them.
        also: Further arguments, which choose the rows that are shown, such as the number of seeds.
        results: Plain data, one entry for each part that is done.
        inputs: Checksums of what the results were made from, see :meth:`same_input`.
        made: Versions of packages that results were made with, and the last day of each.
        unfinished: Plain data and tensors of the part that was interrupted, if they were saved.

    Raises:
        ValueError: If nothing can be written to the folder, or it has the results of another experiment or
            of other arguments, or tables without results.
    """

    STATE: ClassVar[str] = "state.pt"

    def __init__(self, name: str, folder: str | Path, arguments: Mapping[str, object]) -> None:
        self.name, self.folder, self.arguments = name, Path(folder), dict(arguments)
        self.also: dict[str, Any] = {}
        refuse_unwritable(self.folder)
        self.results: list[Any] = []
        self.inputs: dict[str, str] = {}
        self.made: dict[str, str] = {}
        self.unfinished: Any = None
        file = self.folder / self.STATE
        # A figure of several parts keeps each in a folder of its own.
        states = [*self.folder.glob("state.*"), *self.folder.glob("seed*/state.*")]
        for other in filter(None, map(name_in, states)):
            if other != name:
                raise ValueError(
                    f"Expected `folder` {self.folder} to have results of {name} but it has those of {other}:"
                    " choose another `folder`, or delete that one"
                )
        if not file.is_file():
            if others := sorted(path.name for path in self.folder.glob("*.csv")):
                raise ValueError(
                    f"Expected `folder` {folder} to have a {self.STATE} beside its {others[0]}: choose"
                    " another `folder`, or delete that one"
                )
            return
        known = self._read(file)
        if known["arguments"].keys() != self.arguments.keys():
            raise ValueError(
                f"Expected `folder` {self.folder} to have results of {name} but it has those of another"
                " version: choose another `folder`, or delete that one"
            )
        for key, now in self.arguments.items():
            if (before := known["arguments"][key]) != now:
                raise ValueError(self.differs(key, before, now))
        self.results, self.unfinished = known["results"], known["unfinished"]
        self.inputs, self.made = known["inputs"], known["made"]

    def same_input(self, what: str, checksum: str) -> None:
        """Refuse an input that has changed since the results in the folder, and note a new one.

        Call it before an input is used, and for the inputs of results that are there.

        Args:
            what: The input in words, such as a data set.
            checksum: Of its content.

        Raises:
            ValueError: If it is another one than that of the results.
        """
        if self.inputs.setdefault(what, checksum) != checksum:
            raise ValueError(
                f"Expected {what} to be as for the results in {self.folder} but got others: choose another"
                " `folder`, or delete that one"
            )

    def differs(self, name: str, before: Any, now: Any) -> str:
        """Say that an argument is another one than that of the results in the folder."""
        return (
            f"Expected `{name}` to be {before}, as for the results in {self.folder}, but got {now}: choose"
            " another `folder`, or delete that one"
        )

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            known = self.load_state(file)
            if {"arguments", "results", "unfinished"} <= known.keys():
                return {"name": self.name, "inputs": {}, "made": {}, **known}
            fault = "it is of something else"
        except Exception as error:  # torch raises nearly anything for other files.
            fault = (str(error).splitlines() or [type(error).__name__])[0]
        number = 1 + len(list(self.folder.glob(f"damaged-*{file.suffix}")))
        aside = file.with_name(f"damaged-{number}{file.suffix}")
        file.rename(aside)
        print(
            f"{file} is damaged ({fault}): it is now {aside}, and its results are made again", file=sys.stderr
        )
        self.save()
        return self.state()

    def save(self, unfinished: object = None) -> None:
        """Keep the results, and the state of a part that is not done.

        Raises:
            OSError: If the file cannot be written; an earlier one stays as it was.
        """
        self.made[versions()] = date.today().isoformat()
        self.save_state(self.folder / self.STATE, self.state() | {"unfinished": unfinished})

    def state(self) -> dict[str, Any]:
        """Return what is kept."""
        kept = {"name": self.name, "arguments": self.arguments, "inputs": self.inputs, "made": self.made}
        return kept | {"results": self.results, "unfinished": None}

    @staticmethod
    def load_state(file: Path) -> Any:
        """Read the state; any exception means that it is damaged."""
        import torch  # Imported here: sweeps and dashboards do without.

        if fault := damage(file):
            raise ValueError(fault)
        return torch.load(file, map_location="cpu", weights_only=True)

    def save_state(self, file: Path, state: Any) -> None:
        """Write the state."""
        save_sealed(file, state)

    def add(self, result: object) -> None:
        """Keep the result of a part that is done."""
        self.results.append(result)
        self.save()

    def table(self, name: str, rows: Sequence[Mapping[str, object]]) -> Path:
        """Write a CSV file; rows have the same keys."""
        return write_table(self.folder / name, rows)

    def results_table(self, rows: Sequence[Row]) -> Path:
        """Write ``results.csv``, from which the page of results is made."""
        return write_results(self.folder, self.name, self.arguments | self.also, rows, dates=self.made)

    def picture(self, name: str, figure: Figure, dpi: int = 120) -> Path:
        """Write a PNG file."""
        with written_whole(self.folder / name) as file:
            figure.savefig(file, dpi=dpi)
        return self.folder / name

    def record(
        self,
        mode: Recording,
        *,
        tables: Mapping[str, Sequence[Mapping[str, object]]],
        pictures: Mapping[str, Figure],
        summary: Mapping[str, object],
        config: Mapping[str, object] | None = None,
    ) -> None:
        """Give W&B the experiment as a run of its own.

        Args:
            mode: Whether it is kept in the folder, uploaded, or not made.
            tables: Rows by key.
            pictures: Figures by key.
            summary: Values by key.
            config: Of the run. Default: the arguments.
        """
        if mode == "disabled":
            return
        import matplotlib.pyplot  # noqa: F401 - wandb takes it for loaded.
        import wandb

        from pl_losses.core.manifests import papers_of, reproduced

        known = reproduced().get(self.name)
        options = about(self.name, self.name, "reproduce", papers_of([known.function] if known else []))
        options["settings"].silent = mode == "offline"
        run = wandb.init(
            project="pl_losses",
            dir=self.folder,
            mode=mode,
            config=dict(self.arguments if config is None else config),
            reinit="create_new",
            **options,
        )
        shown: dict[str, object] = {key: wandb.Image(figure) for key, figure in pictures.items()}
        for key, rows in tables.items():
            shown[key] = wandb.Table(list(rows[0]), [list(row.values()) for row in rows])
        with kept_by(run):
            run.log(shown)
        run.summary.update(dict(summary))
        finish(run)


class PlainExperiment(Experiment):
    """An experiment whose results are plain data: JSON, for which torch is not imported."""

    STATE = "state.json"

    @staticmethod
    def load_state(file: Path) -> Any:
        """Read the state."""
        return json.loads(file.read_bytes())

    def save_state(self, file: Path, state: Any) -> None:
        """Write the state."""
        with written_whole(file) as stream:
            stream.write((json.dumps(state, indent=1) + "\n").encode())


def name_in(file: Path) -> str:
    """Return the name of the experiment that a state is of; "" if it does not tell."""
    kind = PlainExperiment if file.name == PlainExperiment.STATE else Experiment
    try:
        return str(kind.load_state(file)["name"])
    except Exception:  # It is damaged, or no state.
        return ""


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder in which no file can be made, or that cannot be made, before any training.

    Raises:
        ValueError: With the reason.
    """
    there = next(part for part in (folder, *folder.absolute().parents) if os.path.lexists(part))
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"Expected to write to `folder` {folder} but got: {reason}") from None


def names_of(
    argument: str, given: str | Sequence[str], known: Sequence[str], *, others: bool = False
) -> list[str]:
    """Read names from text between commas or from a list, each once; "all" are the known ones.

    Args:
        argument: Which one they are given by.
        given: The names.
        known: Names to choose from.
        others: Whether the caller knows further ones.

    Raises:
        ValueError: If there is no name, or one that is not known.

    >>> names_of("models", "b, a", ["a", "b", "c"])
    ['b', 'a']
    """
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
    if names == ["all"]:
        return list(known)
    for name in names or [""]:
        if name not in known and not (others and name):
            raise ValueError(f'Expected `{argument}` to be of {", ".join(known)}, or "all", but got {name!r}')
    return list(dict.fromkeys(names))


def progress_bar(total: float) -> tqdm:
    """Return a bar for work of this size, with the time that it took and will take."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        bar_format="{percentage:3.0f} %|{bar}| {desc}, {elapsed} spent, about {remaining} left",
        mininterval=0.5 if sys.stderr.isatty() else 30,
        smoothing=0.02,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's messages about many short runs within this context."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def kept_by(run: Any) -> Iterator[None]:
    """Have wandb keep its copy of a table or an artifact, for ``wandb sync``, with the run.

    By default it is kept in the home directory, and lost where a server has gone away.

    Args:
        run: Of wandb.
    """
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = before or str(Path(run.dir).parent.resolve())
    try:
        with of_wandb.handed_over(run):
            yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]
