/* The page of minigrad.explain. One thing is chosen at a time: a module, a line, a phase or a kernel;
   what belongs to it is lit everywhere. Long texts come deflated, and are inflated when they are looked at. */
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const kernels = data.kernels, total = kernels.reduce((sum, k) => sum + k.seconds, 0) || 1e-9;
const PHASES = ["forward", "backward", "update"], ROOT = "model", FIRST_ROWS = 25;
const exchanges = kernel => kernel.kind === "exchange" || kernel.kind === "wait";

/* ---- making elements, numbers for people ---- */

function make(tag, attributes = {}, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return dress(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter(child => child !== null));
  return element;
}

const three = value => Number(value.toPrecision(3)).toLocaleString("en-US");

function scaled(value, units, base = 1000) {
  for (const unit of units) {
    if (value < base || unit === units.at(-1)) return `${three(value)} ${unit}`;
    value /= base;
  }
}

const bytes = value => scaled(value, ["bytes", "kB", "MB", "GB", "TB"]);
const count = value => scaled(value, ["", "k", "M", "G", "T"]).trim();
const percent = share => `${share >= 0.0995 ? Math.round(100 * share) : (100 * share).toFixed(1)} %`;
const time = seconds => seconds >= 1 ? `${three(seconds)} s` : seconds >= 1e-3 ? `${three(1e3 * seconds)} ms` : `${three(1e6 * seconds)} µs`;

async function inflated(packed) {
  const raw = Uint8Array.from(atob(packed), c => c.charCodeAt(0));
  return new Response(new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
}

/* ---- what belongs to what ---- */

const place = ([file, line]) => `${file}:${line}`;
const within = (name, module) => name === module || (module === ROOT ? name !== "" : name.startsWith(module + "."));

const belongs = {
  none: () => true,
  module: (kernel, name) => kernel.modules.some(([other, share]) => share >= 0.005 && within(other, name)),
  line: (kernel, where) => kernel.stacks.some(([stack, share]) => share >= 0.005 && data.stacks[stack].some(one => place(one) === where)),
  phase: (kernel, phase) => phase === "exchange" ? exchanges(kernel) : !exchanges(kernel) && mainPhase(kernel) === phase,
  kernel: (kernel, number) => kernel === kernels[number],
};

const mainPhase = kernel => exchanges(kernel) ? "exchange" : (kernel.phases[0] || ["forward"])[0];
const mainModule = kernel => (kernel.modules.find(([name]) => name) || [""])[0];

/* Seconds by phase in shares whose name passes a test; kernels count by their share. */
function spent(shares, holds) {
  const found = {forward: 0, backward: 0, update: 0, all: 0};
  for (const kernel of kernels) {
    const share = kernel[shares].reduce((sum, [key, part]) => sum + (holds(key) ? part : 0), 0);
    if (!share) continue;
    found.all += kernel.seconds * share;
    for (const [phase, part] of kernel.phases) found[phase] += kernel.seconds * share * part;
  }
  return found;
}

function phaseBar(found) {
  return make("span", {class: "bar", "aria-hidden": "true"}, PHASES.map(phase =>
    make("i", {class: phase, style: `width:${100 * found[phase] / total}%`})));
}

/* ---- choosing ---- */

const painters = [];
let chosen = {kind: "none", value: null};

function choose(kind, value, goes = true) {
  const again = chosen.kind === kind && chosen.value === value && kind !== "kernel";
  chosen = again ? {kind: "none", value: null} : {kind, value};
  const lit = new Set(kernels.keys().filter(n => belongs[chosen.kind](kernels[n], chosen.value)));
  for (const paint of painters) paint(chosen, lit);
  const narrow = matchMedia("(max-width: 899px)").matches;
  if (kind === "kernel" && goes && narrow) document.querySelector(".detail").scrollIntoView();
}

function chosenBar() {
  const text = make("span", {"aria-live": "polite"});
  const clear = make("button", {type: "button", onclick: () => choose("none", null)}, "show all");
  painters.push((what, lit) => {
    const seconds = [...lit].reduce((sum, n) => sum + kernels[n].seconds, 0);
    const names = {module: `module ${what.value}`, phase: `phase “${what.value}”`, kernel: `kernel ${what.value}`};
    const line = what.kind === "line" ? what.value.split(":") : [];
    names.line = line.length ? `${data.files[line[0]].name}, line ${line[1]}` : "";
    text.textContent = what.kind === "none" ? "Nothing is selected: click a module, a line or a kernel."
      : `${names[what.kind]}: ${lit.size} of ${kernels.length} kernels, ${time(seconds)}, ${percent(seconds / total)} of the time of all kernels`;
    clear.hidden = what.kind === "none";
  });
  return make("div", {class: "chosen", role: "region", "aria-label": "selection"}, text, clear);
}

/* ---- parts ---- */

function section(title, about, ...inner) {
  return make("section", {}, make("h2", {}, title), make("p", {class: "note"}, about), ...inner);
}

function overview() {
  const plain = data.plain.length ? data.plain[data.plain.length >> 1] : null;
  const operations = kernels.reduce((sum, k) => sum + k.operations, 0);
  const moved = kernels.reduce((sum, k) => sum + (exchanges(k) ? 0 : k.bytes), 0);
  const fixed = Object.values(data.memory.fixed).reduce((a, b) => a + b, 0);
  const peak = fixed + Math.max(...data.memory.steps);
  const limit = kernels.reduce((sum, k) => sum + Math.min(k.limit, 1) * k.seconds, 0) / total;
  const tile = (value, what) => make("li", {}, make("strong", {}, value), what);
  const rest = data.seconds - total;
  return [
    make("p", {}, `This page shows what one call of ${data.what} does, from your lines down to the processor's instructions. ` +
      "Your program says what to compute; minigrad's compiler turns it into kernels: pieces of machine code that process whole arrays, one after the other. " +
      "Click a part of your model, a line or a kernel to see what belongs to it."),
    make("ul", {class: "tiles"},
      tile(plain === null ? time(total) : time(plain), plain === null ? "in kernels" : "a call, as it is"),
      tile(String(kernels.length), `kernels, ${data.codes.length} of them different`),
      tile(count(operations), "operations, about"),
      tile(bytes(moved), "read and written"),
      tile(bytes(peak), "peak memory"),
      tile(percent(limit), "of the machine's limit")),
    make("p", {class: "note"}, (plain === null ? "" : `Without measurement, a call took ${time(plain)} (the median of ${data.plain.length}). `) +
      `Measured kernel by kernel it took ${time(data.seconds)}: ${time(total)} in kernels` +
      (rest > 0 ? `, ${time(rest)} (${percent(rest / data.seconds)}) between them, in Python.` : ".") +
      (plain === null ? "" : ` So the times below add up to ${percent(1 + data.apart)} of a call.`) +
      ` The limit is what this machine can do at best, in arithmetic or in memory traffic, whichever takes a kernel longer. ${data.machine}; ${data.when}; ${data.steps} calls in total.`),
  ];
}

function moduleTree() {
  const names = new Set(data.modules.map(row => row.name)), open = new Set([ROOT]);
  const parentOf = name => {
    for (let at = name.lastIndexOf("."); at > 0; at = name.lastIndexOf(".", at - 1))
      if (names.has(name.slice(0, at))) return name.slice(0, at);
    return name !== ROOT && names.has(ROOT) ? ROOT : "";
  };
  const inner = new Set(data.modules.map(row => parentOf(row.name)));
  const list = make("ul", {class: "rows"}), rows = [];
  const depth = name => { let steps = 0; for (let at = parentOf(name); at; at = parentOf(at)) steps++; return steps; };
  const visible = name => { for (let at = parentOf(name); at; at = parentOf(at)) if (!open.has(at)) return false; return true; };
  const refresh = () => rows.forEach(({name, item, toggle}) => {
    item.hidden = !visible(name);
    item.style.display = item.hidden ? "none" : "";
    if (toggle) { toggle.textContent = open.has(name) ? "▾" : "▸"; toggle.setAttribute("aria-expanded", open.has(name)); }
  });
  for (const row of data.modules) {
    const found = spent("modules", name => within(name, row.name)), name = row.name;
    const toggle = inner.has(name) ? make("button", {type: "button", class: "toggle", "aria-label": `parts of ${name}`,
      onclick: () => { if (!open.delete(name)) open.add(name); refresh(); }}, "▸") : null;
    const size = row.tensors.map(([key, shape]) => `${key} ${shape.join("×")}`).join(", ");
    const item = make("li", {style: `padding-left:${0.4 + 0.9 * depth(name)}rem`},
      make("span", {class: "name"}, toggle || make("span", {class: "toggle"}),
        make("button", {type: "button", "data-module": name, onclick: () => choose("module", name)}, name,
          make("span", {class: "kind"}, row.kind + (size ? `: ${size}` : "")))),
      make("span", {class: "time"}, time(found.all)), phaseBar(found));
    list.append(item);
    rows.push({name, item, toggle});
  }
  refresh();
  painters.push((what, lit) => rows.forEach(({name, item}) => item.classList.toggle("lit",
    what.kind === "module" ? what.value === name : what.kind !== "none" && what.kind !== "phase" && lit.size > 0 && lit.size < 40 &&
      [...lit].some(n => kernels[n].modules.some(([other, share]) => share >= 0.005 && other === name)))));
  const legend = make("div", {class: "legend"}, [...PHASES, ...(kernels.some(exchanges) ? ["exchange"] : [])].map(phase =>
    make("button", {type: "button", "data-phase": phase, onclick: () => choose("phase", phase)}, make("i", {class: phase}), phase)));
  return section("Your model", "Each module with its tensors and the time of its kernels. Forward: the result and the loss; " +
    "backward: the gradient of each parameter; update: the optimizer's step. The time of a kernel that several modules share is divided among them.",
    legend, data.modules.length ? make("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": "modules"}, list) : make("p", {}, "No object with tensors was found: pass model= to explain."));
}

function sources() {
  const seconds = new Map();
  for (const kernel of kernels) for (const [stack, share] of kernel.stacks)
    for (const where of new Set(data.stacks[stack].map(place))) seconds.set(where, (seconds.get(where) || 0) + kernel.seconds * share);
  const marked = [];
  const ofFile = (file, number) => [...seconds].reduce((sum, [where, value]) => Math.max(sum, where.startsWith(`${number}:`) ? value : 0), 0);
  const order = data.files.map((file, number) => [ofFile(file, number), file, number]).sort((a, b) => b[0] - a[0]);
  const blocks = order.map(([, file, number]) => [make("h3", {}, file.name), make("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": file.name},
    file.pieces.flatMap(([first, lines], piece) => [
      ...(piece ? [make("div", {class: "line"}, make("span", {}, "…"))] : []),
      ...lines.map((text, at) => {
        const where = `${number}:${first + at}`, found = seconds.get(where);
        const indent = `margin-left:${text.search(/\S|$/)}ch`, shown = text.trim();
        const row = make("div", {class: "line"}, make("span", {}, String(first + at)), make("span", {}, found ? time(found) : ""),
          found ? make("button", {type: "button", "data-line": where, style: indent, onclick: () => choose("line", where)}, shown) : make("span", {class: "code", style: indent}, shown));
        if (found) marked.push([where, row]);
        return row;
      })]))]);
  painters.push((what, lit) => {
    const places = what.kind === "none" || lit.size > 40 ? new Set() : new Set([...lit].flatMap(n => kernels[n].stacks.filter(([, share]) => share >= 0.005).flatMap(([stack]) => data.stacks[stack].map(place))));
    for (const [where, row] of marked) row.classList.toggle("lit", what.kind === "line" ? what.value === where : places.has(where));
  });
  return section("Your program", "The lines that created nodes, with the time of the kernels that compute these; a line that calls functions includes their time. " +
    "The backward pass counts for the line whose gradient it computes.", ...blocks.flat(), blocks.length ? null : make("p", {}, "The nodes of a lazy tensor were created before they could be recorded. Explain a function instead: explain(lambda: …)."));
}

function strip() {
  const width = 1000, height = 46, root = draw("svg", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", height, role: "img", "aria-label": "kernels from left to right; widths are times"});
  let at = 0;
  const marks = kernels.map((kernel, number) => {
    const wide = kernel.seconds / total * width;
    const mark = draw("rect", {x: at.toFixed(3), y: 0, width: Math.max(wide - (wide > 3 ? 0.6 : 0), 0.2).toFixed(3), height, class: mainPhase(kernel), "data-kernel": number, onclick: () => choose("kernel", number)},
      draw("title", {}, `${number}: ${mainModule(kernel)} ${time(kernel.seconds)}`));
    at += wide;
    return mark;
  });
  root.append(...marks);
  painters.push((what, lit) => marks.forEach((mark, n) => mark.classList.toggle("dim", !lit.has(n))));
  return root;
}

function lineText([file, line]) {
  const piece = data.files[file].pieces.find(([first, lines]) => line >= first && line < first + lines.length);
  return piece ? piece[1][line - piece[0]].trim() : "";
}

/* A timeline of each rank and thread; an exchange lasts from its begin until it was waited for. */
const BEGINS = "exchange: ", WAITS = "wait: ";
const ROW = 15, GAP = 6;

function lane(rows, y, label, mark) {
  return [draw("text", {x: 0, y: y + 11}, label), ...rows.map(row => mark(row, y))];
}

function timeline() {
  const ranks = data.ranks.length ? data.ranks : [{same: true, kernels: kernels.map(k => [k.start, k.seconds])}];
  const several = data.ranks.length > 1, threads = Math.max(...kernels.map(k => k.threads || 1), 1);
  const rows = ranks.map(rank => rank.kernels.map(([start, seconds, label], number) => ({start, seconds, number, same: rank.same, label: label || kernels[number].label})));
  const end = Math.max(...rows.flat().map(row => row.start + row.seconds), 1e-9), left = 92, width = 1000 - left;
  const x = at => (left + at / end * width).toFixed(2), marks = [];
  const phase = row => row.label.startsWith(BEGINS) || row.label.startsWith(WAITS) ? "exchange" : row.same ? mainPhase(kernels[row.number]) : "other";
  const bar = (row, y, high = ROW) => {
    const known = row.same ? {"data-kernel": row.number, onclick: () => choose("kernel", row.number)} : {};
    const mark = draw("rect", {x: x(row.start), y, width: Math.max(row.seconds / end * width, 0.4).toFixed(2), height: high, class: phase(row), ...known},
      draw("title", {}, `${row.label.slice(0, 80)}: ${time(row.seconds)} from ${time(row.start)} on`));
    if (row.same) marks.push([mark, row.number]);
    return mark;
  };
  const parts = [];
  let y = 0;
  rows.forEach((all, rank) => {
    const name = several ? `rank ${rank}` : "", own = all.filter(row => phase(row) !== "exchange");
    for (let thread = 0; thread < threads; thread++) {
      parts.push(...lane(own.filter(row => !row.same || (kernels[row.number].threads || 1) > thread), y, `${name}${name && threads > 1 ? ", " : ""}${threads > 1 ? `thread ${thread}` : name ? "" : "kernels"}`, bar));
      y += ROW + 2;
    }
    const pairs = exchangePairs(all.map(row => row.label), all[0]?.same);
    if (pairs.length) {
      parts.push(...lane(pairs, y, "exchanges", ([first, last], top) => draw("rect", {x: x(all[first].start), y: top + 4, height: 6, class: "exchange faint", width: Math.max((all[last].start + all[last].seconds - all[first].start) / end * width, 0.4).toFixed(2)})),
        ...all.filter(row => phase(row) === "exchange").map(row => bar(row, y)));
      y += ROW + 2;
    }
    y += GAP;
  });
  parts.push(draw("text", {x: left, y: y + 8}, "0"), draw("text", {x: 1000, y: y + 8, "text-anchor": "end"}, time(end)));
  const root = draw("svg", {viewBox: `0 0 1000 ${y + 14}`, role: "img", "aria-label": "what each thread and rank did over time"}, parts);
  painters.push((what, lit) => marks.forEach(([mark, n]) => mark.classList.toggle("dim", !lit.has(n))));
  return section("Timeline", `One call over time. A kernel is drawn in the rows of the threads that it has work for${threads > 1 ? "; where the second row is empty, one thread works alone" : ""}; a gap between kernels is Python${several ? ", or another rank's turn" : ""}.` +
    (several ? " Purple: a thin bar is an exchange in progress, a thick one is a rank that begins it or waits for it." : ""),
    make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "timeline"}, make("div", {class: "clock"}, root)));
}

/* [number of the kernel that begins an exchange, of the kernel that waits for it] on one rank, matched by array or label. */
function exchangePairs(labels, same) {
  const begun = new Map(), pairs = [];
  const key = (n, start) => same ? `${kernels[n].program} ${kernels[n].plan.split(" = ")[0]}` : labels[n].slice(start.length);
  labels.forEach((label, n) => {
    if (label.startsWith(BEGINS)) begun.set(key(n, BEGINS), [...(begun.get(key(n, BEGINS)) || []), n]);
    if (label.startsWith(WAITS)) pairs.push([(begun.get(key(n, WAITS)) || [n]).shift() ?? n, n]);
  });
  return pairs;
}

/* ---- values, where they were asked for ---- */

const small = value => value === 0 ? "0" : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5 ? three(value) : value.toExponential(2).replace("e+", "e");
const power = n => `10${[...String(n)].map(c => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")}`;
const FAULTS = {NaN: "NaN (not a number)", infinite: "an infinite number"};

function spread(row) {
  const {bars} = row;
  if (!bars) return "no finite values";
  return draw("svg", {viewBox: `0 0 ${bars.length * 6} 44`, class: "bars", role: "img", "aria-label": `histogram from ${small(row.low)} to ${small(row.high)}`},
    bars.map((height, n) => draw("rect", {x: n * 6, y: 42 - 0.4 * height, width: 5, height: Math.max(0.4 * height, height ? 1 : 0), class: "forward"})));
}

function valueTable(rows) {
  const cell = row => make("tr", {}, make("th", {scope: "row"}, row.name, make("div", {class: "kind"}, `${row.shape.join("×") || "one number"} ${row.dtype}`)),
    make("td", {class: "number"}, row.bars ? `${small(row.low)} … ${small(row.high)}` : ""), make("td", {class: "number"}, row.bars ? `${small(row.mean)} ± ${small(row.spread)}` : ""),
    make("td", {class: "number"}, percent(row.zeros / Math.max(row.shape.reduce((a, b) => a * b, 1), 1))),
    make("td", {class: "number" + (row.nan || row.inf ? " wrong" : "")}, row.nan || row.inf ? [row.nan ? `${row.nan} NaN` : "", row.inf ? `${row.inf} infinite` : ""].filter(Boolean).join(", ") : "none"),
    make("td", {}, spread(row)), make("td", {class: "code"}, row.first.join(", ")));
  return make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "values"}, make("table", {}, make("thead", {}, make("tr", {}, ["result", "range", "mean ± std", "zeros", "not finite", "distribution", "first values"].map(t => make("th", {scope: "col"}, t)))),
    make("tbody", {}, rows.map(cell))));
}

function firstSentence(first) {
  const goes = first.kernel < 0 ? null : make("button", {type: "button", "data-first": first.kernel, onclick: () => choose("kernel", first.kernel)}, `kernel ${first.kernel}`);
  const what = FAULTS[first.fault];
  if (first.how === "given") return make("li", {}, `${what} was already in ${first.what} before the step.`);
  if (first.how === "received") return make("li", {}, `${what} first came from another rank: `, goes, ` received it, in ${first.what}.`);
  const lines = first.stacks.filter(stack => data.stacks[stack].length).slice(0, 4).map(stack => data.stacks[stack][0]);
  return make("li", {}, `${what} was first produced by `, goes, `, in ${first.what}`, first.node ? [", by the node ", make("span", {class: "code"}, first.node)] : ", which read none", lines.length ? ", from the line " : ".",
    lines.map((one, at) => [at ? " or " : "", make("button", {type: "button", class: "code", onclick: () => choose("line", place(one))}, lineText(one) || `${one[2]}:${one[1]}`)]).flat());
}

/* The size of the numbers that each kernel wrote, from left to right in the order of kernels. */
function valuesOfAll() {
  if (!data.looked) return [];
  const width = 1000, height = 120, magnitude = row => Math.log10(Math.max(Math.abs(row.low), Math.abs(row.high)));
  const tall = kernels.map((kernel, n) => [n, Math.max(...kernel.values.filter(row => row.bars && (row.low || row.high)).map(magnitude)), kernel.values.some(row => row.nan || row.inf)]);
  const finite = tall.filter(([, value]) => Number.isFinite(value)), low = Math.floor(Math.min(...finite.map(one => one[1]), 0)), high = Math.ceil(Math.max(...finite.map(one => one[1]), 0)) || 1;
  const y = value => 8 + (high - value) / (high - low) * (height - 16), marks = [];
  const dots = tall.flatMap(([n, value, wrong]) => {
    if (!Number.isFinite(value) && !wrong) return [];
    const mark = draw("rect", {x: (60 + n / kernels.length * (width - 64)).toFixed(1), y: y(Number.isFinite(value) ? value : high).toFixed(1), width: Math.max((width - 64) / kernels.length - 0.5, 1.2).toFixed(1), height: 5, class: wrong ? "wrong" : mainPhase(kernels[n]), "data-kernel": n, onclick: () => choose("kernel", n)}, draw("title", {}, `kernel ${n}`));
    marks.push([mark, n]);
    return [mark];
  });
  painters.push((what, lit) => marks.forEach(([mark, n]) => mark.classList.toggle("dim", !lit.has(n))));
  const firsts = data.firsts.length ? make("ul", {id: "firsts"}, data.firsts.map(firstSentence)) : make("p", {id: "firsts"}, "All values that kernels wrote are finite: no NaN, no infinity.");
  return [section("Values", `What kernels wrote in an additional call${data.ranks.length > 1 ? ", on rank 0" : ""}. The plot shows the largest magnitude of each, as a power of ten (top: ${power(high)}, bottom: ${power(low)}); the tab “Values” of a kernel has its values.`, firsts,
    make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "values of all kernels"}, make("div", {class: "clock"},
      draw("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `the largest magnitude that each kernel wrote, from 10 to the power of ${low} to 10 to the power of ${high}`}, draw("text", {x: 0, y: 14}, power(high)), draw("text", {x: 0, y: height - 4}, power(low)), dots))))];
}

function kernelList() {
  const list = make("ul", {class: "rows"}), more = make("button", {type: "button"}, "");
  const order = make("select", {id: "order", onchange: () => fill()}, make("option", {}, "longest first"), make("option", {}, "in order"));
  let lit = new Set(kernels.keys()), all = false;
  more.addEventListener("click", () => { all = true; fill(); });
  function fill() {
    const numbers = [...lit].sort((a, b) => order.selectedIndex ? a - b : kernels[b].seconds - kernels[a].seconds);
    const shown = all ? numbers : numbers.slice(0, FIRST_ROWS);
    more.hidden = shown.length === numbers.length;
    more.textContent = `all ${numbers.length}`;
    list.replaceChildren(...shown.map(number => {
      const kernel = kernels[number], found = {forward: 0, backward: 0, update: 0};
      for (const [phase, share] of kernel.phases) found[phase] = share * kernel.seconds;
      return make("li", {}, make("span", {class: "name"}, make("button", {type: "button", "data-kernel": number, onclick: () => choose("kernel", number)},
        `${number} · ${mainModule(kernel) || kernel.writes[0] || kernel.kind}`,
        make("span", {class: "kind"}, `${mainPhase(kernel)}, ${kernel.label.slice(0, 60)}`))),
      make("span", {class: "time"}, time(kernel.seconds)), phaseBar(found));
    }));
  }
  painters.push((what, now) => { if (what.kind !== "kernel") { lit = now; all = false; fill(); } });
  fill();
  return [make("p", {class: "note"}, make("label", {for: "order"}, "Kernels "), order, " ", more),
    make("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": "kernels"}, list)];
}

const KINDS = {
  rows: "It processes rows: everything for one row is computed before the next, so intermediate values need not go through memory.",
  contraction: "It multiplies matrices, in tiles whose sums stay in registers, and applies what follows to each result before it is stored.",
  block_rows: "It processes blocks of rows, with matrix products among the operations; so attention is computed without storing its scores.",
  scatter: "It adds numbers at positions given by the data, one after another.",
  scan: "It keeps a running total along an axis.", distribute: "It is one pass of a sort.",
  exchange: "It starts sending and receiving.", wait: "It waits until an exchange is done.",
};
const TABS = [["why", "Why one kernel"], ["values", "Values"], ["nodes", "Nodes"], ["plan", "Formulas"], ["steps", "Loops, step by step"], ["nest", "Final loops"], ["ir", "LLVM IR"], ["assembly", "Assembly"]];
const ABOUT = {
  nodes: "Operations on whole arrays, after the passes. SHRINK, EXPAND, PERMUTE and RESHAPE cost nothing: they become indices.",
  plan: "What is computed for each index. s: inputs of the program, o: outputs, t: values passed between kernels or parts of a kernel.",
  steps: "The naive loops, and the loops after each named transformation (split: into pieces; vectorize: several iterations at once; parallelize: shared by threads).",
  nest: "The loops that become code.", ir: "The loops in LLVM's language, which does not depend on the processor.", assembly: "The processor's own instructions.",
};

function detail() {
  const box = make("section", {class: "detail", "aria-label": "the kernel", tabindex: -1});
  painters.push(what => { if (what.kind === "kernel") fill(what.value); });
  function fill(number) {
    const kernel = kernels[number], code = data.codes[kernel.code], panel = make("div", {role: "tabpanel", id: "panel", "aria-label": "the kernel's text"});
    const stacks = kernel.stacks.filter(([stack, share]) => share >= 0.005 && data.stacks[stack].length).slice(0, 8);
    const lines = stacks.map(([stack, share]) => make("li", {}, `${percent(share)} `, data.stacks[stack].slice(0, 4).map((one, at) => [at ? " ← " : "",
      make("button", {type: "button", onclick: () => choose("line", place(one)), title: `${data.files[one[0]].name}, line ${one[1]}, in ${one[2]}`}, at ? `${one[2]}:${one[1]}` : lineText(one) || `${one[2]}:${one[1]}`)]).flat()));
    const tabs = TABS.filter(([name]) => name === "values" ? kernel.values && kernel.values.length : name in ABOUT ? name === "nodes" || name === "plan" || code : true).map(([name, title]) =>
      make("button", {type: "button", role: "tab", "data-tab": name, "aria-controls": "panel", "aria-selected": "false", onclick: () => show(name)}, title));
    async function show(name) {
      for (const tab of tabs) tab.setAttribute("aria-selected", tab.dataset.tab === name);
      const about = ABOUT[name] ? make("p", {class: "note"}, ABOUT[name]) : null;
      const text = name === "why" || name === "values" ? null : name === "plan" ? kernel.plan : await inflated(name === "nodes" ? kernel.nodes : code[name]);
      if (name === "why") panel.replaceChildren(make("ul", {}, kernel.why.map(sentence => make("li", {}, sentence))));
      else if (name === "values") panel.replaceChildren(valueTable(kernel.values));
      else if (name === "nodes") {
        const cell = ([node, stack, module, phase]) => make("tr", {}, make("td", {class: "code"}, node), make("td", {}, `${module} ${phase === "forward" ? "" : phase}`), make("td", {class: "code"}, data.stacks[stack].length ? lineText(data.stacks[stack][0]) : ""));
        panel.replaceChildren(about, make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "nodes"}, make("table", {}, make("thead", {}, make("tr", {}, ["node", "module", "line"].map(t => make("th", {scope: "col"}, t)))), make("tbody", {}, JSON.parse(text).map(cell)))));
      } else panel.replaceChildren(...[about, make("pre", {tabindex: 0}, text || "This recipe writes its loops directly: see the final loops.")].filter(Boolean));
      box.dataset.shown = name;
    }
    const step = kernel.seconds / total;
    box.replaceChildren(make("h3", {}, `Kernel ${number}: ${mainModule(kernel) || kernel.kind}, ${mainPhase(kernel)}`),
      make("p", {}, `${KINDS[kernel.kind] || ""} It took ${time(kernel.seconds)}, ${percent(step)} of the time of all kernels` +
        (code ? `, for ${count(kernel.operations)} operations and ${bytes(kernel.bytes)} of memory: ${percent(kernel.limit)} of the machine's limit, ` +
          (kernel.bound === "memory" ? "which is memory traffic here: it takes longer than the arithmetic." : "which is arithmetic here: it takes longer than the memory traffic.") : kernel.bytes ? `; ${bytes(kernel.bytes)} are sent.` : ".")),
      kernel.writes.length ? make("p", {class: "note"}, `It writes ${kernel.writes.slice(0, 6).join(", ")}${kernel.writes.length > 6 ? " …" : ""}.`) : "",
      kernel.needs.length ? make("p", {class: "note"}, "It reads the results of kernels ", kernel.needs.slice(0, 12).flatMap(n => [make("button", {type: "button", onclick: () => choose("kernel", other(number, n))}, String(other(number, n))), " "])) : "",
      make("h3", {}, "Lines that created it"), lines.length ? make("ul", {class: "lines"}, lines) : make("p", {}, "None of yours."),
      make("div", {class: "tabs", role: "tablist", "aria-label": "stages of the kernel"}, tabs), panel);
    show("why");
  }
  return box;
}

/* The number in the step of a kernel, given its number in another kernel's program. */
const other = (number, inside) => number - kernels[number].number + inside;

const PASSES = {
  canonicalize: "Buffers get numbers, so that the next step finds the same program.",
  partition: "Operations on whole arrays become those of one device of the mesh on its parts; exchanges are inserted where it needs other devices' parts.",
  simplify: "Exact algebra: each rule gives the same values with less work.",
  expand_sorts: "A sort becomes passes that count and move elements.",
  split_reductions: "Long sums become two sums, so that threads can share the first.",
  schedule: "Decides which values are stored, and which share a kernel; “after” counts kernels.",
};

function passes() {
  const tables = data.programs.map((program, number) => make("details", {open: data.programs.length < 3}, make("summary", {}, `Program ${number}`),
    make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": `passes of program ${number}`}, make("table", {}, make("thead", {}, make("tr", {}, ["pass", "before", "after", "took", "what it does"].map(t => make("th", {scope: "col"}, t)))),
      make("tbody", {}, program.passes.map(pass => make("tr", {}, make("th", {scope: "row"}, pass.name), make("td", {class: "number"}, pass.before.toLocaleString("en-US")), make("td", {class: "number"}, pass.after.toLocaleString("en-US")), make("td", {class: "number"}, time(pass.seconds)),
        make("td", {}, PASSES[pass.name], Object.keys(pass.rules).length ? make("div", {class: "note"}, "Rules that applied: " + Object.entries(pass.rules).filter(([, times]) => times).map(([rule, times]) => `${rule} ${times}×`).join(", ")) : null))))))));
  return section("What the compiler did", "Your lines make nodes, operations on whole arrays. Passes rewrite them, one after the other, before any loop is written; “before” and “after” count nodes.", ...tables);
}

function memory() {
  const {steps, fixed, peak, held, others} = data.memory, base = Object.values(fixed).reduce((a, b) => a + b, 0);
  const width = 1000, height = 180, most = base + Math.max(...steps, 1), x = n => n / Math.max(steps.length, 1) * width, y = value => height - value / most * (height - 14);
  const points = steps.flatMap((value, n) => [`${x(n).toFixed(1)},${y(base + value).toFixed(1)}`, `${x(n + 1).toFixed(1)},${y(base + value).toFixed(1)}`]);
  const picture = draw("svg", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", height, role: "img", "aria-label": `memory at each kernel, at most ${bytes(most)}`},
    draw("polygon", {points: `0,${height} ${points.join(" ")} ${width},${height}`, style: "fill:var(--blue);opacity:.45"}),
    draw("rect", {x: 0, y: y(base), width, height: height - y(base), style: "fill:var(--grey);opacity:.6"}),
    draw("line", {x1: x(peak + 0.5), x2: x(peak + 0.5), y1: 0, y2: height, style: "stroke:var(--orange);stroke-width:2"}));
  const rows = [...Object.entries(fixed).map(([name, size]) => [name === "model" ? "the model's tensors" : name === "optimizer" ? "the optimizer's tensors" : name, size, null]),
    ...held.map(one => [`${one.module || "other"}: ${one.shape}`, one.bytes, one.first]), ...(others ? [["smaller ones", others, null]] : [])];
  return section("Memory", `From the first kernel to the last: grey is memory in use all the time, blue is what kernels pass on. The peak, ${bytes(most)}, is at kernel ${peak}; the table shows what it consists of.`,
    picture, make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "memory at the peak"}, make("table", {}, make("thead", {}, make("tr", {}, ["at the peak", "size", "made by"].map(t => make("th", {scope: "col"}, t)))),
      make("tbody", {}, rows.map(([name, size, first]) => make("tr", {}, make("th", {scope: "row"}, name), make("td", {class: "number"}, bytes(size)), make("td", {}, first === null ? "" : make("button", {type: "button", onclick: () => choose("kernel", first)}, `kernel ${first}`))))))));
}

/* The exchanges between ranks, each with the wait that ends it. */
function exchanged() {
  const pairs = exchangePairs(kernels.map(kernel => kernel.label), true);
  if (!pairs.length) return [];
  const sent = pairs.reduce((sum, [first]) => sum + kernels[first].bytes, 0), waited = pairs.reduce((sum, [, last]) => sum + kernels[last].seconds, 0);
  const largest = [...pairs].sort((a, b) => kernels[b[0]].bytes - kernels[a[0]].bytes).slice(0, 12);
  const go = number => make("button", {type: "button", onclick: () => choose("kernel", number)}, `kernel ${number}`);
  return [section("Exchanges", `This rank takes part in ${pairs.length} exchanges of ${bytes(sent)} in all. They run while kernels run; for ${time(waited)}, ${percent(waited / data.seconds)} of the call, the rank only waited. The largest:`,
    make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "exchanges"}, make("table", {}, make("thead", {}, make("tr", {}, ["exchange", "size", "started by", "awaited by", "duration", "waiting"].map(t => make("th", {scope: "col"}, t)))),
      make("tbody", {}, largest.map(([first, last]) => make("tr", {}, make("th", {scope: "row"}, kernels[first].label.replace("exchange: ", "")), make("td", {class: "number"}, bytes(kernels[first].bytes)), make("td", {}, go(first)), make("td", {}, go(last)),
        make("td", {class: "number"}, time(kernels[last].start + kernels[last].seconds - kernels[first].start)), make("td", {class: "number"}, time(kernels[last].seconds))))))))];
}

/* ---- the page ---- */

const box = detail();
document.getElementById("main").append(...overview(), chosenBar(),
  section("Kernels", "In the order in which they run; widths are times. Click one.", strip()),
  make("div", {class: "columns"},
    make("div", {}, ...kernelList(), moduleTree()),
    make("div", {}, box, sources())),
  timeline(), ...exchanged(), ...valuesOfAll(), passes(), memory());
choose("none", null);
const longest = kernels.reduce((best, kernel, n) => kernel.seconds > kernels[best].seconds ? n : best, 0);
if (kernels.length) choose("kernel", longest, false);
