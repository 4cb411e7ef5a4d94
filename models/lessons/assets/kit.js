/* What the widgets of all lessons share. A lesson's file gives widgets.NAME = (box, data) => play:
   it fills the box, and play(what) operates its controls and gives the numbers that it then shows. */
"use strict";

const widgets = {};
const COLOURS = ["blue", "orange", "green", "purple", "pink", "teal", "gold", "grey"];

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  return dress(element, attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  return dress(element, attributes, children);
}

function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-")) element.setAttribute(name, String(value));
    else if (value !== false && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat());
  return element;
}

const raised = power => [...String(power)].map(c => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");

/* Numbers for people: four digits. */
function shown(value) {
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return value > 0 ? "∞" : Number.isNaN(value) ? "none" : "−∞";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return value.toLocaleString("en-US").replace("-", "−");
  if (size && (size < 1e-4 || size >= 1e7)) {
    const [number, exponent] = value.toExponential(2).split("e");
    return `${number}·10${raised(Number(exponent))}`.replace("-", "−");
  }
  const text = size >= 1000 ? Math.round(value).toLocaleString("en-US") : Number(value.toPrecision(4)).toString();
  return text.replace("-", "−");
}

const fixed = (value, digits) => value.toFixed(digits).replace("-", "−");
const percent = value => `${(100 * value).toFixed(value < 0.001 ? 3 : 1)} %`;

function bytes(size) {
  for (const unit of ["bytes", "kB", "MB", "GB", "TB", "PB"]) {
    if (size < 1000 || unit === "PB") return `${shown(Number(size.toPrecision(3)))} ${unit}`;
    size /= 1000;
  }
}

function duration(seconds) {
  const units = [["years", 365.25 * 86400], ["months", 30.44 * 86400], ["days", 86400], ["hours", 3600], ["minutes", 60], ["s", 1], ["ms", 1e-3], ["µs", 1e-6]];
  const [name, size] = units.find(([, size]) => seconds >= size) || units.at(-1);
  return `${Number((seconds / size).toPrecision(3))} ${name}`;
}

/* Arrays that came as base64 of float32. */
function numbers(packed) {
  if (!packed || packed.f32 === undefined) return packed;
  const text = atob(packed.f32), raw = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) raw[i] = text.charCodeAt(i);
  const result = new Float32Array(raw.buffer);
  result.shape = packed.shape;
  return result;
}

function unpack(value) {
  if (Array.isArray(value)) return value.map(unpack);
  if (value && typeof value === "object") {
    if (value.f32 !== undefined) return numbers(value);
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, unpack(item)]));
  }
  return value;
}

/* ---- controls ---- */

let count = 0;

function controls(box, ...inner) {
  const row = make("div", {class: "controls"}, ...inner.map(part => part.element || part));
  box.append(row);
  return row;
}

function slider(label, from, to, step, value, changed, text = shown) {
  const id = `control-${++count}`, output = make("output", {for: id});
  const input = make("input", {type: "range", id, min: from, max: to, step, oninput: tell});
  input.value = value;
  const control = {
    element: make("div", {class: "control"}, make("label", {for: id}, label, " ", output), input),
    get value() { return Number(input.value); },
    set(next) { input.value = next; input.dispatchEvent(new Event("input")); },
  };
  function tell() {
    const said = text(Number(input.value));
    output.textContent = said;
    input.setAttribute("aria-valuetext", said);
    if (changed) changed(Number(input.value));
  }
  output.textContent = text(Number(input.value));
  input.setAttribute("aria-valuetext", output.textContent);
  return control;
}

/* A slider over a list of values, or over powers. */
function steps(label, values, place, changed, text = shown) {
  const control = slider(label, 0, values.length - 1, 1, place, () => changed && changed(), at => text(values[at]));
  return {
    element: control.element,
    get value() { return values[control.value]; },
    get place() { return control.value; },
    set(value) { control.set(values.indexOf(value)); },
  };
}

function choice(label, options, chosen, changed) {
  const id = `control-${++count}`;
  const select = make("select", {id, onchange: () => changed(select.selectedIndex)},
    options.map(option => make("option", {}, option)));
  select.selectedIndex = chosen;
  return {
    element: make("div", {class: "control"}, make("label", {for: id}, label), select),
    get value() { return select.selectedIndex; },
    set(place) { select.selectedIndex = place; select.dispatchEvent(new Event("change")); },
  };
}

function button(label, pressed, attributes = {}) {
  return make("button", {type: "button", onclick: pressed, ...attributes}, label);
}

/* ---- pictures ---- */

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

const mixed = (name, share) => `color-mix(in srgb, var(--${name}) ${Math.round(100 * Math.min(Math.max(share, 0), 1))}%, var(--paper))`;

/* Blue for what is above 0, orange for what is below. */
const tint = (value, limit) => mixed(value >= 0 ? "blue" : "orange", limit ? Math.abs(value) / limit : 0);

function most(values) {
  let limit = 0;
  for (const value of values) limit = Math.max(limit, Math.abs(value));
  return limit;
}

/* A row of colours, one for each number. */
function strip(values, limit, label) {
  return make("div", {class: "strip", role: "img", "aria-label": label},
    Array.from(values, value => make("i", {style: `background:${tint(value, limit)}`, title: shown(value)})));
}

const painters = [];
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => painters.forEach(paint => paint()));

/* A canvas of rows × columns cells; paint(values) colours it: blue above 0, orange below. */
function picture(rows, columns, width, label, height = width * rows / columns) {
  const canvas = make("canvas", {width: columns, height: rows, role: "img", "aria-label": label,
    style: `width:${width}px;aspect-ratio:${width}/${height}`});
  let last = null, lastLimit = 0;
  const parts = text => [1, 3, 5].map(at => parseInt(text.slice(at, at + 2), 16));
  function paint(values, limit) {
    last = values, lastLimit = limit || most(values) || 1;
    const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
    const paper = parts(colour("paper")), above = parts(colour("blue")), below = parts(colour("orange"));
    for (let i = 0; i < rows * columns; i++) {
      const share = Math.min(Math.abs(values[i]) / lastLimit, 1), to = values[i] >= 0 ? above : below;
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = paper[c] + share * (to[c] - paper[c]);
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }
  painters.push(() => last && paint(last, lastLimit));
  return {element: canvas, paint};
}

/* Named bars: set([[name, value, text], …], limit). */
function bars(label) {
  const element = make("div", {class: "bars", role: "group", "aria-label": label});
  return {
    element,
    set(rows, limit = most(rows.map(row => row[1]))) {
      element.replaceChildren(...rows.flatMap(([name, value, text, shade]) => [
        make("span", {class: "token"}, name),
        make("span", {class: "bar"}, make("i", {class: value < 0 ? "minus" : "", style:
          `width:${limit ? 100 * Math.min(Math.abs(value) / limit, 1) : 0}%${shade ? `;background:var(--${shade})` : ""}`})),
        make("span", {}, text === undefined ? shown(value) : text)]));
    },
  };
}

/* Ticks of an axis: round numbers, or powers of ten. */
function ticks(low, high, log, about) {
  if (log) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    const every = Math.max(1, Math.ceil((last - first) / about));
    const found = [];
    for (let power = first; power <= last; power += every) found.push(10 ** power);
    if (found.length >= 2) return found;
    return [1, 2, 5].flatMap(m => [first - 1, first, first + 1].map(p => m * 10 ** p)).filter(v => v >= low && v <= high).sort((a, b) => a - b);
  }
  const rough = (high - low) / about || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  return found;
}

/* The width of drawings: as much as there is, at most 640, so that their text stays readable. */
const room = () => Math.max(280, Math.min(640, document.querySelector("main").clientWidth - (document.querySelector("[data-widget]") ? 54 : 0)));

/* Curves as SVG: {title, x, y, lines: {name: [[x, y], …]}, log, scatter: a name, range: [x0, x1, y0, y1]}. */
function chart(spec) {
  const figure = make("figure", {class: "chart"});
  fillChart(figure, spec);
  return {element: figure, set(next) { fillChart(figure, {...spec, ...next}); }};
}

function fillChart(figure, spec) {
  const width = spec.width || room(), height = 300, left = 70, right = 12, top = 10, bottom = 42;
  const logX = (spec.log || "").includes("x"), logY = (spec.log || "").includes("y");
  const fits = point => Number.isFinite(point[0]) && Number.isFinite(point[1]) && (!logX || point[0] > 0) && (!logY || point[1] > 0);
  const names = Object.keys(spec.lines), all = Object.values(spec.lines).flat().filter(fits);
  const span = (place, log, given) => {
    if (given) return given;
    let low = Math.min(...all.map(p => p[place])), high = Math.max(...all.map(p => p[place]));
    if (!Number.isFinite(low)) [low, high] = [log ? 1 : 0, log ? 10 : 1];
    if (log) return low === high ? [low / 2, high * 2] : [low, high];
    if (low === high) [low, high] = [low - 1, high + 1];
    if (place === 1 && low > 0 && low < 0.75 * high) low = 0;
    return [low, high];
  };
  const [x0, x1] = span(0, logX, spec.range && spec.range.slice(0, 2));
  const [y0, y1] = span(1, logY, spec.range && spec.range.slice(2));
  const scale = (value, low, high, log) => log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  const px = x => left + scale(x, x0, x1, logX) * (width - left - right);
  const py = y => height - bottom - scale(y, y0, y1, logY) * (height - top - bottom);
  const label = (value, log) => log && (value >= 1e5 || value < 1e-3) && Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-9 ? `10${raised(Math.round(Math.log10(value)))}` : shown(Number(value.toPrecision(6)));
  const root = draw("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${spec.title || spec.y}: ${names.join(", ")}`});
  for (const value of ticks(x0, x1, logX, width < 420 ? 3 : 6)) {
    root.append(draw("line", {class: "grid", x1: px(value), x2: px(value), y1: top, y2: height - bottom}),
      draw("text", {class: "soft", x: px(value), y: height - bottom + 16, "text-anchor": "middle"}, label(value, logX)));
  }
  for (const value of ticks(y0, y1, logY, 5)) {
    root.append(draw("line", {class: "grid", x1: left, x2: width - right, y1: py(value), y2: py(value)}),
      draw("text", {class: "soft", x: left - 6, y: py(value) + 4, "text-anchor": "end"}, label(value, logY)));
  }
  root.append(draw("text", {x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle"}, spec.x),
    draw("text", {transform: `translate(13 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle"}, spec.y));
  names.forEach((name, number) => {
    const paint = `var(--${COLOURS[number % COLOURS.length]})`, points = spec.lines[name].filter(fits);
    const dots = spec.scatter === name;
    if (!dots) root.append(draw("polyline", {points: points.map(p => `${px(p[0]).toFixed(1)},${py(p[1]).toFixed(1)}`).join(" "),
      style: `fill:none;stroke:${paint};stroke-width:2;stroke-linejoin:round`, "stroke-dasharray": number % 2 ? "6 3" : false}));
    if (dots || points.length <= 20) points.forEach(p => root.append(draw("circle", {cx: px(p[0]), cy: py(p[1]), r: 3, style: `fill:${paint}`})));
  });
  if (spec.mark !== undefined) root.append(draw("line", {class: "axis", x1: px(spec.mark), x2: px(spec.mark), y1: top, y2: height - bottom, "stroke-dasharray": "3 3"}));
  const legend = make("div", {class: "legend"}, names.map((name, number) =>
    make("span", {}, make("i", {style: `background:var(--${COLOURS[number % COLOURS.length]})`}), name)));
  figure.replaceChildren(...(spec.title ? [make("figcaption", {}, spec.title)] : []), root, ...(names.length > 1 ? [legend] : []));
}

/* ---- mathematics that several lessons need ---- */

function softmax(values) {
  let top = -Infinity;
  for (const value of values) top = Math.max(top, value);
  const powers = Array.from(values, value => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map(power => power / sum);
}

/* weights (outputs × inputs), row by row. */
function linear(weights, bias, x) {
  return Array.from(bias, (shift, row) => {
    let sum = shift;
    for (let i = 0; i < x.length; i++) sum += weights[row * x.length + i] * x[i];
    return sum;
  });
}

/* A generator of random numbers in 0 … 1 that begins alike each time (xorshift). */
function random(seed) {
  let state = seed || 1;
  return () => {
    state ^= state << 13; state ^= state >>> 17; state ^= state << 5;
    return (state >>> 0) / 4294967296;
  };
}

/* ---- beginning ---- */

function start() {
  for (const figure of document.querySelectorAll("figure[data-of]"))
    fillChart(figure, JSON.parse(document.getElementById(figure.dataset.of).textContent));
  for (const box of document.querySelectorAll("[data-widget]")) {
    const {data, plays} = JSON.parse(document.getElementById(box.dataset.of).textContent);
    box.play = widgets[box.dataset.widget](box, unpack(data));
    box.plays = plays;
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
}
