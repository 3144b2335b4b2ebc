"""Two gloo ranks on the CPU; a deadlock fails after the process group's timeout."""

from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy


@pytest.fixture
def make_trainer(tmp_path):
    """A Trainer on one or two ranks, quiet, on the CPU."""

    def make(ranks, **options):
        strategy = (
            DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=20))
            if ranks > 1
            else "auto"
        )
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        return pl.Trainer(
            accelerator="cpu",
            devices=ranks,
            strategy=strategy,
            default_root_dir=tmp_path,
            **quiet | {"enable_checkpointing": False} | options,
        )

    return make


def pytest_collection_modifyitems(items):
    for item in items:
        if "distributed" in item.nodeid:
            if not any(map(item.get_closest_marker, ("slow", "timeout"))):
                item.add_marker(pytest.mark.timeout(90))
            if not torch.distributed.is_gloo_available():
                item.add_marker(pytest.mark.skip(reason="needs the gloo backend"))
