"use strict";

widgets.race = (box, data) => {
  const clock = slider("seconds", 0, data.seconds, data.seconds / 200, data.seconds, update, value => fixed(value, 2));
  const curves = chart({x: "seconds", y: "loss", lines: {}, range: [0, data.seconds, 0, Math.max(...Object.values(data.curves).flat().map(p => p[1]))]});
  const verdict = make("p", {class: "verdict", role: "status"});
  let result = [], now = data.seconds;
  controls(box, clock, button("Run", () => {
    const begin = performance.now();
    const frame = time => { const spent = (time - begin) / 1000; clock.set(Math.min(spent, data.seconds)); if (spent < data.seconds) requestAnimationFrame(frame); };
    requestAnimationFrame(frame);
  }));
  box.append(verdict, curves.element);
  function update(value) { tell(value === undefined ? clock.value : value); }
  function tell(moment) {
    now = moment;
    const until = Object.entries(data.curves).map(([name, curve]) => [name, curve.filter(p => p[0] <= now)]);
    curves.set({lines: Object.fromEntries(until)});
    result = until.map(([, curve]) => curve.at(-1)[1]);
    verdict.replaceChildren(...until.flatMap(([name, curve]) => [`${name}: `, make("strong", {}, fixed(curve.at(-1)[1], 3)), "  "]));
  }
  tell(data.seconds);
  return move => { clock.set(move.seconds); tell(move.seconds); return result; };
};

widgets.chain = (box) => {
  const names = {x: ["input x", -2, 2, 1], w: ["weight w", -3, 3, 0.5], b: ["bias b", -2, 2, 0], goal: ["target", 0, 1, 1]};
  const inputs = Object.fromEntries(Object.entries(names).map(([key, [label, from, to, value]]) => [key, slider(label, from, to, 0.1, value, update)]));
  const body = make("div", {role: "status"}), rows = make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "forward and backward"});
  controls(box, ...Object.values(inputs), button("One step of descent", () => {
    const [, byW, byB] = result;
    inputs.w.set(inputs.w.value - 2 * byW);
    inputs.b.set(inputs.b.value - 2 * byB);
  }));
  box.append(body, rows);
  let result = [];
  function update() {
    const [x, w, b, goal] = Object.values(inputs).map(input => input.value);
    const sum = w * x + b, answer = 1 / (1 + Math.exp(-sum)), off = answer - goal, loss = off * off;
    const byAnswer = 2 * off, bySum = byAnswer * answer * (1 - answer), byW = bySum * x, byB = bySum;
    result = [loss, byW, byB];
    const line = (...cells) => make("tr", {}, cells.map((cell, i) => i ? make("td", {}, cell) : make("th", {scope: "row"}, cell)));
    rows.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ["", "forward ↓", "backward ↑: loss changes by, per unit"].map(t => t ? make("th", {scope: "col"}, t) : make("td")))), make("tbody", {},
      line("w", fixed(w, 2), `${fixed(bySum, 4)} · x = ${fixed(byW, 4)}`),
      line("b", fixed(b, 2), `${fixed(bySum, 4)} · 1 = ${fixed(byB, 4)}`),
      line("s = w·x + b", fixed(sum, 3), `${fixed(byAnswer, 4)} · a·(1 − a) = ${fixed(bySum, 4)}`),
      line("a = sigmoid(s)", fixed(answer, 4), `2 · (a − target) = ${fixed(byAnswer, 4)}`),
      line("loss = (a − target)²", fixed(loss, 4), "1"))));
    body.textContent = "";
  }
  update();
  return move => { for (const [key, input] of Object.entries(inputs)) input.set(move[key]); return result; };
};
