"use strict"
// Lays the page out. Charts are drawn when they come into view; what was set is kept while the tab is open.
const page = JSON.parse(document.getElementById("page").textContent)
const KEY = `pl_losses ${location.pathname}`
const state = {hidden: [], smoothing: null, linked: false, dark: null, search: "", folded: {}, scroll: 0, focus: ""}
try {
  Object.assign(state, JSON.parse(sessionStorage.getItem(KEY)))
} catch {} // No storage: nothing is kept.
const zooms = {} // Axis to its range, where the axes are linked.
const main = document.querySelector("main"), control = name => document.getElementById(name)

// Runs that are hidden, and those that are not the one under the pointer.
const rules = element("style", document.head)
let kept = null
function mark(run = kept) {
  const hidden = state.hidden.map(one => `main [data-run="${one}"] { display: none }`)
  const others = run === null ? [] : [`main [data-run]:not([data-run="${run}"]) { opacity: .15 }`]
  rules.textContent = [...hidden, ...others].join("\n")
}
function light(run, click) {
  if (click) kept = kept === run ? null : run
  mark(run ?? kept)
}

const drawn = new Set()
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries.filter(one => one.isIntersecting)) {
    watcher.unobserve(entry.target)
    drawn.add(entry.target)
    entry.target.draw()
    document.body.dataset.drawn = drawn.size
  }
}, {rootMargin: "300px"})

// What is in view at once, all others when they come into view.
function drawAgain(wanted = () => true) {
  for (const root of [...drawn].filter(wanted)) {
    const {top, bottom, height} = root.getBoundingClientRect()
    if (height && bottom > 0 && top < innerHeight) root.draw()
    else watcher.observe(root)
  }
}

function zoomed(panel, draw) {
  const zoom = range => {
    if (!state.linked) { panel.range = range; draw(); return }
    zooms[panel.x] = range
    drawAgain(root => root.panel.x === panel.x)
  }
  return {label: panel.x, range: (state.linked ? zooms[panel.x] : panel.range) ?? null, zoom}
}

function lay(section, number) {
  const folded = element("details", control("sections"))
  folded.open = section.open
  element("summary", folded, section.name)
  const grid = element("div", folded, undefined, "grid")
  for (const panel of section.panels) {
    const root = element("div", grid, undefined, `panel ${panel.kind}`)
    const head = element("div", root, undefined, "head"), body = element("div", root, undefined, "body")
    element("b", head, panel.title)
    const keys = (panel.lines ?? panel.pictures ?? []).map(one => one.key)
    const rows = panel.owners ? panel.rows.map(row => row[0]) : []
    root.dataset.key = [section.name, panel.title, ...keys, ...rows].join(" ")
    if (panel.run !== undefined) root.dataset.run = panel.run
    root.panel = panel
    root.draw = PANELS[panel.kind](panel, {root, head, body})
    if (root.draw) watcher.observe(root)
  }
}

// Panels and rows whose key has every word; sections with none of them are hidden with their entry.
function search() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean)
  for (const one of document.querySelectorAll("[data-key]")) {
    const key = one.dataset.key.toLowerCase()
    one.hidden = !words.every(word => key.includes(word))
  }
  for (const folded of main.querySelectorAll("details")) {
    folded.hidden = Boolean(words.length) && !folded.querySelector("[data-key]:not([hidden])")
    folded.entry.hidden = folded.hidden
  }
  control("nothing").hidden = !words.length || Boolean(document.querySelector("[data-key]:not([hidden])"))
}

function switches() {
  for (const row of document.querySelectorAll("[data-switch]")) {
    const run = Number(row.dataset.switch), cell = row.firstElementChild, name = cell.textContent
    cell.textContent = ""
    const label = element("label", cell), box = element("input", label)
    Object.assign(box, {type: "checkbox", checked: !state.hidden.includes(run)})
    element("span", label, undefined, "swatch").style.background = colourOf(run, page.runs.length)
    label.append(name)
    row.classList.toggle("off", !box.checked)
    box.addEventListener("change", () => {
      state.hidden = state.hidden.filter(one => one !== run).concat(box.checked ? [] : [run])
      row.classList.toggle("off", !box.checked)
      mark()
      drawAgain()
    })
    row.addEventListener("pointerenter", () => light(run))
    row.addEventListener("pointerleave", () => light(null))
  }
}

function controls() {
  const set = {
    search: event => { state.search = event.target.value; search() },
    smoothing: event => {
      state.smoothing = event.target.valueAsNumber
      document.querySelectorAll(".panel.lines").forEach(root => root.smooth(state.smoothing))
      drawAgain(root => root.panel.kind === "lines")
    },
    linked: event => { state.linked = event.target.checked; drawAgain() },
    dark: event => { state.dark = event.target.checked; theme() },
  }
  for (const [name, change] of Object.entries(set)) control(name).addEventListener("input", change)
  control("search").value = state.search
  control("smoothing").value = state.smoothing ?? 0
  control("linked").checked = state.linked
}

// As the system has it, until it is switched.
const system = matchMedia("(prefers-color-scheme: dark)")
function theme() {
  control("dark").checked = state.dark ?? system.matches
  document.documentElement.style.colorScheme = state.dark === null ? "" : state.dark ? "dark" : "light"
}
system.addEventListener("change", theme)

page.sections.forEach(lay)
main.querySelectorAll("details").forEach((folded, number) => {
  const name = folded.firstElementChild.textContent
  folded.id = `section-${number}`
  folded.open = state.folded[name] ?? folded.open
  folded.entry = element("a", control("contents"), name)
  folded.entry.href = `#${folded.id}`
  folded.entry.addEventListener("click", () => { folded.open = true })
  folded.addEventListener("toggle", () => { state.folded[name] = folded.open })
})
switches()
controls()
theme()
mark()
search()

let width = innerWidth
addEventListener("resize", () => {
  if (width !== innerWidth) drawAgain()
  width = innerWidth
})
history.scrollRestoration = "manual"
addEventListener("load", () => {
  if (state.scroll || !location.hash) scrollTo(0, state.scroll)
  control(state.focus)?.focus({preventScroll: true})
})
addEventListener("pagehide", () => {
  state.scroll = scrollY
  state.focus = document.activeElement.id
  try { sessionStorage.setItem(KEY, JSON.stringify(state)) } catch {}
})
if (page.refresh) {
  control("watched").textContent = `The run goes on: this page is loaded again every ${page.refresh} s`
  setInterval(() => { if (!document.hidden && !document.querySelector(".surface:active, input:active")) location.reload() }, 1000 * page.refresh)
}
