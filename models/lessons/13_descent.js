"use strict";

widgets.descent = (box, data) => {
  const {x, y, xx, xy, yy} = data.moments, [b0, b1] = data.bottom, REACH = [4, 5];
  const loss = (k0, k1) => k0 * k0 + 2 * k0 * k1 * x + k1 * k1 * xx - 2 * k0 * y - 2 * k1 * xy + yy;
  const slope = (k0, k1) => [2 * (k0 + k1 * x - y), 2 * (k0 * x + k1 * xx - xy)];
  const rate = steps("learning rate", data.rates, data.rates.indexOf(0.3), update, value => String(value));
  const k0 = slider("start: k0", -3, 5, 0.1, -2, update), k1 = slider("start: k1", -3, 7, 0.1, -2, update);
  const verdict = make("p", {class: "verdict", role: "status"}), SIZE = 360;
  const root = draw("svg", {class: "scaled", viewBox: `-30 0 ${SIZE + 40} ${SIZE + 34}`, role: "img", "aria-label": "map of the loss; click to start there", style: "cursor:crosshair;max-width:460px"});
  const line = chart({title: "points, and the line after each step", x: "x", y: "y", lines: {}, width: 330});
  controls(box, rate, k0, k1);
  box.append(verdict, make("div", {class: "row"}, root, line.element));
  const px = v => (v - b0 + REACH[0]) / (2 * REACH[0]) * SIZE, py = v => SIZE - (v - b1 + REACH[1]) / (2 * REACH[1]) * SIZE;
  root.addEventListener("click", event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(root.getScreenCTM().inverse());
    k0.set(at.x / SIZE * 2 * REACH[0] - REACH[0] + b0);
    k1.set((SIZE - at.y) / SIZE * 2 * REACH[1] - REACH[1] + b1);
  });
  /* The loss is a quadratic: its level lines are ellipses around the bottom. */
  const trace = 1 + xx, root2 = Math.sqrt((1 - xx) ** 2 + 4 * x * x), big = (trace + root2) / 2, small = (trace - root2) / 2;
  const angle = Math.atan2(big - 1, x);
  const rings = Array.from({length: 12}, (_, i) => {
    const level = 0.05 * 1.9 ** i;
    return draw("path", {d: Array.from({length: 73}, (_, p) => {
      const t = p / 36 * Math.PI, u = Math.sqrt(level / big) * Math.cos(t), v = Math.sqrt(level / small) * Math.sin(t);
      return `${p ? "L" : "M"}${px(b0 + u * Math.cos(angle) - v * Math.sin(angle)).toFixed(1)} ${py(b1 + u * Math.sin(angle) + v * Math.cos(angle)).toFixed(1)}`;
    }).join(""), style: `fill:none;stroke:var(--grey);opacity:${0.9 - 0.05 * i}`});
  });
  const clip = draw("clipPath", {id: "descent-clip"}, draw("rect", {width: SIZE, height: SIZE}));
  let result = [];
  function update() {
    let [a, b] = [k0.value, k1.value];
    const path = [[a, b, loss(a, b)]];
    for (let step = 0; step < data.steps; step++) {
      const [g0, g1] = slope(a, b);
      [a, b] = [a - rate.value * g0, b - rate.value * g1];
      path.push([a, b, loss(a, b)]);
    }
    const low = loss(b0, b1), first = path[0][2] - low, last = path.at(-1)[2] - low;
    const ending = last > first ? "overshoots: every step lands higher on the other side" : last < 0.001 + 1e-4 * first ? "arrives" : last > 0.1 * first ? "crawls: on its way, but still far off" : "is nearly there";
    verdict.replaceChildren("It ", make("strong", {}, ending), `. Loss ${shown(path[0][2])} → ${shown(path.at(-1)[2])} after ${data.steps} steps.`);
    const inside = v => Math.max(-2000, Math.min(2000, v));
    root.replaceChildren(clip, draw("rect", {width: SIZE, height: SIZE, style: "fill:var(--paper);stroke:var(--grey)"}),
      draw("g", {"clip-path": "url(#descent-clip)"}, ...rings,
        draw("polyline", {points: path.map(p => `${inside(px(p[0]))},${inside(py(p[1]))}`).join(" "), style: "fill:none;stroke:var(--blue);stroke-width:1.5"}),
        path.map(p => draw("circle", {cx: inside(px(p[0])), cy: inside(py(p[1])), r: 3, style: "fill:var(--blue)"})),
        draw("circle", {cx: px(path[0][0]), cy: py(path[0][1]), r: 6, style: "fill:var(--orange)"}),
        draw("circle", {cx: px(b0), cy: py(b1), r: 6, style: "fill:var(--green)"})),
      draw("text", {x: SIZE / 2, y: SIZE + 20, "text-anchor": "middle"}, "k0"), draw("text", {x: -18, y: SIZE / 2}, "k1"),
      draw("text", {x: px(b0) + 10, y: py(b1) + 4}, "bottom"));
    const ends = ([p, q]) => [[-1, p - q], [1, p + q]];
    line.set({lines: {"points": Array.from(data.x, (v, i) => [v, data.y[i]]), "first line": ends(path[0]), "last line": ends(path.at(-1))}, range: [-1, 1, -4, 6], scatter: "points"});
    result = [...path[1], ...path.at(-1)];
  }
  update();
  return move => { rate.set(move.rate); k0.set(move.k0); k1.set(move.k1); return result; };
};
