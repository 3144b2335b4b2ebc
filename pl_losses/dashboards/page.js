"use strict"
// Draws the panels of a run's page with BokehJS, each when it comes into view.
const page = JSON.parse(document.getElementById("page").textContent)
const COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#e377c2", "#8c564b", "#7f7f7f", "#bcbd22"]
const DASHES = ["solid", "dashed", "dotted", "dotdash", "dashdot"]
const HEAT = Array.from({length: 32}, (_, i) => {
  const t = i / 31
  return `rgb(${[247 - 239 * t, 251 - 203 * t, 255 - 148 * t].map(Math.round).join(",")})`
})

function numbers(base64) {
  const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0))
  return Array.from(new Float64Array(bytes.buffer))
}

// Exponential moving average with a correction for its start, as Adam's.
function smoothed(values, weight) {
  let mean = 0, share = 0
  return values.map(value => {
    mean = weight * mean + (1 - weight) * value
    share = weight * share + (1 - weight)
    return mean / share
  })
}

function element(tag, parent, text, kind) {
  const made = document.createElement(tag)
  if (text !== undefined) made.textContent = text
  if (kind) made.className = kind
  parent.append(made)
  return made
}

function figure(panel, log, x) {
  const made = Bokeh.Plotting.figure({
    height: 260, sizing_mode: "stretch_width", tools: "pan,box_zoom,wheel_zoom,reset,save",
    x_axis_label: x, y_axis_type: log ? "log" : "auto", output_backend: "canvas",
  })
  made.toolbar.logo = null
  made.toolbar.autohide = true
  return made
}

function style(line, keys) {
  const several = page.runs.length > 1
  const key = keys.indexOf(line.key)
  return {
    line_color: COLOURS[(several ? line.run : key) % COLOURS.length],
    line_dash: DASHES[several ? key % DASHES.length : Math.floor(key / COLOURS.length) % DASHES.length],
  }
}

function drawLines(panel, place) {
  const log = element("label", place.head)
  const box = element("input", log)
  box.type = "checkbox"
  box.checked = panel.log
  log.append(" log")
  const weight = element("input", place.head)
  Object.assign(weight, {type: "range", min: 0, max: 0.99, step: 0.01, value: panel.smoothing, title: "smoothing"})
  const keys = [...new Set(panel.lines.map(line => line.key))]
  const redraw = () => {
    place.body.replaceChildren()
    const made = figure(panel, box.checked, panel.x)
    for (const line of panel.lines) {
      const x = numbers(line.x), look = style(line, keys)
      let y = numbers(line.y)
      if (box.checked) y = y.map(value => value > 0 ? value : NaN)
      const name = page.runs.length > 1 ? `${line.key} (${page.runs[line.run]})` : line.key
      const options = {name, ...look, line_width: 1.6}
      if (weight.value > 0 && x.length > 2) {
        made.line(x, y, {...options, line_alpha: 0.25, line_width: 1})
        y = smoothed(y, Number(weight.value))
      }
      made.line(x, y, options)
      if (x.length < 30) made.scatter(x, y, {name, size: 5, fill_color: look.line_color, line_color: null})
    }
    made.add_tools(new Bokeh.HoverTool({tooltips: [["", "$name"], [panel.x, "@x{0,0.####}"], ["value", "@y{0.0000e+0}"]]}))
    Bokeh.Plotting.show(made, place.body)
  }
  box.addEventListener("change", redraw)
  weight.addEventListener("change", redraw)
  const legend = element("div", place.root, undefined, "legend")
  for (const line of panel.lines) {
    const look = style(line, keys)
    const entry = element("span", legend, page.runs.length > 1 ? `${line.key} · ${page.runs[line.run]}` : line.key)
    if (line.note) entry.append(` (${line.note})`)
    entry.style.borderLeft = `14px ${look.line_dash === "solid" ? "solid" : "double"} ${look.line_color}`
  }
  redraw()
}

function drawHistogram(panel, place) {
  const made = figure(panel, false, panel.x)
  const left = [], right = [], bottom = [], top = [], colour = [], count = []
  panel.steps.forEach((step, i) => {
    const next = panel.steps[i + 1] ?? step + (step - (panel.steps[i - 1] ?? step - 1))
    const most = Math.max(...panel.counts[i], 1)
    panel.counts[i].forEach((value, bin) => {
      if (!value) return
      left.push(step); right.push(next)
      bottom.push(panel.edges[i][bin]); top.push(panel.edges[i][bin + 1])
      colour.push(HEAT[Math.round(31 * value / most)]); count.push(value)
    })
  })
  made.quad(left, right, bottom, top, {fill_color: colour, line_color: null})
  Bokeh.Plotting.show(made, place.body)
}

function drawPictures(panel, place) {
  place.body.className = "pictures"
  for (const one of panel.pictures) {
    const box = element("figure", place.body)
    const image = element("img", box)
    const caption = element("figcaption", box)
    image.addEventListener("click", () => place.root.classList.toggle("wide"))
    const show = i => {
      image.src = one.frames[i].source
      const run = page.runs.length > 1 ? `${page.runs[one.run]}, ` : ""
      caption.textContent = `${one.key}, ${run}${panel.x} ${one.frames[i].x} ${one.note}`
    }
    show(one.frames.length - 1)
    if (one.frames.length > 1) {
      const slider = element("input", box)
      Object.assign(slider, {type: "range", min: 0, max: one.frames.length - 1, value: one.frames.length - 1})
      slider.addEventListener("input", () => show(Number(slider.value)))
    }
  }
}

function drawTable(panel, place) {
  const table = element("table", element("div", place.body, undefined, "scroll"))
  const head = element("tr", table)
  panel.columns.forEach(name => element("th", head, name))
  for (const row of panel.rows) {
    const line = element("tr", table)
    row.forEach(cell => element("td", line, typeof cell === "object" ? JSON.stringify(cell) : String(cell)))
  }
  if (panel.note) element("p", place.body, panel.note)
}

const DRAW = {lines: drawLines, histogram: drawHistogram, pictures: drawPictures, table: drawTable}
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue
    watcher.unobserve(entry.target)
    const panel = entry.target.panel
    const root = entry.target
    DRAW[panel.kind](panel, {root, head: root.querySelector(".head"), body: root.querySelector(".body")})
    document.body.dataset.drawn = Number(document.body.dataset.drawn ?? 0) + 1
  }
}, {rootMargin: "300px"})

for (const section of page.sections) {
  const folded = element("details", document.getElementById("sections"))
  folded.open = section.open
  element("summary", folded, section.name)
  const grid = element("div", folded, undefined, "grid")
  for (const panel of section.panels) {
    const root = element("div", grid, undefined, `panel ${panel.kind}`)
    const head = element("div", root, undefined, "head")
    element("b", head, panel.title)
    element("div", root, undefined, "body")
    root.panel = panel
    watcher.observe(root)
  }
}
