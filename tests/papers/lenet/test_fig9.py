"""Fig. 9: the classifiers are what the paper says, and are compared on the images that it says."""

from functools import partial

import pytest
import torch

from pl_losses.core.protocol import Job, Score
from pl_losses.core.results import kept
from pl_losses.data import Digits
from pl_losses.papers.lenet import fig9
from pl_losses.papers.lenet.fig9 import NETWORKS, PUBLISHED, RECIPE, Pairwise, compare, nearest
from pl_losses.recipes import resolve

BUILD = {"optimizer": torch.optim.SGD, "lr_scheduler": None}


def test_every_classifier_of_the_figure_is_there():
    assert PUBLISHED.keys() == NETWORKS.keys() | {"k-NN", "SVM poly 4"}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("linear", 1024 * 10 + 10),
        ("pairwise linear", 1024 * 45 + 45),
        ("300-10", 1024 * 300 + 300 + 3010),
        ("300-100-10", 1024 * 300 + 300 + 300 * 100 + 100 + 1010),
        # C1, S2, C3 with all maps of S2, S4, and the outputs.
        ("LeNet-1", 4 * 26 + 8 + 12 * 101 + 24 + 300 * 10 + 10),
        ("LeNet-4", 4 * 26 + 8 + 16 * 101 + 32 + 400 * 120 + 120 + 1210),
        ("LeNet-5", 60_000),
        (RECIPE, 60_000),
    ],
)
def test_the_networks_have_as_many_weights_as_their_shapes(name, count):
    model = NETWORKS[name](**BUILD)
    assert sum(one.numel() for one in model.parameters() if one.requires_grad) == count
    assert all(one.isfinite().all() for one in model.parameters())
    assert model.scores(model(torch.zeros(3, 1, 32, 32))).shape == (3, 10)


def test_pairs_are_trained_and_voted_as_the_paper_says():
    model, generator = Pairwise(**BUILD).double(), torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 45, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 3, 9, 3])
    units = [(i, j) for i in range(10) for j in range(i + 1, 10)]
    scores, loss = torch.zeros(4, 10, dtype=torch.float64), 0.0
    for row in range(4):
        for unit, (i, j) in enumerate(units):
            scores[row, i] += outputs[row, unit]
            scores[row, j] -= outputs[row, unit]
            if target[row] in (i, j):
                loss += (outputs[row, unit] - (1 if target[row] == i else -1)) ** 2 / 4
    torch.testing.assert_close(model.scores(outputs), scores)
    torch.testing.assert_close(model.compute_loss(outputs, target), loss)


def test_neighbours_are_those_of_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    generator = torch.Generator().manual_seed(0)
    known, images = torch.randn(300, 5, generator=generator), torch.randn(600, 5, generator=generator)
    labels = torch.randint(10, (300,), generator=generator)
    for k in (1, 3, 5):
        wanted = KNeighborsClassifier(
            k, weights=lambda d: 1 - 1e-3 * torch.arange(d.shape[1]).numpy() + 0 * d
        )
        assert (
            wanted.fit(known, labels).predict(images) == nearest(k, known, labels, images).numpy()
        ).mean() > 0.99


@pytest.mark.parametrize(("method", "setting"), [("k-NN", {"k": 3}), ("SVM poly 4", {"C": 1.0})])
def test_choices_are_scored_on_held_out_images_and_tests_on_the_test_set(method, setting):
    seen = {}

    class Watched(Digits):
        def eval_transform(self, batch, generator):
            seen[len(batch[0])] = seen.get(len(batch[0]), 0) + 1
            return super().eval_transform(batch, generator)

    data = partial(Watched, test_size=250, low=0.0, high=1.0)
    held_out = compare(Job(method, setting, 0, True), data(val_size=200))
    assert seen == {1347: 1, 200: 1}
    seen.clear()
    tested = compare(Job(method, setting, 0, False), data(val_size=0))
    assert seen == {1547: 1, 250: 1}
    assert 0 < tested.value < 5
    assert 0 <= held_out.value < 5
    assert tested.standard_error == pytest.approx((tested.value * (100 - tested.value) / 250) ** 0.5)


def test_the_recipe_has_what_was_chosen():
    (row,) = (row for row in kept("lenet/fig9") if row["what"] == RECIPE)
    chosen = dict(part.split() for part in row["chosen"].partition(" (")[0].split(", "))
    recipe = resolve(RECIPE)
    assert recipe["data"]["init_args"]["val_size"] == 0
    assert recipe["trainer"]["max_epochs"] == 20
    assert recipe["data"]["init_args"]["batch_size"] == 64
    settings = recipe["model"]["init_args"]
    assert settings["lr_scheduler"]["init_args"] == {"max_lr": float(chosen["max_lr"])}
    decay = settings["optimizer"].get("init_args", {}).get("weight_decay", 0.0)
    assert decay == float(chosen["weight_decay"])


def test_the_recipe_is_trained_as_it_is(monkeypatch, tmp_path):
    """Its batches, passes and optimizer, at the default options."""
    seen = {}

    def train(model, data, epochs, held_out):
        optimizer = model._optimizer([torch.nn.Parameter(torch.zeros(1))])
        group = optimizer.param_groups[0]
        seen[held_out] = [epochs, data.batch_size, data.val_size, group["weight_decay"], type(optimizer)]
        return Score(1.0)

    monkeypatch.setattr(fig9, "trained", train)
    fig9.reproduce(RECIPE, 1, "digits", folder=str(tmp_path), val_size=300, wandb="disabled")
    assert seen[False] == [20, 64, 0, 0.0, torch.optim.AdamW]
    assert seen[True] == [3, 64, 300, 0.1, torch.optim.AdamW]
