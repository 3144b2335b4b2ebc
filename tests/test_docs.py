"""What the documents say is what the code does."""

import ast
import re
import runpy
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from matplotlib.text import Text

import pl_losses
from pl_losses import callbacks
from pl_losses.monitoring.pictures import draw_samples
from pl_losses.papers.adam.monitor.history import History, draw_history
from pl_losses.papers.gtn.report import ReadLine, draw_lines
from pl_losses.papers.sdae.drawing import draw_rows
from pl_losses.papers.style.report import draw_panels

ROOT = Path(__file__).parents[1]
PAPERS = [path.parent.name for path in sorted(ROOT.glob("pl_losses/papers/*/__init__.py"))]
SHAPE = ["The idea", "Equations", "Run it", "Your own data or model", "Corrected and left out", "Measured"]
SHAPE += ["What is logged"]
# A function and, as a link, its source; on the site, docs/conf.py makes it one to the reference.
SOURCE = r"\[`([\w.]+)`\]\(\.\./(pl_losses/[\w/]+\.py)\)"
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
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", (ROOT / "docs/dropout.md").read_text(), re.M | re.S)
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


def smallest_text(figure):
    """The height in pixels of a figure's smallest text, where a page shows it 640 pixels wide."""
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    return min(text.get_fontsize() for text in texts) / 72 * 640 / figure.get_figwidth()


def test_the_text_of_pictures_can_be_read_on_a_page():
    digits = torch.rand(12, 64)
    history = History()
    group = {"kind": "adam", "betas": [0.9, 0.999], "momentum_decay": 0.0, "points": [[1, 0.3, 1.0]]}
    history.groups = {"Adam": group}
    figures = [
        draw_samples(
            digits[:12].view(12, 1, 8, 8), torch.zeros(12, 2, dtype=torch.long), notes=["0.1 nats"] * 12
        ),
        draw_rows([("clean", digits), ("reconstructed", digits)], (8, 8)),
        draw_panels([("content", torch.rand(3, 20, 30)), ("after 174 evaluations", torch.rand(3, 20, 40))]),
        draw_history(history),
    ]
    assert all(smallest_text(figure) > 9.5 for figure in figures)
    # A page shows pictures 460 pixels high at most: of many samples, too.
    many = [
        draw_samples(torch.rand(32, 1, 8, 8), torch.zeros(32, 2, dtype=torch.long)),
        draw_lines([ReadLine(torch.rand(28, 90), [0, 45, 90], [0, 45, 90], "12", "17", 0.5)] * 16),
    ]
    assert all(smallest_text(figure) > 9.5 for figure in many)
    assert all(figure.get_figheight() * 640 / figure.get_figwidth() < 460 for figure in many)
    # Images fill the picture, few or many.
    assert draw_samples(torch.rand(3, 1, 8, 8), torch.zeros(3, 2)).get_figwidth() < 4


def test_no_property_begins_with_a_type():
    """Of a property's docstring, napoleon takes what stands before a colon for its type."""
    for path in ROOT.glob("pl_losses/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            made = [ast.unparse(one) for one in getattr(node, "decorator_list", [])]
            if {"property", "cached_property"} & set(made):
                first = (ast.get_docstring(node) or "").split("\n")[0]
                assert not re.match(r"[\w ,]+: ", first), f"{path.name}: {first}"


def test_links_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/RESULTS.md"]:
        # The example of a paper's page is within tildes.
        text = re.sub(r"^~~~.*?^~~~$", "", path.read_text(), flags=re.M | re.S)
        for target in re.findall(r"(?:\]\(|src=\")(?!https?://|#)([^)#\"]+)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def sections(paper):
    """Heading to text of a paper's page, without its code."""
    page = (ROOT / f"docs/{paper}.md").read_text()
    parts = re.split(r"^## (.*)\n", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def defined(name, path):
    """Whether a file defines a function, a class, or `Class.method`."""
    return all(
        re.search(rf"^ *(def|class) {part}\b", (ROOT / path).read_text(), re.M) for part in name.split(".")
    )


@pytest.mark.parametrize("paper", PAPERS)
def test_a_papers_page_has_the_shape(paper):
    found = sections(paper)
    assert list(found) == SHAPE
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", found["The idea"])
    assert pictures
    assert all((ROOT / "docs" / picture).stat().st_size < 200_000 for picture in pictures)


@pytest.mark.parametrize("paper", PAPERS)
def test_tables_of_what_was_measured_are_made_by_the_command(paper):
    assert re.findall(r"^\|", typed(sections(paper)["Measured"]), re.M) == []


# Settings, examples, versions, sections, and numbers of papers. None was measured, and none that was may be
# added: `pl-losses reproduce --results` writes those.
TYPED = {
    "README.md": "3.11 0.31 0.32 2.7 0.13 2.1 0.0 1.24 0.5 1.0 2.0",
    "adam-choices.md": "0.1 0.2 0.001",
    "adam.md": "10 32 0.32 0.152 6.1 6.1 6.2 6.3 6.4 2.1 7.27 3.16 0.9 0.99 0.999 0.9999",
    "dashboards.md": "5",
    "dropout-choices.md": "0.1 0.005 0.01 0.05 0.1 0.001 0.01 0.005",
    "dropout.md": "0.01 0.1",
    "gan.md": "1912.01703",
    "glossary.md": "1.44 100 80 0.8 90",
    "gtn-choices.md": "0.1 0.2 0.004",
    "gtn.md": "0.7 0.6 0.7 0.6 0.1 0.1 8.5 6.3 12.4 8.2",
    "howto.md": "64",
    "index.md": "3.11",
    "lenet-choices.md": "0.003 0.006 0.01 0.1",
    "lenet.md": "0.1 1.175",
    "monitors.md": "3.16 7.27 0.9 0.1 0.03 0.01",
    "multi-gpu.md": "120 30",
    "papers.md": "2.1 2.1 7.2 2.2 3.4 2.2 3.3 3.3 3.3",
    "prelu-choices.md": "0.25",
    "prelu.md": "1502.01852 0.25 0.01 0.001 0.0001 0.0005 0.01 0.001 33.82 13.34 32.71 12.87 32.64 12.75 "
    "24.02 6.51 22.97 6.28 22.85 6.27 21.59 5.71 33.82 32.64 0.25",
    "sdae-choices.md": "200 0.1 0.4 0.25",
    "style.md": "20 2.0",
}


@pytest.mark.parametrize("page", [ROOT / "README.md", *ROOT.glob("docs/*.md")], ids=lambda page: page.name)
def test_measured_numbers_are_made_by_the_command(page):
    """Each decimal, and each number with the unit of a result, in text, or alone in code or an equation."""
    if page.name != "measured.md":
        assert sorted(numbers_in(page.read_text())) == sorted(TYPED.get(page.name, "").split())


def numbers_in(text):
    """List the numbers that may be results."""
    alone = re.sub(r"(`|\$)([-+]?[\d.]+ ?%?)\1", r"\2", text)
    words = " ".join(re.sub(r"(\$+)[^$]*\1|\]\([^)]*\)|</?[a-z][^>]*>", "", typed(alone)).split())
    unit = r"%(?! (?:\w+ )?(?:interval|quantile))|(?:percent|nats|times|[GMK]B|seconds|minutes|hours)\b"
    found = re.findall(rf"(?<![\w.^])(?:(\d*\.\d+)|(\d+)(?= ?(?:{unit})))", words)
    return ["".join(number) for number in found]


def test_a_typed_result_is_seen():
    for text in (
        "1.25 % are", "-2.35 nats", "5% of", "12 percent", "about .601", "$0.74$ of", "`2.91` in", "12-13 %",
        "the error\n0.1, an error of 0.1", "33.82%", "3 times as fast",
    ):  # fmt: skip
        assert numbers_in(text), text
    assert len(numbers_in("an error of 0.1, and 0.1")) == 2
    assert not numbers_in("a 95 % interval, version2.0, 10^-7, [a](1.5) and `--lr 0.1` in $x = 0.5$")


def typed(text):
    """Leave out the code and what the command writes."""
    made = r"<!-- results .*?<!-- end of results -->|^```.*?^```$|`[^`]*`"
    return re.sub(made, "", text, flags=re.M | re.S)


@pytest.mark.parametrize("paper", PAPERS)
def test_each_equation_has_its_number_and_its_function(paper):
    equations = sections(paper)["Equations"]
    blocks = re.findall(r"^\$\$\n(.*?)\n\$\$\n(.*?)(?=^\$\$\n|\Z)", equations, re.M | re.S)
    assert blocks
    for equation, beside in blocks:
        assert r"\tag{" in equation, equation
        functions = re.findall(SOURCE, beside)
        assert functions, equation
        for name, path in functions:
            assert defined(name, path), f"{path} has no {name}"


def test_the_table_of_papers_has_each_function_beside_an_equation():
    table = (ROOT / "docs/papers.md").read_text()
    rows = re.findall(rf"^\|.*?{SOURCE}", table, re.M)
    _, equations = table.split("## From equation to function")
    bodies = re.findall(r"^\| ---.*\n((?:\|.*\n)+)", equations, re.M)
    assert len(bodies) == len(PAPERS)
    assert [line for body in bodies for line in body.splitlines() if not re.search(SOURCE, line)] == []
    assert all(defined(name, path) for name, path in rows)
    for paper in (paper for paper in PAPERS if f"]({paper}.md)" in table):
        beside = set(re.findall(SOURCE, sections(paper)["Equations"]))
        assert beside <= set(rows), f"{paper}: {beside - set(rows)}"


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
    folders = ("pl_losses", "recipes", "docs", "benchmarks", "tests")
    files = [*ROOT.glob("*.*"), *(path for folder in folders for path in ROOT.glob(f"{folder}/**/*.*"))]
    texts = {path: path.read_text() for path in files if path.suffix in (".md", ".py", ".yaml", ".toml")}
    assert len(texts) > 300
    named = re.compile(r"pip install\s+\S*pl[_-]losses\b")
    assert [path.name for path, text in texts.items() if named.search(text)] == []


def test_the_menu_of_versions():
    built = runpy.run_path(str(ROOT / "docs/build_versions.py"))
    known = built["versions"](["v0.9.0", "v0.10.0", "nightly", "v1.0rc1"])
    assert known == {"dev": "HEAD", "0.10.0": "v0.10.0", "0.9.0": "v0.9.0"}
    entries = built["menu"](list(known), "https://example.org/site")
    assert [entry["preferred"] for entry in entries] == [False, True, False]
    assert entries[1]["url"] == "https://example.org/site/0.10.0/"
    assert [entry["preferred"] for entry in built["menu"](["dev"], "https://example.org")] == [True]


def test_lost_links_are_found(tmp_path):
    broken = runpy.run_path(str(ROOT / "docs/check_links.py"))["broken"]
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"><a href="b/#there"><a href="https://x.org/y"><img src="no.png">'
    )
    (tmp_path / "b").mkdir()
    (tmp_path / "b/index.html").write_text('<h1 id="there"></h1><a href="../a.html#gone">')
    assert broken(tmp_path) == ["a.html: no.png", "b/index.html: ../a.html#gone"]
