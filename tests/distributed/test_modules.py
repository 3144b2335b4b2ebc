"""All modules train, validate and test on two and three ranks as on one, whoever made the loaders."""

import logging
import os
import warnings
from contextlib import contextmanager
from functools import cache

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from module_table import CASES, Data, dataset, loader, make
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

import pl_losses
from pl_losses import GAN, AMSGradCounterexample, StyleTransfer
from pl_losses.cli.predictions import PredictedSamples, of_all_ranks
from pl_losses.core.base import PaperModule
from pl_losses.strategies import DDPPerModule

# The first test waits for all modules, in one, two and three processes: a minute and more.
pytestmark = pytest.mark.timeout(300)
TRAIN, TEST = 13, 7  # Samples to train on, and to validate and test.
MORE = 2  # Batches to accumulate.
ROUNDED = "bfloat16"


@contextmanager
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Stream(IterableDataset):
    """Samples that nobody but itself shares out."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


def stream(case, indices, size):
    samples = dataset(case, TEST)
    collate = loader(case, 1, 1).collate_fn
    return DataLoader(Stream([samples[i] for i in indices]), size, collate_fn=collate)


def parts(case, rank, ranks):
    """This rank's part of two batches of 6 and 5 samples: on two ranks 5 and 1, then 4 and 1."""
    chosen = []
    for first, last in ((0, 6), (6, 11)):
        cuts = [first, *range(last - ranks + 1, last), last]
        chosen.append(list(range(cuts[rank], cuts[rank + 1])))
    whole = loader(case, 11, 1, train=True)
    return DataLoader(whole.dataset, batch_sampler=chosen, collate_fn=whole.collate_fn)


def trainer(case, ranks, folder, **options):
    kind = {"ddp": DDPStrategy, "ddp_per_module": DDPPerModule}[case.strategy]
    strategy = kind(process_group_backend="gloo") if ranks > 1 else "auto"
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        max_epochs=case.epochs,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **dict.fromkeys(quiet, False) | {"precision": "64-true"} | options,
    )


def predicted(case, model, ranks, folder, size, **options):
    """What all ranks predict together, a row for each sample in the order of the data set."""
    samples = PredictedSamples()
    run = trainer(case, ranks, folder, callbacks=[samples], **options)
    rows = of_all_ranks(run.predict(model, loader(case, TEST, size)), run, samples.seen)
    # Of readers, texts: torch compares numbers.
    coded = {key: [list(one.encode()) for one in rows[key]] for key in rows if isinstance(rows[key][0], str)}
    return rows | coded


def found(run, model):
    """What a fit ended with: weights, and what it logged of validation and of training as a whole."""
    logged = {key: float(value) for key, value in run.callback_metrics.items()}
    kept = {key: value for key, value in logged.items() if key[:3] == "val" or key == "train/error"}
    return {"weights": [p.detach().clone() for p in model.parameters()], "logged": kept}


def outcomes(case, rank, ranks, folder):
    """All paths of a module on this rank; joint batches are of 6 samples on any number of ranks."""
    size = 6 // ranks
    run, model = trainer(case, ranks, folder), make(case)
    # Lightning's would shuffle. The last batch of a pass is one sample: other ranks repeat some.
    share = DistributedSampler(range(TRAIN), ranks, rank, shuffle=False)
    run.fit(model, loader(case, TRAIN, size, train=True, sampler=share), loader(case, TEST, size))
    ended = found(run, model)
    own = run.test(model, loader(case, TEST, size), verbose=False)[0]
    yield "own loader", ended | {"test": own}
    yield "predict", {"predicted": predicted(case, model, ranks, folder, size)}
    # Every rank has all samples; then the last one has all of them, and the others have no batch.
    alone = trainer(case, ranks, folder, use_distributed_sampler=False)
    yield "all samples on each rank", {"test": alone.test(model, loader(case, TEST, 4), verbose=False)[0]}
    there = range(TEST) if rank == ranks - 1 else ()
    yield "a rank without a batch", {"test": alone.test(model, stream(case, there, 3), verbose=False)[0]}
    if ranks == 3:  # The rest is no different from two.
        return
    gan = isinstance(model, GAN)
    if gan or not case.noise:
        # The first rank has most of each batch, and of strings some have no path, all of the second one's.
        run, model = trainer(case, ranks, folder, use_distributed_sampler=False), make(case)
        if gan:  # Its noise would be by the rows that each rank has.
            one = model.fixed_noise(1)
            model.sample_noise = lambda count, *_: one.expand(count, -1)
        run.fit(model, parts(case, rank, ranks), loader(case, TEST, 4))
        yield "uneven batches", found(run, model)
    options = {} if case.accumulates else {"accumulate_grad_batches": MORE}
    run, model = trainer(case, ranks, folder, **options), make(case, MORE)
    data = Data(case, size, TRAIN, TEST)
    run.fit(model, data)
    ended = found(run, model)
    yield "data module, accumulation", ended | {"test": run.test(model, data, verbose=False)[0]}


def rounded(case, rank, ranks, folder):
    """As :func:`outcomes` in bfloat16, but for what a rounding may decide otherwise: classes and errors."""
    size = 6 // ranks
    run, model = trainer(case, ranks, folder, precision="bf16-mixed"), make(case)
    share = DistributedSampler(range(TRAIN), ranks, rank, shuffle=False)
    run.fit(model, loader(case, TRAIN, size, train=True, sampler=share), loader(case, TEST, size))
    ended = found(run, model)
    tested = run.test(model, loader(case, TEST, size), verbose=False)[0]
    rows = predicted(case, model, ranks, folder, size, precision="bf16-mixed")
    yield ROUNDED, {
        "weights": ended["weights"],
        "losses": {key: value for key, value in (ended["logged"] | tested).items() if "loss" in key},
        "predicted": {
            key: column.float() for key, column in rows.items()
            if isinstance(column, torch.Tensor) and column.is_floating_point()
        },
    }  # fmt: skip


def work(rank, ranks, folder):
    """One forked rank."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/{ranks}", rank=rank, world_size=ranks
    )
    results = {}
    for name, case in CASES.items():
        try:
            results[name] = everything(case, rank, ranks, folder)
        except Exception as error:  # The test of this case shows it, and the others go on.
            results[name] = f"{type(error).__name__}: {error}"
    torch.save(results, f"{folder}/{ranks}.{rank}.pt")
    torch.distributed.destroy_process_group()


def everything(case, rank, ranks, folder):
    with double():
        paths = dict(outcomes(case, rank, ranks, folder))
    return paths if ranks == 3 else paths | dict(rounded(case, rank, ranks, folder))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What every rank found, by the number of ranks."""
    folder = tmp_path_factory.mktemp("modules")

    @cache
    def found(ranks):
        if ranks > 1:
            found(1)  # What it loads, they have.
            torch.multiprocessing.start_processes(work, (ranks, folder), ranks, start_method="fork")
            return [torch.load(folder / f"{ranks}.{rank}.pt") for rank in range(ranks)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [{name: everything(case, 0, 1, folder) for name, case in CASES.items()}]

    return found


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_any_number_of_ranks_is_one_process(results, name, ranks):
    (whole,) = results(1)
    for rank in range(ranks):
        parts = results(ranks)[rank][name]
        assert isinstance(parts, dict), parts
        assert len(parts) == (len(whole[name]) if ranks == 2 else 4)
        for path, part in parts.items():
            rtol, atol = (2e-2, 1e-2) if path == ROUNDED else (1e-6, 1e-8)
            torch.testing.assert_close(
                part, whole[name][path], rtol=rtol, atol=atol, msg=lambda text, path=path: f"{path}: {text}"
            )


def test_the_table_has_all_modules():
    modules = (getattr(pl_losses, name) for name in pl_losses.__all__)
    papers = {one for one in modules if isinstance(one, type) and issubclass(one, PaperModule)}
    # They bring their own data: see test_style_ranks.py and test_adam_modules.py.
    assert papers - {StyleTransfer, AMSGradCounterexample} <= {type(make(case)) for case in CASES.values()}


def test_fits_move_the_weights_and_tests_tell_something(results):
    """So that equal outcomes mean something."""
    with double():
        for name, case in CASES.items():
            first = [p.detach() for p in make(case).parameters()]
            for path, outcome in results(1)[0][name].items():
                for key in ("test", "predicted"):
                    # Readers predict texts, which are not compared in bfloat16.
                    assert outcome.get(key, True) or path == ROUNDED, (name, path)
                if "weights" in outcome:
                    pairs = zip(first, outcome["weights"], strict=True)
                    assert any((one - other).abs().max() > 1e-5 for one, other in pairs), (name, path)
