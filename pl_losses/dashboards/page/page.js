"use strict"
// Draws the panels of a run's page with BokehJS, each when it comes into view.
const page = JSON.parse(document.getElementById("page").textContent)
const COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#e377c2", "#8c564b", "#7f7f7f", "#bcbd22"]
const DASHES = [[], [6, 3], [2, 3], [2, 3, 6, 3], [12, 3]]
const HEAT = Array.from({length: 32}, (_, i) => {
  const t = i / 31
  return `rgb(${[247 - 239 * t, 251 - 203 * t, 255 - 148 * t].map(Math.round).join(",")})`
})

function numbers(base64) {
  const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0))
  return Array.from(new Float64Array(bytes.buffer))
}

// Exponential moving average with a correction for its start, as Adam's. Its memory is a stretch of the x axis,
// of which there are a thousand, so that a curve of few points stays as it is beside one of many.
function smoothed(x, y, weight, range) {
  let sum = 0, share = 0
  return y.map((value, i) => {
    if (Number.isNaN(value)) return value
    const kept = Math.sqrt(weight) ** (1000 * (x[i] - x[Math.max(i - 1, 0)]) / range)
    sum = kept * sum + value
    share = kept * share + 1
    return sum / share
  })
}

function element(tag, parent, text, kind) {
  const made = document.createElement(tag)
  if (text !== undefined) made.textContent = text
  if (kind) made.className = kind
  parent.append(made)
  return made
}

function figure(log, x) {
  const made = Bokeh.Plotting.figure({
    height: 260, sizing_mode: "stretch_width", tools: "pan,box_zoom,wheel_zoom,reset,save",
    x_axis_label: x, y_axis_type: log ? "log" : "auto", output_backend: "canvas",
  })
  made.toolbar.logo = null
  made.toolbar.autohide = true
  return made
}

// Runs by colour and keys by dashes; of one run layers, or whatever else stands before the last slash, by colour.
function style(line, keys) {
  const head = key => key.slice(0, key.lastIndexOf("/")), tail = key => key.slice(key.lastIndexOf("/"))
  const heads = [...new Set(keys.map(head))], tails = [...new Set(keys.map(tail))]
  let colour = keys.indexOf(line.key), dash = Math.floor(colour / COLOURS.length)
  if (page.runs.length > 1) [colour, dash] = [line.run, colour]
  else if (heads.length > 1 && tails.length > 1) {
    [colour, dash] = [heads.indexOf(head(line.key)), tails.indexOf(tail(line.key))]
  }
  return {line_color: COLOURS[colour % COLOURS.length], line_dash: DASHES[dash % DASHES.length]}
}

const named = line => page.runs.length > 1 ? `${line.key} · ${page.runs[line.run]}` : line.key

function drawLegend(panel, keys, parent) {
  const legend = element("div", parent, undefined, "legend")
  for (const line of panel.lines) {
    const {line_color, line_dash} = style(line, keys)
    const entry = element("span", legend)
    const stroke = `stroke="${line_color}" stroke-width="2" stroke-dasharray="${line_dash.join(" ")}"`
    entry.innerHTML = `<svg width="24" height="10"><line x2="24" y1="5" y2="5" ${stroke}/></svg>`
    entry.append(` ${named(line)} ${line.note && `(${line.note})`}`)
  }
}

function drawLines(panel, place) {
  const log = element("label", place.head)
  const box = element("input", log)
  box.type = "checkbox"
  box.checked = panel.log ?? false
  log.append(" log")
  const weight = element("input", element("label", place.head, "smooth "))
  Object.assign(weight, {type: "range", min: 0, max: 0.99, step: 0.01, value: panel.smoothing ?? 0})
  const keys = [...new Set(panel.lines.map(line => line.key))]
  const ends = panel.lines.map(line => numbers(line.x)).filter(x => x.length).flatMap(x => [x[0], x.at(-1)])
  const range = Math.max(...ends) - Math.min(...ends) || 1
  const redraw = () => {
    place.body.replaceChildren()
    const made = figure(box.checked, panel.x)
    for (const line of panel.lines) {
      const x = numbers(line.x), look = style(line, keys), name = named(line)
      let y = numbers(line.y)
      if (box.checked) y = y.map(value => value > 0 ? value : NaN)
      const options = {name, ...look, line_width: 1.6}
      if (x.length < 30) made.scatter(x, y, {name, size: 5, fill_color: look.line_color, line_color: null})
      if (weight.value > 0 && x.length > 2) {
        made.line(x, y, {...options, line_alpha: 0.25, line_width: 1})
        y = smoothed(x, y, Number(weight.value), range)
      }
      made.line(x, y, options)
    }
    made.add_tools(new Bokeh.HoverTool({tooltips: [["", "$name"], [panel.x, "@x{0,0.####}"], ["value", "@y{0.0000e+0}"]]}))
    Bokeh.Plotting.show(made, place.body)
  }
  box.addEventListener("change", redraw)
  weight.addEventListener("change", redraw)
  drawLegend(panel, keys, place.root)
  redraw()
}

function drawHistogram(panel, place) {
  const made = figure(false, panel.x)
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
      const run = page.runs.length > 1 ? `${page.runs[one.run]}, ` : ""
      const at = one.frames.length ? `${one.x} ${one.frames[i].x}` : ""
      caption.textContent = `${one.key}, ${run}${at} ${one.note}`
      if (one.frames.length) image.src = one.frames[i].source
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
    row.forEach(cell => {
      if (Array.isArray(cell)) element("img", element("td", line)).src = cell[0]
      else element("td", line, String(cell ?? ""))
    })
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
