"""The short form of ``python -m benchmarks.faults``: nothing is lost, and nothing runs that should not."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("cli_modules")
import mutations
from processes import Fork

FILE = Path(__file__).parents[1] / "benchmarks/faults.py"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="no benchmarks beside the tests")


@pytest.fixture
def faults():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("faults", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("kind", "trials"), [("disk", 8), ("spoilt", 40), ("mutations", 20), ("hostile", 20), ("interrupt", 2)]
)
def test_nothing_is_lost(faults, folder, kind, trials):
    done, lost = faults.run(kind, trials, seed=1)
    assert (done, lost) == (trials, [])


def test_what_is_lost_is_seen():
    """Nonsense that is accepted, a traceback and a hang are told."""

    def ends(function):
        process = Fork(function)
        process.wait()
        return process

    def wrong():
        raise KeyError("x")

    mutation = mutations.Mutation("x", "a: 1", wrong=True)
    assert mutations.fault(mutation, ends(lambda: 0)) == "accepted"
    assert mutations.fault(mutation, ends(wrong)).startswith("traceback: KeyError")
    assert mutations.fault(mutation, ends(lambda: 3)) == "status 3"
    assert mutations.fault(mutation, ends(lambda: 2)).startswith("unclear")
