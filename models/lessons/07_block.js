"use strict";

widgets.norm = (box, data) => {
  const size = data.states.shape[2], count = data.tokens.length;
  const token = choice("word", data.tokens, count - 1, update), layer = choice("before layer", data.layers.map(String), 0, update);
  const scale = slider("scale", 0, 3, 0.1, 1, update), shift = slider("shift", -2, 2, 0.1, 0, update);
  const before = make("div"), after = make("div");
  controls(box, token, layer);
  controls(box, scale, shift);
  box.append(before, after);
  const moments = values => {
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    return [mean, Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length)];
  };
  let result = [];
  function view(place, title, values) {
    const [mean, deviation] = moments(values), bins = new Array(41).fill(0), reach = Math.max(4, Math.min(most(values), 8 * deviation));
    values.forEach(v => { const bin = Math.round((v / reach + 1) * 20); if (bin >= 0 && bin <= 40) bins[bin]++; });
    const picture = chart({title, x: "value of a number", y: "how many of 576", lines: {count: bins.map((n, i) => [(i / 20 - 1) * reach, n])}, range: [-reach, reach, 0, Math.max(...bins)]});
    place.replaceChildren(picture.element, make("p", {class: "note"}, `mean ${fixed(mean, 3)}, deviation ${fixed(deviation, 3)}, largest ${fixed(most(values), 2)}`));
    return [mean, deviation];
  }
  function update() {
    const first = (layer.value * count + token.value) * size, x = data.states.subarray(first, first + size);
    const [mean, deviation] = view(before, "before the norm", x);
    const y = x.map(v => (v - mean) / Math.sqrt(deviation ** 2 + data.epsilon) * scale.value + shift.value);
    view(after, "after the norm", y);
    result = [mean, deviation, ...y.slice(0, 16)];
  }
  update();
  return move => { layer.set(move.layer); token.set(move.token); scale.set(move.scale); shift.set(move.shift); return result; };
};

widgets.depth = (box, data) => {
  const depth = steps("layers", data.depths, data.depths.length - 1, update), verdict = make("p", {class: "verdict", role: "status"});
  const curves = chart({x: "layer", y: "size of its gradient", log: "y", lines: {}});
  controls(box, depth);
  box.append(verdict, curves.element);
  let result = [];
  function update() {
    const [w, o] = [data.with[depth.place], data.without[depth.place]];
    curves.set({lines: {"with residual connections": w.map((v, i) => [i + 1, v]), "without": o.map((v, i) => [i + 1, v])}});
    result = [w[0] / w.at(-1), o[0] / o.at(-1)];
    verdict.replaceChildren("The first layer's gradient is ", make("strong", {}, `${shown(result[0])} times`), " the last layer's with residual connections, ", make("strong", {}, `${shown(result[1])} times`), " without.");
  }
  update();
  return move => { depth.set(move.depth); return result; };
};
