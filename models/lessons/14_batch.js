"use strict";

widgets.noise = (box, data) => {
  const next = random(11), count = data.x.length, size = steps("examples in a batch", data.sizes, 1, redraw);
  const verdict = make("p", {class: "verdict", role: "status"});
  const root = draw("svg", {class: "scaled", viewBox: "-60 -130 300 180", role: "img", "aria-label": "steps of twenty batches, and of all examples", style: "max-width:480px"});
  controls(box, size, button("Draw twenty batches", redraw));
  box.append(verdict, root);
  /* The gradient of the mean square error of y = k0 + k1·x, at k0 = k1 = 0. */
  function gradient(places) {
    let g0 = 0, g1 = 0;
    for (const i of places) { g0 -= 2 * data.y[i]; g1 -= 2 * data.y[i] * data.x[i]; }
    return [g0 / places.length, g1 / places.length];
  }
  const all = gradient([...Array(count).keys()]);
  function redraw() {
    const found = Array.from({length: 20}, () => gradient(Array.from({length: size.value}, () => Math.floor(next() * count))));
    const away = Math.sqrt(found.reduce((sum, g) => sum + (g[0] - all[0]) ** 2 + (g[1] - all[1]) ** 2, 0) / 20);
    const end = ([g0, g1]) => ({x2: -28 * g0, y2: 28 * g1});
    root.replaceChildren(draw("line", {class: "grid", x1: -60, x2: 240, y1: 0, y2: 0}), draw("line", {class: "grid", x1: 0, x2: 0, y1: -130, y2: 50}),
      ...found.map(g => draw("line", {x1: 0, y1: 0, ...end(g), style: "stroke:var(--orange);stroke-width:1.5;opacity:.7"})),
      draw("line", {x1: 0, y1: 0, ...end(all), style: "stroke:var(--blue);stroke-width:4"}),
      draw("text", {x: 236, y: 14, "text-anchor": "end"}, "k0 →"), draw("text", {x: 6, y: -118}, "k1 ↑"));
    verdict.replaceChildren("These batches are off by ", make("strong", {}, fixed(away, 2)), `; minigrad measured ${fixed(data.measured[size.place], 2)} over many more.`);
  }
  redraw();
  return move => { size.set(data.sizes[2]); return gradient(move.all ? [...Array(count).keys()] : move.places); };
};
