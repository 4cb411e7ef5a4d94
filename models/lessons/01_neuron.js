"use strict";

const ACTIVATIONS = {
  sigmoid: x => 1 / (1 + Math.exp(-x)),
  relu: x => Math.max(x, 0),
  gelu: x => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
};

widgets.neuron = (box, data) => {
  const signals = data.names.map((name, i) => slider(`${name}: signal`, -1, 2, 0.1, data.signals[i], update));
  const weights = data.names.map((name, i) => slider(`${name}: weight`, -3, 3, 0.1, data.weights[i], update));
  const threshold = slider("threshold", -2, 4, 0.1, data.threshold, update);
  const root = draw("svg", {class: "scaled", viewBox: "0 0 440 200", style: "max-width:560px", role: "img", "aria-label": "three signals, lines as thick as their weights, a neuron, its answer"});
  const verdict = make("p", {class: "verdict", role: "status"}), answers = bars("what activation functions answer");
  signals.forEach((signal, i) => controls(box, signal, weights[i]));
  controls(box, threshold);
  box.append(root, verdict, answers.element);
  let result = [];
  function update() {
    const parts = signals.map((signal, i) => signal.value * weights[i].value);
    const sum = parts.reduce((a, b) => a + b, 0), above = sum - threshold.value, active = above > 0;
    root.replaceChildren();
    parts.forEach((part, i) => {
      const y = 36 + 64 * i, weight = weights[i].value, paint = weight >= 0 ? "blue" : "orange";
      root.append(draw("line", {x1: 100, y1: y, x2: 310, y2: 100, style: `stroke:var(--${paint});stroke-width:${0.5 + 3 * Math.abs(weight)};opacity:.7`}),
        draw("circle", {cx: 85, cy: y, r: 20, style: `fill:${tint(signals[i].value, 2)};stroke:var(--ink)`}),
        draw("text", {x: 60, y: y + 4, "text-anchor": "end"}, data.names[i]),
        draw("text", {x: 190, y: y + (100 - y) / 2 + [-10, -8, 20][i], "text-anchor": "middle"}, `${fixed(signals[i].value, 1)} × ${fixed(weight, 1)} = ${fixed(part, 2)}`));
    });
    root.append(draw("circle", {cx: 320, cy: 100, r: 38, style: `fill:${active ? "var(--blue)" : "var(--paper)"};stroke:var(--ink);stroke-width:2`}),
      draw("text", {x: 320, y: 105, class: "bare", "text-anchor": "middle", style: `fill:var(--${active ? "paper" : "ink"});font-size:15px`}, fixed(sum, 2)),
      draw("line", {class: "axis", x1: 358, y1: 100, x2: 372, y2: 100}),
      draw("text", {x: 376, y: 98, style: "font-size:15px;font-weight:600"}, active ? "active" : "silent"),
      draw("text", {x: 376, y: 114, class: "soft"}, `limit ${fixed(threshold.value, 1)}`));
    verdict.replaceChildren(`sum ${fixed(sum, 2)} − threshold ${fixed(threshold.value, 1)} = ${fixed(above, 2)}: `, make("strong", {}, active ? "active" : "silent"));
    const values = Object.entries(ACTIVATIONS).map(([name, bend]) => [name, bend(above)]);
    answers.set(values.map(([name, value]) => [name, value, fixed(value, 3)]), 3);
    result = [above, ...values.map(pair => pair[1])];
  }
  update();
  return move => {
    signals.forEach((signal, i) => signal.set(move.signals[i]));
    weights.forEach((weight, i) => weight.set(move.weights[i]));
    threshold.set(move.threshold);
    return result;
  };
};
