"use strict"
// What is in a panel, by its kind. Each function fills `place` {root, head, body} and returns what draws it again.
function element(tag, parent, text, kind) {
  const made = document.createElement(tag)
  if (text !== undefined) made.textContent = text
  if (kind) made.className = kind
  parent.append(made)
  return made
}

function slider(parent, most, step, value) {
  const made = element("input", parent)
  Object.assign(made, {type: "range", min: 0, max: most, step, value})
  return made
}

const named = line => page.runs.length > 1 ? `${line.key} · ${page.runs[line.run]}` : line.key

// Runs by colour and keys by dashes; of one run layers, or whatever else stands before the last slash, by colour.
function style(line, keys) {
  const head = key => key.slice(0, key.lastIndexOf("/")), tail = key => key.slice(key.lastIndexOf("/"))
  const heads = [...new Set(keys.map(head))], tails = [...new Set(keys.map(tail))]
  let colour = keys.indexOf(line.key), dash = Math.floor(colour / PALETTE.length), count = 0
  if (page.runs.length > 1) [colour, dash, count] = [line.run, colour, page.runs.length]
  else if (heads.length > 1 && tails.length > 1) {
    [colour, dash] = [heads.indexOf(head(line.key)), tails.indexOf(tail(line.key))]
  }
  return {colour: colourOf(colour, count), dash: DASHES[dash % DASHES.length]}
}

// Of several runs, the dashes of the keys and the colours of the runs.
function legend(panel, keys, parent) {
  const made = element("div", parent, undefined, "legend")
  const entry = (text, colour, dash, run) => {
    const one = element("span", made)
    if (run !== undefined) one.dataset.run = run
    d3.select(one).append("svg").attr("width", 24).attr("height", 10).append("line").attr("x2", 24).attr("y1", 5).attr("y2", 5)
      .attr("stroke", colour).attr("stroke-width", 2).attr("stroke-dasharray", dash)
    one.append(` ${text}`)
  }
  const runs = [...new Set(panel.lines.map(line => line.run))]
  if (page.runs.length > 1) {
    if (keys.length > 1) for (const key of keys) entry(key, "currentColor", style({key, run: 0}, keys).dash)
    for (const run of runs) entry(page.runs[run], style({key: keys[0], run}, keys).colour, "", run)
  } else for (const line of panel.lines) entry(line.key, style(line, keys).colour, style(line, keys).dash)
  for (const line of panel.lines.filter(line => line.note)) element("span", made, `${named(line)}: ${line.note}`, "note").dataset.run = line.run
}

// The figure as a file, in the colours of the page.
function save(place, title) {
  const svg = place.body.querySelector("svg").cloneNode(true), {color, backgroundColor} = getComputedStyle(document.body)
  svg.setAttribute("xmlns", "http://www.w3.org/2000/svg")
  svg.setAttribute("style", `color: ${color}; background: ${backgroundColor}; font: 11px sans-serif`)
  svg.querySelectorAll(".domain, .tick line").forEach(one => one.setAttribute("stroke-opacity", 0.2))
  const address = URL.createObjectURL(new Blob([svg.outerHTML], {type: "image/svg+xml"}))
  Object.assign(document.createElement("a"), {href: address, download: `${title}.svg`}).click()
  URL.revokeObjectURL(address)
}

function linesPanel(panel, place) {
  const box = element("input", element("label", place.head, "log "))
  Object.assign(box, {type: "checkbox", checked: panel.log ?? false})
  const weight = slider(element("label", place.head, "smooth "), 0.99, 0.01, state.smoothing ?? panel.smoothing ?? 0)
  place.root.smooth = value => { weight.value = value }
  element("button", place.head, "SVG").addEventListener("click", () => save(place, panel.title))
  const keys = [...new Set(panel.lines.map(line => line.key))]
  legend(panel, keys, place.root)
  const draw = () => {
    panel.curves ??= panel.lines.map(line => ({run: line.run, name: named(line), x: numbers(line.x), y: numbers(line.y), ...style(line, keys)}))
    const curves = panel.curves.filter(curve => curve.x.length && !state.hidden.includes(curve.run))
    drawCurves(place.body, curves, {log: box.checked, weight: Number(weight.value), ...zoomed(panel, draw)})
  }
  box.addEventListener("change", draw)
  weight.addEventListener("input", draw)
  return draw
}

// The runs' histograms are side by side, on the same axes.
function histogramPanel(panel, place) {
  if (page.runs.length > 1) place.root.classList.add("several")
  const group = element("div", place.body, undefined, "beside")
  const bodies = panel.maps.map(one => {
    const box = element("figure", group), body = element("div", box, undefined, "map")
    if (page.runs.length > 1) element("figcaption", box, page.runs[one.run])
    box.dataset.run = one.run
    return body
  })
  const draw = () => {
    const shown = panel.maps.filter(one => !state.hidden.includes(one.run))
    const y = d3.extent(shown.flatMap(one => one.edges.flat())), x = d3.extent(shown.flatMap(stretch))
    panel.maps.forEach((one, i) => {
      if (shown.includes(one)) drawHistogram(bodies[i], one, {...zoomed(panel, draw), x, y})
    })
  }
  return draw
}

function parallelPanel(panel, place) {
  return () => {
    const runs = page.runs.map((name, run) => ({run, name, colour: colourOf(run, page.runs.length)}))
    drawParallel(place.body, panel.axes, runs.filter(({run}) => !state.hidden.includes(run)), light)
  }
}

// The runs' pictures of a key are side by side, under one slider: it goes through the steps of the run that has most.
function picturesPanel(panel, place) {
  if (page.runs.length > 1) place.root.classList.add("several")
  for (const key of new Set(panel.pictures.map(one => one.key))) {
    const group = element("div", place.body, undefined, "beside")
    const shown = panel.pictures.filter(one => one.key === key).map(one => {
      const box = element("figure", group), image = element("img", box), caption = element("figcaption", box)
      box.dataset.run = one.run
      if (page.runs.length === 1) image.addEventListener("click", () => place.root.classList.toggle("wide"))
      return {frames: one.frames, show: x => {
        const frame = one.frames.reduce((near, next) => near && Math.abs(near.x - x) < Math.abs(next.x - x) ? near : next, null)
        const at = frame && `${one.x} ${short(frame.x)}`
        caption.textContent = [key, page.runs.length > 1 && page.runs[one.run], at, one.note].filter(Boolean).join(", ")
        image.hidden = !frame
        if (frame) image.src = frame.source
      }}
    })
    const steps = shown.map(one => one.frames.map(frame => frame.x)).reduce((most, one) => one.length > most.length ? one : most)
    const show = i => shown.forEach(one => one.show(steps[i]))
    show(steps.length - 1)
    if (steps.length > 1) {
      const chosen = slider(place.body, steps.length - 1, 1, steps.length - 1)
      chosen.addEventListener("input", () => show(Number(chosen.value)))
    }
  }
}

function tablePanel(panel, place) {
  const table = element("table", element("div", place.body, undefined, "scroll"))
  const fill = (row, tag) => {
    const line = element("tr", table)
    row.forEach((cell, i) => {
      const made = element(tag, line, cell?.source ? undefined : short(cell ?? ""))
      if (cell?.source) element("img", made).src = cell.source
      if (panel.owners?.[i] != null) made.dataset.run = panel.owners[i]
    })
  }
  fill(panel.columns, "th")
  panel.rows.forEach(row => fill(row, "td"))
  if (panel.note) element("p", place.body, panel.note)
}

const PANELS = {lines: linesPanel, histogram: histogramPanel, pictures: picturesPanel, table: tablePanel, parallel: parallelPanel}
