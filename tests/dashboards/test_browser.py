"""What the page of runs does in a browser; without one these tests are skipped."""

import json
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pytest
from PIL import Image

from pl_losses.dashboards import build_page
from pl_losses.dashboards.offline.runs import Item, Run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH"
)


def made(folder, number):
    """A run with one thing of each kind; its curves go from 0 to 99."""
    draw = np.random.default_rng(number)
    run = Run(f"run{number}", folder / f"run-{number}.wandb", [folder])
    run.config = {"model": {"class_path": "own.Net"}, "lr": 10.0**-number, "kind": "ab"[number % 2]}
    for step in range(100):
        row = {"_step": step, "train/loss": 1 + draw.random(), "val/loss": 2 + number, "own/margin": step}
        row["own/large"] = 4e9 + 1e7 * step
        run.columns.add({key.encode(): json.dumps(value).encode() for key, value in row.items()})
    run.system.add({b"minutes": b"0", b"cpu": b"5"})
    run.system.add({b"minutes": b"1", b"cpu": b"7"})
    run.console = ["hello\n"]
    run.facts = {
        "checkpoint": f"runs/{'folder/' * 16}last.ckpt",
        "began": "2026-01-01 00:00 UTC",
        "took": "99 s",
    }
    Image.new("RGB", (20, 20), (255, 0, 0)).save(folder / "red.png")
    cells = [[{"_type": "image-file", "path": "red.png"}, 7, 0.25]]
    (folder / "table.json").write_text(json.dumps({"columns": ["image", "right", "p"], "data": cells}))
    histogram = {"bins": [0, 1, 2], "values": [3, 4]}
    run.items = {
        "picture": {"own/picture": [Item(step, "_step", {"path": "red.png"}) for step in (0, 50)]},
        "table": {"own/misread": [Item(99, "_step", {"path": "table.json"})]},
        "histogram": {"own/slopes": [Item(step, "_step", histogram) for step in (0, 50)]},
    }
    return run


# Does what a user does, has the page loaded again, and leaves what it saw on the body. The window has room
# for all panels.
USER = """
const at = (selector, number = 0) => document.querySelectorAll(selector)[number]
const visible = one => one.checkVisibility()
const all = selector => [...document.querySelectorAll(selector)]
const wait = () => new Promise(done => setTimeout(done, 500))
const set = (name, values) => {
  Object.assign(at(name), values)
  at(name).dispatchEvent(new Event("input", {bubbles: true}))
  at(name).dispatchEvent(new Event("change", {bubbles: true}))
}
const panel = title => all(".panel").find(one => one.querySelector("b").textContent === title)
const ticks = title => [...panel(title).querySelectorAll(".tick text")].map(one => one.textContent)
const drag = (title, from, to) => {
  const surface = panel(title).querySelector(".surface"), box = surface.getBoundingClientRect()
  surface.setPointerCapture = () => {}  // A made event has no pointer.
  for (const [kind, share] of [["pointerdown", from], ["pointermove", to], ["pointerup", to]]) {
    const clientX = box.left + share * box.width
    surface.dispatchEvent(new PointerEvent(kind, {clientX, clientY: box.top + 5}))
  }
}
const curves = title => panel(title).querySelectorAll("path.curve[d]").length

async function use() {
  const seen = {}
  all("main details").forEach(one => { one.open = true })
  seen.charts = all(".panel.lines, .panel.histogram, .panel.parallel").length
  // A busy machine takes its time.
  for (let tries = 0; tries < 20; tries++) {
    if (Number(document.body.dataset.drawn ?? 0) >= seen.charts) break
    await wait()
  }
  await wait()
  seen.drawn = Number(document.body.dataset.drawn)
  seen.curves = curves("Loss")
  const inked = one => new Set(one.getContext("2d").getImageData(0, 0, one.width, one.height).data).size > 2
  seen.histograms = all("canvas").filter(inked).length
  seen.pictures = all(".pictures img, td img").filter(one => one.naturalWidth === 20).length
  seen.wide = at("#runs").scrollWidth > innerWidth
  const left = one => one.getBoundingClientRect().left
  seen.cut = all(".panel.lines .tick text").filter(one => left(one) < left(one.closest(".panel")))
    .map(one => one.textContent)
  seen.entries = all("#contents a").map(one => one.textContent)
  seen.lines = all(".parallel path.run").length

  at(".pictures input").value = 0
  at(".pictures input").dispatchEvent(new Event("input"))
  seen.captions = all(".pictures figcaption").map(one => one.textContent)

  set("#smoothing", {value: 0.9})
  await wait()
  seen.faint = panel("own/margin").querySelectorAll("path[stroke-opacity]").length

  HTMLAnchorElement.prototype.click = function () { seen.file = [this.download, this.href.slice(0, 5)] }
  panel("Loss").querySelector("button").click()

  drag("Loss", 0.5, 0.75)
  seen.alone = [ticks("Loss").includes("20"), ticks("own/margin").includes("20")]
  set("#linked", {checked: true})
  await wait()
  drag("Loss", 0.5, 0.75)
  await wait()
  seen.together = [ticks("Loss").includes("20"), ticks("own/margin").includes("20")]
  panel("Loss").querySelector(".surface").dispatchEvent(new MouseEvent("dblclick"))
  await wait()
  seen.again = [ticks("Loss").includes("20"), ticks("own/margin").includes("20")]

  at("#runs tr", 2).dispatchEvent(new PointerEvent("pointerenter"))
  seen.faded = all(".parallel path.run").map(one => getComputedStyle(one).opacity)
  at("#runs tr", 2).dispatchEvent(new PointerEvent("pointerleave"))

  at("#runs input", 1).click()
  await wait()
  seen.kept = curves("Loss")
  seen.hidden = all("main [data-run='1']").filter(visible).length
  seen.other = all("main [data-run='2']").filter(visible).length

  const ground = () => getComputedStyle(document.body).backgroundColor
  seen.grounds = [ground()]
  at("#dark").click()
  seen.grounds.push(ground())

  seen.nothing = [visible(at("#nothing"))]
  set("#search", {value: "nowhere"})
  seen.nothing.push(visible(at("#nothing")))
  set("#search", {value: "MARGIN own"})
  seen.nothing.push(visible(at("#nothing")))
  seen.found = all(".panel").filter(visible).map(one => one.querySelector("b").textContent)
  seen.values = all("tr[data-key]").filter(visible).map(one => one.dataset.key)
  seen.left = all("#contents a").filter(visible).map(one => one.textContent)
  return seen
}

const before = sessionStorage.getItem("seen")
if (before === null) use().then(seen => {
  sessionStorage.setItem("seen", JSON.stringify(seen))
  location.reload()
}).catch(error => { console.log(error.stack) })
else wait().then(() => {
  const seen = JSON.parse(before)
  seen.reloaded = [at("#search").value, at("#smoothing").value, at("#linked").checked, at("#dark").checked,
    all("#runs input").map(one => one.checked), all(".panel").filter(visible).length]
  document.body.dataset.seen = JSON.stringify(seen)
})
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    page = folder / "page.html"
    made_page = build_page([made(folder, number) for number in range(3)])
    page.write_text(made_page.replace("</body>", f"<script>{USER}</script></body>"))
    # Without its calls home, in an empty profile.
    options = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
    options += ["disable-background-networking", "disable-component-update", "enable-logging=stderr"]
    options += [f"user-data-dir={folder / 'profile'}", "window-size=1400,6000", "virtual-time-budget=30000"]
    command = [BROWSER, *(f"--{option}" for option in options), "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    complaints = re.findall("CONSOLE.*", done.stderr)
    assert not complaints
    return json.loads(unescape(re.search(r'data-seen="([^"]*)"', done.stdout)[1]))


def test_everything_is_drawn(seen):
    assert seen["drawn"] == seen["charts"] == 6
    assert (seen["curves"], seen["histograms"], seen["lines"]) == (6, 3, 3)
    assert seen["pictures"] == 6  # Those of tables are among them.
    assert seen["entries"][0] == "Runs compared"
    assert seen["entries"][-4:] == ["System", "Console", "All values", "Config"]


def test_labels_of_axes_are_whole(seen):
    assert not seen["cut"]


def test_the_table_of_runs_fits_into_the_window(seen):
    assert not seen["wide"]


def test_pictures_of_runs_have_one_slider(seen):
    assert seen["captions"] == [f"own/picture, run{number}, _step 0" for number in range(3)]


def test_one_smoothing_for_all(seen):
    assert seen["faint"] == 3  # Beside each run's smooth curve.


def test_a_figure_is_saved(seen):
    assert seen["file"] == ["Loss.svg", "blob:"]


def test_x_axes_are_linked_on_request(seen):
    assert (seen["alone"], seen["together"], seen["again"]) == ([False, True], [False, False], [True, True])


def test_a_run_is_hidden_everywhere(seen):
    assert (seen["kept"], seen["hidden"]) == (4, 0)
    assert seen["other"] > 10


def test_a_run_is_lit(seen):
    assert seen["faded"] == ["0.15", "1", "0.15"]


def test_dark_mode(seen):
    assert seen["grounds"] == ["rgb(255, 255, 255)", "rgb(22, 24, 28)"]


def test_keys_are_searched(seen):
    assert (seen["found"], seen["values"]) == (["own/margin"], ["own/margin"])
    assert seen["left"] == ["own", "All values"]
    assert seen["nothing"] == [False, True, False]  # A sentence says that no key has the words.


def test_what_was_set_is_kept_when_the_page_is_loaded_again(seen):
    assert seen["reloaded"] == ["MARGIN own", "0.9", True, True, [True, False, True], 1]
