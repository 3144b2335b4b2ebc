"""torch.compile of whole modules: the same weights, in few graphs."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from fsdp2_table import TABLE
from lightning.pytorch.loggers.logger import DummyLogger

from pl_losses.callbacks import AdamBiasCorrectionMonitor, PReLUSlopeMonitor

QUICK = ("lenet5", "vae", "gan", "sdae fine-tuned", "reader")
# One needs a validation, one trains nothing.
NAMES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in TABLE
    if name not in ("regressor", "dropout")
]


class Rows(DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = {}

    def log_metrics(self, metrics, step=None):
        self.rows |= {f"{step}/{key}": value for key, value in metrics.items()}


def fitted(name, compile_=lambda module: module, **given):
    make, data, options = TABLE[name]
    options = {key: value for key, value in options.items() if key not in ("monitor", "epochs")}
    torch.manual_seed(0)
    module = make()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=TABLE[name][2].get("epochs", (0, 2))[1],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, **{"logger": False} | options | given,
    )  # fmt: skip
    trainer.fit(compile_(module), data(1))
    return module.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_weights_in_few_graphs(name):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    found = fitted(name, partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    # Batches of a GAN that accumulates are of two sizes.
    assert 1 <= len(graphs) <= (4 if name == "gan accumulating" else 3)
    torch.testing.assert_close(found, fitted(name), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "monitor"), [("rectifiers", PReLUSlopeMonitor), ("mlp", AdamBiasCorrectionMonitor)]
)
def test_monitors_see_the_same(name, monitor):
    found = []
    for compile_ in (lambda module: module, partial(torch.compile, backend="eager")):
        torch._dynamo.reset()
        logger = Rows()
        fitted(name, compile_, logger=logger, callbacks=[monitor(1)], log_every_n_steps=1)
        found.append(logger.rows)
    plain, compiled = found
    assert sum("prelu/" in key or "adam/" in key for key in plain) > 8
    assert compiled == pytest.approx(plain, rel=1e-5, nan_ok=True)
