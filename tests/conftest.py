"""What the tests share: where the real data lie, and a record of which data were used."""

import os
import sys
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


# Imported by name; a second copy would make its classes' short names ambiguous.
collect_ignore = ["cli_modules.py"]

# One thread: a rank that is forked after OpenMP has started its threads waits for them forever.
for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ[f"{library}_NUM_THREADS"] = "1"


def pytest_configure(config):
    if "PL_LOSSES_DATA" not in os.environ and SHARED.is_dir():
        os.environ["PL_LOSSES_DATA"] = str(SHARED)
    os.environ.setdefault("WANDB_MODE", "offline")


def pytest_report_header():
    return f"data: {os.environ.get('PL_LOSSES_DATA', 'packaged sets only (PL_LOSSES_DATA is not set)')}"


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
        pytest.skip("no MNIST files: set PL_LOSSES_DATA to the folder that holds them")
    return os.environ.get("PL_LOSSES_DATA")


@pytest.fixture
def uci_root():
    """The folder with the UCI sets; skips where there are none."""
    from pl_losses.data.uci import SETS, find

    if not all(find(name) for name in SETS):
        pytest.skip("no UCI sets: set PL_LOSSES_DATA to the folder that holds them")
    return os.environ.get("PL_LOSSES_DATA")
