"use strict";

widgets.spirals = (box, data) => {
  const bends = {relu: x => Math.max(x, 0), tanh: Math.tanh, none: x => x}, CELLS = 64;
  const plane = picture(CELLS, CELLS, Math.min(room(), 440), "what the network says about each point of the plane");
  const dots = draw("svg", {viewBox: "-1.2 -1.2 2.4 2.4", "aria-hidden": "true", style: "position:absolute;inset:0;width:100%"});
  for (let i = 0; i < data.labels.length; i++)
    dots.append(draw("circle", {cx: data.points[2 * i], cy: -data.points[2 * i + 1], r: 0.022, style: `fill:var(--${data.labels[i] ? "blue" : "orange"});stroke:var(--ink);stroke-width:.005`}));
  const verdict = make("p", {class: "verdict", role: "status"});
  const switches = data.names.map((name, at) => button(name === "none" ? "no activation" : name, () => show(at)));
  controls(box, ...switches);
  box.append(verdict, make("div", {style: `position:relative;width:${Math.min(room(), 440)}px;max-width:100%`}, plane.element, dots));
  function network(at, point) {
    const layers = data.layers[at], bend = bends[data.names[at]];
    let values = point;
    layers.forEach((layer, number) => {
      values = linear(layer.weight, layer.bias, values);
      if (number < layers.length - 1) values = values.map(bend);
    });
    return values;
  }
  let result = [];
  function show(at) {
    switches.forEach((one, place) => one.setAttribute("aria-pressed", place === at));
    const values = new Float32Array(CELLS * CELLS);
    for (let i = 0; i < values.length; i++) {
      const x = ((i % CELLS + 0.5) / CELLS - 0.5) * 2.4, y = (0.5 - (Math.floor(i / CELLS) + 0.5) / CELLS) * 2.4;
      values[i] = softmax(network(at, [x, y]))[1] - 0.5;
    }
    plane.paint(values, 0.9);
    let right = 0;
    const answers = [];
    for (let i = 0; i < data.labels.length; i++) {
      const answer = network(at, data.points.subarray(2 * i, 2 * i + 2));
      if (i < 8) answers.push(...answer);
      right += (answer[1] > answer[0]) === (data.labels[i] === 1);
    }
    const share = right / data.labels.length;
    verdict.replaceChildren("Correct: ", make("strong", {}, percent(share)), data.names[at] === "none" ? ". All layers together are one straight line." : ".");
    result = [share, ...answers];
  }
  show(0);
  return move => { switches[data.names.indexOf(move.activation)].click(); return result; };
};
