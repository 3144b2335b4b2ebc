"""The lowest versions that pyproject.toml allows are those that CI's job for them gets."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]


def test_every_requirement_of_the_tests_has_a_lowest_version():
    required = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    required += [one for extra in EXTRAS.values() for one in extra]
    assert [one for one in required if not re.search(r">=\d", one)] == []


def test_extras_that_are_tested_have_the_bounds_of_users():
    bounds = dict(one.split(">=") for one in PROJECT["dependency-groups"]["dev"])
    tested = [one.split(">=") for extra in EXTRAS.values() for one in extra]
    assert {name: bounds.get(name, bound) for name, bound in tested} == dict(tested)


def test_the_job_for_lowest_versions_installs_all_of_them_at_once():
    jobs = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    job = " ".join(jobs.partition("\n  minimum:")[2].partition("\n  coverage:")[0].split())
    (command,) = re.findall(r"uv pip install [^-]*--no-config.*?--group dev", job)
    assert "--resolution lowest-direct" in command
    assert set(re.search(r"\[(.*?)\]", command)[1].split(",")) == EXTRAS.keys()
