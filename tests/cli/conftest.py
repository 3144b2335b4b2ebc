"""What commands find in the folder that they run in."""

import hostile
import pytest
from commands import FAST, MODEL, checkpoint_of, succeeds


@pytest.fixture
def trained(folder):
    """The checkpoint of a short run with arguments that are not the defaults."""
    succeeds("fit", *MODEL, *FAST, "--model.scale=0.5", "--model.optimizer=SGD", "--model.optimizer.lr=0.25")
    return checkpoint_of(folder)


@pytest.fixture
def box(folder, monkeypatch):
    """A folder with what hostile recipes reach for, and a module of the user's own."""
    monkeypatch.delenv("PL_LOSSES_TRUST", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    hostile.plant(folder)
    (folder / "mine.py").write_text(
        "import os\nimport torch\nfrom pl_losses import LeNet5\nfrom pl_losses.data import Digits\n"
        "class Mine(LeNet5): ...\nclass Points(Digits): ...\n"
        "def adam(parameters) -> torch.optim.Adam:\n    return torch.optim.Adam(parameters)\n"
    )
    return folder
