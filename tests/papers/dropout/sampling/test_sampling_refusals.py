"""Modules, batches and arguments of which there are no samples."""

import warnings

import pytest
import torch
from papers.dropout.sampling.called import Called, P, inputs
from torch import nn
from torch.nn import functional as F

from pl_losses.papers.dropout.sampling.sampling import find_dropout, mc_samples


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_dropout_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Dropout(P)))
        traced = torch.jit.trace(nn.Dropout(P).eval(), torch.ones(2, 3))
        plain = torch.jit.script(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="no dropout in scripted or traced parts but it does"):
        mc_samples(scripted, inputs(2, 3), 2)
    with pytest.raises(ValueError, match="traced parts but 1 does"):
        mc_samples(nn.Sequential(nn.Linear(3, 3), traced), inputs(2, 3), 2)
    # So the monitor says instead of that there is none.
    with pytest.raises(ValueError, match="scripted or traced parts but 0 does"):
        find_dropout(nn.Sequential(scripted), inputs(2, 3))
    assert mc_samples(nn.Sequential(plain, nn.Dropout(P)), inputs(2, 3), 2).std() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "`samples` to be at least 1 but got 0"),
        ({"samples": 2.0}, "`samples`.*2.0"),
        ({"samples": None}, "`samples`.*None"),
        ({"chunk": 0}, "`chunk`.*at least 1 but got 0"),
        ({"seed": -1}, "`seed`.*at least 0 but got -1"),
        ({"seed": True}, "`seed`.*True"),
        ({"masks": "both"}, "`masks` to be .independent. or .shared. but got 'both'"),
    ],
)
def test_refused_arguments(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        mc_samples(nn.Dropout(), inputs(2, 3), **{"samples": 2} | options)


def test_refused_modules():
    with pytest.raises(TypeError, match=r"`module` to be a Module but got"):
        mc_samples(F.dropout, inputs(2, 3), 2)


def test_shared_masks_need_the_batch_first():
    flat = Called(lambda m, x: F.dropout(x.flatten(0, 1), P, m.training))
    with pytest.raises(ValueError, match=r"batch first.*\[4, ...\], but got \[20, 8\]"):
        mc_samples(flat, inputs(4, 5, 8), 2, masks="shared")
    with pytest.raises(ValueError, match="`batch` to hold a tensor"):
        mc_samples(nn.Dropout(P), 3, 2, masks="shared")


def test_an_unknown_class_in_train_is_refused():
    with pytest.raises(ValueError, match="`train` to name classes of parts of `module` but 'Nope' is none"):
        mc_samples(nn.Dropout(), torch.ones(2, 3), samples=2, train=["Nope"])
