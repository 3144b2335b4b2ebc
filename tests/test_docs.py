"""What the documents say is what the code does."""

import re
import runpy
import subprocess
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
        for target in re.findall(r"(?:\]\(|src=\")(?!https?://|#)([^)#\"]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_published_readme_leads_to_the_repository():
    """A package index has none of the files that relative links name."""
    absolute = runpy.run_path(str(ROOT / "hatch_build.py"))["absolute"]
    text = absolute((ROOT / "README.md").read_text(), "https://example.org/me/pl_losses", "1.2.0")
    links = re.findall(r"\]\(([^)]*)\)|src=\"([^\"]*)\"", text)
    assert len(links) > 20
    assert all("".join(link).startswith("https://") for link in links)
    assert '"https://example.org/me/pl_losses/raw/v1.2.0/docs/pictures/show.png"' in text
    assert "(https://example.org/me/pl_losses/blob/v1.2.0/docs/lenet.md)" in text


def test_extras_are_installed_from_the_clone():
    """The name is not published, so that a pip install by name would find nothing, or another's package."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    texts = {name: ROOT / name for name in listed.stdout.split() if name.endswith((".md", ".py", ".yaml", ".toml"))}
    assert len(texts) > 300
    named = re.compile(r"pip install\s+\S*pl[_-]losses\b")
    assert [name for name, path in texts.items() if path.exists() and named.search(path.read_text())] == []
