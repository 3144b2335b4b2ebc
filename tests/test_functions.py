import importlib
import time
from collections import Counter

import pytest
import torch
from function_table import CALLS, TENSORS, outcome, outcomes, parameters
from torch import Tensor

from pl_losses import losses
from pl_losses.core.metrics import ErrorRate
from pl_losses.core.validation import check_types, typed
from pl_losses.papers.gtn import ArcLattice, SegmentLattice
from pl_losses.papers.gtn.metrics import count_edits

# What takes no arguments, is no function, or needs VGG's weights or a Trainer.
NOT_CALLED = {
    "AutoencoderLayer",
    "Characters",
    "Corruption",
    "DDPPerModule",
    "Lines",
    "Objective",
    "PRESETS",
    "Path",
    "TiledObjective",
    "VGG19Features",
    "__version__",
    "digit_codes",
    "load_weights",
    "step_uncounted",
    "write_shards",
}


@pytest.mark.parametrize(
    "face",
    ["", ".callbacks", ".data", ".losses"]
    + [f".papers.{paper}" for paper in ("adam", "dropout", "gan", "gtn", "lenet", "prelu", "sdae", "style")],
)
def test_every_public_function_is_in_the_table(face):
    names = set(importlib.import_module(f"pl_losses{face}").__all__)
    assert names <= {*CALLS, *NOT_CALLED}


def test_the_calls_of_the_table_are_valid():
    for name, call in CALLS.items():
        call.make()(**call.arguments()), name


def test_one_spoilt_argument_is_refused_by_its_name():
    start, found = time.monotonic(), []
    while len(found) < 3000 and time.monotonic() - start < 10:
        found += outcomes(500, seed=len(found))
    kinds = Counter(one.kind for one in found)
    assert kinds["clear"] > 300
    unclear = [one for one in found if one.kind == "unclear"]
    assert len(unclear) < 0.05 * (kinds["clear"] + kinds["unclear"]), unclear
    assert not [one for one in found if one.kind == "silent"]


@pytest.mark.parametrize("how", ["complex", "sparse", "a nested list"])
def test_only_dense_real_tensors_are_taken(how):
    for name, call in CALLS.items():
        for argument, value in call.arguments().items():
            if isinstance(value, Tensor) and (name, argument) != ("mc_samples", "batch"):
                found = outcome(name, argument, how, TENSORS[how])
                assert found.kind == "clear" or (found.kind, how) == ("returned", "a nested list"), found


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: losses.gram_matrix(torch.ones(2, 3), -torch.ones(3)), "`mask` of at least 0 but got -1"),
        (lambda: losses.gram_matrix(torch.ones(2, 3), torch.full((3,), torch.nan)), "`mask`.*nan"),
        (lambda: losses.style_loss(torch.ones(2, 0), torch.ones(2, 3)), r"`features`.*\[2, 0\]"),
        (lambda: losses.style_loss([], []), "`features` of at least one layer"),
        (lambda: ErrorRate().update(torch.ones(3, 1), torch.ones(3)), r"`target`.*\[3, 1\].*\[3\]"),
        (
            lambda: count_edits([(1,)], torch.tensor([[1, 2]]), torch.tensor([3])),
            r"`lengths` in \[0, 2\].*3",
        ),
        (
            lambda: count_edits([(1,)], torch.tensor([[1], [2]]), torch.tensor([1])),
            r"`targets` of shape \[1, L\] but got \[2, 1\]",
        ),
        *(
            (
                lambda ask=ask, lattice=lattice: ask(lattice),
                "`penalties` to be numbers but those of samples .0. are NaN",
            )
            for lattice in (
                SegmentLattice(torch.full((1, 2, 1, 2), torch.nan)),
                ArcLattice([0, 0], [1, 1], [0, 1], penalty=torch.tensor([torch.nan, 1.0])),
            )
            for ask in (
                lambda lattice: lattice.best_path(),
                lambda lattice: lattice.n_best(2),
                lambda lattice: lattice.sample(2),
            )
        ),
    ],
)
def test_nonsense_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_types_are_checked_before_anything_is_done():
    done = []

    @typed
    def function(first: int, second: "float | None" = None, *rest: int, last: str = "") -> None:
        done.append(first)

    function(1, 2, "more", last="text")
    for arguments, named in (
        ({"first": True}, "first"),
        ({"first": 1, "second": "2"}, "second"),
        ({"first": 1, "last": None}, "last"),
    ):
        with pytest.raises(TypeError, match=f"Expected `{named}` to be .* but got"):
            function(**arguments)
    with pytest.raises(ValueError, match="`second` to be a number or None but got nan"):
        function(1, float("nan"))
    assert done == [1]
    assert parameters(function) == ["first", "second", "last"]


def test_annotations_that_only_type_checkers_know_allow_anything():
    def function(value: "Unknown") -> None:  # noqa: F821
        """Do nothing."""

    check_types(function, {"value": object()})


def test_checked_functions_are_compiled_whole():
    x = torch.rand(3, 4)
    compiled = torch.compile(losses.rbf_penalties, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, x), losses.rbf_penalties(x, x))
    assert torch.func.vmap(losses.rbf_penalties)(x[None], x[None]).shape == (1, 3, 3)
