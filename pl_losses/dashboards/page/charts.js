"use strict"
// Charts with D3 of the size of their place: curves, histograms over time, parallel coordinates.
const PALETTE = ["#3b82c4", "#e0533d", "#2e9e5b", "#9a6bd0", "#c9771f", "#1798a8", "#d55fa8", "#a0714f", "#7f8794", "#8f8f1f"]
const DASHES = ["", "6 3", "2 3", "2 3 6 3", "12 3"]
const MARGIN = {left: 58, right: 14, top: 10, bottom: 40}

// Of more runs than that, all hues of one lightness, which is seen on white and on black.
const colourOf = (number, count) => count > PALETTE.length ? String(d3.hcl(360 * number / count, 55, 58)) : PALETTE[number % PALETTE.length]
const short = value => typeof value === "number" ? String(Number(value.toPrecision(5))) : String(value ?? "-")

// Beside an axis there is room for some seven characters.
const tickText = value => typeof value === "number" && Math.abs(value) >= 1e6 ? Number(value.toPrecision(5)).toExponential() : short(value)

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

const tip = document.createElement("div")
tip.id = "tip"
tip.hidden = true

function tell(event, text) {
  document.body.append(tip)
  tip.textContent = text
  tip.hidden = !text
  const left = event.clientX + 14
  tip.style.left = `${left + tip.offsetWidth > innerWidth ? event.clientX - tip.offsetWidth - 14 : left}px`
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight)}px`
}

// A log axis needs positive ends, any axis two different ones.
function ends(values, log) {
  let [low, high] = d3.extent(log ? values.filter(value => value > 0) : values)
  if (low === undefined) [low, high] = [log ? 0.1 : 0, 1]
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 10, high + (Math.abs(high) || 1) / 10]
  const air = log ? 0 : (high - low) / 25
  return [low - air, high + air]
}

function scaleOf(domain, range, log) {
  return (log ? d3.scaleLog() : d3.scaleLinear()).domain(domain).range(range)
}

// D3 makes a tick for each digit, without asking how many there is room for; of less than a decade, as a
// linear scale does.
function logTicks(scale) {
  const beginning = digits => scale.ticks(5).filter(value => digits.includes(value.toExponential()[0]))
  const tens = beginning("1"), every = Math.ceil(tens.length / 6), few = beginning("125")
  if (tens.length > 1) return tens.filter((_, i) => i % every === 0)
  return few.length > 1 ? few : d3.ticks(...d3.extent(scale.domain()), 5)
}

function axis(svg, made, scale, at, label) {
  const ticks = made.scale(scale).tickFormat(tickText).tickSizeOuter(0)
  if (scale.base) ticks.tickValues(logTicks(scale))
  const group = svg.append("g").attr("transform", at).call(ticks)
  if (label) group.append("text").attr("class", "label").attr("fill", "currentColor").text(label)
  return group
}

// A frame with both axes. Dragging chooses a range of x, which `zoom` takes; a double click takes it back.
function frame(body, {x, y, label, zoom, hover}) {
  body.querySelectorAll("svg, canvas").forEach(one => one.remove())
  const width = body.clientWidth, height = body.clientHeight
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom
  const scales = {x: scaleOf(x, [MARGIN.left, right]), y: scaleOf(y.ends, [bottom, MARGIN.top], y.log)}
  const svg = d3.select(body).append("svg").attr("width", width).attr("height", height)
  const across = d3.axisBottom().ticks(Math.max(2, width / 90)).tickSizeInner(MARGIN.top - bottom).tickPadding(6)
  axis(svg, across, scales.x, `translate(0,${bottom})`, label).select(".label").attr("x", (MARGIN.left + right) / 2).attr("y", 32)
  axis(svg, d3.axisLeft().ticks(5).tickSizeInner(MARGIN.left - right).tickPadding(6), scales.y, `translate(${MARGIN.left},0)`)
  const clip = `clip-${frame.count = (frame.count ?? 0) + 1}`
  const box = shape => shape.attr("x", MARGIN.left).attr("y", MARGIN.top)
    .attr("width", Math.max(0, right - MARGIN.left)).attr("height", bottom - MARGIN.top)
  box(svg.append("clipPath").attr("id", clip).append("rect"))
  const marks = svg.append("g").attr("clip-path", `url(#${clip})`)
  const chosen = box(svg.append("rect")).attr("fill", "currentColor").attr("fill-opacity", 0.12).attr("width", 0)
  const surface = box(svg.append("rect")).attr("class", "surface").attr("fill", "transparent").node()
  const place = event => Math.min(right, Math.max(MARGIN.left, event.clientX - svg.node().getBoundingClientRect().left))
  let from = null
  surface.addEventListener("pointerdown", event => {
    from = place(event)
    surface.setPointerCapture(event.pointerId)
  })
  surface.addEventListener("pointermove", event => {
    const at = place(event)
    if (from !== null) chosen.attr("x", Math.min(from, at)).attr("width", Math.abs(at - from))
    tell(event, from === null ? hover(scales.x.invert(at), scales.y.invert(event.clientY - svg.node().getBoundingClientRect().top)) : "")
  })
  surface.addEventListener("pointerup", event => {
    const range = [from, place(event)].sort((a, b) => a - b)
    from = null
    chosen.attr("width", 0)
    if (range[1] - range[0] > 4) zoom(range.map(scales.x.invert))
  })
  surface.addEventListener("pointerleave", event => tell(event, ""))
  surface.addEventListener("dblclick", () => zoom(null))
  return {...scales, marks, svg, right, bottom}
}

// Curves: {name, run, x, y, colour, dash}, with `weight` of the smoothing.
function drawCurves(body, curves, {log, weight, label, range, zoom}) {
  const whole = d3.extent(curves.flatMap(({x}) => [x[0], x[x.length - 1]]))
  const [low, high] = range ?? ends(whole)
  const inside = curves.map(({x, y}) => y.filter((_, i) => x[i] >= low && x[i] <= high))
  const nearest = at => curves.filter(({x}) => x.length).map(({name, x, y}) => {
    const i = d3.bisector((value, wanted) => value - wanted).left(x, at, 1, x.length - 1)
    const j = i && at - x[i - 1] < x[i] - at ? i - 1 : i
    return {name, x: x[j], y: y[j]}
  }).sort((a, b) => b.y - a.y)
  const hover = at => {
    const found = nearest(at)
    return found.length ? [`${label} ${short(found[0].x)}`, ...found.slice(0, 12).map(({name, y}) => `${short(y)}  ${name}`)].join("\n") : ""
  }
  const made = frame(body, {x: [low, high], y: {ends: ends(inside.flat(), log), log}, label, zoom, hover})
  const path = d3.line().defined(([, value]) => !Number.isNaN(value) && (!log || value > 0)).x(([at]) => made.x(at)).y(([, value]) => made.y(value))
  for (const {run, x, y, colour, dash} of curves) {
    const group = made.marks.append("g").attr("data-run", run).attr("fill", "none").attr("stroke", colour)
    const smooth = weight > 0 && x.length > 2
    const line = values => group.append("path").attr("d", path(d3.zip(x, values))).attr("stroke-width", 1.6).attr("stroke-dasharray", dash)
    if (smooth) line(y).attr("stroke-width", 1).attr("stroke-opacity", 0.3)
    line(smooth ? smoothed(x, y, weight, whole[1] - whole[0] || 1) : y).attr("class", "curve")
    if (x.length < 30) {
      group.selectAll("circle").data(d3.zip(x, y).filter(([, value]) => !log || value > 0)).enter().append("circle")
        .attr("r", 2.5).attr("fill", colour).attr("cx", ([at]) => made.x(at)).attr("cy", ([, value]) => made.y(value))
    }
  }
}

// Where each step of a heat map begins and, at last, ends.
const stretch = ({steps}) => {
  const end = steps[steps.length - 1]
  return [...steps, end + (end - (steps[steps.length - 2] ?? end - 1))]
}

function drawHistogram(body, {steps, edges, counts}, {label, range, zoom, x, y}) {
  const next = stretch({steps}).slice(1)
  const ratio = devicePixelRatio || 1
  const hover = (at, value) => {
    const i = Math.max(0, d3.bisect(steps, at) - 1), bin = d3.bisect(edges[i], value) - 1
    return counts[i][bin] === undefined ? "" : `${label} ${short(steps[i])}\n${counts[i][bin]} in ${short(edges[i][bin])} to ${short(edges[i][bin + 1])}`
  }
  const made = frame(body, {x: range ?? x, y: {ends: y}, label, zoom, hover})
  // Thousands of bins are too many for elements.
  const canvas = document.createElement("canvas")
  Object.assign(canvas, {width: body.clientWidth * ratio, height: body.clientHeight * ratio})
  Object.assign(canvas.style, {width: `${body.clientWidth}px`, height: `${body.clientHeight}px`})
  body.prepend(canvas)
  const ink = canvas.getContext("2d")
  ink.scale(ratio, ratio)
  ink.rect(MARGIN.left, MARGIN.top, made.right - MARGIN.left, made.bottom - MARGIN.top)
  ink.clip()
  ink.fillStyle = PALETTE[0]
  steps.forEach((step, i) => {
    const most = Math.max(...counts[i], 1), left = made.x(step), width = made.x(next[i]) - left
    counts[i].forEach((count, bin) => {
      ink.globalAlpha = count / most
      ink.fillRect(left, made.y(edges[i][bin + 1]), width, made.y(edges[i][bin]) - made.y(edges[i][bin + 1]))
    })
  })
}

// A line for each run {run, name, colour}, through its value on each axis; `light` takes a run under the pointer or none.
function drawParallel(body, axes, runs, light) {
  body.replaceChildren()
  const width = body.clientWidth, height = body.clientHeight, top = 34, bottom = height - 16
  const svg = d3.select(body).append("svg").attr("width", width).attr("height", height)
  const across = d3.scalePoint().domain(d3.range(axes.length)).range([50, width - 70])
  const scales = axes.map(({values}) => {
    const known = values.filter(value => value !== null)
    if (known.some(value => typeof value === "string")) {
      return d3.scalePoint().domain([...new Set(known.map(String))].sort()).range([bottom, top]).padding(0.5)
    }
    const [low, high] = d3.extent(known), log = low > 0 && high / low >= 10
    return scaleOf(ends(known, log), [bottom, top], log)
  })
  const path = d3.line().defined(([, y]) => y !== undefined)
  for (const {run, name, colour} of runs) {
    const known = axes.map(({values}, i) => [across(i), values[run] === null ? undefined : scales[i](scales[i].step ? String(values[run]) : values[run])])
    const line = svg.append("path").attr("data-run", run).attr("class", "run").attr("d", path(known))
      .attr("fill", "none").attr("stroke", colour).attr("stroke-width", 2)
    const told = [name, ...axes.map(axis => `${short(axis.values[run])}  ${axis.name}`)].join("\n")
    // A wider line is easier to point at.
    svg.append("path").attr("d", path(known)).attr("fill", "none").attr("stroke", "transparent").attr("stroke-width", 12)
      .on("pointermove", function () { tell(d3.event, told); light(run); line.attr("stroke-width", 4) })
      .on("pointerleave", function () { tell(d3.event, ""); light(null); line.attr("stroke-width", 2) })
      .on("click", () => light(run, true))
  }
  axes.forEach(({name}, i) => {
    const side = i === axes.length - 1 ? d3.axisRight() : d3.axisLeft()
    const group = axis(svg, side.ticks(6), scales[i], `translate(${across(i)},0)`)
    const anchor = i === 0 ? "start" : i === axes.length - 1 ? "end" : "middle" // Within the panel.
    group.append("text").attr("fill", "currentColor").attr("text-anchor", anchor).attr("y", top - (i % 2 ? 20 : 8))
      .attr("font-weight", 600).text(name.split(".").slice(-2).join(".")).append("title").text(name)
  })
}
