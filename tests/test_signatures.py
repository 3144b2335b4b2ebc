"""What is called with more than a few arguments is called by their names."""

import ast
from pathlib import Path

import pl_losses

ROOT = Path(pl_losses.__file__).parent
MOST = 4  # Positions that a reader can still follow; three of what users import.
# Functions whose callers expect an order of others.
EXCEPTIONS = {
    "papers/adam/optimizer": {"Adam": "torch.optim.Adam's order", "AdaMax": "torch.optim.Adamax's order"},
    "papers/dropout/sampling/dropout_mode": {"attention": "F.scaled_dot_product_attention's order"},
    "papers/gan/quality": {"frechet_distance": "mean and covariance of two normal distributions"},
    "papers/gtn/criteria": dict.fromkeys(
        ("viterbi_loss", "discriminative_viterbi_loss", "forward_loss", "discriminative_forward_loss"),
        "F.ctc_loss's order: targets, their lengths, the reduction",
    ),
    "papers/prelu/layers": {"PReLU": "torch.nn.PReLU's order"},
}
KERNELS = {"papers/gtn/lattices/compiled", "papers/prelu/compiled"}  # Numba's functions take no keywords.


def signatures():
    """Module, name and positions of each public function, method and constructor."""
    for path in sorted(ROOT.rglob("*.py")):
        module = path.relative_to(ROOT).with_suffix("").as_posix()
        if "_recipes" in module or module in KERNELS:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        owners = [(None, tree), *((one.name, one) for one in tree.body if isinstance(one, ast.ClassDef))]
        for owner, body in owners:
            for function in body.body:
                if not isinstance(function, ast.FunctionDef):
                    continue
                names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
                if names[:1] in (["self"], ["cls"]):
                    del names[0]
                # The hooks of Lightning, and of torch.autograd.Function, have the order of their callers.
                if function.name.startswith("on_") or names[:1] == ["ctx"] or names[:2] == ["info", "dims"]:
                    continue
                if function.name == "__init__":
                    yield module, owner, names
                elif not function.name.startswith("_"):
                    yield module, f"{owner}.{function.name}" if owner else function.name, names


def public():
    """Names that users import, beside those of the command line."""
    faces = [
        "__init__.py",
        "losses.py",
        "callbacks.py",
        "data/__init__.py",
        *ROOT.glob("papers/*/__init__.py"),
    ]
    for face in faces:
        for node in ast.walk(ast.parse((ROOT / face).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                yield from (one.asname or one.name for one in node.names)


def test_only_the_first_few_arguments_are_told_by_their_place():
    users = set(public())
    too_many = [
        (module, name, names)
        for module, name, names in signatures()
        if len(names) > (3 if name.partition(".")[0] in users else MOST)
        and name not in EXCEPTIONS.get(module, ())
    ]
    assert too_many == []


def test_exceptions_are_needed():
    found = {(module, name): names for module, name, names in signatures()}
    for module, names in EXCEPTIONS.items():
        assert all(len(found[module, name]) > 3 for name in names)
