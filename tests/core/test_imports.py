"""Which room may import which: read from the sources, lazy and typing imports included."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

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
    "cli": {"core", "recipes", "strategies", "data", "monitoring", "dashboards"},
}
PAPER = {"core", "strategies", "data", "monitoring"}
SAME_PAPER = {"gtn": {"lenet"}}
# Engines know nothing of Lightning, nor of what is around them; experiments and monitors may be left out.
ENGINES = ("papers.dropout.sampling", "papers.gtn.lattices")


@cache
def modules():
    """Module to those that it imports, by names without ``pl_losses``; the faces of packages are left out."""
    files = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__init__" and "_recipes" not in parts:
            files[".".join(parts)] = path
    found = {}
    for name, path in files.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named = [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path} imports by dots"
                named = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
            else:
                continue
            for one in named:
                if one == "lightning" or one.startswith("lightning."):
                    found[name].add("lightning")
                found[name] |= {one.removeprefix("pl_losses.")} & files.keys()
    return found


def room(name):
    first, *rest = name.split(".")
    return rest[0] if first == "papers" else first


def test_arrows_run_one_way():
    wrong = []
    for name, imported in modules().items():
        own = room(name)
        faces = ("losses", "callbacks", "__main__")
        allowed = ROOMS.get(own, PAPER | SAME_PAPER.get(own, set())) | {own, "lightning"}
        wrong += [f"{name} -> {one}" for one in imported if name not in faces and room(one) not in allowed]
    assert not wrong


def test_engines_stand_alone():
    wrong = []
    for name, imported in modules().items():
        for engine in ENGINES:
            if name.startswith(engine):
                wrong += [f"{name} -> {one}" for one in imported if not one.startswith((engine, "core"))]
    assert not wrong


def test_there_is_no_circle():
    graph = modules()
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


def test_a_wrong_arrow_is_seen():
    """The test itself: papers import others, and rooms above them, nowhere else."""
    arrows = defaultdict(set)
    for name, imported in modules().items():
        arrows[room(name)] |= {room(one) for one in imported}
    assert arrows["gtn"] >= {"core", "lenet"}
    assert arrows["cli"] >= {"core", "dashboards", "monitoring"}
    assert "lightning" in arrows["core"]
