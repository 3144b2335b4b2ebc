from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pl_losses.monitoring.monitor import bring_together
from pl_losses.papers.adam.monitor.monitor import AdamBiasCorrectionMonitor


@pytest.fixture
def look():
    """The row of a monitor that looks at optimizers after a step, without a training loop."""

    def look(*optimizers, module=None, **options):
        monitor = AdamBiasCorrectionMonitor(**options)
        trainer = SimpleNamespace(optimizers=optimizers, is_global_zero=True, global_rank=0, strategy=None)
        monitor.prepare(trainer, module or nn.Module())
        with torch.no_grad():
            parts = [part for one in optimizers for part in monitor.collect(trainer, module, one)]
        return bring_together(parts, trainer, False).scalars

    return look
