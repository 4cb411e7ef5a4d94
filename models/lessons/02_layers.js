"use strict";

/* A drawing as the digits that it learned from are: 20 × 20 points large, its middle in the middle. */
function centred(points, size) {
  const ink = [];
  for (let i = 0; i < points.length; i++) if (points[i] > 0.05) ink.push([i % size, Math.floor(i / size), points[i]]);
  const result = new Float32Array(784);
  if (!ink.length) return result;
  const [left, right] = [Math.min(...ink.map(p => p[0])), Math.max(...ink.map(p => p[0]))];
  const [top, bottom] = [Math.min(...ink.map(p => p[1])), Math.max(...ink.map(p => p[1]))];
  const scale = 20 / Math.max(right - left + 1, bottom - top + 1, size / 8);
  let x = 0, y = 0, sum = 0;
  for (const p of ink) { x += p[0] * p[2]; y += p[1] * p[2]; sum += p[2]; }
  for (const p of ink) {
    const column = Math.round(14 + (p[0] - x / sum) * scale - 0.5), row = Math.round(14 + (p[1] - y / sum) * scale - 0.5);
    if (column >= 0 && column < 28 && row >= 0 && row < 28) result[28 * row + column] += p[2] * scale * scale;
  }
  return result.map(value => Math.min(value, 1));
}

widgets.digits = (box, data) => {
  const SIZE = 112, board = new Float32Array(SIZE * SIZE);
  const canvas = make("canvas", {width: SIZE, height: SIZE, tabindex: 0, role: "application",
    "aria-label": "drawing board: arrow keys move the pen, space sets it down and lifts it, Delete clears",
    style: "width:min(280px,100%);aspect-ratio:1;border:1px solid var(--grey);touch-action:none;background:#fff;cursor:crosshair"});
  const seen = picture(28, 28, 84, "what the network sees"), asked = picture(28, 28, 84, "weights of the selected neuron");
  const answers = bars("probability of each digit"), verdict = make("p", {class: "verdict", role: "status"});
  const root = draw("svg", {class: "scaled", viewBox: "0 0 360 330", role: "group", "aria-label": "neurons of the hidden layers and of the output", style: "max-width:520px;margin:auto"});
  const name = make("p", {class: "note"}, "Point at a neuron of the first layer.");
  box.append(make("div", {class: "row"}, make("div", {}, canvas,
    make("div", {class: "controls"}, button("Clear", clear), make("span", {class: "note"}, "or a digit somebody wrote:"),
      ...Array.from({length: 10}, (_, digit) => button(String(digit), () => show(digit), {"aria-label": `example of a ${digit}`})))),
  make("div", {}, verdict, answers.element, make("div", {class: "row pair"}, make("div", {}, make("p", {class: "note"}, "what it sees"), seen.element),
    make("div", {}, make("p", {class: "note"}, "what a neuron looks for"), asked.element)), name)), root);

  const {layers, examples} = data, sizes = [16, 16, 10], x = [60, 180, 290];
  const y = (layer, i) => layer === 2 ? 30 + 30 * i : 15 + 20 * i;
  const lines = [1, 2].map(layer => Array.from({length: sizes[layer] * sizes[layer - 1]}, (_, i) => {
    const to = Math.floor(i / sizes[layer - 1]), from = i % sizes[layer - 1];
    const line = draw("line", {x1: x[layer - 1], y1: y(layer - 1, from), x2: x[layer], y2: y(layer, to)});
    root.append(line);
    return line;
  }));
  const circles = sizes.map((size, layer) => Array.from({length: size}, (_, i) => {
    const look = () => {
      asked.paint(layers[0].weight.subarray(784 * i, 784 * (i + 1)));
      name.textContent = `Neuron ${i + 1} of the first layer: blue: ink counts for it; orange: against it.`;
    };
    const about = layer ? {} : {tabindex: 0, role: "button", "aria-label": `weights of neuron ${i + 1}`, onpointerenter: look, onfocus: look, onclick: look};
    const circle = draw("circle", {cx: x[layer], cy: y(layer, i), r: layer === 2 ? 11 : 8, ...about});
    root.append(circle);
    if (layer === 2) root.append(draw("text", {x: x[2] + 18, y: y(2, i) + 5, style: "font-size:14px"}, i));
    return circle;
  }));
  root.append(...["layer 1", "layer 2", "output"].map((text, layer) => draw("text", {class: "soft", x: x[layer], y: 330, "text-anchor": "middle"}, text)));

  let result = [];
  function answer(image) {
    seen.paint(image, 1);
    const relu = values => values.map(value => Math.max(value, 0));
    const first = relu(linear(layers[0].weight, layers[0].bias, image));
    const second = relu(linear(layers[1].weight, layers[1].bias, first));
    const logits = linear(layers[2].weight, layers[2].bias, second), chances = softmax(logits);
    [first, second, chances].forEach((values, layer) => {
      const limit = most(values) || 1;
      values.forEach((value, i) => circles[layer][i].setAttribute("style", `fill:${mixed(layer === 2 ? "orange" : "blue", value / limit)};stroke:var(--ink);cursor:${layer ? "default" : "pointer"}`));
    });
    [first, second].forEach((values, at) => {
      const weights = layers[at + 1].weight, flow = Array.from(weights, (weight, i) => weight * values[i % 16]), limit = most(flow) || 1;
      flow.forEach((value, i) => lines[at][i].setAttribute("style", `stroke:var(--${value >= 0 ? "blue" : "orange"});stroke-width:${0.3 + 2.5 * Math.abs(value) / limit};opacity:${0.08 + 0.9 * Math.abs(value) / limit}`));
    });
    answers.set(chances.map((chance, digit) => [String(digit), chance, percent(chance), "orange"]), 1);
    const best = chances.indexOf(Math.max(...chances));
    verdict.replaceChildren("It reads a ", make("strong", {}, String(best)), `, ${percent(chances[best])} sure.`);
    result = [...logits, ...second];
  }

  const context = canvas.getContext("2d");
  function paint() {
    const image = context.createImageData(SIZE, SIZE);
    board.forEach((value, i) => { image.data.set([255 * (1 - value), 255 * (1 - value), 255 * (1 - value), 255], 4 * i); });
    context.putImageData(image, 0, 0);
    if (pen.keys) { context.strokeStyle = pen.down ? "#b5430a" : "#0b5cad"; context.strokeRect(pen.x - 4, pen.y - 4, 8, 8); }
  }
  const pen = {x: SIZE / 2, y: SIZE / 2, down: false, keys: false};
  function stroke(x1, y1) {
    const length = Math.hypot(x1 - pen.x, y1 - pen.y), parts = Math.max(1, Math.ceil(length));
    for (let part = 0; part <= parts; part++) {
      const cx = pen.x + (x1 - pen.x) * part / parts, cy = pen.y + (y1 - pen.y) * part / parts;
      for (let row = Math.max(0, Math.floor(cy - 6)); row < Math.min(SIZE, cy + 6); row++)
        for (let column = Math.max(0, Math.floor(cx - 6)); column < Math.min(SIZE, cx + 6); column++) {
          const value = Math.max(0, Math.min(1, 5.2 - Math.hypot(column - cx, row - cy)));
          board[SIZE * row + column] = Math.max(board[SIZE * row + column], value);
        }
    }
    [pen.x, pen.y] = [x1, y1];
    paint();
    answer(centred(board, SIZE));
  }
  function place(event) {
    const frame = canvas.getBoundingClientRect();
    return [(event.clientX - frame.left) * SIZE / frame.width, (event.clientY - frame.top) * SIZE / frame.height];
  }
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    pen.keys = false; pen.down = true;
    [pen.x, pen.y] = place(event);
    stroke(pen.x, pen.y);
  });
  canvas.addEventListener("pointermove", event => { if (pen.down && !pen.keys) stroke(...place(event)); });
  canvas.addEventListener("pointerup", () => { pen.down = false; });
  canvas.addEventListener("keydown", event => {
    const way = {ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4]}[event.key];
    if (!way && event.key !== " " && event.key !== "Delete") return;
    event.preventDefault();
    if (event.key === "Delete") return clear();
    if (!pen.keys) pen.down = false;
    pen.keys = true;
    if (!way) pen.down = !pen.down;
    const [dx, dy] = way || [0, 0], to = [pen.x + dx, pen.y + dy].map(v => Math.min(Math.max(v, 4), SIZE - 4));
    if (pen.down) stroke(...to); else { [pen.x, pen.y] = to; paint(); }
  });
  function clear() { board.fill(0); paint(); answer(new Float32Array(784)); verdict.textContent = "Draw a digit."; }
  function show(digit) {
    const image = examples.subarray(784 * digit, 784 * (digit + 1));
    board.forEach((_, i) => { board[i] = image[28 * Math.floor(Math.floor(i / SIZE) / 4) + Math.floor(i % SIZE / 4)]; });
    pen.keys = false;
    paint();
    answer(image);
  }
  show(3);
  asked.paint(layers[0].weight.subarray(0, 784));
  return move => { show(move.example); return result; };
};
