"""All modules under FSDP2: two ranks, forked once for all rows that are wanted, equal one process."""

import logging
import os
import traceback
import warnings
from datetime import timedelta
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from fsdp2_table import TABLE, digits, gan, mlp, sgd, signed
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import DoublePrecision
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils._pytree import tree_leaves

import pl_losses
from pl_losses import GAN
from pl_losses.core.base import PaperModule
from pl_losses.core.sharding import whole_tensor
from pl_losses.papers.adam import AMSGradCounterexample
from pl_losses.papers.dropout import mc_samples
from pl_losses.papers.prelu import he_init_, param_groups
from pl_losses.strategies import FSDP2Strategy


class Rest(DummyLogger):
    """Remembers what monitors log."""

    def __init__(self):
        super().__init__()
        self.rows = {}

    def log_metrics(self, metrics, step=None):
        # Training losses are of rank zero's own batch.
        self.rows |= {f"{step}/{key}": value for key, value in metrics.items() if key[:5] != "train"}


class Gradients(pl.Callback):
    """Remembers this rank's shards of the gradients: rows of them, which parents need no collective for."""

    def __init__(self):
        self.found = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.found += [getattr(one, "_local_tensor", one).clone() for one in gradients]


def trainer_on(ranks, folder, **options):
    strategy = FSDP2Strategy(process_group_backend="gloo", timeout=timedelta(seconds=20))
    quiet = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    plugin = {} if "precision" in options else {"plugins": DoublePrecision()}
    return pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy if ranks > 1 else "auto",
        default_root_dir=folder,
        **{**dict.fromkeys(quiet, False), "logger": False, "num_sanity_val_steps": 0, **plugin, **options},
    )


def outcome(name, ranks, folder):
    """Of a fit that goes on from a checkpoint, a test and a prediction: all that can be compared."""
    make, data, options = TABLE[name]
    options = {"monitor": None, "epochs": (1, 2)} | options
    monitor, (first, epochs) = options.pop("monitor"), options.pop("epochs")
    gradients, logger, path = Gradients(), Rest(), f"{folder}/{name}-{ranks}.ckpt"
    callbacks = [gradients, *([monitor()] if monitor else [])]
    torch.set_default_dtype(torch.float32 if "precision" in options else torch.float64)
    try:
        torch.manual_seed(3)
        trainer, model = trainer_on(ranks, folder, max_epochs=first, **options), make()
        trainer.fit(model, data(ranks))
        trainer.save_checkpoint(path)
        torch.manual_seed(4)
        model = make()
        options |= {"callbacks": callbacks, "logger": logger if monitor else False, "log_every_n_steps": 1}
        trainer = trainer_on(ranks, folder, max_epochs=epochs, **options)
        trainer.fit(model, data(ranks), ckpt_path=path)
        logged = trainer.callback_metrics | trainer.test(model, data(ranks), verbose=False)[0]
        predicted = trainer.predict(model, data(ranks))
        trainer.save_checkpoint(path)
    finally:
        torch.set_default_dtype(torch.float32)
    logged = {key: value for key, value in logged.items() if not key.startswith("train/")} | logger.rows
    tensors = [leaf.double() for leaf in tree_leaves(predicted) if torch.is_tensor(leaf)]
    return {
        "gradients": gradients.found,
        "weights": torch.load(path)["state_dict"] if trainer.is_global_zero else {},
        "logged": {key: float(value) for key, value in logged.items()},
        "predicted": torch.cat([leaf.flatten(1).sum(1) if leaf.ndim > 1 else leaf for leaf in tensors]),
    }


# Optimizers with parameters in another order than the module's, or of one of several stages.
CARRIED = ("rectifiers dense", "gan", "sdae begun")


def carried_on(name, ranks, folder, path):
    """Weights after one epoch more than a checkpoint has, of any number of ranks."""
    make, data, _ = TABLE[name]
    torch.set_default_dtype(torch.float64)
    try:
        model, trainer = make(), trainer_on(ranks, folder, max_epochs=3)
        trainer.fit(model, data(ranks), ckpt_path=path)
    finally:
        torch.set_default_dtype(torch.float32)
    return [whole_tensor(parameter).detach() for parameter in model.parameters()]


def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 5, 3), nn.PReLU(5), nn.Flatten(), nn.Dropout(0.5), nn.Linear(180, 3))
    return nn.Sequential(*layers)


def by_hand(net):
    """Initial weights, names of the groups, and samples, of a network that may be sharded."""
    torch.manual_seed(1)
    he_init_(net)
    groups = param_groups(net, 0.1, lr=0.1, slope_momentum=0.5)
    batch = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    weights = [whole_tensor(parameter).detach().clone() for parameter in net.parameters()]
    return (
        weights,
        {group["name"]: len(group["params"]) for group in groups},
        mc_samples(net, batch, 4, seed=0),
    )


def statistics(folder):
    """Running statistics of batch normalisation after a test, of networks in another memory format."""
    torch.manual_seed(3)
    model, trainer = GAN(4, width=2), trainer_on(2, folder, max_epochs=1)
    before = [buffer.clone() for buffer in model.buffers()]
    trainer.fit(model, signed(2))
    trainer.test(model, signed(2), verbose=False)
    return before, list(model.buffers())


class Apart(PaperModule):
    """Manual optimization of a parameter that is in no child."""

    def __init__(self):
        super().__init__(sgd)
        self.automatic_optimization, self.weight = False, nn.Parameter(torch.ones(2))

    def training_step(self, batch, batch_idx):
        """Never gets here."""


REFUSED = {
    "style": (pl_losses.StyleTransfer, 'Expected `strategy="each_for_itself"` on several ranks'),
    "scalar": (AMSGradCounterexample, r"Expected no scalar parameters under FSDP2 but got \['x'\]"),
    "apart": (Apart, r"Expected parameters in children only .* but got \['weight'\] in Apart"),
}


class Stream(torch.utils.data.IterableDataset):
    """A rank's share of some images with labels; ranks have as many as ``counts`` says."""

    def __init__(self, *counts):
        rank = int(os.environ["LOCAL_RANK"]) if len(counts) > 1 else 0
        generator = torch.Generator().manual_seed(5)
        images = torch.rand(sum(counts), 1, 32, 32, generator=generator, dtype=torch.float64)
        samples = list(zip(images, torch.arange(sum(counts)) % 10, strict=True))
        self.own = samples[sum(counts[:rank]) :][: counts[rank]]

    def __iter__(self):
        return iter(self.own)


class SizedStream(Stream):
    """One that knows its length."""

    def __len__(self):
        return len(self.own)


def result_of(ranks, folder, make, loader):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    try:
        return trainer_on(ranks, folder).test(make(), loader, verbose=False)[0]
    finally:
        torch.set_default_dtype(torch.float32)


def one_image(ranks):
    """A data set of a single image: the second rank has but a repetition."""
    return torch.utils.data.DataLoader([Stream(1).own[0][0]])


def shares(ranks):
    return torch.utils.data.DataLoader(Stream(2, 2) if ranks > 1 else Stream(4))


EVENLY = {"stream": (mlp, shares), "one image": (gan, one_image)}
UNEVENLY = {"sized": (SizedStream, 2, 1), "stream": (Stream, 2, 1), "empty stream": (Stream, 1, 0)}


def run(rank, folder, port, names):
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    work = {name: partial(outcome, name, 2, folder) for name in names}
    for name, (make, _) in REFUSED.items():
        work[name] = partial(trainer_on(2, folder).fit, make(), digits(2))
    for name in CARRIED:
        work[f"{name} on"] = partial(carried_on, name, 2, folder, f"{folder}/{name}-1.ckpt")
    for name, (make, loader) in EVENLY.items():
        work[f"{name} tested"] = partial(result_of, 2, folder, make, loader(2))
    for name, (stream, *counts) in UNEVENLY.items():
        loader = torch.utils.data.DataLoader(stream(*counts))
        work[f"{name} unevenly"] = partial(result_of, 2, folder, mlp, loader)
    work["statistics"] = partial(statistics, folder)
    work["by hand"] = lambda: by_hand(fully_shard(network()))
    for name, task in work.items():
        try:
            found = task()
        except Exception:
            found = traceback.format_exc()
        torch.save(found, f"{folder}/{name}-{rank}.pt")


@pytest.fixture(scope="module")
def two(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp2")
    ones = {name: outcome(name, 1, folder) for name in CARRIED}
    chosen = {item.callspec.params["name"] for item in request.session.items if MATRIX in item.name}
    arguments = (
        str(folder),
        find_free_network_port(),
        [name for name in TABLE if name in {*chosen, *CARRIED}],
    )
    torch.multiprocessing.start_processes(run, arguments, nprocs=2, start_method="fork")
    return Found(folder, ones)


class Found:
    """What both ranks found, by name, and what one process did, as far as it is known."""

    def __init__(self, folder, ones):
        self.folder, self.ones = folder, ones

    def __call__(self, name):
        return [torch.load(self.folder / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1)]


def close(found, expected, rounding):
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert (one - other).double().norm() <= rounding * other.double().norm() + 1e-12


MATRIX = "test_a_module_on_two_ranks_equals_one_process"
# Each of these shows another way to meet parameters; the others are slow.
QUICK = {"lenet5", "vae", "sdae", "reader", "sdnn discriminative_viterbi", "regressor", "ninth", "dropout"}
QUICK |= {*CARRIED}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TABLE]
)
@pytest.mark.filterwarnings("ignore")
def test_a_module_on_two_ranks_equals_one_process(two, tmp_path, name):
    double = two(name)
    for found in double:
        assert not isinstance(found, str), found
    one = two.ones.get(name) or outcome(name, 1, tmp_path)
    assert bool(one["gradients"]) == (name != "dropout")
    rounding = 2**-6 if "bf16" in name else 1e-6
    shards = zip(*(found["gradients"] for found in double), strict=True)
    close([torch.cat(both) for both in shards], one["gradients"], rounding)
    assert double[0]["weights"].keys() == one["weights"].keys()
    close(double[0]["weights"], one["weights"], rounding)
    for found in double:
        # What monitors log is rank zero's.
        logged = one["logged"] if found is double[0] else {key: one["logged"][key] for key in found["logged"]}
        assert found["logged"] == pytest.approx(logged, rel=rounding, abs=1e-9, nan_ok=True)
    predicted = torch.cat([found["predicted"] for found in double])
    close(predicted.sort().values, one["predicted"].sort().values, rounding)


def test_what_cannot_be_sharded_is_refused_before_training(two):
    for name, (_, message) in REFUSED.items():
        for found in two(name):
            with pytest.raises(ValueError, match=message):
                raise ValueError(found.strip().splitlines()[-1])


@pytest.mark.parametrize("name", UNEVENLY)
def test_unequal_numbers_of_batches_are_refused_on_all_ranks(two, name):
    for found in two(f"{name} unevenly"):
        counts = list(UNEVENLY[name][1:])
        assert f"Expected equally many batches on all ranks under FSDP2 but got {counts}" in found


@pytest.mark.parametrize("name", EVENLY)
@pytest.mark.filterwarnings("ignore")
def test_loaders_of_unknown_length_and_single_samples_are_tested(two, tmp_path, name):
    make, loader = EVENLY[name]
    one = result_of(1, tmp_path, make, loader(1))
    for found in two(f"{name} tested"):
        assert found == pytest.approx(one, rel=1e-6)


def test_sharded_networks_are_drawn_grouped_and_sampled_as_whole_ones(two):
    weights, groups, samples = by_hand(network())
    for found in two("by hand"):
        for one, other in zip(found[0], weights, strict=True):
            assert torch.equal(one, other)
        assert found[1] == groups
        torch.testing.assert_close(found[2], samples)


def test_running_statistics_are_the_same_on_all_ranks(two):
    (before, one), (_, other) = two("statistics")
    for first, mine, theirs in zip(before, one, other, strict=True):
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, first)


@pytest.mark.parametrize("name", CARRIED)
def test_a_file_goes_on_with_any_number_of_ranks(two, tmp_path, name):
    start = f"{two.folder}/{name}-{{}}.ckpt"
    expected = carried_on(name, 1, tmp_path, start.format(1))
    close(carried_on(name, 1, tmp_path, start.format(2)), expected, 1e-6)
    for found in two(f"{name} on"):
        close(found, expected, 1e-6)
