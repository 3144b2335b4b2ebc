"""What the documents say is what the code does."""

import re
from pathlib import Path

import lightning.pytorch as pl
import pytest

import pl_losses
from pl_losses import callbacks

ROOT = Path(__file__).parents[1]
MONITORS = ["PReLUSlopeMonitor", "AdamBiasCorrectionMonitor", "DropoutUncertaintyMonitor"]


@pytest.mark.parametrize("name", MONITORS)
def test_the_key_table_is_the_monitors(name):
    section = re.search(
        rf"^## {name}\n(.*?)(?=^## |\Z)", (ROOT / "docs/monitors.md").read_text(), re.M | re.S
    )
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", section[1], re.M))
    assert rows == {key: text.rstrip(".") for key, text in getattr(callbacks, name).KEYS.items()}


@pytest.mark.parametrize("name", ["DropoutRegressor", "DropoutClassifier"])
def test_the_key_table_is_the_modules(name):
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", (ROOT / "docs/dropout.md").read_text(), re.M | re.S)
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", section[1], re.M))
    assert rows == getattr(pl_losses, name).KEYS


def modules():
    public = ((name, getattr(pl_losses, name)) for name in pl_losses.__all__)
    return [name for name, one in public if isinstance(one, type) and issubclass(one, pl.LightningModule)]


@pytest.mark.parametrize("name", [*modules(), *MONITORS])
def test_a_page_trains_each_module_and_monitor(name):
    """In Python, which `test_docs_run.py` runs."""
    pages = (path.read_text() for path in ROOT.glob("docs/*.md"))
    used = ["".join(re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)) for page in pages]
    assert any(re.search(rf"\b{name}\(", code) and ".fit(" in code for code in used)


def test_links_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/RESULTS.md"]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
