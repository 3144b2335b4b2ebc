"""Which room may import which: read from the sources, lazy and typing imports included."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import pl_losses

ROOT = Path(pl_losses.__file__).parent
# A room to those that it may import, beside itself; a paper's are told by PAPER.
ROOMS = {
    "recipes": set(),
    "core": {"recipes"},
    "strategies": {"core"},
    "data": {"core"},
    "monitoring": {"core", "recipes"},
    "dashboards": {"core", "recipes", "monitoring"},
    # The command line registers what the face names.
    "cli": {"core", "recipes", "strategies", "data", "monitoring", "dashboards", "the face"},
}
PAPER = {"core", "strategies", "data", "monitoring"}
SAME_PAPER = {"gtn": {"lenet"}}
# Engines know nothing of Lightning, nor of what is around them; experiments and monitors may be left out.
ENGINES = ("papers.dropout.sampling", "papers.gtn.lattices")


@cache
def modules():
    """Module or package to what it imports, by names without ``pl_losses``, which itself is "the face"."""
    files = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "_recipes" not in parts:
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "the face"] = path
    found = {}
    for name, path in files.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named = [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path} imports by dots"
                named = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "kernels")):
                named = [one.value for one in node.args if isinstance(one, ast.Constant)]
            else:
                continue
            for one in named:
                if one.partition(".")[0] in ("lightning", "pytorch_lightning"):
                    found[name].add("lightning")
                short = "the face" if one == "pl_losses" else one.removeprefix("pl_losses.")
                found[name] |= {short} & files.keys() - {name}
    return found


def reached(name):
    """All that a module imports, and what these import."""
    found, rest = set(), [name]
    while rest:
        new = modules().get(rest.pop(), set()) - found
        found |= new
        rest += new
    return found


def room(name):
    first, *rest = name.split(".")
    return rest[0] if first == "papers" and rest else first


def test_arrows_run_one_way():
    wrong = []
    for name, imported in modules().items():
        own = room(name)
        faces = ("losses", "callbacks", "__main__", "the face", "papers")
        allowed = ROOMS.get(own, PAPER | SAME_PAPER.get(own, set())) | {own, "lightning"}
        wrong += [f"{name} -> {one}" for one in imported if name not in faces and room(one) not in allowed]
    assert not wrong


def test_engines_stand_alone():
    wrong = []
    for name, imported in modules().items():
        for engine in ENGINES:
            if name.startswith(engine):
                wrong += [f"{name} -> {one}" for one in imported if not one.startswith((engine, "core"))]
                wrong += [f"{name} reaches lightning"] if "lightning" in reached(name) else []
    assert not wrong


def test_experiments_are_not_read_by_what_they_try():
    wrong = []
    for name, imported in modules().items():
        for inner in ("papers.dropout.table1", "papers.adam.fig4"):
            outer = inner.rpartition(".")[0]
            if name.startswith(outer) and not name.startswith(inner):
                wrong += [f"{name} -> {one}" for one in imported if one.startswith(inner)]
    assert not wrong


def test_there_is_no_circle():
    # Packages are faces: they name what is in them.
    packages = {name.rpartition(".")[0] for name in modules()} | {"the face"}
    graph = {name: imported - packages for name, imported in modules().items() if name not in packages}
    index, low, stack, circles = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for one in graph[name] & graph.keys():
            if one not in index:
                visit(one)
            if one in stack:
                low[name] = min(low[name], low[one])
        if low[name] == index[name]:
            circle = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            circles.extend([circle] if len(circle) > 1 else [])

    for name in graph:
        if name not in index:
            visit(name)
    assert not circles


@pytest.mark.parametrize("engine", ENGINES)
def test_names_in_an_engines_readme_exist(engine):
    folder = ROOT / engine.replace(".", "/")
    tests = Path(__file__).parents[1]
    code = [*folder.glob("*.py"), *ROOT.glob("core/**/*.py"), *tests.rglob("*.py")]
    known = set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in code)))
    text = (folder / "README.md").read_text(encoding="utf-8")
    for quoted in re.findall(r"`([^`\n]+)`", text):
        if "/" in quoted and quoted.endswith(".py"):
            assert (tests.parent / quoted).exists(), quoted
        elif quoted.endswith(".py"):
            places = [folder / quoted, tests / folder.relative_to(ROOT) / quoted]
            assert any(place.exists() for place in places), quoted
        elif "..." in quoted:  # A part of a test's name.
            assert any(quoted.strip(".") in name for name in known), quoted
        else:
            assert [name for name in re.findall(r"[A-Za-z_]\w+", quoted) if name not in known] == [], quoted
    calls = "\n".join(re.findall(r"```(.*?)```", text, flags=re.DOTALL))
    assert [name for name in re.findall(r"\b_[A-Za-z]\w+", calls) if name not in known] == []


def test_tests_lie_where_what_they_test_does():
    tests = Path(__file__).parents[1]
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    apart = {"distributed", "recipes"}  # Of two ranks, and of every recipe.
    assert [one for one in folders if str(one) not in apart and not (ROOT / one).is_dir()] == []


def test_a_wrong_arrow_is_seen():
    """The test itself: papers import others, and rooms above them, nowhere else."""
    arrows = defaultdict(set)
    for name, imported in modules().items():
        arrows[room(name)] |= {room(one) for one in imported}
    assert arrows["gtn"] >= {"core", "lenet"}
    assert arrows["cli"] >= {"core", "dashboards", "monitoring"}
    assert "lightning" in arrows["core"]
